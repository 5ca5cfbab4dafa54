//! New frames between two runs of frames, or beyond one: a render that is conditioned on them, fitted to them.

mod kept;

use crate::{
    app::{
        seam::{self, Side},
        tally::Tally,
        visual::pixels,
        watch::Watch,
    },
    error::{Error, Result},
    media::{Fit, resize},
    models::api::{Checkpoint, Conditioning, Geometry, Placement, TextStates},
    pipeline::{
        conditions::{Condition, Conditions, Content},
        denoise::Step,
        health::Health,
        render::{RenderRequest, Renderer},
    },
    video::{Frame, Frames, VideoSpec},
};

pub(super) use kept::KeptPassages;
use kept::{Begun, Latents};

/// Frames of context that a passage has where there is room, on each side.
pub const CONTEXT: usize = 25;

/// Makes passages, one after another, with one prompt.
pub(super) struct Passages<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    pub place: &'a Placement,
    pub tally: &'a Tally<'a>,
    /// What all passages share; length, seed and conditions are each passage's own.
    pub render: RenderRequest,
    /// The median step of the clip that they go on with.
    pub median: f64,
    /// Those that are done.
    pub kept: KeptPassages<'a>,
    texts: Option<Vec<TextStates>>,
    /// Passages that are made.
    made: usize,
    /// The first bad health that was seen, else the last good one.
    health: Option<Health>,
}

impl<'a> Passages<'a> {
    pub fn new(
        checkpoint: &'a dyn Checkpoint,
        place: &'a Placement,
        tally: &'a Tally<'a>,
        render: RenderRequest,
        median: f64,
        kept: KeptPassages<'a>,
    ) -> Self {
        Self { checkpoint, place, tally, render, median, kept, texts: None, made: 0, health: None }
    }

    /// `count` new frames of the size of those beside them. With `before` and `after` they make a whole number of
    /// latent frames together; see [`Lengths`].
    pub fn make(&mut self, before: &[Frame], after: &[Frame], count: usize) -> Result<Vec<Frame>> {
        let (kept, total) = (before.len(), before.len() + count + after.len());
        let spec = VideoSpec { frames: total, ..self.render.spec };
        let seed = self.render.seed.wrapping_add(self.made as u64);
        let Latents { tensor, drawn } = match self.kept.done(self.made) {
            Some(done) => done,
            None => self.denoise(before, after, spec, seed)?,
        };
        let mut sink = Frames::default();
        let health = self.renderer().decode(&tensor, &spec, seed, &drawn, &self.render.decode, &mut sink)?;
        if self.health.as_ref().is_none_or(|known| known.verdict.error().is_none()) {
            self.health = Some(health);
        }
        self.made += 1;
        let Some(beside) = before.first().or(after.first()) else { return Ok(sink.0) };
        let (width, height) = (beside.width, beside.height);
        let made = sink.0.iter().map(|frame| resize(frame, width, height)).collect::<Result<Vec<_>>>()?;
        let side = |originals, remade| Side { originals, remade };
        let before = (!before.is_empty()).then(|| side(before, &made[..kept]));
        let after = (!after.is_empty()).then(|| side(after, &made[kept + count..]));
        Ok(seam::fit(&made[kept..kept + count], before, after, self.median))
    }

    /// The next passage's latents, which are kept; those of one that is stopped are, too.
    fn denoise(&mut self, before: &[Frame], after: &[Frame], spec: VideoSpec, seed: u64) -> Result<Latents> {
        let mut list = Vec::new();
        for (frames, frame) in [(before, 0), (after, spec.frames - after.len())] {
            if frames.is_empty() {
                continue;
            }
            let fitted = frames.iter().map(|frame| Fit::Stretch.apply(frame, spec.width, spec.height));
            let content = Content::Pixels(pixels(&fitted.collect::<Result<Vec<_>>>()?)?);
            list.push(Condition { content, frame, strength: 1.0 });
        }
        let conditions = Conditions { list, ..self.render.conditions.clone() };
        let mut render = RenderRequest { spec, seed, conditions, ..self.render.clone() };
        if let Some(Begun { latents, beside, steps_done, drawn }) = self.kept.begun() {
            (render.latents, render.beside) = (Some(latents), beside);
            (render.start, render.drawn) = (steps_done, drawn);
        }
        let renderer = self.renderer();
        renderer.check(&render)?;
        let texts = match &self.texts {
            Some(texts) => texts.clone(),
            None => self.texts.insert(renderer.encode(&render)?).clone(),
        };
        let (checkpoint, tally, files) = (self.checkpoint, self.tally, self.kept.files);
        let every = self.kept.outputs.checkpoint_every;
        let watch = Watch { checkpoint, tally, files, fps: spec.fps, every };
        let mut save = |step: &Step<'_>| self.kept.save(Some(Begun::at(step)?));
        let done = watch.run(&mut save, |hook| renderer.denoise(&render, texts, hook))?;
        if done.cancelled {
            if done.finished_steps > 0 {
                self.kept.save(Some(done.into()))?;
            }
            return Err(Error::Cancelled { saved: None });
        }
        let latents = Latents { tensor: done.latents, drawn: done.drawn };
        self.kept.add(latents.clone())?;
        Ok(latents)
    }

