//! Clips that are too long for one window.

use super::{GenerateRequest, Job};
use crate::{
    app::{
        clip::{self, Clip},
        latents::{self, Origin},
        outputs::Files,
        rescue,
        take::{self, Kept, Made},
    },
    error::{Error, Result},
    event::{Event, Reporter},
    models::api::Checkpoint,
    pipeline::{noise::Drawn, render::RenderRequest},
};

impl GenerateRequest {
    /// Whether the clip is made window by window.
    pub(in crate::app) fn needs_windows(
        &self,
        passes: &[RenderRequest],
        checkpoint: &dyn Checkpoint,
    ) -> bool {
        let begun = self.stopped.is_some() || self.initial_latents.is_some();
        match passes {
            [one] => !begun && self.take.is_needed(&one.spec, &checkpoint.info().defaults),
            // Passes that enlarge each other take the clip as one.
            _ => false,
        }
    }

    /// Cuts a clip into windows, each with its own words.
    pub(in crate::app) fn cut(
        &self,
        render: &RenderRequest,
        checkpoint: &dyn Checkpoint,
    ) -> Result<take::Plan> {
        let info = checkpoint.info();
        let told = |index: usize, part| match self.take.prompts.get(index) {
            Some(prompt) => Ok(prompt.clone()),
            None => self.directing.prompt(&self.prompt, &info.defaults.direction, &info.name, part),
        };
        let rule = checkpoint.conditioning();
        self.take.plan(&render.spec, &info.geometry, &info.defaults, rule, 0, told)
    }
}

impl Job<'_> {
    /// Makes a clip window by window. What is done stays in a file until the video is written.
    pub(super) fn next_take(
        &mut self,
        plan: &take::Plan,
        render: &RenderRequest,
        files: Files,
    ) -> Result<Clip> {
        let outputs = &self.request.outputs;
        let geometry = self.checkpoint.info().geometry;
        let drawn = Drawn::initial_noise(&geometry.latent_shape(&render.spec));
        let origin = Origin { drawn, ..self.origin(0, render.seed)? };
        let kept = Kept { path: &files.windows, origin: &origin };
        let renderer = self.renderer();
        // Windows are kept as they are; steps within them are not.
        let made =
            self.watched(render, &files, None, |hook| plan.render(&renderer, render, None, &kept, hook))?;
        let stopped = Error::Cancelled { saved: None };
        let latents = match made {
            Made::Whole(latents) => latents,
            Made::Stopped(0) => return Err(stopped),
            Made::Stopped(_) => {
                return Err(rescue::kept(stopped, &files.windows, "gen --resume", &files, outputs));
            }
        };
        if let Some(path) = &files.latents {
            latents::save(path, &latents, None, &origin)?;
            let _ = self.tally.emit(&Event::Written { path: path.clone() });
        }
        let written = clip::write(&renderer, &latents, &origin, &self.held, &files, outputs)
            .map_err(|error| rescue::kept(error, &files.windows, "decode", &files, outputs))?;
        // Who names a place for what is saved keeps it until the clip is where it belongs.
        if outputs.rescue.is_none() {
            std::fs::remove_file(&files.windows).map_err(Error::file("remove", &files.windows))?;
        }
        Ok(self.finished(written, origin, files))
    }

    /// The seed of the first of these clips of which there are windows already.
    pub(super) fn kept_seed(&self) -> Result<Option<u64>> {
        let recipe = self.recipe(self.last().seed);
        for (index, files) in self.files.iter().enumerate().filter(|_| self.take.is_some()) {
            if let Some(seed) = take::kept_seed(&files.windows, &recipe)? {
                return Ok(Some(seed.wrapping_sub(index as u64)));
            }
        }
        Ok(None)
    }
}
