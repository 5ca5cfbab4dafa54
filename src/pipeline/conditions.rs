//! Pictures and clips as prompts: what can be asked for, and which latent frames it becomes.

use std::ops::Range;

use candle_core::Tensor;

use crate::{
    error::{Error, Result},
    models::api::{Conditioning, Geometry, Posterior},
    video::VideoSpec,
};

/// Latent frames of a clip in the middle that stand beside the clip's tokens; the rest takes its place among them.
const PREFIX: usize = 2;

/// Noise on what is held fast, where [`Conditions::noise_scale`] says nothing and the tokens stand beside.
const NOISE_SCALE: f64 = 0.15;

/// What a condition shows.
#[derive(Debug, Clone)]
pub enum Content {
    /// `[1, 3, F, H, W]`, f32, −1..1: goes through the video encoder.
    Pixels(Tensor),
    /// What the encoder made of pictures.
    Encoded(Posterior),
    /// `[1, C, f, h, w]`, f32, normalised: taken as they are.
    Latents(Tensor),
}

impl Content {
    /// Size along frames, rows and columns, of pixels or of latent cells.
    fn sides(&self) -> Result<[usize; 3]> {
        let x = match self {
            Self::Pixels(x) | Self::Latents(x) => x,
            Self::Encoded(posterior) => &posterior.mean,
        };
        let (_, _, f, h, w) = x.dims5()?;
        Ok([f, h, w])
    }

    /// The likeliest latents; nothing for what hasn't been encoded.
    pub(super) fn mode(&self) -> Option<&Tensor> {
        match self {
            Self::Pixels(_) => None,
            Self::Encoded(posterior) => Some(&posterior.mean),
            Self::Latents(latents) => Some(latents),
        }
    }
}

/// A picture or clip that the video is to hold.
///
/// ```
/// use sora::pipeline::conditions::{Condition, Conditions, Content};
/// # use candle_core::{DType, Device, Tensor};
/// let picture = Tensor::zeros((1, 3, 1, 64, 64), DType::F32, &Device::Cpu)?;
/// let first = Condition { content: Content::Pixels(picture), frame: 0, strength: 1.0 };
/// let conditions = Conditions { list: vec![first], ..Conditions::default() };
/// # Ok::<(), sora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Condition {
    /// What it shows.
    pub content: Content,
    /// The frame of the video that its first frame falls on.
    pub frame: usize,
    /// How much of it is held fast, 0..1; below 1 it changes once the noise has fallen to 1 − `strength`.
    pub strength: f64,
}

/// A clip that the video starts from instead of mere noise.
#[derive(Debug, Clone)]
pub struct Source {
    /// As long and as large as the video.
    pub content: Content,
    /// Share of the steps that are made, and with it how much may change, 0..1.
    pub strength: f64,
}

/// A part of the picture that stays as it is all through the video.
#[derive(Debug, Clone)]
pub struct Still {
    /// One picture, of the video's size.
    pub picture: Content,
    /// Whether each cell stays: the denoiser's tokens of one frame, row by row.
    pub cells: Vec<bool>,
}

/// All that a video is prompted with beside words.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// What it is to hold.
    pub list: Vec<Condition>,
    /// What it starts from.
    pub source: Option<Source>,
    /// What stays, where only a part moves. Frames that are held wholly are shown as they are.
    pub still: Option<Still>,
    /// Noise on what is held fast, which keeps it from freezing: times the square of the noise level. `None` is
    /// what the checkpoint's pipeline does.
    pub noise_scale: Option<f64>,
}

