//! `transformer/config.json`.

use std::path::Path;

use super::{
    block::WIDENING,
    time::{BLOCK_VECTORS, FINAL_VECTORS},
};
use crate::{
    error::{Error, Result},
    weights::{Audit, Weights},
};

/// Inputs of the embedding of a time.
const SINUSOIDS: usize = 256;

/// The published configuration; what a file leaves out takes the reference's default.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct TransformerConfig {
    /// Channels of a token: latent channels × patch volume.
    pub in_channels: usize,
    /// Channels of a predicted token; none or 0 means as many as go in.
    pub out_channels: Option<usize>,
    /// Latent cells that are joined along a side.
    pub patch_size: usize,
    /// Latent frames that are joined.
    pub patch_size_t: usize,
    /// Heads of each attention.
    pub num_attention_heads: usize,
    /// Channels of a head.
    pub attention_head_dim: usize,
    /// Channels of the text as the blocks read it; the projection makes them as many as the blocks have.
    pub cross_attention_dim: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Activation of the feed-forward layers.
    pub activation_fn: String,
    /// Norm of queries and keys.
    pub qk_norm: String,
    /// Whether the blocks' norms have weights.
    pub norm_elementwise_affine: bool,
    /// Added to mean squares in the blocks' norms.
    pub norm_eps: f64,
    /// Channels of the text encoder's states.
    pub caption_channels: usize,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Whether the attentions' outputs have biases.
    pub attention_out_bias: bool,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            in_channels: 128,
            out_channels: Some(128),
            patch_size: 1,
            patch_size_t: 1,
            num_attention_heads: 32,
            attention_head_dim: 64,
            cross_attention_dim: 2048,
            num_layers: 28,
            activation_fn: "gelu-approximate".into(),
            qk_norm: "rms_norm_across_heads".into(),
            norm_elementwise_affine: false,
            norm_eps: 1e-6,
            caption_channels: 4096,
            attention_bias: true,
            attention_out_bias: true,
        }
    }
}

