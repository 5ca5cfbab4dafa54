//! From what a user asks for (`16:9`, `5s`) to sizes and lengths that a checkpoint can do.

use std::str::FromStr;

use crate::{
    error::{Error, Result},
    models::api::{Defaults, Geometry},
    video::VideoSpec,
};

/// The relation of width to height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aspect {
    width: f64,
    height: f64,
}

impl FromStr for Aspect {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let positive = |part: &str| part.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0);
        text.split_once([':', '/'])
            .and_then(|(width, height)| {
                let (width, height) = (positive(width)?, positive(height)?);
                (0.1..=10.0).contains(&(width / height)).then_some(Self { width, height })
            })
            .ok_or_else(|| {
                Error::invalid(format!("aspect `{text}`"), "expected W:H from 1:10 to 10:1, e.g. 16:9")
            })
    }
}

/// How large the pictures are to be.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum SizeChoice {
    /// The model's own size.
    #[default]
    Default,
    /// These pixels; a side left out is the model's own.
    Sides {
        /// Width in pixels.
        width: Option<usize>,
        /// Height in pixels.
        height: Option<usize>,
    },
    /// The valid size nearest to this aspect, with about as many pixels as the model's own.
    Aspect(Aspect),
}

/// How long the clip is to be.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum LengthChoice {
    /// The model's own length.
    #[default]
    Default,
    /// So many frames.
    Frames(usize),
    /// The valid number of frames nearest to this many seconds.
    Seconds(f64),
}

/// Settles a clip's shape. Sizes that were asked for by number are taken as they are, for the pipeline to
/// check; `notes` say what was picked where only a wish was given.
pub fn settle(
    size: SizeChoice,
    length: LengthChoice,
    fps: Option<f64>,
    geometry: &Geometry,
    defaults: &Defaults,
) -> Result<(VideoSpec, Vec<String>)> {
    let mut notes = Vec::new();
    let fps = fps.unwrap_or(defaults.fps);
    let (width, height) = match size {
        SizeChoice::Default => (defaults.width, defaults.height),
        SizeChoice::Sides { width, height } => {
            (width.unwrap_or(defaults.width), height.unwrap_or(defaults.height))
        }
        SizeChoice::Aspect(aspect) => {
            let (width, height) = nearest_size(aspect, defaults.width * defaults.height, geometry);
            notes.push(format!("{}:{} becomes {width}x{height}", aspect.width, aspect.height));
            (width, height)
        }
    };
    let frames = match length {
        LengthChoice::Default => defaults.frames,
        LengthChoice::Frames(frames) => frames,
        LengthChoice::Seconds(seconds) => {
            if !(fps.is_finite() && fps > 0.0) {
                return Err(Error::invalid(format!("frame rate {fps}"), "expected a number above 0"));
            }
            let frames = nearest_frames(seconds * fps, geometry);
            notes.push(format!(
                "{seconds} s becomes {frames} frames ({:.2} s at {fps} fps)",
                frames as f64 / fps
            ));
            frames
        }
    };
    Ok((VideoSpec { width, height, frames, fps }, notes))
}

fn nearest_size(aspect: Aspect, pixels: usize, geometry: &Geometry) -> (usize, usize) {
    let unit = geometry.spatial * geometry.patch;
    let ratio = aspect.width / aspect.height;
    let pixels = pixels as f64;
    // The aspect counts more than the number of pixels: half of it is the worst that may go wrong.
    let cost = |width: usize, height: usize| {
        let (width, height) = (width as f64, height as f64);
        2.0 * (width / height / ratio).ln().abs() + (width * height / pixels).ln().abs()
    };
    let ideal = |side: f64| ((side / unit as f64).floor() as usize).max(1);
    let (columns, rows) = (ideal((pixels * ratio).sqrt()), ideal((pixels / ratio).sqrt()));
    let candidates = (columns.saturating_sub(1).max(1)..=columns + 2)
        .flat_map(|w| (rows.saturating_sub(1).max(1)..=rows + 2).map(move |h| (w * unit, h * unit)));
    candidates
        .min_by(|a, b| cost(a.0, a.1).total_cmp(&cost(b.0, b.1)))
        .expect("the ranges hold at least two numbers")
}

fn nearest_frames(frames: f64, geometry: &Geometry) -> usize {
    let latent = ((frames - 1.0) / geometry.temporal as f64).round().max(0.0) as usize + 1;
    let latent = latent.div_ceil(geometry.patch_t) * geometry.patch_t;
    geometry.temporal * (latent - 1) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { spatial: 32, temporal: 8, patch: 1, patch_t: 1, channels: 128 };

    fn defaults(width: usize, height: usize) -> Defaults {
        Defaults {
            width,
            height,
            frames: 97,
            fps: 24.0,
            steps: 50,
            guidance: 3.0,
            max_sequence_length: 128,
            negative_prompt: String::new(),
        }
    }

    fn sized(aspect: &str, width: usize, height: usize) -> (usize, usize) {
        let aspect = SizeChoice::Aspect(aspect.parse().expect("a valid aspect"));
        let (spec, notes) = settle(aspect, LengthChoice::Default, None, &GEOMETRY, &defaults(width, height))
            .expect("every aspect has a size");
        assert_eq!(notes.len(), 1);
        (spec.width, spec.height)
    }

    #[test]
    fn aspects_keep_the_number_of_pixels() {
        assert_eq!(sized("1:1", 128, 128), (128, 128));
        assert_eq!(sized("16:9", 128, 128), (160, 96));
        assert_eq!(sized("9:16", 128, 128), (96, 160));
        assert_eq!(sized("3:2", 704, 480), (704, 480));
        let (width, height) = sized("16:9", 704, 480);
        assert!((width as f64 / height as f64 - 16.0 / 9.0).abs() < 0.1, "{width}x{height}");
        assert_eq!(sized("10:1", 64, 64).1, 32);
    }

    #[test]
    fn seconds_become_valid_frame_counts() {
        let frames = |seconds| {
            settle(
                SizeChoice::Default,
                LengthChoice::Seconds(seconds),
                Some(24.0),
                &GEOMETRY,
                &defaults(64, 64),
            )
            .expect("every length has a count")
            .0
            .frames
        };
        assert_eq!(frames(5.0), 121);
        assert_eq!(frames(0.001), 1);
        assert_eq!(frames(1.0), 25);
    }

    #[test]
    fn nonsense_is_no_aspect() {
        for text in ["16", "16:0", "a:b", "-1:1", "1:99", "inf:1", ""] {
            assert!(text.parse::<Aspect>().is_err(), "{text}");
        }
    }
}
