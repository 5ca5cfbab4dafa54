//! Where a checkpoint's files come from: a folder on disk, single files, or this program itself.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    weights::Weights,
};

/// Configurations and vocabularies have a few megabytes at most.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The files of the embedded model, by their path in its folder.
static EMBEDDED: &[(&str, &[u8])] = &[
    ("model_index.json", include_bytes!("../../models/mini/model_index.json")),
    ("sora.json", include_bytes!("../../models/mini/sora.json")),
    ("scheduler/scheduler_config.json", include_bytes!("../../models/mini/scheduler/scheduler_config.json")),
    ("tokenizer/tokenizer_config.json", include_bytes!("../../models/mini/tokenizer/tokenizer_config.json")),
    (
        "tokenizer/special_tokens_map.json",
        include_bytes!("../../models/mini/tokenizer/special_tokens_map.json"),
    ),
    ("tokenizer/spiece.model", include_bytes!("../../models/mini/tokenizer/spiece.model")),
    ("text_encoder/config.json", include_bytes!("../../models/mini/text_encoder/config.json")),
    ("text_encoder/model.safetensors", include_bytes!("../../models/mini/text_encoder/model.safetensors")),
    ("transformer/config.json", include_bytes!("../../models/mini/transformer/config.json")),
    (
        "transformer/diffusion_pytorch_model.safetensors",
        include_bytes!("../../models/mini/transformer/diffusion_pytorch_model.safetensors"),
    ),
    ("vae/config.json", include_bytes!("../../models/mini/vae/config.json")),
    (
        "vae/diffusion_pytorch_model.safetensors",
        include_bytes!("../../models/mini/vae/diffusion_pytorch_model.safetensors"),
    ),
];

/// A checkpoint as the user names it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSource {
    /// The model that is compiled in.
    #[default]
    Embedded,
    /// A folder in the published layout.
    Folder(PathBuf),
    /// One file: a transformer, with or without other parts.
    File(PathBuf),
    /// Another source with parts that it lacks, or others than its own.
    Assembled(Box<ModelSource>, Box<Parts>),
}

/// Parts of a model that lie elsewhere, and what changes it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// A text encoder: a folder, safetensors or GGUF.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder: Option<PathBuf>,
    /// A video autoencoder: a folder or safetensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// A tokenizer: a folder, a `spiece.model` or a `tokenizer.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Changes to the denoiser, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraFile>,
}

impl Parts {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A LoRA, and how strongly it acts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// Factor on its changes.
    pub scale: f64,
}

