//! Clips longer than a model's window: where each window stands, and how its colours are kept.

use candle_core::{DType, Device, Tensor};

use crate::{
    error::{Error, Result},
    models::api::Geometry,
    video::VideoSpec,
};

/// How a long clip is cut into windows, in latent frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Latent frames of the whole clip.
    pub frames: usize,
    /// Latent frames of a window.
    pub length: usize,
    /// Latent frames that a window takes over from what is there.
    pub overlap: usize,
    /// Latent frames that are there before the first window.
    pub given: usize,
}

/// One window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its number.
    pub index: usize,
    /// Its first latent frame.
    pub start: usize,
    /// Its latent frames.
    pub length: usize,
    /// How many of them are there already, and are held.
    pub carried: usize,
}

impl Windows {
    /// Windows of `length` pixel frames that share `overlap`, both brought to whole latent frames.
    ///
    /// # Errors
    /// If a window couldn't add anything.
    pub fn new(spec: &VideoSpec, length: usize, overlap: usize, geometry: &Geometry) -> Result<Self> {
        let unit = geometry.patch_t;
        let latent =
            |frames: usize| (frames.saturating_sub(1) / geometry.temporal + 1).next_multiple_of(unit);
        let frames = geometry.grid(spec).frames;
        let (length, overlap) = (latent(length), latent(overlap));
        if frames > length && overlap >= length {
            let pixels = |latent: usize| (latent - 1) * geometry.temporal + 1;
            let why = format!("expected less than the window of {} frames", pixels(length));
            return Err(Error::invalid(format!("overlap of {} frames", pixels(overlap)), why));
        }
        Ok(Self { frames, length, overlap: overlap.min(length.saturating_sub(unit)), given: 0 })
    }

    /// The same after `frames` latent frames that are there already; they count as part of the clip.
    #[must_use]
    pub fn after(self, frames: usize) -> Self {
        Self { frames: self.frames + frames, given: frames, ..self }
    }

    /// All windows in order.
    #[must_use]
    pub fn list(&self) -> Vec<Window> {
        let mut windows = Vec::new();
        let mut there = self.given;
        while there < self.frames {
            // The last window stands back, so that it is as long as the model knows it.
            let start = there.saturating_sub(self.overlap).min(self.frames.saturating_sub(self.length));
            let length = self.length.min(self.frames - start);
            windows.push(Window { index: windows.len(), start, length, carried: there - start });
            there = start + length;
        }
        windows
    }
}

impl Window {
    /// The clip that this window alone would be.
    #[must_use]
    pub fn spec(&self, whole: &VideoSpec, geometry: &Geometry) -> VideoSpec {
        VideoSpec { frames: (self.length - 1) * geometry.temporal + 1, ..*whole }
    }

    /// The part of the whole that it adds, in pixel frames: the first, and the one after the last.
    #[must_use]
    pub fn added(&self, geometry: &Geometry) -> (usize, usize) {
        let pixel = |latent: usize| if latent == 0 { 0 } else { (latent - 1) * geometry.temporal + 1 };
        (pixel(self.start + self.carried), pixel(self.start + self.length))
    }

    /// The seed of its noise. The first window has the clip's own; those after it are far from each other, so that
    /// no two clips of neighbouring seeds share a window's noise.
    #[must_use]
    pub fn seed(&self, seed: u64) -> u64 {
        seed.wrapping_add((self.index as u64).wrapping_mul(0x9e37_79b1))
    }
}

/// Mean and spread of each channel of latents.
#[derive(Debug, Clone, PartialEq)]
pub struct Palette {
    channels: Vec<Moments>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Moments {
    mean: f64,
    std: f64,
}

/// Channels whose spread is below this are shifted and not stretched.
const FLAT: f64 = 1e-6;

impl Palette {
    /// Of latents `[1, C, F, H, W]`, f32: over all frames and cells.
    pub fn of(latents: &Tensor) -> Result<Self> {
        let channels = flat(latents)?.into_iter().map(|values| {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
            Moments { mean, std: (squares / n).sqrt() }
        });
        Ok(Self { channels: channels.collect() })
    }

