//! Putting a finished clip into its place.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use super::Place;
use crate::error::{Error, Result};

/// A finished output and its recipe, on the disk where they belong. What isn't published goes when this is dropped.
pub(super) struct Ready {
    output: PathBuf,
    recipe: PathBuf,
}

impl Ready {
    /// Brings a finished output, and its recipe, onto the disk of its place. That may take a while: another job's
    /// claim shall not wait for it.
    pub fn bring(place: &Place, made: &Path, output: &str, recipe: &[u8]) -> Result<Self> {
        let target = place.output(output);
        let parent = target.parent().unwrap_or(&place.folder);
        fs::create_dir_all(parent).map_err(Error::file("write into", parent))?;
        let mut name = made.file_name().unwrap_or_default().to_owned();
        name.push(".recipe");
        let mut ready = Self { output: made.to_owned(), recipe: place.making().join(name) };
        let target_recipe = place.folder.join(super::plan::recipe_name(output));
        write_whole(&ready.recipe, recipe).map_err(Error::file("write", &target_recipe))?;
        ready.recipe = near(&ready.recipe, parent).map_err(Error::file("write", &target_recipe))?;
        ready.output = near(&ready.output, parent).map_err(Error::file("write", &target))?;
        Ok(ready)
    }

    /// Moves them to where they belong.
    pub fn publish(&self, place: &Place, output: &str) -> Result<PathBuf> {
        let target = place.output(output);
        let parent = target.parent().unwrap_or(&place.folder);
        fs::create_dir_all(parent).map_err(Error::file("write into", parent))?;
        if target.is_dir() {
            make_way(&target, self.output.is_dir())?;
        }
        let recipe = place.folder.join(super::plan::recipe_name(output));
        fs::rename(&self.recipe, &recipe).map_err(Error::file("write", &recipe))?;
        fs::rename(&self.output, &target).map_err(Error::file("write", &target))?;
        sync_folder(parent);
        Ok(target)
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        remove(&self.output);
        remove(&self.recipe);
    }
}

/// A file, or a folder of files, on the disk of `folder`: under a hidden name there, if it comes from another.
fn near(made: &Path, folder: &Path) -> std::io::Result<PathBuf> {
    if same_disk(made, folder)? {
        return Ok(made.to_owned());
    }
    let mut name = std::ffi::OsString::from(".sora-");
    name.push(made.file_name().unwrap_or_default());
    let there = folder.join(name);
    // What a worker left there that died under the same name.
    remove(&there);
    if let Err(error) = copy(made, &there) {
        remove(&there);
        return Err(error);
    }
    remove(made);
    Ok(there)
}

#[cfg(unix)]
fn same_disk(a: &Path, b: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(a)?.dev() == fs::metadata(b)?.dev())
}

/// Where a system doesn't say, renaming does.
#[cfg(not(unix))]
fn same_disk(_: &Path, _: &Path) -> std::io::Result<bool> {
    Ok(true)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

/// Removes what nobody needs; what stays harms nobody.
fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Removes a folder of frames that another folder of frames replaces, and nothing else.
fn make_way(folder: &Path, for_frames: bool) -> Result<()> {
    let failed = || Error::file("read", folder);
    for entry in fs::read_dir(folder).map_err(failed())? {
        let name = entry.map_err(failed())?.file_name();
        let name = name.to_string_lossy();
        let frame = name.strip_suffix(".png").is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()));
        if !for_frames || !frame {
            return Err(Error::invalid(
                format!("output `{}`", folder.display()),
                format!("a folder is there, and it holds `{name}`"),
            )
            .with_hint("move it away, or give the job another output"));
        }
    }
    fs::remove_dir_all(folder).map_err(Error::file("remove", folder))
}

fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes renames last through a power cut, where the file system can.
fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::new(folder.path().join("out"));
        place.create().expect("folders");
        (folder, place)
    }

    fn publish(place: &Place, made: &Path, output: &str, recipe: &[u8]) -> Result<PathBuf> {
        Ready::bring(place, made, output, recipe)?.publish(place, output)
    }

    #[test]
    fn a_removed_folder_is_made_again() {
        let (_keep, place) = place();
        let made = place.making().join("1.mp4");
        fs::write(&made, "video").expect("a file");
        publish(&place, &made, "a/b/1.mp4", b"{}").expect("published");
        assert_eq!(fs::read(place.folder.join("a/b/1.mp4")).expect("there"), b"video");
        assert_eq!(fs::read(place.folder.join("a/b/1.json")).expect("there"), b"{}");
        assert!(!made.exists());
        // What isn't published leaves nothing.
        fs::write(&made, "video").expect("a file");
        drop(Ready::bring(&place, &made, "c/2.mp4", b"{}").expect("ready"));
        assert_eq!(fs::read_dir(place.making()).expect("a folder").count(), 0);
        assert_eq!(fs::read_dir(place.folder.join("c")).expect("a folder").count(), 0);
    }

    #[test]
    fn frames_replace_frames_and_nothing_else() {
        let (_keep, place) = place();
        let made = |name: &str| {
            let made = place.making().join(name);
            fs::create_dir_all(&made).expect("a folder");
            fs::write(made.join("000000.png"), name).expect("a file");
            made
        };
        publish(&place, &made("x"), "frames/", b"{}").expect("published");
        publish(&place, &made("y"), "frames/", b"{}").expect("published");
        assert_eq!(fs::read(place.folder.join("frames/000000.png")).expect("there"), b"y");
        fs::write(place.folder.join("frames/notes.txt"), "mine").expect("a file");
        let error = publish(&place, &made("z"), "frames/", b"{}").expect_err("refused").to_string();
        assert!(error.contains("notes.txt"), "{error}");
        assert!(place.folder.join("frames/notes.txt").exists());
    }
}
