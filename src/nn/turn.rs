//! Rows turned into columns, a block of 8 × 8 numbers at a time where the processor has instructions for it.

use crate::device::isa::Isa;

/// Side of a block.
const SIDE: usize = 8;
/// Rows of the narrowest kernel.
const SIX: usize = 6;

/// The first `count` columns of `to` `[depth, width]` become `row(0)`, `row(1)` and so on, each of at least `depth` numbers.
pub(crate) fn turn<'a>(row: impl Fn(usize) -> &'a [f32], count: usize, to: &mut [f32], width: usize) {
    run(Isa::chosen(), row, count, to, width);
}

fn run<'a>(isa: Isa, row: impl Fn(usize) -> &'a [f32], count: usize, to: &mut [f32], width: usize) {
    let depth = to.len() / width;
    assert!(count <= width);
    let row = |i| &row(i)[..depth];
    let wide = isa.has_avx2();
    if wide && (count, width) == (SIX, SIX) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this processor has AVX2, or its kernels would not be chosen.
        return unsafe { six(std::array::from_fn(row), to) };
    }
    let mut first = 0;
    while first < count {
        let next = first + SIDE;
        if wide && next <= count {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            unsafe {
                eight(std::array::from_fn(|i| row(first + i)), &mut to[first..], width);
            }
        } else {
            (first..count.min(next)).for_each(|i| plain(row(i), &mut to[i..], width));
        }
        first = next;
    }
}

/// The reference of the others, for a single row.
fn plain(row: &[f32], to: &mut [f32], width: usize) {
    for (k, value) in row.iter().enumerate() {
        to[k * width] = *value;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn eight(rows: [&[f32]; SIDE], to: &mut [f32], width: usize) {
    let depth = rows[0].len();
    let deep = depth / SIDE * SIDE;
    for k in (0..deep).step_by(SIDE) {
        let lines = across(&rows, k);
        for i in 0..SIDE {
            let to = &mut to[(k + i) * width..][..SIDE];
            // SAFETY: the slice has SIDE numbers.
            unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), lines[i]) };
        }
    }
    if deep < depth {
        for i in 0..SIDE {
            plain(&rows[i][deep..], &mut to[deep * width + i..], width);
        }
    }
}

/// Six rows to lines of six. A vector is two numbers longer than a line: those are overwritten by the next one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn six(rows: [&[f32]; SIX], to: &mut [f32]) {
    // The last vector may not pass the end.
    let deep = rows[0].len().saturating_sub(1) / SIDE * SIDE;
    for k in (0..deep).step_by(SIDE) {
        let lines = across(&rows, k);
        for i in 0..SIDE {
            let to = &mut to[(k + i) * SIX..][..SIDE];
            // SAFETY: the slice has SIDE numbers.
            unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), lines[i]) };
        }
    }
    for i in 0..SIX {
        plain(&rows[i][deep..], &mut to[deep * SIX + i..], SIX);
    }
}

/// Numbers `k..k + 8` of up to eight rows, as columns.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn across<const ROWS: usize>(rows: &[&[f32]; ROWS], k: usize) -> [std::arch::x86_64::__m256; SIDE] {
    use std::arch::x86_64::{
        _mm256_castpd_ps, _mm256_castps_pd, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_setzero_ps,
        _mm256_unpackhi_pd, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpacklo_ps,
    };
    let mut lines = [_mm256_setzero_ps(); SIDE];
    for i in 0..ROWS {
        // SAFETY: the slice has SIDE numbers.
        lines[i] = unsafe { _mm256_loadu_ps(rows[i][k..][..SIDE].as_ptr()) };
    }
    let mut four = lines;
    for i in [0, 4] {
        let (ab, cd) =
            (_mm256_unpacklo_ps(lines[i], lines[i + 1]), _mm256_unpacklo_ps(lines[i + 2], lines[i + 3]));
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        four[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        four[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
        let (ab, cd) =
            (_mm256_unpackhi_ps(lines[i], lines[i + 1]), _mm256_unpackhi_ps(lines[i + 2], lines[i + 3]));
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        four[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        four[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
    }
    let mut out = four;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(four[i], four[i + 4]);
        out[i + 4] = _mm256_permute2f128_ps::<0x31>(four[i], four[i + 4]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_puts_each_number_in_its_place() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there()) {
            for (rows, depth, width) in [
                (16, 384, 16),
                (6, 33, 6),
                (6, 32, 6),
                (6, 2, 6),
                (4, 32, 6),
                (8, 8, 8),
                (19, 21, 32),
                (1, 1, 1),
                (0, 9, 4),
            ] {
                let number = |row: usize, k: usize| (row * 1000 + k) as f32;
                let from: Vec<Vec<f32>> =
                    (0..rows).map(|row| (0..depth + 3).map(|k| number(row, k)).collect()).collect();
                let mut to = vec![-1.0; depth * width];
                run(isa, |row| &from[row], rows, &mut to, width);
                for (place, value) in to.iter().enumerate() {
                    let (k, row) = (place / width, place % width);
                    let expected = if row < rows { number(row, k) } else { -1.0 };
                    assert_eq!(*value, expected, "{isa:?} {rows} × {depth}");
                }
            }
        }
    }
}
