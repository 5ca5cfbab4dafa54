//! Pictures and clips as prompts: from files to what the pipeline is conditioned on.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    str::FromStr,
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    app::{detail::Held, region::MotionRegion, shape::Aspect},
    error::{Error, Result},
    media::{Fit, Footage, compressed, content_hash},
    models::api::Geometry,
    pipeline::conditions::{Condition, Conditions, Content, Source},
    video::{Frame, VideoSpec},
};

/// The constant rate factor at which the reference's own program compresses a picture before it is animated.
const CRF: u8 = 29;

/// A picture or clip that the video is to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Keyframe {
    /// The file, or a folder of pictures.
    pub path: PathBuf,
    /// The frame that it begins at. Below 0 it is counted from the end, where −1 is the last frame, and says where
    /// it ends.
    pub frame: i64,
    /// How much of it is held fast, 0..1.
    pub strength: f64,
    /// What the file held, once it was read; a resumed render takes no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl FromStr for Keyframe {
    type Err = Error;

    /// `FRAME:PATH[:STRENGTH]`
    fn from_str(text: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid(
                format!("keyframe `{text}`"),
                "expected FRAME:PATH or FRAME:PATH:STRENGTH, e.g. -1:end.png",
            )
        };
        let (frame, rest) = text.split_once(':').ok_or_else(invalid)?;
        let frame = frame.trim().parse().map_err(|_| invalid())?;
        let strength = rest.rsplit_once(':').and_then(|(path, last)| Some((path, last.parse::<f64>().ok()?)));
        let (path, strength) = strength.unwrap_or((rest, 1.0));
        if path.is_empty() {
            return Err(invalid());
        }
        Ok(Self { path: path.into(), frame, strength, sha256: None })
    }
}

/// A clip that the video starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitVideo {
    /// The file, or a folder of pictures.
    pub path: PathBuf,
    /// Share of the steps that are made, 0..1: how much may change.
    pub strength: f64,
    /// What the file held, once it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// All pictures and clips that a video is prompted with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Visual {
    /// What it is to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keyframes: Vec<Keyframe>,
    /// What it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub video: Option<InitVideo>,
    /// What is done with pictures of another shape.
    #[serde(default)]
    pub fit: Fit,
    /// Whether single pictures are compressed first, as the frames of videos are.
    #[serde(default)]
    pub compress: bool,
    /// Noise on what is held fast; the pipeline's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_scale: Option<f64>,
    /// Whether held pictures get back the detail that the autoencoder loses of them; as the model has it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<bool>,
    /// The part that moves; all of it if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<MotionRegion>,
}

impl Default for Visual {
    fn default() -> Self {
        Self {
            keyframes: Vec::new(),
            video: None,
            fit: Fit::default(),
            compress: true,
            noise_scale: None,
            detail: None,
            region: None,
        }
    }
}

impl Visual {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keyframes.is_empty() && self.video.is_none() && self.region.is_none()
    }

    /// The shape of the picture that says how the video is shaped: the one that begins it, else the clip it starts
    /// from, else the first keyframe.
    pub fn aspect(&self) -> Result<Option<Aspect>> {
        let first = self.keyframes.iter().find(|keyframe| keyframe.frame == 0).map(|keyframe| &keyframe.path);
        let path = first
            .or(self.video.as_ref().map(|video| &video.path))
            .or(self.keyframes.first().map(|keyframe| &keyframe.path));
        let Some(path) = path else { return Ok(None) };
        let (width, height) = Footage::open(path)?.size();
        Ok(Some(Aspect::of(width, height)))
    }

    /// Frames that the clip to start from has at `fps`, counted up to `most`.
    pub fn frames(&self, fps: f64, most: usize) -> Result<Option<usize>> {
        let Some(video) = &self.video else { return Ok(None) };
        let mut count = 0;
        for frame in Footage::open(&video.path)?.frames(fps).take(most) {
            frame?;
            count += 1;
        }
        Ok(Some(count))
    }

    /// Fills in whether detail is kept, where nobody said so.
    pub(super) fn settle_detail(&mut self, own: bool) -> Result<()> {
        if self.detail == Some(true) && self.keyframes.is_empty() {
            return Err(Error::invalid("--keep-detail", "there is no picture whose detail could be kept")
                .with_hint("give one with --init-image or --keyframe, or leave the flag out"));
        }
        if own && !self.keyframes.is_empty() {
            self.detail = self.detail.or(Some(true));
        }
        Ok(())
    }

    /// The pictures whose detail is kept: those that one frame holds wholly.
    pub fn held(&self, geometry: &Geometry, spec: &VideoSpec) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        let wholly = self.keyframes.iter().filter(|keyframe| keyframe.strength >= 1.0);
        for keyframe in wholly.filter(|_| self.detail == Some(true)) {
            check_hash(&keyframe.path, &mut keyframe.sha256.clone())?;
            let (frames, frame) = keyframe.read(geometry, spec)?;
            if let [picture] = &frames[..] {
                let picture = self.fit.apply(picture, spec.width, spec.height)?;
                held.push(Held { frame, picture });
            }
        }
        Ok(held)
    }

    /// Reads all files, fits them to the video, and notes what they held.
    pub fn load(&mut self, geometry: &Geometry, spec: &VideoSpec) -> Result<Conditions> {
        let (fit, compress) = (self.fit, self.compress);
        let mut list = Vec::new();
        for keyframe in &mut self.keyframes {
            check_hash(&keyframe.path, &mut keyframe.sha256)?;
            let (frames, frame) = keyframe.read(geometry, spec)?;
            let single = frames.len() == 1;
            let fitted = frames.into_iter().map(|frame| {
                let frame = fit.apply(&frame, spec.width, spec.height)?;
                if single && compress { compressed(&frame, CRF) } else { Ok(frame) }
            });
            let content = Content::Pixels(pixels(&fitted.collect::<Result<Vec<_>>>()?)?);
            list.push(Condition { content, frame, strength: keyframe.strength });
        }
        let source = match &mut self.video {
            None => None,
            Some(video) => {
                check_hash(&video.path, &mut video.sha256)?;
                let frames = Footage::open(&video.path)?.frames(spec.fps).take(spec.frames);
                let fitted = frames.map(|frame| fit.apply(&frame?, spec.width, spec.height));
                let fitted = fitted.collect::<Result<Vec<_>>>()?;
                if fitted.len() < spec.frames {
                    let what = format!("{} frames of a video to start from", spec.frames);
                    let why =
                        format!("`{}` has {} at {} a second", video.path.display(), fitted.len(), spec.fps);
                    let most = geometry.frames_around(fitted.len()).0;
                    let hint =
                        most.map_or("give a longer one".into(), |most| format!("pass --frames {most}"));
                    return Err(Error::invalid(what, why).with_hint(hint));
                }
                Some(Source { content: Content::Pixels(pixels(&fitted)?), strength: video.strength })
            }
        };
        let still = match &mut self.region {
            Some(region) => Some(region.still(&list, fit, geometry, spec)?),
            None => None,
        };
        Ok(Conditions { list, source, still, noise_scale: self.noise_scale })
    }
}

