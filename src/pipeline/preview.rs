//! Early looks: a linear map from latents to small pictures.

use candle_core::{DType, Device, Tensor};

use super::pictures::pictures;
use crate::{error::Result, models::api::Checkpoint, video::Frame};

/// A checkpoint's map from latents to RGB.
#[derive(Debug, Clone)]
pub struct Preview {
    /// `[3, C]`.
    map: Tensor,
    /// `[3, 1]`.
    bias: Tensor,
}

impl Preview {
    /// The map of a checkpoint that has one.
    pub fn of(checkpoint: &dyn Checkpoint) -> Result<Option<Self>> {
        let Some((map, bias)) = checkpoint.latent_rgb()? else { return Ok(None) };
        let flat = |t: Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32);
        Ok(Some(Self { map: flat(map)?, bias: flat(bias)?.reshape((3, 1))? }))
    }

    /// One frame of W × H pixels for each latent frame of latents `[1, C, F, H, W]`.
    pub fn frames(&self, latents: &Tensor) -> Result<Vec<Frame>> {
        let (_, c, f, h, w) = latents.dims5()?;
        let cells = latents.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.reshape((c, f * h * w))?;
        let rgb = self.map.matmul(&cells)?.broadcast_add(&self.bias)?; // [3, F·H·W]
        pictures(&rgb.reshape((3, f, h, w))?)?.map(|picture| Ok(picture?.frame)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::fake::Fake;

    #[test]
    fn maps_each_cell_to_a_pixel() {
        let fake = Fake::new(serde_json::json!({}));
        let preview = Preview::of(&fake).expect("a map").expect("it has one");
        // Two channels of two frames of 1 × 3 cells; the fake maps them to red and green, and blue is full.
        let latents =
            Tensor::new(&[-1f32, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0], &Device::Cpu)
                .and_then(|t| t.reshape((1, 2, 2, 1, 3)))
                .expect("latents");
        let frames = preview.frames(&latents).expect("frames");
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].width, frames[0].height), (3, 1));
        assert_eq!(frames[0].rgb, [0, 255, 255, 128, 255, 255, 255, 255, 255]);
        assert_eq!(frames[1].rgb, [255, 0, 255, 255, 0, 255, 255, 0, 255]);
    }
}
