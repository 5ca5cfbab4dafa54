//! A model's headers without its weights: what a plan needs, fetched in a few requests.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
};

use tempfile::TempDir;

use super::{Hub, Wanted, client::Trouble, name::RepoId};
use crate::error::{Error, Result};

/// Headers of safetensors files are below this, by the format's own rule.
const LONGEST_HEADER: u64 = 100 << 20;
/// Files up to this size are fetched whole.
const SMALL: u64 = 8 << 20;
/// What a GGUF file has before its tensors: a vocabulary and a list.
const GGUF_HEAD: u64 = 16 << 20;

/// A folder with a model's small files, and in place of its weights files of the same name and length that hold the
/// header and nothing else. They take next to no room where files may have holes.
#[derive(Debug)]
pub struct Shadow {
    folder: TempDir,
    /// Bytes that a download would fetch.
    pub missing_bytes: u64,
    /// Bytes of all the files.
    pub bytes: u64,
}

impl Shadow {
    /// Where it lies; gone when this is dropped.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Hub {
    /// Fetches the headers of files at a commit or revision, those that are cached from the cache.
    pub fn shadow(&self, repo: &RepoId, wanted: &[Wanted]) -> Result<Shadow> {
        let folder = tempfile::tempdir().map_err(Error::file("write into", std::env::temp_dir()))?;
        let mut shadow = Shadow { folder, missing_bytes: 0, bytes: 0 };
        let cached = self.cache().commit(repo);
        for file in wanted {
            super::name::check_path(&file.path)?;
            let target = shadow.folder().join(&file.path);
            let parent = target.parent().unwrap_or(shadow.folder());
            fs::create_dir_all(parent).map_err(Error::file("write into", parent))?;
            let there = cached.as_ref().and_then(|commit| self.cache().file(repo, commit, &file.path));
            if let Some(there) = there {
                let there = there.canonicalize().map_err(Error::file("read", &there))?;
                shadow.bytes += there.metadata().map_or(0, |metadata| metadata.len());
                stand_in(&there, &target)?;
                continue;
            }
            self.online(&format!("{} of {repo}", file.path))?;
            let size = match file.size {
                Some(size) => size,
                None => self.client().look(repo, &repo.revision, &file.path)?.size,
            };
            shadow.bytes += size;
            shadow.missing_bytes += size;
            self.head(repo, &file.path, size, &target)?;
        }
        Ok(shadow)
    }

    /// Writes the head of a file, and a hole for the rest.
    fn head(&self, repo: &RepoId, path: &str, size: u64, target: &Path) -> Result<()> {
        let mut out = File::create(target).map_err(Error::file("write", target))?;
        let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        let head = match ending.as_deref() {
            Some("safetensors") if size > 8 => {
                let length = self.range(repo, path, 8)?;
                let length = length.as_slice().try_into().map_or(0, u64::from_le_bytes);
                if length > LONGEST_HEADER.min(size - 8) {
                    let why = format!("its header claims {length} of its {size} bytes");
                    return Err(Error::damaged(path, why));
                }
                8 + length
            }
            Some("gguf") => size.min(GGUF_HEAD),
            _ if size <= SMALL => size,
            _ => 0,
        };
        out.write_all(&self.range(repo, path, head)?).map_err(Error::file("write", target))?;
        out.set_len(size).map_err(Error::file("write", target))
    }

    /// The first `length` bytes of a file.
    fn range(&self, repo: &RepoId, path: &str, length: u64) -> Result<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        self.client().patiently(&format!("{path} of {repo}"), || {
            let (answer, first) = self.client().content(repo, &repo.revision, path, (0, Some(length)))?;
            if first != 0 {
                return Err(Trouble::Passing(format!("the hub sent byte {first} instead of the first")));
            }
            let mut bytes = Vec::new();
            let body = answer.into_body().into_with_config().limit(u64::MAX).reader();
            body.take(length).read_to_end(&mut bytes).map_err(|e| Trouble::Passing(e.to_string()))?;
            if bytes.len() as u64 != length {
                return Err(Trouble::Passing("the connection ended early".into()));
            }
            Ok(bytes)
        })
    }
}

#[cfg(unix)]
fn stand_in(there: &Path, target: &Path) -> Result<()> {
    std::os::unix::fs::symlink(there, target).map_err(Error::file("write", target))
}

#[cfg(not(unix))]
fn stand_in(there: &Path, target: &Path) -> Result<()> {
    fs::hard_link(there, target)
        .or_else(|_| fs::copy(there, target).map(drop))
        .map_err(Error::file("write", target))
}
