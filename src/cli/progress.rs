//! Events on their way to stderr: bars, plain lines or JSON. The only file that knows indicatif.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, OnceLock},
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle as BarStyle};
use sora::event::{Event, JobState, Phase, Reporter};

use crate::cli::{
    interrupt,
    message::{self, Head},
    reporting::{ProgressStyle, ReportArgs},
    table::size,
};

/// The reporter that the flags ask for. It also carries Ctrl-C down to the core.
pub fn reporter(args: &ReportArgs) -> Box<dyn Reporter> {
    let plain = |levels| Box::new(Plain { levels, phases: Mutex::default(), job: Mutex::default() });
    match args.progress {
        _ if args.quiet && args.progress != ProgressStyle::Json => plain(Levels::Silent),
        ProgressStyle::Json => Box::new(Json),
        ProgressStyle::None => plain(Levels::Warnings),
        ProgressStyle::Plain => plain(Levels::All),
        ProgressStyle::Auto if std::io::stderr().is_terminal() => {
            let bars = Bars::new(args.verbose);
            // A program has one terminal.
            let _ = SCREEN.set(bars.multi.clone());
            Box::new(bars)
        }
        ProgressStyle::Auto => plain(Levels::All),
    }
}

/// The terminal's bars, where there are some.
static SCREEN: OnceLock<MultiProgress> = OnceLock::new();

/// Takes the bars away while something else is printed.
pub fn aside<T>(print: impl FnOnce() -> T) -> T {
    match SCREEN.get() {
        Some(screen) => screen.suspend(print),
        None => print(),
    }
}

/// Names a phase for people.
pub fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Download => "downloading",
        Phase::Verify => "checking",
        Phase::Load => "loading",
        Phase::EncodePrompt => "reading the prompt",
        Phase::EncodeVideo => "encoding",
        Phase::Denoise => "denoising",
        Phase::Upsample => "enlarging",
        Phase::Decode => "decoding",
        Phase::Convert => "converting",
        _ => "working",
    }
}

/// Whether the units of a phase are bytes.
fn is_bytes(phase: Phase) -> bool {
    matches!(phase, Phase::Download | Phase::Verify)
}

fn flow() -> ControlFlow<()> {
    if interrupt::asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn say(text: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Text for the events that are a line of their own; `took` is how long a job took that has ended.
fn spoken(event: &Event, took: Option<Duration>) -> Option<String> {
    Some(match event {
        Event::Warning { message } => message::line(Head::Warning, message),
        Event::Job { job, output, state, error } => {
            let what = match state {
                JobState::Started => return None,
                JobState::Done => "done",
                JobState::Failed => "failed",
                JobState::Lost => "taken over by another worker, or taken back",
                JobState::Stopped => "stopped; it will be gone on with",
                _ => "changed",
            };
            let why = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            let took = took.map(|took| format!(" in {}", clock(took))).unwrap_or_default();
            format!("job {job} {what}{took}: {}{why}", output.display())
        }
        Event::Note { message } => message::line(Head::Note, message),
        Event::Cached { skipped, calls } => message::line(
            Head::Note,
            &format!("the step cache left out most of {skipped} of {calls} calls of the model"),
        ),
        Event::Saved { path, step } => format!("saved after step {step}: {}", path.display()),
        Event::Preview { path, step } => format!("preview after step {step}: {}", path.display()),
        _ => return None,
    })
}

struct Json;

impl Reporter for Json {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        if matches!(event, Event::Waiting) {
            return flow();
        }
        say(&serde_json::to_string(event).expect("events have string keys and finite numbers only"));
        flow()
    }
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Levels {
    Silent,
    Warnings,
    All,
}

/// Where a phase stands in the plain lines.
struct Said {
    started: Instant,
    at: Instant,
    tenth: u64,
}

struct Plain {
    levels: Levels,
    phases: Mutex<HashMap<Phase, Said>>,
    job: Mutex<Option<Instant>>,
}

impl Plain {
    /// A line for every tenth of a phase, or every five seconds if that is rarer than tenths come.
    fn line(&self, event: &Event) -> Option<String> {
        let mut phases = lock(&self.phases);
        match *event {
            Event::Started { phase, .. } => {
                let now = Instant::now();
                phases.insert(phase, Said { started: now, at: now, tenth: 0 });
                None
            }
            Event::Progress { phase, done, total } if total > 0 && done < total => {
                let said = phases.get_mut(&phase)?;
                let tenth = done * 10 / total;
                let waited = said.at.elapsed();
                let due = (tenth > said.tenth && waited > Duration::from_millis(500))
                    || waited >= Duration::from_secs(5);
                if !due || done == 0 {
                    return None;
                }
                said.tenth = tenth;
                said.at = Instant::now();
                let left = said.started.elapsed().mul_f64((total - done) as f64 / done as f64);
                let count = match is_bytes(phase) {
                    true => format!("{} of {}", size(done), size(total)),
                    false => format!("{done}/{total}"),
                };
                Some(format!("{} {count}, {} left", name(phase), clock(left)))
            }
            Event::Finished { phase, elapsed } => {
                phases.remove(&phase);
                // Of many jobs, each has one line.
                let alone = lock(&self.job).is_none();
                (alone && worth_a_line(phase, elapsed))
                    .then(|| format!("{} done in {:.1} s", name(phase), elapsed.as_secs_f64()))
            }
            Event::Saved { .. } | Event::Cached { .. } if lock(&self.job).is_some() => None,
            _ => spoken(event, time_of_job(&self.job, event)),
        }
    }
}

impl Reporter for Plain {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        let wanted = match event {
            Event::Warning { .. } => self.levels >= Levels::Warnings,
            _ => self.levels >= Levels::All,
        };
        if wanted {
            self.line(event).iter().for_each(|line| say(line));
        }
        flow()
    }
}

/// Keeps when a job was begun, and says how long it took when it has ended.
fn time_of_job(begun: &Mutex<Option<Instant>>, event: &Event) -> Option<Duration> {
    match event {
        Event::Job { state: JobState::Started, .. } => {
            *lock(begun) = Some(Instant::now());
            None
        }
        Event::Job { .. } => lock(begun).map(|begun| begun.elapsed()),
        _ => None,
    }
}

struct Bars {
    multi: MultiProgress,
    bars: Mutex<HashMap<Phase, ProgressBar>>,
    batch: Mutex<Option<Batch>>,
    job: Mutex<Option<Instant>>,
    verbose: bool,
}

/// The bar of a whole batch, under those of the job that runs.
struct Batch {
    bar: ProgressBar,
    started: Instant,
    /// Jobs that were over before.
    before: u64,
    output: String,
    counts: String,
}

impl Batch {
    fn new(multi: &MultiProgress, before: u64) -> Self {
        let template = "{prefix:>18} {bar:28} {pos:>4}/{len} {msg}";
        let style = BarStyle::with_template(template).expect("the template is well-formed");
        let bar = multi.add(ProgressBar::new(0));
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        bar.set_prefix("all jobs");
        Self { bar, started: Instant::now(), before, output: String::new(), counts: String::new() }
    }

    fn count(&mut self, (done, failed, running, total): (u64, u64, u64, u64)) {
        let over = done + failed;
        self.bar.set_length(total);
        self.bar.set_position(over);
        self.counts.clear();
        if over > self.before {
            let left = self.started.elapsed().mul_f64((total - over) as f64 / (over - self.before) as f64);
            self.counts += &format!("{} left, ", clock(left));
        }
        if failed > 0 {
            self.counts += &format!("{failed} failed, ");
        }
        if running > 1 {
            self.counts += &format!("{running} running, ");
        }
        self.tell();
    }

    fn tell(&self) {
        self.bar.set_message(format!("{}{}", self.counts, self.output));
    }
}

impl Bars {
    fn new(verbose: bool) -> Self {
        let multi = MultiProgress::new();
        Self { multi, bars: Mutex::default(), batch: Mutex::default(), job: Mutex::default(), verbose }
    }

    fn bar(phase: Phase, total: u64) -> ProgressBar {
        let bar = if total > 1 { ProgressBar::new(total) } else { ProgressBar::new_spinner() };
        let template = if is_bytes(phase) {
            "{prefix:>18} {bar:28} {binary_bytes}/{binary_total_bytes} {left}"
        } else if total > 1 {
            "{prefix:>18} {bar:28} {pos:>4}/{len} {left}"
        } else {
            "{prefix:>18} {spinner} {elapsed}"
        };
        let style = BarStyle::with_template(template).expect("the template is well-formed").with_key(
            "left",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                // Before the first unit is done nothing is known; a line that can't be written is no loss.
                let _ = match state.pos() {
                    0 => write!(out, "{}", clock(state.elapsed())),
                    _ => write!(out, "{}, {} left", clock(state.elapsed()), clock(state.eta())),
                };
            },
        );
        bar.with_style(style.progress_chars("█▉▊▋▌▍▎▏ ")).with_prefix(name(phase))
    }
}

