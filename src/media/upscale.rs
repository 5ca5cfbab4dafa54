//! Frames made larger on their way into a sink: Lanczos, one frame at a time, on all threads.

use std::path::PathBuf;

use fast_image_resize::{
    PixelType, ResizeError, ResizeOptions, Resizer,
    images::{Image, ImageRef},
};
use rayon::prelude::*;

use super::resize::side;
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink, Size},
};

/// Rows of a frame that are made in one piece of work.
const BAND: usize = 64;

/// Brings every frame to one size and pushes it on.
///
/// The picture covers the whole of it; what sticks out of another shape is cut off evenly on both sides. The same
/// frame gives the same bytes on any number of threads.
pub struct UpscaleSink {
    inner: Box<dyn FrameSink>,
    size: Size,
    /// One for each band: their buffers are kept from frame to frame.
    resizers: Vec<Resizer>,
}

impl UpscaleSink {
    /// Frames reach `inner` in `size`.
    #[must_use]
    pub fn new(inner: Box<dyn FrameSink>, size: Size) -> Self {
        Self { inner, size, resizers: vec![Resizer::new(); size.height.div_ceil(BAND)] }
    }

    fn scale(&mut self, frame: Frame) -> Result<Frame> {
        let Size { width, height } = self.size;
        let (columns, rows) = (side(width)?, side(height)?);
        if (frame.width, frame.height) == (width, height) {
            return Ok(frame);
        }
        let refuse = |why: String| {
            let Frame { width, height, rgb } = &frame;
            Error::invalid(format!("frame of {width}x{height} with {} bytes", rgb.len()), why)
        };
        let small = ImageRef::new(side(frame.width)?, side(frame.height)?, &frame.rgb, PixelType::U8x3)
            .map_err(|e| refuse(e.to_string()))?;
        // The part of the frame that is seen: as large as it can be in the new shape.
        let (w, h) = (frame.width as f64, frame.height as f64);
        let scale = (w / f64::from(columns)).min(h / f64::from(rows));
        let (seen_w, seen_h) = ((f64::from(columns) * scale).min(w), (f64::from(rows) * scale).min(h));
        let (left, top) = ((w - seen_w) / 2.0, (h - seen_h) / 2.0);
        let mut rgb = vec![0; width * height * 3];
        let bands = rgb.par_chunks_mut(BAND * width * 3).zip(&mut self.resizers).enumerate();
        let done: Result<(), ResizeError> = bands
            .map(|(index, (band, resizer))| {
                let rows = band.len() / (width * 3);
                let first = top + (index * BAND) as f64 * scale;
                let options =
                    ResizeOptions::new().crop(left, first, seen_w, (rows as f64 * scale).min(h - first));
                let mut large = Image::from_slice_u8(columns, rows as u32, band, PixelType::U8x3)
                    .expect("a band has three bytes a pixel");
                resizer.resize(&small, &mut large, &options)
            })
            .collect();
        done.map_err(|e| refuse(e.to_string()))?;
        Ok(Frame { width, height, rgb })
    }
}

impl FrameSink for UpscaleSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let large = self.scale(frame)?;
        self.inner.push(large)
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        self.inner.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<Frame>>>);

    impl FrameSink for Kept {
        fn push(&mut self, frame: Frame) -> Result<()> {
            self.0.lock().unwrap().push(frame);
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<PathBuf> {
            Ok("done".into())
        }
    }

    fn scaled(frame: &Frame, width: usize, height: usize) -> Frame {
        let kept = Kept::default();
        let mut sink = Box::new(UpscaleSink::new(Box::new(kept.clone()), Size { width, height }));
        sink.push(frame.clone()).unwrap();
        assert_eq!(sink.finish().unwrap(), PathBuf::from("done"));
        let mut frames = kept.0.lock().unwrap();
        frames.pop().unwrap()
    }

    /// A slope from left to right, steeper in green.
    fn slope(width: usize, height: usize) -> Frame {
        let rgb = (0..width * height).flat_map(|i| [(i % width) as u8, (2 * (i % width)) as u8, 7]).collect();
        Frame { width, height, rgb }
    }

    #[test]
    fn slopes_stay_slopes() {
        let large = scaled(&slope(40, 24), 160, 96);
        assert_eq!((large.width, large.height, large.rgb.len()), (160, 96, 160 * 96 * 3));
        // Away from the edges, where there is nothing to see beyond.
        for x in 16..144 {
            let at = (48 * 160 + x) * 3;
            let expected = (x as f64 + 0.5) / 4.0 - 0.5;
            assert!((f64::from(large.rgb[at]) - expected).abs() <= 1.0, "{x}");
            assert!((f64::from(large.rgb[at + 1]) - 2.0 * expected).abs() <= 1.0, "{x}");
            assert_eq!(large.rgb[at + 2], 7);
        }
    }

    #[test]
    fn another_shape_is_cut_evenly() {
        let mut square = slope(32, 32);
        // A white line through the middle row stays in the middle.
        square.rgb[16 * 32 * 3..17 * 32 * 3].fill(255);
        let wide = scaled(&square, 128, 64);
        let row = |y: usize| wide.rgb[(y * 128 + 64) * 3 + 2];
        let brightest = (0..64).max_by_key(|&y| row(y)).unwrap();
        assert!((32..36).contains(&brightest), "{brightest}");
        assert_eq!(row(0), 7);
        assert_eq!(row(63), 7);
    }

    #[test]
    fn nothing_is_done_to_frames_of_that_size() {
        let frame = slope(20, 10);
        assert_eq!(scaled(&frame, 20, 10), frame);
    }

    #[test]
    fn neither_threads_nor_bands_are_seen() {
        let frame = slope(32, 48);
        let tall = scaled(&frame, 320, 480);
        let rows: Vec<&[u8]> = tall.rgb.chunks_exact(320 * 3).collect();
        assert!(rows.iter().all(|row| *row == rows[0]), "every row of this frame is alike");
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| scaled(&frame, 300, 500))
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn refuses_sides_nothing_can_hold() {
        let mut sink = UpscaleSink::new(Box::<Kept>::default(), Size { width: 0, height: 8 });
        assert!(sink.push(slope(8, 8)).is_err());
    }
}
