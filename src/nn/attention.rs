//! Scaled dot-product attention that never holds all scores at once.

use candle_core::{D, DType, Tensor};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

use crate::{
    error::Result,
    nn::kernel::{LANES, Target, Values, exp, expect_len, narrow, sum, wide, widen},
};

/// Queries and keys of a block of scores: together with its output it stays in a core's own cache.
const QUERIES: usize = 64;
const KEYS: usize = 256;
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
        blocks(&q32, &k32, &v32, bias.as_ref(), scale as f32)?
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

/// The CPU's way: one task per head and block of queries, which passes over the keys a block at a time with a
/// running maximum and sum. Blocks depend on shapes only, so that the number of threads changes nothing.
fn blocks(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: f32) -> Result<Tensor> {
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
        let query_blocks = l.div_ceil(QUERIES);
        (0..b * h * query_blocks).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            let (head, first) = (task / query_blocks, task % query_blocks * QUERIES);
            let (clip, head, rows) = (head / h, head % h, QUERIES.min(l - first));
            let job = Job {
                q: q.rows([clip, head, first], rows, d),
                k: k.rows([clip, head, 0], keys, d),
                v: v.rows([clip, head, 0], keys, d),
                bias: bias.map(|bias| &bias[clip * keys..(clip + 1) * keys]),
                step: [q.step(), k.step(), v.step()],
                rows,
                keys,
                d,
                scale,
            };
            let block = job.run(scratch);
            for (i, row) in block.chunks_exact(d).enumerate() {
                let start = ((clip * l + first + i) * h + head) * d;
                // SAFETY: `start + d` is at most `b * l * h * d`, the length of `out`, which outlives the loop;
                // each (clip, row, head) belongs to one task, so that no two tasks write to the same place.
                unsafe { target.write(start, row) };
            }
        });
    }
    let out = Tensor::from_vec(out, (b, l, h, d), &candle_core::Device::Cpu)?;
    Ok(out.transpose(1, 2)?) // [B, H, L, D]
}

/// The tensor such that the values of a row are neighbours.
fn dense_rows(t: &Tensor) -> Result<Tensor> {
    if t.stride()[3] == 1 || t.dim(3)? == 1 { Ok(t.clone()) } else { Ok(t.contiguous()?) }
}

/// What a thread keeps between its tasks.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// One head's block of queries against all keys.
struct Job<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    bias: Option<&'a [f32]>,
    /// From one row to the next, of `q`, `k` and `v`.
    step: [usize; 3],
    rows: usize,
    keys: usize,
    d: usize,
    scale: f32,
}

impl Job<'_> {
    /// `[rows, d]`.
    fn run<'s>(&self, scratch: &'s mut Scratch) -> &'s [f32] {
        let (rows, d) = (self.rows, self.d);
        scratch.scores.resize(rows * KEYS.min(self.keys), 0.0);
        scratch.out.clear();
        scratch.out.resize(rows * d, 0.0);
        let (mut highest, mut total) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
        for first in (0..self.keys).step_by(KEYS) {
            let keys = KEYS.min(self.keys - first);
            let scores = &mut scratch.scores[..rows * keys];
            self.score(first, keys, scores);
            let bias = self.bias.map(|bias| &bias[first..first + keys]);
            for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                let shrink = soften_row(row, bias, &mut highest[i], &mut total[i]);
                if shrink != 1.0 {
                    scratch.out[i * d..(i + 1) * d].iter_mut().for_each(|x| *x *= shrink);
                }
            }
            self.gather(first, keys, scores, &mut scratch.out);
        }
        for (row, total) in scratch.out.chunks_exact_mut(d).zip(total) {
            row.iter_mut().for_each(|x| *x /= total);
        }
        &scratch.out
    }

    /// `scores` `[rows, keys]` = `scale · q · kᵀ` for keys from `first` on.
    fn score(&self, first: usize, keys: usize, scores: &mut [f32]) {
        let [sq, sk, _] = self.step;
        let k = &self.k[first * sk..];
        debug_assert!(scores.len() >= self.rows * keys);
        debug_assert!(self.q.len() >= (self.rows - 1) * sq + self.d && k.len() >= (keys - 1) * sk + self.d);
        // SAFETY: sizes and strides name only places inside the three slices, as asserted; `scores` overlaps
        // neither of the others, which are only read.
        unsafe {
            gemm(
                self.rows,
                keys,
                self.d,
                scores.as_mut_ptr(),
                1,
                keys as isize,
                /* read_dst */ false,
                self.q.as_ptr(),
                1,
                sq as isize,
                k.as_ptr(),
                sk as isize,
                1,
                0.0,
                self.scale,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    /// `out` `[rows, d]` += `weights` `[rows, keys]` · `v` for keys from `first` on.
    fn gather(&self, first: usize, keys: usize, weights: &[f32], out: &mut [f32]) {
        let sv = self.step[2];
        let v = &self.v[first * sv..];
        debug_assert!(weights.len() >= self.rows * keys && out.len() >= self.rows * self.d);
        debug_assert!(v.len() >= (keys - 1) * sv + self.d);
        // SAFETY: as in `score`, with `out` as the one that is written.
        unsafe {
            gemm(
                self.rows,
                self.d,
                keys,
                out.as_mut_ptr(),
                1,
                self.d as isize,
                /* read_dst */ true,
                weights.as_ptr(),
                1,
                keys as isize,
                v.as_ptr(),
                1,
                sv as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

wide! {
    /// Turns a row's scores into `exp(score − maximum)`, brings the running maximum and sum up to date, and returns
    /// the factor that what was gathered below the old maximum shrinks by.
    fn soften_row(row: &mut [f32], bias: Option<&[f32]>, highest: &mut f32, total: &mut f32) -> f32 {
        if let Some(bias) = bias {
            for (x, bias) in row.iter_mut().zip(bias) {
                *x += bias;
            }
        }
        let before = *highest;
        let now = maximum(row, before);
        let mut lanes = [0f32; LANES];
        let (blocks, rest) = row.as_chunks_mut::<LANES>();
        for block in blocks {
            for (x, lane) in block.iter_mut().zip(&mut lanes) {
                *x = exp(*x - now);
                *lane += *x;
            }
        }
        for (x, lane) in rest.iter_mut().zip(&mut lanes) {
            *x = exp(*x - now);
            *lane += *x;
        }
        let shrink = exp(before - now);
        *highest = now;
        *total = *total * shrink + sum(&lanes, |x| x);
        shrink
    }
}

#[inline(always)]
fn maximum(row: &[f32], start: f32) -> f32 {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(start, |a, &x| if x > a { x } else { a })
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
    fn blocks_give_what_the_definition_gives() {
        for (b, h, l, keys, d) in
            [(1, 1, 1, 1, 1), (2, 3, 65, 7, 5), (1, 2, 3, 513, 16), (1, 1, 130, 257, 11)]
        {
            let (q, k, v) =
                (wave(&[b, h, l, d], 0.0), wave(&[b, h, keys, d], 1.0), wave(&[b, h, keys, d], 2.0));
            let scale = 1.0 / (d as f64).sqrt();
            let expected = naive(&q, &k, &v, None, scale);
            check(&attention(&q, &k, &v, None, scale).unwrap(), &expected, 4e-6);
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
