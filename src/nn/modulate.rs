//! Adaptive normalisation: shift, scale and gate vectors that depend on the time a token is at.

use candle_core::{D, DType, Tensor};

use crate::{
    error::Result,
    nn::{
        kernel::{Values, expect_len, map_rows, wide, widen},
        norm::{self, normalise_row},
    },
};

/// The modulation vectors of all tokens. Tokens at the same time share theirs.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// `[U, N, D]`, f32, contiguous: `N` vectors for each of `U` times.
    vectors: Tensor,
    /// `[B, L]`, u32, contiguous: the time of each token; `None` if there is only one.
    times: Option<Tensor>,
}

/// What is modulated: a normalised row.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// By the root mean square, with an optional weight `[D]`.
    Rms {
        /// `[D]`, f32.
        weight: Option<&'a Tensor>,
        /// Added to the mean square.
        eps: f64,
    },
    /// By mean and variance, without weights.
    Layer {
        /// Added to the variance.
        eps: f64,
    },
}

impl Modulation {
    /// `vectors` `[U, N, D]`; `times` `[B, L]`, u32, below `U`, or `None` if every token takes row 0.
    pub fn new(vectors: &Tensor, times: Option<&Tensor>) -> Result<Self> {
        let (_, _, _) = vectors.dims3()?;
        Ok(Self { vectors: widen(vectors)?, times: times.map(Tensor::contiguous).transpose()? })
    }

    /// `norm(x) · (1 + scale) + shift` for `x` `[B, L, D]`; `shift` and `scale` are numbers of vectors.
    pub fn apply(&self, x: &Tensor, norm: Norm<'_>, shift: usize, scale: usize) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return self.apply_plain(x, norm, shift, scale);
        }
        let (weight, eps, centre) = match norm {
            Norm::Rms { weight, eps } => (weight.map(widen).transpose()?, eps, false),
            Norm::Layer { eps } => (None, eps, true),
        };
        let weight = weight.as_ref().map(Values::<f32>::contiguous).transpose()?;
        if let Some(weight) = &weight {
            expect_len("the weight of a norm", weight.len(), x.dim(D::Minus1)?)?;
        }
        let (weight, eps) = (weight.as_deref(), eps as f32);
        self.rows(x, |lookup| {
            map_rows(x, |i, x, out| {
                normalise_row(x, weight, /* bias */ None, centre, eps, out);
                modulate_row(lookup(i, shift), lookup(i, scale), out);
            })
        })
    }

    /// `x + y · gate` for `x` and `y` `[B, L, D]`; `gate` is the number of a vector.
    pub fn gate(&self, x: &Tensor, y: &Tensor, gate: usize) -> Result<Tensor> {
        let (_, _, d) = x.dims3()?;
        if !x.device().is_cpu() {
            return self.gate_plain(x, y, gate);
        }
        expect_len("the branch of a residual", y.elem_count(), x.elem_count())?;
        let y = widen(y)?;
        let y = Values::<f32>::contiguous(&y)?;
        let y = &y[..];
        self.rows(x, |lookup| {
            map_rows(x, |i, x, out| gate_row(x, &y[i * d..(i + 1) * d], lookup(i, gate), out))
        })
    }

    /// Hands `run` a look-up of (token, vector) on the host, once everything it reads has been checked.
    fn rows(
        &self,
        x: &Tensor,
        run: impl for<'v> FnOnce(&(dyn Fn(usize, usize) -> &'v [f32] + Sync + 'v)) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (b, l, d) = x.dims3()?;
        let (u, n, width) = self.vectors.dims3()?;
        expect_len("a modulation vector", width, d)?;
        let vectors = Values::<f32>::contiguous(&self.vectors)?;
        let vectors = &vectors[..];
        let vector = move |time: usize, i: usize| &vectors[(time * n + i) * d..(time * n + i + 1) * d];
        match &self.times {
            None => run(&move |_, i| vector(0, i)),
            Some(times) => {
                expect_len("the list of times", times.elem_count(), b * l)?;
                let times = Values::<u32>::contiguous(times)?;
                let times = &times[..b * l];
                if let Some(time) = times.iter().find(|time| **time as usize >= u) {
                    return Err(candle_core::Error::msg(format!("time {time} of {u}")).bt().into());
                }
                run(&move |token, i| vector(times[token] as usize, i))
            }
        }
    }

    fn apply_plain(&self, x: &Tensor, norm: Norm<'_>, shift: usize, scale: usize) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let y = match norm {
            Norm::Rms { weight, eps } => norm::rms_norm(&wide, weight, eps)?,
            Norm::Layer { eps } => norm::layer_norm(&wide, None, None, eps)?,
        };
        let y = y.broadcast_mul(&(self.vector(scale)? + 1.0)?)?.broadcast_add(&self.vector(shift)?)?;
        Ok(y.to_dtype(x.dtype())?)
    }

    fn gate_plain(&self, x: &Tensor, y: &Tensor, gate: usize) -> Result<Tensor> {
        let gated = y.to_dtype(DType::F32)?.broadcast_mul(&self.vector(gate)?)?;
        Ok((x.to_dtype(DType::F32)? + gated)?.to_dtype(x.dtype())?)
    }

    /// Vector number `i` of every token: `[B, L, D]`, or `[1, 1, D]` if they are all the same.
    fn vector(&self, i: usize) -> Result<Tensor> {
        let vectors = self.vectors.narrow(1, i, 1)?.squeeze(1)?; // [U, D]
        match &self.times {
            None => Ok(vectors.narrow(0, 0, 1)?.unsqueeze(0)?), // [1, 1, D]
            Some(times) => {
                let (b, l) = times.dims2()?;
                let rows = vectors.contiguous()?.index_select(&times.flatten_all()?, 0)?; // [B·L, D]
                Ok(rows.reshape((b, l, ()))?) // [B, L, D]
            }
        }
    }
}

