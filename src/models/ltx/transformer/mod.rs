//! The spacetime transformer (`LTXVideoTransformer3DModel`).
//!
//! What is constant is computed outside [`LtxTransformer::forward`]: the text's keys and values
//! ([`LtxTransformer::text`]), positions ([`LtxTransformer::positions`]), and what a step's times come to
//! ([`LtxTransformer::times`]).

mod attention;
mod block;
mod config;
mod positions;
mod time;

use candle_core::{DType, Device, Tensor};

use self::{
    attention::KeysValues,
    block::{Block, WIDENING},
    time::{FINAL_VECTORS, TimeEmbed},
};
pub use self::{config::TransformerConfig, positions::Positions, time::TimeContext};
use crate::{
    error::Result,
    models::{api::Skip, step_cache::CachedBranch},
    nn::{
        linear::{self, Linear},
        modulate::Norm,
        product,
        rope::Rotary,
    },
    weights::Loader,
};

/// What a masked token of the text has added to its score.
const MASKED: f64 = -10_000.0;
/// Of the last norm; the configuration's is only for the blocks.
const LAST_EPS: f64 = 1e-6;

/// The transformer of the family.
pub struct LtxTransformer {
    proj_in: Linear,
    /// `[2, D]`, f32.
    scale_shift_table: Tensor,
    time_embed: TimeEmbed,
    caption_projection: CaptionProjection,
    rope: Positions,
    transformer_blocks: Vec<Block>,
    proj_out: Linear,
    config: TransformerConfig,
    device: Device,
    dtype: DType,
}

/// A text as the blocks read it.
#[derive(Debug, Clone)]
pub struct TextContext {
    blocks: Vec<KeysValues>,
    /// `[B, 1, 1, Lt]`, f32, unless no token is masked.
    bias: Option<Tensor>,
}

