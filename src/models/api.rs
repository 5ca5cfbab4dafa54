//! What every family of models gives to the pipeline. Nothing here knows a family's name.

use std::{collections::BTreeMap, path::PathBuf};

use candle_core::Tensor;

pub use super::{
    catalog::Identified,
    sampling::{Guidance, Pass, PerStep, SkipMode, Stg, Upsample},
    step_cache::{CallCount, StepCache},
};
pub use crate::device::Placement;
use crate::{
    error::{Error, Result},
    video::{Size, VideoSpec},
};

/// The grid rules of a checkpoint: data, checked once, before any weight is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Geometry {
    /// Pixels per latent cell along a side.
    pub spatial: usize,
    /// Frames per latent frame; clips have `temporal × k + 1` frames.
    pub temporal: usize,
    /// Latent cells that the denoiser joins along a side; sizes are multiples of `spatial × patch`.
    pub patch: usize,
    /// Latent frames that the denoiser joins.
    pub patch_t: usize,
    /// Channels of the latents.
    pub channels: usize,
}

impl Geometry {
    /// The latent grid of a clip.
    #[must_use]
    pub fn grid(&self, spec: &VideoSpec) -> LatentGrid {
        LatentGrid {
            frames: spec.frames.saturating_sub(1) / self.temporal + 1,
            height: spec.height / self.spatial,
            width: spec.width / self.spatial,
        }
    }

    /// `[1, C, F, H, W]`: the shape of a clip's latents.
    #[must_use]
    pub fn latent_shape(&self, spec: &VideoSpec) -> [usize; 5] {
        let grid = self.grid(spec);
        [1, self.channels, grid.frames, grid.height, grid.width]
    }

    /// The largest valid side up to `side` (if there is one) and the smallest from it on.
    #[must_use]
    pub fn sides_around(&self, side: usize) -> (Option<usize>, usize) {
        around(side, self.spatial * self.patch, 0)
    }

    /// The largest valid number of frames up to `frames` (if there is one) and the smallest from it on.
    #[must_use]
    pub fn frames_around(&self, frames: usize) -> (Option<usize>, usize) {
        around(frames, self.temporal * self.patch_t, self.frame_offset())
    }

    /// Refuses sizes and lengths that are off the grid, naming the nearest that are on it.
    pub fn check(&self, spec: &VideoSpec) -> Result<()> {
        for (name, side) in [("width", spec.width), ("height", spec.height)] {
            let (below, above) = self.sides_around(side);
            if side != above || side == 0 {
                let step = self.spatial * self.patch;
                return Err(Error::invalid(
                    format!("{name} {side}"),
                    format!("expected a multiple of {step}"),
                )
                .with_hint(either(name, below, above)));
            }
        }
        let (below, above) = self.frames_around(spec.frames);
        if spec.frames != above {
            let rule = format!("expected {}k+{}", self.temporal * self.patch_t, self.frame_offset());
            return Err(Error::invalid(format!("frame count {}", spec.frames), rule)
                .with_hint(either("frames", below, above)));
        }
        if !(spec.fps.is_finite() && spec.fps > 0.0) {
            return Err(Error::invalid(format!("frame rate {}", spec.fps), "expected a number above 0"));
        }
        Ok(())
    }

    /// The shortest clip: one denoiser token long.
    fn frame_offset(&self) -> usize {
        self.temporal * (self.patch_t - 1) + 1
    }
}

/// The members of `offset + step × k` (at least 1) that enclose `value`.
fn around(value: usize, step: usize, offset: usize) -> (Option<usize>, usize) {
    let first = if offset == 0 { step } else { offset };
    if value < first {
        return (None, first);
    }
    let below = value - (value - first) % step;
    (Some(below), if below == value { value } else { below + step })
}

fn either(flag: &str, below: Option<usize>, above: usize) -> String {
    match below {
        Some(below) => format!("pass --{flag} {below} or --{flag} {above}"),
        None => format!("pass --{flag} {above}"),
    }
}

/// Frames, rows and columns of a latent video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct LatentGrid {
    /// Latent frames.
    pub frames: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
}

