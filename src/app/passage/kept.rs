//! Passages on the disk: the latents of those that are done, and of the one that was stopped, in one file beside the
//! output until that is done.

use std::fs;

use candle_core::{Device, Tensor};

use crate::{
    app::{
        latents::{self, Origin, PassageLatents},
        outputs::{Files, Outputs, numbered},
        recipe::Recipe,
        rescue,
        take::check_same,
        tally::Tally,
        watch,
    },
    error::{Error, Result},
    event::{Event, Reporter as _},
    pipeline::{denoise::Step, noise::Drawn, render::Denoised},
    video::VideoSpec,
};

/// Passages that are done, and where they are kept.
pub(in crate::app) struct KeptPassages<'a> {
    pub files: &'a Files,
    pub outputs: &'a Outputs,
    tally: &'a Tally<'a>,
    /// What all of it is saved with.
    origin: Origin,
    done: Vec<Latents>,
    begun: Option<Begun>,
    /// Whether the file holds something to go on from.
    saved: bool,
}

/// What a passage is decoded from.
#[derive(Debug, Clone)]
pub(super) struct Latents {
    pub tensor: Tensor,
    pub drawn: Drawn,
}

/// A passage that was stopped.
#[derive(Debug, Clone)]
pub(super) struct Begun {
    pub latents: Tensor,
    pub beside: Option<Tensor>,
    pub steps_done: usize,
    pub drawn: Drawn,
}

impl Begun {
    pub fn at(step: &Step<'_>) -> Result<Self> {
        Ok(Self {
            latents: step.latents()?.to_device(&Device::Cpu)?,
            beside: step.beside()?,
            steps_done: step.saved(),
            drawn: step.drawn(),
        })
    }
}

impl From<Denoised> for Begun {
    fn from(Denoised { latents, beside, finished_steps, drawn, .. }: Denoised) -> Self {
        Self { latents, beside, steps_done: finished_steps, drawn }
    }
}

impl<'a> KeptPassages<'a> {
    /// Reads what is there of a clip with this recipe. What is there of another one is refused, and stays.
    pub fn open(
        files: &'a Files,
        outputs: &'a Outputs,
        tally: &'a Tally<'a>,
        origin: Origin,
    ) -> Result<Self> {
        let mut kept = Self { files, outputs, tally, origin, done: Vec::new(), begun: None, saved: false };
        let path = &files.windows;
        if !path.exists() {
            return Ok(kept);
        }
        let latents::Latents { tensor, beside, origin: found } = latents::load(path)?;
        check_same(path, found.as_ref().map(|origin| &origin.recipe), &kept.origin.recipe)?;
        let Some(found) = found else { return Ok(kept) };
        let all = tensor.dim(2)?;
        let mut at = 0;
        for PassageLatents { frames, drawn } in found.passages {
            if frames == 0 || frames > all - at {
                return Err(Error::damaged(path, "it holds fewer latents than it says"));
            }
            kept.done.push(Latents { tensor: tensor.narrow(2, at, frames)?.contiguous()?, drawn });
            at += frames;
        }
        let passages = if kept.done.len() == 1 { "passage" } else { "passages" };
        let mut message = format!("going on after {} {passages}", kept.done.len());
        if let Some(steps_done) = found.steps_done.filter(|_| at < all) {
            let latents = tensor.narrow(2, at, all - at)?.contiguous()?;
            message += &format!(" and step {steps_done} of the next one");
            kept.begun = Some(Begun { latents, beside, steps_done, drawn: found.drawn });
        }
        kept.saved = true;
        let _ = tally.emit(&Event::Note { message: format!("{message} from {}", path.display()) });
        Ok(kept)
    }

    /// Passage number `index`, if it is done.
    pub(super) fn done(&self, index: usize) -> Option<Latents> {
        self.done.get(index).cloned()
    }

    /// The passage after those that are done, as far as it came.
    pub(super) fn begun(&mut self) -> Option<Begun> {
        self.begun.take()
    }

    /// One more is done.
    pub(super) fn add(&mut self, latents: Latents) -> Result<()> {
        self.done.push(latents);
        self.save(None)
    }

    /// Saves all that is done, and the passage that is begun.
    pub(super) fn save(&mut self, begun: Option<Begun>) -> Result<()> {
        let mut parts: Vec<&Tensor> = self.done.iter().map(|done| &done.tensor).collect();
        let mut origin = Origin { windows_done: Some(parts.len()), ..self.origin.clone() };
        for Latents { tensor, drawn } in &self.done {
            origin.passages.push(PassageLatents { frames: tensor.dim(2)?, drawn: drawn.clone() });
        }
        if let Some(begun) = &begun {
            parts.push(&begun.latents);
            (origin.steps_done, origin.drawn) = (Some(begun.steps_done), begun.drawn.clone());
        }
        let beside = begun.as_ref().and_then(|begun| begun.beside.as_ref());
        watch::save(self.tally, &self.files.windows, &Tensor::cat(&parts, 2)?, beside, &origin)?;
        self.saved = self.files.windows.exists();
        Ok(())
    }

    /// An error with the way on from what is kept, if anything is.
    pub fn explain(&self, error: Error) -> Error {
        if !self.saved || matches!(error, Error::Unfinished { .. }) {
            return error;
        }
        rescue::kept(error, &self.files.windows, "gen --resume", self.files, self.outputs)
    }

    /// Writes the latents of each passage where the user wants them, for `sora decode`; numbered if there are
    /// several.
    pub(super) fn write(&self, spec: &VideoSpec, temporal: usize) -> Result<()> {
        let Some(path) = &self.files.latents else { return Ok(()) };
        for (index, Latents { tensor, drawn }) in self.done.iter().enumerate() {
            let count = self.done.len();
            let path = if count > 1 { numbered(path, index + 1, count) } else { path.clone() };
            let spec = VideoSpec { frames: (tensor.dim(2)? - 1) * temporal + 1, ..*spec };
            let mut recipe = Recipe { spec, ..self.origin.recipe.clone() };
            recipe.seed = recipe.seed.wrapping_add(index as u64);
            recipe.passes.iter_mut().for_each(|pass| pass.spec = spec);
            let origin = Origin { recipe, drawn: drawn.clone(), ..self.origin.clone() };
            latents::save(&path, tensor, None, &origin)?;
            let _ = self.tally.emit(&Event::Written { path });
        }
        Ok(())
    }

    /// Removes the file: the clip is there. Who names a place for what is saved keeps it until the clip is where it
    /// belongs.
    pub fn finish(&self) -> Result<()> {
        let path = &self.files.windows;
        if self.outputs.rescue.is_none() && path.exists() {
            fs::remove_file(path).map_err(Error::file("remove", path))?;
        }
        Ok(())
    }
}
