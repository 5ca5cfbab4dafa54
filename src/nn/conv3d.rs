//! Convolution of clips in the layout of the video autoencoders: `[F, H, W, C]`, channels last.
//!
//! On a CPU nothing is unfolded: the kernels read their rows where they lie in the clip, through one pointer for
//! each output cell and tap, and padding is a pointer to a row of zeros or to another frame.

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{
    kernel::{Values, widen},
    tile::{COLS, Kernels, Line, ROWS},
};
use crate::{device::isa::Isa, error::Result};

/// Panels whose sums are kept at a time.
const GROUP: usize = 4;
/// Input channels that go through a kernel at a time: a panel of them fits the first cache.
const DEPTH: usize = 128;
/// Output cells that share a read of the weights.
const MAX_CELLS: usize = 32 * ROWS;
/// Bytes that a GPU may spend on unfolding frames.
pub(crate) const UNFOLDED_BYTES: usize = 512 << 20;

/// What a convolution does to the axes of a clip. Rows and columns are padded with `kernel / 2` zeros on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Taps over frames.
    pub kernel_t: usize,
    /// Taps over rows, and over columns.
    pub kernel: usize,
    /// Step over frames.
    pub stride_t: usize,
    /// Step over rows, and over columns.
    pub stride: usize,
    /// Whether frames are padded with copies of the first frame only, so that none looks ahead; otherwise half of
    /// the padding is copies of the last frame.
    pub causal: bool,
}

impl ConvShape {
    /// A cube of taps and one step for all axes.
    #[must_use]
    pub fn cube(kernel: usize, stride: usize, causal: bool) -> Self {
        Self { kernel_t: kernel, kernel, stride_t: stride, stride, causal }
    }

    /// Frames, rows and columns of the result.
    #[must_use]
    pub fn output(&self, [f, h, w]: [usize; 3]) -> [usize; 3] {
        let half = (self.kernel_t - 1) / 2;
        let f = if self.causal { f } else { (f + 2 * half + 1).saturating_sub(self.kernel_t) };
        let side =
            |n: usize| (n + 2 * (self.kernel / 2) + self.stride).saturating_sub(self.kernel) / self.stride;
        [f.div_ceil(self.stride_t), side(h), side(w)]
    }

    /// The frame that output frame `frame` sees through tap `tap`.
    fn source_frame(&self, frame: usize, tap: usize, frames: usize) -> usize {
        let padding = if self.causal { self.kernel_t - 1 } else { (self.kernel_t - 1) / 2 };
        (frame * self.stride_t + tap).saturating_sub(padding).min(frames - 1)
    }
}

/// A 3-D convolution with bias.
///
/// On a CPU it computes in f32 and keeps its weights in the dtype that they were loaded in; elsewhere all is in one
/// dtype, with sums over frames in f32.
pub struct Conv3d {
    shape: ConvShape,
    c_in: usize,
    c_out: usize,
    weight: Weight,
    bias: Tensor,
}

enum Weight {
    /// For the CPU's kernels.
    Panels { values: Panels, zeros: Vec<f32> },
    /// `[out, in, rows, columns]` for each tap over frames.
    Taps(Vec<Tensor>),
}

impl Conv3d {
    /// Lays out `weight`, `[out, in, frames, rows, columns]` taps, and `bias`, `[out]`, for where they lie.
    pub fn new(weight: &Tensor, bias: &Tensor, shape: ConvShape) -> Result<Self> {
        let (c_out, c_in, kernel_t, kernel, _) = weight.dims5()?;
        debug_assert_eq!((kernel_t, kernel), (shape.kernel_t, shape.kernel));
        let bias = bias.to_dtype(DType::F32)?;
        let weight = if weight.device().is_cpu() {
            Weight::Panels { values: Panels::pack(weight)?, zeros: vec![0.0; c_in] }
        } else {
            let tap = |t| Ok(weight.narrow(2, t, 1)?.squeeze(2)?.contiguous()?);
            Weight::Taps((0..kernel_t).map(tap).collect::<Result<_>>()?)
        };
        Ok(Self { shape, c_in, c_out, weight, bias })
    }

