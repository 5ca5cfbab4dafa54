//! The autoencoder as the pipeline uses it: normalised latents, tiles, and pictures that leave as they are made.

use candle_core::{DType, Device, Tensor};

use super::{
    config::Config,
    decoder::Decoder,
    encoder::Encoder,
    tiling::{Cuts, Joiner},
};
use crate::{
    error::{Error, Result},
    models::api::{DecodeNoise, DecodeOptions, Posterior, Tiling, VideoDecoder, VideoEncoder},
    weights::Loader,
};

/// Frames that leave the decoder at a time.
const EMITTED: usize = 8;

/// Latents → pictures, with a decoder of any generation.
pub struct LtxVideoDecoder {
    cfg: Config,
    decoder: Decoder,
    statistics: Statistics,
    device: Device,
    dtype: DType,
}

/// Pictures → latents.
pub struct LtxVideoEncoder {
    cfg: Config,
    encoder: Encoder,
    statistics: Statistics,
    device: Device,
}

/// What lies between the autoencoder's latents and those that the denoiser sees.
struct Statistics {
    /// `[C, 1, 1, 1]`, f32.
    mean: Tensor,
    /// `[C, 1, 1, 1]`, f32.
    std: Tensor,
    scaling_factor: f64,
}

impl Statistics {
    fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let read = |key: &str| -> Result<Tensor> {
            Ok(w.get_f32(&[cfg.latent_channels], key)?.reshape(((), 1, 1, 1))?)
        };
        let (mean, std) = (read("latents_mean")?, read("latents_std")?);
        Ok(Self { mean, std, scaling_factor: cfg.scaling_factor })
    }

    fn denormalise(&self, latents: &Tensor) -> Result<Tensor> {
        let scaled = (latents.broadcast_mul(&self.std)? / self.scaling_factor)?;
        Ok(scaled.broadcast_add(&self.mean)?)
    }

    /// Moments `[C + 1, f, h, w]` as the denoiser sees latents. The reference's pipelines leave the scaling factor
    /// out of what they are conditioned on.
    fn posterior(&self, moments: &Tensor) -> Result<Posterior> {
        let channels = moments.dim(0)? - 1;
        let mean = moments.narrow(0, 0, channels)?.broadcast_sub(&self.mean)?.broadcast_div(&self.std)?;
        let log_variance = moments.narrow(0, channels, 1)?.clamp(-30f32, 20f32)?;
        let std = (log_variance * 0.5)?.exp()?.broadcast_as(mean.shape())?.broadcast_div(&self.std)?;
        Ok(Posterior { mean: mean.unsqueeze(0)?, std: std.unsqueeze(0)? })
    }
}

impl LtxVideoDecoder {
    /// Reads the decoder; `w` is at the root of the autoencoder's weights. Decoder weights that nothing reads are
    /// an error.
    pub fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let below = w.pp("decoder");
        let decoder = Decoder::new(cfg, &below)?;
        below.finish(&[])?;
        let (device, dtype) = (w.device().clone(), w.dtype());
        Ok(Self { cfg: cfg.clone(), decoder, statistics: Statistics::new(cfg, w)?, device, dtype })
    }

    /// What the decoder starts from: `[C, F, H, W]`, f32, no longer normalised, with noise if it wants some.
    fn prepare(
        &self,
        latents: &Tensor,
        noise: &mut dyn DecodeNoise,
        options: &DecodeOptions,
    ) -> Result<Tensor> {
        let (b, c, ..) = latents.dims5()?;
        if b != 1 || c != self.cfg.latent_channels {
            let why = format!("expected [1, {}, F, H, W]", self.cfg.latent_channels);
            return Err(Error::invalid(format!("latents of shape {:?}", latents.dims()), why));
        }
        let z = latents.to_device(&self.device)?.to_dtype(DType::F32)?.squeeze(0)?;
        let z = self.statistics.denormalise(&z)?;
        if !self.cfg.timestep_conditioning {
            return Ok(z);
        }
        // The reference mixes in the dtype of the text encoder's states.
        let z = z.to_dtype(self.dtype)?;
        let drawn = noise.latents(latents.dims())?.squeeze(0)?;
        let drawn = drawn.to_device(&self.device)?.to_dtype(self.dtype)?;
        let share = options.noise_scale.unwrap_or(options.timestep);
        let share = Tensor::new(share as f32, &self.device)?.to_dtype(self.dtype)?;
        let rest = (1.0 - &share)?;
        let mixed = (z.broadcast_mul(&rest)? + drawn.broadcast_mul(&share)?)?;
        Ok(mixed.to_dtype(DType::F32)?)
    }
}

