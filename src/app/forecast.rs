//! What a render will take, before it begins: memory, time and disk, from headers alone.
//!
//! **Memory.** A stage needs its weights in the form in which they are kept (elements of their tensors × the number
//! type, or what they have on disk where they stay quantised), the most that a pass holds beside them (the family's
//! reckoning from shapes, [`Checkpoint::activations`]), and what the program itself has: code, threads, FFmpeg's
//! encoder with the frames that it looks ahead at. Stages come one after another, so the peak is the hungriest one.
//!
//! **Time.** A stage's multiplications and additions ([`Checkpoint::work`]) over the rate at which this machine
//! multiplies matrices, measured for a fifth of a second ([`Speed`]), and over the share of that rate which each
//! kind of stage reaches; plus reading the weights. It is a guess, good to a factor of about two on a quiet machine.
//!
//! **Disk.** What is yet to be downloaded.

use std::path::Path;

use serde::Serialize;

use crate::{
    app::{
        budget::{Excess, Holding, MemoryLimit},
        clip::device_name,
        generate::GenerateRequest,
        memory::{self, Need, Stage},
        plan::plan,
        speed::Speed,
    },
    error::{Error, Result},
    event::Silent,
    hub::free_bytes,
    models::api::{Checkpoint, Placement, Tiling},
    pipeline::render::{RenderRequest, Renderer},
    video::VideoSpec,
};

/// The shares of the rate of plain products of matrices that the stages reach on a CPU: a T5-XXL for texts, the embedded
/// model's transformer and decoder from 128 to 2,560 tokens.
const TEXT_SHARE: f64 = 0.6;
const DENOISE_SHARE: f64 = 0.4;
const DECODE_SHARE: f64 = 0.5;
/// Bytes of weights that are read, checked and converted in a second.
const LOADED_A_SECOND: f64 = 6e8;
/// Seconds that a pixel of a frame takes from the decoder into the file.
const SECONDS_A_PIXEL: f64 = 4e-8;

/// One stage of a render.
#[derive(Debug, Clone, Serialize)]
pub struct StageForecast {
    /// What it does.
    pub stage: &'static str,
    /// Bytes of weights that it keeps in memory.
    pub weight_bytes: u64,
    /// The most bytes that it holds beside them.
    pub working_bytes: u64,
    /// Bytes of the machine's own memory.
    pub host_bytes: u64,
    /// Bytes of the GPU's memory; none on a CPU.
    pub device_bytes: u64,
    /// How long it takes.
    pub seconds: f64,
}

/// What a render will take.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// The model.
    pub model: String,
    /// Size, length and rate.
    #[serde(flatten)]
    pub spec: VideoSpec,
    /// Denoising steps.
    pub steps: usize,
    /// Passes through the denoiser in all of them.
    pub calls: usize,
    /// The device.
    pub device: String,
    /// The number type.
    pub dtype: String,
    /// Its stages in order.
    pub stages: Vec<StageForecast>,
    /// The most bytes of the machine's own memory at any time.
    pub peak_bytes: u64,
    /// The stage that needs them.
    pub peak_stage: &'static str,
    /// Bytes of it that can be had now, where the system says so.
    pub available_bytes: Option<u64>,
    /// The most that may be taken, if the user has set a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// What the limit lacks, if it is too low.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_limit: Option<Excess>,
    /// How it is cut.
    pub tiling: Tiling,
    /// Seconds from start to finished file, without downloads.
    pub seconds: f64,
    /// What time is reckoned from.
    pub speed: Speed,
    /// Bytes that are yet to be downloaded.
    pub download_bytes: u64,
    /// Bytes that the cache's disk has room for, where the system says so.
    pub disk_free_bytes: Option<u64>,
    /// Whether it fits into memory and onto the disk.
    pub fits: bool,
    /// Flags with which it would fit, if it doesn't.
    pub ways: Vec<String>,
}

/// Forecasts a job.
///
/// `download_bytes` are yet to come into the cache at `cache`.
pub fn forecast(request: &GenerateRequest, download_bytes: u64, cache: &Path) -> Result<Forecast> {
    let checkpoint = request.open()?;
    let device = request.device.open()?;
    let place = Placement { dtype: request.dtype.resolve(&device), device };
    let files = request.outputs.files(0, 1, "plan")?;
    let mut passes = plan(request, checkpoint.as_ref(), &files.target, 0)?.passes;
    let geometry = checkpoint.info().geometry;
    passes.iter().try_for_each(|pass| geometry.check(&pass.spec))?;
    let mut window = None;
    if request.needs_windows(&passes, checkpoint.as_ref()) {
        let cut = request.cut(&passes[0], checkpoint.as_ref())?;
        window = Some(cut.window_spec(&passes[0].spec, &geometry));
    }
    let (encodes, limit) = (!request.visual.is_empty(), request.max_memory);
    let spec = passes.last().expect("a plan has at least one pass").spec;
    let holding = Holding {
        checkpoint: checkpoint.as_ref(),
        at_once: window.unwrap_or(spec),
        whole: spec,
        size: request
            .upscale
            .map(|upscale| upscale.settle(&spec))
            .transpose()?
            .map_or(spec.size(), |up| up.0),
        place: &place,
        encodes,
        decodes_only: false,
    };
    let mut over_limit = None;
    if let Some(limit) = limit {
        let tiling = passes.last().expect("a plan has at least one pass").decode.tiling;
        let fit = holding.fit(limit, tiling, request.decode.free());
        passes.iter_mut().for_each(|pass| pass.decode.tiling = fit.tiling);
        over_limit = holding.excess(&fit);
    }
    let forecast = of(checkpoint.as_ref(), &passes, window, &place, encodes, limit)?;
    let disk_free_bytes = free_bytes(cache);
    let room = disk_free_bytes.is_none_or(|free| free >= download_bytes);
    let fits = forecast.fits && over_limit.is_none() && room;
    Ok(Forecast { download_bytes, disk_free_bytes, fits, over_limit, ..forecast })
}

