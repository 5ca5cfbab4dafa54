//! RMS norm over channels, modulation and SiLU in one pass: what stands before every convolution of a video
//! autoencoder.

use candle_core::{D, DType, Tensor};

use crate::{
    error::Result,
    nn::{
        kernel::{exp, expect_len, map_rows, sum, wide},
        norm::rms_norm,
    },
};

/// What a timestep does to normalised channels: `x · (1 + scale) + shift`, both `[C]`, f32.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// Added to one, then multiplied.
    pub scale: Tensor,
    /// Added.
    pub shift: Tensor,
}

/// `silu(x / sqrt(mean(x²) + eps) · (1 + scale) + shift)`, the mean over the last axis of `x`, `[.., C]`.
///
/// The result has the dtype of `x`; arithmetic is f32.
pub fn pixel_norm_silu(x: &Tensor, eps: f64, modulation: Option<&Modulation>) -> Result<Tensor> {
    if x.device().is_cpu() {
        let channels = x.dim(D::Minus1)?;
        let (gain, shift) = match modulation {
            Some(Modulation { scale, shift }) => ((scale + 1.0)?.to_vec1()?, shift.to_vec1()?),
            None => (vec![1.0; channels], vec![0.0; channels]),
        };
        expect_len("the scale of a pixel norm", gain.len(), channels)?;
        expect_len("the shift of a pixel norm", shift.len(), channels)?;
        return map_rows(x, |_, x, out| row(x, out, eps as f32, &gain, &shift));
    }
    let mut y = rms_norm(&x.to_dtype(DType::F32)?, None, eps)?;
    if let Some(Modulation { scale, shift }) = modulation {
        y = y.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)?;
    }
    Ok(y.silu()?.to_dtype(x.dtype())?)
}

wide! {
    fn row(x: &[f32], out: &mut [f32], eps: f32, gain: &[f32], shift: &[f32]) {
        let scale = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt();
        for (((out, x), gain), shift) in out.iter_mut().zip(x).zip(gain).zip(shift) {
            let v = x * scale * gain + shift;
            *out = v / (1.0 + exp(-v));
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn is_the_sum_of_its_parts() -> Result<()> {
        let device = Device::Cpu;
        for channels in [1, 7, 16, 50] {
            let x = Tensor::randn(0f32, 3.0, (5, 3, channels), &device)?;
            let modulation = Modulation {
                scale: Tensor::randn(0f32, 1.0, channels, &device)?,
                shift: Tensor::randn(0f32, 1.0, channels, &device)?,
            };
            let normed = rms_norm(&x, None, 1e-8)?;
            let moved =
                normed.broadcast_mul(&(&modulation.scale + 1.0)?)?.broadcast_add(&modulation.shift)?;
            for (expected, given) in [(normed, None), (moved, Some(&modulation))] {
                let gap =
                    (pixel_norm_silu(&x, 1e-8, given)? - expected.silu()?)?.abs()?.flatten_all()?.max(0)?;
                assert!(gap.to_scalar::<f32>()? < 2e-6, "{channels} channels: {gap}");
            }
        }
        Ok(())
    }
}
