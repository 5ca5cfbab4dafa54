//! Scaled dot-product attention that never holds all scores at once.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use crate::{
    device::isa::Isa,
    error::Result,
    nn::{
        kernel::{LANES, Target, Values, exp, expect_len, narrow, wide, widen},
        micro::Micro,
        turn::turn,
    },
};

/// Scores that are held at a time, of a panel of queries: they stay in the first cache.
const SCORES: usize = 6144;
/// Queries that share a read of a block of keys and values, which stays in a core's own cache.
const QUERIES: usize = 64;
/// Bytes of keys and values that are laid out at a time.
const LAID_OUT: usize = 32 << 20;
/// Bytes of scores held at a time where the kernel below doesn't run.
const PLAIN_BYTES: usize = 256 << 20;

/// `softmax(q · kᵀ · scale + bias) · v`.
///
/// `q` is `[B, H, L, D]`, `k` and `v` are `[B, H, Lk, D]`, `bias` is `[B, 1, 1, Lk]`. The result is
/// `[B, H, L, D]` in the dtype of `q`; arithmetic is f32. Heads may be strided: `x.reshape((b, l, h, d))?.transpose(1, 2)?`
/// is read as it stands, and the result is laid out such that the way back is free.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let (b, h, _, d) = q.dims4()?;
    let keys = k.dim(2)?;
    for (t, name) in [(k, "keys"), (v, "values")] {
        if t.dims() != [b, h, keys, d] || keys == 0 {
            let text = format!("{name} are {:?} where queries are {:?}", t.dims(), q.dims());
            return Err(candle_core::Error::msg(text).bt().into());
        }
    }
    let bias = bias.map(|bias| bias.to_dtype(DType::F32)).transpose()?;
    if let Some(bias) = &bias {
        expect_len("the bias of an attention", bias.elem_count(), b * keys)?;
    }
    let (q32, k32, v32) = (wide_heads(q)?, wide_heads(k)?, wide_heads(v)?);
    let out = if q.device().is_cpu() {
        blocks(Micro::new(Isa::chosen()), &q32, &k32, &v32, bias.as_ref(), scale as f32)?
    } else {
        plain(&q32, &k32, &v32, bias.as_ref(), scale)?
    };
    let heads = narrow(out.transpose(1, 2)?, q.dtype())?; // [B, L, H, D], contiguous on a CPU
    Ok(heads.transpose(1, 2)?)
}

/// `[B, H, L, D]` in f32, heads as they stand.
fn wide_heads(t: &Tensor) -> Result<Tensor> {
    let tokens = t.transpose(1, 2)?;
    if tokens.is_contiguous() {
        return Ok(widen(&tokens)?.transpose(1, 2)?);
    }
    Ok(t.to_dtype(DType::F32)?)
}

/// By candle's own operations, f32, a share of the queries at a time.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f64) -> Result<Tensor> {
    let (b, h, l, _) = q.dims4()?;
    let keys = k.dim(2)?;
    let (k, v) = (k.transpose(2, 3)?.contiguous()?, v.contiguous()?); // [B, H, D, Lk], [B, H, Lk, D]
    let bias = bias.map(|bias| bias.reshape((b, 1, 1, keys))).transpose()?;
    let share = (PLAIN_BYTES / (b * h * keys * size_of::<f32>())).clamp(1, l.max(1));
    let mut parts = Vec::new();
    for start in (0..l).step_by(share) {
        let q = (q.narrow(2, start, share.min(l - start))?.contiguous()? * scale)?;
        let mut scores = q.matmul(&k)?; // [B, H, share, Lk]
        if let Some(bias) = &bias {
            scores = scores.broadcast_add(bias)?;
        }
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        parts.push(weights.matmul(&v)?); // [B, H, share, D]
    }
    Ok(Tensor::cat(&parts, 2)?)
}

/// Where a head's rows lie: the first value of row `l` of head `h` of clip `b`, and the step to the next row.
struct Heads<'a> {
    values: &'a [f32],
    stride: [usize; 3],
}

impl<'a> Heads<'a> {
    fn new(values: &'a Values<'_, f32>) -> Self {
        let stride = [values.stride()[0], values.stride()[1], values.stride()[2]];
        Self { values, stride }
    }

