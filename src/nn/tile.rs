//! The innermost product of the convolutions on a CPU: a few rows times a panel of weights, in registers.

/// Rows of one tile.
pub(crate) const ROWS: usize = 12;
/// Columns of one tile, which is how many output channels a panel of weights holds.
pub(crate) const COLS: usize = 32;

/// A cache line of numbers, so that no vector load straddles two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [f32; Line::LEN]);

impl Line {
    pub const LEN: usize = 16;
    pub const ZERO: Self = Self([0.0; Self::LEN]);
    pub const PER_ROW: usize = COLS / Self::LEN;
}

/// Adds `rows · panel` to `sums`.
///
/// # Safety
/// Each of `rows` points at `depth` numbers, `panel` at `depth × COLS`, and `sums` at `ROWS` rows of `COLS`
/// numbers that lie `pitch` apart; the processor has what the kernel was compiled for.
pub(crate) type Kernel =
    unsafe fn(rows: &[*const f32; ROWS], depth: usize, panel: *const f32, sums: *mut f32, pitch: usize);

/// The widest kernel that this processor runs.
pub(crate) fn kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return avx2;
        }
    }
    #[cfg(target_arch = "aarch64")]
    return neon;
    #[cfg(not(target_arch = "aarch64"))]
    portable
}

/// Writes a kernel for one instruction set: `$high` rows by `$wide` vectors are summed at a time.
macro_rules! kernel {
    ($name:ident, $feature:literal, $arch:ident, $lanes:literal, $high:literal x $wide:literal,
     $load:ident, $splat:ident, $store:ident, |$a:ident, $b:ident, $sum:ident| $fma:expr) => {
        #[target_feature(enable = $feature)]
        unsafe fn $name(
            rows: &[*const f32; ROWS],
            depth: usize,
            panel: *const f32,
            sums: *mut f32,
            pitch: usize,
        ) {
            use std::arch::$arch::{$load, $splat, $store};
            for top in (0..ROWS).step_by($high) {
                for left in (0..COLS).step_by($wide * $lanes) {
                    // SAFETY: `top + i < ROWS`, `left + j × lanes + lanes <= COLS` and `k < depth`, for which
                    // the caller vouches.
                    unsafe {
                        let sums = sums.add(top * pitch + left);
                        let panel = panel.add(left);
                        let mut acc: [[_; $wide]; $high] = std::array::from_fn(|i| {
                            std::array::from_fn(|j| $load(sums.add(i * pitch + j * $lanes)))
                        });
                        for k in 0..depth {
                            let line: [_; $wide] =
                                std::array::from_fn(|j| $load(panel.add(k * COLS + j * $lanes)));
                            for i in 0..$high {
                                let $a = $splat(*rows[top + i].add(k));
                                for j in 0..$wide {
                                    let ($b, $sum) = (line[j], acc[i][j]);
                                    acc[i][j] = $fma;
                                }
                            }
                        }
                        for i in 0..$high {
                            for j in 0..$wide {
                                $store(sums.add(i * pitch + j * $lanes), acc[i][j]);
                            }
                        }
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(avx512, "avx512f", x86_64, 16, 12 x 2, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    |a, b, sum| std::arch::x86_64::_mm512_fmadd_ps(a, b, sum));
#[cfg(target_arch = "x86_64")]
kernel!(avx2, "avx2,fma", x86_64, 8, 6 x 2, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps,
    |a, b, sum| std::arch::x86_64::_mm256_fmadd_ps(a, b, sum));
#[cfg(target_arch = "aarch64")]
kernel!(neon, "neon", aarch64, 4, 6 x 4, vld1q_f32, vdupq_n_f32, vst1q_f32,
    |a, b, sum| std::arch::aarch64::vfmaq_f32(sum, a, b));

/// For processors without any of these: the compiler's own vectors.
///
/// # Safety
/// As for [`Kernel`].
#[cfg_attr(
    all(target_arch = "aarch64", not(test)),
    expect(dead_code, reason = "every such processor has NEON")
)]
unsafe fn portable(rows: &[*const f32; ROWS], depth: usize, panel: *const f32, sums: *mut f32, pitch: usize) {
    for (i, row) in rows.iter().enumerate() {
        // SAFETY: the caller vouches for the lengths.
        let (row, panel, sums) = unsafe {
            (
                std::slice::from_raw_parts(*row, depth),
                std::slice::from_raw_parts(panel, depth * COLS),
                std::slice::from_raw_parts_mut(sums.add(i * pitch), COLS),
            )
        };
        let mut acc = [0f32; COLS];
        acc.copy_from_slice(sums);
        for (a, line) in row.iter().zip(panel.chunks_exact(COLS)) {
            for (sum, b) in acc.iter_mut().zip(line) {
                *sum += a * b;
            }
        }
        sums.copy_from_slice(&acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_agree() {
        const DEPTH: usize = 37;
        let number = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
        let rows: Vec<f32> = (0..ROWS * DEPTH).map(number).collect();
        let panel: Vec<f32> = (0..DEPTH * COLS).map(|i| number(i + 31)).collect();
        let run = |kernel: Kernel| {
            let mut sums = vec![1f32; ROWS * COLS];
            let starts = std::array::from_fn(|i| rows[i * DEPTH..].as_ptr());
            // SAFETY: the buffers have the sizes that kernels want, and only kernels that fit are run.
            unsafe { kernel(&starts, DEPTH, panel.as_ptr(), sums.as_mut_ptr(), COLS) };
            sums
        };
        let expected: Vec<f64> = (0..ROWS * COLS)
            .map(|at| (at / COLS, at % COLS))
            .map(|(i, j)| {
                let term = |k| f64::from(rows[i * DEPTH + k]) * f64::from(panel[k * COLS + j]);
                1.0 + (0..DEPTH).map(term).sum::<f64>()
            })
            .collect();
        let mut kernels = vec![kernel(), portable];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            kernels.push(avx2);
        }
        for kernel in kernels {
            for (sum, expected) in run(kernel).iter().zip(&expected) {
                assert!((f64::from(*sum) - expected).abs() < 1e-5, "{sum} is not {expected}");
            }
        }
    }
}
