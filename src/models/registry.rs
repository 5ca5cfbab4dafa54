//! The only file that names families: it looks at a checkpoint's header and hands it to its family.

use std::path::Path;

use super::{
    api::{Checkpoint, UpsamplerSource},
    catalog::catalog,
    ltx::{LtxCheckpoint, upsampler::LtxUpsamplerSource},
    source::ModelSource,
};
use crate::{
    error::{Error, Result},
    weights::Weights,
};

/// Opens a checkpoint: reads its headers and loads no weight.
///
/// # Errors
/// [`Error::MissingFile`], [`Error::Damaged`], [`Error::Config`] or [`Error::UnknownPipeline`] with the file's name; for
/// files that aren't a whole model [`Error::MissingPart`].
pub fn open(source: &ModelSource) -> Result<Box<dyn Checkpoint>> {
    open_as(source, /* conditioned */ false)
}

/// As [`open`], for renders with pictures or clips as prompts: a folder whose own pipeline knows text alone is
/// opened as the pipeline of its family that takes them.
pub fn open_conditioned(source: &ModelSource) -> Result<Box<dyn Checkpoint>> {
    open_as(source, /* conditioned */ true)
}

fn open_as(source: &ModelSource, conditioned: bool) -> Result<Box<dyn Checkpoint>> {
    match source.base() {
        // Its class is the one that takes all that its version can.
        ModelSource::File(path) => return open_file(source, path),
        ModelSource::Folder(path) if !path.is_dir() => {
            let why = if path.exists() { "neither a file nor a folder" } else { "no such file or folder" };
            return Err(Error::invalid(format!("model {}", path.display()), why).with_hint(
                "give --model a folder that holds a model_index.json, or a safetensors or GGUF file",
            ));
        }
        _ => {}
    }
    let index: serde_json::Value =
        source.json("model_index.json", "it says which pipeline the folder holds")?;
    let class = index.get("_class_name").and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let pipelines = &catalog().pipelines;
    let unknown = |class: &str| Error::UnknownPipeline {
        path: source.path("model_index.json"),
        found: class.to_owned(),
        expected: pipelines.keys().cloned().collect::<Vec<_>>().join(", "),
    };
    let entry = pipelines.get(&class).ok_or_else(|| unknown(&class))?;
    let class = match entry.family.as_str() {
        "ltx" if conditioned => LtxCheckpoint::conditioned_class(source, &class)?.to_owned(),
        _ => class,
    };
    let entry = pipelines.get(&class).ok_or_else(|| unknown(&class))?;
    let defaults = match source.read_optional("sora.json")? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .map_err(|e| Error::damaged(source.path("sora.json"), e.to_string()))?,
        None => entry.defaults.clone(),
    };
    match entry.family.as_str() {
        "ltx" => Ok(Box::new(LtxCheckpoint::open(source, &class, defaults)?)),
        other => unreachable!("catalog.toml names family `{other}`, which a test forbids"),
    }
}

/// Opens a latent upsampler for a checkpoint: reads its headers and loads no weight.
///
/// # Errors
/// As [`open`]'s, and [`Error::Invalid`] if it is for latents of another kind.
pub fn open_upsampler(path: &Path, checkpoint: &dyn Checkpoint) -> Result<Box<dyn UpsamplerSource>> {
    if !path.exists() {
        return Err(Error::invalid(format!("upsampler {}", path.display()), "no such file or folder"));
    }
    let source = LtxUpsamplerSource::open(path)?;
    let (found, info) = (source.info().channels, checkpoint.info());
    if found != info.geometry.channels {
        let why = format!("it is for {found} channels, `{}` has {}", info.name, info.geometry.channels);
        return Err(Error::invalid(format!("upsampler {}", path.display()), why));
    }
    Ok(Box::new(source))
}

/// Opens a model whose denoiser is one file: its tensors say which family it belongs to.
fn open_file(source: &ModelSource, path: &Path) -> Result<Box<dyn Checkpoint>> {
    let weights = Weights::open_files(&[path.to_owned()])?;
    if !LtxCheckpoint::recognises(&weights) {
        let hint = "give --model the file with the transformer; its text encoder and video autoencoder go to \
                    --text-encoder and --vae";
        return Err(Error::MissingPart {
            path: path.to_owned(),
            what: "transformer that this program knows",
            hint: hint.into(),
        });
    }
    let parts = LtxCheckpoint::parts_of(source)?;
    let class = parts.class();
    let entry = catalog().pipelines.get(class).expect("a family's classes are in the catalog: a test looks");
    Ok(Box::new(LtxCheckpoint::assemble(source, parts, entry.defaults.clone())?))
}

#[cfg(test)]
mod tests {
    use super::{LtxCheckpoint, catalog};

    #[test]
    fn every_class_is_in_the_catalog() {
        assert!(LtxCheckpoint::CLASSES.iter().all(|class| catalog().pipelines.contains_key(*class)));
    }
}