    /// Rows `l..l + rows` of a head, as the rest of the slice, after a check that they are all inside.
    fn rows(&self, [b, h, l]: [usize; 3], rows: usize, d: usize) -> &'a [f32] {
        let [sb, sh, sl] = self.stride;
        let start = b * sb + h * sh + l * sl;
        &self.values[start..start + (rows - 1) * sl + d]
    }

    fn step(&self) -> usize {
        self.stride[2]
    }
}

/// The CPU's way: keys and values of some heads are laid out for the kernels; then one task per head and block of queries
/// passes over the keys a block at a time with a running maximum and sum (Dao et al., FlashAttention, 2022). Scores are
/// held as `[keys, queries]`, so that neighbours in memory belong to different queries and nothing is summed across.
///
/// Blocks depend on shapes only, so that the number of threads changes nothing.
fn blocks(
    micro: Micro,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    scale: f32,
) -> Result<Tensor> {
    let (b, h, l, d) = q.dims4()?;
    let keys = k.dim(2)?;
    let [q, k, v] = [dense_rows(q)?, dense_rows(k)?, dense_rows(v)?];
    let mut out = vec![0f32; b * l * h * d]; // [B, L, H, D]
    {
        let [q, k, v] = [Values::<f32>::new(&q)?, Values::<f32>::new(&k)?, Values::<f32>::new(&v)?];
        let [q, k, v] = [Heads::new(&q), Heads::new(&k), Heads::new(&v)];
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        let bias = bias.as_ref().map(Values::<f32>::contiguous).transpose()?;
        let bias = bias.as_deref();
        let target = Target::new(&mut out);
        let shape = Shape { micro, keys, d, block: SCORES / micro.columns };
        let together = (LAID_OUT / size_of::<f32>() / (2 * keys * d).max(1)).clamp(1, (b * h).max(1));
        let mut laid_out = Vec::new();
        laid_out.resize_with(together, || (Vec::new(), Vec::new()));
        let query_blocks = l.div_ceil(QUERIES);
        for first_head in (0..b * h).step_by(together) {
            let count = together.min(b * h - first_head);
            laid_out[..count].par_iter_mut().enumerate().for_each(|(index, (to_k, to_v))| {
                let (clip, head) = ((first_head + index) / h, (first_head + index) % h);
                shape.lay_out_keys(k.rows([clip, head, 0], keys, d), k.step(), to_k);
                shape.lay_out_values(v.rows([clip, head, 0], keys, d), v.step(), to_v);
            });
            let tasks = (0..count * query_blocks).into_par_iter();
            tasks.for_each_init(Scratch::default, |scratch, task| {
                let (index, first) = (task / query_blocks, task % query_blocks * QUERIES);
                let (clip, head) = ((first_head + index) / h, (first_head + index) % h);
                let rows = QUERIES.min(l - first);
                let job = Job {
                    shape: &shape,
                    k: &laid_out[index].0,
                    v: &laid_out[index].1,
                    bias: bias.map(|bias| &bias[clip * keys..(clip + 1) * keys]),
                };
                scratch.take(&shape, q.rows([clip, head, first], rows, d), q.step(), rows, scale);
                job.run(scratch);
                for i in 0..rows {
                    let start = ((clip * l + first + i) * h + head) * d;
                    // SAFETY: `start + d` is at most `b * l * h * d`, the length of `out`, which outlives the loop;
                    // each (clip, row, head) belongs to one task, so that no two tasks write to the same place.
                    unsafe { target.write(start, scratch.finished(&shape, i)) };
                }
            });
        }
    }
    let out = Tensor::from_vec(out, (b, l, h, d), &candle_core::Device::Cpu)?;
    Ok(out.transpose(1, 2)?) // [B, H, L, D]
}

/// The tensor such that the values of a row are neighbours.
fn dense_rows(t: &Tensor) -> Result<Tensor> {
    if t.stride()[3] == 1 || t.dim(3)? == 1 { Ok(t.clone()) } else { Ok(t.contiguous()?) }
}

/// What all heads have in common.
struct Shape {
    micro: Micro,
    keys: usize,
    d: usize,
    /// Keys whose scores are held at a time: a multiple of the kernel's rows.
    block: usize,
}

impl Shape {
    /// Tiles of the kernel's rows that values are cut into.
    fn value_tiles(&self) -> usize {
        self.d.div_ceil(self.micro.rows)
    }

