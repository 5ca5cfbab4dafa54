//! From the numbers a decoder gives to 8-bit frames.

use candle_core::{DType, Device, Tensor};

use crate::{error::Result, video::Frame};

/// A frame, and what its bytes can't say.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The frame.
    pub frame: Frame,
    /// How many of its numbers were NaN or infinite.
    pub not_finite: usize,
}

/// Turns pictures `[3, f, H, W]`, −1..1, into frames: halved and shifted to 0..1, clamped, times 255, rounded
/// half to even.
pub fn pictures(video: &Tensor) -> Result<Vec<Picture>> {
    let (_, frames, height, width) = video.dims4()?;
    let video = video.permute((1, 2, 3, 0))?; // [f, H, W, 3]
    let values = video.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let size = values.len() / frames.max(1);
    let picture = |values: &[f32]| Picture {
        not_finite: values.iter().filter(|x| !x.is_finite()).count(),
        frame: Frame { width, height, rgb: values.iter().map(|&x| byte(x)).collect() },
    };
    Ok(values.chunks_exact(size.max(1)).map(picture).collect())
}

fn byte(x: f32) -> u8 {
    ((x * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_numpy_does() {
        let half = |n: f32| (n + 0.5) / 255.0 * 2.0 - 1.0;
        assert_eq!([byte(-1.0), byte(1.0), byte(0.0), byte(-7.0), byte(7.0)], [0, 255, 128, 0, 255]);
        assert_eq!([byte(half(0.0)), byte(half(3.1)), byte(f32::NAN)], [0, 4, 0]);
    }

    #[test]
    fn keeps_rows_and_counts_what_is_no_number() {
        let values: Vec<f32> =
            (0..24).map(|i| if i == 13 { f32::NAN } else { i as f32 / 12.0 - 1.0 }).collect();
        let video = Tensor::from_vec(values, (3, 2, 2, 2), &Device::Cpu).expect("a video");
        let made = pictures(&video).expect("pictures");
        assert_eq!(made.iter().map(|p| p.not_finite).collect::<Vec<_>>(), [0, 1]);
        // The first pixel's channels lie 8 numbers apart.
        assert_eq!(made[0].frame.rgb[..6], [0, 85, 170, 11, 96, 181]);
        assert_eq!((made[0].frame.width, made[0].frame.height, made[0].frame.rgb.len()), (2, 2, 12));
    }
}
