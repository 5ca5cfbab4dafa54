//! The encoder's `config.json`.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Sizes of a T5 v1.1 encoder, as in the published `config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the states.
    pub d_model: usize,
    /// Width of one attention head.
    pub d_kv: usize,
    /// Width inside the feed-forward layers.
    pub d_ff: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Distances are told apart in this many classes, half of them to either side.
    pub relative_attention_num_buckets: usize,
    /// Distances from here on are alike.
    pub relative_attention_max_distance: usize,
    /// Added to the variance in every norm.
    pub layer_norm_epsilon: f64,
    /// The kind of feed-forward layer; `gated-gelu` is what v1.1 has.
    pub feed_forward_proj: String,
}

impl Default for Config {
    /// What a `config.json` means by leaving a key out.
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".into(),
        }
    }
}

impl Config {
    /// Reads and checks a `config.json`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, &fs::read(path).map_err(Error::file("read", path))?)
    }

    /// Checks the content of a `config.json`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| Error::damaged(path, e.to_string()))?;
        let wrong = |key: &str, found: String, expected: &str| {
            Err(Error::Config { path: path.into(), key: key.into(), found, expected: expected.into() })
        };
        for (key, value) in [
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_layers", config.num_layers),
            ("num_heads", config.num_heads),
        ] {
            if !(1..=1 << 20).contains(&value) {
                return wrong(key, value.to_string(), "1 to 1048576");
            }
        }
        let buckets = config.relative_attention_num_buckets;
        if !(4..=1 << 20).contains(&buckets) {
            return wrong("relative_attention_num_buckets", buckets.to_string(), "4 to 1048576");
        }
        let distance = config.relative_attention_max_distance;
        if distance <= buckets / 4 {
            return wrong(
                "relative_attention_max_distance",
                distance.to_string(),
                "more than a quarter of relative_attention_num_buckets",
            );
        }
        if config.feed_forward_proj != "gated-gelu" {
            return wrong("feed_forward_proj", config.feed_forward_proj, "gated-gelu: T5 v1.1");
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_which_key_is_wrong() {
        let parse = |text: &str| Config::parse(Path::new("config.json"), text.as_bytes());
        let base =
            parse(r#"{"feed_forward_proj": "gated-gelu", "d_model": 4096, "torch_dtype": "bfloat16"}"#);
        assert_eq!(base.unwrap().d_model, 4096);
        let key = |text: &str| match parse(text) {
            Err(Error::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(key("{}"), "feed_forward_proj");
        assert_eq!(key(r#"{"feed_forward_proj": "gated-silu"}"#), "feed_forward_proj");
        assert_eq!(key(r#"{"num_heads": 0}"#), "num_heads");
        assert_eq!(key(r#"{"relative_attention_num_buckets": 2}"#), "relative_attention_num_buckets");
        assert_eq!(key(r#"{"relative_attention_max_distance": 8}"#), "relative_attention_max_distance");
        assert!(matches!(parse("{"), Err(Error::Damaged { .. })));
        assert!(matches!(parse(r#"{"d_model": -1}"#), Err(Error::Damaged { .. })));
    }
}