    /// `[tiles of R keys, D, R]`.
    fn lay_out_keys(&self, k: &[f32], step: usize, to: &mut Vec<f32>) {
        let (rows, d) = (self.micro.rows, self.d);
        to.resize(self.keys.div_ceil(rows) * rows * d, 0.0);
        for (tile, to) in to.chunks_exact_mut(rows * d).enumerate() {
            let first = tile * rows;
            turn(|i| &k[(first + i) * step..], rows.min(self.keys - first), to, rows);
        }
    }

    /// `[blocks of keys][tiles of R values, keys of the block, R]`.
    fn lay_out_values(&self, v: &[f32], step: usize, to: &mut Vec<f32>) {
        let (rows, tiles) = (self.micro.rows, self.value_tiles());
        to.resize(tiles * rows * self.keys, 0.0);
        for (block, to) in to.chunks_mut(tiles * rows * self.block).enumerate() {
            let keys = to.len() / (tiles * rows);
            for (tile, to) in to.chunks_exact_mut(rows * keys).enumerate() {
                let (start, width) = (tile * rows, rows.min(self.d - tile * rows));
                for (key, to) in to.chunks_exact_mut(rows).enumerate() {
                    to[..width].copy_from_slice(&v[(block * self.block + key) * step + start..][..width]);
                }
            }
        }
    }
}

/// What a thread keeps between its tasks; sizes are those of panels of C queries.
#[derive(Default)]
struct Scratch {
    /// `[panels, D, C]`, scaled.
    q: Vec<f32>,
    /// `[keys of a block, C]`
    scores: Vec<f32>,
    /// `[panels, D, C]`, rounded up to tiles.
    out: Vec<f32>,
    /// `[panels, C]`
    highest: Vec<f32>,
    /// `[panels, C]`
    total: Vec<f32>,
    line: Vec<f32>,
}

impl Scratch {
    /// Lays out `rows` queries, zeros beyond them, and begins anew.
    fn take(&mut self, shape: &Shape, q: &[f32], step: usize, rows: usize, scale: f32) {
        let (columns, d) = (shape.micro.columns, shape.d);
        let panels = rows.div_ceil(columns);
        self.q.clear();
        self.q.resize(panels * d * columns, 0.0);
        for (panel, to) in self.q.chunks_exact_mut(d * columns).enumerate() {
            let first = panel * columns;
            turn(|i| &q[(first + i) * step..], columns.min(rows - first), to, columns);
            to.iter_mut().for_each(|x| *x *= scale);
        }
        self.scores.resize(shape.block.min(shape.keys.next_multiple_of(shape.micro.rows)) * columns, 0.0);
        self.out.clear();
        self.out.resize(panels * shape.value_tiles() * shape.micro.rows * columns, 0.0);
        self.highest.clear();
        self.highest.resize(panels * columns, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(panels * columns, 0.0);
        self.line.resize(d, 0.0);
    }

    /// What query number `row` gathered.
    fn finished(&mut self, shape: &Shape, row: usize) -> &[f32] {
        let columns = shape.micro.columns;
        let (panel, column) = (row / columns, row % columns);
        let out = &self.out[panel * shape.value_tiles() * shape.micro.rows * columns..];
        for (value, out) in self.line.iter_mut().zip(out.chunks_exact(columns)) {
            *value = out[column] / self.total[row];
        }
        &self.line
    }
}

/// One head's block of queries against all keys.
struct Job<'a> {
    shape: &'a Shape,
    k: &'a [f32],
    v: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Job<'_> {
    fn run(&self, scratch: &mut Scratch) {
        let &Shape { micro, keys, d, block } = self.shape;
        let tiles = self.shape.value_tiles();
        let columns = micro.columns;
        let Scratch { q, scores, out, highest, total, .. } = scratch;
        let mut shrink = [0f32; Micro::MOST_COLUMNS];
        let shrink = &mut shrink[..columns];
        for first in (0..keys).step_by(block) {
            let count = block.min(keys - first);
            let bias = self.bias.map(|bias| &bias[first..first + count]);
            let k = &self.k[first * d..][..count.next_multiple_of(micro.rows) * d];
            let v = &self.v[first * tiles * micro.rows..][..count * tiles * micro.rows];
            let panels = q.chunks_exact(d * columns).zip(out.chunks_exact_mut(tiles * micro.rows * columns));
            let running = highest.chunks_exact_mut(columns).zip(total.chunks_exact_mut(columns));
            for ((q, out), (highest, total)) in panels.zip(running) {
                let each = scores.chunks_exact_mut(micro.rows * columns);
                for (k, scores) in k.chunks_exact(micro.rows * d).zip(each) {
                    micro.run(k, q, scores, /* more */ false);
                }
                let scores = &mut scores[..count * columns];
                soften(scores, bias, highest, total, shrink);
                if first > 0 {
                    shrink_lines(out, shrink);
                }
                let each = out.chunks_exact_mut(micro.rows * columns);
                for (v, out) in v.chunks_exact(micro.rows * count).zip(each) {
                    micro.run(v, scores, out, /* more */ first > 0);
                }
            }
        }
    }
}

