//! Where a checkpoint's files come from: a folder on disk, or this program itself.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    weights::Weights,
};

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ModelSource {
    /// The model that is compiled in.
    #[default]
    Embedded,
    /// A folder in the published layout.
    Folder(PathBuf),
}

impl ModelSource {
    /// A name for people.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Embedded => "sora-mini".into(),
            Self::Folder(path) => {
                let full = path.canonicalize().unwrap_or_else(|_| path.clone());
                if let Some(name) = repository(&full) {
                    return name;
                }
                full.file_name()
                    .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
            }
        }
    }

    /// Where a file lies, for messages.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        match self {
            Self::Embedded => Path::new("<embedded>").join(relative),
            Self::Folder(folder) => folder.join(relative),
        }
    }

    /// A file that must be there; `what` says what it is for.
    pub fn read(&self, relative: &str, what: &'static str) -> Result<Cow<'static, [u8]>> {
        self.read_optional(relative)?.ok_or_else(|| Error::MissingFile { path: self.path(relative), what })
    }

    /// A file that may be absent.
    pub fn read_optional(&self, relative: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Embedded => {
                let found = EMBEDDED.iter().find(|(name, _)| *name == relative);
                Ok(found.map(|(_, bytes)| Cow::Borrowed(*bytes)))
            }
            Self::Folder(folder) => {
                let path = folder.join(relative);
                match fs::read(&path) {
                    Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(Error::file("read", path)(e)),
                }
            }
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
            Self::Folder(folder) => {
                let folder = folder.join(component);
                let variant = variant(&folder, stem)?;
                Weights::open(&folder, stem, variant.as_deref())
            }
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

/// The variant of a folder that holds no plain weights: `fp16` where there is only `STEM.fp16.safetensors`, whole or
/// in shards. Two variants and no plain weights are an error, since nothing says which one is meant.
fn variant(folder: &Path, stem: &str) -> Result<Option<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(None) };
    let mut variants = BTreeSet::new();
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(stem) else { continue };
        if rest == ".safetensors" || rest == ".safetensors.index.json" {
            return Ok(None);
        }
        let middle = rest
            .strip_suffix(".safetensors")
            .or_else(|| rest.strip_prefix(".safetensors.index.")?.strip_suffix(".json"));
        let variant = middle.map(|m| m.trim_start_matches('.')).filter(|m| !m.is_empty() && !m.contains('-'));
        variants.extend(variant.map(str::to_owned));
    }
    if variants.len() > 1 {
        let list = variants.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::damaged(folder, format!("it holds the variants {list} and no plain weights")));
    }
    Ok(variants.pop_first())
}
