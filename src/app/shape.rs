//! From what a user asks for (`16:9`, `5s`) to sizes and lengths that a checkpoint can do.

use std::str::FromStr;

use crate::{
    error::{Error, Result},
    media::MAX_SIDE,
    models::api::{Defaults, Geometry},
    video::{Size, VideoSpec},
};

/// The relation of width to height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aspect {
    width: f64,
    height: f64,
}

impl Aspect {
    /// The shape of a picture; those that no video should have count as the nearest that it may.
    #[must_use]
    pub fn of(width: usize, height: usize) -> Self {
        let (width, height) = (width as f64, height as f64);
        if (0.1..=10.0).contains(&(width / height)) {
            Self { width, height }
        } else if width > height {
            Self { width: 10.0, height: 1.0 }
        } else {
            Self { width: 1.0, height: 10.0 }
        }
    }
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

/// The size that frames are brought to after they are decoded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Upscale {
    /// To this size.
    To(Size),
    /// By this factor, both ways.
    By(f64),
}

impl FromStr for Upscale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let factor = text.strip_suffix(['x', 'X', '×']).and_then(|number| number.trim().parse().ok());
        match (factor, text.parse()) {
            (Some(factor), _) if (1.0..=64.0).contains(&factor) => Ok(Self::By(factor)),
            (None, Ok(size)) => Ok(Self::To(size)),
            _ => {
                let why = "expected WIDTHxHEIGHT or a factor from 1 to 64, e.g. 1920x1080 or 4x";
                Err(Error::invalid(format!("upscaled size `{text}`"), why))
            }
        }
    }
}

impl Upscale {
    /// The size that clips of `spec` come out in, and what is worth a word about it.
    pub fn settle(self, spec: &VideoSpec) -> Result<(Size, Option<String>)> {
        let own = spec.size();
        let size = match self {
            Self::To(size) => size,
            // Codecs want even sides.
            Self::By(factor) => {
                let side = |pixels: usize| (pixels as f64 * factor / 2.0).round() as usize * 2;
                Size { width: side(own.width), height: side(own.height) }
            }
        };
        let refuse = |why: String| Err(Error::invalid(format!("upscaled size {size}"), why));
        if size.width < own.width || size.height < own.height {
            return refuse(format!("the clip itself is {own}, larger than that"));
        }
        if size.width > MAX_SIDE || size.height > MAX_SIDE {
            return refuse(format!("expected at most {MAX_SIDE} each way"));
        }
        let wider = (own.width * size.height) as f64 / (own.height * size.width) as f64;
        let lost = 1.0 - wider.min(1.0 / wider);
        let sides = if wider > 1.0 { "left and right" } else { "top and bottom" };
        let note = format!("{own} becomes {size}; {:.0} % is cut off at {sides}", 100.0 * lost);
        Ok((size, (lost >= 0.005).then_some(note)))
    }

    /// What clips should be like for this size, if nobody says anything else.
    #[must_use]
    pub fn aspect(self) -> SizeChoice {
        match self {
            Self::To(Size { width, height }) if width > 0 && height > 0 => {
                SizeChoice::Aspect(Aspect { width: width as f64, height: height as f64 })
            }
            _ => SizeChoice::Default,
        }
    }
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

/// The valid size nearest to an aspect, with about as many `pixels`.
pub(super) fn nearest_size(aspect: Aspect, pixels: usize, geometry: &Geometry) -> (usize, usize) {
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

/// The valid number of frames nearest to a wish.
pub(super) fn nearest_frames(frames: f64, geometry: &Geometry) -> usize {
    let latent = ((frames - 1.0) / geometry.temporal as f64).round().max(0.0) as usize + 1;
    let latent = latent.div_ceil(geometry.patch_t) * geometry.patch_t;
    geometry.temporal * (latent - 1) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::api::Direction;

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
            window: 0,
            overlap: 0,
            detail: false,
            direction: Direction::default(),
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
    fn upscaled_sizes() {
        let spec = VideoSpec { width: 160, height: 96, frames: 9, fps: 8.0 };
        let settled = |text: &str| text.parse::<Upscale>().and_then(|upscale| upscale.settle(&spec));
        let (size, note) = settled("1920x1080").unwrap();
        assert_eq!(size, Size { width: 1920, height: 1080 });
        assert_eq!(note.as_deref(), Some("160x96 becomes 1920x1080; 6 % is cut off at top and bottom"));
        assert_eq!(settled("2.5x").unwrap(), (Size { width: 400, height: 240 }, None));
        assert_eq!(settled("640x384").unwrap().1, None);
        for wrong in ["128x96", "160x80", "0x", "0.5x", "big", "999999x96", "x"] {
            assert!(settled(wrong).is_err(), "{wrong}");
        }
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
