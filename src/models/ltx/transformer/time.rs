//! `time_embed`: adaLN-single. One vector per time, from which every block's shifts, scales and gates come.

use candle_core::{DType, Tensor};

use crate::{
    error::Result,
    nn::{activation::silu, embedding::TimestepEmbedder, linear::Linear, modulate::Modulation},
    weights::Loader,
};

/// Vectors of a block: shift, scale and gate of its attention, then of its feed-forward layer.
pub(super) const BLOCK_VECTORS: usize = 6;
/// Vectors of the last norm: shift and scale.
pub(super) const FINAL_VECTORS: usize = 2;

pub(super) struct TimeEmbed {
    /// `emb.timestep_embedder`
    embedder: TimestepEmbedder,
    linear: Linear,
    dim: usize,
}

/// What the times of a step's tokens come to, before the blocks' own tables are added.
#[derive(Debug, Clone)]
pub struct TimeContext {
    /// `[U, 6, D]`, f32: one entry per time that occurs.
    blocks: Tensor,
    /// `[U, 1, D]`, f32.
    last: Tensor,
    /// `[B, L]`, u32: which entry a token takes; `None` if there is only one.
    rows: Option<Tensor>,
}

impl TimeEmbed {
    pub(super) fn new(dim: usize, w: &Loader) -> Result<Self> {
        Ok(Self {
            embedder: TimestepEmbedder::new(dim, &w.pp("emb").pp("timestep_embedder"))?,
            linear: Linear::new(dim, BLOCK_VECTORS * dim, /* bias */ true, &w.pp("linear"))?,
            dim,
        })
    }

    /// `times` is `[B]` or `[B, 1]`, one for each clip, or `[B, L]`, one for each token; `tokens` is `L`.
    ///
    /// Tokens share few times (a condition's and the rest's), so each time is embedded once.
    pub(super) fn forward(&self, times: &Tensor, tokens: usize) -> Result<TimeContext> {
        let times = if times.rank() == 1 { times.unsqueeze(1)? } else { times.clone() }; // [B, 1 or L]
        let (b, per_clip) = times.dims2()?;
        if per_clip != 1 && per_clip != tokens {
            let text = format!("{per_clip} times for {tokens} tokens");
            return Err(candle_core::Error::msg(text).bt().into());
        }
        let listed: Vec<f32> = times.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut distinct: Vec<f32> = Vec::new();
        let numbers: Vec<u32> = number(&listed, &mut distinct);
        let embedded = self.embedder.forward(&distinct)?; // [U, D]
        let blocks = self.linear.forward(&silu(&embedded)?)?; // [U, 6·D]
        let rows = (distinct.len() > 1)
            .then(|| {
                Tensor::from_vec(numbers, (b, per_clip), blocks.device())?
                    .broadcast_as((b, tokens))?
                    .contiguous()
            })
            .transpose()?;
        Ok(TimeContext {
            blocks: blocks.to_dtype(DType::F32)?.reshape((distinct.len(), BLOCK_VECTORS, self.dim))?,
            last: embedded.to_dtype(DType::F32)?.unsqueeze(1)?,
            rows,
        })
    }
}

/// The number of each value in `distinct`, which is filled in order of appearance.
fn number(values: &[f32], distinct: &mut Vec<f32>) -> Vec<u32> {
    let mut seen = std::collections::HashMap::new();
    let number_of = |value: &f32| {
        *seen.entry(value.to_bits()).or_insert_with(|| {
            distinct.push(*value);
            distinct.len() as u32 - 1
        })
    };
    values.iter().map(number_of).collect()
}

impl TimeContext {
    /// With a block's `scale_shift_table` `[6, D]`, f32.
    pub(super) fn block(&self, table: &Tensor) -> Result<Modulation> {
        Modulation::new(&self.blocks.broadcast_add(&table.unsqueeze(0)?)?, self.rows.as_ref())
    }

    /// With the last norm's `scale_shift_table` `[2, D]`, f32.
    pub(super) fn last(&self, table: &Tensor) -> Result<Modulation> {
        Modulation::new(&self.last.broadcast_add(&table.unsqueeze(0)?)?, self.rows.as_ref())
    }

    /// How many times occur.
    #[must_use]
    pub fn distinct(&self) -> usize {
        self.last.dims()[0]
    }
}
