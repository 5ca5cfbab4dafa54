//! An encoder on its way into another file.

use std::path::Path;

use super::{Config, TokenizerPlace, encoder_weights, keys};
use crate::{
    error::{Error, Result},
    models::portable::{Gguf, Portable},
    weights::{Field, Weights},
};

/// An encoder's weights, and the form that GGUF files have them in. `config` is the text of its `config.json` and where
/// that lies, if it has one.
pub fn portable(weights: &Weights, path: &Path, config: Option<(&[u8], &Path)>) -> Result<Portable> {
    let weights = encoder_weights(weights)?;
    let config = match config {
        Some((bytes, path)) => Config::parse(path, bytes)?,
        None => Config::infer(&weights, path)?,
    };
    // The embedding is there once in such a file.
    let twice = weights.contains("shared.weight") && weights.contains("encoder.embed_tokens.weight");
    let second = |key: &str| twice && key == "encoder.embed_tokens.weight";
    let own = |key: &str| !second(key) && !key.starts_with("decoder.") && key != "lm_head.weight";
    let weights = weights.renamed(|key| own(key).then(|| key.to_owned()))?;
    let foreign = weights.keys().find(|key| keys::to_gguf(key).is_none());
    if let Some(key) = foreign {
        let file = weights.first_file();
        return Err(Error::UnusedTensors { file, count: 1, first: key.to_owned() });
    }
    let number = |key: &str, value: usize| (format!("t5encoder.{key}"), Field::U32(value as u32));
    let epsilon = |key: &str| (format!("t5encoder.{key}"), Field::F32(config.layer_norm_epsilon as f32));
    let mut fields = vec![
        ("general.name".to_owned(), Field::Text("T5 v1.1 encoder".into())),
        number("context_length", 512),
        number("embedding_length", config.d_model),
        number("feed_forward_length", config.d_ff),
        number("block_count", config.num_layers),
        number("attention.head_count", config.num_heads),
        number("attention.key_length", config.d_kv),
        number("attention.value_length", config.d_kv),
        epsilon("attention.layer_norm_epsilon"),
        epsilon("attention.layer_norm_rms_epsilon"),
        number("attention.relative_buckets_count", config.relative_attention_num_buckets),
    ];
    let tokenizer = TokenizerPlace::of_encoder(path)?;
    let warning = tokenizer.is_none().then(|| {
        "no tokenizer lies beside the text encoder, so that the file has none: give --tokenizer where it is used"
            .to_owned()
    });
    if let Some(place) = tokenizer {
        fields.extend(place.open()?.to_gguf(config.vocab_size));
    }
    let gguf = Gguf { architecture: "t5encoder", weights: weights.renamed(keys::to_gguf)?, fields, warning };
    Ok(Portable { what: "text encoder", stem: "model", weights, gguf: Some(gguf) })
}
