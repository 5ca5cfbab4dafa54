//! Embedding of times.

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    nn::{activation::silu, linear::Linear},
    weights::Loader,
};

/// Sinusoids of `times`, `[N, dim]`, f32: first the cosines, then the sines, of frequencies from 1 down to
/// nearly 1/10000.
pub fn sinusoids(times: &[f32], dim: usize, device: &Device) -> Result<Tensor> {
    let half = dim / 2;
    // As the reference, in f32 up to the phase; a time of 1000 magnifies every rounding.
    let frequency = |i: usize| {
        let exponent = -(10_000f64.ln() as f32) * i as f32 / half as f32;
        f64::from(exponent).exp() as f32
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut values = Vec::with_capacity(times.len() * dim);
    for time in times {
        values.extend(frequencies.iter().map(|f| f64::from(time * f).cos() as f32));
        values.extend(frequencies.iter().map(|f| f64::from(time * f).sin() as f32));
        values.resize(values.len() + dim % 2, 0.0);
    }
    Ok(Tensor::from_vec(values, (times.len(), dim), device)?)
}

/// Channels of the sinusoids below a [`TimestepEmbedder`].
const SINUSOIDS: usize = 256;

/// Two linear layers on top of sinusoids (`timestep_embedder` of PixArt's adaLN-single).
pub struct TimestepEmbedder {
    linear_1: Linear,
    linear_2: Linear,
    device: Device,
    dtype: DType,
}

impl TimestepEmbedder {
    /// Reads `linear_1` and `linear_2`; `dim` is the width of the result.
    pub fn new(dim: usize, w: &Loader) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(SINUSOIDS, dim, /* bias */ true, &w.pp("linear_1"))?,
            linear_2: Linear::new(dim, dim, /* bias */ true, &w.pp("linear_2"))?,
            device: w.device().clone(),
            dtype: w.dtype(),
        })
    }

    /// `[N]` times (sigma × 1000) → `[N, dim]`, the weights' dtype.
    pub fn forward(&self, times: &[f32]) -> Result<Tensor> {
        let x = sinusoids(times, SINUSOIDS, &self.device)?.to_dtype(self.dtype)?; // [N, 256]
        self.linear_2.forward(&silu(&self.linear_1.forward(&x)?)?)
    }
}
