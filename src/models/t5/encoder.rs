//! The T5 v1.1 encoder.
//!
//! It has no scaling by 1/√d in attention, no biases in its linear layers, and one table of position
//! biases in the first block that all blocks share.

use candle_core::{DType, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Config;
use crate::{
    error::Result,
    nn::{Linear, embedding::Embedding, rms_norm},
    weights::Loader,
};

/// A little less than the largest finite f16, 65504.
const F16_BOUND: f64 = 64504.0;

/// What a whole T5 has beside its encoder, and the second name of the embedding.
pub const IGNORED: [&str; 4] = ["shared.weight", "embed_tokens.weight", "decoder.", "lm_head.weight"];

/// Ids → states.
pub struct Encoder {
    shared: Embedding,
    block: Vec<Block>,
    relative_attention_bias: PositionBias,
    final_layer_norm: Norm,
}

impl Encoder {
    /// Reads the weights of a `T5EncoderModel`, or the encoder's half of a whole T5.
    pub fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        // The same table has two names, and a file may hold either or both.
        let encoder = w.pp("encoder");
        let both = [(w, "shared.weight"), (&encoder, "embed_tokens.weight")];
        let (loader, key) = both.into_iter().find(|(w, key)| w.contains(key)).unwrap_or(both[0]);
        let shared = Embedding::new(cfg.vocab_size, cfg.d_model, key, loader)?;
        let blocks = encoder.pp("block");
        let block = (0..cfg.num_layers).map(|i| Block::new(cfg, &blocks.pp(i))).collect::<Result<_>>()?;
        let relative_attention_bias =
            PositionBias::new(cfg, &blocks.pp("0.layer.0.SelfAttention.relative_attention_bias"))?;
        let final_layer_norm = Norm::new(cfg, &encoder.pp("final_layer_norm"))?;
        w.finish(&IGNORED)?;
        Ok(Self { shared, block, relative_attention_bias, final_layer_norm })
    }

    /// Rows of the embedding: ids must be below it.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.shared.rows()
    }

    /// `[B, L]`, u32 → `[B, L, D]` in the dtype of the weights. Padding is read like any other token.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (_, l) = ids.dims2()?;
        let mut x = self.shared.forward(ids)?; // [B, L, D]
        let bias = self.relative_attention_bias.forward(l)?;
        for block in &self.block {
            x = block.forward(&x, &bias)?;
        }
        Ok(self.final_layer_norm.forward(&x)?.to_dtype(self.shared.dtype())?)
    }
}

struct Norm {
    weight: Tensor,
    eps: f64,
    /// What the layers behind it compute in.
    dtype: DType,
}

impl Norm {
    fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let weight = w.get_f32(&[cfg.d_model], "weight")?;
        Ok(Self { weight, eps: cfg.layer_norm_epsilon, dtype: w.dtype() })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(x, Some(&self.weight), self.eps)?.to_dtype(self.dtype)?)
    }
}

struct Block {
    attention: Attention,
    feed_forward: FeedForward,
}

impl Block {
    fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let attention = Attention::new(cfg, &w.pp("layer.0"))?;
        let feed_forward = FeedForward::new(cfg, &w.pp("layer.1"))?;
        Ok(Self { attention, feed_forward })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let x = bounded((x + self.attention.forward(x, bias)?.to_dtype(x.dtype())?)?)?;
        let y = self.feed_forward.forward(&x)?;
        bounded((x.to_dtype(y.dtype())? + y)?)
    }
}

/// Published weights leave f16's range here and there; like the reference, this brings such sums back.
fn bounded(x: Tensor) -> Result<Tensor> {
    if x.dtype() != DType::F16 {
        return Ok(x);
    }
    let largest = x.abs()?.max_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
    if largest.is_infinite() { Ok(x.clamp(-F16_BOUND, F16_BOUND)?) } else { Ok(x) }
}

struct Attention {
    layer_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    num_heads: usize,
}

