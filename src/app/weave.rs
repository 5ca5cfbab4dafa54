//! Clips that go on: extended forward and backward, joined, closed to a loop. Originals pass through untouched; new
//! frames are fitted to them.

mod outlook;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    app::{
        clip::{self, Clip},
        generate::{GenerateRequest, Job, draw_seed, recipe_of},
        memory,
        outputs::{Files, Outputs, Preview},
        passage::{Lengths, Passages},
        plan::plan,
        recipe::{Recipe, slug},
        shape::{self, Aspect, LengthChoice, SizeChoice},
        tally::Tally,
        visual::Visual,
    },
    device::Placement,
    error::{Error, Result},
    event::{Event, Reporter},
    media::{Codec, EncodeOptions, Fit, Footage, Format, Sound, SoundOutcome, add_sound},
    models::{
        api::{Checkpoint, Conditioning, Geometry},
        registry,
    },
    pipeline::render::RenderRequest,
    video::{Frame, FrameSink, Layout, Original, VideoSpec},
};

pub use outlook::Looks;
pub(super) use outlook::{check_loop, check_weave};

/// Where a clip is extended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Beyond its end.
    Forward,
    /// Before its start.
    Backward,
    /// Both.
    Both,
}

/// What is to be made of which clips.
#[derive(Debug, Clone, PartialEq)]
pub enum Pattern {
    /// A clip and what comes after it, before it, or both.
    Extend {
        /// The clip.
        clip: PathBuf,
        /// Where to.
        direction: Direction,
        /// Leave the clip itself out.
        only_new: bool,
    },
    /// Two clips and what lies between them.
    Join {
        /// The clip that comes first, whose size and rate the whole has.
        first: PathBuf,
        /// The clip that comes last.
        last: PathBuf,
    },
    /// A clip and what leads from its end back to its start.
    Loop {
        /// The clip.
        clip: PathBuf,
    },
}

impl Pattern {
    /// The clips that are there.
    #[must_use]
    pub fn clips(&self) -> Vec<&PathBuf> {
        match self {
            Self::Extend { clip, .. } | Self::Loop { clip } => vec![clip],
            Self::Join { first, last } => vec![first, last],
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Extend { direction: Direction::Forward, .. } => "extend forward",
            Self::Extend { direction: Direction::Backward, .. } => "extend backward",
            Self::Extend { direction: Direction::Both, .. } => "extend both ways",
            Self::Join { .. } => "join",
            Self::Loop { .. } => "loop",
        }
    }

    /// Sides of a passage that have originals.
    fn sides(&self) -> usize {
        if matches!(self, Self::Extend { .. }) { 1 } else { 2 }
    }
}

/// A clip, or two, that are to go on.
#[derive(Debug, Clone)]
pub struct WeaveRequest {
    /// Prompt, model, sampling and outputs. Its length says how much is new (in each direction); its size, if any,
    /// is the whole output's.
    pub base: GenerateRequest,
    /// What is made of which clips.
    pub pattern: Pattern,
    /// Frames of each clip that the model sees.
    pub context: Option<usize>,
    /// The most frames of one render; the model's own length if absent.
    pub window: Option<usize>,
    /// What the clip was made from, where it was made for this.
    pub made: Option<Recipe>,
}

/// Makes a clip from words (and pictures), and what leads from its end back to its start.
pub fn looped(
    request: &GenerateRequest,
    context: Option<usize>,
    window: Option<usize>,
    reporter: &dyn Reporter,
) -> Result<Clip> {
    let models = (request.open()?, registry::open_conditioned(&request.model)?);
    looped_on(request, context, window, reporter, models)
}

/// [`looped`] on its model: as [`GenerateRequest::open`] and as [`registry::open_conditioned`] gave it.
pub fn looped_on(
    request: &GenerateRequest,
    context: Option<usize>,
    window: Option<usize>,
    reporter: &dyn Reporter,
    (plain, conditioned): (Box<dyn Checkpoint>, Box<dyn Checkpoint>),
) -> Result<Clip> {
    check_request(&GenerateRequest { visual: Visual::default(), ..request.clone() })?;
    // What would make the last stage fail is found out before the first.
    let stem = slug(&request.prompt);
    request.outputs.files(0, 1, &format!("sora-{stem}"))?.check_writable()?;
    let folder = tempfile::tempdir().map_err(Error::file("write into", std::env::temp_dir()))?;
    let path = folder.path().join("clip.mkv");
    let encode = EncodeOptions { codec: Some(Codec::Ffv1), ..EncodeOptions::default() };
    let outputs = Outputs { target: Some(path.to_string_lossy().into_owned()), encode, ..Outputs::default() };
    let seed = request.seed.unwrap_or_else(draw_seed);
    let first = GenerateRequest { outputs, seed: Some(seed), ..request.clone() };
    let mut job = Job::prepare_on(&first, reporter, plain)?;
    let made = job.next_clip()?.expect("a job has at least one clip");
    made.verdict()?;
    let base = GenerateRequest {
        visual: Visual::default(),
        size: SizeChoice::Default,
        length: LengthChoice::Default,
        fps: Some(made.recipe.spec.fps),
        // Other noise than the clip began with.
        seed: Some(seed.wrapping_add(1)),
        ..request.clone()
    };
    let window = window.or(Some(made.recipe.spec.frames.max(MIN_WINDOW)));
    let pattern = Pattern::Loop { clip: path };
    let request = WeaveRequest { base, pattern, context, window, made: Some(made.recipe) };
    weave_on(&request, reporter, conditioned)
}

