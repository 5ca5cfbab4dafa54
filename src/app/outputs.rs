//! The files of a clip: their names, whether they can be written, the flags that ask for them.

use std::{
    ffi::OsString,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use crate::{
    error::{Error, Result},
    media::{EncodeOptions, Format, Target},
};

/// Where early looks go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Preview {
    /// Nowhere.
    #[default]
    Off,
    /// Beside the video, as `<video>.preview.gif`.
    Beside,
    /// Into this file.
    At(PathBuf),
}

/// What is to be written, and how.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// The video, see [`Target::parse`]; if absent it is named after prompt and seed.
    pub target: Option<String>,
    /// How the video is encoded; rate and metadata are filled in by the render.
    pub encode: EncodeOptions,
    /// The final latents.
    pub save_latents: Option<PathBuf>,
    /// All frames in one picture.
    pub contact_sheet: Option<PathBuf>,
    /// Early looks.
    pub preview: Preview,
    /// Where the latents of an unfinished clip go, instead of beside the video.
    pub rescue: Option<PathBuf>,
    /// After how many steps, each time, they are saved; nothing means only when the work is stopped.
    pub checkpoint_every: Option<NonZeroUsize>,
}

/// The files of one clip.
#[derive(Debug, Clone)]
pub struct Files {
    /// The video.
    pub target: Target,
    /// The final latents, if they are wanted.
    pub latents: Option<PathBuf>,
    /// The contact sheet, if it is wanted.
    pub contact_sheet: Option<Target>,
    /// The early look, if it is wanted.
    pub preview: Option<Target>,
    /// Where latents go when the video can't be finished.
    pub rescue: PathBuf,
    /// Where the finished windows of a long clip are kept until all of it is done.
    pub windows: PathBuf,
}

impl Outputs {
    /// Names the files of clip `index` of `count`; `name` is the stem of a video nobody named.
    pub fn files(&self, index: usize, count: usize, name: &str) -> Result<Files> {
        let number = |path: &Path| if count > 1 { numbered(path, index + 1, count) } else { path.to_owned() };
        let target = match &self.target {
            None => Target::parse(&format!("{name}.mp4"))?,
            Some(given) => {
                let target = Target::parse(given)?;
                if count == 1 {
                    target
                } else if target.format() == Format::Stdout {
                    return Err(Error::invalid(
                        "output `-`",
                        format!("standard output takes one video, not {count}"),
                    )
                    .with_hint("name a file: each video gets its number"));
                } else {
                    let folder = if target.format() == Format::Frames { "/" } else { "" };
                    Target::parse(&format!("{}{folder}", number(target.path()).to_string_lossy()))?
                }
            }
        };
        let beside = |suffix: &str| match target.format() {
            Format::Stdout => PathBuf::from(format!("{name}.{suffix}")),
            _ => with_suffix(target.path(), suffix),
        };
        let preview = match &self.preview {
            Preview::Off => None,
            Preview::Beside => Some(beside("preview.gif")),
            Preview::At(path) => Some(number(path)),
        };
        let files = Files {
            latents: self.save_latents.as_deref().map(number),
            contact_sheet: self.contact_sheet.as_deref().map(number).map(still).transpose()?,
            preview: preview.as_deref().map(look).transpose()?,
            rescue: match &self.rescue {
                Some(path) => number(path),
                None => beside("latents.safetensors"),
            },
            windows: beside("windows.safetensors"),
            target,
        };
        Ok(files)
    }

    /// The flags that ask for the same files, for a shell.
    #[must_use]
    pub fn flags(&self) -> String {
        let mut words = Vec::new();
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push(format!("{name} {}", shell_word(&value)));
            }
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
        flag("-o", self.target.clone());
        flag("--codec", self.encode.codec.map(|codec| codec.to_string()));
        flag("--crf", self.encode.crf.map(|crf| crf.to_string()));
        flag("--preset", self.encode.preset.clone());
        flag("--pix-fmt", self.encode.pix_fmt.clone());
        flag("--contact-sheet", path(&self.contact_sheet));
        words.join(" ")
    }
}

