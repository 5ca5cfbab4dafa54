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

/// Turns pictures `[3, f, H, W]`, −1..1, into frames, one after another: halved and shifted to 0..1, clamped, times 255,
/// rounded half to even.
pub fn pictures(video: &Tensor) -> Result<impl Iterator<Item = Result<Picture>>> {
    let (channels, frames, height, width) = video.dims4()?;
    let video = video.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let picture = move |index: usize| {
        // A frame at a time: copies of all would be as large as they are.
        let values = video.narrow(1, index, 1)?.flatten_all()?.to_vec1::<f32>()?; // [3, H, W]
        let mut rgb = vec![0; values.len()];
        for (channel, plane) in values.chunks_exact((height * width).max(1)).enumerate() {
            rgb[channel..].iter_mut().step_by(channels).zip(plane).for_each(|(to, x)| *to = byte(*x));
        }
        let not_finite = values.iter().filter(|x| !x.is_finite()).count();
        Ok(Picture { not_finite, frame: Frame { width, height, rgb } })
    };
    Ok((0..frames).map(picture))
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
        let made = pictures(&video).expect("pictures").collect::<Result<Vec<_>>>().expect("numbers");
        assert_eq!(made.iter().map(|p| p.not_finite).collect::<Vec<_>>(), [0, 1]);
        // The first pixel's channels lie 8 numbers apart.
        assert_eq!(made[0].frame.rgb[..6], [0, 85, 170, 11, 96, 181]);
        assert_eq!((made[0].frame.width, made[0].frame.height, made[0].frame.rgb.len()), (2, 2, 12));
    }
}
