//! Convolutions and resnets around a rearrangement of channels. Clips are `[F, H, W, C]`, channels last.

use candle_core::{DType, Tensor};

use super::config::{GROUPS, UpsamplerConfig};
use crate::{
    error::Result,
    nn::{
        activation::silu,
        conv3d::{Conv3d, ConvShape},
        group_norm::GroupNorm,
    },
    weights::Loader,
};

/// Latents → larger latents, both as the autoencoder has them.
pub struct Upsampler {
    initial_conv: Conv,
    initial_norm: Norm,
    res_blocks: Vec<ResBlock>,
    /// `upsampler.0`
    upsampler: Conv,
    post_upsample_res_blocks: Vec<ResBlock>,
    final_conv: Conv,
    /// Factors over frames, and over rows and columns.
    factor_t: usize,
    factor: usize,
    dtype: DType,
}

impl Upsampler {
    /// Reads all weights below `w`; the caller ends with `w.finish`.
    pub fn new(cfg: &UpsamplerConfig, w: &Loader) -> Result<Self> {
        let (outer, mid, dims) = (cfg.in_channels, cfg.mid_channels, cfg.dims);
        let (factor, factor_t) = cfg.factors();
        let stage = |name: &str| -> Result<Vec<ResBlock>> {
            let below = w.pp(name);
            (0..cfg.num_blocks_per_stage).map(|i| ResBlock::new(mid, dims, &below.pp(i))).collect()
        };
        // One that only enlarges frames' sides works on one frame at a time.
        let dims_up = if factor_t > 1 { 3 } else { 2 };
        let cells = factor_t * factor * factor;
        Ok(Self {
            initial_conv: Conv::new(outer, mid, dims, &w.pp("initial_conv"))?,
            initial_norm: Norm::new(mid, dims, &w.pp("initial_norm"))?,
            res_blocks: stage("res_blocks")?,
            upsampler: Conv::new(mid, cells * mid, dims_up, &w.pp("upsampler").pp(0))?,
            post_upsample_res_blocks: stage("post_upsample_res_blocks")?,
            final_conv: Conv::new(mid, outer, dims, &w.pp("final_conv"))?,
            factor_t,
            factor,
            dtype: if w.device().is_cpu() { DType::F32 } else { w.dtype() },
        })
    }

    /// `[C, F, H, W]` → `[C, f, h, w]`, f32.
    pub fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, _, _) = latents.dims4()?;
        let x = latents.to_dtype(self.dtype)?.permute((1, 2, 3, 0))?.contiguous()?; // [F, H, W, C]
        let x = silu(&self.initial_norm.forward(&self.initial_conv.forward(&x)?)?)?;
        let x = self.res_blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
        let x = self.spread(&self.upsampler.forward(&x)?)?;
        let x = self.post_upsample_res_blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
        let x = self.final_conv.forward(&x)?.permute((3, 0, 1, 2))?; // [C, f, h, w]
        Ok(x.to_dtype(DType::F32)?.contiguous()?)
    }

    /// Channels that stand for cells become cells: the place in time changes slowest, the column fastest. The first
    /// frame stands for one picture, so that one of its two copies goes.
    fn spread(&self, x: &Tensor) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let (t, s) = (self.factor_t, self.factor);
        let c = c / (t * s * s);
        let x = x.reshape(&[f, h, w, c, t, s, s][..])?;
        let x = x.permute(&[0, 4, 1, 5, 2, 6, 3][..])?; // [F, t, H, s, W, s, C]
        let x = x.reshape((f * t, h * s, w * s, c))?;
        Ok(x.narrow(0, t - 1, f * t - (t - 1))?.contiguous()?)
    }
}

/// A convolution with zeros on all sides, before the first frame and after the last one, too.
struct Conv {
    conv: Conv3d,
    frames: bool,
}

impl Conv {
    /// `dims` is 3, or 2 for one that sees one frame at a time.
    fn new(c_in: usize, c_out: usize, dims: usize, w: &Loader) -> Result<Self> {
        let frames = dims == 3;
        let kernel_t = if frames { 3 } else { 1 };
        let shape = ConvShape { kernel_t, kernel: 3, stride_t: 1, stride: 1, causal: false };
        let weight = if frames {
            w.get(&[c_out, c_in, 3, 3, 3], "weight")?
        } else {
            w.get(&[c_out, c_in, 3, 3], "weight")?.unsqueeze(2)?
        };
        Ok(Self { conv: Conv3d::new(&weight, &w.get_f32(&[c_out], "bias")?, shape)?, frames })
    }

    /// `[F, H, W, C]`. The convolution itself repeats the frames at the ends: frames of zeros there keep it from that.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !self.frames {
            return self.conv.forward(x);
        }
        let y = self.conv.forward(&x.pad_with_zeros(0, 1, 1)?)?;
        Ok(y.narrow(0, 1, x.dim(0)?)?.contiguous()?)
    }
}

/// A group norm over whole clips, or over one frame at a time.
struct Norm {
    norm: GroupNorm,
    frames: bool,
}

impl Norm {
    fn new(channels: usize, dims: usize, w: &Loader) -> Result<Self> {
        Ok(Self { norm: GroupNorm::new(GROUPS, channels, w)?, frames: dims == 3 })
    }

    /// `[F, H, W, C]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let rows = if self.frames { (1, f * h * w, c) } else { (f, h * w, c) };
        Ok(self.norm.forward(&x.reshape(rows)?)?.reshape((f, h, w, c))?)
    }
}

/// Two convolutions beside a skip connection.
struct ResBlock {
    conv1: Conv,
    norm1: Norm,
    conv2: Conv,
    norm2: Norm,
}

impl ResBlock {
    fn new(channels: usize, dims: usize, w: &Loader) -> Result<Self> {
        Ok(Self {
            conv1: Conv::new(channels, channels, dims, &w.pp("conv1"))?,
            norm1: Norm::new(channels, dims, &w.pp("norm1"))?,
            conv2: Conv::new(channels, channels, dims, &w.pp("conv2"))?,
            norm2: Norm::new(channels, dims, &w.pp("norm2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = silu(&self.norm1.forward(&self.conv1.forward(x)?)?)?;
        let y = self.norm2.forward(&self.conv2.forward(&y)?)?;
        silu(&(x + y)?)
    }
}
