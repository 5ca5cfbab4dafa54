//! Noise that goes sideways with the camera.
//!
//! A denoiser puts things where the noise has them. If the noise of each latent frame is that of the first one, moved
//! along, the picture moves along, too (warped noise: Burgert et al., arXiv 2501.08331). Each frame's noise is as
//! random as ever; only from frame to frame it is the same.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::noise::TorchRng;
use crate::{error::Result, models::api::Geometry, video::VideoSpec};

/// How the picture as a whole goes sideways, over time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Pan(Vec<Sweep>);

/// A part of the time in which the picture goes one way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// Seconds from the clip's beginning.
    pub from: f64,
    /// Where it ends.
    pub until: f64,
    /// Widths of the picture that its content goes to the right in a second.
    pub speed: f64,
}

impl Pan {
    /// Of these parts; nothing moves outside them.
    #[must_use]
    pub fn new(sweeps: Vec<Sweep>) -> Self {
        Self(sweeps)
    }

    /// Whether nothing moves at all.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.0.is_empty()
    }

    /// The same as seen by a clip that begins `seconds` later.
    #[must_use]
    pub fn after(&self, seconds: f64) -> Self {
        let later = |s: &Sweep| Sweep { from: s.from - seconds, until: s.until - seconds, ..*s };
        Self(self.0.iter().map(later).collect())
    }

    /// Widths of the picture that its content is to the right of where it began, at a time in seconds.
    fn offset(&self, time: f64) -> f64 {
        self.0.iter().map(|s| (s.until.min(time) - s.from.max(0.0)).max(0.0) * s.speed).sum()
    }

    /// Moves noise `[1, C, F, H, W]` of a clip of this shape along, by whole cells. What comes in at the sides is drawn
    /// from a copy of `rng`.
    pub fn carry(
        &self,
        noise: Tensor,
        spec: &VideoSpec,
        geometry: &Geometry,
        rng: &TorchRng,
    ) -> Result<Tensor> {
        let (b, c, frames, h, w) = noise.dims5()?;
        let moved: Vec<i64> = (0..frames)
            .map(|i| {
                // A latent frame stands for the first frame, or for the middle of those it holds.
                let frame = match i {
                    0 => 0.0,
                    i => (i - 1) as f64 * geometry.temporal as f64 + (geometry.temporal + 1) as f64 / 2.0,
                };
                (self.offset(frame / spec.fps) * w as f64).round() as i64
            })
            .collect();
        let (most, least) =
            (moved.iter().copied().max().unwrap_or(0), moved.iter().copied().min().unwrap_or(0));
        if (most, least) == (0, 0) {
            return Ok(noise);
        }
        // One wide frame of noise, of which each frame of the clip shows a part.
        let mut rng = rng.clone();
        let (left, right) = (most.max(0) as usize, (-least).max(0) as usize);
        let sides = rng.randn(&[b, c, 1, h, left + right])?;
        let first = noise.narrow(2, 0, 1)?;
        let wide = Tensor::cat(
            &[&sides.narrow(D::Minus1, 0, left)?, &first, &sides.narrow(D::Minus1, left, right)?],
            D::Minus1,
        )?;
        let shown = moved.iter().map(|&by| wide.narrow(D::Minus1, (left as i64 - by) as usize, w));
        let shown = shown.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&shown, 2)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { spatial: 16, temporal: 4, patch: 1, patch_t: 1, channels: 3 };
    const SPEC: VideoSpec = VideoSpec { width: 128, height: 32, frames: 17, fps: 8.0 };

    /// Columns that each latent frame's noise lies to the right of the first one's, and how often it was compared.
    fn shifts(noise: &Tensor) -> Vec<i64> {
        let (_, _, frames, _, w) = noise.dims5().unwrap();
        let column = |frame: usize, x: i64| {
            let column = noise.narrow(2, frame, 1).unwrap().narrow(4, x as usize, 1).unwrap();
            column.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let w = w as i64;
        (0..frames)
            .map(|frame| {
                let same = |by: i64| {
                    (0..w)
                        .filter(|x| (0..w).contains(&(x - by)))
                        .all(|x| column(frame, x) == column(0, x - by))
                };
                (1 - w..w).find(|by| same(*by)).expect("a frame that is the first one, moved")
            })
            .collect()
    }

    fn carried(pan: &Pan) -> Tensor {
        let mut rng = TorchRng::new(4);
        let noise = rng.randn(&GEOMETRY.latent_shape(&SPEC)).unwrap();
        pan.carry(noise, &SPEC, &GEOMETRY, &rng).unwrap()
    }

    #[test]
    fn noise_goes_with_the_picture() {
        let sweep = |from, until, speed| Sweep { from, until, speed };
        // 1.2 cells a second, and the middles of the frames lie 0.3125, 0.8125, 1.3125 and 1.8125 s in.
        assert_eq!(shifts(&carried(&Pan::new(vec![sweep(0.0, 2.0, 0.15)]))), [0, 0, 1, 2, 2]);
        assert_eq!(shifts(&carried(&Pan::new(vec![sweep(0.0, 2.0, -0.3)]))), [0, -1, -2, -3, -4]);
        let there_and_back = Pan::new(vec![sweep(0.0, 1.0, 0.25), sweep(1.0, 3.0, -0.25)]);
        assert_eq!(shifts(&carried(&there_and_back)), [0, 1, 2, 1, 0]);
        assert_eq!(shifts(&carried(&there_and_back.after(1.0))), [0, -1, -2, -3, -4]);
    }

    #[test]
    fn each_frame_stays_noise_and_no_pan_changes_nothing() {
        let plain = TorchRng::new(4).randn(&GEOMETRY.latent_shape(&SPEC)).unwrap();
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&carried(&Pan::default())), values(&plain));
        let moved = carried(&Pan::new(vec![Sweep { from: 0.0, until: 2.0, speed: 0.5 }]));
        for frame in 0..5 {
            let values = values(&moved.narrow(2, frame, 1).unwrap());
            let n = values.len() as f32;
            let mean = values.iter().sum::<f32>() / n;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n;
            assert!(mean.abs() < 0.5 && (0.4..2.0).contains(&variance), "{mean} {variance}");
        }
    }
}
