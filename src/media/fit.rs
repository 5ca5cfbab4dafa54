//! Pictures brought into the shape of a video, and what compression would have left of them.

use std::{fmt, str::FromStr};

use super::{Codec, EncodeOptions, Target, cover, open_sink, read_clip, resize};
use crate::{
    error::{Error, Result},
    video::Frame,
};

/// What is done with a picture of another shape than the video's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// It fills the video; what sticks out is cut off, evenly.
    #[default]
    Crop,
    /// All of it is shown; the rest is black.
    Pad,
    /// It is stretched or squeezed.
    Stretch,
}

impl Fit {
    /// Brings a frame to exactly `width × height`.
    pub fn apply(self, frame: &Frame, width: usize, height: usize) -> Result<Frame> {
        match self {
            Self::Crop => cover(frame, width, height),
            Self::Stretch => resize(frame, width, height),
            Self::Pad => pad(frame, width, height),
        }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crop => "crop",
            Self::Pad => "pad",
            Self::Stretch => "stretch",
        })
    }
}

impl FromStr for Fit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Crop, Self::Pad, Self::Stretch]
            .into_iter()
            .find(|fit| fit.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("fit `{text}`"), "expected crop, pad or stretch"))
    }
}

fn pad(frame: &Frame, width: usize, height: usize) -> Result<Frame> {
    let scale = (width as f64 / frame.width as f64).min(height as f64 / frame.height as f64);
    let scaled = |side: usize, most: usize| ((side as f64 * scale).round() as usize).clamp(1, most);
    let small = resize(frame, scaled(frame.width, width), scaled(frame.height, height))?;
    let (left, top) = ((width - small.width) / 2, (height - small.height) / 2);
    let mut rgb = vec![0; width * height * 3];
    for (y, row) in small.rgb.chunks_exact(small.width * 3).enumerate() {
        let start = ((top + y) * width + left) * 3;
        rgb[start..start + row.len()].copy_from_slice(row);
    }
    Ok(Frame { width, height, rgb })
}

/// What is left of a frame after H.264 at a constant rate factor. Models that were trained on compressed video take
/// a picture that is too clean for a still, and let it freeze.
pub fn compressed(frame: &Frame, crf: u8) -> Result<Frame> {
    let folder = tempfile::tempdir().map_err(Error::file("write into", std::env::temp_dir()))?;
    let path = folder.path().join("frame.mp4");
    let target = Target::parse(&path.to_string_lossy())?;
    let even = frame.width.is_multiple_of(2) && frame.height.is_multiple_of(2);
    let options = EncodeOptions {
        codec: Some(Codec::H264),
        crf: Some(crf),
        preset: Some("veryfast".into()),
        pix_fmt: (!even).then(|| "yuv444p".into()),
        ..EncodeOptions::default()
    };
    let mut sink = open_sink(&target, frame.width, frame.height, &options)?;
    sink.push(frame.clone())?;
    sink.finish()?;
    read_clip(&path)?
        .next()
        .unwrap_or_else(|| Err(Error::damaged(&path, "the frame that was written isn't there")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide() -> Frame {
        let rgb = (0..60 * 20).flat_map(|i| [if i % 60 < 30 { 200 } else { 60 }; 3]).collect();
        Frame { width: 60, height: 20, rgb }
    }

    #[test]
    fn shapes_are_filled_three_ways() {
        let at = |fit: Fit, x: usize, y: usize| {
            let fitted = fit.apply(&wide(), 32, 32).expect("a frame");
            assert_eq!((fitted.width, fitted.height, fitted.rgb.len()), (32, 32, 32 * 32 * 3));
            fitted.rgb[(y * 32 + x) * 3]
        };
        for fit in [Fit::Crop, Fit::Stretch] {
            assert!(at(fit, 4, 1) > 190 && at(fit, 28, 31) < 70, "{fit}");
        }
        assert_eq!((at(Fit::Pad, 4, 1), at(Fit::Pad, 4, 31)), (0, 0));
        assert!(at(Fit::Pad, 4, 16) > 190 && at(Fit::Pad, 28, 16) < 70);
        assert_eq!("pad".parse::<Fit>().expect("a name"), Fit::Pad);
        assert!("zoom".parse::<Fit>().is_err());
    }

    #[test]
    fn compression_changes_a_picture_a_little() {
        let noisy: Vec<u8> = (0..64u32 * 48 * 3).map(|i| (i * 7919 % 97) as u8 + 60).collect();
        let frame = Frame { width: 64, height: 48, rgb: noisy };
        let left = compressed(&frame, 29).expect("a frame");
        assert_eq!((left.width, left.height), (64, 48));
        let apart = frame.rgb.iter().zip(&left.rgb).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
        let apart = apart / frame.rgb.len() as f64;
        assert!((0.5..40.0).contains(&apart), "{apart}");
        let odd = Frame { width: 5, height: 3, rgb: vec![90; 45] };
        assert_eq!(compressed(&odd, 29).expect("a frame").width, 5);
    }
}