/// Frames of one render that leave room for a passage however short the clip is.
const MIN_WINDOW: usize = 17;

/// What a recipe says of a clip that goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Woven {
    /// `extend forward`, `join`, …
    pub pattern: String,
    /// The clips.
    pub clips: Vec<WovenClip>,
    /// Frames of each clip that the model saw.
    pub context: usize,
    /// Frames that are new.
    pub new: usize,
}

/// A clip within another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WovenClip {
    /// The file.
    pub path: PathBuf,
    /// What it held.
    pub sha256: String,
    /// Its frames, at the output's rate.
    pub frames: usize,
}

/// Makes the clip. Nothing is kept of one that is stopped.
pub fn weave(request: &WeaveRequest, reporter: &dyn Reporter) -> Result<Clip> {
    weave_on(request, reporter, registry::open_conditioned(&request.base.model)?)
}

/// [`weave`] on its model, opened by [`registry::open_conditioned`]: one whose stages stay loaded, say.
pub fn weave_on(
    request: &WeaveRequest,
    reporter: &dyn Reporter,
    checkpoint: Box<dyn Checkpoint>,
) -> Result<Clip> {
    let tally = Tally::new(reporter);
    let base = &request.base;
    check_request(base)?;
    let seed = base.seed.unwrap_or_else(draw_seed);
    let stem = base.prompt.trim();
    let stem = if stem.is_empty() { request.pattern.name() } else { stem };
    let files = base.outputs.files(0, 1, &format!("sora-{}-{seed}", slug(stem)))?;
    let device = base.device.open()?;
    let place = Placement { dtype: base.dtype.resolve(&device), device };
    let loom = Loom::prepare(request, checkpoint.as_ref(), &files, seed, &mut Looks::default())?;
    memory::check(checkpoint.as_ref(), &loom.render.spec, &place, &loom.render.decode.tiling, true)?;
    let outputs = loom.outputs(&base.outputs);
    clip::check_files(&files, &outputs, &loom.output, loom.output.size())?;
    let note = |message: String| {
        let _ = tally.emit(&Event::Note { message });
    };
    if base.seed.is_none() {
        note(format!("seed {seed}"));
    }
    note(loom.told());
    loom.note_format(&outputs).into_iter().for_each(note);
    loom.write(request, checkpoint.as_ref(), &place, &tally, &files)
}

/// Refuses what a clip that goes on can't have.
fn check_request(base: &GenerateRequest) -> Result<()> {
    let refuse = |what: &str, why: &str| Err(Error::invalid(what, why).with_hint("leave it out"));
    if base.clips != 1 {
        return refuse("number of videos", "a clip goes on in one way");
    }
    if !base.visual.keyframes.is_empty() {
        return refuse("keyframes", "a clip that goes on is conditioned on its own frames");
    }
    if base.visual.detail.is_some() {
        return refuse("choice of detail", "a clip that goes on carries its detail over at the seams");
    }
    if base.outputs.save_latents.is_some() || base.initial_latents.is_some() || base.stopped.is_some() {
        return refuse("latents", "a clip that goes on has none of its own");
    }
    if base.upscale.is_some() {
        return refuse("upscale", "a clip that goes on keeps its size");
    }
    if base.outputs.preview != Preview::Off {
        return refuse("preview", "a clip that goes on is shown when it is done");
    }
    Ok(())
}

/// Refuses a length of one render that has no whole number of latent frames.
fn check_window(window: usize, geometry: &Geometry) -> Result<()> {
    let (below, above) = geometry.frames_around(window);
    if window == above {
        return Ok(());
    }
    let below = below.map_or(String::new(), |below| format!("--window {below} or "));
    let why = format!("expected {}k+1", geometry.temporal * geometry.patch_t);
    Err(Error::invalid(format!("window {window}"), why).with_hint(format!("pass {below}--window {above}")))
}

