//! Putting a finished clip into its place.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use super::Place;
use crate::error::{Error, Result};

/// Moves a clip and its recipe from where they were made to where they belong.
pub(super) fn publish(place: &Place, made: &Path, output: &str, recipe: &[u8]) -> Result<PathBuf> {
    let target = place.output(output);
    let parent = target.parent().unwrap_or(&place.folder);
    fs::create_dir_all(parent).map_err(Error::file("write into", parent))?;
    if target.is_dir() {
        make_way(&target, made.is_dir())?;
    }
    write_whole(&place.folder.join(super::plan::recipe_name(output)), &place.making(), recipe)?;
    fs::rename(made, &target).map_err(Error::file("write", &target))?;
    sync_folder(parent);
    Ok(target)
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

fn write_whole(path: &Path, beside: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || Error::file("write", path);
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(beside).map_err(failed())?;
    temporary.write_all(bytes).map_err(failed())?;
    temporary.as_file().sync_all().map_err(failed())?;
    temporary.persist(path).map_err(|e| failed()(e.error))?;
    Ok(())
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

    #[test]
    fn a_removed_folder_is_made_again() {
        let (_keep, place) = place();
        let made = place.making().join("1.mp4");
        fs::write(&made, "video").expect("a file");
        publish(&place, &made, "a/b/1.mp4", b"{}").expect("published");
        assert_eq!(fs::read(place.folder.join("a/b/1.mp4")).expect("there"), b"video");
        assert_eq!(fs::read(place.folder.join("a/b/1.json")).expect("there"), b"{}");
        assert!(!made.exists());
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
