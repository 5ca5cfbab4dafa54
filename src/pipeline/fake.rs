//! A checkpoint in memory whose velocity is known in closed form, for the tests of the loop.

use std::{
    ops::ControlFlow,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

use candle_core::{Device, Tensor};

use crate::{
    error::Result,
    event::{Event, Phase, Reporter},
    models::api::{
        Activations, Checkpoint, ClipContext, Conditioning, DecodeNoise, DecodeOptions, Defaults, Denoiser,
        Direction, Geometry, Identified, LatentGrid, LatentStatistics, LatentUpsampler, ModelInfo, Placement,
        Posterior, ScheduleSpec, SigmaSource, Skip, TextEncoder, TextStates, Tiling, Timestep, UpsamplerInfo,
        UpsamplerSource, VideoDecoder, VideoEncoder, WeightBytes, Work,
    },
    video::VideoSpec,
};

/// Two channels, pixels in cells of 8 × 8 × 4; all stages count how many of them are alive.
pub struct Fake {
    info: ModelInfo,
    schedule: ScheduleSpec,
    /// How it takes pictures; [`Conditioning::Beside`] unless a test says otherwise.
    conditioning: Conditioning,
    /// Stages alive now, and the most that ever were.
    pub alive: &'static AtomicUsize,
    pub most_alive: AtomicUsize,
}

impl Fake {
    pub fn new(config: serde_json::Value) -> Self {
        Self {
            info: ModelInfo {
                name: "fake".into(),
                pipeline: "FakePipeline".into(),
                geometry: Geometry { spatial: 8, temporal: 4, patch: 1, patch_t: 1, channels: 2 },
                defaults: Defaults {
                    width: 32,
                    height: 32,
                    frames: 5,
                    fps: 8.0,
                    steps: 4,
                    guidance: 3.0,
                    max_sequence_length: 16,
                    negative_prompt: String::new(),
                    window: 0,
                    overlap: 0,
                    detail: false,
                    direction: Direction::default(),
                },
                weight_bytes: WeightBytes::default(),
                blocks: 3,
                published: Identified::Unknown,
                loras: Vec::new(),
            },
            schedule: ScheduleSpec {
                config,
                path: "scheduler_config.json".into(),
                source: SigmaSource::Linear,
            },
            conditioning: Conditioning::Beside,
            alive: Box::leak(Box::new(AtomicUsize::new(0))),
            most_alive: AtomicUsize::new(0),
        }
    }

    pub fn conditioned(self, conditioning: Conditioning) -> Self {
        Self { conditioning, ..self }
    }

    fn load(&self) -> Alive {
        let alive = self.alive.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_alive.fetch_max(alive, Ordering::SeqCst);
        Alive(self.alive)
    }
}

/// Counts itself out when it is dropped.
struct Alive(&'static AtomicUsize);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Text states are the prompt's length; all but the first `max_length` letters are cut off.
struct Letters {
    _alive: Alive,
}

impl TextEncoder for Letters {
    fn encode(&mut self, prompt: &str, max_length: usize) -> Result<TextStates> {
        let read = prompt.len().min(max_length);
        let states = Tensor::full(read as f32, (1, 1, 1), &Device::Cpu)?;
        Ok(TextStates { mask: states.ones_like()?.flatten_from(1)?, states, cut: prompt[read..].into() })
    }
}

/// Data that the velocity leads to: everywhere the prompt's length.
pub struct Towards {
    _alive: Option<Alive>,
    data: Vec<f64>,
    /// (timestep of the last token, branch) of every call.
    pub calls: Vec<(f32, usize)>,
}

impl Towards {
    pub fn new() -> Self {
        Self { _alive: None, data: Vec::new(), calls: Vec::new() }
    }
}

impl Denoiser for Towards {
    fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.flatten_from(2)?.transpose(1, 2)?.contiguous()?) // [1, L, C]
    }

    fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor> {
        let (b, _, c) = tokens.dims3()?;
        Ok(tokens.transpose(1, 2)?.reshape((b, c, grid.frames, grid.height, grid.width))?)
    }

    fn begin(&mut self, clip: &ClipContext) -> Result<()> {
        self.data.clear();
        for text in &clip.texts {
            self.data.push(f64::from(text.states.flatten_all()?.to_vec1::<f32>()?[0]));
        }
        Ok(())
    }

    /// Skipped blocks make a thing less of the data, each of them by one.
    fn perturbed(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        branch: usize,
        skip: &Skip,
    ) -> Result<Tensor> {
        let Timestep::Shared(t) = timestep else { unreachable!("the loop gives shared timesteps") };
        let full = self.velocity(tokens, timestep, branch)?;
        Ok((full + skip.blocks.len() as f64 / (f64::from(*t) / 1000.0))?)
    }

    /// Tokens are (1 − σ) data + σ noise, so (tokens − data) / σ is noise − data.
    fn velocity(&mut self, tokens: &Tensor, timestep: &Timestep, branch: usize) -> Result<Tensor> {
        let times = match timestep {
            Timestep::Shared(t) => vec![*t; tokens.dim(1)?],
            Timestep::PerToken(times) => times.flatten_all()?.to_vec1()?,
        };
        let last = *times.last().expect("a clip has tokens");
        self.calls.push((last, branch));
        let count = times.len();
        // What is clean has no velocity.
        let sigmas = times.into_iter().map(|t| if t > 0.0 { t / 1000.0 } else { f32::INFINITY }).collect();
        let sigmas = Tensor::from_vec(sigmas, (1, count, 1), &Device::Cpu)?;
        Ok((tokens - self.data[branch])?.broadcast_div(&sigmas)?)
    }
}