/// All lengths and sizes, settled before a weight is read.
struct Loom {
    /// What all passages share; its spec is that of the longest render.
    render: RenderRequest,
    /// The whole output.
    output: VideoSpec,
    clips: Vec<WovenClip>,
    lengths: Lengths,
    context: usize,
    /// New frames of one passage or direction.
    new: usize,
    median: f64,
    /// How the originals are stored, if they can be stored so again.
    stored: Option<Layout>,
}

impl Loom {
    fn prepare(
        request: &WeaveRequest,
        checkpoint: &dyn Checkpoint,
        files: &Files,
        seed: u64,
        looks: &mut Looks,
    ) -> Result<Self> {
        let base = &request.base;
        let info = checkpoint.info();
        let geometry = info.geometry;
        let paths = request.pattern.clips();
        let first = Footage::open(paths[0])?;
        let fps = base.fps.or(first.fps()).unwrap_or(info.defaults.fps);
        if !(fps.is_finite() && fps > 0.0) {
            return Err(Error::invalid(format!("frame rate {fps}"), "expected a number above 0"));
        }
        let (width, height) = match base.size {
            SizeChoice::Sides { width: Some(width), height: Some(height) } => (width, height),
            SizeChoice::Default | SizeChoice::Sides { width: None, height: None } => first.size(),
            _ => {
                let why = "a clip that goes on keeps its size, or takes one that is given whole";
                return Err(Error::invalid("size", why).with_hint("pass --size WIDTHxHEIGHT, or nothing"));
            }
        };
        let inner = inner_size(width, height, &geometry, info.defaults.width * info.defaults.height);
        let window = request.window.unwrap_or(info.defaults.frames);
        check_window(window, &geometry)?;
        let longest = SizeChoice::Sides { width: Some(inner.0), height: Some(inner.1) };
        let template = GenerateRequest {
            size: longest,
            length: LengthChoice::Frames(window),
            fps: Some(fps),
            ..base.clone()
        };
        if !base.sampling.upsamplers.is_empty() {
            return Err(Error::invalid("--upsampler", "a clip that goes on is made in one pass"));
        }
        let mut render = plan(&template, checkpoint, &files.target, seed)?.passes.swap_remove(0);
        geometry.check(&render.spec)?;
        render.conditions.noise_scale = base.visual.noise_scale;

        let mut clips = Vec::new();
        let mut median: f64 = 0.0;
        let mut stored = None;
        for (i, path) in paths.iter().enumerate() {
            let seen = looks.at(path, (width, height), fps)?;
            stored = stored.or(seen.stored);
            // Where clips differ in how they move, the calmer one sets the measure.
            median = if i == 0 { seen.median } else { median.min(seen.median) };
            clips.push(WovenClip { path: (*path).clone(), sha256: seen.sha256, frames: seen.frames });
        }
        let lengths = Lengths::of(&geometry, window, checkpoint.conditioning());
        let shortest = clips.iter().map(|clip| clip.frames).min().unwrap_or_default();
        let context = lengths.context(request.context, shortest, request.pattern.sides())?;
        let wish = match base.length {
            LengthChoice::Default => None,
            LengthChoice::Frames(0) => {
                return Err(Error::invalid("frame count 0", "expected at least 1 new frame"));
            }
            LengthChoice::Frames(frames) => Some(frames),
            LengthChoice::Seconds(seconds) => Some(((seconds * fps).round() as usize).max(1)),
        };
        let between = request.pattern.sides() == 2;
        let new = match wish {
            Some(wish) if between => lengths.between(wish),
            Some(wish) => wish,
            None if between => lengths.between_by_default(context),
            None => lengths.beyond(context, window),
        };
        let mut loom = Self {
            render,
            output: VideoSpec { width, height, frames: 0, fps },
            clips,
            lengths,
            context,
            new,
            median,
            stored,
        };
        loom.output.frames = loom.total(&request.pattern);
        loom.check_ends(request, checkpoint)?;
        Ok(loom)
    }

    /// What is asked of the output, stored as the originals are where nothing else is said.
    fn outputs(&self, asked: &Outputs) -> Outputs {
        let encode = EncodeOptions { like: self.stored, ..asked.encode.clone() };
        Outputs { encode, ..asked.clone() }
    }