/// What a checkpoint does when the user says nothing.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Defaults {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance scale; 1 or less means none.
    pub guidance: f64,
    /// Tokens that the prompt is padded or cut to.
    pub max_sequence_length: usize,
    /// Negative prompt.
    #[serde(default)]
    pub negative_prompt: String,
    /// The most frames that are made in one go; longer clips are made window by window. `frames` if it is 0.
    #[serde(default)]
    pub window: usize,
    /// Frames that a window shares with the one before it; a third of the window if it is 0.
    #[serde(default)]
    pub overlap: usize,
    /// Whether held pictures get back the detail that the autoencoder loses of them.
    #[serde(default)]
    pub detail: bool,
    /// The words on camera and style that it was trained on.
    #[serde(default)]
    pub direction: Direction,
}

/// Words on camera and style that a model was trained on, and the phrase that stood in its captions for each. Empty
/// tables mean that nothing is known.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Direction {
    /// What the camera does: `pan left`, `static`, …
    #[serde(default)]
    pub camera: BTreeMap<String, String>,
    /// How far the picture's content goes to the right by a camera move, in widths of the picture a second. The model was
    /// trained on noise that goes with it.
    #[serde(default)]
    pub pan: BTreeMap<String, f64>,
    /// How it looks: `black and white`, …
    #[serde(default)]
    pub style: BTreeMap<String, String>,
    /// `slow` and `fast`, with `{}` for what the camera does.
    #[serde(default)]
    pub pace: BTreeMap<String, String>,
}

/// The prompt as the denoiser reads it.
#[derive(Debug, Clone)]
pub struct TextStates {
    /// `[1, L, D]`, the text encoder's dtype.
    pub states: Tensor,
    /// `[1, L]`, f32, 1 for a token and 0 for padding.
    pub mask: Tensor,
    /// The part of the prompt that did not fit, as text; empty if all did.
    pub cut: String,
}

/// Prompt → [`TextStates`].
pub trait TextEncoder: Send {
    /// Encodes one prompt, padded or cut to `max_length` tokens (the end token included).
    fn encode(&mut self, prompt: &str, max_length: usize) -> Result<TextStates>;
}

/// What is fixed for a whole clip.
#[derive(Debug, Clone)]
pub struct ClipContext {
    /// The latent grid of the clip.
    pub grid: LatentGrid,
    /// Frames a second.
    pub fps: f64,
    /// One entry per guidance branch, in the order in which the loop asks for them.
    pub texts: Vec<TextStates>,
    /// Tokens that stand before the clip's own, block by block.
    pub before: Vec<TokenBlock>,
    /// Row and column of a larger latent grid at which all of its grids begin; (0, 0) unless it is a tile.
    pub origin: (usize, usize),
}

/// Tokens of a condition, which has a place in time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBlock {
    /// Its latent grid.
    pub grid: LatentGrid,
    /// The frame of the clip that its first frame falls on.
    pub frame: usize,
}

/// How a checkpoint takes pictures and clips as prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conditioning {
    /// One picture, as the first frame, which stays as it is.
    FirstFrame,
    /// Any number. What begins with the clip takes its place in it; what comes later stands before the clip's
    /// tokens, as tokens that say where they are.
    Beside,
    /// Any number, each in its place in the clip.
    InPlace,
}

/// The time that tokens are at.
#[derive(Debug, Clone)]
pub enum Timestep {
    /// All tokens alike: sigma × 1000, as the scheduler rounds it.
    Shared(f32),
    /// `[1, L]`, f32: each token has its own.
    PerToken(Tensor),
}

/// Predicts the flow-matching velocity (noise − data) of a latent video.
pub trait Denoiser: Send {
    /// Lays latents `[1, C, F, H, W]` out as this model's tokens `[1, L, D]`.
    fn pack(&self, latents: &Tensor) -> Result<Tensor>;
    /// The inverse of [`Denoiser::pack`].
    fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor>;
    /// Computes what doesn't change within a clip: positions, text keys and values.
    fn begin(&mut self, clip: &ClipContext) -> Result<()>;
    /// The velocity `[1, L, D]`, f32, for tokens `[1, L, D]`, f32, under text number `branch`.
    fn velocity(&mut self, tokens: &Tensor, timestep: &Timestep, branch: usize) -> Result<Tensor>;
    /// As [`Denoiser::velocity`], with parts of some blocks left out.
    fn perturbed(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        branch: usize,
        skip: &Skip,
    ) -> Result<Tensor>;
    /// The step cache that it works with, if it can work with one. [`Denoiser::begin`] leaves it alone.
    fn step_cache(&mut self) -> Option<&mut StepCache> {
        None
    }
}

