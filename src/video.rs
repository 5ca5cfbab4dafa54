//! What a clip is, and where its frames go.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::error::{Error, Result};

/// Width and height in pixels, written `1920x1080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.split_once(['x', 'X', '×'])
            .and_then(|(width, height)| {
                Some(Self { width: width.trim().parse().ok()?, height: height.trim().parse().ok()? })
            })
            .ok_or_else(|| Error::invalid(format!("size `{text}`"), "expected WIDTHxHEIGHT, e.g. 768x512"))
    }
}

/// Size, length and rate of a clip, in pixels and frames.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct VideoSpec {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames, at least 1.
    pub frames: usize,
    /// Frames a second, > 0.
    pub fps: f64,
}

impl VideoSpec {
    /// Pixels of all frames.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.width * self.height * self.frames
    }

    /// Width and height.
    #[must_use]
    pub fn size(&self) -> Size {
        Size { width: self.width, height: self.height }
    }
}

/// One picture: packed 8-bit RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height × width × 3` bytes.
    pub rgb: Vec<u8>,
}

/// Takes frames one by one, in order, and owns whatever they become.
///
/// Dropping a sink without [`FrameSink::finish`] leaves nothing at the target.
pub trait FrameSink {
    /// Takes the next frame; all frames of a sink have one size.
    fn push(&mut self, frame: Frame) -> Result<()>;
    /// Ends the stream, moves the file to its place and says where that is (`-` for stdout).
    fn finish(self: Box<Self>) -> Result<PathBuf>;
}

/// Keeps frames in memory; for tests and library users.
#[derive(Debug, Default)]
pub struct Frames(pub Vec<Frame>);

impl FrameSink for Frames {
    fn push(&mut self, frame: Frame) -> Result<()> {
        self.0.push(frame);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        Ok(PathBuf::new())
    }
}