impl TransformerConfig {
    /// Reads a `config.json`; `path` is for error messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_str(text).map_err(|e| Error::damaged(path, e.to_string()))?;
        config.check(path)?;
        Ok(config)
    }

    /// Channels of a token inside the transformer.
    #[must_use]
    pub fn inner_dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of a predicted token.
    #[must_use]
    pub fn out_channels(&self) -> usize {
        match self.out_channels {
            None | Some(0) => self.in_channels,
            Some(channels) => channels,
        }
    }

    /// Finds out what a transformer with these tensors is. `original` is its configuration in the original's form, if
    /// its file has one. Without one the number of heads is that of all published models, which no shape tells; a GGUF
    /// file may say it, too.
    pub fn infer(weights: &Weights, original: Option<&serde_json::Value>, path: &Path) -> Result<Self> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Original {
            num_attention_heads: Option<usize>,
            norm_eps: Option<f64>,
        }
        let original: Original = original
            .map(|json| serde_json::from_value(json.clone()))
            .transpose()
            .map_err(|e| Error::damaged(path, format!("its configuration of the transformer: {e}")))?
            .unwrap_or_default();
        let default = Self::default();
        let shape = |key: &str| match weights.shape(key) {
            Some(&[out, into]) => Ok((out, into)),
            _ => Err(Error::MissingTensor { file: path.into(), key: key.into(), expected: vec![0, 0] }),
        };
        let (inner, in_channels) = shape("proj_in.weight")?;
        let heads = original.num_attention_heads.or_else(|| {
            let heads = weights.gguf_number("ltxv.attention.head_count")?;
            (heads >= 1.0).then_some(heads as usize)
        });
        let heads = heads.unwrap_or(default.num_attention_heads);
        let first = "transformer_blocks.0";
        let layers =
            (0..).take_while(|i| weights.contains(&format!("transformer_blocks.{i}.scale_shift_table")));
        let config = Self {
            in_channels,
            out_channels: Some(shape("proj_out.weight")?.0),
            num_attention_heads: heads,
            attention_head_dim: inner / heads.max(1),
            cross_attention_dim: inner,
            num_layers: layers.count(),
            norm_elementwise_affine: weights.contains(&format!("{first}.norm1.weight")),
            norm_eps: original.norm_eps.unwrap_or(default.norm_eps),
            caption_channels: shape("caption_projection.linear_1.weight")?.1,
            attention_bias: weights.contains(&format!("{first}.attn1.to_q.bias")),
            attention_out_bias: weights.contains(&format!("{first}.attn1.to_out.0.bias")),
            ..default
        };
        config.check(path)?;
        Ok(config)
    }

    /// Expects all tensors of the transformer.
    pub fn expect(&self, audit: &mut Audit<'_>) -> Result<()> {
        let dim = self.inner_dim();
        let linear =
            |audit: &mut Audit<'_>, name: &str, (out, into): (usize, usize), bias: bool| -> Result<()> {
                audit.expect(format!("{name}.weight"), &[out, into])?;
                if bias { audit.expect(format!("{name}.bias"), &[out]) } else { Ok(()) }
            };
        linear(audit, "proj_in", (dim, self.in_channels), true)?;
        audit.expect("scale_shift_table".into(), &[FINAL_VECTORS, dim])?;
        linear(audit, "time_embed.emb.timestep_embedder.linear_1", (dim, SINUSOIDS), true)?;
        linear(audit, "time_embed.emb.timestep_embedder.linear_2", (dim, dim), true)?;
        linear(audit, "time_embed.linear", (BLOCK_VECTORS * dim, dim), true)?;
        linear(audit, "caption_projection.linear_1", (dim, self.caption_channels), true)?;
        linear(audit, "caption_projection.linear_2", (dim, dim), true)?;
        for i in 0..self.num_layers {
            let block = format!("transformer_blocks.{i}");
            audit.expect(format!("{block}.scale_shift_table"), &[BLOCK_VECTORS, dim])?;
            for (norm, attention) in [("norm1", "attn1"), ("norm2", "attn2")] {
                if self.norm_elementwise_affine {
                    audit.expect(format!("{block}.{norm}.weight"), &[dim])?;
                }
                let attention = format!("{block}.{attention}");
                audit.expect(format!("{attention}.norm_q.weight"), &[dim])?;
                audit.expect(format!("{attention}.norm_k.weight"), &[dim])?;
                for name in ["to_q", "to_k", "to_v"] {
                    linear(audit, &format!("{attention}.{name}"), (dim, dim), self.attention_bias)?;
                }
                linear(audit, &format!("{attention}.to_out.0"), (dim, dim), self.attention_out_bias)?;
            }
            linear(audit, &format!("{block}.ff.net.0.proj"), (WIDENING * dim, dim), true)?;
            linear(audit, &format!("{block}.ff.net.2"), (dim, WIDENING * dim), true)?;
        }
        linear(audit, "proj_out", (self.out_channels(), dim), true)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let refuse = |key: &str, found: String, expected: String| {
            Err(Error::Config { path: path.into(), key: key.into(), found, expected })
        };
        if self.activation_fn != "gelu-approximate" {
            return refuse("activation_fn", self.activation_fn.clone(), "gelu-approximate".into());
        }
        if self.qk_norm != "rms_norm_across_heads" {
            return refuse("qk_norm", self.qk_norm.clone(), "rms_norm_across_heads".into());
        }
        for (key, value) in [
            ("in_channels", self.in_channels),
            ("patch_size", self.patch_size),
            ("patch_size_t", self.patch_size_t),
            ("num_attention_heads", self.num_attention_heads),
            ("attention_head_dim", self.attention_head_dim),
            ("caption_channels", self.caption_channels),
            ("num_layers", self.num_layers),
        ] {
            if value == 0 {
                return refuse(key, "0".into(), "1 or more".into());
            }
            if value > 1 << 24 {
                return refuse(key, value.to_string(), "a sensible size".into());
            }
        }
        let Some(inner) =
            self.num_attention_heads.checked_mul(self.attention_head_dim).filter(|n| *n < 1 << 24)
        else {
            return refuse(
                "attention_head_dim",
                self.attention_head_dim.to_string(),
                "a sensible size".into(),
            );
        };
        if inner % 2 != 0 {
            let expected = "heads × head dimension must be even: channels are turned in pairs".into();
            return refuse("attention_head_dim", self.attention_head_dim.to_string(), expected);
        }
        if self.cross_attention_dim != inner {
            let expected = format!("{inner}, as heads × head dimension");
            return refuse("cross_attention_dim", self.cross_attention_dim.to_string(), expected);
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return refuse("norm_eps", self.norm_eps.to_string(), "a small number".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TransformerConfig> {
        TransformerConfig::parse(text, Path::new("config.json"))
    }

    #[test]
    fn what_is_left_out_is_the_published_model() {
        let config = parse(r#"{"_class_name": "LTXVideoTransformer3DModel", "out_channels": null}"#).unwrap();
        assert_eq!(config, TransformerConfig { out_channels: None, ..Default::default() });
        assert_eq!((config.inner_dim(), config.out_channels()), (2048, 128));
    }

    #[test]
    fn values_that_no_code_here_implements_are_refused() {
        for (text, words) in [
            (r#"{"activation_fn": "geglu"}"#, "`activation_fn` is geglu (expected gelu-approximate)"),
            (r#"{"qk_norm": "layer_norm"}"#, "`qk_norm` is layer_norm (expected rms_norm_across_heads)"),
            (r#"{"num_attention_heads": 31}"#, "`cross_attention_dim` is 2048 (expected 1984"),
            (r#"{"num_attention_heads": 3, "attention_head_dim": 5, "cross_attention_dim": 15}"#, "in pairs"),
            (r#"{"patch_size": 0}"#, "`patch_size` is 0 (expected 1 or more)"),
            (r#"{"norm_eps": -1}"#, "`norm_eps` is -1"),
            ("{", "damaged"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
