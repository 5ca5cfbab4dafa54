//! The way of the data on an opened checkpoint: prompt → text states → latents → frames.
//!
//! Each part loads its own stage, and drops it before the next one loads.

use std::{ops::ControlFlow, time::Instant};

use candle_core::{DType, Device, Tensor};

use super::{
    denoise::{Plan, StepHook, denoise},
    guidance::Guidance,
    health::{Health, HealthCheck, Verdict},
    noise::{Drawn, Noise},
    pictures::pictures,
    sigmas::Schedule,
};
use crate::{
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    models::api::{Checkpoint, ClipContext, DecodeNoise, DecodeOptions, Placement, TextStates},
    video::{FrameSink, VideoSpec},
};

/// One clip to make.
#[derive(Debug, Clone)]
pub struct RenderRequest {
    /// What the video shows.
    pub prompt: String,
    /// What it doesn't; heard with guidance above 1 only.
    pub negative_prompt: String,
    /// Size, length and rate.
    pub spec: VideoSpec,
    /// Denoising steps; explicit `timesteps` count instead.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 or less means none.
    pub guidance: f64,
    /// Share of the guided velocity that is brought back to the spread of the unguided one.
    pub guidance_rescale: f64,
    /// Seed of all noise.
    pub seed: u64,
    /// Tokens that each prompt is padded or cut to.
    pub max_sequence_length: usize,
    /// What the denoiser is told at each step, falling from 1000, instead of the checkpoint's own schedule.
    pub timesteps: Option<Vec<f32>>,
    /// How to decode.
    pub decode: DecodeOptions,
    /// `[1, C, F, H, W]`: used instead of drawn noise.
    pub latents: Option<Tensor>,
    /// Step to begin with: 0, or the finished steps of a stopped render that left `latents`. If all are finished,
    /// no denoiser is loaded.
    pub start: usize,
    /// What had been drawn from the seed when `latents` were left; nothing for latents of another origin.
    pub drawn: Drawn,
}

impl RenderRequest {
    /// What has been drawn from the seed when the first step begins.
    #[must_use]
    pub fn drawn_at_start(&self) -> Drawn {
        if self.latents.is_some() { self.drawn } else { Drawn { clip: 1, ..Drawn::default() } }
    }
}

/// What the denoise loop leaves, and how to go on from it.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// `[1, C, F, H, W]`, f32, on the CPU: as the denoiser leaves them, normalised.
    pub latents: Tensor,
    /// Steps that are done.
    pub finished_steps: usize,
    /// Steps in all.
    pub steps: usize,
    /// Whether the reporter asked to stop.
    pub cancelled: bool,
    /// What has been drawn from the seed.
    pub drawn: Drawn,
}

/// Renders on one checkpoint.
pub struct Renderer<'a> {
    /// The checkpoint.
    pub checkpoint: &'a dyn Checkpoint,
    /// Where and how precisely to compute.
    pub place: Placement,
    /// Who hears of it, and may stop it.
    pub reporter: &'a dyn Reporter,
}

