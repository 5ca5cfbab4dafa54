//! How long, how large and from which frames: a clip that goes on, from its plan to its frames.

use std::{collections::VecDeque, path::Path};

use super::{Direction, Looks, Pattern, WeaveRequest, Woven, WovenClip};
use crate::{
    app::{
        clip::{self, Clip},
        generate::{GenerateRequest, recipe_of},
        outputs::{Files, Outputs},
        passage::{Lengths, Passages},
        plan::plan,
        recipe::Recipe,
        shape::{self, Aspect, LengthChoice, SizeChoice},
        spool::Spool,
        visual::Visual,
    },
    device::Placement,
    error::{Error, Result},
    event::{Event, Reporter as _},
    media::{EncodeOptions, Fit, Footage, Format, Sound, SoundOutcome, add_sound},
    models::api::{Checkpoint, Conditioning, Geometry},
    pipeline::render::RenderRequest,
    video::{Frame, FrameSink, Layout, Original, VideoSpec},
};

/// Refuses a length of one render that has no whole number of latent frames.
pub(super) fn check_window(window: usize, geometry: &Geometry) -> Result<()> {
    let (below, above) = geometry.frames_around(window);
    if window == above {
        return Ok(());
    }
    let below = below.map_or(String::new(), |below| format!("--window {below} or "));
    let why = format!("expected {}k+1", geometry.temporal * geometry.patch_t);
    Err(Error::invalid(format!("window {window}"), why).with_hint(format!("pass {below}--window {above}")))
}

/// All lengths and sizes, settled before a weight is read.
pub(super) struct Loom {
    /// What all passages share; its spec is that of the longest render.
    pub render: RenderRequest,
    /// The whole output.
    pub output: VideoSpec,
    clips: Vec<WovenClip>,
    pub(super) lengths: Lengths,
    pub(super) context: usize,
    /// New frames of one passage or direction.
    pub(super) new: usize,
    pub median: f64,
    /// How the originals are stored, if they can be stored so again.
    stored: Option<Layout>,
}

impl Loom {
    pub fn prepare(
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
    pub fn outputs(&self, asked: &Outputs) -> Outputs {
        let encode = EncodeOptions { like: self.stored, ..asked.encode.clone() };
        Outputs { encode, ..asked.clone() }
    }

    /// Says that the output is stored in a way that not all players know.
    pub fn note_format(&self, outputs: &Outputs) -> Option<String> {
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

    pub fn told(&self) -> String {
        let VideoSpec { width, height, frames, fps } = self.output;
        let inner = &self.render.spec;
        let scaled = if (inner.width, inner.height) == (width, height) {
            String::new()
        } else {
            format!(", new frames made at {}x{}", inner.width, inner.height)
        };
        format!("{frames} frames of {width}x{height} at {fps} a second, context {}{scaled}", self.context)
    }

    /// What the clip is made from: all that decides its frames.
    pub fn recipe(&self, request: &WeaveRequest, checkpoint: &dyn Checkpoint, place: &Placement) -> Recipe {
        let only_new = matches!(request.pattern, Pattern::Extend { only_new: true, .. });
        let woven = Woven {
            pattern: request.pattern.name().into(),
            clips: self.clips.clone(),
            context: self.context,
            new: self.new,
            only_new,
            made: request.made.is_some(),
        };
        let noise_scale = self.render.conditions.noise_scale;
        Recipe {
            spec: self.output,
            woven: Some(woven),
            visual: noise_scale.map(|_| Visual { noise_scale, ..Visual::default() }),
            ..recipe_of(checkpoint.info(), &self.render, place)
        }
    }

    /// Makes all passages and writes the clip.
    pub fn write(
        &self,
        request: &WeaveRequest,
        mut recipe: Recipe,
        passages: &mut Passages<'_>,
    ) -> Result<Clip> {
        if let (Some(made), Some(woven)) = (&request.made, &mut recipe.woven) {
            // The clip in between leaves no trace.
            woven.clips.clear();
            (recipe.seed, recipe.visual) = (made.seed, made.visual.clone());
        }
        let (files, tally) = (passages.kept.files, passages.tally);
        let mut sink = clip::sinks(files, passages.kept.outputs, &recipe)?;
        let sounds = self.push(&request.pattern, passages, &mut sink)?;
        let health = passages.health().expect("there is at least one new frame");
        passages.write_latents()?;
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
            latents: files.latents.clone(),
            contact_sheet: files.contact_sheet.as_ref().map(|sheet| sheet.path().to_owned()),
            recipe,
            seconds: tally.seconds(),
            health,
        })
    }

    /// Pushes all frames, and says which stretches have whose sound.
    fn push(
        &self,
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
                    self.backward(passages, head, sink)?;
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

    /// The new frames that lead to `head`. They are made from there backward, and wait on the disk.
    fn backward(
        &self,
        passages: &mut Passages<'_>,
        mut head: Vec<Frame>,
        sink: &mut dyn FrameSink,
    ) -> Result<()> {
        let mut spool = Spool::beside(passages.kept.files, self.output.size())?;
        let mut left = self.new;
        while left > 0 {
            let mut made = passages.make(&[], &head, self.lengths.beyond(self.context, left))?;
            made.drain(..made.len().saturating_sub(left));
            left -= made.len();
            made.iter().enumerate().try_for_each(|(i, frame)| spool.put(left + i, frame))?;
            head = made.into_iter().chain(head).take(self.context).collect();
        }
        (0..self.new).try_for_each(|index| sink.push(spool.get(index)?))
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
pub(super) fn originals(
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
