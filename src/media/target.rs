//! What an output name means, decided by its ending before any work is done.

use std::{
    fs, io,
    io::IsTerminal as _,
    path::{Path, PathBuf},
};

use super::pending;
use crate::error::{Error, Result};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// MPEG-4 container.
    Mp4,
    /// QuickTime container.
    Mov,
    /// Matroska container.
    Mkv,
    /// WebM container.
    Webm,
    /// Animated GIF.
    Gif,
    /// Animated WebP.
    Webp,
    /// One picture, lossless.
    Png,
    /// One picture.
    Jpeg,
    /// A folder of lossless pictures, `000000.png` and so on.
    Frames,
    /// Uncompressed video in a file.
    Y4m,
    /// Uncompressed video (y4m) on standard output.
    Stdout,
}

/// The endings, as error messages list them.
const ENDINGS: &str = ".mp4, .mov, .mkv, .webm, .gif, .webp, .png, .jpg, .y4m, a folder, or - for stdout";

impl Format {
    fn of_ending(ending: &str) -> Option<Self> {
        Some(match ending.to_ascii_lowercase().as_str() {
            "mp4" => Self::Mp4,
            "mov" => Self::Mov,
            "mkv" => Self::Mkv,
            "webm" => Self::Webm,
            "gif" => Self::Gif,
            "webp" => Self::Webp,
            "png" => Self::Png,
            "jpg" | "jpeg" => Self::Jpeg,
            "y4m" => Self::Y4m,
            _ => return None,
        })
    }

    /// The short name: `mp4`, `frames`, …
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Mov => "mov",
            Self::Mkv => "mkv",
            Self::Webm => "webm",
            Self::Gif => "gif",
            Self::Webp => "webp",
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Frames => "png frames",
            Self::Y4m | Self::Stdout => "y4m",
        }
    }

    /// Holds exactly one frame.
    #[must_use]
    pub fn is_still(self) -> bool {
        matches!(self, Self::Png | Self::Jpeg)
    }
}

/// An output name and what its ending asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: PathBuf,
    format: Format,
}

impl Target {
    /// Decides by the ending of `path`; reads nothing but whether it is a folder.
    ///
    /// ```
    /// use sora::media::{Format, Target};
    /// assert_eq!(Target::parse("clip.MP4")?.format(), Format::Mp4);
    /// assert_eq!(Target::parse("frames/")?.format(), Format::Frames);
    /// assert!(Target::parse("clip.avi").is_err());
    /// # Ok::<(), sora::Error>(())
    /// ```
    pub fn parse(path: &str) -> Result<Self> {
        if path.is_empty() || path.contains('\0') {
            let what = format!("output name `{}`", path.escape_debug());
            return Err(Error::invalid(what, "expected a file or folder name").with_hint("e.g. -o out.mp4"));
        }
        let file = PathBuf::from(path);
        let ending = file.extension().map(|e| e.to_string_lossy().into_owned());
        let format = match ending {
            _ if path == "-" => Format::Stdout,
            _ if path.ends_with(std::path::is_separator) => Format::Frames,
            None => Format::Frames,
            Some(ending) => match Format::of_ending(&ending) {
                Some(format) => format,
                None if file.is_dir() => Format::Frames,
                None => {
                    return Err(Error::UnknownEnding {
                        path: file,
                        ending: format!(".{ending}"),
                        expected: ENDINGS.into(),
                    });
                }
            },
        };
        Ok(Self { path: file, format })
    }

    /// The name as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What will be written.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Finds out now what would make writing fail at the end: no such folder, no permission, a
    /// folder where a file is meant. Leaves nothing behind.
    pub fn check_writable(&self) -> Result<()> {
        let path = &self.path;
        if self.format == Format::Stdout {
            if io::stdout().is_terminal() {
                return Err(Error::invalid("output `-`", "standard output is a terminal")
                    .with_hint("pipe it on, as in `-o - | ffplay -`, or name a file"));
            }
            return Ok(());
        }
        let found = fs::metadata(path).ok();
        if self.format == Format::Frames {
            return match found {
                Some(found) if found.is_dir() => probe(path),
                Some(_) => Err(Error::invalid(
                    format!("output folder `{}`", path.display()),
                    "a file of that name is there",
                )
                .with_hint(format!("expected a folder, or a file ending: {ENDINGS}"))),
                None => probe(&pending::folder_of(path)),
            };
        }
        match found {
            Some(found) if found.is_dir() => Err(Error::invalid(
                format!("output file `{}`", path.display()),
                "a folder of that name is there",
            )
            .with_hint("choose another name; for a folder of frames end it in `/`")),
            Some(found) if !found.is_file() => Err(Error::invalid(
                format!("output file `{}`", path.display()),
                "something that is no regular file has that name",
            )
            .with_hint("choose another name, or `-` to write y4m to a pipe")),
            _ => probe(&pending::folder_of(&pending::follow(path))),
        }
    }
}

/// Makes a nameless file in `folder` and forgets it.
fn probe(folder: &Path) -> Result<()> {
    tempfile::tempfile_in(folder).map(drop).map_err(|e| pending::into_error(folder, e))
}
