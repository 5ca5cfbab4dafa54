//! A render that is looked at as it goes: early looks, and latents saved after every so many steps.

use std::{num::NonZeroUsize, path::Path};

use candle_core::Tensor;

use crate::{
    app::{
        latents::{self, Origin},
        outputs::Files,
        preview::Previewer,
        tally::Tally,
    },
    error::{Error, Result},
    event::{Event, Reporter as _},
    models::api::Checkpoint,
    pipeline::denoise::{Step, StepHook},
};

/// What is looked at, and who hears of it.
pub(super) struct Watch<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    pub tally: &'a Tally<'a>,
    pub files: &'a Files,
    /// Frames a second of the clip.
    pub fps: f64,
    /// After how many steps, each time, latents are saved.
    pub every: Option<NonZeroUsize>,
}

impl Watch<'_> {
    /// Runs what denoises; `save` is asked to save a step's latents when it is time.
    pub fn run<T>(
        &self,
        save: &mut dyn FnMut(&Step<'_>) -> Result<()>,
        run: impl FnOnce(&mut StepHook<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut previewer = match &self.files.preview {
            Some(target) => Previewer::new(self.checkpoint, target.clone(), self.fps)?,
            None => None,
        };
        if previewer.is_none() && self.files.preview.is_some() {
            self.warn("this model has no map from latents to colours: there is no preview".into());
        }
        let mut hook = |step: &Step<'_>| {
            if step.done >= step.total {
                return Ok(());
            }
            if self.every.is_some_and(|every| step.done.is_multiple_of(every.get())) {
                save(step)?;
            }
            let Some(shown) = &previewer else { return Ok(()) };
            match shown.show(&step.estimate()?) {
                Ok(path) => {
                    let _ = self.tally.emit(&Event::Preview { path, step: step.done as u64 });
                }
                // A look is no reason to lose the clip.
                Err(error) => {
                    self.warn(format!("no more previews: {error}"));
                    previewer = None;
                }
            }
            Ok(())
        };
        run(&mut hook)
    }

    fn warn(&self, message: String) {
        let _ = self.tally.emit(&Event::Warning { message });
    }
}

/// Saves latents to go on from. A disk that can't take them is no reason to lose the clip.
pub(super) fn save(
    tally: &Tally<'_>,
    path: &Path,
    latents: &Tensor,
    beside: Option<&Tensor>,
    origin: &Origin,
) -> Result<()> {
    match latents::save(path, latents, beside, origin) {
        Ok(()) => {
            let step = origin.steps_done.unwrap_or_else(|| origin.recipe.steps(origin.pass)) as u64;
            let _ = tally.emit(&Event::Saved { path: path.to_owned(), step });
        }
        Err(Error::File { action, path, source }) => {
            let message = format!("nothing is saved yet: can't {action} {}: {source}", path.display());
            let _ = tally.emit(&Event::Note { message });
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