/// What a denoiser leaves out for spatio-temporal guidance.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Skip {
    /// Numbers of blocks, from 0.
    pub blocks: Vec<usize>,
    /// What is left out in them.
    pub mode: SkipMode,
}

/// Says how a denoiser's work and a decode are cut to bound their memory. `None` anywhere means: not cut in that
/// direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Tiling {
    /// What the denoiser takes of the picture at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoise: Option<DenoiseTile>,
    /// A decode's tile side in pixels and its stride.
    pub spatial: Option<(usize, usize)>,
    /// Tile length in frames and its stride.
    pub temporal: Option<(usize, usize)>,
    /// Latent cells and frames around each tile that a decode reads beside it and cuts off again. 0 is the
    /// reference's way, whose tiles show their edges; more of them come nearer to what an uncut decode gives.
    #[serde(default)]
    pub context: usize,
}

/// What a denoiser takes of the picture at a time, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DenoiseTile {
    /// Width; that of the picture if it is less.
    pub width: usize,
    /// Height; that of the picture if it is less.
    pub height: usize,
    /// The least that neighbours share.
    pub overlap: usize,
}

impl DenoiseTile {
    /// The latent grid of a tile of a clip.
    #[must_use]
    pub fn grid(&self, whole: LatentGrid, geometry: &Geometry) -> LatentGrid {
        let side = |pixels: usize, whole: usize| (pixels / geometry.spatial).clamp(geometry.patch, whole);
        LatentGrid { height: side(self.height, whole.height), width: side(self.width, whole.width), ..whole }
    }

    /// Where tiles begin, in latent rows and in latent columns: spread so that neighbours share at least the overlap.
    #[must_use]
    pub fn starts(&self, whole: LatentGrid, geometry: &Geometry) -> (Vec<usize>, Vec<usize>) {
        let tile = self.grid(whole, geometry);
        let patch = geometry.patch;
        let shared = self.overlap.div_ceil(geometry.spatial * patch);
        let starts = |whole: usize, tile: usize| {
            let (whole, tile) = (whole / patch, tile / patch);
            let step = tile.saturating_sub(shared).max(1);
            let gaps = (whole - tile).div_ceil(step);
            (0..=gaps).map(|i| (whole - tile) * i / gaps.max(1) * patch).collect()
        };
        (starts(whole.height, tile.height), starts(whole.width, tile.width))
    }

