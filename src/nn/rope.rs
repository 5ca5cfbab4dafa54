//! Rotary position embedding on interleaved pairs of channels.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use crate::{
    error::Result,
    nn::{
        kernel::{Values, expect_len, map_rows, sum, wide, widen},
        norm,
    },
};

/// Cosines and sines of the angles that each token's pairs of channels are turned by.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `[1 or B, L, C/2]`, f32, contiguous.
    cos: Tensor,
    /// As `cos`.
    sin: Tensor,
}

impl Rotary {
    /// From angles, `[B, L, C/2]` values in radians; `b` may be 1 for any batch.
    ///
    /// Cosine and sine are taken in f64: phases of thousands of turns lose nothing beyond their own rounding.
    pub fn from_angles(angles: &[f32], b: usize, l: usize, pairs: usize, device: &Device) -> Result<Self> {
        expect_len("the list of angles", angles.len(), b * l * pairs)?;
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .par_iter()
            .map(|&angle| {
                let (sin, cos) = f64::from(angle).sin_cos();
                (cos as f32, sin as f32)
            })
            .unzip();
        Ok(Self {
            cos: Tensor::from_vec(cos, (b, l, pairs), &Device::Cpu)?.to_device(device)?,
            sin: Tensor::from_vec(sin, (b, l, pairs), &Device::Cpu)?.to_device(device)?,
        })
    }

    /// Turns `x` `[B, L, C]`, all heads side by side; the dtype stays, arithmetic is f32.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.apply_plain(x);
        }
        self.rows(x, |cos, sin| map_rows(x, |i, x, out| rotate_row(x, 1.0, None, cos(i), sin(i), out)))
    }

    /// `apply(rms_norm(x, weight, eps))` in one pass.
    pub fn apply_normed(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.apply_plain(&norm::rms_norm(x, Some(weight), eps)?);
        }
        let weight = widen(weight)?;
        let weight = Values::<f32>::contiguous(&weight)?;
        let c = x.dim(D::Minus1)?;
        expect_len("the weight of a norm", weight.len(), c)?;
        let weight = &weight[..];
        self.rows(x, |cos, sin| {
            map_rows(x, |i, x, out| {
                let scale = 1.0 / (mean_square(x) + eps as f32).sqrt();
                rotate_row(x, scale, Some(weight), cos(i), sin(i), out);
            })
        })
    }

    /// Hands `run` the rows of both tables by token, once they have been checked against `x`.
    fn rows(
        &self,
        x: &Tensor,
        run: impl for<'v> FnOnce(
            &(dyn Fn(usize) -> &'v [f32] + Sync + 'v),
            &(dyn Fn(usize) -> &'v [f32] + Sync + 'v),
        ) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (b, l, c) = x.dims3()?;
        let (batch, tokens, pairs) = self.cos.dims3()?;
        expect_len("the position table of a token", pairs * 2, c)?;
        expect_len("the position table", batch * tokens, if batch == 1 { l } else { b * l })?;
        let (cos, sin) = (Values::<f32>::contiguous(&self.cos)?, Values::<f32>::contiguous(&self.sin)?);
        let (cos, sin) = (&cos[..], &sin[..]);
        let range = move |token: usize| {
            let row = token % (batch * tokens);
            row * pairs..(row + 1) * pairs
        };
        run(&move |token| &cos[range(token)], &move |token| &sin[range(token)])
    }

    fn apply_plain(&self, x: &Tensor) -> Result<Tensor> {
        let (b, l, c) = x.dims3()?;
        let pairs = x.to_dtype(DType::F32)?.reshape((b, l, c / 2, 2))?; // [B, L, C/2, 2]
        let (even, odd) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
        let turned_even = (even.broadcast_mul(&self.cos)? - odd.broadcast_mul(&self.sin)?)?;
        let turned_odd = (odd.broadcast_mul(&self.cos)? + even.broadcast_mul(&self.sin)?)?;
        let turned = Tensor::stack(&[turned_even, turned_odd], 3)?; // [B, L, C/2, 2]
        Ok(turned.reshape((b, l, c))?.to_dtype(x.dtype())?)
    }
}

wide! {
    fn mean_square(x: &[f32]) -> f32 {
        sum(x, |x| x * x) / x.len() as f32
    }

    fn rotate_row(x: &[f32], scale: f32, weight: Option<&[f32]>, cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let (x, _) = x.as_chunks::<2>();
        let (out, _) = out.as_chunks_mut::<2>();
        match weight {
            None => {
                for (((out, x), cos), sin) in out.iter_mut().zip(x).zip(cos).zip(sin) {
                    let [even, odd] = *x;
                    *out = [even * cos - odd * sin, odd * cos + even * sin];
                }
            }
            Some(weight) => {
                let (weight, _) = weight.as_chunks::<2>();
                for ((((out, x), w), cos), sin) in out.iter_mut().zip(x).zip(weight).zip(cos).zip(sin) {
                    let (even, odd) = (x[0] * scale * w[0], x[1] * scale * w[1]);
                    *out = [even * cos - odd * sin, odd * cos + even * sin];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(shape: &[usize], phase: f64) -> Tensor {
        let n = shape.iter().product::<usize>() as f32;
        let t = Tensor::arange(0f32, n, &Device::Cpu).unwrap();
        t.affine(0.61, phase).unwrap().sin().unwrap().reshape(shape).unwrap()
    }

    fn gap(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    #[test]
    fn fused_is_plain() {
        for batch in [1, 2] {
            let angles: Vec<f32> = (0..batch * 5 * 11).map(|i| i as f32 * 31.7 - 800.0).collect();
            let rotary = Rotary::from_angles(&angles, batch, 5, 11, &Device::Cpu).unwrap();
            let (x, weight) = (wave(&[2, 5, 22], 0.3), wave(&[22], 1.0));
            assert!(gap(&rotary.apply(&x).unwrap(), &rotary.apply_plain(&x).unwrap()) < 1e-6);
            let normed = norm::rms_norm(&x, Some(&weight), 1e-5).unwrap();
            let fused = rotary.apply_normed(&x, &weight, 1e-5).unwrap();
            assert!(gap(&fused, &rotary.apply_plain(&normed).unwrap()) < 1e-6);
        }
    }

    #[test]
    fn turning_keeps_lengths() {
        let rotary = Rotary::from_angles(&[0.0, 0.5, 1.0, 15_000.0], 1, 1, 4, &Device::Cpu).unwrap();
        let x = wave(&[1, 1, 8], 0.9);
        let length = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((length(&x) - length(&rotary.apply(&x).unwrap())).abs() < 1e-5);
    }

    #[test]
    fn tables_of_another_clip_are_refused() {
        let rotary = Rotary::from_angles(&[0.0; 12], 1, 3, 4, &Device::Cpu).unwrap();
        assert!(rotary.apply(&wave(&[1, 4, 8], 0.0)).is_err());
        assert!(rotary.apply(&wave(&[1, 3, 10], 0.0)).is_err());
    }
}
