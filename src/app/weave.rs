//! Clips that go on: extended forward and backward, joined, closed to a loop. Originals pass through untouched; new
//! frames are fitted to them.

mod loom;
mod outlook;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    app::{
        clip::{self, Clip},
        generate::{GenerateRequest, Job, Stopped, draw_seed},
        latents::{self, Origin},
        memory,
        outputs::{Files, Outputs, Preview, with_suffix},
        passage::{KeptPassages, Passages},
        recipe::{Recipe, RecipeFile, slug},
        rescue::shell_path,
        shape::{LengthChoice, SizeChoice},
        take::{TakeOptions, check_same, check_same_frames, kept_seed},
        tally::Tally,
        visual::{Visual, check_hash},
    },
    device::Placement,
    error::{Error, Result},
    event::{Event, Reporter},
    media::{Codec, EncodeOptions},
    models::{api::Checkpoint, registry},
    pipeline::noise::Drawn,
};

use loom::Loom;
pub use outlook::Looks;
use outlook::holding;
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

/// Makes a clip from words (and pictures), and what leads from its end back to its start. The clip lies beside the
/// output until that is done.
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
    let mut files = request.outputs.files(0, 1, &format!("sora-{stem}"))?;
    files.check_writable()?;
    request.take.keep_in(&mut files.windows);
    let (clip, made) = clip_to_close(request, &files, reporter, plain)?;
    let base = GenerateRequest {
        visual: Visual::default(),
        size: SizeChoice::Default,
        length: LengthChoice::Default,
        fps: Some(made.spec.fps),
        // Other noise than the clip began with.
        seed: Some(made.seed.wrapping_add(1)),
        take: TakeOptions { kept: Some(files.windows), ..TakeOptions::default() },
        ..request.clone()
    };
    let window = window.or(Some(made.spec.frames.max(MIN_WINDOW)));
    let pattern = Pattern::Loop { clip };
    let request = WeaveRequest { base, pattern, context, window, made: Some(made) };
    weave_on(&request, reporter, conditioned)
}

