//! Which files of a repository make up a model folder.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::name::is_readable;

/// The file that says which folders belong to a model.
pub const MODEL_INDEX: &str = "model_index.json";

const INDEX: &str = ".safetensors.index.json";
const WEIGHTS: &str = ".safetensors";

/// The folders that a `model_index.json` names: its entries of the form `[library, class]`.
pub(super) fn components(model_index: &serde_json::Value) -> BTreeSet<String> {
    let Some(entries) = model_index.as_object() else { return BTreeSet::new() };
    let used = entries.iter().filter(|(_, value)| {
        let pair = value.as_array().filter(|pair| pair.len() == 2);
        pair.is_some_and(|pair| pair.iter().all(serde_json::Value::is_string))
    });
    used.map(|(name, _)| name.clone()).collect()
}

/// The files that a model folder needs: its index, and of each component what can be read. Of weights that are there
/// plain and as a variant (`model.fp16.safetensors`), the plain ones.
pub(super) fn needed<'a>(
    components: &BTreeSet<String>,
    paths: impl Iterator<Item = &'a str>,
) -> Vec<&'a str> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut needed = Vec::new();
    for path in paths.filter(|path| is_readable(path)) {
        match path.split_once('/') {
            None if path == MODEL_INDEX => needed.push(path),
            Some((folder, name)) if components.contains(folder) && !name.contains('/') => {
                found.entry(folder).or_default().push(path);
            }
            _ => {}
        }
    }
    for paths in found.into_values() {
        let plain = paths.iter().any(|path| is_weights(path) && variant(path).is_none());
        needed.extend(paths.into_iter().filter(|path| !(plain && variant(path).is_some())));
    }
    // Whoever finds the index finds a whole model: it comes last.
    needed.sort_by_key(|path| (*path == MODEL_INDEX, *path));
    needed
}

fn is_weights(path: &str) -> bool {
    path.ends_with(WEIGHTS) || path.contains(INDEX.trim_end_matches("json"))
}

/// `fp16` of `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors`, `model.safetensors.index.fp16.json`.
fn variant(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    if let Some((_, rest)) = name.split_once(INDEX.trim_end_matches("json")) {
        return rest.strip_suffix(".json").filter(|variant| !variant.is_empty());
    }
    let stem = name.strip_suffix(WEIGHTS)?;
    let (_, last) = stem.split_once('.')?;
    Some(last.split('-').next().unwrap_or(last)).filter(|variant| !variant.is_empty())
}

/// Shards that an index file lists.
pub(super) fn shards(index: &[u8]) -> BTreeSet<String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Option<Index> = serde_json::from_slice(index).ok();
    index.map(|index| index.weight_map.into_values().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_what_its_index_names() {
        let index = serde_json::json!({
            "_class_name": "LTXPipeline", "_diffusers_version": "0.32.0", "text_encoder": ["transformers", "T5"],
            "vae": ["diffusers", "V"], "safety_checker": [null, null],
        });
        let components = components(&index);
        assert_eq!(components.iter().map(String::as_str).collect::<Vec<_>>(), ["text_encoder", "vae"]);
        let paths = [
            "README.md",
            "ltxv-13b.safetensors",
            "media/cat.json",
            "model_index.json",
            "safety_checker/model.safetensors",
            "text_encoder/config.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "text_encoder/model.fp16-00001-of-00001.safetensors",
            "text_encoder/model.safetensors.index.fp16.json",
            "text_encoder/model.safetensors.index.json",
            "text_encoder/pytorch_model.bin",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "vae/sub/config.json",
        ];
        assert_eq!(
            needed(&components, paths.into_iter()),
            [
                "text_encoder/config.json",
                "text_encoder/model-00001-of-00002.safetensors",
                "text_encoder/model-00002-of-00002.safetensors",
                "text_encoder/model.safetensors.index.json",
                "vae/config.json",
                "vae/diffusion_pytorch_model.fp16.safetensors",
                "model_index.json",
            ]
        );
    }

    #[test]
    fn an_index_lists_its_shards() {
        let index = br#"{"metadata": {}, "weight_map": {"a": "x", "b": "y", "c": "x"}}"#;
        assert_eq!(shards(index).into_iter().collect::<Vec<_>>(), ["x", "y"]);
        assert!(shards(b"{").is_empty());
    }
}
