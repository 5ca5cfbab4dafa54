//! Early looks as files: a small clip that took no decoder.

use std::path::PathBuf;

use candle_core::Tensor;

use crate::{
    error::Result,
    media::{EncodeOptions, Target, open_sink},
    models::api::Checkpoint,
    pipeline::preview::Preview,
    video::Frame,
};

/// Pictures are enlarged by whole numbers to at least this many pixels along the longer side.
const SIDE: usize = 256;

/// Writes latents as a small clip.
pub struct Previewer {
    preview: Preview,
    target: Target,
    fps: f64,
}

impl Previewer {
    /// A previewer for clips of `fps` frames a second; nothing if the checkpoint has no map to RGB.
    pub fn new(checkpoint: &dyn Checkpoint, target: Target, fps: f64) -> Result<Option<Self>> {
        let fps = fps / checkpoint.info().geometry.temporal as f64;
        Ok(Preview::of(checkpoint)?.map(|preview| Self { preview, target, fps }))
    }

    /// Writes latents `[1, C, F, H, W]`, f32; a later look replaces an earlier one.
    pub fn show(&self, latents: &Tensor) -> Result<PathBuf> {
        let (_, _, _, height, width) = latents.dims5()?;
        let mut frames = self.preview.frames(latents)?;
        if self.target.format().is_still() {
            frames = vec![frames.swap_remove(frames.len() / 2)];
        }
        let scale = SIDE.div_ceil(height.max(width));
        let options = EncodeOptions { fps: self.fps, ..EncodeOptions::default() };
        let mut sink = open_sink(&self.target, width * scale, height * scale, &options)?;
        frames.iter().try_for_each(|frame| sink.push(enlarge(frame, scale)))?;
        sink.finish()
    }
}

fn enlarge(frame: &Frame, scale: usize) -> Frame {
    let mut rgb = Vec::with_capacity(frame.rgb.len() * scale * scale);
    for row in frame.rgb.chunks_exact(frame.width * 3) {
        let row: Vec<u8> =
            row.chunks_exact(3).flat_map(|pixel| pixel.iter().copied().cycle().take(3 * scale)).collect();
        for _ in 0..scale {
            rgb.extend_from_slice(&row);
        }
    }
    Frame { width: frame.width * scale, height: frame.height * scale, rgb }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_become_squares() {
        let frame = enlarge(&Frame { width: 2, height: 1, rgb: vec![1, 2, 3, 4, 5, 6] }, 2);
        assert_eq!((frame.width, frame.height), (4, 2));
        assert_eq!(frame.rgb, [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6].repeat(2));
    }
}