    /// Refuses tiles that are off the model's grid, or share all they have.
    pub fn check(&self, geometry: &Geometry) -> Result<()> {
        let step = geometry.spatial * geometry.patch;
        let what = || format!("tile {}x{}:{}", self.width, self.height, self.overlap);
        for side in [self.width, self.height] {
            if side == 0 || side % step > 0 {
                return Err(Error::invalid(what(), format!("expected sides that are multiples of {step}")));
            }
            if self.overlap.next_multiple_of(step) >= side {
                let why = format!("expected an overlap of at most {} pixels", side.saturating_sub(step));
                return Err(Error::invalid(what(), why));
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for DenoiseTile {
    type Err = Error;

    /// `WIDTHxHEIGHT` or `WIDTHxHEIGHT:OVERLAP`; a quarter of the shorter side is shared if nobody says.
    fn from_str(text: &str) -> Result<Self> {
        let (size, overlap) = match text.split_once(':') {
            Some((size, overlap)) => (size, Some(overlap)),
            None => (text, None),
        };
        let read = || {
            let Size { width, height } = size.parse().ok()?;
            let overlap = match overlap {
                Some(pixels) => pixels.trim().parse().ok()?,
                None => width.min(height) / 4,
            };
            Some(Self { width, height, overlap })
        };
        read().ok_or_else(|| {
            Error::invalid(format!("tile `{text}`"), "expected WIDTHxHEIGHT[:OVERLAP], e.g. 768x512:128")
        })
    }
}

/// How to decode.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DecodeOptions {
    /// Timestep for decoders that are conditioned on one; others ignore it.
    pub timestep: f64,
    /// Share of noise mixed in before such a decoder; `None` means as much as `timestep`.
    pub noise_scale: Option<f64>,
    /// Tiles.
    pub tiling: Tiling,
}

/// The noise that a decode draws, asked for in the reference's order; a decoder that needs none never asks.
pub trait DecodeNoise {
    /// `[1, C, F, H, W]`, f32: mixed into the latents before a decoder that is conditioned on a timestep.
    /// The reference goes on with the clip's own generator here.
    fn latents(&mut self, shape: &[usize]) -> Result<Tensor>;
    /// `[h, w]`, f32: added within the layers of a decoder that injects noise, once per layer (and tile).
    /// The reference draws these from torch's global generator, not from the clip's.
    fn layer(&mut self, shape: &[usize]) -> Result<Tensor>;
}

/// Latents → pictures.
pub trait VideoDecoder: Send {
    /// Decodes latents `[1, C, F, H, W]` (as the denoiser leaves them: normalised), f32.
    ///
    /// Calls `emit` with pictures `[3, f, H, W]`, f32, −1..1 (not clamped), in order, a few frames at a time.
    fn decode(
        &mut self,
        latents: &Tensor,
        noise: &mut dyn DecodeNoise,
        options: &DecodeOptions,
        emit: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()>;
}

/// What an encoder knows of latents: a normal distribution for each value.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// `[1, C, f, h, w]`, f32, normalised as the denoiser sees latents: also the likeliest value.
    pub mean: Tensor,
    /// `[1, C, f, h, w]`, f32: the deviation, on the same scale.
    pub std: Tensor,
}

impl Posterior {
    /// The latents that `noise`, standard normal and of their shape, stands for.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + (&self.std * noise)?)?)
    }
}

/// Pictures → latents.
pub trait VideoEncoder: Send {
    /// Encodes `[1, 3, F, H, W]`, f32, −1..1, into normalised latents, as the reference's pipelines of this family
    /// do with what they are conditioned on.
    fn encode(&mut self, video: &Tensor, tiling: &Tiling) -> Result<Posterior>;
}

/// What an upsampler is, known from its headers alone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UpsamplerInfo {
    /// The name of its file or folder.
    pub name: String,
    /// Factor by which rows and columns grow.
    pub space: usize,
    /// Factor by which frames grow: `n` latent frames become `time × (n − 1) + 1`.
    pub time: usize,
    /// Channels of the latents.
    pub channels: usize,
    /// Bytes of weights on disk.
    pub weight_bytes: u64,
}

/// An opened upsampler: everything read from headers, no weight loaded yet.
pub trait UpsamplerSource: Send + Sync {
    /// What it is.
    fn info(&self) -> &UpsamplerInfo;
    /// Loads it; dropping what it returns frees it.
    fn load(&self, place: &Placement) -> Result<Box<dyn LatentUpsampler>>;
}

/// Latents → larger latents.
pub trait LatentUpsampler: Send {
    /// Enlarges latents `[1, C, F, H, W]`, f32, as the video autoencoder has them: not normalised.
    fn upsample(&mut self, latents: &Tensor) -> Result<Tensor>;
}

/// What lies between the autoencoder's latents and those that the denoiser sees, per channel: the latter are
/// `(latents − mean) × factor / std`.
#[derive(Debug, Clone)]
pub struct LatentStatistics {
    /// `[C]`, f32, on the CPU.
    pub mean: Tensor,
    /// `[C]`, f32, on the CPU.
    pub std: Tensor,
    /// One factor for all channels.
    pub factor: f64,
}

impl LatentStatistics {
    /// `[1, C, F, H, W]`, f32: from the denoiser's side to the autoencoder's.
    pub fn denormalise(&self, latents: &Tensor) -> Result<Tensor> {
        let scaled = (latents.broadcast_mul(&self.column(&self.std, latents)?)? / self.factor)?;
        Ok(scaled.broadcast_add(&self.column(&self.mean, latents)?)?)
    }

