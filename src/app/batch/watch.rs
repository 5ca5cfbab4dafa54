//! A folder that job files are dropped into.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::file::FileFormat;
use crate::error::{Error, Result};

/// Remembers what has been seen of a folder.
#[derive(Debug)]
pub struct Watch {
    folder: PathBuf,
    /// Length and time of each file when it was last looked at, and whether it was handed on like that.
    seen: HashMap<PathBuf, (u64, Option<SystemTime>, bool)>,
}

impl Watch {
    /// Watches a folder that must be there.
    pub fn new(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            let what = format!("folder to watch `{}`", folder.display());
            return Err(Error::invalid(what, "no such folder").with_hint("make it first"));
        }
        Ok(Self { folder: folder.to_owned(), seen: HashMap::new() })
    }

    /// Job files that are new or have changed, by name; one that still grows is left for the next look.
    pub fn look(&mut self) -> Result<Vec<PathBuf>> {
        let failed = || Error::file("read", &self.folder);
        let mut ready = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            // Gone in between, no file, or none of ours.
            let Ok(found) = std::fs::metadata(&path) else { continue };
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !found.is_file() || hidden || path.extension().is_none() || FileFormat::of(&path, "").is_err()
            {
                continue;
            }
            let now = (found.len(), found.modified().ok());
            let before = self.seen.get(&path).map(|(length, time, handed)| ((*length, *time), *handed));
            let settled = before.is_some_and(|(before, _)| before == now);
            if settled && before.is_some_and(|(_, handed)| !handed) {
                ready.push(path.clone());
            }
            self.seen.insert(path, (now.0, now.1, settled));
        }
        ready.sort();
        Ok(ready)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_are_handed_on_once_they_rest() -> Result<()> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let mut watch = Watch::new(folder.path())?;
        fs::write(path("b.txt"), "a fox").expect("a file");
        fs::write(path("a.toml"), "prompt = 'x'").expect("a file");
        fs::write(path("video.mp4"), "no job file").expect("a file");
        assert!(watch.look()?.is_empty());
        fs::write(path("b.txt"), "a fox\na dog").expect("a file");
        assert_eq!(watch.look()?, [path("a.toml")]);
        assert_eq!(watch.look()?, [path("b.txt")]);
        assert!(watch.look()?.is_empty());
        fs::write(path("a.toml"), "prompt = 'another'").expect("a file");
        assert!(watch.look()?.is_empty());
        assert_eq!(watch.look()?, [path("a.toml")]);
        assert!(Watch::new(&path("nowhere")).is_err());
        Ok(())
    }
}
