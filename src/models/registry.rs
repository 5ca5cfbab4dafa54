//! The only file that names families: it looks at a checkpoint's header and hands it to its family.

use super::{api::Checkpoint, catalog::catalog, ltx::LtxCheckpoint, source::ModelSource};
use crate::error::{Error, Result};

/// Opens a checkpoint: reads its headers and loads no weight.
///
/// # Errors
/// [`Error::MissingFile`], [`Error::Damaged`], [`Error::Config`] or [`Error::UnknownPipeline`] with the file's name.
pub fn open(source: &ModelSource) -> Result<Box<dyn Checkpoint>> {
    if let ModelSource::Folder(path) = source
        && !path.is_dir()
    {
        let why = if path.exists() { "a file (expected a model folder)" } else { "no such folder" };
        return Err(Error::invalid(format!("model {}", path.display()), why)
            .with_hint("give --model a folder that holds a model_index.json"));
    }
    let index: serde_json::Value =
        source.json("model_index.json", "it says which pipeline the folder holds")?;
    let class = index.get("_class_name").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let pipelines = &catalog().pipelines;
    let entry = pipelines.get(&class).ok_or_else(|| Error::UnknownPipeline {
        path: source.path("model_index.json"),
        found: class.clone(),
        expected: pipelines.keys().cloned().collect::<Vec<_>>().join(", "),
    })?;
    let defaults = match source.read_optional("sora.json")? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::damaged(source.path("sora.json"), e.to_string()))?,
        None => entry.defaults.clone(),
    };
    match entry.family.as_str() {
        "ltx" => Ok(Box::new(LtxCheckpoint::open(source.clone(), &class, defaults)?)),
        other => unreachable!("catalog.toml names family `{other}`, which a test forbids"),
    }
}
