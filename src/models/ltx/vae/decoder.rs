//! Latents → pictures.

use candle_core::{DType, Tensor};

use super::{
    blocks::{MidBlock, ResnetSpec, UpBlock, causal_conv, modulations, stored_conv},
    config::Config,
    stream::{Stage, Stream, piece},
};
use crate::{
    error::Result,
    models::api::DecodeNoise,
    nn::{
        conv3d::{Conv3d, ConvShape},
        embedding::TimestepEmbedder,
        pixel_norm::Modulation,
    },
    weights::Loader,
};

/// The decoder: everything below `decoder` in a checkpoint.
pub struct Decoder {
    conv_in: Conv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_out: Conv3d,
    time: Option<Time>,
    patch: usize,
    dtype: DType,
}

/// What a decoder that knows a timestep has beside its blocks.
struct Time {
    timestep_scale_multiplier: Tensor,
    time_embedder: TimestepEmbedder,
    /// `[2, C]`, f32.
    scale_shift_table: Tensor,
}

impl Decoder {
    /// Reads the weights below `w`.
    pub fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let blocks = cfg.up_blocks()?;
        let channels = &cfg.decoder_block_out_channels;
        let (causal, timestep) = (cfg.decoder_causal, cfg.timestep_conditioning);
        let first = channels[channels.len() - 1];
        let last = blocks.last().map_or(first, |block| block.c_out);
        let cube = ConvShape::cube(3, 1, causal);
        let mid =
            ResnetSpec { c_in: first, c_out: first, causal, inject_noise: cfg.injects_noise(0)?, timestep };
        let up_blocks = blocks.iter().enumerate();
        let up_blocks = up_blocks.map(|(i, spec)| UpBlock::new(cfg, spec, &w.pp("up_blocks").pp(i)));
        Ok(Self {
            conv_in: causal_conv(cfg.latent_channels, first, cube, &w.pp("conv_in"))?,
            mid_block: MidBlock::new(cfg, mid, cfg.decoder_layers(0)?, &w.pp("mid_block"))?,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_out: conv_out(cfg, last, cube, &w.pp("conv_out"))?,
            time: timestep.then(|| Time::new(last, w)).transpose()?,
            patch: cfg.patch_size,
            dtype: if w.device().is_cpu() { DType::F32 } else { w.dtype() },
        })
    }

    /// Latents `[C, f, h, w]`, not normalised → pictures `[3, F, H, W]`, f32, −1..1 but for outliers, a few frames at a time.
    ///
    /// `timestep` is 0..1; decoders that don't know one ignore it.
    pub fn each(
        &self,
        latents: &Tensor,
        timestep: f64,
        noise: &mut dyn DecodeNoise,
        emit: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let (_, _, h, w) = latents.dims4()?;
        self.in_pieces(latents, piece(h, w), timestep, noise, emit)
    }

    /// As [`Decoder::each`], `piece` latent frames at a time, which changes no number.
    pub fn in_pieces(
        &self,
        latents: &Tensor,
        piece: usize,
        timestep: f64,
        noise: &mut dyn DecodeNoise,
        emit: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        let time = self.time.as_ref().map(|time| time.scaled(timestep)).transpose()?;
        let x = latents.to_dtype(self.dtype)?.permute((1, 2, 3, 0))?.contiguous()?; // [F, H, W, C]
        let mut stages = vec![Stage::Conv(&self.conv_in)];
        self.mid_block.stages(time, &mut stages)?;
        self.up_blocks.iter().try_for_each(|block| block.stages(time, &mut stages))?;
        let modulation = match self.time.as_ref().zip(time) {
            Some((head, time)) => head.modulations(time)?.into_iter().next(),
            None => None,
        };
        stages.push(Stage::Out(&self.conv_out, modulation));
        Stream::new(stages).run(x, piece, &mut Some(noise), &mut |x| emit(self.pictures(&x)?))
    }

    /// `[F, h, w, 3·p·p]` → `[3, F, h·p, w·p]`.
    fn pictures(&self, x: &Tensor) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let p = self.patch;
        let c = c / (p * p);
        let x = x.to_dtype(DType::F32)?.reshape((f, h, w, c, p, p))?;
        Ok(x.permute((3, 0, 1, 4, 2, 5))?.reshape((c, f, h * p, w * p))?) // [3, F, H, W]
    }
}

impl Time {
    fn new(channels: usize, w: &Loader) -> Result<Self> {
        Ok(Self {
            timestep_scale_multiplier: w.get(&[], "timestep_scale_multiplier")?,
            time_embedder: TimestepEmbedder::new(2 * channels, &w.pp("time_embedder.timestep_embedder"))?,
            scale_shift_table: w.get_f32(&[2, channels], "scale_shift_table")?,
        })
    }

    /// The timestep times its multiplier, rounded as the weights' dtype rounds it.
    fn scaled(&self, timestep: f64) -> Result<f32> {
        let multiplier = &self.timestep_scale_multiplier;
        let timestep = Tensor::new(timestep as f32, multiplier.device())?.to_dtype(multiplier.dtype())?;
        Ok((timestep * multiplier)?.to_dtype(DType::F32)?.to_scalar()?)
    }

    fn modulations(&self, time: f32) -> Result<Vec<Modulation>> {
        let embedded = self.time_embedder.forward(&[time])?.to_dtype(DType::F32)?;
        modulations(&self.scale_shift_table, &embedded)
    }
}

/// Stored: a patch's columns come before its rows. Used: rows first, as pictures lie in memory.
fn conv_out(cfg: &Config, c_in: usize, shape: ConvShape, w: &Loader) -> Result<Conv3d> {
    let (p, c) = (cfg.patch_size, cfg.out_channels);
    let (weight, bias) = stored_conv(c_in, c * p * p, shape, w)?;
    let rows_first = |x: &Tensor| x.reshape((c, p, p, ()))?.transpose(1, 2)?.reshape(x.dims());
    Conv3d::new(&rows_first(&weight)?, &rows_first(&bias)?, shape)
}
