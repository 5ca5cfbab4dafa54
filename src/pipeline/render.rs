//! The way of the data on an opened checkpoint: prompt → text states → latents → frames.
//!
//! Each part loads its own stage, and drops it before the next one loads.

use std::{ops::ControlFlow, time::Instant};

use candle_core::{DType, Device, Tensor};

use super::{
    conditions::{Condition, Conditions, Content, Source, Still},
    denoise::{Plan, StepHook, denoise},
    guidance::{GuidancePlan, at_least},
    health::{Health, HealthCheck, Verdict},
    held,
    noise::{Drawn, Noise},
    pan::Pan,
    pictures::pictures,
    sigmas::Schedule,
    tiled::Tiled,
    upsample,
};
use crate::{
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    models::api::{
        Checkpoint, ClipContext, DecodeNoise, DecodeOptions, Denoiser, Pass, Placement, TextStates,
        UpsamplerSource,
    },
    video::{FrameSink, VideoSpec},
};

/// One pass over a clip.
#[derive(Debug, Clone)]
pub struct RenderRequest {
    /// What the video shows.
    pub prompt: String,
    /// What it doesn't; heard with guidance above 1 only.
    pub negative_prompt: String,
    /// Size, length and rate.
    pub spec: VideoSpec,
    /// Schedule and guidance.
    pub pass: Pass,
    /// Seed of all noise.
    pub seed: u64,
    /// Tokens that each prompt is padded or cut to.
    pub max_sequence_length: usize,
    /// How to decode.
    pub decode: DecodeOptions,
    /// Pictures and clips that the video is to hold or to start from.
    pub conditions: Conditions,
    /// How the picture goes sideways, by its noise.
    pub pan: Pan,
    /// `[1, C, F, H, W]`: used instead of drawn noise.
    pub latents: Option<Tensor>,
    /// Tokens beside the clip's that a stopped render left with `latents`, see [`Denoised::beside`].
    pub beside: Option<Tensor>,
    /// Whether `latents` are of a clip that is done: they get noise of the level that the pass begins at.
    pub refine: bool,
    /// Step to begin with: 0, or the finished steps of a stopped render that left `latents`. If all are finished,
    /// no denoiser is loaded.
    pub start: usize,
    /// What had been drawn from the seed when `latents` were left; nothing for latents of another origin.
    pub drawn: Drawn,
}

impl RenderRequest {
    /// Steps that are yet to be done.
    #[must_use]
    pub fn steps_left(&self) -> usize {
        self.pass.count().saturating_sub(self.start)
    }
}

