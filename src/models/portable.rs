//! Parts of a model on their way into files of other number formats.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{ltx, t5};
use crate::{
    error::{Error, Result},
    weights::{Field, Save, Weights},
};

pub use crate::weights::Format;

/// One part of a model as its file has it.
pub struct Portable {
    /// What it is.
    pub what: &'static str,
    /// What its file is called in a folder of the published layout.
    pub stem: &'static str,
    /// Its tensors, and whatever else is in its file.
    pub weights: Weights,
    /// How GGUF files have it; nothing where none does.
    pub gguf: Option<Gguf>,
}

/// A part of a model as GGUF files have it.
pub struct Gguf {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The tensors under the names that are used there.
    pub weights: Weights,
    /// What the file says of itself.
    pub fields: Vec<(String, Field)>,
    /// What whoever uses the file should know.
    pub warning: Option<String>,
}

impl Portable {
    /// Writes it in another format; gives what whoever uses the file should know. `progress` is told how many tensors of
    /// how many are done.
    pub fn write(
        &self,
        format: Format,
        to: &Path,
        progress: &dyn Fn(usize, usize) -> Result<()>,
    ) -> Result<Option<String>> {
        if !format.is_gguf() {
            let metadata = self.weights.all_metadata();
            Save { format, metadata, progress, ..Save::new(&self.weights) }.write(to)?;
            return Ok(None);
        }
        let Some(gguf) = &self.gguf else {
            let what = format!("dtype {format} for a {}", self.what);
            return Err(Error::invalid(what, "there is no such GGUF file").with_hint("use bf16 or f16"));
        };
        let (architecture, fields) = (gguf.architecture, gguf.fields.clone());
        Save { format, architecture, fields, progress, ..Save::new(&gguf.weights) }.write(to)?;
        Ok(gguf.warning.clone())
    }
}

/// Names of weights in folders of the published layout.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Opens a part of a model: a file, or a folder with a `config.json` and its weights.
pub fn open(path: &Path) -> Result<Portable> {
    let unknown = || {
        Error::damaged(
            path,
            "it is no transformer, text encoder or video autoencoder that this program knows",
        )
    };
    let (weights, config) = if path.is_dir() {
        let found = STEMS.iter().map(|stem| Weights::open_any_variant(path, stem));
        let mut found: Vec<_> =
            found.filter(|opened| !matches!(opened, Err(Error::MissingFile { .. }))).collect();
        let weights = found.pop().ok_or_else(|| Error::MissingFile {
            path: path.join(format!("{}.safetensors", STEMS[0])),
            what: "the weights",
        })??;
        let config = path.join("config.json");
        let bytes = fs::read(&config).map_err(Error::file("read", &config))?;
        (weights, Some((bytes, config)))
    } else {
        if !path.exists() {
            return Err(Error::MissingFile { path: path.into(), what: "the weights to convert" });
        }
        (Weights::open_files(&[path.to_owned()])?, None::<(Vec<u8>, PathBuf)>)
    };
    let config = config.as_ref().map(|(bytes, path)| (bytes.as_slice(), path.as_path()));
    if ltx::LtxCheckpoint::recognises(&weights) {
        return ltx::portable::transformer(&weights, path, config);
    }
    if t5::has_encoder(&weights) {
        return t5::portable(&weights, path, config);
    }
    ltx::portable::vae(&weights).ok_or_else(unknown)
}
