//! Early looks: latents through a linear map to RGB, a small clip that takes no decoder.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use crate::{
    error::Result,
    media::{EncodeOptions, Format, Target, open_sink},
    models::api::Checkpoint,
    video::Frame,
};

/// Pictures are enlarged by whole numbers to at least this many pixels along the longer side.
const SIDE: usize = 256;

/// Writes latents as a small clip.
pub struct Previewer {
    /// `[3, C]`, f32.
    map: Tensor,
    /// `[3, 1]`, f32.
    bias: Tensor,
    target: Target,
    fps: f64,
}

impl Previewer {
    /// A previewer for clips of `fps` frames a second; nothing if the checkpoint has no map to RGB.
    pub fn new(checkpoint: &dyn Checkpoint, target: Target, fps: f64) -> Result<Option<Self>> {
        let temporal = checkpoint.info().geometry.temporal;
        Ok(match checkpoint.latent_rgb()? {
            Some((map, bias)) => {
                let bias = bias.to_dtype(DType::F32)?.unsqueeze(1)?; // [3, 1]
                Some(Self { map: map.to_dtype(DType::F32)?, bias, target, fps: fps / temporal as f64 })
            }
            None => None,
        })
    }

    /// Writes latents `[1, C, F, H, W]`, f32; a later look replaces an earlier one.
    pub fn show(&self, latents: &Tensor) -> Result<PathBuf> {
        let (_, c, f, h, w) = latents.dims5()?;
        let cells = latents.to_device(&Device::Cpu)?.reshape((c, f * h * w))?; // [C, FHW]
        let rgb = self.map.matmul(&cells)?.broadcast_add(&self.bias)?; // [3, FHW]
        let rgb = ((rgb + 1.0)? * 127.5)?.clamp(0.0, 255.0)?.round()?.to_dtype(DType::U8)?;
        let pixels = rgb.t()?.contiguous()?.flatten_all()?.to_vec1::<u8>()?; // F·H·W·3
        let still = self.target.format().is_still();
        let shown = if still { f / 2..f / 2 + 1 } else { 0..f };
        let scale = SIDE.div_ceil(h.max(w));
        let options = EncodeOptions { fps: self.fps, ..EncodeOptions::default() };
        let mut sink = open_sink(&self.target, w * scale, h * scale, &options)?;
        for frame in pixels.chunks_exact(h * w * 3).skip(shown.start).take(shown.len()) {
            sink.push(enlarge(frame, w, h, scale))?;
        }
        sink.finish()
    }
}

/// Whether a target can hold an early look.
#[must_use]
pub fn can_hold(target: &Target) -> bool {
    !matches!(target.format(), Format::Stdout | Format::Frames)
}

fn enlarge(rgb: &[u8], width: usize, height: usize, scale: usize) -> Frame {
    let mut large = Vec::with_capacity(rgb.len() * scale * scale);
    for row in rgb.chunks_exact(width * 3) {
        let row: Vec<u8> = row.chunks_exact(3).flat_map(|pixel| std::iter::repeat_n(pixel, scale)).flatten().copied().collect();
        for _ in 0..scale {
            large.extend_from_slice(&row);
        }
    }
    Frame { width: width * scale, height: height * scale, rgb: large }
}

#[cfg(test)]
mod tests {
    use super::enlarge;

    #[test]
    fn pixels_become_squares() {
        let frame = enlarge(&[1, 2, 3, 4, 5, 6], 2, 1, 2);
        assert_eq!((frame.width, frame.height), (4, 2));
        assert_eq!(frame.rgb, [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6].repeat(2));
    }
}
