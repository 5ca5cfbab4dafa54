//! Convolution of clips in the layout of the video autoencoders: `[F, H, W, C]`, channels last.
//!
//! On a CPU the video is never unfolded: a block of output cells at a time, the channels that they see through one tap
//! are laid out for the kernels, through a pointer for each cell; padding is a pointer to a row of zeros or to another
//! frame.

use std::{cell::RefCell, ops::Range};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{
    kernel::{Target, Values, narrow, widen, widen_row},
    micro::{Aligned, Micro, both, gather},
    product::pairs,
    turn::turn,
};
use crate::{device::isa::Isa, error::Result};

/// Input channels that go through a kernel at a time: a panel of them leaves room in the first cache.
const DEPTH: usize = 256;
/// Output cells that share a read of the weights; what they see through a tap fills half of a core's own cache.
const CELLS: usize = 192;
/// Output channels that share the laying out of cells, at least.
const CHANNELS: usize = 128;
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
        (frame * self.stride_t + tap).saturating_sub(self.padding_t()).min(frames - 1)
    }

    /// Copies of the first frame before it.
    fn padding_t(&self) -> usize {
        if self.causal { self.kernel_t - 1 } else { (self.kernel_t - 1) / 2 }
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
        let pairs = Micro::pairs(Isa::chosen());
        let even = weight.dim(1)? % 2 == 0 && weight.dtype() == DType::BF16;
        match pairs.filter(|_| even) {
            Some(micro) => Self::with(micro, /* pairs */ true, weight, bias, shape),
            None => Self::with(Micro::new(Isa::chosen()), /* pairs */ false, weight, bias, shape),
        }
    }

    fn with(micro: Micro, pairs: bool, weight: &Tensor, bias: &Tensor, shape: ConvShape) -> Result<Self> {
        let (c_out, c_in, kernel_t, kernel, _) = weight.dims5()?;
        debug_assert_eq!((kernel_t, kernel), (shape.kernel_t, shape.kernel));
        let bias = bias.to_dtype(DType::F32)?;
        let weight = if weight.device().is_cpu() {
            let values = Panels::pack(micro, pairs, weight)?;
            let zeros = vec![0.0; values.depth];
            Weight::Panels { values, zeros }
        } else {
            let tap = |t| Ok(weight.narrow(2, t, 1)?.squeeze(2)?.contiguous()?);
            Weight::Taps((0..kernel_t).map(tap).collect::<Result<_>>()?)
        };
        Ok(Self { shape, c_in, c_out, weight, bias })
    }

    /// `[F, H, W, in]` → `[f, h, w, out]`; f32 on a CPU, elsewhere the dtype of `x`, which is the weight's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (f, h, w, _) = x.dims4()?;
        self.forward_frames(x, 0..self.shape.output([f, h, w])[0], None)
    }

    /// Frames that the result of a frame reaches back and ahead for.
    #[must_use]
    pub fn reach(&self) -> (usize, usize) {
        let before = self.shape.padding_t();
        (before, self.shape.kernel_t - 1 - before)
    }

    /// `frames` of what [`Conv3d::forward`] gives, plus `skip`, which has the shape of the result.
    pub fn forward_frames(&self, x: &Tensor, frames: Range<usize>, skip: Option<&Tensor>) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let [of, oh, ow] = self.shape.output([f, h, w]);
        let dims = [frames.len(), oh, ow, self.c_out];
        if c != self.c_in || frames.end > of || skip.is_some_and(|skip| skip.dims() != dims) {
            return Err(candle_core::Error::UnexpectedShape {
                msg: format!("a convolution of {} channels to {dims:?}", self.c_in),
                expected: dims.as_slice().into(),
                got: skip.unwrap_or(x).shape().clone(),
            }
            .into());
        }
        match &self.weight {
            Weight::Taps(taps) => self.frame_by_frame(taps, x, frames, skip),
            Weight::Panels { values, zeros } => {
                let x = match values.values {
                    Packed::Pairs(_) => pairs(&narrow(x.contiguous()?, DType::BF16)?)?,
                    _ => widen(x)?,
                };
                let skip = skip.map(widen).transpose()?;
                let skip = skip.as_ref().map(Values::<f32>::contiguous).transpose()?;
                let (x, bias) = (Values::contiguous(&x)?, Values::contiguous(&self.bias)?);
                let clip = Clip { values: &x, zeros, bias: &bias, dims: [f, h, w] };
                let out = self.on_cpu(&clip, values, frames.start, skip.as_deref(), dims);
                Ok(Tensor::from_vec(out, &dims, &Device::Cpu)?)
            }
        }
    }

    /// Shares the output out in blocks of cells and groups of channels. Each number is summed in one order, whatever
    /// the blocks are.
    fn on_cpu(
        &self,
        clip: &Clip,
        panels: &Panels,
        first_frame: usize,
        skip: Option<&[f32]>,
        dims: [usize; 4],
    ) -> Vec<f32> {
        let [of, oh, ow, c_out] = dims;
        let cells = of * oh * ow;
        let Micro { rows, columns, .. } = panels.micro;
        let mut out = vec![0f32; cells * c_out];
        if out.is_empty() {
            return out;
        }
        let block = cells.div_ceil(cells.div_ceil(CELLS)).next_multiple_of(rows);
        let blocks = cells.div_ceil(block);
        let most = panels.count.div_ceil(CHANNELS.div_ceil(columns));
        let group = panels.count.div_ceil((4 * rayon::current_num_threads()).div_ceil(blocks).min(most));
        let groups = panels.count.div_ceil(group);
        let target = Target::new(&mut out);
        (0..blocks * groups).into_par_iter().for_each(|task| {
            let (first, start) = (task / groups * block, task % groups * group);
            let group = start..panels.count.min(start + group);
            SCRATCH.with_borrow_mut(|scratch| {
                let count = block.min(cells - first);
                let place = first_frame * oh * ow + first;
                self.block(clip, panels, &group, [oh, ow], place..place + count, scratch);
                let channels = group.start * columns..c_out.min(group.end * columns);
                scratch.line.resize(channels.len(), 0.0);
                let step = count.next_multiple_of(rows) * columns;
                for cell in 0..count {
                    let Scratch { sums, line, .. } = &mut *scratch;
                    gather(&sums[cell * columns..], step, columns, Some(&clip.bias[channels.clone()]), line);
                    let start = (first + cell) * c_out + channels.start;
                    if let Some(skip) = skip {
                        line.iter_mut().zip(&skip[start..]).for_each(|(sum, skip)| *sum += skip);
                    }
                    // SAFETY: within a row of `out`, in channels that belong to this task alone.
                    unsafe { target.write(start, line) };
                }
            });
        });
        out
    }

    /// The convolution of some cells, to the channels of `group`: `[panels, tiles, R, C]` in `scratch.sums`.
    fn block(
        &self,
        clip: &Clip,
        panels: &Panels,
        group: &Range<usize>,
        [oh, ow]: [usize; 2],
        cells: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Micro { rows, columns, .. } = panels.micro;
        let tiles = cells.len().div_ceil(rows);
        // The last tile is filled up with the last cell, whose copies are not written out.
        let places: Vec<[usize; 3]> = (0..tiles * rows)
            .map(|i| (cells.start + i).min(cells.end - 1))
            .map(|cell| [cell / (oh * ow), cell / ow % oh, cell % ow])
            .collect();
        let mut seen = vec![clip.zeros; places.len()];
        let Scratch { laid_out, widened, sums, .. } = scratch;
        sums.resize(group.len() * tiles * rows * columns, 0.0);
        for tap in 0..panels.taps {
            clip.gather(&self.shape, &places, tap, &mut seen);
            for start in (0..panels.depth).step_by(DEPTH) {
                let depth = DEPTH.min(panels.depth - start);
                laid_out.resize(tiles * rows * depth, 0.0);
                for (seen, to) in seen.chunks_exact(rows).zip(laid_out.chunks_exact_mut(rows * depth)) {
                    turn(|i| &seen[i][start..], rows, to, rows);
                }
                for (panel, sums) in group.clone().zip(sums.chunks_exact_mut(tiles * rows * columns)) {
                    let weights = panels.part(panel, tap * panels.depth + start, depth, widened);
                    let each = sums.chunks_exact_mut(rows * columns);
                    for (rows, sums) in laid_out.chunks_exact(rows * depth).zip(each) {
                        panels.micro.run(rows, weights, sums, /* more */ tap + start > 0);
                    }
                }
            }
        }
    }

    /// Sums 2-D convolutions over the taps, a few frames at a time.
    fn frame_by_frame(
        &self,
        taps: &[Tensor],
        x: &Tensor,
        frames: Range<usize>,
        skip: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (f, h, w, c) = x.dims4()?;
        let [_, oh, ow] = self.shape.output([f, h, w]);
        let (kernel, dtype) = (self.shape.kernel, x.dtype());
        let x = x.permute((0, 3, 1, 2))?.contiguous()?; // [F, C, H, W]
        let bias = self.bias.reshape((1, self.c_out, 1, 1))?;
        let unfolded = oh * ow * c * kernel * kernel * dtype.size_in_bytes();
        let step = (UNFOLDED_BYTES / unfolded.max(1)).clamp(1, frames.len().max(1));
        let mut parts = Vec::with_capacity(frames.len().div_ceil(step));
        for start in frames.clone().step_by(step) {
            let count = step.min(frames.end - start);
            let mut sum = bias.clone();
            for (tap, weight) in taps.iter().enumerate() {
                let sources: Vec<u32> = (start..start + count)
                    .map(|frame| self.shape.source_frame(frame, tap, f) as u32)
                    .collect();
                let sources = x.index_select(&Tensor::new(sources, x.device())?, 0)?;
                let y = sources.conv2d(weight, kernel / 2, self.shape.stride, 1, 1)?;
                sum = y.to_dtype(DType::F32)?.broadcast_add(&sum)?;
            }
            let mut y = sum.to_dtype(dtype)?.permute((0, 2, 3, 1))?; // [f, h, w, C]
            if let Some(skip) = skip {
                y = (y + skip.narrow(0, start - frames.start, count)?)?;
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

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread keeps between blocks: fresh memory costs more than what is done in it.
#[derive(Default)]
struct Scratch {
    /// `[tiles, depth, R]`
    laid_out: Vec<f32>,
    /// `[depth, C]`
    widened: Aligned,
    /// `[panels, tiles, R, C]`
    sums: Vec<f32>,
    line: Vec<f32>,
}

/// Weights as the kernels read them: `[panels, taps × in, C]`, zeros beyond the last output channel.
struct Panels {
    micro: Micro,
    count: usize,
    taps: usize,
    /// Input channels, or pairs of them.
    depth: usize,
    /// Lines of C weights in a panel.
    length: usize,
    values: Packed,
}

enum Packed {
    F32(Aligned),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    /// bf16 weights of two neighbouring input channels in the place of one number.
    Pairs(Aligned),
}

impl Panels {
    /// `weight` is `[out, in, frames, rows, columns]`; `pairs` if the kernel takes such, which needs bf16.
    fn pack(micro: Micro, pairs: bool, weight: &Tensor) -> Result<Self> {
        let (c_out, c_in, kt, kh, kw) = weight.dims5()?;
        let (count, taps) = (c_out.div_ceil(micro.columns), kt * kh * kw);
        let depth = if pairs { c_in / 2 } else { c_in };
        let length = taps * depth;
        let size = count * length * micro.columns;
        let (weight, stored) = (weight.contiguous()?, weight.elem_count());
        let layout = [depth, taps, micro.columns];
        let values = match weight.dtype() {
            DType::BF16 if pairs => {
                let from = &Values::<bf16>::contiguous(&weight)?[..stored];
                let mut paired = Vec::with_capacity(stored / 2);
                for channels in from.chunks_exact(2 * taps) {
                    let (first, second) = channels.split_at(taps);
                    paired.extend(first.iter().zip(second).map(|(first, second)| both(*first, *second)));
                }
                let mut values = Aligned::default();
                values.resize(size);
                pack(&paired, layout, values.numbers_mut());
                Packed::Pairs(values)
            }
            DType::F16 => {
                let mut values = vec![f16::ZERO; size];
                pack(&Values::contiguous(&weight)?[..stored], layout, &mut values);
                Packed::F16(values)
            }
            DType::BF16 => {
                let mut values = vec![bf16::ZERO; size];
                pack(&Values::contiguous(&weight)?[..stored], layout, &mut values);
                Packed::Bf16(values)
            }
            _ => {
                let mut values = Aligned::default();
                values.resize(size);
                pack(&Values::<f32>::contiguous(&weight)?[..stored], layout, values.numbers_mut());
                Packed::F32(values)
            }
        };
        Ok(Self { micro, count, taps, depth, length, values })
    }

    /// `depth` lines of a panel from line `start` on, in f32 or pairs.
    fn part<'a>(&'a self, panel: usize, start: usize, depth: usize, scratch: &'a mut Aligned) -> &'a [f32] {
        let from = (panel * self.length + start) * self.micro.columns;
        let range = from..from + depth * self.micro.columns;
        scratch.resize(range.len());
        let wide = &mut scratch.numbers_mut()[..range.len()];
        match &self.values {
            Packed::F32(values) | Packed::Pairs(values) => return &values.numbers()[range],
            Packed::F16(values) => values[range].convert_to_f32_slice(wide),
            Packed::Bf16(values) => widen_row(&values[range], wide),
        }
        wide
    }
}

/// `from` `[out, in, taps]` → `[panels, taps, in, C]`.
fn pack<T: Copy + Send + Sync>(from: &[T], [c_in, taps, columns]: [usize; 3], to: &mut [T]) {
    to.par_chunks_mut(c_in * taps * columns).enumerate().for_each(|(panel, to)| {
        for (k, line) in to.chunks_exact_mut(columns).enumerate() {
            let (tap, channel) = (k / c_in, k % c_in);
            for (column, value) in line.iter_mut().enumerate() {
                let at = ((panel * columns + column) * c_in + channel) * taps + tap;
                if let Some(from) = from.get(at) {
                    *value = *from;
                }
            }
        }
    });
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
        case_with(Micro::new(Isa::chosen()), /* pairs */ false, shape, dims, c_out, dtype)
    }

    fn case_with(
        micro: Micro,
        pairs: bool,
        shape: ConvShape,
        dims: [usize; 4],
        c_out: usize,
        dtype: DType,
    ) -> Result<Case> {
        let device = Device::Cpu;
        let taps = (c_out, dims[3], shape.kernel_t, shape.kernel, shape.kernel);
        let weight = Tensor::randn(0f32, 0.1, taps, &device)?.to_dtype(dtype)?;
        let bias = Tensor::randn(0f32, 1.0, c_out, &device)?;
        let x = Tensor::randn(0f32, 1.0, &dims, &device)?;
        let x = if pairs { x.to_dtype(DType::BF16)?.to_dtype(DType::F32)? } else { x };
        let conv = Conv3d::with(micro, pairs, &weight, &bias, shape)?;
        Ok(Case { conv, weight, bias, x })
    }

    #[test]
    fn is_the_naive_convolution_on_every_path() -> Result<()> {
        let cube = ConvShape::cube;
        let flat = ConvShape { kernel_t: 1, kernel: 3, stride_t: 1, stride: 2, causal: false };
        let long = ConvShape { kernel_t: 5, kernel: 1, stride_t: 3, stride: 1, causal: false };
        for (shape, dims, c_out) in [
            (cube(3, 1, true), [3, 5, 7, 4], 6),
            (cube(3, 1, false), [4, 3, 3, 33], 34),
            (cube(3, 2, true), [5, 7, 6, 5], 40),
            (cube(3, 2, false), [6, 1, 9, 3], 1),
            (cube(1, 1, true), [2, 4, 3, 300], 130),
            (cube(3, 1, false), [2, 13, 17, 3], 260),
            (cube(5, 3, false), [1, 8, 8, 2], 3),
            (flat, [3, 6, 5, 7], 9),
            (long, [7, 3, 2, 140], 8),
        ] {
            let dtypes = [DType::F32, DType::BF16, DType::F16];
            let there = Isa::ALL.into_iter().filter(|isa| isa.is_there());
            let singles = there.flat_map(|isa| dtypes.map(|dtype| (Micro::new(isa), false, dtype)));
            let pairs = Isa::ALL.into_iter().filter_map(Micro::pairs).chain([Micro::plain_pairs()]);
            let pairs = pairs.filter(|_| dims[3] % 2 == 0).map(|micro| (micro, true, DType::BF16));
            for (micro, pairs, dtype) in singles.chain(pairs) {
                let Case { conv, weight, bias, x } = case_with(micro, pairs, shape, dims, c_out, dtype)?;
                let expected = naive(&x, &weight, &bias, &shape)?;
                let what = format!("{micro:?} {pairs} {shape:?} {dims:?} to {c_out} channels in {dtype:?}");
                assert!(gap(&conv.forward(&x)?, &expected) < 2e-5, "{what}");
                let skip = expected.affine(-1.0, 1.0)?;
                let all = 0..skip.dim(0)?;
                let one = conv.forward_frames(&x, all.clone(), Some(&skip))?;
                assert!(gap(&one, &one.ones_like()?) < 2e-5, "{what}, with a skip");
                let some = all.end / 2..all.end;
                let part = expected.narrow(0, some.start, some.len())?;
                assert!(gap(&conv.forward_frames(&x, some, None)?, &part) < 2e-5, "{what}, the end");
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
            assert!(gap(&conv.frame_by_frame(&taps, &x, 0..y.dim(0)?, None)?, &y) < 1e-5, "{shape:?}");
            let end = 1..y.dim(0)?;
            let tail = |t: &Tensor| t.narrow(0, 1, end.len());
            let added = conv.frame_by_frame(&taps, &x, end.clone(), Some(&tail(&skip)?))?;
            assert!(gap(&added, &tail(&(y + skip)?)?) < 1e-5, "{shape:?} with a skip");
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
        assert!(conv.forward_frames(&x, 0..2, Some(&x)).is_err());
        assert!(conv.forward_frames(&x, 0..3, None).is_err());
        Ok(())
    }
}
