//! `x · Wᵀ` on a CPU: weights come a panel of rows at a time, in whatever form they are kept, and are laid out for the
//! kernels as they come. So none is kept twice, and a stored matrix takes no memory of its own.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::{
    kernel::{Target, Values, expect_len},
    tile::{COLS, Kernels, Line, ROWS},
};
use crate::error::Result;

/// Inner values that go through a kernel at a time: half of the columns of a panel, so deep, fill half of the first cache.
const DEPTH: usize = 256;
/// Panels that are laid out at a time, and share a read of `x`.
const GROUP: usize = 4;
/// Tiles of `x` that share a read of the weights; a [`DEPTH`] of them stays in a core's own cache.
const TILES: usize = 8;

/// Fewer rows of `x` don't pay for the layout.
pub(crate) const LEAST: usize = ROWS;

/// `x` `[N, in]`, f32, contiguous → `[N, out]`, f32. `rows(start, count)` gives rows of the weight, `[count, in]`, f32.
///
/// Each number is summed in one order, whatever the number of threads.
pub(crate) fn product(
    x: &Tensor,
    d_out: usize,
    bias: Option<&Tensor>,
    rows: impl Fn(usize, usize) -> Result<Tensor> + Sync,
) -> Result<Tensor> {
    let (n, d_in) = x.dims2()?;
    let bias = bias.map(Values::<f32>::contiguous).transpose()?;
    if let Some(bias) = &bias {
        expect_len("the bias of a linear layer", bias.len(), d_out)?;
    }
    let (bias, kernels) = (bias.as_deref(), Kernels::widest());
    let mut out = vec![0f32; n * d_out];
    let target = Target::new(&mut out);
    let parts = Parts::new(&Values::<f32>::contiguous(x)?[..n * d_in], d_in);
    let share = d_out.div_ceil(COLS).div_ceil(2 * rayon::current_num_threads());
    let group = share.clamp(1, GROUP) * COLS;
    (0..d_out.div_ceil(group)).into_par_iter().try_for_each_init(Scratch::default, |scratch, index| {
        let first = index * group;
        let columns = group.min(d_out - first);
        let weight = rows(first, columns)?;
        let weight = Values::<f32>::contiguous(&weight)?;
        lay_out(&weight[..columns * d_in], d_in, &mut scratch.panels);
        for block in 0..parts.tiles.div_ceil(TILES) {
            let rows = block * TILES * ROWS..n.min((block + 1) * TILES * ROWS);
            parts.multiply(kernels, block, &scratch.panels, columns, &mut scratch.sums);
            for (panel, sums) in scratch.sums.iter_mut().enumerate() {
                let start = first + panel * COLS;
                let columns = COLS.min(first + columns - start);
                for (row, sums) in rows.clone().zip(sums.as_flattened_mut()) {
                    let sums = &mut sums.0[..columns];
                    if let Some(bias) = bias {
                        sums.iter_mut().zip(&bias[start..]).for_each(|(sum, bias)| *sum += bias);
                    }
                    // SAFETY: within a row of `out`, in columns that belong to this task alone.
                    unsafe { target.write(row * d_out + start, sums) };
                }
            }
        }
        Ok::<_, crate::error::Error>(())
    })?;
    Ok(Tensor::from_vec(out, (n, d_out), &Device::Cpu)?)
}

/// What a thread keeps between groups of panels.
#[derive(Default)]
struct Scratch {
    /// `[panels, in]`
    panels: Vec<Line>,
    /// For each panel.
    sums: Vec<[[Line; ROWS]; TILES]>,
}

/// Rows of the weight, `[columns, d_in]`, as lines of panels; zeros where there are none.
fn lay_out(weight: &[f32], d_in: usize, panels: &mut Vec<Line>) {
    /// Lines that are filled at a time: as many as numbers of a row share a line of the cache.
    const STEP: usize = 16;
    let count = weight.len().div_ceil(COLS * d_in);
    if weight.len() < count * COLS * d_in {
        panels.clear();
    }
    panels.resize(count * d_in, Line::ZERO);
    for (weight, panel) in weight.chunks(COLS * d_in).zip(panels.chunks_exact_mut(d_in)) {
        for (first, lines) in panel.chunks_mut(STEP).enumerate() {
            for (column, row) in weight.chunks_exact(d_in).enumerate() {
                for (line, value) in lines.iter_mut().zip(&row[first * STEP..]) {
                    line.0[column] = *value;
                }
            }
        }
    }
}

