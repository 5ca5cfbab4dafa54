//! A contact sheet: one picture that shows a clip at a glance.

use std::path::PathBuf;

use super::{options::EncodeOptions, resize::resize, sink::open_sink, target::Target};
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink},
};

/// Cells at most, and the longer side of one in pixels.
const CELLS: usize = 12;
const SIDE: usize = 320;
const GAP: usize = 6;
const BACKGROUND: u8 = 32;
/// The proportions a sheet comes near to.
const ASPECT: f64 = 1.6;

/// Keeps evenly spaced small frames as a clip passes, and lays them out in rows.
///
/// It is a [`FrameSink`]: put it beside the video in a [`super::TeeSink`]. Frames run from left to
/// right, then down; the first and the last of the clip are always among them.
pub struct SheetBuilder {
    target: Target,
    metadata: Vec<(String, String)>,
    wanted: Vec<usize>,
    seen: usize,
    cells: Vec<Frame>,
}

impl SheetBuilder {
    /// A sheet at `target`, a `.png` or `.jpg`, of a clip of `total` frames.
    pub fn new(target: &Target, total: usize) -> Result<Self> {
        if !target.format().is_still() {
            let what = format!("contact sheet `{}`", target.path().display());
            return Err(Error::invalid(what, "expected a file ending in .png or .jpg"));
        }
        let cells = total.clamp(1, CELLS);
        let wanted = (0..cells).map(|i| i * total.saturating_sub(1) / (cells - 1).max(1)).collect();
        Ok(Self { target: target.clone(), metadata: Vec::new(), wanted, seen: 0, cells: Vec::new() })
    }

    /// Tags for the picture, as in [`EncodeOptions::metadata`].
    #[must_use]
    pub fn with_metadata(mut self, metadata: Vec<(String, String)>) -> Self {
        self.metadata = metadata;
        self
    }

    /// The sheet of what has passed so far.
    pub fn compose(&self) -> Result<Frame> {
        let Some(first) = self.cells.first() else {
            return Err(Error::invalid("contact sheet", "no frames to show (expected at least 1)"));
        };
        let (columns, rows) = grid(self.cells.len(), first.width, first.height);
        let width = columns * (first.width + GAP) + GAP;
        let height = rows * (first.height + GAP) + GAP;
        let mut rgb = vec![BACKGROUND; width * height * 3];
        for (i, cell) in self.cells.iter().enumerate() {
            let left = GAP + i % columns * (cell.width + GAP);
            let top = GAP + i / columns * (cell.height + GAP);
            for (y, row) in cell.rgb.chunks_exact(cell.width * 3).enumerate() {
                let start = ((top + y) * width + left) * 3;
                rgb[start..start + row.len()].copy_from_slice(row);
            }
        }
        Ok(Frame { width, height, rgb })
    }
}

/// Columns and rows for `count` cells: near to [`ASPECT`], with few cells left empty.
fn grid(count: usize, width: usize, height: usize) -> (usize, usize) {
    let badness = |columns: usize| {
        let rows = count.div_ceil(columns);
        let aspect = (columns * width) as f64 / (rows * height) as f64;
        (aspect / ASPECT).ln().abs() + 0.2 * (columns * rows - count) as f64
    };
    let best = (1..=count).min_by(|a, b| badness(*a).total_cmp(&badness(*b)));
    let columns = best.expect("at least one cell");
    (columns, count.div_ceil(columns))
}

impl FrameSink for SheetBuilder {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if self.wanted.contains(&self.seen) {
            let scale = (SIDE as f64 / frame.width.max(frame.height).max(1) as f64).min(1.0);
            let scaled = |side: usize| ((side as f64 * scale).round() as usize).max(1);
            let (width, height) = match self.cells.first() {
                Some(first) => (first.width, first.height),
                None => (scaled(frame.width), scaled(frame.height)),
            };
            self.cells.push(resize(&frame, width, height)?);
        }
        self.seen += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        let sheet = self.compose()?;
        let options = EncodeOptions { metadata: self.metadata, ..Default::default() };
        let mut sink = open_sink(&self.target, sheet.width, sheet.height, &options)?;
        sink.push(sheet)?;
        sink.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::grid;

    #[test]
    fn grids_are_full_and_broad() {
        assert_eq!(grid(12, 128, 128), (4, 3));
        assert_eq!(grid(12, 320, 180), (3, 4));
        assert_eq!(grid(12, 180, 320), (6, 2));
        assert_eq!(grid(1, 128, 128), (1, 1));
    }
}