impl LtxTransformer {
    /// Reads all weights below `w`; the caller ends with `w.finish`.
    pub fn new(cfg: &TransformerConfig, w: &Loader) -> Result<Self> {
        let dim = cfg.inner_dim();
        let blocks = w.pp("transformer_blocks");
        Ok(Self {
            proj_in: Linear::new(cfg.in_channels, dim, /* bias */ true, &w.pp("proj_in"))?,
            scale_shift_table: w.get_f32(&[FINAL_VECTORS, dim], "scale_shift_table")?,
            time_embed: TimeEmbed::new(dim, &w.pp("time_embed"))?,
            caption_projection: CaptionProjection::new(
                cfg.caption_channels,
                dim,
                &w.pp("caption_projection"),
            )?,
            rope: Positions::new(dim),
            transformer_blocks: (0..cfg.num_layers)
                .map(|i| Block::new(cfg, &blocks.pp(i)))
                .collect::<Result<_>>()?,
            proj_out: Linear::new(dim, cfg.out_channels(), /* bias */ true, &w.pp("proj_out"))?,
            config: cfg.clone(),
            device: w.device().clone(),
            dtype: w.dtype(),
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Where the weights are.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tables for tokens at `coords` `[3, L]`, or `[B, 3, L]` where clips differ, f32: seconds, and pixels from
    /// the top and the left.
    pub fn positions(&self, coords: &Tensor) -> Result<Rotary> {
        self.rope.table(coords, &self.device)
    }

    /// Projects a text and computes every block's keys and values of it.
    ///
    /// `states` is `[B, Lt, caption_channels]`, `mask` `[B, Lt]`, 1 for a token and 0 for padding. Padding that
    /// all clips have at their ends is cut off: its bias leaves it no weight in f32.
    pub fn text(&self, states: &Tensor, mask: &Tensor) -> Result<TextContext> {
        let (b, _, _) = states.dims3()?;
        let rows = mask.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let kept = used_length(&rows);
        let states = states.narrow(1, 0, kept)?.to_device(&self.device)?.to_dtype(self.dtype)?;
        let text = self.caption_projection.forward(&states)?; // [B, Lt, D]
        let bias = rows
            .iter()
            .any(|row| row[..kept].iter().any(|token| *token != 1.0))
            .then(|| -> Result<Tensor> {
                let mask = mask.to_dtype(DType::F32)?.narrow(1, 0, kept)?.to_device(&self.device)?;
                Ok(mask.affine(-MASKED, MASKED)?.reshape((b, 1, 1, kept))?) // (1 - mask) · MASKED
            })
            .transpose()?;
        let blocks =
            self.transformer_blocks.iter().map(|block| block.keys_values(&text)).collect::<Result<_>>()?;
        Ok(TextContext { blocks, bias })
    }

    /// What `times` (sigma × 1000, f32) come to: `[B]` or `[B, 1]`, one for each clip, or `[B, L]`, one for each of
    /// `tokens` tokens.
    pub fn times(&self, times: &Tensor, tokens: usize) -> Result<TimeContext> {
        self.time_embed.forward(times, tokens)
    }

    /// `tokens` `[B, L, in_channels]` → `[B, L, out_channels]`, the weights' dtype.
    pub fn forward(
        &self,
        tokens: &Tensor,
        text: &TextContext,
        time: &TimeContext,
        rotary: &Rotary,
    ) -> Result<Tensor> {
        self.forward_with(tokens, text, time, rotary, None, None)
    }

    /// As [`LtxTransformer::forward`], with parts of some blocks left out, or all blocks but the first where `cache`
    /// has what they would say.
    pub fn forward_with(
        &self,
        tokens: &Tensor,
        text: &TextContext,
        time: &TimeContext,
        rotary: &Rotary,
        skip: Option<&Skip>,
        cache: Option<CachedBranch<'_>>,
    ) -> Result<Tensor> {
        let (_, _, _) = tokens.dims3()?;
        let mut x = self.proj_in.forward(&tokens.to_dtype(self.dtype)?)?; // [B, L, D]
        let run = |number: usize, x: &Tensor| {
            let mode = skip.filter(|skip| skip.blocks.contains(&number)).map(|skip| skip.mode);
            let (block, text_kv) = (&self.transformer_blocks[number], &text.blocks[number]);
            block.forward(x, time, rotary, text_kv, text.bias.as_ref(), mode)
        };
        let count = self.transformer_blocks.len();
        match cache {
            Some(mut cache) if count > 1 => {
                let before = x;
                x = run(0, &before)?;
                let first = (&x - before)?;
                if let Some(rest) = cache.rest(&first)? {
                    x = (x + rest)?;
                } else {
                    let head = x.clone();
                    for number in 1..count {
                        x = run(number, &x)?;
                    }
                    cache.keep(first, (&x - head)?);
                }
            }
            _ => {
                for number in 0..count {
                    x = run(number, &x)?;
                }
            }
        }
        let vectors = time.last(&self.scale_shift_table)?;
        let x = vectors.apply(&x, Norm::Layer { eps: LAST_EPS }, /* shift */ 0, /* scale */ 1)?;
        self.proj_out.forward(&x)
    }

    /// Peak bytes beside the weights of one pass over `tokens` tokens of one clip, with the position tables and
    /// two texts of 128 tokens. An estimate, from shapes.
    #[must_use]
    pub fn activation_bytes(cfg: &TransformerConfig, tokens: usize, dtype: DType) -> u64 {
        let (dim, size) = (cfg.inner_dim() as u64, dtype.size_in_bytes() as u64);
        let widened = size_of::<f32>() as u64;
        let values = tokens as u64 * dim;
        // The stream and its normalised copy, then queries, keys and values, their rotated copies, and those that are
        // laid out for the kernels; the feed-forward layer takes less.
        let mut bytes = values * (2 + 2 * WIDENING as u64) * size;
        if dtype != DType::F32 {
            // Kernels read and write f32.
            bytes += values * 2 * WIDENING as u64 * widened;
        }
        // Matrices that aren't kept in f32 are widened so many rows at a time, and rows of tokens are laid out.
        bytes += ((linear::ROWS + tokens.min(product::TOGETHER)) * WIDENING) as u64 * dim * widened;
        let tables = values * widened;
        let texts = 2 * 128 * dim * 2 * cfg.num_layers as u64 * size;
        bytes + tables + texts
    }
}

/// Tokens of the longest text, its trailing padding cut off; all where some text is nothing but padding.
///
/// Such a text has the same bias on all its keys, which cancels: its padding does count.
fn used_length(mask: &[Vec<f32>]) -> usize {
    let all = mask.first().map_or(0, Vec::len);
    let used = |row: &Vec<f32>| row.iter().rposition(|token| *token != 0.0).map_or(all, |last| last + 1);
    mask.iter().map(used).max().unwrap_or(all)
}

/// `caption_projection`, as in PixArt.
struct CaptionProjection {
    linear_1: Linear,
    linear_2: Linear,
}

impl CaptionProjection {
    fn new(d_in: usize, dim: usize, w: &Loader) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(d_in, dim, /* bias */ true, &w.pp("linear_1"))?,
            linear_2: Linear::new(dim, dim, /* bias */ true, &w.pp("linear_2"))?,
        })
    }

    fn forward(&self, text: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&self.linear_1.forward_gelu(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_padding_that_all_texts_share_is_cut() {
        let row = |text: &str| text.chars().map(|c| f32::from(u8::from(c == '1'))).collect::<Vec<_>>();
        assert_eq!(used_length(&[row("110000")]), 2);
        assert_eq!(used_length(&[row("110000"), row("101100")]), 4);
        assert_eq!(used_length(&[row("110000"), row("000000")]), 6);
        assert_eq!(used_length(&[row("111")]), 3);
    }

    #[test]
    fn memory_grows_with_the_clip() {
        let cfg = TransformerConfig::default();
        let bytes = |tokens, dtype| LtxTransformer::activation_bytes(&cfg, tokens, dtype);
        let slope = (bytes(6000, DType::F32) - bytes(5000, DType::F32)) as f64 / (1000.0 * 2048.0);
        assert!((40.0..60.0).contains(&slope), "{slope} bytes a value");
        assert!(bytes(5000, DType::BF16) < 2 * bytes(5000, DType::F32));
    }
}
