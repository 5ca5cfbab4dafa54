//! The innermost product of linear layers, convolutions and attention on a CPU: rows and columns that were laid out for it, summed in registers.

use half::bf16;

use crate::{device::isa::Isa, nn::kernel::wide};

/// Writes `rows · columns` to `sums`, or adds it if `more`. Rows are `[depth, R]`, columns `[depth, C]`, sums `[R, C]`.
///
/// # Safety
/// The processor has what the kernel was compiled for.
type Kernel = unsafe fn(rows: &[f32], columns: &[f32], sums: &mut [f32], more: bool);

/// A kernel and how much it takes at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Micro {
    /// R.
    pub rows: usize,
    /// C.
    pub columns: usize,
    kernel: Kernel,
}

impl Micro {
    /// No kernel takes more columns.
    pub const MOST_COLUMNS: usize = 32;

    /// The one for `isa`, or plain loops where this processor doesn't have that.
    pub fn new(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 if isa.is_there() => Self { rows: 12, columns: 32, kernel: avx512 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if isa.is_there() => Self { rows: 6, columns: 16, kernel: avx2 },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Self { rows: 6, columns: 16, kernel: neon },
            _ => Self { rows: 6, columns: 16, kernel: scalar },
        }
    }

    /// The one for pairs of bf16 numbers, which each lie in the place of an f32, if `isa` has such.
    ///
    /// Products and sums are f32, subnormal numbers are taken as zero.
    pub fn pairs(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if isa.is_there() => Some(Self { rows: 12, columns: 32, kernel: avx512bf16 }),
            _ => None,
        }
    }

    /// The reference of [`Micro::pairs`], with the layout that the narrow kernels have.
    #[cfg(test)]
    pub fn plain_pairs() -> Self {
        Self { rows: 6, columns: 16, kernel: scalar_pairs }
    }

    /// Writes the products of as many rows and columns as the kernel takes, or adds them if `more`.
    pub fn run(self, rows: &[f32], columns: &[f32], sums: &mut [f32], more: bool) {
        debug_assert!(rows.len() / self.rows == columns.len() / self.columns);
        assert!(sums.len() == self.rows * self.columns);
        // SAFETY: `new` asked the processor for what the kernel needs.
        unsafe { (self.kernel)(rows, columns, sums, more) }
    }
}