impl Reporter for Bars {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        let mut bars = lock(&self.bars);
        match *event {
            Event::Started { phase, total } => {
                let bar = self.multi.insert(0, Self::bar(phase, total));
                bar.enable_steady_tick(Duration::from_millis(200));
                bars.insert(phase, bar);
            }
            Event::Progress { phase, done, .. } => {
                if let Some(bar) = bars.get(&phase) {
                    bar.set_position(done);
                }
            }
            Event::Finished { phase, elapsed } => {
                if let Some(bar) = bars.remove(&phase) {
                    bar.finish_and_clear();
                    // Of many jobs, each has one line.
                    let alone = lock(&self.batch).is_none();
                    if self.verbose || alone && worth_a_line(phase, elapsed) {
                        let seconds = elapsed.as_secs_f64();
                        self.multi.suspend(|| say(&format!("{:>18} {seconds:.1} s", name(phase))));
                    }
                }
            }
            Event::Batch { done, failed, running, total } => {
                let mut batch = lock(&self.batch);
                let batch = batch.get_or_insert_with(|| Batch::new(&self.multi, done + failed));
                batch.count((done, failed, running, total));
            }
            Event::Saved { .. } | Event::Cached { .. } if lock(&self.batch).is_some() => {}
            Event::Job { ref output, state: JobState::Started, .. } => {
                time_of_job(&self.job, event);
                if let Some(batch) = lock(&self.batch).as_mut() {
                    batch.output = output.to_string_lossy().into_owned();
                    batch.tell();
                }
            }
            // Its path is on stdout.
            Event::Job { state: JobState::Done, .. } if std::io::stdout().is_terminal() => {}
            Event::Waiting => {}
            _ => {
                if let Some(line) = spoken(event, time_of_job(&self.job, event)) {
                    self.multi.suspend(|| say(&line));
                }
            }
        }
        flow()
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // A failed render leaves its bar half-way; take it away before the error is printed.
        let _ = self.multi.clear();
    }
}

/// Whether people want to hear that a phase has ended.
fn worth_a_line(phase: Phase, elapsed: Duration) -> bool {
    matches!(phase, Phase::Download | Phase::Denoise | Phase::Decode) || elapsed >= Duration::from_secs(1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A time as people read it.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m}:{s:02}"),
        (h, m, s) => format!("{h}:{m:02}:{s:02}"),
    }
}