wide! {
    fn modulate_row(shift: &[f32], scale: &[f32], out: &mut [f32]) {
        for ((out, shift), scale) in out.iter_mut().zip(shift).zip(scale) {
            *out = *out * (1.0 + scale) + shift;
        }
    }

    fn gate_row(x: &[f32], y: &[f32], gate: &[f32], out: &mut [f32]) {
        for (((out, x), y), gate) in out.iter_mut().zip(x).zip(y).zip(gate) {
            *out = x + y * gate;
        }
    }
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

    fn close(a: &Tensor, b: &Tensor, at_most: f32) {
        assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()));
        let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let gap = (wide(a) - wide(b)).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap <= at_most, "{gap}");
    }

    #[test]
    fn fused_is_plain() {
        let weight = wave(&[37], 2.0);
        let norms = [
            Norm::Rms { weight: None, eps: 1e-6 },
            Norm::Rms { weight: Some(&weight), eps: 1e-6 },
            Norm::Layer { eps: 1e-6 },
        ];
        let times = Tensor::new(&[[0u32, 1, 2, 1, 0], [2, 2, 2, 0, 1]], &Device::Cpu).unwrap();
        for (u, times) in [(1, None), (3, Some(&times))] {
            let modulation = Modulation::new(&wave(&[u, 6, 37], 1.0), times).unwrap();
            let (x, y) = (wave(&[2, 5, 37], 0.1), wave(&[2, 5, 37], 0.7));
            for norm in norms {
                let fused = modulation.apply(&x, norm, 3, 4).unwrap();
                close(&fused, &modulation.apply_plain(&x, norm, 3, 4).unwrap(), 1e-6);
            }
            close(&modulation.gate(&x, &y, 5).unwrap(), &modulation.gate_plain(&x, &y, 5).unwrap(), 1e-6);
            let (x, y) = (x.to_dtype(DType::BF16).unwrap(), y.to_dtype(DType::BF16).unwrap());
            close(&modulation.gate(&x, &y, 5).unwrap(), &modulation.gate_plain(&x, &y, 5).unwrap(), 1e-2);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let modulation = Modulation::new(&wave(&[1, 6, 8], 0.0), None).unwrap();
        assert!(modulation.apply(&wave(&[1, 2, 9], 0.0), Norm::Layer { eps: 1e-6 }, 0, 1).is_err());
        let times = Tensor::new(&[[0u32, 1]], &Device::Cpu).unwrap();
        let modulation = Modulation::new(&wave(&[1, 6, 8], 0.0), Some(&times)).unwrap();
        assert!(modulation.apply(&wave(&[1, 2, 8], 0.0), Norm::Layer { eps: 1e-6 }, 0, 1).is_err());
    }
}
