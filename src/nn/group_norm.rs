//! Normalisation over groups of channels and all positions of a picture or a clip.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::{
    error::Result,
    nn::kernel::{Values, expect_len, map_rows, widen},
    weights::Loader,
};

/// Added to variances; no configuration says otherwise.
const EPS: f64 = 1e-5;
/// Positions that are summed at a time. Fixed, so that the number of threads changes nothing.
const BLOCK: usize = 256;

/// Group normalisation of tensors that have their channels last.
pub struct GroupNorm {
    groups: usize,
    /// `[C]`, f32.
    weight: Tensor,
    /// `[C]`, f32.
    bias: Tensor,
}

/// What each channel is multiplied by, and what is added then.
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

/// A channel's sum and its sum of squares.
type Sums = [f64; 2];

impl GroupNorm {
    /// Reads `weight` and `bias`; `channels` is a multiple of `groups`.
    pub fn new(groups: usize, channels: usize, w: &Loader) -> Result<Self> {
        Ok(Self { groups, weight: w.get_f32(&[channels], "weight")?, bias: w.get_f32(&[channels], "bias")? })
    }

    /// `x` is `[N, P, C]`: each of the `N` is normalised over its `P` positions. The dtype stays, arithmetic is f32,
    /// and on a CPU sums are f64.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, p, c) = x.dims3()?;
        expect_len("the weight of a group norm", self.weight.elem_count(), c)?;
        if !x.device().is_cpu() {
            return self.forward_plain(x);
        }
        let wide = widen(x)?;
        let values = Values::<f32>::contiguous(&wide)?;
        let (weight, bias) = (self.weight.to_vec1::<f32>()?, self.bias.to_vec1::<f32>()?);
        let parts = values[..x.elem_count()].chunks_exact((p * c).max(1));
        let affine: Vec<Affine> = parts.map(|part| self.affine(part, &weight, &bias)).collect();
        map_rows(x, |row, x, out| {
            let Affine { scale, shift } = &affine[row / p];
            for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                *out = x * scale + shift;
            }
        })
    }

    /// Of one of the N, `[P, C]`.
    fn affine(&self, values: &[f32], weight: &[f32], bias: &[f32]) -> Affine {
        let c = weight.len();
        let blocks: Vec<Vec<Sums>> = values.par_chunks(BLOCK * c).map(|block| sums(block, c)).collect();
        let width = c / self.groups;
        let count = (values.len() / self.groups) as f64;
        let (mut scale, mut shift) = (Vec::with_capacity(c), Vec::with_capacity(c));
        for group in 0..self.groups {
            let channels = group * width..(group + 1) * width;
            let [sum, squares] = blocks
                .iter()
                .flat_map(|block| &block[channels.clone()])
                .fold([0.0; 2], |[a, b], [x, y]| [a + x, b + y]);
            let mean = sum / count;
            let deviation = ((squares / count - mean * mean).max(0.0) + EPS).sqrt();
            for channel in channels {
                let factor = f64::from(weight[channel]) / deviation;
                scale.push(factor as f32);
                shift.push((f64::from(bias[channel]) - mean * factor) as f32);
            }
        }
        Affine { scale, shift }
    }

    fn forward_plain(&self, x: &Tensor) -> Result<Tensor> {
        let (n, p, c) = x.dims3()?;
        let wide = x.to_dtype(DType::F32)?.reshape((n, p, self.groups, c / self.groups))?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim((1, 3))?)?;
        let variance = centred.sqr()?.mean_keepdim((1, 3))?;
        let normed = centred.broadcast_div(&(variance + EPS)?.sqrt()?)?.reshape((n, p, c))?;
        Ok(normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?.to_dtype(x.dtype())?)
    }
}

/// Of each channel, over a block `[p, C]`.
fn sums(block: &[f32], c: usize) -> Vec<Sums> {
    let mut sums = vec![[0.0; 2]; c];
    for row in block.chunks_exact(c) {
        for ([sum, squares], value) in sums.iter_mut().zip(row) {
            let value = f64::from(*value);
            *sum += value;
            *squares += value * value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn wave(shape: &[usize], phase: f64) -> Tensor {
        let n = shape.iter().product::<usize>() as f32;
        let t = Tensor::arange(0f32, n, &Device::Cpu).unwrap();
        t.affine(0.37, phase).unwrap().sin().unwrap().reshape(shape).unwrap()
    }

    #[test]
    fn fast_is_plain_and_threads_change_nothing() {
        let norm = GroupNorm { groups: 4, weight: wave(&[12], 1.0), bias: wave(&[12], 2.0) };
        // Far from zero, where sums of squares lose digits.
        let x = (wave(&[2, 700, 12], 0.3) + 5.0).unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| norm.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let fast = run(2);
        assert_eq!(fast, run(1));
        let plain = norm.forward_plain(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(fast.iter().zip(plain).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[test]
    fn another_width_is_an_error() {
        let norm = GroupNorm { groups: 4, weight: wave(&[12], 1.0), bias: wave(&[12], 2.0) };
        assert!(norm.forward(&wave(&[1, 3, 8], 0.0)).is_err());
    }
}
