//! A file that stands beside its target until it is whole.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use tempfile::{Builder, NamedTempFile, TempDir};

use crate::error::{Error, Result};

/// The folder a path lies in.
pub(super) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        Some(_) => PathBuf::from("."),
        None => path.to_owned(),
    }
}

/// Where a link leads, so that renaming replaces the file and not the link.
pub(super) fn follow(path: &Path) -> PathBuf {
    if path.is_symlink() {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    } else {
        path.to_owned()
    }
}

/// Nothing could be created in `folder`. The name that was tried is no help and stays out.
pub(super) fn into_error(folder: &Path, error: io::Error) -> Error {
    let source = error.raw_os_error().map_or(error, io::Error::from_raw_os_error);
    Error::File { action: "write into", path: folder.to_owned(), source }
}

/// Makes a rename last through a power cut. Some file systems can't sync folders; the rename
/// itself has then succeeded all the same.
pub(super) fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

/// A builder of hidden temporary names with the permissions an ordinary file or folder would get.
fn builder<'a>(prefix: &'a OsString, mode: u32) -> Builder<'a, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix).suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

fn prefix_for(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

/// A temporary folder in `folder`, named after `path`; removed with its files when dropped.
pub(super) fn temporary_folder(folder: &Path, path: &Path) -> Result<TempDir> {
    let prefix = prefix_for(path);
    builder(&prefix, 0o777).tempdir_in(folder).map_err(|e| into_error(folder, e))
}

/// A temporary file beside its target; dropped without [`Pending::commit`] it is removed.
#[derive(Debug)]
pub(super) struct Pending {
    target: PathBuf,
    place: PathBuf,
    file: NamedTempFile,
}

impl Pending {
    pub(super) fn create(target: &Path) -> Result<Self> {
        let place = follow(target);
        let folder = folder_of(&place);
        let prefix = prefix_for(&place);
        let file = builder(&prefix, 0o666).tempfile_in(&folder).map_err(|e| into_error(&folder, e))?;
        Ok(Self { target: target.to_owned(), place, file })
    }

    /// The target as it was given.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// The temporary file, for writers that open it by name.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Sends everything to the disk and gives the file its name.
    pub(super) fn commit(self) -> Result<PathBuf> {
        self.file.as_file().sync_all().map_err(Error::file("write", &self.target))?;
        self.file.persist(&self.place).map_err(|e| Error::file("rename", &self.target)(e.error))?;
        sync_folder(&folder_of(&self.place));
        Ok(self.target)
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file_mut().flush()
    }
}

impl io::Read for Pending {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.as_file_mut().read(bytes)
    }
}

impl Seek for Pending {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.as_file_mut().seek(to)
    }
}