impl Renderer<'_> {
    /// Refuses what can't be rendered, before any weight is read.
    pub fn check(&self, request: &RenderRequest) -> Result<()> {
        if request.prompt.trim().is_empty() {
            return Err(Error::invalid("prompt", "it is empty").with_hint("say what the video should show"));
        }
        let geometry = self.checkpoint.info().geometry;
        geometry.check(&request.spec)?;
        let steps = self.schedule(request)?.steps();
        at_least("guidance", request.guidance, None)?;
        at_least("guidance rescale", request.guidance_rescale, Some(1.0))?;
        if request.max_sequence_length == 0 {
            return Err(Error::invalid("prompt length 0", "expected at least 1 token"));
        }
        check_decode(&request.decode)?;
        let Some(latents) = &request.latents else {
            if request.start > 0 {
                let what = format!("start at step {}", request.start);
                return Err(Error::invalid(what, "only saved latents can be gone on from")
                    .with_hint("pass --latents"));
            }
            return Ok(());
        };
        self.check_latents(latents, &request.spec)?;
        if request.start > steps {
            let why = format!("expected at most the {steps} steps of the render");
            return Err(Error::invalid(format!("start at step {}", request.start), why));
        }
        Ok(())
    }

    /// Encodes the prompts, in the order in which the loop asks for them: (negative, positive), or the prompt alone
    /// without guidance.
    pub fn encode(&self, request: &RenderRequest) -> Result<Vec<TextStates>> {
        let mut prompts = vec![("prompt", &request.prompt)];
        if guidance(request).is_on() {
            prompts.insert(0, ("negative prompt", &request.negative_prompt));
        }
        let mut encoder = self.load(|| self.checkpoint.text_encoder(&self.place))?;
        let total = prompts.len() as u64;
        self.phase(Phase::EncodePrompt, total, || {
            let mut texts = Vec::new();
            for (name, prompt) in prompts {
                let text = encoder.encode(prompt, request.max_sequence_length)?;
                if !text.cut.is_empty() {
                    let most = request.max_sequence_length;
                    let message = format!(
                        "the {name} is longer than {most} tokens, this part is not heard: `{}`",
                        text.cut
                    );
                    self.tell(&Event::Warning { message })?;
                }
                texts.push(text);
                self.tell(&Event::Progress { phase: Phase::EncodePrompt, done: texts.len() as u64, total })?;
            }
            Ok(texts)
        })
    }

    /// Takes noise, or the request's latents, through the denoiser. `hook` is called after each step.
    ///
    /// A reporter that answers `Break` gets what is done so far back.
    pub fn denoise(
        &self,
        request: &RenderRequest,
        texts: Vec<TextStates>,
        hook: &mut StepHook<'_>,
    ) -> Result<Denoised> {
        let geometry = self.checkpoint.info().geometry;
        let shape = geometry.latent_shape(&request.spec);
        let schedule = self.schedule(request)?;
        let mut drawn = request.drawn_at_start();
        let start = if request.latents.is_some() { request.drawn } else { Drawn::default() };
        let mut noise = Noise::after(request.seed, start, &shape)?;
        let initial = match &request.latents {
            Some(latents) => latents.to_dtype(DType::F32)?,
            None => noise.clip.randn(&shape)?,
        };
        let steps = schedule.steps();
        if request.start == steps {
            return Ok(Denoised { latents: initial, finished_steps: steps, steps, cancelled: false, drawn });
        }
        let mut model = self.load(|| self.checkpoint.denoiser(&self.place))?;
        let clip = ClipContext { grid: geometry.grid(&request.spec), fps: request.spec.fps, texts };
        let plan = Plan { schedule: &schedule, guidance: guidance(request), start: request.start };
        let initial = initial.to_device(&self.place.device)?;
        let done = denoise(&mut *model, &clip, &initial, &plan, &mut noise.global, self.reporter, hook)?;
        if schedule.stochastic {
            drawn.global += done.finished_steps - request.start;
        }
        let latents = done.latents.to_device(&Device::Cpu)?;
        if !is_finite(&latents)?
            && let Some(error) = Verdict::NotFinite.error()
        {
            return Err(error);
        }
        Ok(Denoised { latents, finished_steps: done.finished_steps, steps, cancelled: done.cancelled, drawn })
    }

    /// Decodes latents `[1, C, F, H, W]`, as [`Renderer::denoise`] leaves them, and pushes the frames into `sink`.
    ///
    /// `seed` and `drawn` are those of the render ([`Drawn::INITIAL_NOISE`] where nothing else is known), so that a
    /// decoder that draws noise draws what it would have drawn right after it.
    pub fn decode(
        &self,
        latents: &Tensor,
        spec: &VideoSpec,
        seed: u64,
        drawn: Drawn,
        options: &DecodeOptions,
        sink: &mut dyn FrameSink,
    ) -> Result<Health> {
        self.checkpoint.info().geometry.check(spec)?;
        check_decode(options)?;
        self.check_latents(latents, spec)?;
        let device = &self.place.device;
        let mut noise = DeviceNoise { noise: Noise::after(seed, drawn, latents.dims())?, device };
        let latents = latents.to_dtype(DType::F32)?.to_device(device)?;
        let mut decoder = self.load(|| self.checkpoint.video_decoder(&self.place))?;
        let mut health = HealthCheck::new(spec.frames);
        let total = spec.frames as u64;
        let mut done = 0;
        self.phase(Phase::Decode, total, || {
            decoder.decode(&latents, &mut noise, options, &mut |video| {
                for picture in pictures(video)? {
                    health.see(&picture);
                    sink.push(picture.frame)?;
                    done += 1;
                    self.tell(&Event::Progress { phase: Phase::Decode, done, total })?;
                }
                Ok(())
            })
        })?;
        Ok(health.health())
    }

    /// The noise levels of a request.
    fn schedule(&self, request: &RenderRequest) -> Result<Schedule> {
        let grid = self.checkpoint.info().geometry.grid(&request.spec);
        let cells = grid.frames * grid.height * grid.width;
        Schedule::new(self.checkpoint.schedule(), request.steps, request.timesteps.as_deref(), cells)
    }

    fn check_latents(&self, latents: &Tensor, spec: &VideoSpec) -> Result<()> {
        let expected = self.checkpoint.info().geometry.latent_shape(spec);
        if latents.dims() != expected {
            let VideoSpec { width, height, frames, .. } = spec;
            let what = format!("latents of shape {:?}", latents.dims());
            let why = format!("expected {expected:?} for {frames} frames of {width}x{height}");
            return Err(
                Error::invalid(what, why).with_hint("pass the size and length that they were made for")
            );
        }
        if !is_finite(latents)? {
            return Err(Error::invalid("latents", "they hold values that are not finite"));
        }
        Ok(())
    }

    /// Loads a stage, and says so.
    fn load<T>(&self, open: impl FnOnce() -> Result<T>) -> Result<T> {
        self.phase(Phase::Load, 1, || {
            let stage = open()?;
            self.tell(&Event::Progress { phase: Phase::Load, done: 1, total: 1 })?;
            Ok(stage)
        })
    }

    fn phase<T>(&self, phase: Phase, total: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.tell(&Event::Started { phase, total })?;
        let clock = Instant::now();
        let result = work()?;
        self.tell(&Event::Finished { phase, elapsed: clock.elapsed() })?;
        Ok(result)
    }

    fn tell(&self, event: &Event) -> Result<()> {
        match self.reporter.emit(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled { saved: None }),
        }
    }
}