/// Paints every pixel of a cell in its first channel's value, with noise from the render where it is asked for.
struct Paint {
    _alive: Alive,
}

impl VideoDecoder for Paint {
    fn decode(
        &mut self,
        latents: &Tensor,
        noise: &mut dyn DecodeNoise,
        options: &DecodeOptions,
        emit: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let (_, _, f, h, w) = latents.dims5()?;
        let drawn = noise.latents(latents.dims())?;
        let mixed = (latents + (drawn * options.timestep)?)?;
        let tone = mixed.narrow(1, 0, 1)?.reshape((f, h, w))?;
        for frame in 0..4 * (f - 1) + 1 {
            let cells = tone.get(frame.div_ceil(4))?;
            let wide =
                cells.reshape((h, 1, w, 1))?.broadcast_as((h, 8, w, 8))?.reshape((1, 1, h * 8, w * 8))?;
            emit(&wide.broadcast_as((3, 1, h * 8, w * 8))?)?;
        }
        Ok(())
    }
}

/// Each cell's latents are the mean of its pixels in the first of its frames, with a deviation of a tenth.
struct Mean {
    _alive: Alive,
}

impl VideoEncoder for Mean {
    fn encode(&mut self, video: &Tensor, _: &Tiling) -> Result<Posterior> {
        let (_, _, f, h, w) = video.dims5()?;
        let frames: Vec<u32> =
            (0..f.div_ceil(4)).map(|i| if i == 0 { 0 } else { 4 * i as u32 - 3 }).collect();
        let count = frames.len();
        let frames = video.index_select(&Tensor::new(frames, &Device::Cpu)?, 2)?;
        let cells = frames.mean(1)?.reshape(&[1, count, h / 8, 8, w / 8, 8][..])?;
        let mean = cells.mean(5)?.mean(3)?.unsqueeze(1)?.repeat((1, 2, 1, 1, 1))?; // [1, 2, f, h, w]
        let std = mean.ones_like()?.affine(0.1, 0.0)?;
        Ok(Posterior { mean, std })
    }
}

