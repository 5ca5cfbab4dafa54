//! `transformer_blocks.N`.

use candle_core::Tensor;

use super::{
    attention::{Attention, KeysValues},
    config::TransformerConfig,
    time::{BLOCK_VECTORS, TimeContext},
};
use crate::{
    error::Result,
    models::sampling::SkipMode,
    nn::{linear::Linear, modulate::Norm, rope::Rotary},
    weights::Loader,
};

/// Widening of the feed-forward layer.
pub(super) const WIDENING: usize = 4;

// The order of a block's modulation vectors.
const SHIFT_ATTENTION: usize = 0;
const SCALE_ATTENTION: usize = 1;
const GATE_ATTENTION: usize = 2;
const SHIFT_FEED: usize = 3;
const SCALE_FEED: usize = 4;
const GATE_FEED: usize = 5;

pub(super) struct Block {
    /// `[D]`, f32, if the configuration gives norms weights.
    norm1: Option<Tensor>,
    attn1: Attention,
    /// As `norm1`.
    norm2: Option<Tensor>,
    attn2: Attention,
    ff: FeedForward,
    /// `[6, D]`, f32.
    scale_shift_table: Tensor,
    eps: f64,
}

impl Block {
    pub(super) fn new(cfg: &TransformerConfig, w: &Loader) -> Result<Self> {
        let dim = cfg.inner_dim();
        let norm =
            |name| cfg.norm_elementwise_affine.then(|| w.pp(name).get_f32(&[dim], "weight")).transpose();
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(cfg, &w.pp("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(cfg, &w.pp("attn2"))?,
            ff: FeedForward::new(dim, &w.pp("ff"))?,
            scale_shift_table: w.get_f32(&[BLOCK_VECTORS, dim], "scale_shift_table")?,
            eps: cfg.norm_eps,
        })
    }

    /// Keys and values of a projected text `[B, Lt, D]` for `attn2`.
    pub(super) fn keys_values(&self, text: &Tensor) -> Result<KeysValues> {
        self.attn2.keys_values(text)
    }

    /// `x` is `[B, L, D]`, `bias` `[B, 1, 1, Lt]`; `skip` says what is left out of the block.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        time: &TimeContext,
        rotary: &Rotary,
        text: &KeysValues,
        bias: Option<&Tensor>,
        skip: Option<SkipMode>,
    ) -> Result<Tensor> {
        if skip == Some(SkipMode::TransformerBlock) {
            return Ok(x.clone());
        }
        let vectors = time.block(&self.scale_shift_table)?;
        let norm1 = Norm::Rms { weight: self.norm1.as_ref(), eps: self.eps };
        let y = vectors.apply(x, norm1, SHIFT_ATTENTION, SCALE_ATTENTION)?;
        let y = match skip {
            Some(SkipMode::AttentionValues) => self.attn1.values(&y)?,
            Some(SkipMode::AttentionSkip) => self.attn1.skipped(&y)?,
            _ => self.attn1.among(&y, rotary)?,
        };
        let x = vectors.gate(x, &y, GATE_ATTENTION)?;
        let y = self.attn2.to_text(&x, text, bias)?;
        let x = (x + y)?;
        let norm2 = Norm::Rms { weight: self.norm2.as_ref(), eps: self.eps };
        let y = self.ff.forward(vectors.apply(&x, norm2, SHIFT_FEED, SCALE_FEED)?)?;
        vectors.gate(&x, &y, GATE_FEED)
    }
}

struct FeedForward {
    /// `net.0.proj`
    widen: Linear,
    /// `net.2`
    narrow: Linear,
}

impl FeedForward {
    fn new(dim: usize, w: &Loader) -> Result<Self> {
        let net = w.pp("net");
        Ok(Self {
            widen: Linear::new(dim, WIDENING * dim, /* bias */ true, &net.pp(0).pp("proj"))?,
            narrow: Linear::new(WIDENING * dim, dim, /* bias */ true, &net.pp(2))?,
        })
    }

    /// Takes `x` `[B, L, D]` so that it is gone before the widest tensors of a pass are made.
    fn forward(&self, x: Tensor) -> Result<Tensor> {
        let wide = self.widen.forward_gelu(&x)?; // [B, L, 4·D]
        drop(x);
        self.narrow.forward(&wide)
    }
}
