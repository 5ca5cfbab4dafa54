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

/// How many pixels share a chroma sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chroma {
    /// One: 4:4:4.
    Full,
    /// Two side by side: 4:2:2.
    Half,
    /// Two by two: 4:2:0.
    Quarter,
}

impl Chroma {
    /// Columns and rows of pixels to a sample.
    #[must_use]
    pub fn step(self) -> (usize, usize) {
        match self {
            Self::Full => (1, 1),
            Self::Half => (2, 1),
            Self::Quarter => (2, 2),
        }
    }
}

/// How a file stores pictures as luma and chroma, and what the numbers mean. Codes are those of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bits of a sample.
    pub bits: u8,
    /// How many pixels share a chroma sample.
    pub chroma: Chroma,
    /// Code of the matrix between RGB and luma and chroma.
    pub matrix: u8,
    /// Whether all codes are used, and not those of studios alone.
    pub full_range: bool,
    /// Code of the primaries.
    pub primaries: u8,
    /// Code of the transfer characteristics.
    pub transfer: u8,
}

impl Layout {
    /// Bytes of a sample, the low one first.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.bits > 8 { 2 } else { 1 }
    }

    /// FFmpeg's name of the pixel format.
    #[must_use]
    pub fn pix_fmt(&self) -> String {
        let chroma = match self.chroma {
            Chroma::Full => "444",
            Chroma::Half => "422",
            Chroma::Quarter => "420",
        };
        if self.bits > 8 { format!("yuv{chroma}p{}le", self.bits) } else { format!("yuv{chroma}p") }
    }

    /// Width and height of each plane of a picture.
    #[must_use]
    pub fn planes(&self, width: usize, height: usize) -> [(usize, usize); 3] {
        let (x, y) = self.chroma.step();
        let chroma = (width.div_ceil(x), height.div_ceil(y));
        [(width, height), chroma, chroma]
    }
}

/// One picture as a file stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planes {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// What the samples are.
    pub layout: Layout,
    /// Luma and both chromas, row by row without gaps.
    pub samples: [Vec<u8>; 3],
}

impl Planes {
    /// Whether there are as many bytes as the layout asks for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let sizes = self.layout.planes(self.width, self.height);
        sizes.iter().zip(&self.samples).all(|((w, h), plane)| w * h * self.layout.bytes() == plane.len())
    }
}

/// A frame of a clip that passes through: what it looks like, and what the file stores of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// What it looks like.
    pub frame: Frame,
    /// What is stored, where that is luma and chroma in planes.
    pub planes: Option<Planes>,
}

/// Takes frames one by one, in order, and owns whatever they become.
///
/// Dropping a sink without [`FrameSink::finish`] leaves nothing at the target.
pub trait FrameSink {
    /// Takes the next frame; all frames of a sink have one size.
    fn push(&mut self, frame: Frame) -> Result<()>;
    /// Takes the next frame of a clip that passes through. Sinks that store luma and chroma take them as they are;
    /// for others it is a frame as any.
    fn push_original(&mut self, original: Original) -> Result<()> {
        self.push(original.frame)
    }
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
