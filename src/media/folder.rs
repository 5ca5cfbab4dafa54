//! A folder of lossless pictures.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use image::codecs::png::CompressionType;
use tempfile::TempDir;

use super::{
    pending::{folder_of, sync_folder, temporary_folder},
    still::{cannot_encode, png},
    target::Target,
};
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink},
};

/// Frames are collected in a hidden folder and moved at the end.
pub(super) struct FolderSink {
    target: PathBuf,
    metadata: Vec<(String, String)>,
    collected: TempDir,
    frames: usize,
}

fn name(index: usize) -> String {
    format!("{index:06}.png")
}

/// The number in a name that [`name`] gives.
fn index_of(file_name: &str) -> Option<usize> {
    let digits = file_name.strip_suffix(".png")?;
    let index = digits.parse().ok()?;
    (name(index) == file_name).then_some(index)
}

impl FolderSink {
    pub fn open(target: &Target, metadata: &[(String, String)]) -> Result<Self> {
        let path = target.path();
        // Inside a folder that is there, since it may be a disk of its own that no rename crosses.
        let place = if path.is_dir() { path.to_owned() } else { folder_of(path) };
        Ok(Self {
            target: path.to_owned(),
            metadata: metadata.to_vec(),
            collected: temporary_folder(&place, path)?,
            frames: 0,
        })
    }

    fn move_into(&self, folder: &Path) -> Result<()> {
        for index in 0..self.frames {
            let (from, to) = (self.collected.path().join(name(index)), folder.join(name(index)));
            fs::rename(from, &to).map_err(Error::file("write", to))?;
        }
        // What a longer clip left here would show up at the end of this one.
        for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
            let entry = entry.map_err(Error::file("read", folder))?;
            let stale = entry.file_name().to_str().and_then(index_of).is_some_and(|i| i >= self.frames);
            if stale {
                fs::remove_file(entry.path()).map_err(Error::file("remove", entry.path()))?;
            }
        }
        Ok(())
    }
}

impl FrameSink for FolderSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let shown = self.target.join(name(self.frames));
        // Fast: a sequence is on its way to another program.
        let bytes =
            png(&frame, &self.metadata, CompressionType::Fast).map_err(|e| cannot_encode(&shown, e))?;
        fs::write(self.collected.path().join(name(self.frames)), bytes)
            .map_err(Error::file("write", shown))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        for index in 0..self.frames {
            let file = File::open(self.collected.path().join(name(index)));
            let synced = file.and_then(|file| file.sync_all());
            synced.map_err(Error::file("write", self.target.join(name(index))))?;
        }
        sync_folder(self.collected.path());
        if self.target.is_dir() {
            self.move_into(&self.target)?;
            sync_folder(&self.target);
            return Ok(self.target);
        }
        fs::rename(self.collected.path(), &self.target).map_err(Error::file("rename", &self.target))?;
        // It has another name now: nothing to remove.
        let _ = self.collected.keep();
        sync_folder(&folder_of(&self.target));
        Ok(self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::{index_of, name};

    #[test]
    fn names_and_numbers_agree() {
        for index in [0, 7, 999_999, 1_000_000] {
            assert_eq!(index_of(&name(index)), Some(index));
        }
        for other in ["0.png", "0000007.png", "00000a.png", "000001.jpg", "000001", "+00001.png"] {
            assert_eq!(index_of(other), None, "{other}");
        }
    }
}