impl Keyframe {
    /// The frames that the video has room for, at its rate, and where they begin in it.
    fn read(&self, geometry: &Geometry, spec: &VideoSpec) -> Result<(Vec<Frame>, usize)> {
        let count = spec.frames as i64;
        if !(-count..count).contains(&self.frame) {
            let why = format!("the video has frames 0 to {} (or -{count} to -1, from the end)", count - 1);
            return Err(Error::invalid(format!("keyframe at frame {}", self.frame), why)
                .with_hint("-1 is the last frame"));
        }
        let frames = Footage::open(&self.path)?.frames(spec.fps);
        if self.frame >= 0 {
            let start = self.frame as usize;
            let frames = frames.take(spec.frames - start).collect::<Result<Vec<_>>>()?;
            return Ok((frames, start));
        }
        let end = (count + self.frame) as usize + 1;
        let mut last = VecDeque::new();
        for frame in frames {
            last.push_back(frame?);
            if last.len() > end {
                last.pop_front();
            }
        }
        let kept = (last.len() - 1) / geometry.temporal * geometry.temporal + 1;
        Ok((last.split_off(last.len() - kept).into(), end - kept))
    }
}

/// Refuses a file that has changed since its content was noted; notes it otherwise.
pub(super) fn check_hash(path: &Path, noted: &mut Option<String>) -> Result<()> {
    let found = content_hash(path)?;
    match noted {
        Some(noted) if *noted != found => {
            let why = "it isn't what the render was begun with";
            Err(Error::invalid(format!("`{}`", path.display()), why)
                .with_hint("put the old file back, or start anew"))
        }
        _ => {
            *noted = Some(found);
            Ok(())
        }
    }
}

/// Frames of one size as `[1, 3, F, H, W]`, f32, −1..1.
pub fn pixels(frames: &[Frame]) -> Result<Tensor> {
    let Some(Frame { width, height, .. }) = frames.first() else {
        return Err(Error::invalid("clip", "it has no frames (expected at least 1)"));
    };
    let values: Vec<f32> = frames
        .iter()
        .flat_map(|frame| &frame.rgb)
        .map(|&byte| 2.0 * (f32::from(byte) / 255.0) - 1.0)
        .collect();
    let video = Tensor::from_vec(values, (frames.len(), *height, *width, 3), &Device::Cpu)?;
    Ok(video.permute((3, 0, 1, 2))?.contiguous()?.unsqueeze(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyframes_are_read_from_words() {
        let read = |text: &str| text.parse::<Keyframe>().map(|k| (k.frame, k.path, k.strength)).ok();
        assert_eq!(read("0:a.png"), Some((0, "a.png".into(), 1.0)));
        assert_eq!(read("-1:dir/b c.mp4:0.5"), Some((-1, "dir/b c.mp4".into(), 0.5)));
        assert_eq!(read("8:a:b.png"), Some((8, "a:b.png".into(), 1.0)));
        for wrong in ["a.png", "x:a.png", "3:", "3::0.5", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pixels_lie_as_the_encoder_wants_them() {
        let frame = |first: u8| Frame { width: 2, height: 1, rgb: vec![first, 51, 102, 153, 204, 255] };
        let video = pixels(&[frame(0), frame(255)]).expect("a tensor");
        assert_eq!(video.dims(), [1, 3, 2, 1, 2]);
        let values: Vec<f32> = video.flatten_all().and_then(|x| x.to_vec1()).expect("f32");
        // Red of both frames, two pixels each.
        let expected = [-1.0, 0.2, 1.0, 0.2];
        assert!(values.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{values:?}");
        assert!(pixels(&[]).is_err());
    }
}