/// A render's noise, brought to the device that computes.
struct DeviceNoise<'a> {
    noise: Noise,
    device: &'a Device,
}

impl DecodeNoise for DeviceNoise<'_> {
    fn latents(&mut self, shape: &[usize]) -> Result<Tensor> {
        Ok(self.noise.clip.randn(shape)?.to_device(self.device)?)
    }

    fn layer(&mut self, shape: &[usize]) -> Result<Tensor> {
        Ok(self.noise.global.randn(shape)?.to_device(self.device)?)
    }
}

fn guidance(request: &RenderRequest) -> Guidance {
    Guidance { scale: request.guidance, rescale: request.guidance_rescale }
}

/// Refuses numbers that are below 0, above `most`, or no numbers.
fn at_least(name: &str, value: f64, most: Option<f64>) -> Result<()> {
    if value.is_finite() && value >= 0.0 && most.is_none_or(|most| value <= most) {
        return Ok(());
    }
    let why = match most {
        Some(most) => format!("expected a number from 0 to {most}"),
        None => "expected a number from 0 on".into(),
    };
    Err(Error::invalid(format!("{name} {value}"), why))
}

fn check_decode(options: &DecodeOptions) -> Result<()> {
    at_least("decode timestep", options.timestep, Some(1.0))?;
    at_least("decode noise scale", options.noise_scale.unwrap_or(0.0), Some(1.0))?;
    for (side, stride) in [options.tiling.spatial, options.tiling.temporal].into_iter().flatten() {
        if stride == 0 || stride > side {
            let what = format!("tile of {side} with stride {stride}");
            return Err(Error::invalid(what, "expected a stride from 1 to the tile's side"));
        }
    }
    Ok(())
}

/// Whether all of a tensor's values are finite.
fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .all(|v| v.is_finite()))
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