    /// `[F, H, W, in]` → `[f, h, w, out]`; f32 on a CPU, elsewhere the dtype of `x`, which is the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None)
    }

    /// As [`Conv3d::forward`], plus `skip`, which has the shape of the result.
    pub fn forward_add(&self, x: &Tensor, skip: &Tensor) -> Result<Tensor> {
        self.run(x, Some(skip))
    }

    fn run(&self, x: &Tensor, skip: Option<&Tensor>) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let [of, oh, ow] = self.shape.output([f, h, w]);
        let dims = [of, oh, ow, self.c_out];
        if c != self.c_in || skip.is_some_and(|skip| skip.dims() != dims) {
            return Err(candle_core::Error::UnexpectedShape {
                msg: format!("a convolution of {} channels to {dims:?}", self.c_in),
                expected: dims.as_slice().into(),
                got: skip.unwrap_or(x).shape().clone(),
            }
            .into());
        }
        match &self.weight {
            Weight::Taps(taps) => self.frame_by_frame(taps, x, skip),
            Weight::Panels { values, zeros } => {
                let x = widen(x)?;
                let skip = skip.map(widen).transpose()?;
                let skip = skip.as_ref().map(Values::<f32>::contiguous).transpose()?;
                let (x, bias) = (Values::contiguous(&x)?, Values::contiguous(&self.bias)?);
                let clip = Clip { values: &x, zeros, bias: &bias, dims: [f, h, w] };
                let out = self.on_cpu(Kernels::new(Isa::chosen()), &clip, values, skip.as_deref(), dims);
                Ok(Tensor::from_vec(out, &dims, &Device::Cpu)?)
            }
        }
    }

    /// Shares the output out in blocks of cells. Each number is summed in one order, whatever the blocks are.
    fn on_cpu(
        &self,
        kernels: Kernels,
        clip: &Clip,
        panels: &Panels,
        skip: Option<&[f32]>,
        dims: [usize; 4],
    ) -> Vec<f32> {
        let [of, oh, ow, c_out] = dims;
        let cells = of * oh * ow;
        let share = cells.div_ceil(4 * rayon::current_num_threads()).next_multiple_of(ROWS);
        let block = share.clamp(ROWS, MAX_CELLS) * c_out;
        let mut out = vec![0f32; cells * c_out];
        out.par_chunks_mut(block).enumerate().for_each(|(index, out)| {
            let start = index * block;
            if let Some(skip) = skip {
                out.copy_from_slice(&skip[start..start + out.len()]);
            }
            self.block(kernels, clip, panels, [oh, ow], start / c_out, out);
        });
        out
    }

    /// Adds the convolution and the bias to `out`, the cells from number `first` on.
    fn block(
        &self,
        kernels: Kernels,
        clip: &Clip,
        panels: &Panels,
        [oh, ow]: [usize; 2],
        first: usize,
        out: &mut [f32],
    ) {
        let cells = out.len() / self.c_out;
        let tiles = cells.div_ceil(ROWS);
        // The last tile is filled up with the last cell, whose copies are not written out.
        let places: Vec<[usize; 3]> = (0..tiles * ROWS)
            .map(|i| first + i.min(cells - 1))
            .map(|cell| [cell / (oh * ow), cell / ow % oh, cell % ow])
            .collect();
        let mut rows = vec![clip.zeros; places.len()];
        let mut sums = vec![[Line::ZERO; ROWS]; tiles * GROUP];
        let mut widened = vec![Line::ZERO; panels.scratch()];
        for group in (0..panels.count).step_by(GROUP) {
            sums.fill([Line::ZERO; ROWS]);
            let group = group..panels.count.min(group + GROUP);
            for tap in 0..panels.taps {
                clip.gather(&self.shape, &places, tap, &mut rows);
                for start in (0..self.c_in).step_by(DEPTH) {
                    let depth = DEPTH.min(self.c_in - start);
                    for (panel, sums) in group.clone().zip(sums.chunks_exact_mut(tiles)) {
                        let weights = panels.part(panel, tap * self.c_in + start, depth, &mut widened);
                        for (rows, sums) in rows.as_chunks::<ROWS>().0.iter().zip(sums) {
                            let mut parts = *rows;
                            for row in &mut parts {
                                *row = &row[start..];
                            }
                            kernels.run(&parts, weights, sums, self.c_out - panel * COLS);
                        }
                    }
                }
            }
            for (panel, sums) in group.zip(sums.chunks_exact(tiles)) {
                let columns = panel * COLS..self.c_out.min((panel + 1) * COLS);
                let bias = &clip.bias[columns.clone()];
                for (out, line) in out.chunks_exact_mut(self.c_out).zip(sums.as_flattened()) {
                    for ((out, sum), bias) in out[columns.clone()].iter_mut().zip(&line.0).zip(bias) {
                        *out += sum + bias;
                    }
                }
            }
        }
    }

    /// Sums 2-D convolutions over the taps, a few frames at a time.
    fn frame_by_frame(&self, taps: &[Tensor], x: &Tensor, skip: Option<&Tensor>) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let [of, oh, ow] = self.shape.output([f, h, w]);
        let (kernel, dtype) = (self.shape.kernel, x.dtype());
        let x = x.permute((0, 3, 1, 2))?.contiguous()?; // [F, C, H, W]
        let bias = self.bias.reshape((1, self.c_out, 1, 1))?;
        let unfolded = oh * ow * c * kernel * kernel * dtype.size_in_bytes();
        let step = (UNFOLDED_BYTES / unfolded.max(1)).clamp(1, of);
        let mut parts = Vec::with_capacity(of.div_ceil(step));
        for start in (0..of).step_by(step) {
            let count = step.min(of - start);
            let mut sum = bias.clone();
            for (tap, weight) in taps.iter().enumerate() {
                let frames: Vec<u32> = (start..start + count)
                    .map(|frame| self.shape.source_frame(frame, tap, f) as u32)
                    .collect();
                let frames = x.index_select(&Tensor::new(frames, x.device())?, 0)?;
                let y = frames.conv2d(weight, kernel / 2, self.shape.stride, 1, 1)?;
                sum = y.to_dtype(DType::F32)?.broadcast_add(&sum)?;
            }
            let mut y = sum.to_dtype(dtype)?.permute((0, 2, 3, 1))?; // [f, h, w, C]
            if let Some(skip) = skip {
                y = (y + skip.narrow(0, start, count)?)?;
            }
            parts.push(y.contiguous()?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// What the blocks of one convolution read.
struct Clip<'a> {
    /// `[F, H, W, C]`.
    values: &'a [f32],
    /// The row that stands for cells outside of a frame.
    zeros: &'a [f32],
    bias: &'a [f32],
    /// Frames, rows and columns.
    dims: [usize; 3],
}

impl<'a> Clip<'a> {
    /// Points `rows` at the channels that output cells see through tap number `tap`.
    fn gather(&self, shape: &ConvShape, places: &[[usize; 3]], tap: usize, rows: &mut [&'a [f32]]) {
        let [frames, height, width] = self.dims;
        let (kernel, padding) = (shape.kernel, shape.kernel / 2);
        let channels = self.zeros.len();
        let (t, y, x) = (tap / (kernel * kernel), tap / kernel % kernel, tap % kernel);
        for (row, place) in rows.iter_mut().zip(places) {
            let frame = shape.source_frame(place[0], t, frames);
            let y = (place[1] * shape.stride + y).wrapping_sub(padding);
            let x = (place[2] * shape.stride + x).wrapping_sub(padding);
            *row = if y < height && x < width {
                &self.values[((frame * height + y) * width + x) * channels..][..channels]
            } else {
                self.zeros
            };
        }
    }
}

/// Weights as the kernels read them: `[panels, taps × in, COLS]`, zeros beyond the last output channel.
struct Panels {
    count: usize,
    taps: usize,
    /// Lines of `COLS` weights in a panel.
    length: usize,
    values: Packed,
}

enum Packed {
    F32(Vec<Line>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Panels {
    /// `weight` is `[out, in, frames, rows, columns]`.
    fn pack(weight: &Tensor) -> Result<Self> {
        let (c_out, c_in, kt, kh, kw) = weight.dims5()?;
        let (count, taps) = (c_out.div_ceil(COLS), kt * kh * kw);
        let length = taps * c_in;
        let size = count * length * COLS;
        let (weight, dims, stored) = (weight.contiguous()?, [c_in, taps], weight.elem_count());
        let values = match weight.dtype() {
            DType::F16 => Packed::F16(pack_half(&Values::contiguous(&weight)?[..stored], dims, size)),
            DType::BF16 => Packed::Bf16(pack_half(&Values::contiguous(&weight)?[..stored], dims, size)),
            _ => {
                let from = Values::<f32>::contiguous(&weight)?;
                let from = &from[..stored];
                let mut lines = vec![Line::ZERO; count * length];
                lines.par_chunks_mut(length).enumerate().for_each(|(index, lines)| {
                    for (k, line) in lines.iter_mut().enumerate() {
                        pack_row(from, dims, index * COLS, k, &mut line.0);
                    }
                });
                Packed::F32(lines)
            }
        };
        Ok(Self { count, taps, length, values })
    }

    /// Lines of memory that [`Panels::part`] needs.
    fn scratch(&self) -> usize {
        if matches!(self.values, Packed::F32(_)) { 0 } else { DEPTH }
    }

    /// `depth ≤ DEPTH` rows of a panel from row `start` on, in f32.
    fn part<'a>(&'a self, panel: usize, start: usize, depth: usize, scratch: &'a mut [Line]) -> &'a [Line] {
        let from = panel * self.length + start;
        let half = from * COLS..(from + depth) * COLS;
        match &self.values {
            Packed::F32(lines) => &lines[from..from + depth],
            Packed::F16(values) => fill(&values[half], scratch, |from, to| from.convert_to_f32_slice(to)),
            Packed::Bf16(values) => fill(&values[half], scratch, |from, to| from.convert_to_f32_slice(to)),
        }
    }
}

fn fill<'a, T>(from: &[T], to: &'a mut [Line], convert: impl Fn(&[T], &mut [f32])) -> &'a [Line] {
    for (from, to) in from.chunks_exact(COLS).zip(to.iter_mut()) {
        convert(from, &mut to.0);
    }
    &to[..from.len() / COLS]
}

fn pack_half<T: Copy + Default + Send + Sync>(from: &[T], dims: [usize; 2], size: usize) -> Vec<T> {
    let mut values = vec![T::default(); size];
    let panel = dims[0] * dims[1] * COLS;
    values.par_chunks_mut(panel).enumerate().for_each(|(index, values)| {
        for (k, row) in values.chunks_exact_mut(COLS).enumerate() {
            pack_row(from, dims, index * COLS, k, row);
        }
    });
    values
}

/// Gathers row `k`, a tap and an input channel, of the panel that begins with output channel `first`.
fn pack_row<T: Copy + Default>(from: &[T], [c_in, taps]: [usize; 2], first: usize, k: usize, row: &mut [T]) {
    let (tap, channel) = (k / c_in, k % c_in);
    for (column, value) in row.iter_mut().enumerate() {
        let at = ((first + column) * c_in + channel) * taps + tap;
        *value = from.get(at).copied().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Loops over everything, in f64.
    fn naive(x: &Tensor, weight: &Tensor, bias: &Tensor, shape: &ConvShape) -> Result<Tensor> {
        let (f, h, w, c_in) = x.dims4()?;
        let (c_out, _, kt, k, _) = weight.dims5()?;
        let x = x.flatten_all()?.to_vec1::<f32>()?;
        let weight = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let bias = bias.to_vec1::<f32>()?;
        let [of, oh, ow] = shape.output([f, h, w]);
        let before = if shape.causal { kt - 1 } else { (kt - 1) / 2 };
        let mut out = Vec::new();
        for cell in 0..of * oh * ow {
            let (t, y, z) = (cell / (oh * ow), cell / ow % oh, cell % ow);
            for o in 0..c_out {
                let mut sum = f64::from(bias[o]);
                for tap in 0..kt * k * k {
                    let t = (t * shape.stride_t + tap / (k * k)) as isize - before as isize;
                    let t = t.clamp(0, f as isize - 1) as usize;
                    let y = (y * shape.stride + tap / k % k) as isize - (k / 2) as isize;
                    let z = (z * shape.stride + tap % k) as isize - (k / 2) as isize;
                    if y < 0 || z < 0 || y >= h as isize || z >= w as isize {
                        continue;
                    }
                    let at = ((t * h + y as usize) * w + z as usize) * c_in;
                    for i in 0..c_in {
                        let weight = weight[(o * c_in + i) * kt * k * k + tap];
                        sum += f64::from(x[at + i]) * f64::from(weight);
                    }
                }
                out.push(sum as f32);
            }
        }
        Ok(Tensor::from_vec(out, (of, oh, ow, c_out), &Device::Cpu)?)
    }

    fn gap(a: &Tensor, b: &Tensor) -> f32 {
        let gap = (a - b).expect("one shape").abs().and_then(|t| t.flatten_all()?.max(0));
        gap.and_then(|t| t.to_scalar()).expect("a number")
    }

    struct Case {
        conv: Conv3d,
        weight: Tensor,
        bias: Tensor,
        x: Tensor,
    }

    fn case(shape: ConvShape, dims: [usize; 4], c_out: usize, dtype: DType) -> Result<Case> {
        let device = Device::Cpu;
        let taps = (c_out, dims[3], shape.kernel_t, shape.kernel, shape.kernel);
        let weight = Tensor::randn(0f32, 0.1, taps, &device)?.to_dtype(dtype)?;
        let bias = Tensor::randn(0f32, 1.0, c_out, &device)?;
        let x = Tensor::randn(0f32, 1.0, &dims, &device)?;
        Ok(Case { conv: Conv3d::new(&weight, &bias, shape)?, weight, bias, x })
    }

    #[test]
    fn is_the_naive_convolution() -> Result<()> {
        let cube = ConvShape::cube;
        let flat = ConvShape { kernel_t: 1, kernel: 3, stride_t: 1, stride: 2, causal: false };
        let long = ConvShape { kernel_t: 5, kernel: 1, stride_t: 3, stride: 1, causal: false };
        for (shape, dims, c_out) in [
            (cube(3, 1, true), [3, 5, 7, 4], 6),
            (cube(3, 1, false), [4, 3, 3, 33], 34),
            (cube(3, 2, true), [5, 7, 6, 5], 40),
            (cube(3, 2, false), [6, 1, 9, 3], 1),
            (cube(1, 1, true), [2, 4, 3, 150], 130),
            (cube(5, 3, false), [1, 8, 8, 2], 3),
            (flat, [3, 6, 5, 7], 9),
            (long, [7, 3, 2, 140], 8),
        ] {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let Case { conv, weight, bias, x } = case(shape, dims, c_out, dtype)?;
                let expected = naive(&x, &weight, &bias, &shape)?;
                let what = format!("{shape:?} {dims:?} to {c_out} channels in {dtype:?}");
                assert!(gap(&conv.forward(&x)?, &expected) < 2e-5, "{what}");
                let skip = expected.affine(-1.0, 1.0)?;
                let one = conv.forward_add(&x, &skip)?;
                assert!(gap(&one, &one.ones_like()?) < 2e-5, "{what}, with a skip");
            }
        }
        Ok(())
    }

    #[test]
    fn frame_by_frame_is_the_same() -> Result<()> {
        for shape in [ConvShape::cube(3, 1, false), ConvShape::cube(3, 2, true), ConvShape::cube(1, 1, true)]
        {
            let Case { conv, weight, x, .. } = case(shape, [5, 6, 7, 5], 4, DType::F32)?;
            let taps = (0..shape.kernel_t).map(|t| Ok(weight.narrow(2, t, 1)?.squeeze(2)?.contiguous()?));
            let y = conv.forward(&x)?;
            let skip = y.affine(0.5, 1.0)?;
            let taps = taps.collect::<Result<Vec<_>>>()?;
            assert!(gap(&conv.frame_by_frame(&taps, &x, None)?, &y) < 1e-5, "{shape:?}");
            let added = conv.frame_by_frame(&taps, &x, Some(&skip))?;
            assert!(gap(&added, &(y + skip)?) < 1e-5, "{shape:?} with a skip");
        }
        Ok(())
    }

    #[test]
    fn threads_change_nothing() -> Result<()> {
        let Case { conv, x, .. } = case(ConvShape::cube(3, 1, false), [5, 9, 11, 20], 70, DType::F32)?;
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let y = pool.install(|| conv.forward(&x)).expect("a convolution");
            y.flatten_all().and_then(|y| y.to_vec1::<f32>()).expect("numbers")
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5));
        Ok(())
    }

    #[test]
    fn another_shape_is_an_error() -> Result<()> {
        let Case { conv, x, .. } = case(ConvShape::cube(3, 1, false), [2, 3, 3, 4], 5, DType::F32)?;
        assert!(conv.forward(&x.narrow(3, 0, 3)?).is_err());
        assert!(conv.forward_add(&x, &x).is_err());
        Ok(())
    }
}