impl Checkpoint for Fake {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn schedule(&self) -> &ScheduleSpec {
        &self.schedule
    }

    fn text_identity(&self) -> Result<Option<String>> {
        Ok(Some("letters".into()))
    }

    fn conditioning(&self) -> Conditioning {
        self.conditioning
    }

    fn text_encoder(&self, _: &Placement) -> Result<Box<dyn TextEncoder>> {
        Ok(Box::new(Letters { _alive: self.load() }))
    }

    fn denoiser(&self, _: &Placement) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Towards { _alive: Some(self.load()), ..Towards::new() }))
    }

    fn video_decoder(&self, _: &Placement) -> Result<Box<dyn VideoDecoder>> {
        Ok(Box::new(Paint { _alive: self.load() }))
    }

    fn video_encoder(&self, _: &Placement) -> Result<Box<dyn VideoEncoder>> {
        Ok(Box::new(Mean { _alive: self.load() }))
    }

    fn latent_statistics(&self) -> Result<LatentStatistics> {
        let row = |values: [f32; 2]| Tensor::new(&values, &Device::Cpu);
        Ok(LatentStatistics { mean: row([1.0, -1.0])?, std: row([2.0, 0.5])?, factor: 1.0 })
    }

    fn latent_rgb(&self) -> Result<Option<(Tensor, Tensor)>> {
        let map = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [0.0, 0.0]], &Device::Cpu)?;
        Ok(Some((map, Tensor::new(&[0f32, 0.0, 1.0], &Device::Cpu)?)))
    }

    fn activations(&self, _: &VideoSpec, _: &Placement, _: &Tiling) -> Activations {
        Activations::default()
    }

    fn resident(&self, _: &Placement) -> WeightBytes {
        WeightBytes::default()
    }

    fn work(&self, _: &VideoSpec, _: usize, _: &Tiling) -> Work {
        Work::default()
    }
}

/// An upsampler that repeats cells and frames.
pub struct Repeat(pub UpsamplerInfo);

impl UpsamplerSource for Repeat {
    fn info(&self) -> &UpsamplerInfo {
        &self.0
    }

    fn load(&self, _: &Placement) -> Result<Box<dyn LatentUpsampler>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl LatentUpsampler for Repeat {
    fn upsample(&mut self, latents: &Tensor) -> Result<Tensor> {
        let (b, c, f, h, w) = latents.dims5()?;
        let (s, t) = (self.0.space, self.0.time);
        let x = latents.reshape(&[b, c, f, 1, h, 1, w, 1][..])?;
        let x = x.broadcast_as(&[b, c, f, t, h, s, w, s][..])?.reshape((b, c, f * t, h * s, w * s))?;
        Ok(x.narrow(2, t - 1, f * t - (t - 1))?)
    }
}

/// Keeps every event, and asks to stop when `stop_at` steps are done.
#[derive(Default)]
pub struct Recorder {
    pub events: Mutex<Vec<Event>>,
    pub stop_at: Option<u64>,
    pub stop_in: Option<Phase>,
}

impl Recorder {
    /// The events in a few letters each.
    pub fn script(&self) -> Vec<String> {
        let name = |phase: &Phase| format!("{phase:?}").to_lowercase();
        let events = self.events.lock().expect("no panic while it was held");
        events
            .iter()
            .map(|event| match event {
                Event::Started { phase, total } => format!("{} 0/{total}", name(phase)),
                Event::Progress { phase, done, total } => format!("{} {done}/{total}", name(phase)),
                Event::Finished { phase, .. } => format!("{} done", name(phase)),
                Event::Warning { message } => message.clone(),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

impl Reporter for Recorder {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        self.events.lock().expect("no panic while it was held").push(event.clone());
        match event {
            Event::Progress { phase: Phase::Denoise, done, .. } if self.stop_at == Some(*done) => {
                ControlFlow::Break(())
            }
            Event::Started { phase, .. } if self.stop_in == Some(*phase) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}
