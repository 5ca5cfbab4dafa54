//! Where a tokenizer may lie.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::Tokenizer;
use crate::{
    error::{Error, Result},
    weights::{Weights, begins_as_gguf},
};

/// All that a folder of a tokenizer may consist of.
const FILES: [&str; 5] = [
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// What a folder of a tokenizer holds one of.
const VOCABULARIES: [&str; 2] = ["tokenizer.json", "spiece.model"];

/// Where a tokenizer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerPlace {
    /// A folder in the published layout.
    Folder(PathBuf),
    /// A `spiece.model` or a `tokenizer.json`.
    File(PathBuf),
    /// The metadata of a GGUF file.
    Gguf(PathBuf),
}

impl TokenizerPlace {
    /// A name for the tokenizer: two that differ have different ones.
    pub fn identity(&self) -> Result<Vec<u8>> {
        let mut hash = Sha256::new();
        let read = |path: &Path| fs::read(path).map_err(Error::file("read", path));
        match self {
            Self::Gguf(path) => hash.update(Weights::open_files(std::slice::from_ref(path))?.identity()),
            Self::File(path) => hash.update(read(path)?),
            Self::Folder(folder) => {
                for name in FILES {
                    let path = folder.join(name);
                    if path.is_file() {
                        let bytes = read(&path)?;
                        hash.update(format!("{name} {} ", bytes.len()));
                        hash.update(bytes);
                    }
                }
            }
        }
        Ok(hash.finalize().to_vec())
    }

    /// Reads it.
    pub fn open(&self) -> Result<Tokenizer> {
        match self {
            Self::Folder(folder) => Tokenizer::open(folder),
            Self::File(path) => Tokenizer::open_file(path),
            Self::Gguf(path) => Tokenizer::from_gguf(&Weights::open_files(std::slice::from_ref(path))?),
        }
    }

    /// The tokenizer that somebody pointed at: a file, its folder, or the folder of a model with one.
    pub fn given(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Ok(if begins_as_gguf(path) { Self::Gguf(path.into()) } else { Self::File(path.into()) });
        }
        let folders = [path.to_owned(), path.join("tokenizer")];
        let found = folders.into_iter().find(|folder| has_vocabulary(folder));
        found.map(Self::Folder).ok_or_else(|| Error::MissingFile {
            path: path.join(VOCABULARIES[1]),
            what: "the tokenizer's vocabulary",
        })
    }

    /// The tokenizer in a text encoder's file, or else beside it.
    pub fn of_encoder(path: &Path) -> Result<Option<Self>> {
        if path.is_file() && Tokenizer::is_in(&Weights::open_files(&[path.to_owned()])?) {
            return Ok(Some(Self::Gguf(path.to_owned())));
        }
        Ok(Self::beside(path))
    }

    /// A tokenizer in a folder, beside a file, or in a folder `tokenizer` of these or of the folder around.
    #[must_use]
    pub fn beside(path: &Path) -> Option<Self> {
        let around = [Some(path), path.parent(), path.parent().and_then(Path::parent)];
        let here = |path: &Path| if path.as_os_str().is_empty() { ".".into() } else { path.to_owned() };
        let folders = around.into_iter().flatten().map(here).filter(|path| path.is_dir());
        let mut folders = folders.flat_map(|folder| [folder.clone(), folder.join("tokenizer")]);
        folders.find(|folder| has_vocabulary(folder)).map(Self::Folder)
    }
}

fn has_vocabulary(folder: &Path) -> bool {
    VOCABULARIES.iter().any(|name| folder.join(name).is_file())
}
