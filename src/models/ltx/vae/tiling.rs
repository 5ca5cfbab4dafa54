//! Decoding and encoding in overlapping tiles, cut and blended as the reference does it.

use candle_core::Tensor;

use super::{
    canvas::{Canvas, Place},
    config::Config,
};
use crate::{
    error::{Error, Result},
    models::api::Tiling,
};

/// Axes of `[C, F, H, W]`.
const FRAMES: usize = 1;
const ROWS: usize = 2;
const COLUMNS: usize = 3;

/// Makes a tile, and hands on its frames `[C, n, h, w]`, f32, as they come.
type Each<'a> = &'a mut dyn FnMut(&Tensor, &mut dyn FnMut(Tensor) -> Result<()>) -> Result<()>;

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
    /// So many rows that are read become so many.
    ratio: (usize, usize),
}

impl Cuts {
    /// In one piece.
    pub const NONE: Self = Self { spatial: None, temporal: None, context: 0, ratio: (1, 1) };

    /// Tiles of latents that are made into pictures.
    pub fn decoding(cfg: &Config, tiling: &Tiling) -> Result<Self> {
        let cut = |(tile, step): (usize, usize), ratio| Cut {
            tile: tile / ratio,
            step: step / ratio,
            made: step,
            blend: tile - step,
        };
        Ok(Self { context: tiling.context, ..Self::new(cfg, tiling, (1, cfg.spatial()), cut)? })
    }

    /// Tiles of pictures that are made into latents.
    pub fn encoding(cfg: &Config, tiling: &Tiling) -> Result<Self> {
        let cut = |(tile, step): (usize, usize), ratio| Cut {
            tile,
            step,
            made: step / ratio,
            blend: (tile - step) / ratio,
        };
        Self::new(cfg, tiling, (cfg.spatial(), 1), cut)
    }

    fn new(
        cfg: &Config,
        tiling: &Tiling,
        ratio: (usize, usize),
        cut: impl Fn((usize, usize), usize) -> Cut,
    ) -> Result<Self> {
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
            ratio,
        })
    }

    /// Runs `each` on tiles of `x`, `[C, F, H, W]`, over rows and columns, and puts together the frames that it hands on,
    /// `frames` in all: `[C, frames, H, W]`, f32, on the CPU.
    pub fn over_space(&self, x: &Tensor, frames: usize, each: Each) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let whole = Cut { tile: height.max(width), step: self.ratio.0, made: self.ratio.1, blend: 0 };
        let cut = self.spatial.filter(|cut| height > cut.tile || width > cut.tile);
        let step = cut.map_or(whole.tile, |cut| cut.step);
        let cut = cut.unwrap_or(whole);
        let made = |cells: usize| cells * cut.made / cut.step;
        let mut canvas = Canvas::new([frames, made(height), made(width)], cut.blend);
        for top in (0..height).step_by(step) {
            let rows = Window::new(top, cut.tile, height, self.context);
            let band = x.narrow(ROWS, rows.start, rows.length)?;
            for left in (0..width).step_by(step) {
                let columns = Window::new(left, cut.tile, width, self.context);
                let both = |of: &dyn Fn(&Window) -> usize| [made(of(&rows)), made(of(&columns))];
                let place = Place {
                    at: [made(top), made(left)],
                    skipped: both(&|window| window.before),
                    size: both(&|window| window.tile),
                    kept: both(&|window| window.tile.min(step)),
                };
                let tile = band.narrow(COLUMNS, columns.start, columns.length)?;
                each(&tile, &mut |piece| canvas.put(&piece, &place))?;
                canvas.next_tile();
            }
            canvas.next_row();
        }
        canvas.finish()
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
}

/// `length` frames of clips that follow each other, from frame `start` on.
fn span(clips: &[Tensor], mut start: usize, mut length: usize) -> Result<Vec<Tensor>> {
    let mut parts = Vec::new();
    for clip in clips {
        let frames = clip.dim(FRAMES)?;
        let count = frames.saturating_sub(start).min(length);
        if count > 0 {
            parts.push(clip.narrow(FRAMES, start, count)?);
        }
        start = start.saturating_sub(frames);
        length -= count;
    }
    Ok(parts)
}

/// `b`, whose beginning fades in from the end of `a`, in two parts: the second is a view.
fn blend(a: &Tensor, b: &Tensor, extent: usize) -> Result<Vec<Tensor>> {
    let (before, frames) = (a.dim(FRAMES)?, b.dim(FRAMES)?);
    let extent = extent.min(before).min(frames);
    if extent == 0 {
        return Ok(vec![b.clone()]);
    }
    let share = |n: usize| n as f64 / extent as f64;
    let ramp = |value: &dyn Fn(usize) -> f64| -> Result<Tensor> {
        let values: Vec<f32> = (0..extent).map(|n| value(n) as f32).collect();
        Ok(Tensor::from_vec(values, (1, extent, 1, 1), b.device())?)
    };
    let from = a.narrow(FRAMES, before - extent, extent)?.broadcast_mul(&ramp(&|n| 1.0 - share(n))?)?;
    let to = b.narrow(FRAMES, 0, extent)?.broadcast_mul(&ramp(&share)?)?;
    Ok(vec![(from + to)?, b.narrow(FRAMES, extent, frames - extent)?])
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

    /// Takes the next clip, `[C, F, H, W]`, and gives back what is settled by it, in parts.
    pub fn push(&mut self, clip: Tensor) -> Result<Vec<Tensor>> {
        let frames = clip.dim(FRAMES)?;
        let (clip, made) = match &self.before {
            Some(before) => (blend(before, &clip, self.cut.blend)?, self.cut.made),
            None => (vec![clip], self.cut.made + 1),
        };
        let settled = made.min(self.left).min(frames);
        self.left -= settled;
        let kept = self.cut.blend.min(frames);
        self.before = match span(&clip, frames - kept, kept)?.as_slice() {
            [] => None,
            // A copy, or the whole clip would stay with it.
            parts => Some(Tensor::cat(parts, FRAMES)?.force_contiguous()?),
        };
        span(&clip, 0, settled)
    }
}