impl VideoDecoder for LtxVideoDecoder {
    fn decode(
        &mut self,
        latents: &Tensor,
        noise: &mut dyn DecodeNoise,
        options: &DecodeOptions,
        emit: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let cuts = Cuts::decoding(&self.cfg, &options.tiling)?;
        let z = self.prepare(latents, noise, options)?;
        let frames = z.dim(1)?;
        let mut emit = |video: &Tensor| -> Result<()> {
            let frames = video.dim(1)?;
            let mut starts = (0..frames).step_by(EMITTED);
            starts.try_for_each(|start| emit(&video.narrow(1, start, EMITTED.min(frames - start))?))
        };
        let temporal = cuts.temporal.filter(|cut| frames > cut.tile);
        if temporal.is_none() && cuts.spatial.is_none() {
            return self.decoder.each(&z, options.timestep, noise, &mut |video| emit(&video));
        }
        let ratio = self.cfg.temporal();
        let mut decode = |z: &Tensor| {
            cuts.over_space(z, (z.dim(1)? - 1) * ratio + 1, &mut |tile, emit| {
                self.decoder.each(tile, options.timestep, &mut *noise, emit)
            })
        };
        let Some(cut) = temporal else {
            return emit(&decode(&z)?);
        };
        let mut joiner = Joiner::new(cut, (frames - 1) * ratio + 1);
        for start in (0..frames).step_by(cut.step) {
            // Tiles share a latent frame, which makes one picture too many in each but the first.
            let length = (cut.tile + 1).min(frames - start);
            if start > 0 && length == 1 {
                break;
            }
            let first = start.saturating_sub(cuts.context);
            let last = (start + length + cuts.context).min(frames);
            let video = decode(&z.narrow(1, first, last - first)?)?;
            let video = video.narrow(1, (start - first) * ratio, (length - 1) * ratio + 1)?;
            let made = video.dim(1)? - usize::from(start > 0);
            // The picture too many is the first, which the tile before ends with. The reference drops the last
            // one and so shows a picture twice at each seam, which only its own tiles are held to.
            let skipped = usize::from(start > 0 && cuts.context > 0);
            joiner.push(video.narrow(1, skipped, made)?)?.iter().try_for_each(&mut emit)?;
        }
        Ok(())
    }
}

impl LtxVideoEncoder {
    /// Reads the encoder; `w` is at the root of the autoencoder's weights. Encoder weights that nothing reads are
    /// an error.
    pub fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let below = w.pp("encoder");
        let encoder = Encoder::new(cfg, &below)?;
        below.finish(&[])?;
        Ok(Self {
            cfg: cfg.clone(),
            encoder,
            statistics: Statistics::new(cfg, w)?,
            device: w.device().clone(),
        })
    }

    fn check(&self, video: &Tensor) -> Result<()> {
        let (b, c, f, h, w) = video.dims5()?;
        let (side, length) = (self.cfg.spatial(), self.cfg.temporal());
        let fits = f % length == 1 % length && f > 0 && h % side == 0 && w % side == 0 && h * w > 0;
        if b != 1 || c != self.cfg.in_channels || !fits {
            let why = format!("expected [1, 3, {length}k + 1, {side}m, {side}n]");
            return Err(Error::invalid(format!("video of shape {:?}", video.dims()), why));
        }
        Ok(())
    }
}

impl VideoEncoder for LtxVideoEncoder {
    fn encode(&mut self, video: &Tensor, tiling: &Tiling) -> Result<Posterior> {
        let cuts = Cuts::encoding(&self.cfg, tiling)?;
        self.check(video)?;
        let video = video.to_device(&self.device)?.to_dtype(DType::F32)?.squeeze(0)?;
        let frames = video.dim(1)?;
        let ratio = self.cfg.temporal();
        let encode = |video: &Tensor| -> Result<Tensor> {
            let frames = (video.dim(1)? - 1) / ratio + 1;
            let moments =
                cuts.over_space(video, frames, &mut |tile, emit| emit(self.encoder.forward(tile)?))?;
            Ok(moments.to_device(&self.device)?)
        };
        let moments = match cuts.temporal.filter(|cut| frames > cut.tile) {
            None => encode(&video)?,
            Some(cut) => {
                let mut joiner = Joiner::new(cut, (frames - 1) / ratio + 1);
                let mut parts = Vec::new();
                for start in (0..frames).step_by(cut.step) {
                    // Tiles share a frame, which makes a latent frame of its own: only the first one's counts.
                    let length = (cut.tile + 1).min(frames - start);
                    if start > 0 && length == 1 {
                        break;
                    }
                    let made = encode(&video.narrow(1, start, length)?)?;
                    let skip = usize::from(start > 0);
                    parts.extend(joiner.push(made.narrow(1, skip, made.dim(1)? - skip)?)?);
                }
                Tensor::cat(&parts, 1)?
            }
        };
        self.statistics.posterior(&moments)
    }
}
