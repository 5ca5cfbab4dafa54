//! The innermost product of the convolutions on a CPU: a few rows times a panel of weights, in registers.

use crate::device::isa::Isa;

/// Rows of one tile.
pub(crate) const ROWS: usize = 12;
/// Columns of one tile, which is how many output channels a panel of weights holds.
pub(crate) const COLS: usize = 32;
/// Columns that are made where no more are needed.
const HALF: usize = COLS / 2;

/// A row of a panel or of sums, laid out so that no vector load straddles two cache lines.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [f32; COLS]);

impl Line {
    pub const ZERO: Self = Self([0.0; COLS]);
}

/// Adds `rows · panel` to `sums`; each row begins with as many numbers as the panel has lines.
///
/// # Safety
/// The processor has what the kernel was compiled for.
type Kernel = unsafe fn(rows: &[&[f32]; ROWS], panel: &[Line], sums: &mut [Line; ROWS]);

/// The kernels for one processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernels {
    full: Kernel,
    /// Makes the first half of the columns only.
    half: Kernel,
}

impl Kernels {
    /// Those for `isa`, or plain loops where this processor doesn't have that.
    pub fn new(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if isa.is_there() => Self { full: avx512, half: avx512_half },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if isa.is_there() => Self { full: avx2, half: avx2_half },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Self { full: neon, half: neon_half },
            _ => Self { full: portable::<COLS>, half: portable::<HALF> },
        }
    }

    /// Adds `rows · panel` to the first `columns` of `sums`; the others are left or added to.
    pub fn run(self, rows: &[&[f32]; ROWS], panel: &[Line], sums: &mut [Line; ROWS], columns: usize) {
        let kernel = if columns > HALF { self.full } else { self.half };
        // SAFETY: `new` asked the processor for what its kernels need.
        unsafe { kernel(rows, panel, sums) }
    }
}

/// Numbers of each row that a kernel takes at a time.
const STEP: usize = 16;

