//! `x · Wᵀ` on a CPU: rows of the weight come a panel at a time, in whatever form they are kept, and are laid out for the
//! kernels as they come. So none is kept twice, and a stored matrix takes no memory of its own.
//!
//! Blocks are those of Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (2008): a part of a
//! panel stays in the first cache, a block of rows in the second.

use std::{cell::RefCell, ops::Range};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{
    activation::gelu_in_place,
    kernel::{Target, Values, expect_len},
    micro::{Aligned, Micro, gather, pair},
    turn::turn,
};
use crate::{device::isa::Isa, error::Result};

/// Inner values that go through a kernel at a time: so much of a panel leaves room in the first cache.
const DEPTH: usize = 256;
/// Columns that are laid out at a time, and share a read of `x`.
const GROUP: usize = 128;
/// Rows of `x` that share a read of a panel; a [`DEPTH`] of them fills half of a core's own cache.
const BLOCK: usize = 192;

/// Rows of `x` that are laid out at a time, and share the laying out of a weight. More would take memory and save little.
pub(crate) const TOGETHER: usize = 2048;

/// Fewer rows of `x` don't pay for the layout.
pub(crate) const LEAST: usize = 6;

/// Rows of a weight, `[out, in]`.
pub(crate) enum Rows<'a> {
    F32(Values<'a, f32>),
    F16(Values<'a, f16>),
    Bf16(Values<'a, bf16>),
    /// Two neighbours in the place of one number, for a kernel that takes pairs.
    Pairs(Values<'a, bf16>),
    /// Decodes rows from a number on: as many as there is room for.
    Stored(&'a (dyn Fn(usize, &mut [f32]) -> Result<()> + Sync)),
}

impl<'a> Rows<'a> {
    /// The values of a weight that lies in memory.
    pub(crate) fn of(weight: &'a Tensor) -> Result<Self> {
        Ok(match weight.dtype() {
            candle_core::DType::F16 => Self::F16(Values::contiguous(weight)?),
            candle_core::DType::BF16 => Self::Bf16(Values::contiguous(weight)?),
            _ => Self::F32(Values::contiguous(weight)?),
        })
    }

    /// Rows `rows`, `[rows, in]`, in f32 or pairs: where they lie, or brought into `scratch`.
    fn widened<'s>(
        &'s self,
        rows: &Range<usize>,
        d_in: usize,
        scratch: &'s mut Vec<f32>,
    ) -> Result<&'s [f32]> {
        let range = rows.start * d_in..rows.end * d_in;
        if let Self::F32(values) = self {
            return Ok(&values[range]);
        }
        scratch.resize(range.len(), 0.0);
        match self {
            Self::F16(values) => values[range].convert_to_f32_slice(scratch),
            Self::Bf16(values) => values[range].convert_to_f32_slice(scratch),
            Self::Pairs(values) => pair(&values[2 * range.start..2 * range.end], scratch),
            Self::Stored(decode) => decode(rows.start, scratch)?,
            Self::F32(_) => unreachable!("returned above"),
        }
        Ok(scratch)
    }
}

/// What becomes of sums before they are written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct After<'a> {
    /// `[out]`, f32, contiguous: is added.
    pub bias: Option<&'a Tensor>,
    /// GELU in its tanh approximation comes last.
    pub gelu: bool,
}

/// `x` `[N, in]`, f32, contiguous → `[N, out]`, f32.
///
/// Each number is summed in one order, whatever the number of threads.
pub(crate) fn product(x: &Tensor, weight: &Rows, d_out: usize, after: After) -> Result<Tensor> {
    run(Micro::new(Isa::chosen()), x, weight, d_out, after)
}

/// The kernel that multiplies `x` `[N, in]` and a weight as they are: where both are bf16, `in` is even, and this processor
/// has one.
pub(crate) fn pairs_kernel(x: &Tensor, weight: &Tensor) -> Option<Micro> {
    let both = (x.dtype(), weight.dtype()) == (DType::BF16, DType::BF16);
    Micro::pairs(Isa::chosen()).filter(|_| both && x.dim(1).is_ok_and(|d| d % 2 == 0))
}

/// As [`product`] with a kernel that [`pairs_kernel`] gave: nothing is widened.
pub(crate) fn product_of_pairs(
    micro: Micro,
    x: &Tensor,
    weight: &Tensor,
    d_out: usize,
    after: After,
) -> Result<Tensor> {
    let weight = Rows::Pairs(Values::contiguous(weight)?);
    run(micro, &pairs(x)?, &weight, d_out, after)
}

/// Neighbours of the last axis, bf16, two in the place of an f32.
pub(crate) fn pairs(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut dims = x.dims().to_vec();
    let last = dims.last_mut().filter(|last| **last % 2 == 0);
    *last.ok_or_else(|| candle_core::Error::msg("pairs of an odd number").bt())? /= 2;
    let mut out = vec![0f32; x.elem_count() / 2];
    let values = Values::<bf16>::contiguous(&x)?;
    out.par_chunks_mut(1 << 14)
        .zip(values[..x.elem_count()].par_chunks(1 << 15))
        .for_each(|(out, x)| pair(x, out));
    Ok(Tensor::from_vec(out, dims, &Device::Cpu)?)
}

fn run(micro: Micro, x: &Tensor, weight: &Rows, d_out: usize, after: After) -> Result<Tensor> {
    let (n, d_in) = x.dims2()?;
    let bias = after.bias.map(Values::<f32>::contiguous).transpose()?;
    if let Some(bias) = &bias {
        expect_len("the bias of a linear layer", bias.len(), d_out)?;
    }
    let bias = bias.as_deref();
    let mut out = vec![0f32; n * d_out];
    let target = Target::new(&mut out);
    let x = Values::<f32>::contiguous(x)?;
    let panels = d_out.div_ceil(micro.columns);
    let together = TOGETHER / micro.rows * micro.rows;
    let share = panels.div_ceil(2 * rayon::current_num_threads());
    let group = share.clamp(1, GROUP / micro.columns) * micro.columns;
    let task = |scratch: &mut Scratch, tiles: &Tiles, rows: Range<usize>, index| {
        let columns = index * group..d_out.min((index + 1) * group);
        let Scratch { wide, panels, sums } = scratch;
        panels.lay_out(weight, columns.clone(), d_in, micro.columns, wide)?;
        multiply(micro, tiles, panels.0.numbers(), sums);
        let mut line = [0f32; GROUP];
        let line = &mut line[..columns.len()];
        let bias = bias.map(|bias| &bias[columns.clone()]);
        for row in rows {
            let lines = &sums[row % together * micro.columns..];
            gather(lines, tiles.count * micro.rows * micro.columns, micro.columns, bias, line);
            if after.gelu {
                gelu_in_place(line);
            }
            // SAFETY: within a row of `out`, in columns that belong to this task alone.
            unsafe { target.write(row * d_out + columns.start, line) };
        }
        Ok::<_, crate::error::Error>(())
    };
    for first in (0..n).step_by(together) {
        let rows = first..n.min(first + together);
        let tiles = Tiles::new(&x[rows.start * d_in..rows.end * d_in], d_in, micro.rows);
        (0..d_out.div_ceil(group)).into_par_iter().try_for_each(|index| {
            SCRATCH.with_borrow_mut(|scratch| task(scratch, &tiles, rows.clone(), index))
        })?;
    }
    Ok(Tensor::from_vec(out, (n, d_out), &Device::Cpu)?)
}

/// `sums[panel][tile]` = tile · panel.
fn multiply(micro: Micro, tiles: &Tiles, panels: &[f32], sums: &mut Vec<f32>) {
    let tile = micro.rows * micro.columns;
    let panels = panels.chunks_exact(tiles.d_in * micro.columns);
    sums.resize(panels.len() * tiles.count * tile, 0.0);
    let step = (BLOCK / micro.rows).max(1);
    for start in (0..tiles.d_in).step_by(DEPTH) {
        let part = start..tiles.d_in.min(start + DEPTH);
        for first in (0..tiles.count).step_by(step) {
            let block = first..tiles.count.min(first + step);
            for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(tiles.count * tile)) {
                let panel = &panel[part.start * micro.columns..part.end * micro.columns];
                let sums = sums[block.start * tile..block.end * tile].chunks_exact_mut(tile);
                for (rows, sums) in tiles.part(&part, &block).zip(sums) {
                    micro.run(rows, panel, sums, /* more */ start > 0);
                }
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread keeps between groups of panels, and between products: fresh memory costs more than what is done in it.
#[derive(Default)]
struct Scratch {
    wide: Vec<f32>,
    panels: Panels,
    /// `[panels, tiles, R, C]`
    sums: Vec<f32>,
}

/// `[panels, in, C]`.
#[derive(Default)]
struct Panels(Aligned);

impl Panels {
    /// Rows `columns` of the weight, as columns of panels `width` wide; what is left of the last panel is zero.
    fn lay_out(
        &mut self,
        weight: &Rows,
        columns: Range<usize>,
        d_in: usize,
        width: usize,
        wide: &mut Vec<f32>,
    ) -> Result<()> {
        let count = columns.len().div_ceil(width);
        self.0.resize(count * width * d_in);
        for (panel, start) in
            self.0.numbers_mut().chunks_exact_mut(width * d_in).zip(columns.clone().step_by(width))
        {
            let rows = start..columns.end.min(start + width);
            if rows.len() < width {
                panel.fill(0.0);
            }
            // A part of a row at a time: it is read in one go, and the lines that it goes to stay in the first cache.
            let rows = weight.widened(&rows, d_in, wide)?;
            let count = rows.len() / d_in;
            for (part, panel) in panel.chunks_mut(DEPTH * width).enumerate() {
                turn(|i| &rows[i * d_in + part * DEPTH..], count, panel, width);
            }
        }
        Ok(())
    }
}

/// `x` cut into parts of [`DEPTH`] columns and tiles of R rows: `[parts, tiles, depth, R]`, zeros beyond the last row.
struct Tiles {
    values: Vec<f32>,
    count: usize,
    rows: usize,
    d_in: usize,
}

impl Tiles {
    fn new(x: &[f32], d_in: usize, rows: usize) -> Self {
        let count = x.len().div_ceil(d_in * rows);
        let mut values = vec![0f32; count * rows * d_in];
        let mut jobs = Vec::new();
        for (part, values) in values.chunks_mut(count * rows * DEPTH).enumerate() {
            let depth = values.len() / (count * rows);
            jobs.extend(values.chunks_exact_mut(depth * rows).enumerate().map(|(tile, to)| (part, tile, to)));
        }
        jobs.into_par_iter().with_min_len(8).for_each(|(part, tile, to)| {
            let from = &x[tile * rows * d_in..];
            turn(|i| &from[i * d_in + part * DEPTH..], rows.min(from.len() / d_in), to, rows);
        });
        Self { values, count, rows, d_in }
    }

    /// The tiles of a block, each `[depth, R]`.
    fn part(&self, part: &Range<usize>, block: &Range<usize>) -> std::slice::ChunksExact<'_, f32> {
        let (start, size) = (part.start * self.count * self.rows, part.len() * self.rows);
        self.values[start + block.start * size..start + block.end * size].chunks_exact(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{activation::gelu_tanh, kernel::widen};

    fn draw(rows: usize, columns: usize, seed: usize) -> Tensor {
        let number = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
        let values: Vec<f32> = (0..rows * columns).map(|i| number(i * 31 + seed)).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn odd_shapes_agree_with_sums_in_f64_on_every_path() {
        for (n, d_in, d_out) in [
            (1, 1, 1),
            (12, 384, 32),
            (13, 385, 33),
            (40, 300, 7),
            (BLOCK + 1, 5, 300),
            (3, 800, 130),
            (2 * TOGETHER + 1, 3, 2),
        ] {
            let (x, w) = (draw(n, d_in, 1), draw(d_out, d_in, 2));
            let bias = draw(1, d_out, 3).flatten_all().unwrap();
            let after = After { bias: Some(&bias), gelu: false };
            let wide = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap();
            let real = wide(&x).matmul(&wide(&w).t().unwrap()).unwrap().broadcast_add(&wide(&bias)).unwrap();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there()) {
                let y = run(Micro::new(isa), &x, &Rows::of(&w).unwrap(), d_out, after).unwrap();
                let apart = (wide(&y) - &real).unwrap().abs().unwrap().max_all().unwrap();
                let apart = apart.to_scalar::<f64>().unwrap();
                assert!(apart < 1e-6 + 1e-7 * d_in as f64, "{isa:?} {n} × {d_in} × {d_out}: {apart}");
            }
        }
    }

    #[test]
    fn every_form_of_a_weight_gives_the_same_bits() {
        let (x, w) = (draw(20, 100, 1), draw(50, 100, 2));
        let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for dtype in [candle_core::DType::F16, candle_core::DType::BF16, candle_core::DType::F32] {
            let narrow = w.to_dtype(dtype).unwrap();
            let wide = narrow.to_dtype(candle_core::DType::F32).unwrap();
            let stored = wide.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let decode = |start: usize, out: &mut [f32]| {
                out.copy_from_slice(&stored[start * 100..start * 100 + out.len()]);
                Ok(())
            };
            let y = values(product(&x, &Rows::of(&narrow).unwrap(), 50, After::default()).unwrap());
            assert!(y == values(product(&x, &Rows::of(&wide).unwrap(), 50, After::default()).unwrap()));
            assert!(y == values(product(&x, &Rows::Stored(&decode), 50, After::default()).unwrap()));
        }
    }

    #[test]
    fn pairs_give_what_bf16_numbers_give() {
        for (n, d_in, d_out) in [(6, 2, 1), (13, 1030, 33), (BLOCK + 1, 6, 300)] {
            let narrow = |t: Tensor| t.to_dtype(DType::BF16).unwrap();
            let (x, w) = (narrow(draw(n, d_in, 1)), narrow(draw(d_out, d_in, 2)));
            let bias = draw(1, d_out, 3).flatten_all().unwrap();
            let after = After { bias: Some(&bias), gelu: false };
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let real = wide(&x).matmul(&wide(&w).t().unwrap()).unwrap().broadcast_add(&wide(&bias)).unwrap();
            let apart = |y: Tensor| {
                let apart = (wide(&y) - &real).unwrap().abs().unwrap().max_all().unwrap();
                apart.to_scalar::<f64>().unwrap()
            };
            let plain = Rows::of(&w).unwrap();
            let single = run(Micro::new(Isa::Scalar), &widen(&x).unwrap(), &plain, d_out, after).unwrap();
            // No further from the truth than single numbers are.
            let bound = 1.5 * apart(single) + 1e-6;
            let there = Isa::ALL.into_iter().filter_map(Micro::pairs);
            for micro in there.chain([Micro::plain_pairs()]) {
                let apart = apart(product_of_pairs(micro, &x, &w, d_out, after).unwrap());
                assert!(apart < bound, "{n} × {d_in} × {d_out}: {apart}, not {bound}");
            }
        }
        assert!(pairs(&narrow_ones(3, 5)).is_err());
    }

    fn narrow_ones(rows: usize, columns: usize) -> Tensor {
        Tensor::ones((rows, columns), DType::BF16, &Device::Cpu).unwrap()
    }

    #[test]
    fn gelu_comes_last() {
        let (x, w, bias) = (draw(20, 100, 1), draw(50, 100, 2), draw(1, 50, 3).flatten_all().unwrap());
        let run = |gelu| product(&x, &Rows::of(&w).unwrap(), 50, After { bias: Some(&bias), gelu }).unwrap();
        let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values(run(true)) == values(gelu_tanh(&run(false)).unwrap()));
    }

    #[test]
    fn threads_change_no_bit() {
        let (x, w) = (draw(50, 700, 1), draw(150, 700, 2));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let y = pool.install(|| product(&x, &Rows::of(&w).unwrap(), 150, After::default()));
            y.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert!(run(1) == run(2) && run(2) == run(5));
    }

    #[test]
    fn a_weight_that_cannot_be_read_is_an_error() {
        let x = Tensor::zeros((12, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let decode = |_: usize, _: &mut [f32]| Err(crate::error::Error::invalid("a weight", "it is torn"));
        let error = product(&x, &Rows::Stored(&decode), 64, After::default()).unwrap_err();
        assert!(error.to_string().contains("torn"), "{error}");
    }
}
