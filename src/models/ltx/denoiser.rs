//! [`Denoiser`] of the family: tokens, positions and texts around the transformer.

use candle_core::{DType, Device, Tensor};

use super::transformer::{LtxTransformer, TextContext, TimeContext};
use crate::{
    error::Result,
    models::api::{ClipContext, Denoiser, Geometry, LatentGrid, Skip, StepCache, Timestep, TokenBlock},
    nn::rope::Rotary,
};

/// Whose arithmetic says where a token is. The two differ in where the first frame ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum PositionRule {
    /// `LTXPipeline`: latent frame × temporal ratio.
    LtxPipeline,
    /// `LTXConditionPipeline`: the pixel frame that a latent frame starts at; the first has one alone.
    LtxConditionPipeline,
}

impl PositionRule {
    /// Coordinates `[3, L]`, f32, of a block's tokens in their order: seconds, then pixels from the top and from
    /// the left of a picture in which the block begins at the latent row and column `origin`.
    pub fn coordinates(
        self,
        block: TokenBlock,
        origin: (usize, usize),
        geometry: &Geometry,
        fps: f64,
    ) -> Result<Tensor> {
        let Geometry { spatial, temporal, patch, patch_t, .. } = *geometry;
        let TokenBlock { grid, frame: start } = block;
        let second = |i: usize| match self {
            // In the reference's order, each step rounded to f32.
            Self::LtxPipeline => {
                i as f32 * (temporal as f64 / fps) as f32 * patch_t as f32 + (start as f64 / fps) as f32
            }
            Self::LtxConditionPipeline => {
                let frame = start + (i * patch_t * temporal + 1).saturating_sub(temporal);
                frame as f32 * (1.0 / fps) as f32
            }
        };
        let pixel = |i: usize, origin: usize| ((origin + i * patch) * spatial) as f32;
        let (f, h, w) = (grid.frames / patch_t, grid.height / patch, grid.width / patch);
        let mut coords = Vec::with_capacity(3 * f * h * w);
        coords.extend((0..f * h * w).map(|token| second(token / (h * w))));
        coords.extend((0..f * h * w).map(|token| pixel(token / w % h, origin.0)));
        coords.extend((0..f * h * w).map(|token| pixel(token % w, origin.1)));
        Ok(Tensor::from_vec(coords, (3, f * h * w), &Device::Cpu)?)
    }
}

/// The transformer as the denoise loop sees it.
pub struct LtxDenoiser {
    transformer: LtxTransformer,
    geometry: Geometry,
    rule: PositionRule,
    clip: Option<Clip>,
    cache: StepCache,
}

/// What [`Denoiser::begin`] leaves for every step.
struct Clip {
    rotary: Rotary,
    texts: Vec<TextContext>,
    /// The last shared time and what it came to: branches of a step ask for the same.
    time: Option<(f32, TimeContext)>,
}

impl LtxDenoiser {
    /// `geometry` has the ratios of the VAE and the patch sizes of the transformer.
    #[must_use]
    pub fn new(transformer: LtxTransformer, geometry: Geometry, rule: PositionRule) -> Self {
        Self { transformer, geometry, rule, clip: None, cache: StepCache::default() }
    }
}

impl Denoiser for LtxDenoiser {
    fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        let (b, c, f, h, w) = latents.dims5()?;
        let (p, t) = (self.geometry.patch, self.geometry.patch_t);
        if p == 1 && t == 1 {
            return Ok(latents.flatten_from(2)?.transpose(1, 2)?.contiguous()?); // [B, F·H·W, C]
        }
        let x = latents.reshape(&[b, c, f / t, t, h / p, p, w / p, p][..])?;
        let x = x.permute(&[0, 2, 4, 6, 1, 3, 5, 7][..])?; // [B, F/t, H/p, W/p, C, t, p, p]
        Ok(x.reshape((b, (f / t) * (h / p) * (w / p), c * t * p * p))?) // [B, L, D]
    }

    fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor> {
        let (b, _, d) = tokens.dims3()?;
        let (p, t) = (self.geometry.patch, self.geometry.patch_t);
        let LatentGrid { frames: f, height: h, width: w } = grid;
        let c = d / (t * p * p);
        if p == 1 && t == 1 {
            return Ok(tokens.transpose(1, 2)?.reshape((b, c, f, h, w))?); // [B, C, F, H, W]
        }
        let x = tokens.reshape(&[b, f / t, h / p, w / p, c, t, p, p][..])?;
        let x = x.permute(&[0, 4, 1, 5, 2, 6, 3, 7][..])?; // [B, C, F/t, t, H/p, p, W/p, p]
        Ok(x.reshape((b, c, f, h, w))?) // [B, C, F, H, W]
    }

    fn begin(&mut self, clip: &ClipContext) -> Result<()> {
        self.clip = None;
        let blocks = clip.before.iter().copied().chain([TokenBlock { grid: clip.grid, frame: 0 }]);
        let coords = blocks.map(|block| self.rule.coordinates(block, clip.origin, &self.geometry, clip.fps));
        let coords = Tensor::cat(&coords.collect::<Result<Vec<_>>>()?, 1)?; // [3, L]
        let rotary = self.transformer.positions(&coords)?;
        let text = |text: &crate::models::api::TextStates| self.transformer.text(&text.states, &text.mask);
        let texts = clip.texts.iter().map(text).collect::<Result<_>>()?;
        self.clip = Some(Clip { rotary, texts, time: None });
        Ok(())
    }

    fn velocity(&mut self, tokens: &Tensor, timestep: &Timestep, branch: usize) -> Result<Tensor> {
        self.run(tokens, timestep, branch, None)
    }

    fn perturbed(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        branch: usize,
        skip: &Skip,
    ) -> Result<Tensor> {
        self.run(tokens, timestep, branch, Some(skip))
    }

    fn step_cache(&mut self) -> Option<&mut StepCache> {
        Some(&mut self.cache)
    }
}

impl LtxDenoiser {
    fn run(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        branch: usize,
        skip: Option<&Skip>,
    ) -> Result<Tensor> {
        let (_, l, _) = tokens.dims3()?;
        let Some(clip) = &mut self.clip else {
            return Err(candle_core::Error::msg("a velocity was asked for before `begin`").bt().into());
        };
        let Some(text) = clip.texts.get(branch) else {
            let what = format!("text {branch} was asked for, the clip has {}", clip.texts.len());
            return Err(candle_core::Error::msg(what).bt().into());
        };
        let time = match timestep {
            Timestep::PerToken(times) => self.transformer.times(times, l)?,
            Timestep::Shared(value) => match &clip.time {
                Some((known, time)) if known.to_bits() == value.to_bits() => time.clone(),
                _ => {
                    let time = self.transformer.times(&Tensor::new(&[*value], &Device::Cpu)?, l)?;
                    clip.time = Some((*value, time.clone()));
                    time
                }
            },
        };
        let device = tokens.device();
        let tokens = tokens.to_device(self.transformer.device())?;
        let velocity = self.transformer.forward_with(
            &tokens,
            text,
            &time,
            &clip.rotary,
            skip,
            self.cache.branch(branch, skip),
        )?;
        Ok(velocity.to_dtype(DType::F32)?.to_device(device)?)
    }
}
