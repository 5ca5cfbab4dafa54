//! Frames that wait on the disk until it is their turn: those before a clip are made from its start backward.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
};

use crate::{
    app::outputs::{Files, folder_of},
    error::{Error, Result},
    media::Format,
    video::{Frame, Size},
};

/// Frames of one size in a nameless file, which is gone when the program is, however that ends.
pub(super) struct Spool {
    file: File,
    folder: PathBuf,
    size: Size,
}

impl Spool {
    /// In the output's folder, or in the system's temporary one where there is none.
    pub fn beside(files: &Files, size: Size) -> Result<Self> {
        let folder = match files.target.format() {
            Format::Stdout => std::env::temp_dir(),
            _ => folder_of(files.target.path()).to_owned(),
        };
        let file = tempfile::tempfile_in(&folder).map_err(Error::file("write into", &folder))?;
        Ok(Self { file, folder, size })
    }

    fn bytes(&self) -> usize {
        self.size.width * self.size.height * 3
    }

    fn seek(&mut self, index: usize) -> std::io::Result<u64> {
        self.file.seek(SeekFrom::Start((index * self.bytes()) as u64))
    }

    /// Keeps a frame as number `index`.
    pub fn put(&mut self, index: usize, frame: &Frame) -> Result<()> {
        let written = self.seek(index).and_then(|_| self.file.write_all(&frame.rgb));
        written.map_err(Error::file("write into", &self.folder))
    }

    /// Frame number `index`, which was put there.
    pub fn get(&mut self, index: usize) -> Result<Frame> {
        let mut rgb = vec![0; self.bytes()];
        let read = self.seek(index).and_then(|_| self.file.read_exact(&mut rgb));
        read.map_err(Error::file("read from", &self.folder))?;
        Ok(Frame { width: self.size.width, height: self.size.height, rgb })
    }
}