/// Writes a kernel for one instruction set: `$rows` rows by `$wide` vectors of `$lanes` columns.
///
/// Loops are over numbers, not iterators: what an iterator is made of isn't compiled for the instruction set, and in a
/// build with debug assertions isn't inlined, which takes the sums out of their registers.
macro_rules! kernel {
    ($name:ident, $feature:literal, $vector:ty, $lanes:literal, $rows:literal x $wide:literal,
     $splat:path, |$a:ident, $b:ident, $sum:ident| $fma:expr) => {
        #[target_feature(enable = $feature)]
        fn $name(rows: &[f32], columns: &[f32], sums: &mut [f32], more: bool) {
            const COLUMNS: usize = $wide * $lanes;
            let (rows, columns) = (rows.as_chunks::<$rows>().0, columns.as_chunks::<COLUMNS>().0);
            let depth = rows.len().min(columns.len());
            let (rows, columns) = (&rows[..depth], &columns[..depth]);
            let sums: &mut [[f32; COLUMNS]; $rows] =
                sums.as_chunks_mut().0.try_into().expect("R lines of sums");
            let mut acc = [[$splat(0.0); $wide]; $rows];
            if more {
                for i in 0..$rows {
                    for j in 0..$wide {
                        let from: [f32; $lanes] = sums[i].as_chunks().0[j];
                        // SAFETY: a vector is as large as its numbers, and any bits are a number.
                        acc[i][j] = unsafe { std::mem::transmute::<[f32; $lanes], $vector>(from) };
                    }
                }
            }
            for k in 0..depth {
                let mut line = [$splat(0.0); $wide];
                for j in 0..$wide {
                    let from: [f32; $lanes] = columns[k].as_chunks().0[j];
                    // SAFETY: as above.
                    line[j] = unsafe { std::mem::transmute::<[f32; $lanes], $vector>(from) };
                }
                for i in 0..$rows {
                    let $a = $splat(rows[k][i]);
                    for j in 0..$wide {
                        let ($b, $sum) = (line[j], acc[i][j]);
                        acc[i][j] = $fma;
                    }
                }
            }
            for i in 0..$rows {
                for j in 0..$wide {
                    // SAFETY: as above.
                    let made = unsafe { std::mem::transmute::<$vector, [f32; $lanes]>(acc[i][j]) };
                    sums[i].as_chunks_mut().0[j] = made;
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(avx512, "avx512f", std::arch::x86_64::__m512, 16, 12 x 2, std::arch::x86_64::_mm512_set1_ps,
    |a, b, sum| std::arch::x86_64::_mm512_fmadd_ps(a, b, sum));
#[cfg(target_arch = "x86_64")]
kernel!(avx512bf16, "avx512f,avx512bf16", std::arch::x86_64::__m512, 16, 12 x 2, std::arch::x86_64::_mm512_set1_ps,
    |a, b, sum| dot(a, b, sum));
#[cfg(target_arch = "x86_64")]
kernel!(avx2, "avx2,fma", std::arch::x86_64::__m256, 8, 6 x 2, std::arch::x86_64::_mm256_set1_ps,
    |a, b, sum| std::arch::x86_64::_mm256_fmadd_ps(a, b, sum));
#[cfg(target_arch = "aarch64")]
kernel!(neon, "neon", std::arch::aarch64::float32x4_t, 4, 6 x 4, std::arch::aarch64::vdupq_n_f32,
    |a, b, sum| std::arch::aarch64::vfmaq_f32(sum, a, b));

/// Adds to each sum the products of two pairs.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot(
    a: std::arch::x86_64::__m512,
    b: std::arch::x86_64::__m512,
    sum: std::arch::x86_64::__m512,
) -> std::arch::x86_64::__m512 {
    // SAFETY: both are 512 bits, any of which are numbers.
    let pairs =
        |x| unsafe { std::mem::transmute::<std::arch::x86_64::__m512, std::arch::x86_64::__m512bh>(x) };
    std::arch::x86_64::_mm512_dpbf16_ps(sum, pairs(a), pairs(b))
}

/// Pairs of neighbours, each in the place of an f32: the first in the lower half.
pub(crate) fn pair(values: &[bf16], to: &mut [f32]) {
    for (to, pair) in to.iter_mut().zip(values.as_chunks::<2>().0) {
        *to = both(pair[0], pair[1]);
    }
}

/// Two numbers in the place of one.
pub(crate) fn both(first: bf16, second: bf16) -> f32 {
    f32::from_bits(u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16)
}

wide! {
    /// Gathers a row of sums, whose parts lie `step` numbers apart and are `width` wide, and adds the bias.
    pub(crate) fn gather(sums: &[f32], step: usize, width: usize, bias: Option<&[f32]>, line: &mut [f32]) {
        for (panel, line) in line.chunks_mut(width).enumerate() {
            line.copy_from_slice(&sums[panel * step..][..line.len()]);
        }
        if let Some(bias) = bias {
            for (sum, bias) in line.iter_mut().zip(bias) {
                *sum += bias;
            }
        }
    }
}

/// Numbers of a line of the cache.
const LINE: usize = 16;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Numbers that begin with a line of the cache, so that no load of a vector straddles two.
#[derive(Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// Makes room for `count` numbers, rounded up to whole lines; new ones are zero.
    pub fn resize(&mut self, count: usize) {
        self.0.resize(count.div_ceil(LINE), Line([0.0; LINE]));
    }

    pub fn numbers(&self) -> &[f32] {
        // SAFETY: a line is its numbers, without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    pub fn numbers_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is of all lines.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}

/// The reference of the others.
fn scalar(rows: &[f32], columns: &[f32], sums: &mut [f32], more: bool) {
    if !more {
        sums.fill(0.0);
    }
    for (row, column) in rows.as_chunks::<6>().0.iter().zip(columns.as_chunks::<16>().0) {
        for (a, sums) in row.iter().zip(sums.as_chunks_mut::<16>().0) {
            for (sum, b) in sums.iter_mut().zip(column) {
                *sum += a * b;
            }
        }
    }
}

/// The reference of the kernel for pairs.
#[cfg(test)]
fn scalar_pairs(rows: &[f32], columns: &[f32], sums: &mut [f32], more: bool) {
    let halves = |x: f32| {
        let bits = x.to_bits();
        [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)]
    };
    if !more {
        sums.fill(0.0);
    }
    for (row, column) in rows.as_chunks::<6>().0.iter().zip(columns.as_chunks::<16>().0) {
        for (a, sums) in row.iter().zip(sums.as_chunks_mut::<16>().0) {
            for (sum, b) in sums.iter_mut().zip(column) {
                let (a, b) = (halves(*a), halves(*b));
                *sum += a[0] * b[0];
                *sum += a[1] * b[1];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_for_pairs_agree_with_sums_in_f64() {
        const DEPTH: usize = 37;
        let number = |i: usize| bf16::from_f32((i * 7919 % 1009) as f32 / 1009.0 - 0.5);
        let there = Isa::ALL.into_iter().filter_map(Micro::pairs);
        for micro in there.chain([Micro::plain_pairs()]) {
            // `[depth, width]` of pairs: number `2k + half` of row `i`.
            let at = |k: usize, i: usize, half: usize, seed: usize| number((2 * k + half) * 53 + i + seed);
            let lay_out = |width: usize, seed: usize| -> Vec<f32> {
                let places = (0..DEPTH).flat_map(|k| (0..width).map(move |i| (k, i)));
                places.map(|(k, i)| both(at(k, i, 0, seed), at(k, i, 1, seed))).collect()
            };
            let (rows, columns) = (lay_out(micro.rows, 0), lay_out(micro.columns, 500));
            let mut sums = vec![f32::NAN; micro.rows * micro.columns];
            micro.run(&rows[..5 * micro.rows], &columns[..5 * micro.columns], &mut sums, false);
            micro.run(&rows[5 * micro.rows..], &columns[5 * micro.columns..], &mut sums, true);
            for (place, sum) in sums.iter().enumerate() {
                let (i, j) = (place / micro.columns, place % micro.columns);
                let term = |n: usize| at(n / 2, i, n % 2, 0).to_f64() * at(n / 2, j, n % 2, 500).to_f64();
                let expected = (0..2 * DEPTH).map(term).sum::<f64>();
                assert!((f64::from(*sum) - expected).abs() < 2e-5, "{sum} is not {expected}");
            }
        }
    }

    #[test]
    fn every_kernel_agrees_with_sums_in_f64() {
        const DEPTH: usize = 37;
        let number = |i: usize| (i * 7919 % 1009) as f32 / 1009.0 - 0.5;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there()) {
            let micro = Micro::new(isa);
            let rows: Vec<f32> = (0..DEPTH * micro.rows).map(number).collect();
            let columns: Vec<f32> = (0..DEPTH * micro.columns).map(|i| number(i + 31)).collect();
            let mut sums = vec![f32::NAN; micro.rows * micro.columns];
            micro.run(&rows[..5 * micro.rows], &columns[..5 * micro.columns], &mut sums, false);
            micro.run(&rows[5 * micro.rows..], &columns[5 * micro.columns..], &mut sums, true);
            for (place, sum) in sums.iter().enumerate() {
                let (i, j) = (place / micro.columns, place % micro.columns);
                let term = |k: usize| {
                    f64::from(rows[k * micro.rows + i]) * f64::from(columns[k * micro.columns + j])
                };
                let expected = (0..DEPTH).map(term).sum::<f64>();
                assert!((f64::from(*sum) - expected).abs() < 1e-5, "{isa:?}: {sum} is not {expected}");
            }
        }
    }
}
