//! Pictures → the latents' distribution.

use candle_core::{DType, Tensor};

use super::{
    blocks::{DownBlock, MidBlock, NORM_EPS, ResnetSpec, causal_conv, stored_conv},
    config::Config,
};
use crate::{
    error::Result,
    nn::{
        conv3d::{Conv3d, ConvShape},
        pixel_norm::pixel_norm_silu,
    },
    weights::Loader,
};

/// The encoder: everything below `encoder` in a checkpoint.
pub struct Encoder {
    conv_in: Conv3d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_out: Conv3d,
    patch: usize,
    dtype: DType,
}

impl Encoder {
    /// Reads the weights below `w`.
    pub fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let blocks = cfg.down_blocks()?;
        let (causal, latent_channels) = (cfg.encoder_causal, cfg.latent_channels);
        let (first, layers) = (cfg.block_out_channels[0], &cfg.layers_per_block);
        let last = blocks.last().map_or(first, |block| block.c_out);
        let cube = ConvShape::cube(3, 1, causal);
        let down_blocks = blocks.iter().enumerate();
        let down_blocks = down_blocks.map(|(i, spec)| DownBlock::new(cfg, spec, &w.pp("down_blocks").pp(i)));
        let mid = ResnetSpec { c_in: last, c_out: last, causal, inject_noise: false, timestep: false };
        Ok(Self {
            conv_in: conv_in(cfg, first, cube, &w.pp("conv_in"))?,
            down_blocks: down_blocks.collect::<Result<_>>()?,
            mid_block: MidBlock::new(cfg, mid, layers[layers.len() - 1], &w.pp("mid_block"))?,
            // One channel more than the latents have: the logarithm of the variance, which all of them share.
            conv_out: causal_conv(last, latent_channels + 1, cube, &w.pp("conv_out"))?,
            patch: cfg.patch_size,
            dtype: if w.device().is_cpu() { DType::F32 } else { w.dtype() },
        })
    }

    /// Pictures `[3, F, H, W]` → means of the latents, and the logarithm of the variance that a cell's channels
    /// share: `[C + 1, f, h, w]`, f32.
    pub fn forward(&self, video: &Tensor) -> Result<Tensor> {
        let (c, f, h, w) = video.dims4()?;
        let p = self.patch;
        let x = video.to_dtype(self.dtype)?.reshape((c, f, h / p, p, w / p, p))?;
        let x = x.permute((1, 2, 4, 0, 3, 5))?.reshape((f, h / p, w / p, c * p * p))?; // [F, h, w, C]
        let x = self.conv_in.forward(&x)?;
        let x = self.down_blocks.iter().try_fold(x, |x, block| block.forward(x))?;
        let x = self.mid_block.forward(x)?;
        let x = self.conv_out.forward(&pixel_norm_silu(&x, NORM_EPS, None)?)?;
        let moments = x.permute((3, 0, 1, 2))?; // [C + 1, f, h, w]
        Ok(moments.to_dtype(DType::F32)?.contiguous()?)
    }
}

/// Stored: a patch's columns come before its rows. Used: rows first, as pictures lie in memory.
fn conv_in(cfg: &Config, c_out: usize, shape: ConvShape, w: &Loader) -> Result<Conv3d> {
    let p = cfg.patch_size;
    let (weight, bias) = stored_conv(cfg.in_channels * p * p, c_out, shape, w)?;
    let rows_first = weight.reshape((c_out, cfg.in_channels, p, p, ()))?.transpose(2, 3)?;
    Conv3d::new(&rows_first.reshape(weight.dims())?, &bias, shape)
}