    /// Brings the new frames of a window `[1, C, F, H, W]`, f32, those after `carried`, to this palette: each channel
    /// is shifted and stretched by `share` of what would give it the mean and spread of this one. The change grows
    /// from frame to frame, so that none is seen where the window begins; it is whole at the end, where the next
    /// window goes on.
    pub fn match_window(&self, latents: &Tensor, carried: usize, share: f64) -> Result<Tensor> {
        let (b, c, f, h, w) = latents.dims5()?;
        if share <= 0.0 || carried >= f {
            return Ok(latents.clone());
        }
        let new = latents.narrow(2, carried, f - carried)?;
        let own = Self::of(&new)?;
        let mut values: Vec<f32> = latents.flatten_all()?.to_vec1()?;
        let cells = h * w;
        for (channel, (from, to)) in own.channels.iter().zip(&self.channels).enumerate() {
            let stretch = if from.std > FLAT { to.std / from.std } else { 1.0 };
            for frame in carried..f {
                let ramp = share * (frame - carried + 1) as f64 / (f - carried) as f64;
                let at = (channel * f + frame) * cells;
                for value in &mut values[at..at + cells] {
                    let old = f64::from(*value);
                    let matched = (old - from.mean) * stretch + to.mean;
                    *value = (old + (matched - old) * ramp) as f32;
                }
            }
        }
        Ok(Tensor::from_vec(values, (b, c, f, h, w), &Device::Cpu)?)
    }
}

/// The values of each channel of `[1, C, F, H, W]`.
fn flat(latents: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (_, c, f, h, w) = latents.dims5()?;
    let cells = latents.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(cells.contiguous()?.reshape((c, f * h * w))?.to_vec2()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::noise::TorchRng;

    const GEOMETRY: Geometry = Geometry { spatial: 8, temporal: 4, patch: 1, patch_t: 1, channels: 2 };

    fn windows(frames: usize, length: usize, overlap: usize) -> Windows {
        let spec = VideoSpec { width: 8, height: 8, frames, fps: 8.0 };
        Windows::new(&spec, length, overlap, &GEOMETRY).unwrap()
    }

    #[test]
    fn windows_cover_a_clip_and_are_all_of_one_length() {
        let list = windows(41, 17, 5).list(); // 11 latent frames, 5 a window, 2 shared
        let parts: Vec<_> = list.iter().map(|w| (w.start, w.length, w.carried)).collect();
        assert_eq!(parts, [(0, 5, 0), (3, 5, 2), (6, 5, 2)]);
        assert_eq!(
            list.iter().map(|w| w.added(&GEOMETRY)).collect::<Vec<_>>(),
            [(0, 17), (17, 29), (29, 41)]
        );
        let parts: Vec<_> =
            windows(37, 17, 5).list().iter().map(|w| (w.start, w.length, w.carried)).collect();
        assert_eq!(parts, [(0, 5, 0), (3, 5, 2), (5, 5, 3)], "the last window stands back");
        assert_eq!(windows(9, 17, 5).list().len(), 1);
        assert_eq!(windows(9, 17, 99).list().len(), 1, "one window shares nothing");
    }

    #[test]
    fn a_clip_can_go_on_from_another() {
        let list = windows(13, 17, 5).after(2).list(); // 4 new latent frames after 2
        let parts: Vec<_> = list.iter().map(|w| (w.start, w.length, w.carried)).collect();
        assert_eq!(parts, [(0, 5, 2), (1, 5, 4)]);
        let list = windows(5, 17, 5).after(2).list();
        assert_eq!((list.len(), list[0].length, list[0].carried), (1, 4, 2));
    }

    #[test]
    fn a_window_that_adds_nothing_is_refused() {
        let spec = VideoSpec { width: 8, height: 8, frames: 41, fps: 8.0 };
        let error = Windows::new(&spec, 17, 17, &GEOMETRY).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid overlap of 17 frames: expected less than the window of 17 frames"
        );
    }

    #[test]
    fn seeds_are_the_clips_own_and_then_far_apart() {
        let list = windows(41, 17, 5).list();
        assert_eq!(list[0].seed(7), 7);
        let seeds: Vec<u32> = list.iter().map(|w| w.seed(7) as u32).collect();
        assert!(seeds.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 1000), "{seeds:?}");
    }

