//! `transformer/config.json`.

use std::path::Path;

use crate::error::{Error, Result};

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
        ] {
            if value == 0 {
                return refuse(key, "0".into(), "1 or more".into());
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
