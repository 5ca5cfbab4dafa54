//! How repositories and their files are named, and which names are let in.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::error::{Error, Result};

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// A repository of a hub at a revision: `owner/name[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RepoId {
    /// Who it belongs to.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl RepoId {
    /// `id` is `owner/name`.
    pub fn new(id: &str, revision: &str) -> Result<Self> {
        let refuse = || {
            Error::invalid(format!("model name `{id}`"), "expected OWNER/NAME[@REVISION]")
                .with_hint("for example Lightricks/LTX-Video")
        };
        let (owner, name) = id.split_once('/').ok_or_else(refuse)?;
        if !(is_part(owner) && is_part(name)) {
            return Err(refuse());
        }
        if !is_revision(revision) {
            return Err(Error::invalid(format!("revision `{revision}`"), "expected a branch, tag or commit"));
        }
        Ok(Self { owner: owner.into(), name: name.into(), revision: revision.into() })
    }

    /// `owner/name`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// A repository, or one file of it: `owner/name[/path/to/file][@revision]`.
///
/// ```
/// use sora::hub::Address;
///
/// let address: Address = "city96/LTX-Video-gguf/ltx-video-2b-v0.9-Q8_0.gguf@main".parse()?;
/// assert_eq!(address.repo.id(), "city96/LTX-Video-gguf");
/// assert_eq!(address.file.as_deref(), Some("ltx-video-2b-v0.9-Q8_0.gguf"));
/// # Ok::<(), sora::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Address {
    /// The repository.
    pub repo: RepoId,
    /// The one file that is meant, if it isn't all.
    pub file: Option<String>,
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (path, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let mut slashes = path.match_indices('/').map(|(at, _)| at);
        let second = slashes.nth(1);
        let (id, file) = match second {
            Some(at) => (&path[..at], Some(&path[at + 1..])),
            None => (path, None),
        };
        let repo = RepoId::new(id, revision)?;
        if let Some(file) = file {
            check_path(file)?;
            if !is_readable(file) {
                return Err(Error::invalid(format!("file `{file}`"), READABLE));
            }
        }
        Ok(Self { repo, file: file.map(str::to_owned) })
    }
}

const READABLE: &str = "expected a .safetensors, .gguf, .json, .txt or spiece.model file: no other is opened";

/// Whether this program ever fetches or opens a file of that name: weights as safetensors or GGUF, JSON, and
/// tokenizers. Never anything that runs code when it is opened.
#[must_use]
pub fn is_readable(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    name == "spiece.model"
        || ending.is_some_and(|e| ["safetensors", "gguf", "json", "txt"].contains(&e.as_str()))
}

/// Refuses the path of a file that could lead out of the folder it is put in.
pub(super) fn check_path(path: &str) -> Result<()> {
    let part = |part: &str| {
        let reserved = part.is_empty() || part == "." || part == ".." || part.len() > 255;
        !reserved && !part.chars().any(|c| c.is_control() || matches!(c, '\\' | ':'))
    };
    if path.len() <= 1024 && path.split('/').all(part) {
        return Ok(());
    }
    let shown: String = path.chars().take(80).flat_map(char::escape_debug).collect();
    Err(Error::invalid(format!("file name `{shown}`"), "it could lead out of the cache"))
}

/// An owner's or a repository's name, by the hub's own rules.
fn is_part(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.len() <= 96
        && text.chars().all(plain)
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && !text.contains("..")
        && !text.contains("--")
}

fn is_revision(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    text.len() <= 200 && text.split('/').all(part) && !text.contains("..")
}

/// Whether this is the full name of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let address: Address = "Lightricks/LTX-Video@v0.9.1".parse().unwrap();
        assert_eq!(
            (address.repo.id().as_str(), address.repo.revision.as_str()),
            ("Lightricks/LTX-Video", "v0.9.1")
        );
        assert_eq!(address.file, None);
        assert_eq!(address.repo.to_string(), "Lightricks/LTX-Video@v0.9.1");
        let address: Address = "a/b/sub/c.gguf".parse().unwrap();
        assert_eq!((address.repo.revision.as_str(), address.file.as_deref()), (MAIN, Some("sub/c.gguf")));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for text in [
            "",
            "a",
            "/a/b",
            "a//b",
            "../b",
            "a/..",
            "a/b/../c.json",
            "a/b/c\\..\\d.json",
            "a/b@../x",
            "a/b@/x",
            "a/b@",
            "a/.b",
            "a/b--c",
            "a/b/C:x.json",
            "a/b/c.bin",
            "a/b/model.pt",
            "a/b/x\n.json",
            "a b/c",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_files_that_run_no_code_are_readable() {
        for name in ["a.safetensors", "x/b.GGUF", "config.json", "spiece.model", "tokenizer/vocab.txt"] {
            assert!(is_readable(name), "{name}");
        }
        for name in ["a.bin", "a.pt", "a.ckpt", "a.pkl", "a.py", "a.safetensors.sh", "model", "x/other.model"]
        {
            assert!(!is_readable(name), "{name}");
        }
    }
}
