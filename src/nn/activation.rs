//! Activation functions that candle computes one value at a time on CPUs.

use candle_core::{DType, Tensor};

use crate::{
    error::Result,
    nn::kernel::{exp, map_rows, wide},
};

/// GELU in its tanh approximation, any shape; the dtype stays, arithmetic is f32.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return map_rows(x, |_, x, out| gelu_row(x, out));
    }
    Ok(x.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype())?)
}

/// `x · sigmoid(x)`, any shape; the dtype stays, arithmetic is f32.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return map_rows(x, |_, x, out| silu_row(x, out));
    }
    Ok(x.to_dtype(DType::F32)?.silu()?.to_dtype(x.dtype())?)
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    // 0.5 · (1 + tanh u) is sigmoid(2u).
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    let u = TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-u))
}

wide! {
    fn gelu_row(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = gelu(x);
        }
    }

    /// [`gelu_tanh`] of each value.
    pub(super) fn gelu_in_place(row: &mut [f32]) {
        for x in row {
            *x = gelu(*x);
        }
    }

    fn silu_row(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x / (1.0 + exp(-x));
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn check(x: &Tensor, ours: Tensor, real: impl Fn(f64) -> f64) {
        let x: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        let ours: Vec<f32> = ours.flatten_all().unwrap().to_vec1().unwrap();
        for (x, ours) in x.into_iter().zip(ours) {
            let real = real(f64::from(x));
            assert!(
                (f64::from(ours) - real).abs() <= 1e-6 * real.abs().max(1.0),
                "f({x}) = {ours}, not {real}"
            );
        }
    }

    #[test]
    fn activations_follow_their_formulas() {
        let x = Tensor::arange(-30_000f32, 30_000.0, &Device::Cpu).unwrap();
        let x = x.affine(1e-3, 0.0).unwrap().reshape((3, 20_000)).unwrap();
        check(&x, gelu_tanh(&x).unwrap(), |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        });
        check(&x, silu(&x).unwrap(), |x| x / (1.0 + (-x).exp()));
    }

    #[test]
    fn sixteen_bits_round_once() {
        let x = Tensor::new(&[[-1.5f32, 0.3, 2.0]], &Device::Cpu).unwrap();
        let half = x.to_dtype(DType::BF16).unwrap();
        let expected = gelu_tanh(&half.to_dtype(DType::F32).unwrap()).unwrap().to_dtype(DType::BF16).unwrap();
        let found = gelu_tanh(&half).unwrap();
        assert_eq!(found.dtype(), DType::BF16);
        let bits = |t: Tensor| t.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(bits(found), bits(expected));
    }

    #[test]
    fn not_a_number_is_passed_on() {
        let x = Tensor::new(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &Device::Cpu).unwrap();
        let y = gelu_tanh(&x).unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0].is_nan());
        assert_eq!(y[1], f32::INFINITY);
    }
}
