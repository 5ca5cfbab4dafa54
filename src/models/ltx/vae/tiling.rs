//! Decoding and encoding in overlapping tiles, cut and blended as the reference does it.

use candle_core::{Device, Tensor};

use super::config::Config;
use crate::{
    error::{Error, Result},
    models::api::Tiling,
};

/// Axes of `[C, F, H, W]`.
const FRAMES: usize = 1;
const ROWS: usize = 2;
const COLUMNS: usize = 3;

/// How one direction is cut, on the side that is read and on the side that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    /// Length of a tile that is read.
    pub tile: usize,
    /// Step between tiles that are read.
    pub step: usize,
    /// What a tile adds to the result.
    pub made: usize,
    /// What is blended with the tile before.
    pub blend: usize,
}

/// Tiles in all directions; `None` means: not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cuts {
    /// Rows and columns.
    pub spatial: Option<Cut>,
    /// Frames.
    pub temporal: Option<Cut>,
    /// Cells around a tile that are read beside it and whose pictures are cut off again.
    pub context: usize,
}

impl Cuts {
    /// Tiles of latents that are made into pictures.
    pub fn decoding(cfg: &Config, tiling: &Tiling) -> Result<Self> {
        let cut = |(tile, step): (usize, usize), ratio| Cut {
            tile: tile / ratio,
            step: step / ratio,
            made: step,
            blend: tile - step,
        };
        Ok(Self { context: tiling.context, ..Self::new(cfg, tiling, cut)? })
    }

    /// Tiles of pictures that are made into latents.
    pub fn encoding(cfg: &Config, tiling: &Tiling) -> Result<Self> {
        let cut = |(tile, step): (usize, usize), ratio| Cut {
            tile,
            step,
            made: step / ratio,
            blend: (tile - step) / ratio,
        };
        Self::new(cfg, tiling, cut)
    }

    fn new(cfg: &Config, tiling: &Tiling, cut: impl Fn((usize, usize), usize) -> Cut) -> Result<Self> {
        let cut = |what: &str, given: Option<(usize, usize)>, ratio: usize| {
            let Some((tile, step)) = given else { return Ok(None) };
            if step == 0 || step > tile || tile % ratio != 0 || step % ratio != 0 {
                let why = format!("expected multiples of {ratio}, the step not above the length");
                return Err(Error::invalid(format!("{what} tiles of {tile} every {step}"), why));
            }
            Ok(Some(cut((tile, step), ratio)))
        };
        Ok(Self {
            spatial: cut("spatial", tiling.spatial, cfg.spatial())?,
            temporal: cut("temporal", tiling.temporal, cfg.temporal())?,
            context: 0,
        })
    }

    /// Runs `each` on tiles of `x`, `[C, F, H, W]`, over rows and columns, if there is more than one of them.
    pub fn over_space(&self, x: &Tensor, each: &mut dyn FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let Some(cut) = self.spatial.filter(|cut| height > cut.tile || width > cut.tile) else {
            return each(x);
        };
        let mut above: Vec<Tensor> = Vec::new();
        let mut whole: Option<Tensor> = None;
        let made = |cells: usize| cells * cut.made / cut.step;
        for top in (0..height).step_by(cut.step) {
            let rows = Window::new(top, cut.tile, height, self.context);
            let band = x.narrow(ROWS, rows.start, rows.length)?;
            let mut row: Vec<Tensor> = Vec::new();
            for left in (0..width).step_by(cut.step) {
                let columns = Window::new(left, cut.tile, width, self.context);
                let tile = each(&band.narrow(COLUMNS, columns.start, columns.length)?)?;
                let tile = rows.crop(&tile, ROWS, cut)?;
                let mut tile = columns.crop(&tile, COLUMNS, cut)?;
                if let Some(above) = above.get(row.len()) {
                    tile = blend(above, &tile, ROWS, cut.blend)?;
                }
                if let Some(before) = row.last() {
                    tile = blend(before, &tile, COLUMNS, cut.blend)?;
                }
                row.push(tile);
            }
            let kept = row.iter().map(|tile| head(&head(tile, ROWS, cut.made)?, COLUMNS, cut.made));
            let band = Tensor::cat(&kept.collect::<Result<Vec<_>>>()?, COLUMNS)?;
            let (at, left) = (made(top), made(height) - made(top));
            let band = head(&head(&band, ROWS, left)?, COLUMNS, made(width))?.contiguous()?;
            // Each band goes where it belongs at once: all bands and a copy of them would be twice as much.
            let (channels, frames, ..) = band.dims4()?;
            let shape = (channels, frames, made(height), made(width));
            let so_far = match whole.take() {
                Some(so_far) => so_far,
                None => Tensor::zeros(shape, band.dtype(), band.device())?,
            };
            so_far.slice_set(&band, ROWS, at)?;
            whole = Some(so_far);
            above = row;
        }
        whole.ok_or_else(|| Error::invalid("latents", "they have no rows"))
    }
}