    fn renderer(&self) -> Renderer<'a> {
        Renderer { checkpoint: self.checkpoint, place: self.place.clone(), reporter: self.tally }
    }

    /// Writes the latents of all passages where the user wants them.
    pub fn write_latents(&self) -> Result<()> {
        self.kept.write(&self.render.spec, self.checkpoint.info().geometry.temporal)
    }

    /// What the frames look like to a machine: the first passage that can't be a video, else the last one.
    pub fn health(&self) -> Option<Health> {
        self.health
    }
}

/// How long a passage's parts may be: its whole is `step × k + 1` frames, and so is the context on each side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    /// Frames per latent frame, or as many as the denoiser joins.
    step: usize,
    /// The most frames of one render.
    window: usize,
    /// Whether the checkpoint takes one picture alone.
    first_frame: bool,
}

impl Lengths {
    pub fn of(geometry: &Geometry, window: usize, conditioning: Conditioning) -> Self {
        let step = geometry.temporal * geometry.patch_t;
        Self { step, window, first_frame: conditioning == Conditioning::FirstFrame }
    }

    /// The longest run of frames up to `most` that counts as context, at least 1.
    fn whole(&self, most: usize) -> usize {
        if self.first_frame { 1 } else { most.saturating_sub(1) / self.step * self.step + 1 }
    }

    /// Frames of context of a clip of `clip` frames: what was asked for, or what leaves `sides` + 1 equal parts.
    pub fn context(&self, asked: Option<usize>, clip: usize, sides: usize) -> Result<usize> {
        let room = self.window.saturating_sub(self.step);
        match asked {
            None => Ok(self.whole(CONTEXT.min(clip).min(self.window.div_ceil(sides + 1)))),
            Some(0) => Err(Error::invalid("context 0", "expected at least 1 frame")),
            Some(asked) if asked > clip => {
                let most = self.whole(clip);
                Err(Error::invalid(format!("context {asked}"), format!("the clip has {clip} frames"))
                    .with_hint(format!("pass --context {most} or less")))
            }
            Some(asked) if sides * asked > room.max(sides) => {
                let most = self.whole(room / sides);
                let why = format!("it leaves no room in the {} frames of one render", self.window);
                Err(Error::invalid(format!("context {asked}"), why)
                    .with_hint(format!("pass --context {most} or less, or a larger --window")))
            }
            Some(asked) if !(asked - 1).is_multiple_of(self.step) => {
                let below = asked - (asked - 1) % self.step;
                Err(Error::invalid(format!("context {asked}"), format!("expected {}k+1", self.step))
                    .with_hint(format!("pass --context {below} or --context {}", below + self.step)))
            }
            Some(asked) => Ok(asked),
        }
    }

    /// New frames of the next render beyond a clip, of `left` that are still to come: as many as fit, and enough.
    pub fn beyond(&self, context: usize, left: usize) -> usize {
        let most = self.window.saturating_sub(context).max(self.step) / self.step * self.step;
        left.next_multiple_of(self.step).min(most)
    }

    /// New frames between two clips, as near as can be to `wish`: with a context on each side the whole is whole.
    pub fn between(&self, wish: usize) -> usize {
        (wish + 1 + self.step / 2) / self.step * self.step - 1
    }

    /// The same, where nothing was wished for.
    pub fn between_by_default(&self, context: usize) -> usize {
        self.between(self.window.saturating_sub(2 * context)).max(self.step - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(step: usize, window: usize) -> Lengths {
        Lengths { step, window, first_frame: false }
    }

    #[test]
    fn contexts_fit_their_window() {
        let context = |window, asked, clip, sides| lengths(4, window).context(asked, clip, sides);
        assert_eq!(context(17, None, 100, 1).expect("some"), 9);
        assert_eq!(context(17, None, 100, 2).expect("some"), 5);
        assert_eq!(context(97, None, 100, 1).expect("some"), 25);
        assert_eq!(context(97, None, 3, 1).expect("some"), 1);
        assert_eq!(context(17, Some(13), 100, 1).expect("some"), 13);
        for (asked, told) in [(0, "at least 1"), (12, "4k+1"), (17, "no room"), (101, "the clip has 100")] {
            let error = context(17, Some(asked), 100, 1).expect_err("refused");
            assert!(error.to_string().contains(told), "{error}");
        }
        let one = Lengths { first_frame: true, ..lengths(8, 97) };
        assert_eq!(one.context(None, 50, 1).expect("some"), 1);
    }

    #[test]
    fn new_frames_come_in_whole_latent_frames() {
        let lengths = lengths(4, 17);
        assert_eq!([1, 4, 5, 8, 30].map(|left| lengths.beyond(9, left)), [4, 4, 8, 8, 8]);
        assert_eq!([1, 3, 4, 7, 9, 16].map(|wish| lengths.between(wish)), [3, 3, 3, 7, 11, 15]);
        assert_eq!(lengths.between_by_default(5), 7);
        for wish in 1..40 {
            assert_eq!((5 + lengths.between(wish) + 5) % 4, 1);
        }
    }
}