impl Conditions {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.source.is_none() && self.still.is_none()
    }

    /// How much noise is put on what is held fast.
    pub(super) fn noise(&self, rule: Conditioning) -> f64 {
        self.noise_scale.unwrap_or(if rule == Conditioning::Beside { NOISE_SCALE } else { 0.0 })
    }

    /// Refuses what this way of conditioning, or this clip, can't take.
    pub fn check(&self, rule: Conditioning, geometry: &Geometry, spec: &VideoSpec) -> Result<()> {
        if let Some(scale) = self.noise_scale {
            if !(scale.is_finite() && scale >= 0.0) {
                let what = format!("noise of conditions {scale}");
                return Err(Error::invalid(what, "expected a number from 0 on"));
            }
            if scale > 0.0 && rule == Conditioning::FirstFrame && !self.list.is_empty() {
                let what = format!("noise of conditions {scale}");
                return Err(Error::invalid(what, "this model's pipeline keeps its first frame as it is"));
            }
        }
        if let Some(source) = &self.source {
            share("strength", source.strength)?;
            if rule == Conditioning::FirstFrame {
                let why = "this model's pipeline starts from noise alone";
                return Err(Error::invalid("video to start from", why).with_hint(LATER_MODELS));
            }
            check_size(&source.content, geometry, spec)?;
            let [frames, ..] = source.content.sides()?;
            let expected = match source.content {
                Content::Pixels(_) => spec.frames,
                _ => geometry.grid(spec).frames,
            };
            if frames != expected {
                let what = format!("video to start from with {frames} frames");
                return Err(Error::invalid(what, format!("expected {expected}")));
            }
        }
        if rule == Conditioning::FirstFrame && self.list.len() > 1 {
            let what = format!("{} conditions", self.list.len());
            return Err(Error::invalid(what, "this model takes one picture, as the first frame")
                .with_hint(LATER_MODELS));
        }
        if let Some(still) = &self.still {
            still.check(geometry, spec)?;
        }
        let mut taken: Vec<(usize, Slots)> = Vec::new();
        for condition in &self.list {
            share("strength of a condition", condition.strength)?;
            check_size(&condition.content, geometry, spec)?;
            let slots = condition.slots(rule, geometry, spec)?;
            if rule == Conditioning::FirstFrame && condition.strength < 1.0 {
                let what = format!("strength {}", condition.strength);
                return Err(Error::invalid(what, "this model's pipeline keeps its first frame as it is")
                    .with_hint("leave the strength out"));
            }
            for (frame, other) in &taken {
                let shared = slots.in_place.start.max(other.in_place.start)
                    ..slots.in_place.end.min(other.in_place.end);
                let beside = slots.beside > 0 && other.beside > 0 && *frame == condition.frame;
                if !shared.is_empty() || beside {
                    let what = format!("conditions at frames {frame} and {}", condition.frame);
                    let why = format!(
                        "both hold the same part of the video (its frames are made {} at a time)",
                        geometry.temporal
                    );
                    return Err(Error::invalid(what, why).with_hint("move them apart or leave one out"));
                }
            }
            taken.push((condition.frame, slots));
        }
        Ok(())
    }
}

const LATER_MODELS: &str = "models from 0.9.5 on take pictures and clips anywhere";

impl Still {
    fn check(&self, geometry: &Geometry, spec: &VideoSpec) -> Result<()> {
        check_size(&self.picture, geometry, spec)?;
        let grid = geometry.grid(spec);
        let cells = grid.height * grid.width / (geometry.patch * geometry.patch);
        if self.cells.len() != cells {
            let what = format!("part that moves, of {} cells", self.cells.len());
            return Err(Error::invalid(what, format!("expected {cells}")));
        }
        let moving = self.cells.iter().filter(|stays| !**stays).count();
        let side = geometry.spatial * geometry.patch;
        if moving == 0 {
            let why = format!("no cell of {side}x{side} pixels would move");
            return Err(Error::invalid("part that moves", why).with_hint("paint it white, and larger"));
        }
        Ok(())
    }

    /// The picture standing still for the whole clip, for the encoder.
    pub(super) fn pixels(&self, spec: &VideoSpec) -> Result<Option<Tensor>> {
        let Content::Pixels(picture) = &self.picture else { return Ok(None) };
        Ok(Some(picture.narrow(2, 0, 1)?.repeat((1, 1, spec.frames, 1, 1))?))
    }
}

/// Where the latent frames of one condition go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots {
    /// Its latent frames that are left out, from the first on.
    pub skip: usize,
    /// The latent frames of the video that it holds.
    pub in_place: Range<usize>,
    /// Its latent frames that stand beside the video's, from the first on.
    pub beside: usize,
}

impl Condition {
    /// Latent frames of the content, after trimming, and whether it is one picture.
    fn latent_frames(&self, geometry: &Geometry, spec: &VideoSpec) -> Result<(usize, bool)> {
        let [frames, ..] = self.content.sides()?;
        Ok(match self.content {
            Content::Pixels(_) => {
                let frames = trimmed(frames, self.frame, geometry, spec);
                ((frames - 1) / geometry.temporal + 1, frames == 1)
            }
            _ => (frames, frames == 1),
        })
    }

