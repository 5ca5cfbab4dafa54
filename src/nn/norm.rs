//! Normalisation over the last axis. Statistics are f32 whatever the dtype: candle's own sums run in
//! the tensor's dtype, which is wrong for 16-bit ones.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Shape, Storage, Tensor, WithDType, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::error::Result;

/// Values that are worth handing to another core.
const GRAIN: usize = 1 << 14;
/// Partial sums kept side by side: fills the vector units, and loses less than one running sum.
const LANES: usize = 16;

/// `x / sqrt(mean(x²) + eps) · weight` over the last axis of `x` `[.., D]`; `weight` is `[D]`.
///
/// The result has the dtype of `x`.
pub fn rms_norm(x: &Tensor, weight: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    norm(x, weight, None, eps, /* centre */ false)
}

/// `(x − mean) / sqrt(var + eps) · weight + bias` over the last axis of `x` `[.., D]`; `weight` and
/// `bias` are `[D]`.
///
/// The result has the dtype of `x`.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    norm(x, weight, bias, eps, /* centre */ true)
}

fn norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
    centre: bool,
) -> Result<Tensor> {
    let wide = |t: Option<&Tensor>| t.map(|t| t.to_dtype(DType::F32)?.contiguous()).transpose();
    let (weight, bias) = (wide(weight)?, wide(bias)?);
    let d = x.dim(D::Minus1)?;
    for t in weight.iter().chain(&bias) {
        if t.dims() != [d] {
            return Err(candle_core::Error::UnexpectedShape {
                msg: "the weight of a norm".into(),
                expected: d.into(),
                got: t.shape().clone(),
            }
            .into());
        }
    }
    if x.device().is_cpu() {
        return Ok(x.contiguous()?.apply_op1_no_bwd(&Rows { weight, bias, eps: eps as f32, centre })?);
    }
    let mut y = x.to_dtype(DType::F32)?;
    if centre {
        y = y.broadcast_sub(&y.mean_keepdim(D::Minus1)?)?;
    }
    let scale = (y.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    y = y.broadcast_div(&scale)?;
    if let Some(weight) = weight {
        y = y.broadcast_mul(&weight)?;
    }
    if let Some(bias) = bias {
        y = y.broadcast_add(&bias)?;
    }
    Ok(y.to_dtype(x.dtype())?)
}

/// The CPU's way: one pass over each row while it is in the cache, rows shared out among the cores.
struct Rows {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    eps: f32,
    centre: bool,
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let storage = match x {
            CpuStorage::F32(x) => f32::to_cpu_storage_owned(self.run(x, layout)?),
            CpuStorage::F16(x) => f16::to_cpu_storage_owned(self.run(x, layout)?),
            CpuStorage::BF16(x) => bf16::to_cpu_storage_owned(self.run(x, layout)?),
            _ => bail!("a norm of numbers that are not floats"),
        };
        Ok((storage, layout.shape().clone()))
    }
}

impl Rows {
    fn run<T: Value>(&self, x: &[T], layout: &Layout) -> candle_core::Result<Vec<T>> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("a norm of strided rows") };
        let x = &x[start..end];
        let d = layout.dims().last().copied().unwrap_or(1).max(1);
        with_values(self.weight.as_ref(), |weight| {
            with_values(self.bias.as_ref(), |bias| {
                let mut y = vec![T::ZERO; x.len()];
                let rows = (GRAIN / d).max(1) * d;
                y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| {
                    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                        self.row(x, y, weight, bias);
                    }
                });
                y
            })
        })?
    }

    fn row<T: Value>(&self, x: &[T], y: &mut [T], weight: Option<&[f32]>, bias: Option<&[f32]>) {
        let d = x.len() as f32;
        let mean = if self.centre { sum(x, |v| v) / d } else { 0.0 };
        let scale = 1.0 / (sum(x, |v| (v - mean) * (v - mean)) / d + self.eps).sqrt();
        match (weight, bias) {
            (None, None) => {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = T::from_f32((x.to_f32() - mean) * scale);
                }
            }
            (Some(weight), None) => {
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = T::from_f32((x.to_f32() - mean) * scale * w);
                }
            }
            (None, Some(bias)) => {
                for ((y, x), b) in y.iter_mut().zip(x).zip(bias) {
                    *y = T::from_f32((x.to_f32() - mean) * scale + b);
                }
            }
            (Some(weight), Some(bias)) => {
                for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = T::from_f32((x.to_f32() - mean) * scale * w + b);
                }
            }
        }
    }
}

fn with_values<R>(tensor: Option<&Tensor>, then: impl FnOnce(Option<&[f32]>) -> R) -> candle_core::Result<R> {
    let Some(tensor) = tensor else { return Ok(then(None)) };
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("a norm whose weight is on another device") };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a norm with a strided weight") };
    Ok(then(Some(&storage.as_slice::<f32>()?[start..end])))
}

trait Value: WithDType {
    const ZERO: Self;
    fn to_f32(self) -> f32;
    fn from_f32(value: f32) -> Self;
}

impl Value for f32 {
    const ZERO: Self = 0.0;
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Value for f16 {
    const ZERO: Self = f16::ZERO;
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Value for bf16 {
    const ZERO: Self = bf16::ZERO;
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

fn sum<T: Value>(x: &[T], term: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += term(x.to_f32());
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| term(x.to_f32())).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn reference(
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
        centre: bool,
    ) -> Vec<f64> {
        let values =
            |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let d = x.dims()[x.rank() - 1];
        let (weight, bias) = (weight.map(values), bias.map(values));
        let rows = values(x);
        rows.chunks(d)
            .flat_map(|row| {
                let mean = if centre { row.iter().sum::<f64>() / d as f64 } else { 0.0 };
                let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
                let scale = (var + eps).sqrt();
                let (weight, bias) = (weight.clone(), bias.clone());
                row.iter()
                    .enumerate()
                    .map(move |(i, v)| {
                        (v - mean) / scale * weight.as_ref().map_or(1.0, |w| w[i])
                            + bias.as_ref().map_or(0.0, |b| b[i])
                    })
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn agrees_with_f64_at_every_dtype_and_width() {
        let draw = |shape: &[usize]| Tensor::randn(0.5f32, 2.0, shape, &Device::Cpu).unwrap();
        for d in [1, 7, 16, 33, 2048] {
            let (weight, bias) = (draw(&[d]), draw(&[d]));
            for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F16, 1e-3), (DType::BF16, 8e-3)] {
                // Strided, so that rows have to be gathered first.
                let x = draw(&[3, 2, d]).transpose(0, 1).unwrap().to_dtype(dtype).unwrap();
                for (weight, bias) in
                    [(None, None), (Some(&weight), None), (None, Some(&bias)), (Some(&weight), Some(&bias))]
                {
                    for centre in [false, true] {
                        let y = norm(&x, weight, bias, 1e-6, centre).unwrap();
                        assert_eq!((y.dtype(), y.dims()), (dtype, x.dims()));
                        let y =
                            y.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                        for (y, e) in y.iter().zip(reference(&x, weight, bias, 1e-6, centre)) {
                            assert!((y - e).abs() <= tolerance * e.abs().max(1.0), "{d} {dtype:?}: {y} {e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_weight_of_another_width_is_an_error() {
        let ones = |d: usize| Tensor::ones(d, DType::F32, &Device::Cpu).unwrap();
        assert!(rms_norm(&ones(4).reshape((1, 4)).unwrap(), Some(&ones(3)), 1e-6).is_err());
    }
}