/// What the denoise loop leaves, and how to go on from it.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// `[1, C, F, H, W]`, f32, on the CPU: as the denoiser leaves them, normalised.
    pub latents: Tensor,
    /// `[1, E, D]`, f32, on the CPU: tokens of conditions beside the clip's, which a stopped render goes on with.
    pub beside: Option<Tensor>,
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
        if request.prompt.trim().is_empty() && request.conditions.is_empty() {
            return Err(Error::invalid("prompt", "it is empty").with_hint("say what the video should show"));
        }
        let geometry = self.checkpoint.info().geometry;
        geometry.check(&request.spec)?;
        let steps = self.schedule(request)?.steps();
        self.guidance(request)?;
        check_cache(request.pass.cache, self.checkpoint.info().blocks)?;
        upsample::check(&request.pass.upsample)?;
        if request.max_sequence_length == 0 {
            return Err(Error::invalid("prompt length 0", "expected at least 1 token"));
        }
        check_decode(&request.decode)?;
        if let Some(tile) = &request.decode.tiling.denoise {
            tile.check(&geometry)?;
        }
        request.conditions.check(self.checkpoint.conditioning(), &geometry, &request.spec)?;
        let Some(latents) = &request.latents else {
            if request.start > 0 {
                let what = format!("start at step {}", request.start);
                return Err(Error::invalid(what, "only saved latents can be gone on from")
                    .with_hint("pass --latents"));
            }
            if request.refine {
                return Err(Error::invalid("pass over a clip that is done", "there are no latents of it"));
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

    /// Times that the denoiser is yet to be asked in a pass.
    pub fn calls_left(&self, request: &RenderRequest) -> Result<usize> {
        Ok(self.guidance(request)?.calls_from(request.start))
    }

    /// Whether some step of a pass hears the negative prompt.
    pub fn hears_negative(&self, request: &RenderRequest) -> Result<bool> {
        Ok(self.guidance(request)?.has_negative())
    }

    /// Encodes the prompts, in the order in which the loop asks for them: (negative, positive), or the prompt alone
    /// without guidance.
    pub fn encode(&self, request: &RenderRequest) -> Result<Vec<TextStates>> {
        let mut prompts = vec![("prompt", &request.prompt)];
        if self.guidance(request)?.has_negative() {
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

    /// The request's conditions with their pictures encoded: several clips can share the work.
    pub fn encode_conditions(&self, request: &RenderRequest) -> Result<Conditions> {
        let Conditions { list, source, still, noise_scale } = &request.conditions;
        let pixels = |content: &Content| matches!(content, Content::Pixels(_));
        let total = list.iter().filter(|condition| pixels(&condition.content)).count()
            + usize::from(source.as_ref().is_some_and(|source| pixels(&source.content)))
            + usize::from(still.as_ref().is_some_and(|still| pixels(&still.picture)));
        if total == 0 {
            return Ok(request.conditions.clone());
        }
        let (geometry, rule) = (self.checkpoint.info().geometry, self.checkpoint.conditioning());
        let mut encoder = self.load(|| self.checkpoint.video_encoder(&self.place))?;
        self.phase(Phase::EncodeVideo, total as u64, || {
            let mut done = 0;
            let mut encode = |video: &Tensor| {
                let mut posterior = encoder.encode(video, &request.decode.tiling)?;
                for part in [&mut posterior.mean, &mut posterior.std] {
                    *part = part.to_device(&Device::Cpu)?;
                }
                done += 1;
                let total = total as u64;
                self.tell(&Event::Progress { phase: Phase::EncodeVideo, done, total })?;
                Ok::<_, Error>(posterior)
            };
            let mut encoded = Vec::new();
            for condition in list {
                let content = match condition.pixels(rule, &geometry, &request.spec)? {
                    Some(video) => Content::Encoded(condition.encoded(rule, encode(&video)?)?),
                    None => condition.content.clone(),
                };
                encoded.push(Condition { content, ..condition.clone() });
            }
            let source = match source {
                Some(Source { content: Content::Pixels(video), strength }) => {
                    Some(Source { content: Content::Encoded(encode(video)?), strength: *strength })
                }
                other => other.clone(),
            };
            let still = match still {
                Some(still) => {
                    let picture = match still.pixels(&request.spec)? {
                        Some(video) => Content::Encoded(encode(&video)?),
                        None => still.picture.clone(),
                    };
                    Some(Still { picture, cells: still.cells.clone() })
                }
                None => None,
            };
            Ok(Conditions { list: encoded, source, still, noise_scale: *noise_scale })
        })
    }

    /// Takes noise, or the request's latents, through the denoiser. `hook` is called after each step.
    /// Without guidance the last of the `texts` counts.
    ///
    /// A reporter that answers `Break` gets what is done so far back.
    pub fn denoise(
        &self,
        request: &RenderRequest,
        mut texts: Vec<TextStates>,
        hook: &mut StepHook<'_>,
    ) -> Result<Denoised> {
        let geometry = self.checkpoint.info().geometry;
        let (schedule, guidance) = (self.schedule(request)?, self.guidance(request)?);
        if !guidance.has_negative() {
            texts.drain(..texts.len().saturating_sub(1));
        }
        let steps = schedule.steps();
        let given = request.latents.as_ref().map(|latents| latents.to_dtype(DType::F32)).transpose()?;
        if let Some(latents) = given.as_ref().filter(|_| request.start == steps) {
            return Ok(Denoised {
                latents: latents.clone(),
                beside: None,
                finished_steps: steps,
                steps,
                cancelled: false,
                drawn: request.drawn.clone(),
            });
        }
        let conditions = self.encode_conditions(request)?;
        let model = self.load(|| self.checkpoint.denoiser(&self.place))?;
        let first = first_step(&conditions, steps);
        // Nothing has been drawn for latents that aren't a stopped render's.
        let resumed = request.start > 0 || request.drawn != Drawn::default();
        let mut noise = Noise::new(request.seed);
        let mut start = held::start(
            held::Given {
                conditions: &conditions,
                latents: given.as_ref().filter(|_| !resumed && !request.refine),
                clean: given.as_ref().filter(|_| request.refine),
                pan: &request.pan,
            },
            self.checkpoint.conditioning(),
            &geometry,
            &request.spec,
            schedule.sigmas[first],
            &*model,
            &mut noise.clip,
        )?;
        if resumed {
            noise = Noise::after(request.seed, &request.drawn)?;
            start.latents = given.unwrap_or(start.latents);
            start.held = start.held.map(|held| held.resumed(request.beside.clone()));
        }
        let device = &self.place.device;
        let held = start.held.map(|held| held.to_device(device)).transpose()?;
        let spec = &request.spec;
        let clip = ClipContext {
            grid: geometry.grid(spec),
            fps: spec.fps,
            texts,
            before: start.before.clone(),
            origin: (0, 0),
        };
        let plan = Plan {
            schedule: &schedule,
            guidance: &guidance,
            start: request.start.max(first),
            held: held.as_ref(),
            cache: request.pass.cache,
        };
        let initial = start.latents.to_device(device)?;
        let mut model: Box<dyn Denoiser + '_> = match request.decode.tiling.denoise {
            Some(tile) => Box::new(Tiled::new(model, tile, geometry)),
            None => model,
        };
        let done = denoise(&mut *model, &clip, &initial, &plan, &mut noise, self.reporter, hook)?;
        let latents = done.latents.to_device(&Device::Cpu)?;
        if !is_finite(&latents)?
            && let Some(error) = Verdict::NotFinite.error()
        {
            return Err(error);
        }
        Ok(Denoised {
            latents,
            beside: done.beside.map(|tokens| tokens.to_device(&Device::Cpu)).transpose()?,
            finished_steps: done.finished_steps,
            steps,
            cancelled: done.cancelled,
            drawn: done.drawn,
        })
    }

    /// Enlarges latents `[1, C, F, H, W]`, as [`Renderer::denoise`] leaves them, for the pass that comes next.
    pub fn upsample(&self, latents: &Tensor, source: &dyn UpsamplerSource, next: &Pass) -> Result<Tensor> {
        let statistics = self.checkpoint.latent_statistics()?;
        let mut model = self.load(|| source.load(&self.place))?;
        let latents = self.phase(Phase::Upsample, 1, || {
            let latents = upsample::upsample(&mut *model, latents, &statistics, &next.upsample)?;
            self.tell(&Event::Progress { phase: Phase::Upsample, done: 1, total: 1 })?;
            Ok(latents.to_device(&Device::Cpu)?)
        })?;
        if is_finite(&latents)? {
            Ok(latents)
        } else {
            Err(Error::invalid("upsampled latents", "they hold values that are not finite")
                .with_hint("pass --dtype f32; if that doesn't help, the upsampler is damaged"))
        }
    }

    /// Decodes latents `[1, C, F, H, W]`, as [`Renderer::denoise`] leaves them, and pushes the frames into `sink`.
    ///
    /// `seed` and `drawn` are those of the render ([`Drawn::initial_noise`] where nothing else is known), so that a
    /// decoder that draws noise draws what it would have drawn right after it.
    pub fn decode(
        &self,
        latents: &Tensor,
        spec: &VideoSpec,
        seed: u64,
        drawn: &Drawn,
        options: &DecodeOptions,
        sink: &mut dyn FrameSink,
    ) -> Result<Health> {
        self.checkpoint.info().geometry.check(spec)?;
        check_decode(options)?;
        self.check_latents(latents, spec)?;
        let device = &self.place.device;
        let mut noise = DeviceNoise { noise: Noise::after(seed, drawn)?, device };
        let latents = latents.to_dtype(DType::F32)?.to_device(device)?;
        let mut decoder = self.load(|| self.checkpoint.video_decoder(&self.place))?;
        let mut health = HealthCheck::new(spec.frames);
        let total = spec.frames as u64;
        let mut done = 0;
        self.phase(Phase::Decode, total, || {
            decoder.decode(&latents, &mut noise, options, &mut |video| {
                for picture in pictures(video)? {
                    let picture = picture?;
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
        Schedule::of_pass(self.checkpoint.schedule(), &request.pass, cells)
    }

    fn guidance(&self, request: &RenderRequest) -> Result<GuidancePlan> {
        let blocks = self.checkpoint.info().blocks;
        GuidancePlan::new(&request.pass.guidance, &self.schedule(request)?, blocks)
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

/// The step that a render begins with: not the first where it starts from a clip and may not change it wholly.
fn first_step(conditions: &Conditions, steps: usize) -> usize {
    let strength = conditions.source.as_ref().map_or(1.0, |source| source.strength);
    steps - ((steps as f64 * strength) as usize).min(steps)
}

fn check_cache(threshold: Option<f64>, blocks: usize) -> Result<()> {
    let Some(threshold) = threshold else { return Ok(()) };
    let what = format!("step cache {threshold}");
    if !(threshold > 0.0 && threshold <= 1.0) {
        return Err(Error::invalid(what, "expected a number above 0, up to 1"));
    }
    if blocks < 2 {
        let why = format!("the model has {blocks} blocks, there is nothing to skip");
        return Err(Error::invalid(what, why).with_hint("leave out --cache"));
    }
    Ok(())
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
