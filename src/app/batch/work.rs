//! A worker: claims a job, renders it, puts the clip into its place, and goes on to the next.

use std::{
    any::Any,
    fs,
    num::NonZeroUsize,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    Batch,
    options::Options,
    plan::JobSpec,
    publish::Ready,
    request::{JobRequest, Product},
};
use crate::{
    app::{
        fingerprint,
        generate::{GenerateRequest, Stopped},
        journal::{Claim, Counts, Ending, Journal, Worker, free_bytes},
        loaded::{Keep, Loaded},
        memory,
        outputs::Preview,
        recipe::Stamp,
        storyboard::shots_beside,
        weave::Looks,
    },
    error::{Error, ErrorKind, Result},
    event::{Event, JobState, Phase, Reporter},
};

/// With less room than this on the disk no job is begun.
const ROOM: u64 = 16 << 20;

/// Prompts that are read ahead where the text encoder can't stay in memory.
const AHEAD: usize = 64;

/// How a worker goes about it.
#[derive(Debug, Clone)]
pub struct Orders {
    /// How often a job that failed is tried again.
    pub retries: usize,
    /// How long a claim lasts that isn't renewed.
    pub lease: Duration,
    /// After how many steps, each time, latents are saved, unless the job says otherwise.
    pub checkpoint_every: NonZeroUsize,
    /// Who works.
    pub worker: Worker,
}

/// What a worker found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has dealt with a job.
    Worked,
    /// All that is left is with other workers.
    Waiting,
    /// Nothing is left.
    Nothing,
}

/// Works on a batch.
pub struct Work<'a> {
    batch: &'a mut Batch,
    options: &'a dyn Options,
    orders: &'a Orders,
    reporter: &'a dyn Reporter,
    loaded: Option<Group>,
    told: Option<Counts>,
}

/// A model that stays in memory from job to job.
struct Group {
    model: String,
    loaded: Loaded,
    keep: Keep,
}

/// How a job's rendering ended.
enum Outcome {
    Rendered(Product),
    /// The claim is another worker's now.
    Lost,
}

impl<'a> Work<'a> {
    /// A worker on this batch.
    pub fn new(
        batch: &'a mut Batch,
        options: &'a dyn Options,
        orders: &'a Orders,
        reporter: &'a dyn Reporter,
    ) -> Self {
        Self { batch, options, orders, reporter, loaded: None, told: None }
    }

    /// The batch, to take in more.
    pub fn batch(&mut self) -> &mut Batch {
        self.batch
    }

    /// Works until nothing is left; with `wait`, also until other workers are done with what they have.
    pub fn run(&mut self, wait: bool, done: &mut dyn FnMut(&Product) -> Result<()>) -> Result<Counts> {
        loop {
            match self.next(done)? {
                Next::Worked => {}
                Next::Waiting if wait => self.pause(Duration::from_millis(500))?,
                Next::Waiting | Next::Nothing => return self.batch.journal.counts(),
            }
        }
    }

    /// Waits a little, or less if the reporter asks to stop.
    pub fn pause(&mut self, time: Duration) -> Result<()> {
        thread::sleep(time);
        self.tell()
    }

    /// Says how far the batch is, if that has changed.
    fn tell(&mut self) -> Result<()> {
        let counts = self.batch.journal.counts()?;
        let event = Event::Batch {
            done: counts.done as u64,
            failed: counts.failed as u64,
            running: counts.running as u64,
            total: counts.total as u64,
        };
        // The same once more asks whether to stop, and is no news.
        let flow = if self.told.replace(counts) == Some(counts) {
            self.reporter.emit(&Event::Waiting)
        } else {
            self.reporter.emit(&event)
        };
        if flow.is_break() { Err(Error::Cancelled { saved: None }) } else { Ok(()) }
    }