/// Forecasts a render on a checkpoint that is here; its last pass is the one that is decoded. A clip that is made in
/// windows has one `window` at a time in all stages but the decoder. `encodes` says whether pictures or clips go
/// through the encoder first.
pub(super) fn of(
    checkpoint: &dyn Checkpoint,
    passes: &[RenderRequest],
    window: Option<VideoSpec>,
    place: &Placement,
    encodes: bool,
    limit: Option<MemoryLimit>,
) -> Result<Forecast> {
    let (info, last) = (checkpoint.info(), passes.last().expect("a render has a pass"));
    let (spec, tiling) = (&last.spec, &last.decode.tiling);
    let speed = Speed::measure(place)?;
    let times = Times::reckon(checkpoint, passes, window, place, speed)?;
    let on_cpu = place.device.is_cpu();
    let at_once = window.unwrap_or(*spec);
    let whole = memory::needs(checkpoint, spec, place, tiling, encodes);
    let needs = memory::needs(checkpoint, &at_once, place, tiling, encodes).into_iter().zip(whole);
    let stages: Vec<StageForecast> = needs
        .map(|(need, whole)| if need.stage == Stage::Decode { whole } else { need })
        .map(|need| {
            let Need { stage, weights, working, own } = need;
            let (host_bytes, device_bytes) =
                if on_cpu { (weights + working + own, 0) } else { (own, weights + working) };
            let seconds = times.of(stage);
            let (weight_bytes, working_bytes) = (weights, working);
            StageForecast {
                stage: stage.name(),
                weight_bytes,
                working_bytes,
                host_bytes,
                device_bytes,
                seconds,
            }
        })
        .collect();
    let hungriest = stages.iter().max_by_key(|stage| stage.host_bytes).expect("a render has stages");
    let (peak_bytes, peak_stage) = (hungriest.host_bytes, hungriest.stage);
    let available_bytes = memory::available();
    let fits = available_bytes.is_none_or(|have| peak_bytes <= have);
    let ways = match available_bytes {
        Some(have) if !fits && on_cpu && peak_stage == Stage::Decode.name() => {
            memory::decode_ways(have, checkpoint, spec, place, tiling)
        }
        Some(have) if !fits && on_cpu => memory::ways(have, checkpoint, &at_once, place, tiling, encodes),
        _ => Vec::new(),
    };
    Ok(Forecast {
        model: info.name.clone(),
        spec: *spec,
        steps: passes.iter().map(RenderRequest::steps_left).sum(),
        calls: times.calls,
        device: device_name(place),
        dtype: place.dtype.as_str().into(),
        seconds: stages.iter().map(|stage| stage.seconds).sum(),
        stages,
        peak_bytes,
        peak_stage,
        available_bytes,
        limit_bytes: limit.map(MemoryLimit::bytes),
        over_limit: None,
        tiling: *tiling,
        speed,
        download_bytes: 0,
        disk_free_bytes: None,
        fits,
        ways,
    })
}

/// What a render asks of whatever machine, in multiplications and additions.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Labour {
    /// One prompt through the text encoder.
    pub text: f64,
    /// Prompts.
    pub prompts: usize,
    /// Pictures and clips through the video encoder.
    pub encode: f64,
    /// All passes through the denoiser.
    pub denoise: f64,
    /// How many they are.
    pub calls: usize,
    /// Latents through the video decoder.
    pub decode: f64,
    /// Pixels that go into the file.
    pub pixels: usize,
    /// Bytes of the model's weights.
    pub weight_bytes: u64,
}

