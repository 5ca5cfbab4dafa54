//! Where tiles are put together as they are made, a few frames at a time: beside the result, only the edges are held that
//! the next tiles fade in from.

use std::mem;

use candle_core::{Device, Tensor};

use crate::{error::Result, nn::kernel::Values};

/// Where a tile belongs. All pairs are rows and columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Where the result has its first number.
    pub at: [usize; 2],
    /// What is made beside the tile, before it.
    pub skipped: [usize; 2],
    /// How large the tile itself is.
    pub size: [usize; 2],
    /// How much of it the result takes: the rest is there to be faded from.
    pub kept: [usize; 2],
}

/// Tiles in rows, each faded in from those above and before it.
pub(super) struct Canvas {
    /// Frames, rows and columns of the result.
    dims: [usize; 3],
    /// Rows and columns over which tiles fade.
    blend: usize,
    /// `[C, F, H, W]`, once the first tile has told C.
    values: Vec<f32>,
    /// The lower edges of the tiles above, and of this row's.
    above: Vec<Edge>,
    below: Vec<Edge>,
    /// The right edge of the tile before, and of this one.
    before: Edge,
    right: Edge,
    /// Frames that have come of this tile.
    frames: usize,
}

/// The last rows or columns of a tile, `[C, F, rows, columns]`.
#[derive(Default)]
struct Edge {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Edge {
    fn new(clips: usize, rows: usize, columns: usize) -> Self {
        Self { values: vec![0.0; clips * rows * columns], rows, columns }
    }

    /// A row of picture number `picture`.
    fn row(&self, picture: usize, row: usize) -> &[f32] {
        &self.values[(picture * self.rows + row) * self.columns..][..self.columns]
    }

    fn row_mut(&mut self, picture: usize, row: usize) -> &mut [f32] {
        &mut self.values[(picture * self.rows + row) * self.columns..][..self.columns]
    }
}

impl Canvas {
    /// For a result of `dims` frames, rows and columns.
    pub fn new(dims: [usize; 3], blend: usize) -> Self {
        let (values, above, below) = Default::default();
        Self { dims, blend, values, above, below, before: Edge::default(), right: Edge::default(), frames: 0 }
    }

    /// Begins the next row of tiles.
    pub fn next_row(&mut self) {
        self.above = mem::take(&mut self.below);
        self.before = Edge::default();
        self.right = Edge::default();
    }

    /// Ends a tile, of which all frames have come.
    pub fn next_tile(&mut self) {
        self.before = mem::take(&mut self.right);
        self.frames = 0;
    }

    /// Takes the next frames `[C, n, h, w]`, f32, of a tile.
    pub fn put(&mut self, piece: &Tensor, place: &Place) -> Result<()> {
        let piece = piece.to_device(&Device::Cpu)?.contiguous()?;
        let (channels, count, height, width) = piece.dims4()?;
        let [frames, rows, columns] = self.dims;
        let [tile_rows, tile_columns] = place.size;
        let pictures = channels * frames;
        let faded = [self.blend.min(tile_rows), self.blend.min(tile_columns)];
        self.values.resize(pictures * rows * columns, 0.0);
        if self.frames == 0 {
            self.below.push(Edge::new(pictures, faded[0], tile_columns));
            self.right = Edge::new(pictures, tile_rows, faded[1]);
        }
        let above = self.above.get(self.below.len() - 1);
        let Some(below) = self.below.last_mut() else { return Ok(()) };
        let values = Values::<f32>::contiguous(&piece)?;
        let from_above = above.map_or(0, |edge| edge.rows.min(faded[0]));
        let from_before = self.before.columns.min(faded[1]);
        let mut line = vec![0f32; tile_columns];
        for (channel, frame) in (0..channels).flat_map(|c| (0..count).map(move |f| (c, f))) {
            let picture = channel * frames + self.frames + frame;
            for row in 0..tile_rows {
                let from = ((channel * count + frame) * height + place.skipped[0] + row) * width;
                line.copy_from_slice(&values[from + place.skipped[1]..][..tile_columns]);
                if let Some(edge) = above.filter(|_| row < from_above) {
                    let share = share(row, from_above);
                    let edge = edge.row(picture, edge.rows - from_above + row);
                    line.iter_mut().zip(edge).for_each(|(to, from)| *to = fade(*from, *to, share));
                }
                if from_before > 0 {
                    let edge = &self.before.row(picture, row)[self.before.columns - from_before..];
                    for (column, (to, from)) in line.iter_mut().zip(edge).enumerate() {
                        *to = fade(*from, *to, share(column, from_before));
                    }
                }
                if let Some(row) = (row + faded[0]).checked_sub(tile_rows) {
                    below.row_mut(picture, row).copy_from_slice(&line);
                }
                self.right.row_mut(picture, row).copy_from_slice(&line[tile_columns - faded[1]..]);
                if row < place.kept[0] {
                    let to = (picture * rows + place.at[0] + row) * columns + place.at[1];
                    self.values[to..][..place.kept[1]].copy_from_slice(&line[..place.kept[1]]);
                }
            }
        }
        self.frames += count;
        Ok(())
    }

    /// `[C, F, H, W]`, on the CPU.
    pub fn finish(self) -> Result<Tensor> {
        let [frames, rows, columns] = self.dims;
        let channels = self.values.len() / (frames * rows * columns).max(1);
        Ok(Tensor::from_vec(self.values, (channels, frames, rows, columns), &Device::Cpu)?)
    }
}

/// The new tile's share at place `n` of a fade.
fn share(n: usize, extent: usize) -> f64 {
    n as f64 / extent as f64
}

fn fade(from: f32, to: f32, share: f64) -> f32 {
    from * (1.0 - share) as f32 + to * share as f32
}
