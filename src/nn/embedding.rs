//! Embedding of tokens and of times.

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    nn::{activation::silu, linear::Linear},
    weights::{Loader, Matrix, Packed},
};

/// One row of a table for each token.
pub struct Embedding {
    table: Table,
    rows: usize,
    device: Device,
    dtype: DType,
}

enum Table {
    /// `[rows, D]`
    Real(Tensor),
    /// Decoded row by row.
    Packed(Packed),
}

impl Embedding {
    /// Reads the table `key`.
    pub fn new(rows: usize, dim: usize, key: &str, w: &Loader) -> Result<Self> {
        let table = match w.device().is_cpu().then(|| w.matrix(rows, dim, key)).transpose()? {
            Some((Matrix::Packed(packed), _)) => Table::Packed(packed),
            Some((Matrix::Real(table), _)) => Table::Real(table),
            // Only some devices can pick rows of blocks: such a table is unpacked.
            Some((Matrix::Blocks(_), _)) | None => Table::Real(w.get(&[rows, dim], key)?),
        };
        Ok(Self { table, rows, device: w.device().clone(), dtype: w.dtype() })
    }

    /// Ids must be below this.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What [`Embedding::forward`] gives.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `[B, L]`, u32 → `[B, L, D]`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, l) = ids.dims2()?;
        let flat = ids.flatten_all()?;
        let x = match &self.table {
            Table::Real(table) => table.index_select(&flat, 0)?,
            Table::Packed(packed) => {
                let row = |id: &u32| packed.rows(*id as usize, 1);
                let rows = flat.to_vec1::<u32>()?.iter().map(row).collect::<Result<Vec<_>>>()?;
                Tensor::cat(&rows, 0)?.to_dtype(self.dtype)?.to_device(&self.device)?
            }
        }; // [B·L, D]
        Ok(x.reshape((b, l, ()))?)
    }
}

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