/// `x` cut into parts of [`DEPTH`] columns, so that the rows of a tile lie next to each other.
struct Parts {
    /// `[parts, tiles · ROWS, DEPTH]`, zeros beyond the last row.
    values: Vec<f32>,
    tiles: usize,
    d_in: usize,
}

impl Parts {
    fn new(x: &[f32], d_in: usize) -> Self {
        let rows = x.len() / d_in;
        let tiles = rows.div_ceil(ROWS);
        let mut values = vec![0f32; d_in.div_ceil(DEPTH) * tiles * ROWS * DEPTH];
        values.par_chunks_mut(tiles * ROWS * DEPTH).enumerate().for_each(|(part, values)| {
            let start = part * DEPTH;
            let depth = DEPTH.min(d_in - start);
            for (to, from) in values.chunks_exact_mut(DEPTH).zip(x.chunks_exact(d_in)) {
                to[..depth].copy_from_slice(&from[start..start + depth]);
            }
        });
        Self { values, tiles, d_in }
    }

    /// `sums[panel][row]` = row · panel, for the rows of a block of tiles.
    fn multiply(
        &self,
        kernels: Kernels,
        block: usize,
        panels: &[Line],
        columns: usize,
        sums: &mut Vec<[[Line; ROWS]; TILES]>,
    ) {
        sums.clear();
        sums.resize(panels.len() / self.d_in, [[Line::ZERO; ROWS]; TILES]);
        let tiles = block * TILES..self.tiles.min((block + 1) * TILES);
        let parts = self.values.chunks_exact(self.tiles * ROWS * DEPTH);
        for (index, part) in parts.enumerate() {
            let part = &part[tiles.start * ROWS * DEPTH..tiles.end * ROWS * DEPTH];
            for (panel, sums) in sums.iter_mut().enumerate() {
                let start = panel * self.d_in + index * DEPTH;
                let lines = &panels[start..start + DEPTH.min(self.d_in - index * DEPTH)];
                for (tile, sums) in part.chunks_exact(ROWS * DEPTH).zip(sums) {
                    let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &tile[i * DEPTH..(i + 1) * DEPTH]);
                    kernels.run(&rows, lines, sums, columns - panel * COLS);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_shapes_agree_with_sums_in_f64() {
        let number = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
        let draw = |rows: usize, columns: usize, seed: usize| {
            let values: Vec<f32> = (0..rows * columns).map(|i| number(i * 31 + seed)).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        for (n, d_in, d_out) in
            [(1, 1, 1), (12, 256, 32), (13, 257, 33), (40, 300, 7), (ROWS * TILES + 1, 5, 300)]
        {
            let (x, w) = (draw(n, d_in, 1), draw(d_out, d_in, 2));
            let bias = draw(1, d_out, 3).flatten_all().unwrap();
            let y = product(&x, d_out, Some(&bias), |start, count| Ok(w.narrow(0, start, count)?)).unwrap();
            let wide = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap();
            let real = wide(&x).matmul(&wide(&w).t().unwrap()).unwrap().broadcast_add(&wide(&bias)).unwrap();
            let apart = (wide(&y) - real).unwrap().abs().unwrap().max_all().unwrap();
            let apart = apart.to_scalar::<f64>().unwrap();
            assert!(apart < 1e-6 + 1e-7 * d_in as f64, "{n} × {d_in} × {d_out}: {apart}");
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let draw = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (x, w) = (draw((50, 700)), draw((150, 700)));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let y = pool.install(|| product(&x, 150, None, |start, count| Ok(w.narrow(0, start, count)?)));
            y.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert!(run(1) == run(2) && run(2) == run(5));
    }

    #[test]
    fn a_weight_that_cannot_be_read_is_an_error() {
        let x = Tensor::zeros((12, 8), candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = product(&x, 64, None, |start, count| Ok(x.narrow(0, start, count)?)).unwrap_err();
        assert!(error.to_string().contains("narrow"), "{error}");
    }
}
