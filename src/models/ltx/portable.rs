//! A transformer or a video autoencoder on its way into another file.

use std::path::Path;

use super::{keys, layout, transformer::TransformerConfig};
use crate::{
    error::{Error, Result},
    models::portable::{Gguf, Portable},
    weights::{Field, Weights},
};

/// A transformer's weights, with what else is in its file, and the form that GGUF files have it in. `config` is the text
/// of its `config.json` and where that lies, if it has one.
pub fn transformer(weights: &Weights, path: &Path, config: Option<(&[u8], &Path)>) -> Result<Portable> {
    let own = keys::transformer_weights(weights)?;
    let config = match config {
        Some((bytes, path)) => {
            let text = str::from_utf8(bytes).map_err(|_| Error::damaged(path, "not UTF-8"))?;
            TransformerConfig::parse(text, path)?
        }
        None => {
            let original = layout::original_config(weights, path)?;
            TransformerConfig::infer(&own, original.get("transformer"), path)?
        }
    };
    let number = |key: &str, value: usize| (format!("ltxv.{key}"), Field::U32(value as u32));
    let fields = vec![
        number("block_count", config.num_layers),
        number("embedding_length", config.inner_dim()),
        number("attention.head_count", config.num_attention_heads),
    ];
    let warning = keys::has_vae(weights).then(|| {
        format!("the video autoencoder stays behind: use --vae {} beside the new file", path.display())
    });
    let renamed = own.renamed(|key| Some(keys::original(key)))?;
    let gguf = Gguf { architecture: "ltxv", weights: renamed, fields, warning };
    Ok(Portable { what: "transformer", stem: layout::MODEL, weights: weights.clone(), gguf: Some(gguf) })
}

/// A video autoencoder's weights, if a file holds one; no GGUF file does.
pub fn vae(weights: &Weights) -> Option<Portable> {
    let known = weights.keys().any(|key| key.trim_start_matches(keys::VAE) == "decoder.conv_in.conv.weight");
    known.then(|| Portable {
        what: "video autoencoder",
        stem: layout::MODEL,
        weights: weights.clone(),
        gguf: None,
    })
}