    #[test]
    fn colours_come_back_to_the_first_window() {
        let noise = |seed| TorchRng::new(seed).randn(&[1, 2, 5, 4, 4]).unwrap();
        let first = noise(1);
        let drifted = ((noise(2) * 1.5).unwrap() + 0.3).unwrap();
        let palette = Palette::of(&first).unwrap();
        let matched = palette.match_window(&drifted, 2, 1.0).unwrap();
        let frame = |x: &Tensor, i: usize| {
            x.narrow(2, i, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for i in 0..2 {
            assert_eq!(frame(&matched, i), frame(&drifted, i), "what is carried stays as it is");
        }
        // The last frame has the whole change: undoing it by hand gives the frame before.
        let own = Palette::of(&drifted.narrow(2, 2, 3).unwrap()).unwrap();
        let (from, to) = (own.channels[0], palette.channels[0]);
        let expected = (f64::from(frame(&drifted, 4)[0]) - from.mean) / from.std * to.std + to.mean;
        assert!((f64::from(frame(&matched, 4)[0]) - expected).abs() < 1e-5);
        let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
        let away = |i: usize| (mean(&frame(&matched, i)) - mean(&frame(&drifted, i))).abs();
        assert!(away(2) < away(3) && away(3) < away(4), "the change grows");
        assert_eq!(frame(&palette.match_window(&drifted, 2, 0.0).unwrap(), 4), frame(&drifted, 4));
    }

    /// Ten windows of a model that brightens whatever it goes on from, by 0.1 a frame. Gives the mean of each frame.
    fn brightening(share: f64) -> Vec<f64> {
        let noise = |seed: u64, frames: usize| TorchRng::new(seed).randn(&[1, 2, frames, 6, 6]).unwrap();
        let mut all = noise(1, 5);
        let palette = Palette::of(&all).unwrap();
        for index in 1..10 {
            let frames = all.dim(2).unwrap();
            let carried = all.narrow(2, frames - 2, 2).unwrap();
            let last = all.narrow(2, frames - 1, 1).unwrap();
            let new = (1..4).map(|i| (&last + 0.1 * f64::from(i)).unwrap());
            let new = Tensor::cat(&new.collect::<Vec<_>>(), 2).unwrap();
            let new = (new + (noise(index, 3) * 0.01).unwrap()).unwrap();
            let window = Tensor::cat(&[carried, new], 2).unwrap();
            let matched = palette.match_window(&window, 2, share).unwrap();
            all = Tensor::cat(&[all, matched.narrow(2, 2, 3).unwrap()], 2).unwrap();
        }
        let mean = |i: usize| {
            let values: Vec<f32> = all.narrow(2, i, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64
        };
        (0..all.dim(2).unwrap()).map(mean).collect()
    }

    #[test]
    fn ten_windows_neither_drift_nor_show_their_joins() {
        let window = |means: &[f64], i: usize| means[5 + 3 * i..8 + 3 * i].iter().sum::<f64>() / 3.0;
        let loose = brightening(0.0);
        assert!(window(&loose, 8) - window(&loose, 0) > 2.0, "without matching it does drift");
        let means = brightening(1.0);
        for i in 1..9 {
            let drift = (window(&means, i) - window(&means, i - 1)).abs();
            assert!(drift < 0.02, "window {i} is {drift} away from the one before");
            let join = (means[5 + 3 * i] - means[4 + 3 * i]).abs();
            assert!(join < 0.05, "the join to window {i} is a step of {join}");
        }
    }

    #[test]
    fn a_flat_channel_is_shifted() {
        let flat = Tensor::zeros((1, 2, 2, 2, 2), DType::F32, &Device::Cpu).unwrap();
        let target = Palette::of(&(&flat + 2.0).unwrap()).unwrap();
        let matched = target.match_window(&flat, 0, 1.0).unwrap();
        let values: Vec<f32> = matched.flatten_all().unwrap().to_vec1().unwrap();
        assert!(values.iter().all(|v| v.is_finite()) && values[4..8].iter().all(|v| *v == 2.0), "{values:?}");
    }
}