    /// Does one job. What is finished is handed to `done`.
    pub fn next(&mut self, done: &mut dyn FnMut(&Product) -> Result<()>) -> Result<Next> {
        self.tell()?;
        self.batch.journal.check_there()?;
        let folder = &self.batch.place.folder;
        if let Some(free) = free_bytes(folder).filter(|free| *free < ROOM) {
            let (free, room) = (free as f64 / f64::from(1 << 20), ROOM >> 20);
            let why = format!("{free:.1} MiB are free there, and no job is begun with less than {room}");
            let source = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
            return Err(Error::File { action: "write", path: folder.clone(), source });
        }
        let model = self.loaded.as_ref().map_or("", |group| group.model.as_str());
        let Orders { retries, lease, worker, .. } = self.orders;
        let Some(claim) = self.batch.journal.claim(worker, model, *retries, *lease)? else {
            let counts = self.batch.journal.counts()?;
            return Ok(if counts.running > 0 { Next::Waiting } else { Next::Nothing });
        };
        self.state(&claim, JobState::Started, None);
        let listener = Listener::new(self.reporter, self.batch, &claim);
        let result = self.perform(&claim, &listener).and_then(|outcome| match outcome {
            Outcome::Rendered(product) => self.finish(&claim, &listener, product),
            Outcome::Lost => Ok(None),
        });
        match result {
            Ok(Some(product)) => {
                self.state(&claim, JobState::Done, None);
                done(&product)?;
            }
            Ok(None) => {
                self.forget(&claim)?;
                self.state(&claim, JobState::Lost, None);
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => {
                self.batch.journal.release(&claim)?;
                self.state(&claim, JobState::Stopped, None);
                return Err(Error::Cancelled { saved: None });
            }
            Err(error) => {
                let text = listener.in_place(&told(&error));
                if self.batch.journal.fail(&claim, &text, self.orders.retries)? {
                    self.state(&claim, JobState::Failed, Some(text));
                } else {
                    self.state(&claim, JobState::Lost, None);
                }
            }
        }
        self.sweep(&claim, &listener.made);
        Ok(Next::Worked)
    }

    fn state(&self, claim: &Claim, state: JobState, error: Option<String>) {
        let output = self.batch.place.output(&claim.output);
        // Whether to stop is asked before the next job.
        let _ = self.reporter.emit(&Event::Job { job: claim.n as u64, output, state, error });
    }

    /// Removes the latents of a job that another worker has finished in the meantime.
    fn forget(&self, claim: &Claim) -> Result<()> {
        if self.batch.journal.is_done(claim)? {
            self.batch.place.forget(&claim.hash)?;
        }
        Ok(())
    }

    /// Removes what an unfinished clip may have left.
    fn sweep(&self, claim: &Claim, made: &Path) {
        // A clip that was published isn't there any more, and a stray file harms nobody.
        let _ = fs::remove_file(made);
        let _ = fs::remove_dir_all(self.batch.place.making().join(self.batch.name(claim)));
    }

    /// Renders a job while another thread renews its claim. A panic is this job's failure and no other's.
    fn perform(&mut self, claim: &Claim, listener: &Listener<'_>) -> Result<Outcome> {
        let journal = self.batch.journal.again()?;
        let lease = self.orders.lease;
        let result = thread::scope(|scope| {
            let (stop, stopped) = mpsc::channel::<()>();
            scope.spawn(move || renew(journal, claim, lease, listener, &stopped));
            let result = catch_unwind(AssertUnwindSafe(|| self.render(claim, listener)));
            drop(stop);
            result
        });
        let lost = listener.lost.load(Ordering::SeqCst);
        match result {
            Ok(Ok(product)) => Ok(Outcome::Rendered(product)),
            Ok(Err(error)) if lost && error.kind() == ErrorKind::Cancelled => Ok(Outcome::Lost),
            Ok(Err(error)) => Err(error),
            Err(panic) => {
                // Its stages may be in any state.
                self.loaded = None;
                Err(Error::Defect { what: message_of(&*panic) })
            }
        }
    }

    fn render(&mut self, claim: &Claim, listener: &Listener<'_>) -> Result<Product> {
        let spec: JobSpec = serde_json::from_str(&claim.spec)
            .map_err(|e| Error::damaged(self.batch.journal.path(), format!("job {}: {e}", claim.n)))?;
        let place = &self.batch.place;
        let mut request = spec.request(self.options, &place.folder, &listener.made.to_string_lossy())?;
        let outputs = request.outputs_mut();
        if outputs.preview == Preview::Beside {
            let mut name = place.output(&claim.output).into_os_string();
            name.push(".preview.gif");
            outputs.preview = Preview::At(name.into());
        }
        for name in spec.other_files().chain([claim.output.as_str()]) {
            let path = place.output(name);
            let folder = path.parent().unwrap_or(&place.folder);
            fs::create_dir_all(folder).map_err(Error::file("write into", folder))?;
        }
        match &mut request {
            JobRequest::Clip(clip) => {
                let latents = place.latents(&claim.hash);
                if latents.exists() {
                    match Stopped::load(&latents) {
                        Ok(stopped) => clip.stopped = stopped,
                        Err(error) => {
                            let message = format!(
                                "job {} begins anew, its saved latents can't be read: {error}",
                                claim.n
                            );
                            let _ = listener.emit(&Event::Note { message });
                        }
                    }
                }
                self.keep(clip, claim)?;
            }
            // Passages say for themselves what they are: the clip goes on from them.
            JobRequest::Weave(weave) => self.keep(&mut weave.base, claim)?,
            JobRequest::Loop { clip, .. } => self.keep(clip, claim)?,
            // Finished shots say for themselves what they are: a film goes on from them, whoever made them.
            JobRequest::Film(film) => film.shots = Some(shots_beside(&place.output(&claim.output))),
        }
        let loaded = self.loaded(claim, &request, None)?;
        let begun = |steps: usize| listener.begun(steps);
        match request.make(listener, loaded, &begun) {
            // Without what is kept, there may be room.
            Err(Error::OutOfMemory { .. } | Error::OverLimit { .. })
                if self.loaded.as_ref().is_some_and(|g| g.keep != Keep::NONE) =>
            {
                let loaded = self.loaded(claim, &request, Some(Keep::NONE))?;
                request.make(listener, loaded, &begun)
            }
            result => result,
        }
    }

    /// Says where what is done of a job is kept until it is published.
    fn keep(&self, clip: &mut GenerateRequest, claim: &Claim) -> Result<()> {
        let whole = |path: PathBuf| std::path::absolute(&path).map_err(Error::file("find", &path));
        let place = &self.batch.place;
        clip.outputs.checkpoint_every.get_or_insert(self.orders.checkpoint_every);
        clip.outputs.rescue = Some(place.latents(&claim.hash));
        clip.take.kept = Some(whole(place.windows(&claim.hash))?);
        Ok(())
    }

    /// The job's model: the one in memory if it is the same.
    fn loaded(&mut self, claim: &Claim, request: &JobRequest, keep: Option<Keep>) -> Result<Loaded> {
        if let Some(group) = self.loaded.as_ref().filter(|group| group.model == claim.model && keep.is_none())
        {
            return Ok(group.loaded.clone());
        }
        // The old one goes before the new one comes.
        self.loaded = None;
        let mut looks = Looks::default();
        let loaded = Loaded::new(request.open()?, Keep::NONE);
        let checked = request.check_on(&loaded, &mut looks)?;
        let keep = keep.unwrap_or_else(|| memory::keep(&loaded, &checked, request.max_memory()));
        let loaded = loaded.keeping(keep);
        if !keep.text {
            let mut prompts = Vec::new();
            for spec in self.batch.journal.upcoming(&claim.model, AHEAD)? {
                // A job that can't be understood says so when its turn comes.
                let request = serde_json::from_str::<JobSpec>(&spec)
                    .ok()
                    .and_then(|spec| spec.request(self.options, Path::new(""), "ahead.mp4").ok());
                let checked = request.and_then(|request| request.check_on(&loaded, &mut looks).ok());
                prompts.extend(checked.into_iter().flat_map(|checked| checked.prompts));
            }
            loaded.expect(prompts);
        }
        self.loaded = Some(Group { model: claim.model.clone(), loaded: loaded.clone(), keep });
        Ok(loaded)
    }

    /// Puts an output into its place. Nothing if the claim was lost.
    fn finish(
        &mut self,
        claim: &Claim,
        listener: &Listener<'_>,
        mut product: Product,
    ) -> Result<Option<Product>> {
        let Batch { place, journal, .. } = &mut *self.batch;
        let spec: JobSpec = serde_json::from_str(&claim.spec)
            .map_err(|e| Error::damaged(journal.path(), format!("job {}: {e}", claim.n)))?;
        let request = spec.request(self.options, &place.folder, &claim.output)?;
        let (sha256, bytes) = fingerprint::output(&listener.made)?;
        product.rename(&listener.made.to_string_lossy(), &claim.output);
        let stamp = Stamp { job: Some(claim.hash.clone()), output_sha256: Some(sha256.clone()) };
        let json = product.recipe(&request, stamp)?;
        let ending = Ending {
            sha256,
            bytes,
            seconds: product.seconds().clone(),
            complaint: product.verdict().err().map(|error| error.to_string()),
        };
        let ready = Ready::bring(place, &listener.made, &claim.output, &json)?;
        let mut published = None;
        let mine = journal.finish(claim, &ending, || {
            published = Some(ready.publish(place, &claim.output)?);
            Ok(())
        })?;
        let Some(path) = published.filter(|_| mine) else { return Ok(None) };
        place.forget(&claim.hash)?;
        product.put_at(path);
        Ok(Some(product))
    }
}

/// Renews a claim until the job ends, or the claim is lost.
fn renew(
    mut journal: Journal,
    claim: &Claim,
    lease: Duration,
    listener: &Listener<'_>,
    stopped: &mpsc::Receiver<()>,
) {
    let pause = (lease / 4).min(Duration::from_secs(2));
    let mut renewed = Instant::now();
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let steps = listener.steps.load(Ordering::SeqCst);
        let asked = Instant::now();
        match journal.check_there().and_then(|()| journal.renew(claim, steps, lease)) {
            Ok(true) => renewed = asked,
            // Nobody hears of this claim any more, or it is somebody else's by now.
            Err(_) if renewed.elapsed() < lease && journal.check_there().is_ok() => {}
            Ok(false) | Err(_) => {
                listener.lost.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
}

/// Hears what a job's render says, and passes on what concerns others.
struct Listener<'a> {
    next: &'a dyn Reporter,
    /// Where the clip is made, and where it will be.
    made: PathBuf,
    output: PathBuf,
    steps: AtomicU64,
    /// Steps of the renders before the one that is under way, and those that it has itself: a job may take several.
    before: Mutex<(u64, u64)>,
    lost: AtomicBool,
}

impl<'a> Listener<'a> {
    fn new(next: &'a dyn Reporter, batch: &Batch, claim: &Claim) -> Self {
        let ending = Path::new(claim.output.trim_end_matches('/')).extension();
        let frames = claim.output.ends_with('/') || ending.is_none();
        let name = match ending {
            Some(ending) if !frames => format!("{}.{}", batch.name(claim), ending.to_string_lossy()),
            _ => batch.name(claim),
        };
        Self {
            next,
            made: batch.place.making().join(name),
            output: batch.place.output(&claim.output),
            steps: AtomicU64::new(0),
            before: Mutex::default(),
            lost: AtomicBool::new(false),
        }
    }

    /// Counts steps on from those that were done before.
    fn begun(&self, steps: usize) {
        *self.before() = (steps as u64, 0);
        self.steps.store(steps as u64, Ordering::SeqCst);
    }

    fn before(&self) -> MutexGuard<'_, (u64, u64)> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message with the output's real name.
    fn in_place(&self, message: &str) -> String {
        message.replace(&*self.made.to_string_lossy(), &self.output.to_string_lossy())
    }
}

impl Reporter for Listener<'_> {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        let flow = match event {
            Event::Started { phase: Phase::Denoise, total } => {
                let (before, own) = *self.before();
                *self.before() = (before + own, *total);
                self.next.emit(event)
            }
            Event::Progress { phase: Phase::Denoise, done, .. } => {
                self.steps.store(self.before().0 + done, Ordering::SeqCst);
                self.next.emit(event)
            }
            // Not its place yet.
            Event::Written { path } if *path == self.made => ControlFlow::Continue(()),
            Event::Warning { message } => self.next.emit(&Event::Warning { message: self.in_place(message) }),
            _ => self.next.emit(event),
        };
        if self.lost.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { flow }
    }
}

/// An error with all its reasons in one line.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".into())
}
