//! What the CPU kernels of this floor share: f32 views of tensors, rows shared out among the cores,
//! loops compiled once more for wide registers, and an `exp` that such loops can use.

use std::ops::Deref;

use candle_core::{DType, Layout, Storage, StorageRef, Tensor, WithDType, bail};
use half::bf16;
use rayon::prelude::*;

use crate::error::Result;

/// Values that are worth handing to another core.
const GRAIN: usize = 1 << 14;
/// Partial sums kept side by side: fills the vector units, and loses less than one running sum.
pub(crate) const LANES: usize = 16;

/// The values of a CPU tensor, borrowed for as long as this lives.
pub(crate) struct Values<'a, T> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    kind: std::marker::PhantomData<T>,
}

impl<'a, T: WithDType> Values<'a, T> {
    /// Fails for a tensor on another device or of another dtype.
    pub(crate) fn new(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => T::cpu_storage_as_slice(cpu)?,
            _ => Err(candle_core::Error::msg("a CPU kernel was given a tensor of another device"))?,
        };
        Ok(Self { storage, layout, kind: std::marker::PhantomData })
    }

    /// Fails also for a tensor that is not contiguous.
    pub(crate) fn contiguous(tensor: &'a Tensor) -> Result<Self> {
        let values = Self::new(tensor)?;
        if !values.layout.is_contiguous() {
            Err(candle_core::Error::msg("a CPU kernel was given a strided tensor").bt())?;
        }
        Ok(values)
    }

    /// Distance between neighbours along each axis, counted in values.
    pub(crate) fn stride(&self) -> &[usize] {
        self.layout.stride()
    }
}

impl<T: WithDType> Deref for Values<'_, T> {
    type Target = [T];

    /// From the tensor's first value on; longer than the tensor where it is a part of another.
    fn deref(&self) -> &[T] {
        let Storage::Cpu(cpu) = &*self.storage else { unreachable!("checked by `new`") };
        let all = T::cpu_storage_as_slice(cpu).expect("checked by `new`");
        &all[self.layout.start_offset()..]
    }
}

/// The tensor as contiguous f32; free where it is that already.
pub(crate) fn widen(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::BF16 && x.is_contiguous() {
        let mut out = vec![0f32; x.elem_count()];
        let values = Values::<bf16>::contiguous(x)?;
        let chunks = out.par_chunks_mut(GRAIN).zip(values[..x.elem_count()].par_chunks(GRAIN));
        chunks.for_each(|(out, x)| widen_row(x, out));
        return Ok(Tensor::from_vec(out, x.shape(), x.device())?);
    }
    Ok(x.to_dtype(DType::F32)?.contiguous()?)
}

/// The tensor in `dtype`, rounded to nearest, ties to even; free where it is that already.
pub(crate) fn narrow(x: Tensor, dtype: DType) -> Result<Tensor> {
    if x.device().is_cpu() && (x.dtype(), dtype) == (DType::F32, DType::BF16) && x.is_contiguous() {
        let mut out = vec![bf16::ZERO; x.elem_count()];
        let values = Values::<f32>::contiguous(&x)?;
        let chunks = out.par_chunks_mut(GRAIN).zip(values[..x.elem_count()].par_chunks(GRAIN));
        chunks.for_each(|(out, x)| narrow_row(x, out));
        return Ok(Tensor::from_vec(out, x.shape(), x.device())?);
    }
    Ok(x.to_dtype(dtype)?)
}

/// Applies `row(index, input, output)` to each row along the last axis of a CPU tensor.
///
/// Arithmetic is in f32; the result has the dtype of `x`. A row is never split, so that the number of
/// threads changes nothing.
pub(crate) fn map_rows(x: &Tensor, row: impl Fn(usize, &[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let wide = widen(x)?;
    let d = x.dims().last().copied().unwrap_or(1).max(1);
    let rows = (GRAIN / d).max(1);
    let mut out = vec![0f32; x.elem_count()];
    {
        let values = Values::<f32>::contiguous(&wide)?;
        let values = &values[..out.len()];
        out.par_chunks_mut(rows * d).zip(values.par_chunks(rows * d)).enumerate().for_each(
            |(block, (out, x))| {
                for (i, (out, x)) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)).enumerate() {
                    row(block * rows + i, x, out);
                }
            },
        );
    }
    narrow(Tensor::from_vec(out, x.shape(), x.device())?, x.dtype())
}

