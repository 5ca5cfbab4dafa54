//! The encoder's `config.json`.

use std::{fs, path::Path};

use serde::Deserialize;

use crate::{
    error::{Error, Result},
    nn::linear,
    weights::{Audit, Weights},
};

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
    /// Peak bytes beside the weights while a text of `tokens` tokens is read. An estimate, from shapes, in f32.
    #[must_use]
    pub fn activation_bytes(&self, tokens: usize) -> u64 {
        let (inner, heads) = (self.num_heads * self.d_kv, self.num_heads);
        // The stream with its normed copy; queries, keys, values and result; scores before and after softmax, and the
        // table of distances; the two halves of the feed-forward layer and their product.
        let stream = 3 * self.d_model;
        let attention = 4 * inner + 3 * heads * tokens;
        let feed_forward = 3 * self.d_ff;
        // Matrices that aren't kept in f32 are widened so many rows at a time.
        let widened = linear::ROWS * self.d_ff.max(self.d_model);
        ((tokens * (stream + attention.max(feed_forward)) + widened) * size_of::<f32>()) as u64
    }

    /// Reads and checks a `config.json`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, &fs::read(path).map_err(Error::file("read", path))?)
    }

    /// Checks the content of a `config.json`; `path` is for error messages.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| Error::damaged(path, e.to_string()))?;
        config.check(path)?;
        Ok(config)
    }

    /// Finds out what an encoder with these tensors is, under the published names; what no shape tells is as in T5
    /// v1.1, or as the metadata of a GGUF file has it.
    pub fn infer(weights: &Weights, path: &Path) -> Result<Self> {
        let shape = |key: &str| match weights.shape(key) {
            Some(&[out, into]) => Ok((out, into)),
            _ => Err(Error::MissingTensor { file: path.into(), key: key.into(), expected: vec![0, 0] }),
        };
        let said = |key: &str| {
            let architecture = weights.gguf_text("general.architecture")?;
            weights.gguf_number(&format!("{architecture}.{key}"))
        };
        let table = ["shared.weight", "encoder.embed_tokens.weight"];
        let (vocab_size, d_model) =
            shape(table.into_iter().find(|key| weights.contains(key)).unwrap_or(table[0]))?;
        let first = "encoder.block.0.layer";
        let bias = format!("{first}.0.SelfAttention.relative_attention_bias.weight");
        let (relative_attention_num_buckets, num_heads) = shape(&bias)?;
        let (inner, _) = shape(&format!("{first}.0.SelfAttention.q.weight"))?;
        let (d_ff, _) = shape(&format!("{first}.1.DenseReluDense.wi_0.weight"))?;
        let layers = (0..)
            .take_while(|i| weights.contains(&format!("encoder.block.{i}.layer.0.SelfAttention.q.weight")));
        let default = Self::default();
        let config = Self {
            vocab_size,
            d_model,
            d_kv: inner / num_heads.max(1),
            d_ff,
            num_layers: layers.count(),
            num_heads,
            relative_attention_num_buckets,
            layer_norm_epsilon: said("attention.layer_norm_rms_epsilon")
                .unwrap_or(default.layer_norm_epsilon),
            feed_forward_proj: "gated-gelu".into(),
            ..default
        };
        config.check(path)?;
        Ok(config)
    }

    /// Expects all tensors of the encoder.
    pub fn expect(&self, audit: &mut Audit<'_>) -> Result<()> {
        let (inner, width) = (self.num_heads * self.d_kv, self.d_model);
        // The same table has two names, and a file may hold either or both.
        let tables = ["shared.weight", "encoder.embed_tokens.weight"];
        let mut there: Vec<&str> = tables.into_iter().filter(|key| audit.has(key)).collect();
        if there.is_empty() {
            there.push(tables[0]);
        }
        for key in there {
            audit.expect(key.into(), &[self.vocab_size, width])?;
        }
        let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        audit.expect(bias.into(), &[self.relative_attention_num_buckets, self.num_heads])?;
        for i in 0..self.num_layers {
            let layer = format!("encoder.block.{i}.layer");
            for name in ["q", "k", "v"] {
                audit.expect(format!("{layer}.0.SelfAttention.{name}.weight"), &[inner, width])?;
            }
            audit.expect(format!("{layer}.0.SelfAttention.o.weight"), &[width, inner])?;
            for name in ["wi_0", "wi_1"] {
                audit.expect(format!("{layer}.1.DenseReluDense.{name}.weight"), &[self.d_ff, width])?;
            }
            audit.expect(format!("{layer}.1.DenseReluDense.wo.weight"), &[width, self.d_ff])?;
            audit.expect(format!("{layer}.0.layer_norm.weight"), &[width])?;
            audit.expect(format!("{layer}.1.layer_norm.weight"), &[width])?;
        }
        audit.expect("encoder.final_layer_norm.weight".into(), &[width])
    }

    fn check(&self, path: &Path) -> Result<()> {
        let config = self;
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
            return wrong("feed_forward_proj", config.feed_forward_proj.clone(), "gated-gelu: T5 v1.1");
        }
        Ok(())
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
