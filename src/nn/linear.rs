//! The linear layer: real numbers, or quantised ones in whichever form suits the device.

use candle_core::{
    DType, Module, Tensor,
    quantized::{QMatMul, QTensor},
};

use crate::{
    error::Result,
    nn::{
        activation::gelu_tanh,
        kernel::{narrow, widen},
        product::{After, LEAST, Rows, pairs_kernel, product, product_of_pairs},
    },
    weights::{Adapter, Loader, Matrix, Packed},
};

/// Apple's library multiplies f32 faster than the kernels of this floor.
const FRAMEWORK: bool = cfg!(feature = "accelerate");
/// Rows of a weight that are widened at a time on a CPU.
pub(crate) const ROWS: usize = 1024;

/// `x · Wᵀ + b`.
pub struct Linear {
    kind: Kind,
    /// `[out]`
    bias: Option<Tensor>,
    /// What is added to the products of a weight that LoRAs could not be merged into.
    adapters: Vec<Adapter>,
    d_in: usize,
    d_out: usize,
}

enum Kind {
    /// `[out, in]`
    Real(Tensor),
    /// Decoded a few rows at a time.
    Packed(Packed),
    /// Multiplied as it is.
    Blocks(QMatMul),
}

impl Linear {
    /// Reads `weight` and, if `bias`, `bias`.
    pub fn new(d_in: usize, d_out: usize, bias: bool, w: &Loader) -> Result<Self> {
        let (matrix, adapters) = w.matrix(d_out, d_in, "weight")?;
        let kind = match matrix {
            Matrix::Real(weight) => Kind::Real(weight),
            Matrix::Packed(packed) => Kind::Packed(packed),
            Matrix::Blocks(blocks) => Kind::Blocks(quantised(blocks)?),
        };
        let bias = bias.then(|| w.get(&[d_out], "bias")).transpose()?;
        Ok(Self { kind, bias, adapters, d_in, d_out })
    }

    /// `[.., in]` → `[.., out]`, in the dtype of `x`, which is the loader's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, /* gelu */ false)
    }

    /// [`gelu_tanh`] of [`Linear::forward`], which on a CPU isn't rounded or written between the two.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, /* gelu */ true)
    }

    fn run(&self, x: &Tensor, gelu: bool) -> Result<Tensor> {
        let shape = x.dims().to_vec();
        if shape.last() != Some(&self.d_in) {
            return Err(candle_core::Error::UnexpectedShape {
                msg: "the input of a linear layer".into(),
                expected: self.d_in.into(),
                got: x.shape().clone(),
            }
            .into());
        }
        let x = x.reshape((x.elem_count() / self.d_in.max(1), self.d_in))?; // [N, in]
        let y = match &self.kind {
            Kind::Real(weight) if x.device().is_cpu() && (x.dtype() != DType::F32 || fast(&x)?) => {
                if let Some(y) = self.of_pairs(&x, weight, gelu)? {
                    return self.shaped(&y, shape);
                }
                let few = |start, count| Ok(weight.narrow(0, start, count)?.to_dtype(DType::F32)?);
                self.widened(&x, &Rows::of(weight)?, few, gelu)?
            }
            Kind::Real(weight) => {
                let y = x.matmul(&weight.t()?)?;
                let y = match &self.bias {
                    Some(bias) => y.broadcast_add(bias)?,
                    None => y,
                };
                if gelu { gelu_tanh(&y)? } else { y }
            }
            Kind::Packed(packed) => {
                let decode = |start, out: &mut [f32]| packed.fill(start, out);
                let few = |start, count| packed.rows(start, count);
                self.widened(&x, &Rows::Stored(&decode), few, gelu)?
            }
            Kind::Blocks(weight) => {
                let wide = x.to_dtype(DType::F32)?;
                let y = self.finish(weight.forward(&wide)?, &wide, 0, self.d_out)?;
                let y = if gelu { gelu_tanh(&y)? } else { y };
                y.to_dtype(x.dtype())?
            }
        }; // [N, out]
        self.shaped(&y, shape)
    }

    /// `[N, out]` → `[.., out]`.
    fn shaped(&self, y: &Tensor, mut shape: Vec<usize>) -> Result<Tensor> {
        if let Some(last) = shape.last_mut() {
            *last = self.d_out;
        }
        Ok(y.reshape(shape)?)
    }

    /// bf16 times bf16, where this processor multiplies that as it is.
    fn of_pairs(&self, x: &Tensor, weight: &Tensor, gelu: bool) -> Result<Option<Tensor>> {
        let plain = x.dim(0)? >= LEAST && self.adapters.is_empty();
        let Some(micro) = pairs_kernel(x, weight).filter(|_| plain) else { return Ok(None) };
        let bias = self.bias.as_ref().map(widen).transpose()?;
        let y = product_of_pairs(micro, x, weight, self.d_out, After { bias: bias.as_ref(), gelu })?;
        narrow(y, x.dtype()).map(Some)
    }

    /// candle has no bf16 product on CPUs and quantises what it multiplies with blocks: weights that are not f32 are
    /// widened a few rows at a time, and the result is rounded once, as an accelerator does it.
    fn widened(
        &self,
        x: &Tensor,
        weight: &Rows,
        few: impl Fn(usize, usize) -> Result<Tensor>,
        gelu: bool,
    ) -> Result<Tensor> {
        let dtype = x.dtype();
        let x = widen(x)?;
        if x.dim(0)? >= LEAST {
            let bias = self.bias.as_ref().map(widen).transpose()?;
            let fused = self.adapters.is_empty();
            let after = After { bias: bias.as_ref(), gelu: gelu && fused };
            let mut y = product(&x, weight, self.d_out, after)?;
            for adapter in &self.adapters {
                y = (y + adapter.forward(&x, 0, self.d_out)?)?;
            }
            return narrow(if gelu && !fused { gelu_tanh(&y)? } else { y }, dtype);
        }
        let mut blocks = Vec::new();
        for start in (0..self.d_out).step_by(ROWS) {
            let count = ROWS.min(self.d_out - start);
            let y = self.finish(x.matmul(&few(start, count)?.t()?)?, &x, start, count)?;
            blocks.push(if gelu { gelu_tanh(&y)? } else { y }.to_dtype(dtype)?);
        }
        Ok(Tensor::cat(&blocks, 1)?)
    }

    /// Adds to the outputs `start..start + count` of `x`, all f32, what comes beside the weight.
    fn finish(&self, mut y: Tensor, x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
        for adapter in &self.adapters {
            y = (y + adapter.forward(x, start, count)?)?;
        }
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(&bias.narrow(0, start, count)?.to_dtype(DType::F32)?)?;
        }
        Ok(y)
    }
}