/// The clip that is to be closed to a loop, made now or by a run that was stopped, and its recipe.
fn clip_to_close(
    request: &GenerateRequest,
    files: &Files,
    reporter: &dyn Reporter,
    checkpoint: Box<dyn Checkpoint>,
) -> Result<(PathBuf, Recipe)> {
    let path = files.windows.with_extension("mkv");
    let begun = files.windows.with_extension("begun.safetensors");
    let windows = with_suffix(&path, "windows.safetensors");
    let recipe_in = |latents: &PathBuf| Ok::<_, Error>(latents::load(latents)?.origin.map(|o| o.recipe));
    let (at, found) = if path.exists() {
        (&path, Some(RecipeFile::read(&path)?.recipe))
    } else {
        match [&begun, &windows].into_iter().find(|path| path.exists()) {
            Some(latents) => (latents, recipe_in(latents)?),
            None => (&path, None),
        }
    };
    let seed = request.seed.or(found.as_ref().map(|found| found.seed)).unwrap_or_else(draw_seed);
    let outputs = Outputs {
        target: Some(path.to_string_lossy().into_owned()),
        encode: EncodeOptions { codec: Some(Codec::Ffv1), ..EncodeOptions::default() },
        preview: files.preview.as_ref().map_or(Preview::Off, |look| Preview::At(look.path().to_owned())),
        rescue: Some(begun.clone()),
        checkpoint_every: request.outputs.checkpoint_every,
        ..Outputs::default()
    };
    let stopped = if at == &begun { Stopped::load(&begun)? } else { None };
    let take = TakeOptions { kept: None, ..request.take.clone() };
    let first = GenerateRequest { outputs, seed: Some(seed), stopped, take, ..request.clone() };
    let mut job = Job::prepare_on(&first, reporter, checkpoint)?;
    if found.is_some() {
        check_same(at, found.as_ref(), &job.recipe(seed))?;
    }
    if let Some(found) = found.filter(|_| at == &path) {
        // What is decoded otherwise has the same latents, and other frames.
        check_same_frames(&path, &found, &job.recipe(seed))?;
        return Ok((path, found));
    }
    let again = |error| match error {
        Error::Unfinished { saved, source, .. } => {
            Error::Unfinished { saved, go_on: "the same command".into(), source }
        }
        error => error,
    };
    let made = job.next_clip().map_err(again)?.expect("a job has at least one clip");
    for path in [&begun, &windows].into_iter().filter(|path| path.exists()) {
        fs::remove_file(path).map_err(Error::file("remove", path))?;
    }
    if let Err(bad) = made.verdict() {
        fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        return Err(bad);
    }
    Ok((path, made.recipe))
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
    /// Frames that are new, of one passage or direction.
    pub new: usize,
    /// Whether the clip itself is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_new: bool,
    /// Whether the clip was made for this, and goes when the loop is closed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
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

impl WeaveRequest {
    /// The rest of a clip that was stopped: its file says all but where the video goes. Nothing if the latents are
    /// of another kind of render.
    pub fn resume(path: &Path) -> Result<Option<Self>> {
        let Some(origin) = latents::load(path)?.origin else { return Ok(None) };
        let Some(woven) = origin.recipe.woven.clone() else { return Ok(None) };
        let refuse = |why: &str| Error::invalid(format!("latents `{}`", path.display()), why);
        if origin.windows_done.is_none() {
            let hint = format!("sora decode {}", shell_path(path));
            return Err(refuse("all steps of their passage are done").with_hint(hint));
        }
        for clip in &woven.clips {
            check_hash(&clip.path, &mut Some(clip.sha256.clone()))?;
        }
        let pattern = woven.pattern().ok_or_else(|| refuse("they don't say how their clips go on"))?;
        let made = match &pattern {
            Pattern::Loop { clip } if woven.made => Some(RecipeFile::read(clip)?.recipe),
            _ => None,
        };
        let (spec, window) = (origin.recipe.spec, origin.recipe.passes.first().map(|pass| pass.spec.frames));
        let again =
            GenerateRequest::again(Recipe { woven: None, take: None, ..origin.recipe }, origin.model)?;
        let base = GenerateRequest {
            size: SizeChoice::Sides { width: Some(spec.width), height: Some(spec.height) },
            length: LengthChoice::Frames(woven.new),
            take: TakeOptions { kept: Some(path.to_owned()), ..TakeOptions::default() },
            ..again
        };
        Ok(Some(Self { base, pattern, context: Some(woven.context), window, made }))
    }
}

impl Woven {
    fn pattern(&self) -> Option<Pattern> {
        let clip = |index: usize| self.clips.get(index).map(|clip| clip.path.clone());
        let all = |clip: PathBuf| {
            let extend =
                |direction| Pattern::Extend { clip: clip.clone(), direction, only_new: self.only_new };
            let directions = [Direction::Forward, Direction::Backward, Direction::Both];
            directions.map(extend).into_iter().chain([Pattern::Loop { clip: clip.clone() }])
        };
        let join = Some(clip(0)?).zip(clip(1)).map(|(first, last)| Pattern::Join { first, last });
        all(clip(0)?).chain(join).find(|pattern| pattern.name() == self.pattern)
    }
}

/// Makes the clip. Passages that are done lie beside the output until all of it is; the same request goes on from
/// there.
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
    let mut files = base.outputs.files(0, 1, &format!("sora-{}-{seed}", slug(stem)))?;
    base.take.keep_in(&mut files.windows);
    if files.target.format().is_still() {
        let what = format!("output `{}`", files.target.path().display());
        return Err(Error::invalid(what, "it holds one frame, and a clip that goes on has several")
            .with_hint("name a video or a folder"));
    }
    let device = base.device.open()?;
    let place = Placement { dtype: base.dtype.resolve(&device), device };
    let mut loom = Loom::prepare(request, checkpoint.as_ref(), &files, seed, &mut Looks::default())?;
    let (spec, tiling) = (loom.render.spec, &mut loom.render.decode.tiling);
    let chosen =
        holding(checkpoint.as_ref(), &spec, &place).keep_to(base.max_memory, base.decode.free(), [tiling])?;
    memory::check(checkpoint.as_ref(), &loom.render.spec, &place, &loom.render.decode.tiling, true)?;
    let outputs = loom.outputs(&base.outputs);
    clip::check_files(&files, &outputs, &loom.output, loom.output.size())?;
    let note = |message: String| {
        let _ = tally.emit(&Event::Note { message });
    };
    if base.seed.is_none() {
        // What was killed goes on with the seed it had drawn.
        let kept = kept_seed(&files.windows, &loom.recipe(request, checkpoint.as_ref(), &place))?;
        loom.render.seed = kept.unwrap_or(seed);
        note(format!("seed {}", loom.render.seed));
    }
    note(loom.told());
    chosen.into_iter().for_each(note);
    loom.note_format(&outputs).into_iter().for_each(note);
    let recipe = loom.recipe(request, checkpoint.as_ref(), &place);
    let origin = Origin {
        model: base.model.absolute()?,
        upsamplers: Vec::new(),
        recipe: recipe.clone(),
        pass: 0,
        drawn: Drawn::default(),
        steps_done: None,
        windows_done: None,
        passages: Vec::new(),
        content: None,
    };
    let kept = KeptPassages::open(&files, &outputs, &tally, origin)?;
    let (render, median) = (loom.render.clone(), loom.median);
    let mut passages = Passages::new(checkpoint.as_ref(), &place, &tally, render, median, kept);
    let woven = loom.write(request, recipe, &mut passages);
    let clip = woven.map_err(|error| passages.kept.explain(error))?;
    passages.kept.finish()?;
    if let (Some(_), Pattern::Loop { clip }) = (&request.made, &request.pattern) {
        fs::remove_file(clip).map_err(Error::file("remove", clip))?;
    }
    Ok(clip)
}

/// Refuses what a clip that goes on can't have.
fn check_request(base: &GenerateRequest) -> Result<()> {
    let refuse = |what: &str, why: &str| Err(Error::invalid(what, why).with_hint("leave it out"));
    if base.clips != 1 {
        return refuse("--num-videos", "a clip goes on in one way");
    }
    if !base.visual.keyframes.is_empty() {
        return refuse("--init-image or --keyframe", "a clip that goes on is conditioned on its own frames");
    }
    if base.visual.region.is_some() {
        return refuse("--motion-region", "all of a clip's new frames move");
    }
    if base.visual.detail.is_some() {
        return refuse(
            "--keep-detail or --no-keep-detail",
            "a clip that goes on carries its detail over at the seams",
        );
    }
    if base.initial_latents.is_some() || base.stopped.is_some() {
        return refuse("--latents", "a clip that goes on starts from its own frames");
    }
    if base.upscale.is_some() {
        return refuse("--upscale", "a clip that goes on keeps its size");
    }
    Ok(())
}