    /// `[1, C, F, H, W]`, f32: from the autoencoder's side to the denoiser's.
    pub fn normalise(&self, latents: &Tensor) -> Result<Tensor> {
        let centred = (latents.broadcast_sub(&self.column(&self.mean, latents)?)? * self.factor)?;
        Ok(centred.broadcast_div(&self.column(&self.std, latents)?)?)
    }

    fn column(&self, values: &Tensor, latents: &Tensor) -> Result<Tensor> {
        Ok(values.to_device(latents.device())?.reshape((1, (), 1, 1, 1))?)
    }
}

/// Where the sigmas of a render come from, before the scheduler's own shifts.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum SigmaSource {
    /// `1 … 1/n` in equal steps, with the resolution-dependent shift (mu) where the scheduler uses one.
    Linear,
    /// LTX's linear-quadratic schedule, handed to the scheduler as explicit timesteps. The pipeline with this
    /// schedule steps each token from its own time to the next lower sigma.
    LinearQuadratic,
    /// `1 … 1/n` in equal steps, shifted towards noise by this factor, and handed to the scheduler and stepped as
    /// [`SigmaSource::LinearQuadratic`]'s.
    Shifted(f64),
}

impl SigmaSource {
    /// Whether each token steps from its own time to the next lower sigma.
    #[must_use]
    pub fn steps_by_time(self) -> bool {
        self != Self::Linear
    }
}

/// How a checkpoint wants its sigmas made: data for `pipeline::sigmas`.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleSpec {
    /// `scheduler_config.json`, as read.
    pub config: serde_json::Value,
    /// Where that file lies, for error messages.
    pub path: PathBuf,
    /// The pipeline's own rule.
    pub source: SigmaSource,
}

/// What a checkpoint is, known from its headers alone.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ModelInfo {
    /// Name for people: the folder's name, or the embedded model's.
    pub name: String,
    /// The pipeline class whose arithmetic is followed.
    pub pipeline: String,
    /// Grid rules.
    pub geometry: Geometry,
    /// What is done when the user says nothing.
    pub defaults: Defaults,
    /// Bytes of weights on disk: text encoder, denoiser, video decoder and encoder.
    pub weight_bytes: WeightBytes,
    /// Blocks of the denoiser, as [`Skip`] counts them.
    pub blocks: usize,
    /// How it was meant to be sampled, as far as its headers tell it from other checkpoints in the catalog.
    pub published: Identified,
    /// What changes the denoiser.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraUse>,
}

/// A LoRA that is in use.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraUse {
    /// The file's name.
    pub file: String,
    /// Factor on its changes.
    pub scale: f64,
}

/// Bytes of weights on disk, per stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct WeightBytes {
    /// Text encoder.
    pub text: u64,
    /// Denoiser.
    pub denoiser: u64,
    /// Video encoder and decoder.
    pub video: u64,
}

/// Weights that stay in memory between the stages of a render.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptBytes {
    /// Those that stay once they are loaded.
    pub wanted: WeightBytes,
    /// Those of them that are in memory now.
    pub loaded: WeightBytes,
}

/// Multiplications and additions of a stage, by the family's own reckoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Work {
    /// One prompt through the text encoder.
    pub text: f64,
    /// One pass through the denoiser.
    pub denoise: f64,
    /// The clip through the video decoder.
    pub decode: f64,
}

/// Peak bytes that a stage needs beside its weights, by the family's own reckoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Activations {
    /// Text encoder, one prompt.
    pub text: u64,
    /// Denoiser, one forward pass.
    pub denoise: u64,
    /// Video decoder.
    pub decode: u64,
    /// Video encoder, a clip of the whole length.
    pub encode: u64,
}

