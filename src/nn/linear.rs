//! The linear layer: real numbers now, one more arm for each quantised form.

use candle_core::{DType, Tensor};

use crate::{error::Result, weights::Loader};

/// Rows of a 16-bit weight that are widened at a time on a CPU.
const ROWS: usize = 1024;

/// `x · Wᵀ + b`.
pub struct Linear(Kind);

enum Kind {
    /// `weight` `[out, in]` and `bias` `[out]`.
    Real { weight: Tensor, bias: Option<Tensor> },
}

impl Linear {
    /// Reads `weight` and, if `bias`, `bias`.
    pub fn new(d_in: usize, d_out: usize, bias: bool, w: &Loader) -> Result<Self> {
        let weight = w.get(&[d_out, d_in], "weight")?;
        let bias = bias.then(|| w.get(&[d_out], "bias")).transpose()?;
        Ok(Self(Kind::Real { weight, bias }))
    }

    /// `[.., in]` → `[.., out]`, in the dtype of `x`, which is the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Kind::Real { weight, bias } = &self.0;
        let (d_out, d_in) = weight.dims2()?;
        let mut shape = x.dims().to_vec();
        if shape.last() != Some(&d_in) {
            return Err(candle_core::Error::UnexpectedShape {
                msg: "the input of a linear layer".into(),
                expected: d_in.into(),
                got: x.shape().clone(),
            }
            .into());
        }
        let x = x.reshape((x.elem_count() / d_in.max(1), d_in))?; // [N, in]
        let y = if x.device().is_cpu() && x.dtype() != DType::F32 {
            widened(&x, weight, bias.as_ref())?
        } else {
            let y = x.matmul(&weight.t()?)?;
            match bias {
                Some(bias) => y.broadcast_add(bias)?,
                None => y,
            }
        }; // [N, out]
        if let Some(last) = shape.last_mut() {
            *last = d_out;
        }
        Ok(y.reshape(shape)?)
    }
}

/// candle has no bf16 product on CPUs: weights are widened to f32 a few rows at a time, and the
/// result is rounded once, as an accelerator does it.
fn widened(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let mut blocks = Vec::new();
    let d_out = weight.dim(0)?;
    for start in (0..d_out).step_by(ROWS) {
        let count = ROWS.min(d_out - start);
        let block = weight.narrow(0, start, count)?.to_dtype(DType::F32)?;
        let mut y = x.matmul(&block.t()?)?;
        if let Some(bias) = bias {
            y = y.broadcast_add(&bias.narrow(0, start, count)?.to_dtype(DType::F32)?)?;
        }
        blocks.push(y.to_dtype(dtype)?);
    }
    Ok(Tensor::cat(&blocks, 1)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;
    use crate::{device::Placement, weights::Weights};

    #[test]
    fn any_leading_axes_and_16_bits_agree_with_f32() {
        let draw = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let tensors = [("weight", draw(&[1500, 24])), ("bias", draw(&[1500]))];
        let tensors: HashMap<_, _> = tensors.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let expected = |x: &Tensor| {
            let y = x.reshape(((), 24)).unwrap().matmul(&tensors["weight"].t().unwrap()).unwrap();
            y.broadcast_add(&tensors["bias"]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let weights = Weights::from_tensors("toy", tensors.clone());
        for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F16, 3e-2), (DType::BF16, 2e-1)] {
            let loader = weights.loader(&Placement { device: Device::Cpu, dtype });
            let linear = Linear::new(24, 1500, true, &loader).unwrap();
            for shape in [vec![24], vec![3, 24], vec![2, 3, 24], vec![2, 2, 2, 24]] {
                let x = draw(&shape);
                let y = linear.forward(&x.to_dtype(dtype).unwrap()).unwrap();
                assert_eq!(y.dtype(), dtype);
                assert_eq!(y.dims()[..shape.len() - 1], shape[..shape.len() - 1]);
                let y = y.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                for (y, e) in y.iter().zip(expected(&x)) {
                    assert!((y - e).abs() < tolerance, "{dtype:?}: {y} {e}");
                }
            }
        }
    }

    #[test]
    fn another_width_is_an_error() {
        let ones = Tensor::ones((4, 6), DType::F32, &Device::Cpu).unwrap();
        let weights = Weights::from_tensors("toy", HashMap::from([("weight".to_owned(), ones)]));
        let place = Placement { device: Device::Cpu, dtype: DType::F32 };
        let linear = Linear::new(6, 4, false, &weights.loader(&place)).unwrap();
        // As many values as two rows of the right width have.
        assert!(linear.forward(&Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap()).is_err());
    }
}