impl ModelSource {
    /// A model at a path: a file if there is one, else a folder.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        if path.is_file() { Self::File(path) } else { Self::Folder(path) }
    }

    /// The same with other parts.
    #[must_use]
    pub fn with(self, parts: Parts) -> Self {
        if parts.is_empty() { self } else { Self::Assembled(Box::new(self), Box::new(parts)) }
    }

    /// Where what was not given by itself comes from.
    #[must_use]
    pub fn base(&self) -> &Self {
        match self {
            Self::Assembled(base, _) => base.base(),
            other => other,
        }
    }

    /// The file or folder of a model that isn't compiled in.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match self.base() {
            Self::Folder(path) | Self::File(path) => Some(path),
            _ => None,
        }
    }

    /// The parts that were given by themselves, the last word first.
    #[must_use]
    pub fn parts(&self) -> Parts {
        let Self::Assembled(base, own) = self else { return Parts::default() };
        let below = base.parts();
        Parts {
            text_encoder: own.text_encoder.clone().or(below.text_encoder),
            vae: own.vae.clone().or(below.vae),
            tokenizer: own.tokenizer.clone().or(below.tokenizer),
            loras: [below.loras, own.loras.clone()].concat(),
        }
    }

    /// The same for whoever works in another folder.
    pub fn absolute(&self) -> Result<Self> {
        let full = |path: &Path| std::path::absolute(path).map_err(Error::file("find", path));
        let part = |path: &Option<PathBuf>| path.as_deref().map(full).transpose();
        Ok(match self {
            Self::Embedded => Self::Embedded,
            Self::Folder(path) => Self::Folder(full(path)?),
            Self::File(path) => Self::File(full(path)?),
            Self::Assembled(base, parts) => {
                let lora = |lora: &LoraFile| Ok(LoraFile { path: full(&lora.path)?, scale: lora.scale });
                let parts = Parts {
                    text_encoder: part(&parts.text_encoder)?,
                    vae: part(&parts.vae)?,
                    tokenizer: part(&parts.tokenizer)?,
                    loras: parts.loras.iter().map(lora).collect::<Result<_>>()?,
                };
                Self::Assembled(Box::new(base.absolute()?), Box::new(parts))
            }
        })
    }

    /// A name for people.
    #[must_use]
    pub fn name(&self) -> String {
        let last = |path: &Path, name: fn(&Path) -> Option<&std::ffi::OsStr>| {
            let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
            name(&full).map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
        };
        match self {
            Self::Embedded => "sora-mini".into(),
            Self::Folder(path) => {
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                repository(&full).unwrap_or_else(|| last(path, Path::file_name))
            }
            // What a cache's links lead to is named by its hash.
            Self::File(path) if repository(path).is_some() => {
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            Self::File(path) => last(path, Path::file_stem),
            Self::Assembled(base, _) => base.name(),
        }
    }

    /// Where a file lies, for messages.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        match self {
            Self::Embedded => Path::new("<embedded>").join(relative),
            Self::Folder(folder) => folder.join(relative),
            Self::File(path) => path.clone(),
            Self::Assembled(base, _) => base.path(relative),
        }
    }

    /// A file that must be there; `what` says what it is for.
    pub fn read(&self, relative: &str, what: &'static str) -> Result<Cow<'static, [u8]>> {
        self.read_optional(relative)?.ok_or_else(|| Error::MissingFile { path: self.path(relative), what })
    }

    /// A file that may be absent. A model that is one file has no others.
    pub fn read_optional(&self, relative: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Embedded => {
                let found = EMBEDDED.iter().find(|(name, _)| *name == relative);
                Ok(found.map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Folder(folder) => {
                let path = folder.join(relative);
                match fs::metadata(&path) {
                    Ok(file) if file.len() > MAX_FILE_BYTES => {
                        return Err(Error::damaged(path, format!("{} bytes are too many", file.len())));
                    }
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    _ => {}
                }
                Ok(Some(Cow::Owned(fs::read(&path).map_err(Error::file("read", path))?)))
            }
            Self::File(_) => Ok(None),
            Self::Assembled(base, _) => base.read_optional(relative),
        }
    }

    /// A text file that must be there.
    pub fn text(&self, relative: &str, what: &'static str) -> Result<String> {
        String::from_utf8(self.read(relative, what)?.into_owned())
            .map_err(|_| Error::damaged(self.path(relative), "not UTF-8"))
    }

    /// The compiled-in files below a folder such as `tokenizer/`: pairs of name and content.
    #[must_use]
    pub fn embedded_below(folder: &str) -> Vec<(&'static str, &'static [u8])> {
        EMBEDDED.iter().filter_map(|(name, bytes)| Some((name.strip_prefix(folder)?, *bytes))).collect()
    }

    /// A JSON file, parsed.
    pub fn json<T: serde::de::DeserializeOwned>(&self, relative: &str, what: &'static str) -> Result<T> {
        let bytes = self.read(relative, what)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::damaged(self.path(relative), e.to_string()))
    }

    /// The weight files of one component.
    pub fn weights(&self, component: &str, stem: &str) -> Result<Weights> {
        match self {
            Self::Embedded => {
                let relative = format!("{component}/{stem}.safetensors");
                match EMBEDDED.iter().find(|(name, _)| *name == relative) {
                    Some((name, bytes)) => Weights::embedded(name, bytes),
                    None => Err(Error::MissingFile { path: self.path(&relative), what: "weights" }),
                }
            }
            Self::Folder(folder) => Weights::open_any_variant(&folder.join(component), stem),
            Self::File(path) => Weights::open_files(std::slice::from_ref(path)),
            Self::Assembled(base, _) => base.weights(component, stem),
        }
    }
}

/// `owner/name` of a path in the hub's cache, `…/models--owner--name/snapshots/<commit>/…`.
fn repository(path: &Path) -> Option<String> {
    let folders = path.ancestors().filter_map(|folder| folder.file_name()?.to_str());
    let mut folders = folders.skip_while(|name| *name != "snapshots");
    let (owner, name) = folders.nth(1)?.strip_prefix("models--")?.split_once("--")?;
    Some(format!("{owner}/{name}"))
}
