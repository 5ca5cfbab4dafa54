//! Frames of another size.

use image::{RgbImage, imageops};

use crate::{
    error::{Error, Result},
    video::Frame,
};

/// Scales to exactly `width × height` (Lanczos), whatever that does to the proportions.
pub fn resize(frame: &Frame, width: usize, height: usize) -> Result<Frame> {
    if (frame.width, frame.height) == (width, height) {
        return Ok(frame.clone());
    }
    let (w, h) = (side(width)?, side(height)?);
    let picture =
        RgbImage::from_raw(side(frame.width)?, side(frame.height)?, frame.rgb.clone()).ok_or_else(|| {
            Error::invalid(format!("frame of {} bytes", frame.rgb.len()), "too few for its size")
        })?;
    let scaled = imageops::resize(&picture, w, h, imageops::FilterType::Lanczos3);
    Ok(Frame { width, height, rgb: scaled.into_raw() })
}

/// Scales to cover `width × height` without stretching and cuts off what sticks out, evenly.
pub fn cover(frame: &Frame, width: usize, height: usize) -> Result<Frame> {
    side(frame.width)?;
    side(frame.height)?;
    let scale = (width as f64 / frame.width as f64).max(height as f64 / frame.height as f64);
    let scaled = |side: usize, least: usize| ((side as f64 * scale).round() as usize).max(least);
    let large = resize(frame, scaled(frame.width, width), scaled(frame.height, height))?;
    let (left, top) = ((large.width - width) / 2, (large.height - height) / 2);
    let rows = large.rgb.chunks_exact(large.width * 3).skip(top).take(height);
    let rgb = rows.flat_map(|row| &row[left * 3..(left + width) * 3]).copied().collect();
    Ok(Frame { width, height, rgb })
}

/// A side as image crates want it.
pub(super) fn side(pixels: usize) -> Result<u32> {
    match u32::try_from(pixels) {
        Ok(side) if (1..=super::MAX_SIDE).contains(&pixels) => Ok(side),
        _ => {
            let why = format!("expected 1 to {}", super::MAX_SIDE);
            Err(Error::invalid(format!("side of {pixels} pixels"), why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cover_keeps_proportions_and_the_middle() {
        // Black, then a white square in the middle, then black: 60 × 20.
        let rgb =
            (0..60 * 20).flat_map(|i| [if (20..40).contains(&(i % 60)) { 255 } else { 0 }; 3]).collect();
        let wide = Frame { width: 60, height: 20, rgb };
        let square = cover(&wide, 10, 10).unwrap();
        assert_eq!((square.width, square.height), (10, 10));
        assert_eq!(square.rgb[(5 * 10 + 5) * 3], 255);
        assert!(resize(&wide, 0, 10).is_err());
    }
}