    /// Says that the output is stored in a way that not all players know.
    fn note_format(&self, outputs: &Outputs) -> Option<String> {
        let format = self.stored?.pix_fmt();
        let chosen = outputs.encode.pix_fmt.is_some() || format == "yuv420p";
        (!chosen).then(|| {
            format!(
                "the clip is stored as {format}, and so is the output; --pix-fmt yuv420p plays everywhere"
            )
        })
    }

    /// Frames of the whole output.
    fn total(&self, pattern: &Pattern) -> usize {
        let originals: usize = self.clips.iter().map(|clip| clip.frames).sum();
        match pattern {
            Pattern::Extend { direction, only_new, .. } => {
                let times = if *direction == Direction::Both { 2 } else { 1 };
                times * self.new + if *only_new { 0 } else { originals }
            }
            _ => originals + self.new,
        }
    }

    /// Refuses now what the checkpoint couldn't be conditioned on later.
    fn check_ends(&self, request: &WeaveRequest, checkpoint: &dyn Checkpoint) -> Result<()> {
        let ahead = matches!(request.pattern, Pattern::Extend { direction: Direction::Forward, .. });
        if checkpoint.conditioning() != Conditioning::FirstFrame || ahead && self.context == 1 {
            return Ok(());
        }
        let what = format!("{} with a context of {}", request.pattern.name(), self.context);
        Err(Error::invalid(what, "this model takes one picture, as the first frame")
            .with_hint("extend forward with --context 1, or use a model from 0.9.5 on"))
    }

    fn told(&self) -> String {
        let VideoSpec { width, height, frames, fps } = self.output;
        let inner = &self.render.spec;
        let scaled = if (inner.width, inner.height) == (width, height) {
            String::new()
        } else {
            format!(", new frames made at {}x{}", inner.width, inner.height)
        };
        format!("{frames} frames of {width}x{height} at {fps} a second, context {}{scaled}", self.context)
    }

    fn write(
        mut self,
        request: &WeaveRequest,
        checkpoint: &dyn Checkpoint,
        place: &Placement,
        tally: &Tally<'_>,
        files: &Files,
    ) -> Result<Clip> {
        let made = request.made.as_ref();
        let woven = Woven {
            pattern: request.pattern.name().into(),
            clips: if made.is_some() { Vec::new() } else { self.clips.clone() },
            context: self.context,
            new: self.new,
        };
        let recipe = recipe_of(checkpoint.info(), &self.render, place);
        let mut recipe = Recipe {
            spec: self.output,
            seed: made.map_or(recipe.seed, |made| made.seed),
            visual: made.and_then(|made| made.visual.clone()),
            woven: Some(woven),
            ..recipe
        };
        let mut sink = clip::sinks(files, &self.outputs(&request.base.outputs), &recipe)?;
        let mut passages = Passages::new(checkpoint, place, tally, self.render.clone(), self.median);
        let sounds = self.push(&request.pattern, &mut passages, &mut sink)?;
        let health = passages.health().expect("there is at least one new frame");
        let path = Box::new(sink).finish()?;
        if files.target.format() != Format::Stdout
            && let SoundOutcome::LeftOut(why) = add_sound(&files.target, &sounds)?
        {
            let _ = tally.emit(&Event::Warning { message: format!("the sound isn't kept: {why}") });
        }
        clip::announce(tally, files, &path, &health);
        recipe.warnings = tally.warnings();
        Ok(Clip {
            path,
            latents: None,
            contact_sheet: files.contact_sheet.as_ref().map(|sheet| sheet.path().to_owned()),
            recipe,
            seconds: tally.seconds(),
            health,
        })
    }

    /// Pushes all frames, and says which stretches have whose sound.
    fn push(
        &mut self,
        pattern: &Pattern,
        passages: &mut Passages<'_>,
        sink: &mut dyn FrameSink,
    ) -> Result<Vec<Sound>> {
        let seconds = |frames: usize| frames as f64 / self.output.fps;
        let sound = |clip: &WovenClip, start: usize| Sound {
            clip: clip.path.clone(),
            start: seconds(start),
            length: seconds(clip.frames),
        };
        match pattern {
            Pattern::Extend { direction, only_new, .. } => {
                let clip = &self.clips[0];
                let mut sounds = Vec::new();
                if *direction != Direction::Forward {
                    let head = self.head(clip)?;
                    for frame in self.backward(passages, head)? {
                        sink.push(frame)?;
                    }
                }
                let tail = if *only_new {
                    self.pass(clip, &mut |_| Ok(()))?
                } else {
                    let before = if *direction == Direction::Forward { 0 } else { self.new };
                    sounds.push(sound(clip, before));
                    self.pass(clip, &mut |original| sink.push_original(original))?
                };
                if *direction != Direction::Backward {
                    self.forward(passages, tail, self.new, sink)?;
                }
                Ok(sounds)
            }
            Pattern::Join { .. } => {
                let (first, last) = (&self.clips[0], &self.clips[1]);
                let tail = self.pass(first, &mut |original| sink.push_original(original))?;
                self.between(passages, tail, self.head(last)?, sink)?;
                self.pass(last, &mut |original| sink.push_original(original))?;
                Ok(vec![sound(first, 0), sound(last, first.frames + self.new)])
            }
            Pattern::Loop { .. } => {
                let clip = &self.clips[0];
                let tail = self.pass(clip, &mut |original| sink.push_original(original))?;
                self.between(passages, tail, self.head(clip)?, sink)?;
                Ok(vec![sound(clip, 0)])
            }
        }
    }