    pub(super) fn slots(&self, rule: Conditioning, geometry: &Geometry, spec: &VideoSpec) -> Result<Slots> {
        let Self { frame, .. } = *self;
        let temporal = geometry.temporal;
        if frame >= spec.frames {
            let why = format!("the video has frames 0 to {}", spec.frames.saturating_sub(1));
            return Err(
                Error::invalid(format!("condition at frame {frame}"), why).with_hint("-1 is the last frame")
            );
        }
        let (latents, still) = self.latent_frames(geometry, spec)?;
        let short = || {
            let what = format!("condition at frame {frame}: a clip shorter than {} frames", temporal + 1);
            Err(Error::invalid(what, format!("expected one picture, or at least {} frames", temporal + 1)))
        };
        let slots = match rule {
            _ if frame == 0 => Slots { skip: 0, in_place: 0..latents, beside: 0 },
            Conditioning::FirstFrame => {
                let what = format!("condition at frame {frame}");
                return Err(Error::invalid(what, "this model takes one picture, as the first frame")
                    .with_hint(LATER_MODELS));
            }
            Conditioning::Beside if still => Slots { skip: 0, in_place: 0..0, beside: 1 },
            Conditioning::Beside if latents < PREFIX => return short(),
            Conditioning::Beside => {
                let start = frame / temporal + PREFIX;
                Slots { skip: PREFIX, in_place: start..start + latents - PREFIX, beside: PREFIX }
            }
            Conditioning::InPlace if still => {
                let slot = frame.div_ceil(temporal);
                Slots { skip: 0, in_place: slot..slot + 1, beside: 0 }
            }
            Conditioning::InPlace if latents < 2 => return short(),
            Conditioning::InPlace => {
                if !frame.is_multiple_of(temporal) {
                    let below = frame - frame % temporal;
                    let what = format!("clip at frame {frame}");
                    return Err(Error::invalid(what, format!("expected a multiple of {temporal}"))
                        .with_hint(format!("put it at frame {below} or {}", below + temporal)));
                }
                let start = frame / temporal + 1;
                Slots { skip: 1, in_place: start..start + latents - 1, beside: 0 }
            }
        };
        if rule == Conditioning::FirstFrame && slots.in_place != (0..1) {
            return Err(Error::invalid(
                "clip as a condition",
                "this model takes one picture, as the first frame",
            )
            .with_hint(LATER_MODELS));
        }
        let end = slots.in_place.end;
        let all = geometry.grid(spec).frames;
        if end > all {
            let what = format!("condition at frame {frame}");
            return Err(Error::invalid(what, format!("it goes on for {} latent frames too many", end - all)));
        }
        Ok(slots)
    }

    /// The pictures that the encoder is to see: cut to what it takes and what the video has room for.
    pub(super) fn pixels(
        &self,
        rule: Conditioning,
        geometry: &Geometry,
        spec: &VideoSpec,
    ) -> Result<Option<Tensor>> {
        let Content::Pixels(pixels) = &self.content else { return Ok(None) };
        let frames = trimmed(pixels.dim(2)?, self.frame, geometry, spec);
        let pixels = pixels.narrow(2, 0, frames)?;
        // Within a clip, a latent frame is several frames: the picture stands still for them.
        let still = rule == Conditioning::InPlace && frames == 1 && self.frame > 0;
        Ok(Some(if still { pixels.repeat((1, 1, geometry.temporal + 1, 1, 1))? } else { pixels }))
    }

    /// What is kept of the encoder's latents for [`Condition::pixels`].
    pub(super) fn encoded(&self, rule: Conditioning, posterior: Posterior) -> Result<Posterior> {
        let still = rule == Conditioning::InPlace && self.frame > 0;
        let Content::Pixels(pixels) = &self.content else { return Ok(posterior) };
        if !still || pixels.dim(2)? > 1 {
            return Ok(posterior);
        }
        let last = posterior.mean.dim(2)? - 1;
        Ok(Posterior { mean: posterior.mean.narrow(2, last, 1)?, std: posterior.std.narrow(2, last, 1)? })
    }
}

/// The longest run of frames that fits from `frame` on and that encoders take, at least 1.
fn trimmed(frames: usize, frame: usize, geometry: &Geometry, spec: &VideoSpec) -> usize {
    let room = frames.min(spec.frames.saturating_sub(frame)).max(1);
    (room - 1) / geometry.temporal * geometry.temporal + 1
}

fn share(name: &str, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!("{name} {value}"), "expected a number from 0 to 1"))
}

