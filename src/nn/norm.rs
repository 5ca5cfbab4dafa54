//! Normalisation over the last axis. Statistics are f32 whatever the dtype: candle's own sums run in
//! the tensor's dtype, which is wrong for 16-bit ones.

use candle_core::{D, DType, Tensor};

use crate::{
    error::Result,
    nn::kernel::{Values, expect_len, map_rows, sum, wide, widen},
};

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
    let d = x.dim(D::Minus1)?;
    let (weight, bias) = (weight.map(widen).transpose()?, bias.map(widen).transpose()?);
    for vector in weight.iter().chain(&bias) {
        expect_len("the weight or bias of a norm", vector.dims1()?, d)?;
    }
    if x.device().is_cpu() {
        let weight = weight.as_ref().map(Values::<f32>::contiguous).transpose()?;
        let bias = bias.as_ref().map(Values::<f32>::contiguous).transpose()?;
        let (weight, bias) = (weight.as_deref().map(|w| &w[..d]), bias.as_deref().map(|b| &b[..d]));
        return map_rows(x, |_, x, out| normalise_row(x, weight, bias, centre, eps as f32, out));
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

wide! {
    /// One row: minus its mean if `centre`, over its root mean square, times `weight`, plus `bias`.
    pub(super) fn normalise_row(
        x: &[f32],
        weight: Option<&[f32]>,
        bias: Option<&[f32]>,
        centre: bool,
        eps: f32,
        out: &mut [f32],
    ) {
        let d = x.len() as f32;
        let mean = if centre { sum(x, |x| x) / d } else { 0.0 };
        let scale = 1.0 / (sum(x, |x| (x - mean) * (x - mean)) / d + eps).sqrt();
        match weight {
            None => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = (x - mean) * scale;
                }
            }
            Some(weight) => {
                for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                    *out = (x - mean) * scale * w;
                }
            }
        }
        if let Some(bias) = bias {
            for (out, b) in out.iter_mut().zip(bias) {
                *out += b;
            }
        }
    }
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
        let state = std::cell::Cell::new(1u64);
        let draw = |shape: &[usize]| {
            let next = || {
                state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                (state.get() >> 40) as f32 / (1 << 24) as f32 * 7.0 - 3.0
            };
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
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
                            // The bias may cancel a normed and weighted value of up to about 4.
                            assert!((y - e).abs() <= tolerance * e.abs().max(4.0), "{d} {dtype:?}: {y} {e}");
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