    fn originals(&self, clip: &WovenClip) -> Result<impl Iterator<Item = Result<Original>> + use<>> {
        originals(&clip.path, (self.output.width, self.output.height), self.output.fps)
    }

    /// The first frames of a clip, as many as the context has.
    fn head(&self, clip: &WovenClip) -> Result<Vec<Frame>> {
        self.originals(clip)?.take(self.context).map(|original| Ok(original?.frame)).collect()
    }

    /// Sees all frames of a clip, and gives the last ones, as many as the context has.
    fn pass(&self, clip: &WovenClip, see: &mut dyn FnMut(Original) -> Result<()>) -> Result<Vec<Frame>> {
        let mut last = VecDeque::new();
        for original in self.originals(clip)? {
            let original = original?;
            last.push_back(original.frame.clone());
            see(original)?;
            if last.len() > self.context {
                last.pop_front();
            }
        }
        Ok(last.into())
    }

    /// `count` frames beyond `tail`. Gives the last ones, as many as the context has.
    fn forward(
        &self,
        passages: &mut Passages<'_>,
        mut tail: Vec<Frame>,
        count: usize,
        sink: &mut dyn FrameSink,
    ) -> Result<Vec<Frame>> {
        let mut left = count;
        while left > 0 {
            let mut made = passages.make(&tail, &[], self.lengths.beyond(self.context, left))?;
            made.truncate(left);
            left -= made.len();
            tail.extend(made.iter().cloned());
            tail.drain(..tail.len() - self.context);
            for frame in made {
                sink.push(frame)?;
            }
        }
        Ok(tail)
    }

    /// The new frames that lead to `head`, in order.
    fn backward(&self, passages: &mut Passages<'_>, mut head: Vec<Frame>) -> Result<VecDeque<Frame>> {
        let mut all = VecDeque::new();
        while all.len() < self.new {
            let left = self.new - all.len();
            let made = passages.make(&[], &head, self.lengths.beyond(self.context, left))?;
            for frame in made.into_iter().rev().take(left) {
                all.push_front(frame);
            }
            head = all.iter().chain(&head).take(self.context).cloned().collect();
        }
        Ok(all)
    }

    /// The new frames from `tail` to `head`: what is too long for one render goes forward first.
    fn between(
        &self,
        passages: &mut Passages<'_>,
        tail: Vec<Frame>,
        head: Vec<Frame>,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        let most = self.lengths.between_by_default(self.context);
        let ahead = self.new.saturating_sub(most);
        let tail = self.forward(passages, tail, ahead, sink)?;
        for frame in passages.make(&tail, &head, self.new - ahead)? {
            sink.push(frame)?;
        }
        Ok(())
    }
}

/// The frames of a clip as the output has them: of its rate, and of its size. What is stored of them is there where
/// they have that size already.
fn originals(
    path: &Path,
    (width, height): (usize, usize),
    fps: f64,
) -> Result<impl Iterator<Item = Result<Original>> + use<>> {
    let frames = Footage::open(path)?.frames(fps).originals();
    Ok(frames.map(move |original| {
        let Original { frame, planes } = original?;
        let size = |w: usize, h: usize| (w, h) == (width, height);
        let planes = planes.filter(|p| size(p.width, p.height) && size(frame.width, frame.height));
        Ok(Original { frame: Fit::Crop.apply(&frame, width, height)?, planes })
    }))
}

/// The size that new frames are made at: the output's own where the model can do that and is used to as much, else
/// the valid one of the nearest shape.
fn inner_size(width: usize, height: usize, geometry: &Geometry, pixels: usize) -> (usize, usize) {
    let valid = |side: usize| geometry.sides_around(side).1 == side;
    if valid(width) && valid(height) && 2 * width * height <= 3 * pixels {
        return (width, height);
    }
    shape::nearest_size(Aspect::of(width, height), pixels.min(width * height), geometry)
}