wide! {
    /// Turns `scores` `[keys, C]` into `exp(score − maximum)`, brings the running maxima and sums `[C]` up to date, and
    /// writes the factors that what was gathered below the old maxima shrinks by.
    fn soften(
        scores: &mut [f32],
        bias: Option<&[f32]>,
        highest: &mut [f32],
        total: &mut [f32],
        shrink: &mut [f32],
    ) {
        let columns = highest.len();
        if let Some(bias) = bias {
            for (line, bias) in scores.chunks_exact_mut(columns).zip(bias) {
                line.iter_mut().for_each(|x| *x += bias);
            }
        }
        let running = highest.as_chunks_mut::<LANES>().0.iter_mut().zip(total.as_chunks_mut::<LANES>().0);
        let running = running.zip(shrink.as_chunks_mut::<LANES>().0).enumerate();
        for (part, ((highest, total), shrink)) in running {
            let lanes = scores.as_chunks_mut::<LANES>().0;
            let step = columns / LANES;
            let mut now = *highest;
            let mut at = part;
            while at < lanes.len() {
                for i in 0..LANES {
                    now[i] = if lanes[at][i] > now[i] { lanes[at][i] } else { now[i] };
                }
                at += step;
            }
            let mut sums = [0f32; LANES];
            at = part;
            while at < lanes.len() {
                for i in 0..LANES {
                    lanes[at][i] = exp(lanes[at][i] - now[i]);
                    sums[i] += lanes[at][i];
                }
                at += step;
            }
            for i in 0..LANES {
                shrink[i] = exp(highest[i] - now[i]);
                total[i] = total[i] * shrink[i] + sums[i];
            }
            *highest = now;
        }
    }

    fn shrink_lines(out: &mut [f32], shrink: &[f32]) {
        for line in out.chunks_exact_mut(shrink.len()) {
            for (x, shrink) in line.iter_mut().zip(shrink) {
                *x *= shrink;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn wave(shape: &[usize], phase: f64) -> Tensor {
        let n = shape.iter().product::<usize>() as f32;
        let t = Tensor::arange(0f32, n, &Device::Cpu).unwrap();
        t.affine(0.731, phase).unwrap().sin().unwrap().affine(2.0, 0.0).unwrap().reshape(shape).unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The definition, in f64 and one value at a time.
    fn naive(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f64) -> Vec<f64> {
        let (b, h, l, d) = q.dims4().unwrap();
        let keys = k.dim(2).unwrap();
        let wide = |t: &Tensor| values(t).into_iter().map(f64::from).collect::<Vec<_>>();
        let (q, k, v) = (wide(q), wide(k), wide(v));
        let bias = bias.map_or(vec![0.0; b * keys], wide);
        let mut out = Vec::new();
        for head in 0..b * h {
            for i in 0..l {
                let q = &q[(head * l + i) * d..][..d];
                let score = |j: usize| {
                    let k = &k[(head * keys + j) * d..][..d];
                    scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() + bias[head / h * keys + j]
                };
                let scores: Vec<f64> = (0..keys).map(score).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..d).map(|c| {
                    weights.iter().enumerate().map(|(j, w)| w * v[(head * keys + j) * d + c]).sum::<f64>()
                        / total
                }));
            }
        }
        out
    }

    #[track_caller]
    fn check(found: &Tensor, expected: &[f64], at_most: f64) {
        let found = values(found);
        assert_eq!(found.len(), expected.len());
        let gap = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(gap <= at_most, "{gap}");
    }

    #[test]
    fn blocks_give_what_the_definition_gives_on_every_path() {
        for (b, h, l, keys, d, at_most) in [
            (1, 1, 1, 1, 1, 4e-6),
            (2, 3, 65, 7, 5, 4e-6),
            (1, 2, 3, 513, 16, 4e-6),
            (1, 1, 130, 257, 11, 4e-6),
            // Longer sums lose more.
            (1, 2, 3, 813, 16, 8e-6),
            (1, 2, 20, 385, 70, 8e-6),
        ] {
            let (q, k, v) =
                (wave(&[b, h, l, d], 0.0), wave(&[b, h, keys, d], 1.0), wave(&[b, h, keys, d], 2.0));
            let scale = 1.0 / (d as f64).sqrt();
            let expected = naive(&q, &k, &v, None, scale);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there()) {
                let found = blocks(Micro::new(isa), &q, &k, &v, None, scale as f32).unwrap();
                check(&found, &expected, at_most);
            }
            check(&plain(&q, &k, &v, None, scale).unwrap(), &expected, 4e-6);
        }
    }

    #[test]
    fn strided_heads_and_a_bias() {
        let (b, h, l, keys, d) = (2, 3, 70, 300, 8);
        let heads = |t: &Tensor, l| t.reshape((b, l, h, d)).unwrap().transpose(1, 2).unwrap();
        let (q, k, v) =
            (wave(&[b, l, h * d], 0.0), wave(&[b, keys, h * d], 1.0), wave(&[b, keys, h * d], 2.0));
        let (q, k, v) = (heads(&q, l), heads(&k, keys), heads(&v, keys));
        let bias = wave(&[b, 1, 1, keys], 0.4);
        let out = attention(&q, &k, &v, Some(&bias), 0.3).unwrap();
        check(&out, &naive(&q, &k, &v, Some(&bias), 0.3), 4e-6);
        assert!(out.transpose(1, 2).unwrap().is_contiguous());
        check(&plain(&q, &k, &v, Some(&bias), 0.3).unwrap(), &naive(&q, &k, &v, Some(&bias), 0.3), 4e-6);
    }

    #[test]
    fn masked_keys_are_as_good_as_absent() {
        let (q, k, v) = (wave(&[1, 2, 9, 4], 0.0), wave(&[1, 2, 20, 4], 1.0), wave(&[1, 2, 20, 4], 2.0));
        let bias: Vec<f32> = (0..20).map(|i| if i < 6 { 0.0 } else { -10_000.0 }).collect();
        let bias = Tensor::from_vec(bias, (1, 1, 1, 20), &Device::Cpu).unwrap();
        let cut = |t: &Tensor| t.narrow(2, 0, 6).unwrap();
        let all = attention(&q, &k, &v, Some(&bias), 0.5).unwrap();
        let some = attention(&q, &cut(&k), &cut(&v), None, 0.5).unwrap();
        let gap = values(&all).iter().zip(values(&some)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(gap < 1e-6, "{gap}");
    }

    #[test]
    fn threads_change_nothing() {
        let (q, k, v) =
            (wave(&[1, 3, 200, 16], 0.0), wave(&[1, 3, 600, 16], 1.0), wave(&[1, 3, 600, 16], 2.0));
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| values(&attention(&q, &k, &v, None, 0.25).unwrap()))
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn sixteen_bits_are_widened() {
        let half = |t: Tensor| t.to_dtype(DType::BF16).unwrap();
        let (q, k, v) =
            (half(wave(&[1, 2, 5, 8], 0.0)), half(wave(&[1, 2, 9, 8], 1.0)), half(wave(&[1, 2, 9, 8], 2.0)));
        let out = attention(&q, &k, &v, None, 0.35).unwrap();
        assert_eq!(out.dtype(), DType::BF16);
        check(&out, &naive(&q, &k, &v, None, 0.35), 1e-2);
    }

    #[test]
    fn not_a_number_stays_visible() {
        let (q, k) = (wave(&[1, 1, 2, 4], 0.0), wave(&[1, 1, 3, 4], 1.0));
        let v = (wave(&[1, 1, 3, 4], 2.0) * f64::NAN).unwrap();
        assert!(values(&attention(&q, &k, &v, None, 0.5).unwrap()).iter().all(|x| x.is_nan()));
        let q = (q * f64::NAN).unwrap();
        let v = wave(&[1, 1, 3, 4], 2.0);
        assert!(values(&attention(&q, &k, &v, None, 0.5).unwrap()).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (q, k) = (wave(&[1, 2, 5, 8], 0.0), wave(&[1, 2, 9, 8], 1.0));
        assert!(attention(&q, &k, &wave(&[1, 2, 8, 8], 2.0), None, 0.35).is_err());
        assert!(attention(&q, &k, &k, Some(&wave(&[1, 1, 1, 8], 0.0)), 0.35).is_err());
    }
}
