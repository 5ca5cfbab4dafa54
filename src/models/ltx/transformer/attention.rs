//! `attn1` and `attn2` of a block.

use candle_core::{D, Tensor};

use super::config::TransformerConfig;
use crate::{
    error::Result,
    nn::{attention::attention, linear::Linear, norm::rms_norm, rope::Rotary},
    weights::Loader,
};

/// Of the norms of queries and keys; the configuration doesn't say.
const EPS: f64 = 1e-5;

/// Attention whose queries and keys are normalised across all heads.
pub(super) struct Attention {
    /// `[D]`, f32.
    norm_q: Tensor,
    /// `[D]`, f32.
    norm_k: Tensor,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// `to_out.0`
    to_out: Linear,
    heads: usize,
}

/// What a text comes to in one block.
#[derive(Debug, Clone)]
pub(super) struct KeysValues {
    /// `[B, H, L, D]`
    keys: Tensor,
    /// `[B, H, L, D]`
    values: Tensor,
}

impl Attention {
    /// The same for `attn1` and `attn2`: the projected text is as wide as the tokens.
    pub(super) fn new(cfg: &TransformerConfig, w: &Loader) -> Result<Self> {
        let dim = cfg.inner_dim();
        let bias = cfg.attention_bias;
        Ok(Self {
            norm_q: w.pp("norm_q").get_f32(&[dim], "weight")?,
            norm_k: w.pp("norm_k").get_f32(&[dim], "weight")?,
            to_q: Linear::new(dim, dim, bias, &w.pp("to_q"))?,
            to_k: Linear::new(dim, dim, bias, &w.pp("to_k"))?,
            to_v: Linear::new(dim, dim, bias, &w.pp("to_v"))?,
            to_out: Linear::new(dim, dim, cfg.attention_out_bias, &w.pp("to_out").pp(0))?,
            heads: cfg.num_attention_heads,
        })
    }

    /// Of the tokens `x` `[B, L, D]` to each other, at the places that `rotary` knows.
    pub(super) fn among(&self, x: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let q = rotary.apply_normed(&self.to_q.forward(x)?, &self.norm_q, EPS)?;
        let k = rotary.apply_normed(&self.to_k.forward(x)?, &self.norm_k, EPS)?;
        let v = self.to_v.forward(x)?;
        self.finish(&self.split(&q)?, &self.split(&k)?, &self.split(&v)?, None)
    }

    /// As [`Attention::among`], with each token looking at itself alone.
    pub(super) fn values(&self, x: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&self.to_v.forward(x)?)
    }

    /// As [`Attention::among`], with the tokens themselves in place of what they see.
    pub(super) fn skipped(&self, x: &Tensor) -> Result<Tensor> {
        self.to_out.forward(x)
    }

    /// Of the tokens `x` `[B, L, D]` to a text; `bias` is `[B, 1, 1, Lt]`.
    pub(super) fn to_text(&self, x: &Tensor, text: &KeysValues, bias: Option<&Tensor>) -> Result<Tensor> {
        let q = rms_norm(&self.to_q.forward(x)?, Some(&self.norm_q), EPS)?;
        self.finish(&self.split(&q)?, &text.keys, &text.values, bias)
    }

    /// Keys and values of a text `[B, Lt, D]`.
    pub(super) fn keys_values(&self, text: &Tensor) -> Result<KeysValues> {
        let keys = rms_norm(&self.to_k.forward(text)?, Some(&self.norm_k), EPS)?;
        let values = self.to_v.forward(text)?;
        Ok(KeysValues { keys: self.split(&keys)?.contiguous()?, values: self.split(&values)?.contiguous()? })
    }

    /// `[B, L, H·D]` → `[B, H, L, D]`, without moving anything.
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (b, l, dim) = x.dims3()?;
        Ok(x.reshape((b, l, self.heads, dim / self.heads))?.transpose(1, 2)?)
    }

    fn finish(&self, q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let (b, h, l, d) = q.dims4()?;
        let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
        let y = attention(q, k, v, bias, scale)?; // [B, H, L, D]
        self.to_out.forward(&y.transpose(1, 2)?.reshape((b, l, h * d))?)
    }
}