impl Attention {
    fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let inner = cfg.num_heads * cfg.d_kv;
        let attention = w.pp("SelfAttention");
        let linear = |name, d_in, d_out| Linear::new(d_in, d_out, /* bias */ false, &attention.pp(name));
        Ok(Self {
            layer_norm: Norm::new(cfg, &w.pp("layer_norm"))?,
            q: linear("q", cfg.d_model, inner)?,
            k: linear("k", cfg.d_model, inner)?,
            v: linear("v", cfg.d_model, inner)?,
            o: linear("o", inner, cfg.d_model)?,
            num_heads: cfg.num_heads,
        })
    }

    /// `x` is `[B, L, D]`, `bias` `[1, H, L, L]`, f32.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (b, l, _) = x.dims3()?;
        let x = self.layer_norm.forward(x)?;
        let heads = |y: Tensor| -> Result<Tensor> {
            let y = y.reshape((b, l, self.num_heads, ()))?.transpose(1, 2)?; // [B, H, L, d]
            Ok(y.to_dtype(DType::F32)?.contiguous()?)
        };
        let q = heads(self.q.forward(&x)?)?;
        let k = heads(self.k.forward(&x)?)?;
        let v = heads(self.v.forward(&x)?)?;
        let scores = q.matmul(&k.transpose(2, 3)?)?.broadcast_add(bias)?; // [B, H, L, L]
        let y = softmax_last_dim(&scores)?.matmul(&v)?;
        let y = y.transpose(1, 2)?.flatten_from(2)?.to_dtype(x.dtype())?; // [B, L, H·d]
        self.o.forward(&y)
    }
}

struct FeedForward {
    layer_norm: Norm,
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
    wo_dtype: DType,
}

impl FeedForward {
    fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let dense = w.pp("DenseReluDense");
        // As in the reference: `wo` overflows f16, so it stays f32, and so does the sum it is added to.
        let wo_dtype = if w.dtype() == DType::F16 { DType::F32 } else { w.dtype() };
        Ok(Self {
            layer_norm: Norm::new(cfg, &w.pp("layer_norm"))?,
            wi_0: Linear::new(cfg.d_model, cfg.d_ff, /* bias */ false, &dense.pp("wi_0"))?,
            wi_1: Linear::new(cfg.d_model, cfg.d_ff, /* bias */ false, &dense.pp("wi_1"))?,
            wo: Linear::new(
                cfg.d_ff,
                cfg.d_model,
                /* bias */ false,
                &dense.pp("wo").with_dtype(wo_dtype),
            )?,
            wo_dtype,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.layer_norm.forward(x)?;
        let y = (self.wi_0.forward_gelu(&x)? * self.wi_1.forward(&x)?)?;
        self.wo.forward(&y.to_dtype(self.wo_dtype)?)
    }
}

/// What attention adds to its scores for the distance between two tokens.
struct PositionBias {
    /// `[buckets, H]`, f32.
    weight: Tensor,
    buckets: usize,
    max_distance: usize,
}

impl PositionBias {
    fn new(cfg: &Config, w: &Loader) -> Result<Self> {
        let buckets = cfg.relative_attention_num_buckets;
        let weight = w.get_f32(&[buckets, cfg.num_heads], "weight")?;
        Ok(Self { weight, buckets, max_distance: cfg.relative_attention_max_distance })
    }

    /// `[1, H, L, L]`, f32.
    fn forward(&self, l: usize) -> Result<Tensor> {
        let rows = (0..l as i64).flat_map(|query| (0..l as i64).map(move |key| key - query));
        let indices: Vec<u32> =
            rows.map(|distance| bucket(distance, self.buckets, self.max_distance)).collect();
        let indices = Tensor::from_vec(indices, l * l, self.weight.device())?;
        let bias = self.weight.index_select(&indices, 0)?.reshape((l, l, ()))?; // [L, L, H]
        Ok(bias.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?)
    }
}

/// The class of a distance (key − query): half of the classes for either sign; of these, half for the
/// single steps and the rest ever wider up to `max_distance`. In f32, as the reference cuts it.
fn bucket(distance: i64, buckets: usize, max_distance: usize) -> u32 {
    let half = buckets / 2;
    let exact = half / 2;
    let side = if distance > 0 { half } else { 0 };
    let steps = distance.unsigned_abs() as usize;
    let class = if steps < exact {
        steps
    } else {
        let growth = (max_distance as f64 / exact as f64).ln() as f32;
        let wide = (steps as f32 / exact as f32).ln() / growth * (half - exact) as f32;
        (exact + wide as usize).min(half - 1)
    };
    (side + class) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_begin_where_the_references_do() {
        let short: Vec<i64> = (0..8).collect();
        let starts = |rest: &[i64]| [short.as_slice(), rest].concat();
        for (buckets, max_distance, starts) in [
            (32, 128, starts(&[8, 12, 16, 23, 32, 46, 64, 91])),
            (12, 40, vec![0, 1, 2, 3, 8, 17]),
            (4, 3, vec![0, 1]),
        ] {
            for distance in 0..600 {
                let class = starts.iter().rposition(|start| *start <= distance).unwrap();
                assert_eq!(bucket(-distance, buckets, max_distance) as usize, class);
                let other_side = if distance > 0 { class + buckets / 2 } else { 0 };
                assert_eq!(bucket(distance, buckets, max_distance) as usize, other_side);
            }
        }
    }
}