/// Whether the kernels of this floor multiply these f32 rows faster than candle does.
fn fast(x: &Tensor) -> Result<bool> {
    Ok(!FRAMEWORK && x.dim(0)? >= LEAST)
}

/// candle would ask the environment whether to unpack the blocks after all; this doesn't.
fn quantised(blocks: QTensor) -> Result<QMatMul> {
    Ok(QMatMul::QTensor(std::sync::Arc::new(blocks)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Device;

    use super::*;
    use crate::{
        device::Placement,
        weights::{Format, Lora, Save, Weights},
    };

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
                let x16 = x.to_dtype(dtype).unwrap();
                let y = linear.forward(&x16).unwrap();
                let gap =
                    (linear.forward_gelu(&x16).unwrap() - gelu_tanh(&y).unwrap()).unwrap().abs().unwrap();
                let gap = gap.flatten_all().unwrap().max(0).unwrap().to_dtype(DType::F32).unwrap();
                assert!(gap.to_scalar::<f32>().unwrap() <= tolerance, "{dtype:?}");
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
    fn quantised_weights_and_adapters_agree_with_f32() {
        let draw = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, tensors: Vec<(&str, Tensor)>| {
            let tensors: HashMap<_, _> = tensors.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            let path = folder.path().join(name);
            std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
            path
        };
        let (weight, bias) = (draw(&[1030, 256]), draw(&[1030]));
        let (down, up) = (draw(&[3, 256]), (draw(&[1030, 3]) * 0.1).unwrap());
        let plain = write(
            "plain.safetensors",
            vec![("transformer_blocks.0.weight", weight), ("transformer_blocks.0.bias", bias)],
        );
        let lora =
            vec![("transformer_blocks.0.lora_A.weight", down), ("transformer_blocks.0.lora_B.weight", up)];
        let lora = Lora::open(&write("lora.safetensors", lora)).unwrap();
        let x = draw(&[5, 256]);
        let run = |path: &std::path::Path, patched: bool, dtype: DType| {
            let mut weights = Weights::open_files(&[path.to_owned()]).unwrap();
            if patched {
                weights = lora.apply(&weights, 0.5, str::to_owned).unwrap();
            }
            let loader = weights.loader(&Placement { device: Device::Cpu, dtype });
            let linear = Linear::new(256, 1030, true, &loader.pp("transformer_blocks.0")).unwrap();
            loader.finish(&[]).unwrap();
            let y = linear.forward(&x.to_dtype(dtype).unwrap()).unwrap();
            y.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (format, tolerance) in [
            (Format::F16, 6e-3),
            (Format::Q8_0, 0.12),
            (Format::Q6K, 0.5),
            (Format::Q4K, 2.0),
            (Format::Fp8, 0.6),
        ] {
            let path = folder.path().join(format!("{format}"));
            let weights = Weights::open_files(std::slice::from_ref(&plain)).unwrap();
            Save { architecture: "toy", format, ..Save::new(&weights) }.write(&path).unwrap();
            for patched in [false, true] {
                let (exact, found) = (run(&plain, patched, DType::F32), run(&path, patched, DType::F32));
                let mean =
                    exact.iter().zip(&found).map(|(a, b)| (a - b).abs()).sum::<f32>() / exact.len() as f32;
                assert!(mean < tolerance, "{format} {patched}: {mean}");
                let half = run(&path, patched, DType::BF16);
                let apart = found.iter().zip(&half).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart < 0.6, "{format} {patched}: {apart}");
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