/// Output that tasks write disjoint places of.
pub(crate) struct Target<'a> {
    start: *mut f32,
    out: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: only `write` uses the pointer, whose callers promise disjoint places.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    pub(crate) fn new(out: &'a mut [f32]) -> Self {
        Self { start: out.as_mut_ptr(), out: std::marker::PhantomData }
    }

    /// # Safety
    /// `start + row.len()` values must be there, and no other thread may touch them meanwhile.
    pub(crate) unsafe fn write(&self, start: usize, row: &[f32]) {
        // SAFETY: promised by the caller.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.start.add(start), row.len()) };
    }
}

/// Checks the length of what a kernel reads beside its rows.
pub(crate) fn expect_len(what: &str, found: usize, expected: usize) -> candle_core::Result<()> {
    if found != expected {
        bail!("{what} has {found} values (expected {expected})");
    }
    Ok(())
}

/// Defines functions whose body is compiled thrice on x86-64: as it stands, and for CPUs with AVX2 or AVX-512.
///
/// Rust never joins `a * b + c` into one rounding, so that all give the same bits.
macro_rules! wide {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $kind),*) $(-> $out)? {
            #[inline(always)]
            fn plain($($arg: $kind),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $kind),*) $(-> $out)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
                fn avx512($($arg: $kind),*) $(-> $out)? {
                    plain($($arg),*)
                }
                let isa = $crate::device::isa::Isa::chosen();
                if isa.has_avx512() {
                    // SAFETY: this CPU has all four, or it would not be chosen.
                    return unsafe { avx512($($arg),*) };
                }
                if isa.has_avx2() {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}
pub(crate) use wide;

wide! {
    pub(super) fn widen_row(x: &[bf16], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }

    fn narrow_row(x: &[f32], out: &mut [bf16]) {
        for (out, x) in out.iter_mut().zip(x) {
            let bits = x.to_bits();
            let even = bits >> 16 & 1;
            let rounded = bits.wrapping_add(0x7fff + even) >> 16;
            // What is not a number stays that, whatever its low bits are.
            let bits = if x.is_nan() { bits >> 16 | 0x40 } else { rounded };
            *out = bf16::from_bits(bits as u16);
        }
    }
}

/// `eˣ` within 2 units in the last place, without a branch.
///
/// 0 where the result would be subnormal, 2.4e38 for all that is above 88.37; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_54;
    const HIGHEST: f32 = 88.37;
    // Adding 1.5 · 2²³ rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that its multiples are exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let bounded = x.clamp(LOWEST, HIGHEST);
    let shifted = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = bounded - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23)); // 2ⁿ
    let value = (p * r * r + r + 1.0) * power;
    if x < LOWEST { 0.0 } else { value }
}

/// Sum over a row of `term(x)`, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (blocks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += term(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += term(*x);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_real_one() {
        for i in -880_000..=883_000 {
            let x = i as f32 * 1e-4;
            let (near, real) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((near - real).abs() <= 1.3e-38 + real * 2.4e-7, "exp({x}) = {near}, not {real}");
        }
        assert_eq!(exp(-1e4), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e9).is_finite() && exp(1e9) > 2e38);
    }

    #[test]
    fn rounding_is_that_of_the_16_bit_type() {
        let special =
            [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-42];
        let mut bits = 12_345u32;
        let mut next = || {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(bits)
        };
        let ties = (0..1000u32).map(|i| f32::from_bits(0x3f80_8000 + (i << 15)));
        let x: Vec<f32> = special.into_iter().chain(ties).chain((0..100_000).map(|_| next())).collect();
        let x = Tensor::new(x, &candle_core::Device::Cpu).unwrap();
        let bits = |t: &Tensor| -> Vec<u16> {
            t.to_vec1::<bf16>().unwrap().into_iter().map(bf16::to_bits).collect()
        };
        let ours = narrow(x.clone(), DType::BF16).unwrap();
        assert!(bits(&ours) == bits(&x.to_dtype(DType::BF16).unwrap()));
        let wide =
            |t: Tensor| -> Vec<u32> { t.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect() };
        assert!(wide(widen(&ours).unwrap()) == wide(ours.to_dtype(DType::F32).unwrap()));
    }

    #[test]
    fn sums_take_every_value() {
        for n in [0usize, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum(&x, |x| x), (n * n.saturating_sub(1) / 2) as f32);
        }
    }
}
