//! RMS norm over channels, modulation and SiLU in one pass: what stands before every convolution of a video
//! autoencoder.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Shape, Tensor, bail};
use rayon::prelude::*;

use super::norm::rms_norm;
use crate::error::Result;

/// Numbers that are worth handing to another core.
const GRAIN: usize = 1 << 14;
/// Partial sums kept side by side.
const LANES: usize = 16;

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
/// The result has the dtype of `x`, which is f32 on a CPU.
pub fn pixel_norm_silu(x: &Tensor, eps: f64, modulation: Option<&Modulation>) -> Result<Tensor> {
    if x.device().is_cpu() {
        let channels = x.dim(D::Minus1)?;
        let (gain, shift) = match modulation {
            Some(Modulation { scale, shift }) => ((scale + 1.0)?.to_vec1()?, shift.to_vec1()?),
            None => (vec![1.0; channels], vec![0.0; channels]),
        };
        return Ok(x.contiguous()?.apply_op1_no_bwd(&Rows { eps: eps as f32, gain, shift })?);
    }
    let mut y = rms_norm(&x.to_dtype(DType::F32)?, None, eps)?;
    if let Some(Modulation { scale, shift }) = modulation {
        y = y.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)?;
    }
    Ok(y.silu()?.to_dtype(x.dtype())?)
}

struct Rows {
    eps: f32,
    gain: Vec<f32>,
    shift: Vec<f32>,
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "pixel-norm-silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a pixel norm of strided rows") };
        let x = &x.as_slice::<f32>()?[start..end];
        let channels = self.gain.len();
        if layout.dims().last() != Some(&channels) || self.shift.len() != channels {
            bail!("a pixel norm of {:?} with {channels} gains", layout.dims());
        }
        let run = self.widest();
        let mut y = vec![0f32; x.len()];
        let rows = (GRAIN / channels).max(1) * channels;
        y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| run(self, x, y));
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }
}

impl Rows {
    /// [`Rows::run`], compiled for the widest vectors that this processor has.
    fn widest(&self) -> impl Fn(&Self, &[f32], &mut [f32]) + Sync + use<> {
        #[cfg(target_arch = "x86_64")]
        let (avx512, avx2) = (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2"));
        move |rows, x, y| {
            #[cfg(target_arch = "x86_64")]
            if avx512 {
                // SAFETY: the processor has AVX-512.
                return unsafe { rows.run_avx512(x, y) };
            } else if avx2 {
                // SAFETY: the processor has AVX2.
                return unsafe { rows.run_avx2(x, y) };
            }
            rows.run(x, y);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn run_avx512(&self, x: &[f32], y: &mut [f32]) {
        self.run(x, y);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn run_avx2(&self, x: &[f32], y: &mut [f32]) {
        self.run(x, y);
    }

    #[inline(always)]
    fn run(&self, x: &[f32], y: &mut [f32]) {
        let channels = self.gain.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let scale = 1.0 / (sum_of_squares(x) / channels as f32 + self.eps).sqrt();
            for (((y, x), gain), shift) in y.iter_mut().zip(x).zip(&self.gain).zip(&self.shift) {
                let v = x * scale * gain + shift;
                *y = v / (1.0 + exp(-v));
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += x * x;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// `eˣ` without a branch or a call, so that a loop over it becomes vectors: within 2 ulp where eˣ is a normal
/// number, clamped beyond.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding and taking it away again rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first with few digits, so that whole multiples of it are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    // The series of eʳ, its coefficients fitted to |r| ≤ ln 2 / 2.
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_3e-1;
    let p = p * (r * r) + r + 1.0;
    // The last bits of `rounded` are n, within ±127: moved to where an exponent stands, they make 2ⁿ.
    p * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn exp_is_close() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }

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