/// An opened checkpoint: everything read from headers, no weight loaded yet.
///
/// Each `…` call loads one stage; dropping what it returns frees it. `app::loaded` wraps a checkpoint and its stages:
/// a method added here or to a stage is to be passed on there.
pub trait Checkpoint: Send + Sync {
    /// What it is.
    fn info(&self) -> &ModelInfo;
    /// How its sigmas are made.
    fn schedule(&self) -> &ScheduleSpec;
    /// How it takes pictures and clips as prompts.
    fn conditioning(&self) -> Conditioning;
    /// A name for all that the text encoder's answer depends on beside the prompt, its length, device and number
    /// type; nothing if it has none.
    fn text_identity(&self) -> Result<Option<String>>;
    /// Loads the text encoder.
    fn text_encoder(&self, place: &Placement) -> Result<Box<dyn TextEncoder>>;
    /// Loads the denoiser.
    fn denoiser(&self, place: &Placement) -> Result<Box<dyn Denoiser>>;
    /// Loads the video decoder.
    fn video_decoder(&self, place: &Placement) -> Result<Box<dyn VideoDecoder>>;
    /// Loads the video encoder.
    fn video_encoder(&self, place: &Placement) -> Result<Box<dyn VideoEncoder>>;
    /// What lies between the autoencoder's latents and those that the denoiser sees.
    fn latent_statistics(&self) -> Result<LatentStatistics>;
    /// A linear map from normalised latents to RGB, −1..1, for early looks: `[3, C]` and `[3]`, f32, if the
    /// checkpoint has one.
    fn latent_rgb(&self) -> Result<Option<(Tensor, Tensor)>>;
    /// Reckons the peak memory of a clip from shapes alone.
    fn activations(&self, spec: &VideoSpec, place: &Placement, tiling: &Tiling) -> Activations;
    /// Bytes that the weights of each stage take once they are loaded: the video decoder's without the encoder's.
    fn resident(&self, place: &Placement) -> WeightBytes;
    /// Reckons the arithmetic of a clip from shapes alone; prompts have `text_tokens` tokens.
    fn work(&self, spec: &VideoSpec, text_tokens: usize, tiling: &Tiling) -> Work;
    /// What stays in memory between stages: nothing, unless somebody keeps it.
    fn kept(&self) -> KeptBytes {
        KeptBytes::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: Geometry = Geometry { spatial: 32, temporal: 8, patch: 1, patch_t: 1, channels: 128 };

    fn refusal(geometry: Geometry, width: usize, frames: usize) -> (String, String) {
        let spec = VideoSpec { width, height: 64, frames, fps: 24.0 };
        let error = geometry.check(&spec).expect_err("off the grid");
        (error.to_string(), error.hint().unwrap_or_default())
    }

    #[test]
    fn names_the_nearest_sizes_and_lengths() {
        let told = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            refusal(GRID, 100, 97),
            told("invalid width 100: expected a multiple of 32", "pass --width 96 or --width 128")
        );
        assert_eq!(
            refusal(GRID, 0, 97),
            told("invalid width 0: expected a multiple of 32", "pass --width 32")
        );
        assert_eq!(
            refusal(GRID, 96, 100),
            told("invalid frame count 100: expected 8k+1", "pass --frames 97 or --frames 105")
        );
        assert_eq!(refusal(GRID, 96, 0), told("invalid frame count 0: expected 8k+1", "pass --frames 1"));
        let joined = Geometry { patch: 2, patch_t: 2, ..GRID };
        assert_eq!(
            refusal(joined, 64, 17),
            told("invalid frame count 17: expected 16k+9", "pass --frames 9 or --frames 25")
        );
        assert!(GRID.check(&VideoSpec { width: 96, height: 64, frames: 97, fps: 0.0 }).is_err());
        GRID.check(&VideoSpec { width: 96, height: 64, frames: 1, fps: 8.0 })
            .expect("a still picture is valid");
    }

    #[test]
    fn grid_counts_latent_cells() {
        let spec = VideoSpec { width: 96, height: 64, frames: 97, fps: 24.0 };
        assert_eq!(GRID.grid(&spec), LatentGrid { frames: 13, height: 2, width: 3 });
        assert_eq!(GRID.latent_shape(&spec), [1, 128, 13, 2, 3]);
    }
}