impl Files {
    /// Finds out now what would make writing fail at the end.
    pub fn check_writable(&self) -> Result<()> {
        self.target.check_writable()?;
        self.contact_sheet.iter().chain(&self.preview).try_for_each(Target::check_writable)?;
        match &self.latents {
            Some(path) if path.is_dir() => Err(Error::invalid(
                format!("latents file `{}`", path.display()),
                "a folder of that name is there",
            )),
            Some(path) => {
                let folder = folder_of(path);
                tempfile::tempfile_in(folder).map(drop).map_err(|e| {
                    // The name that was tried is no help and stays out.
                    let source = e.raw_os_error().map_or(e, std::io::Error::from_raw_os_error);
                    Error::file("write into", folder)(source)
                })
            }
            None => Ok(()),
        }
    }
}

fn look(path: &Path) -> Result<Target> {
    let target = Target::parse(&path.to_string_lossy())?;
    if matches!(target.format(), Format::Stdout | Format::Frames) {
        let what = format!("preview `{}`", path.display());
        return Err(Error::invalid(what, "expected one file, e.g. look.gif or look.png"));
    }
    Ok(target)
}

fn still(path: PathBuf) -> Result<Target> {
    let target = Target::parse(&path.to_string_lossy())?;
    if target.format().is_still() {
        return Ok(target);
    }
    let ending = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    Err(Error::UnknownEnding { path, ending, expected: ".png or .jpg for a contact sheet".into() })
}

/// `out.mp4` → `out-03.mp4`: as many digits as the last number has.
pub(crate) fn numbered(path: &Path, number: usize, count: usize) -> PathBuf {
    let width = count.to_string().len();
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number:0width$}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(format!(".{suffix}"));
    path.with_file_name(name)
}

/// The folder that a file lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A word as a shell reads it back.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(target: &str) -> Outputs {
        Outputs { target: Some(target.into()), ..Outputs::default() }
    }

    #[test]
    fn several_clips_are_numbered() -> Result<()> {
        let files = outputs("a/out.mp4").files(2, 12, "x")?;
        assert_eq!(files.target.path(), Path::new("a/out-03.mp4"));
        assert_eq!(files.rescue, Path::new("a/out-03.mp4.latents.safetensors"));
        assert_eq!(outputs("frames/").files(0, 2, "x")?.target.path(), Path::new("frames-1/"));
        assert_eq!(outputs("out.mp4").files(0, 1, "x")?.target.path(), Path::new("out.mp4"));
        assert!(outputs("-").files(0, 2, "x").is_err());
        Ok(())
    }

    #[test]
    fn files_nobody_named_go_by_the_stem() -> Result<()> {
        let outputs = Outputs { preview: Preview::Beside, ..Outputs::default() };
        let files = outputs.files(0, 1, "sora-fox-7")?;
        assert_eq!(files.target.path(), Path::new("sora-fox-7.mp4"));
        assert_eq!(files.preview.map(|t| t.path().to_owned()), Some("sora-fox-7.mp4.preview.gif".into()));
        Ok(())
    }

    #[test]
    fn a_contact_sheet_is_a_picture() {
        let sheet =
            |name: &str| Outputs { contact_sheet: Some(name.into()), ..outputs("out.mp4") }.files(0, 1, "x");
        assert!(sheet("sheet.png").is_ok());
        assert!(matches!(sheet("sheet.mp4"), Err(Error::UnknownEnding { .. })));
    }

    #[test]
    fn words_are_quoted_for_shells() {
        assert_eq!(shell_word("out/a-1.mp4"), "out/a-1.mp4");
        assert_eq!(shell_word("my clip.mp4"), "'my clip.mp4'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