/// Writes a kernel for one instruction set: `$high` rows by `$wide` vectors are summed at a time.
///
/// All that is indexed within a step has a constant length: no check is left in its loops, not even in a build with
/// overflow checks and debug assertions.
macro_rules! kernel {
    ($name:ident, $feature:literal, $vector:ty, $lanes:literal, $high:literal x $wide:literal of $cols:ident,
     $splat:path, |$a:ident, $b:ident, $sum:ident| $fma:expr) => {
        #[target_feature(enable = $feature)]
        fn $name(rows: &[&[f32]; ROWS], panel: &[Line], sums: &mut [Line; ROWS]) {
            let (steps, rest) = panel.as_chunks::<STEP>();
            for left in (0..$cols / $lanes).step_by($wide) {
                for (rows, sums) in rows.as_chunks::<$high>().0.iter().zip(sums.as_chunks_mut::<$high>().0) {
                    let mut acc = [[$splat(0.0); $wide]; $high];
                    for i in 0..$high {
                        for j in 0..$wide {
                            let from: [f32; $lanes] = sums[i].0.as_chunks().0[left + j];
                            // SAFETY: a vector is as large as its numbers, and any bits are a number.
                            acc[i][j] = unsafe { std::mem::transmute::<[f32; $lanes], $vector>(from) };
                        }
                    }
                    for (n, step) in steps.iter().enumerate() {
                        let mut ends = [&[0f32; STEP]; $high];
                        for i in 0..$high {
                            ends[i] = &rows[i].as_chunks::<STEP>().0[n];
                        }
                        for k in 0..STEP {
                            let mut line = [$splat(0.0); $wide];
                            for j in 0..$wide {
                                let from: [f32; $lanes] = step[k].0.as_chunks().0[left + j];
                                // SAFETY: as above.
                                line[j] = unsafe { std::mem::transmute::<[f32; $lanes], $vector>(from) };
                            }
                            for i in 0..$high {
                                let $a = $splat(ends[i][k]);
                                for j in 0..$wide {
                                    let ($b, $sum) = (line[j], acc[i][j]);
                                    acc[i][j] = $fma;
                                }
                            }
                        }
                    }
                    for i in 0..$high {
                        for j in 0..$wide {
                            // SAFETY: as above.
                            let made = unsafe { std::mem::transmute::<$vector, [f32; $lanes]>(acc[i][j]) };
                            sums[i].0.as_chunks_mut().0[left + j] = made;
                        }
                    }
                }
            }
            if !rest.is_empty() {
                portable::<$cols>(&rows.map(|row| &row[panel.len() - rest.len()..]), rest, sums);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(avx512, "avx512f", std::arch::x86_64::__m512, 16, 12 x 2 of COLS, std::arch::x86_64::_mm512_set1_ps,
    |a, b, sum| std::arch::x86_64::_mm512_fmadd_ps(a, b, sum));
#[cfg(target_arch = "x86_64")]
kernel!(avx512_half, "avx512f", std::arch::x86_64::__m512, 16, 12 x 1 of HALF, std::arch::x86_64::_mm512_set1_ps,
    |a, b, sum| std::arch::x86_64::_mm512_fmadd_ps(a, b, sum));
#[cfg(target_arch = "x86_64")]
kernel!(avx2, "avx2,fma", std::arch::x86_64::__m256, 8, 6 x 2 of COLS, std::arch::x86_64::_mm256_set1_ps,
    |a, b, sum| std::arch::x86_64::_mm256_fmadd_ps(a, b, sum));
#[cfg(target_arch = "x86_64")]
kernel!(avx2_half, "avx2,fma", std::arch::x86_64::__m256, 8, 6 x 2 of HALF, std::arch::x86_64::_mm256_set1_ps,
    |a, b, sum| std::arch::x86_64::_mm256_fmadd_ps(a, b, sum));
#[cfg(target_arch = "aarch64")]
kernel!(neon, "neon", std::arch::aarch64::float32x4_t, 4, 6 x 4 of COLS, std::arch::aarch64::vdupq_n_f32,
    |a, b, sum| std::arch::aarch64::vfmaq_f32(sum, a, b));
#[cfg(target_arch = "aarch64")]
kernel!(neon_half, "neon", std::arch::aarch64::float32x4_t, 4, 6 x 4 of HALF, std::arch::aarch64::vdupq_n_f32,
    |a, b, sum| std::arch::aarch64::vfmaq_f32(sum, a, b));

/// For processors without any of these, and for what is left of a step: the compiler's own vectors.
fn portable<const COLUMNS: usize>(rows: &[&[f32]; ROWS], panel: &[Line], sums: &mut [Line; ROWS]) {
    for (row, sums) in rows.iter().zip(sums) {
        let mut acc = [0.0; COLUMNS];
        acc.copy_from_slice(&sums.0[..COLUMNS]);
        for (a, line) in row.iter().zip(panel) {
            for (sum, b) in acc.iter_mut().zip(&line.0) {
                *sum += a * b;
            }
        }
        sums.0[..COLUMNS].copy_from_slice(&acc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_agree() {
        const DEPTH: usize = 37;
        let number = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
        let values: Vec<f32> = (0..ROWS * DEPTH).map(number).collect();
        let rows: [&[f32]; ROWS] = std::array::from_fn(|i| &values[i * DEPTH..]);
        let panel: Vec<Line> =
            (0..DEPTH).map(|k| Line(std::array::from_fn(|j| number(k * COLS + j + 31)))).collect();
        let there = Isa::ALL.into_iter().filter(|isa| isa.is_there());
        let kernels: Vec<Kernels> = there.map(Kernels::new).collect();
        for (kernels, columns) in kernels.iter().flat_map(|kernels| [(kernels, COLS), (kernels, 9)]) {
            let mut sums = [Line([1.0; COLS]); ROWS];
            kernels.run(&rows, &panel, &mut sums, columns);
            for (row, sums) in rows.iter().zip(&sums) {
                for (j, sum) in sums.0.iter().take(columns).enumerate() {
                    let terms = row.iter().zip(&panel).map(|(a, line)| f64::from(*a) * f64::from(line.0[j]));
                    let expected = 1.0 + terms.sum::<f64>();
                    assert!((f64::from(*sum) - expected).abs() < 1e-5, "{sum} is not {expected}");
                }
            }
        }
    }
}
