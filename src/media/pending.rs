//! A file that stands beside its target until it is whole.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
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

/// How temporary names end.
const SUFFIX: &str = ".part";

/// A builder of hidden temporary names with the permissions an ordinary file or folder would get.
fn builder<'a>(prefix: &'a OsString, mode: u32) -> Builder<'a, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix).suffix(SUFFIX);
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

/// What a killed writer leaves is removed once it is this old; before, its lock may not yet be taken.
const LEFT_OVER: Duration = Duration::from_secs(5);

/// Removes temporary files in `folder` whose names begin with `prefix` and which nobody writes: those of writers that
/// were killed. What can't be locked or removed stays.
fn sweep(folder: &Path, prefix: &OsStr, age: Duration) {
    let named = |name: &OsStr| {
        let (name, prefix) = (name.as_encoded_bytes(), prefix.as_encoded_bytes());
        name.starts_with(prefix) && name.ends_with(SUFFIX.as_bytes())
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(|e| named(&e.file_name())) {
        let old = |file: &File| file.metadata()?.modified()?.elapsed().map_err(io::Error::other);
        if entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::options().write(true).open(entry.path())
            && file.try_lock().is_ok()
            && old(&file).is_ok_and(|found| found >= age)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
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
        sweep(&folder, &prefix, LEFT_OVER);
        let file = builder(&prefix, 0o666).tempfile_in(&folder).map_err(|e| into_error(&folder, e))?;
        // Tells others that it is being written. Where files can't be locked nobody sweeps, either.
        let _ = file.as_file().try_lock();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_writes_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for name in [".out.mp4.dead.part", ".other.mp4.dead.part", "out.mp4"] {
            fs::write(folder.path().join(name), "left").unwrap();
        }
        let target = folder.path().join("out.mp4");
        let living = Pending::create(&target).unwrap();
        assert_eq!(names().len(), 4, "what is new may be about to be locked");
        sweep(folder.path(), &prefix_for(&target), Duration::ZERO);
        let mut expected: Vec<OsString> = vec![
            ".other.mp4.dead.part".into(),
            living.path().file_name().unwrap().to_owned(),
            "out.mp4".into(),
        ];
        expected.sort();
        assert_eq!(names(), expected);
        living.commit().unwrap();
        assert_eq!(names(), [".other.mp4.dead.part", "out.mp4"]);
    }
}