impl Labour {
    /// Of a render in these passes, of which the last one is decoded; see [`of`].
    pub(super) fn of(
        renderer: &Renderer<'_>,
        passes: &[RenderRequest],
        window: Option<VideoSpec>,
        encodes: bool,
    ) -> Result<Self> {
        let checkpoint = renderer.checkpoint;
        let weights = checkpoint.info().weight_bytes;
        let weight_bytes = weights.text + weights.denoiser + weights.video;
        let mut labour = Self { weight_bytes, ..Self::default() };
        for pass in passes {
            let VideoSpec { width, height, frames, .. } = pass.spec;
            let work = checkpoint.work(&pass.spec, pass.max_sequence_length, &pass.decode.tiling);
            let asked = renderer.calls_left(pass)?;
            labour.calls += asked;
            labour.prompts = labour.prompts.max(if renderer.hears_negative(pass)? { 2 } else { 1 });
            labour.text = labour.text.max(work.text);
            labour.denoise += asked as f64
                * match window {
                    None => work.denoise,
                    Some(window) => {
                        let of_window =
                            checkpoint.work(&window, pass.max_sequence_length, &pass.decode.tiling);
                        of_window.denoise * frames as f64 / window.frames as f64
                    }
                };
            (labour.decode, labour.pixels) = (work.decode, width * height * frames);
        }
        // An encoder works about as much as the decoder.
        labour.encode = if encodes { labour.decode } else { 0.0 };
        Ok(labour)
    }

    /// This one and another on the same weights.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            text: self.text.max(other.text),
            prompts: self.prompts + other.prompts,
            encode: self.encode + other.encode,
            denoise: self.denoise + other.denoise,
            calls: self.calls + other.calls,
            decode: self.decode + other.decode,
            pixels: self.pixels + other.pixels,
            weight_bytes: self.weight_bytes.max(other.weight_bytes),
        }
    }

    /// This one so many times, with the same prompts.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        let many = times as f64;
        Self {
            encode: self.encode * many,
            denoise: self.denoise * many,
            calls: self.calls * times,
            decode: self.decode * many,
            pixels: self.pixels * times,
            ..self
        }
    }

    /// Seconds that one prompt takes.
    #[must_use]
    pub fn text_seconds(&self, speed: Speed) -> f64 {
        self.text / (speed.flops * TEXT_SHARE)
    }

    /// Seconds that pictures and clips take on their way in.
    #[must_use]
    pub fn encode_seconds(&self, speed: Speed) -> f64 {
        self.encode / (speed.flops * DECODE_SHARE)
    }

    /// Seconds that all passes through the denoiser take.
    #[must_use]
    pub fn denoise_seconds(&self, speed: Speed) -> f64 {
        self.denoise / (speed.flops * DENOISE_SHARE)
    }

    /// Seconds that decoding and writing take.
    #[must_use]
    pub fn decode_seconds(&self, speed: Speed) -> f64 {
        self.decode / (speed.flops * DECODE_SHARE) + self.pixels as f64 * SECONDS_A_PIXEL
    }

    /// Seconds that reading all weights takes.
    #[must_use]
    pub fn load_seconds(&self) -> f64 {
        self.weight_bytes as f64 / LOADED_A_SECOND
    }
}

/// How long the stages take, in seconds.
struct Times {
    text: f64,
    encode: f64,
    denoise: f64,
    decode: f64,
    /// Times that the denoiser is asked.
    calls: usize,
}

impl Times {
    fn reckon(
        checkpoint: &dyn Checkpoint,
        passes: &[RenderRequest],
        window: Option<VideoSpec>,
        place: &Placement,
        speed: Speed,
    ) -> Result<Self> {
        let renderer = Renderer { checkpoint, place: place.clone(), reporter: &Silent };
        let weights = checkpoint.info().weight_bytes;
        let load = |bytes: u64| bytes as f64 / LOADED_A_SECOND;
        let labour = Labour::of(&renderer, passes, window, /* encodes */ true)?;
        let (video, decode) = (load(weights.video), labour.decode_seconds(speed));
        Ok(Self {
            text: load(weights.text) + labour.prompts as f64 * labour.text_seconds(speed),
            encode: video + decode,
            denoise: load(weights.denoiser) + labour.denoise_seconds(speed),
            decode: video + decode,
            calls: labour.calls,
        })
    }

    fn of(&self, stage: Stage) -> f64 {
        match stage {
            Stage::Text => self.text,
            Stage::Encode => self.encode,
            Stage::Denoise => self.denoise,
            Stage::Decode => self.decode,
        }
    }
}

impl Forecast {
    /// An error if it doesn't fit.
    pub fn verdict(&self) -> Result<()> {
        const MIB: u64 = 1 << 20;
        if let Some(excess) = &self.over_limit {
            return Err(excess.error());
        }
        match self.available_bytes {
            _ if self.fits => Ok(()),
            Some(have) if have < self.peak_bytes => Err(Error::OutOfMemory {
                what: self.peak_stage.to_owned(),
                need_mib: self.peak_bytes.div_ceil(MIB),
                have_mib: have / MIB,
                hint: memory::hint(&self.ways),
            }),
            _ => Err(Error::DiskFull {
                path: "the cache".into(),
                need_mib: self.download_bytes.div_ceil(MIB),
                have_mib: self.disk_free_bytes.unwrap_or_default() / MIB,
            }),
        }
    }
}