/// A tile and the context that is read with it, along one axis.
struct Window {
    start: usize,
    length: usize,
    before: usize,
    tile: usize,
}

impl Window {
    fn new(at: usize, tile: usize, whole: usize, context: usize) -> Self {
        let (tile, start) = (tile.min(whole - at), at.saturating_sub(context));
        let end = (at + tile + context).min(whole);
        Self { start, length: end - start, before: at - start, tile }
    }

    /// What was made of the tile alone.
    fn crop(&self, made: &Tensor, axis: usize, cut: Cut) -> Result<Tensor> {
        if self.length == self.tile {
            return Ok(made.clone());
        }
        let pictured = |cells: usize| cells * cut.made / cut.step;
        // A copy: what is cut off would stay with a view.
        Ok(made.narrow(axis, pictured(self.before), pictured(self.tile))?.contiguous()?)
    }
}

/// Up to `length` of `x` from the beginning of an axis.
pub(super) fn head(x: &Tensor, axis: usize, length: usize) -> Result<Tensor> {
    Ok(x.narrow(axis, 0, length.min(x.dim(axis)?))?)
}

/// Replaces the beginning of `b` by a fade from the end of `a`.
fn blend(a: &Tensor, b: &Tensor, axis: usize, extent: usize) -> Result<Tensor> {
    let extent = extent.min(a.dim(axis)?).min(b.dim(axis)?);
    if extent == 0 {
        return Ok(b.clone());
    }
    let share = |n: usize| n as f64 / extent as f64;
    let ramp = |value: &dyn Fn(usize) -> f64| -> Result<Tensor> {
        let mut dims = [1; 4];
        dims[axis] = extent;
        let values: Vec<f32> = (0..extent).map(|n| value(n) as f32).collect();
        Ok(Tensor::from_vec(values, &dims, &Device::Cpu)?.to_device(b.device())?)
    };
    let from = a.narrow(axis, a.dim(axis)? - extent, extent)?.broadcast_mul(&ramp(&|n| 1.0 - share(n))?)?;
    let to = b.narrow(axis, 0, extent)?.broadcast_mul(&ramp(&share)?)?;
    let rest = b.narrow(axis, extent, b.dim(axis)? - extent)?;
    Ok(Tensor::cat(&[(from + to)?, rest], axis)?)
}

/// Joins clips that come one after another, each fading in from the one before.
pub(super) struct Joiner {
    cut: Cut,
    before: Option<Tensor>,
    left: usize,
}

impl Joiner {
    /// `frames` are made in all.
    pub fn new(cut: Cut, frames: usize) -> Self {
        Self { cut, before: None, left: frames }
    }

    /// Takes the next clip, `[C, F, H, W]`, and gives back what is settled by it.
    pub fn push(&mut self, clip: Tensor) -> Result<Tensor> {
        let (clip, made) = match &self.before {
            Some(before) => (blend(before, &clip, FRAMES, self.cut.blend)?, self.cut.made),
            None => (clip, self.cut.made + 1),
        };
        let settled = head(&clip, FRAMES, made.min(self.left))?;
        self.left -= settled.dim(FRAMES)?;
        let frames = clip.dim(FRAMES)?;
        let kept = self.cut.blend.min(frames);
        self.before = Some(clip.narrow(FRAMES, frames - kept, kept)?.contiguous()?);
        Ok(settled)
    }
}