fn check_size(content: &Content, geometry: &Geometry, spec: &VideoSpec) -> Result<()> {
    let [frames, height, width] = content.sides()?;
    let grid = geometry.grid(spec);
    let expected = match content {
        Content::Pixels(_) => [spec.height, spec.width],
        _ => [grid.height, grid.width],
    };
    if [height, width] == expected && frames > 0 {
        return Ok(());
    }
    let what = format!("condition of {frames} frames of {width}x{height}");
    Err(Error::invalid(what, format!("expected {}x{}", expected[1], expected[0])))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    const GEOMETRY: Geometry = Geometry { spatial: 8, temporal: 8, patch: 1, patch_t: 1, channels: 2 };
    const SPEC: VideoSpec = VideoSpec { width: 16, height: 8, frames: 41, fps: 8.0 };

    fn condition(frames: usize, frame: usize) -> Condition {
        let pixels = Tensor::zeros((1, 3, frames, 8, 16), DType::F32, &Device::Cpu).expect("zeros");
        Condition { content: Content::Pixels(pixels), frame, strength: 1.0 }
    }

    fn slots(rule: Conditioning, frames: usize, frame: usize) -> Result<Slots> {
        condition(frames, frame).slots(rule, &GEOMETRY, &SPEC)
    }

    fn refusal(rule: Conditioning, list: Vec<Condition>) -> String {
        let conditions = Conditions { list, ..Conditions::default() };
        conditions.check(rule, &GEOMETRY, &SPEC).expect_err("refused").to_string()
    }

    #[test]
    fn conditions_find_their_places() {
        use Conditioning::{Beside, FirstFrame, InPlace};
        let at = |rule, frames, frame| {
            let Slots { skip, in_place, beside } = slots(rule, frames, frame).expect("a place");
            (skip, in_place, beside)
        };
        for rule in [Beside, FirstFrame, InPlace] {
            assert_eq!(at(rule, 1, 0), (0, 0..1, 0));
        }
        // 20 frames are cut to 17, which are 3 latent frames.
        assert_eq!(at(Beside, 20, 0), (0, 0..3, 0));
        assert_eq!(at(Beside, 1, 40), (0, 0..0, 1));
        assert_eq!(at(Beside, 9, 8), (2, 3..3, 2));
        assert_eq!(at(Beside, 25, 16), (2, 4..6, 2));
        assert_eq!(at(Beside, 99, 16), (2, 4..6, 2));
        assert_eq!(at(InPlace, 25, 16), (1, 3..6, 0));
        assert_eq!(at(InPlace, 1, 17), (0, 3..4, 0));
        assert_eq!(at(InPlace, 1, 40), (0, 5..6, 0));
    }

    #[test]
    fn what_cannot_be_held_is_refused() {
        use Conditioning::{Beside, FirstFrame, InPlace};
        let told = |rule, frames, frame| refusal(rule, vec![condition(frames, frame)]);
        assert!(told(Beside, 1, 41).contains("frames 0 to 40"));
        assert!(told(FirstFrame, 1, 8).contains("as the first frame"));
        assert!(told(FirstFrame, 9, 0).contains("as the first frame"));
        assert!(told(InPlace, 9, 12).contains("a multiple of 8"));
        let two = |a, b| vec![a, b];
        assert!(refusal(FirstFrame, two(condition(1, 0), condition(1, 0))).contains("one picture"));
        assert!(refusal(Beside, two(condition(1, 9), condition(1, 9))).contains("frames 9 and 9"));
        assert!(refusal(Beside, two(condition(17, 0), condition(1, 0))).contains("frames 0 and 0"));
        assert!(refusal(InPlace, two(condition(1, 9), condition(1, 16))).contains("8 at a time"));
        let small = Tensor::zeros((1, 3, 1, 8, 8), DType::F32, &Device::Cpu).expect("zeros");
        let small = Condition { content: Content::Pixels(small), frame: 0, strength: 1.0 };
        assert!(refusal(Beside, vec![small]).contains("expected 16x8"));
        let weak = Condition { strength: 1.5, ..condition(1, 0) };
        assert!(refusal(Beside, vec![weak]).contains("from 0 to 1"));
        let half = Condition { strength: 0.5, ..condition(1, 0) };
        assert!(refusal(FirstFrame, vec![half]).contains("as it is"));
        let source = Source { content: condition(9, 0).content, strength: 0.5 };
        let conditions = Conditions { source: Some(source), ..Conditions::default() };
        let told = conditions.check(Beside, &GEOMETRY, &SPEC).expect_err("too short").to_string();
        assert!(told.contains("expected 41"), "{told}");
        assert!(conditions.check(FirstFrame, &GEOMETRY, &SPEC).is_err());
        let near = Conditions { list: two(condition(1, 9), condition(1, 10)), ..Conditions::default() };
        near.check(Beside, &GEOMETRY, &SPEC).expect("two pictures in one latent frame stand side by side");
    }
}
