//! Stored bytes → numbers of the wanted type, all cores at once, with a look at every value.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;

use super::encoding::Encoding;

/// Values that one core converts at a time: whole blocks of every format.
const CHUNK: usize = 1 << 14;

/// Why a tensor could not be converted.
pub(super) enum Refusal {
    /// It is stored in a type that isn't read here.
    Dtype,
    /// It holds NaN or infinity.
    NotFinite,
    /// candle refused.
    Candle(candle_core::Error),
}

impl From<candle_core::Error> for Refusal {
    fn from(error: candle_core::Error) -> Self {
        Self::Candle(error)
    }
}

/// Values as they are stored.
#[derive(Clone, Copy)]
pub(super) struct Raw<'a> {
    pub bytes: &'a [u8],
    pub encoding: Encoding,
    /// What values are multiplied by: nothing, one number, or one for each row.
    pub scale: &'a [f32],
    /// Values of a row.
    pub row: usize,
}

/// Makes a tensor of `shape`.
pub(super) fn tensor(
    raw: Raw<'_>,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor, Refusal> {
    let count = shape.iter().product();
    match dtype {
        DType::F32 => to::<f32>(raw, count, shape, device),
        DType::F16 => to::<f16>(raw, count, shape, device),
        DType::BF16 => to::<bf16>(raw, count, shape, device),
        other => Err(candle_core::Error::UnsupportedDTypeForOp(other, "load").into()),
    }
}

fn to<T: WithDType + Wanted>(
    raw: Raw<'_>,
    count: usize,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor, Refusal> {
    Ok(Tensor::from_vec(values::<T>(raw, count)?, shape, device)?)
}

/// A type that weights are kept in; each of the stored types passes through f32 exactly.
pub(super) trait Wanted: Copy + Send + Sync {
    const ZERO: Self;
    fn from_f32(value: f32) -> Self;
}

impl Wanted for f32 {
    const ZERO: Self = 0.0;
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Wanted for f16 {
    const ZERO: Self = f16::ZERO;
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

impl Wanted for bf16 {
    const ZERO: Self = bf16::ZERO;
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}

/// `count` values; refused if one is not finite.
pub(super) fn values<T: Wanted>(raw: Raw<'_>, count: usize) -> Result<Vec<T>, Refusal> {
    let chunk_bytes = raw.encoding.bytes_of(CHUNK).ok_or(Refusal::Dtype)?;
    if raw.encoding.bytes_of(count) != Some(raw.bytes.len()) {
        return Err(Refusal::Dtype);
    }
    let mut values = vec![T::ZERO; count];
    let chunks = values.par_chunks_mut(CHUNK).zip(raw.bytes.par_chunks(chunk_bytes)).enumerate();
    chunks.try_for_each(|(index, (to, bytes))| {
        let wide = &mut vec![0f32; to.len()];
        raw.decode(index * CHUNK, bytes, wide)?;
        let mut finite = true;
        for (to, value) in to.iter_mut().zip(wide) {
            finite &= value.is_finite();
            *to = T::from_f32(*value);
        }
        if finite { Ok(()) } else { Err(Refusal::NotFinite) }
    })?;
    Ok(values)
}

/// Decodes into `out` on the thread that asks; refused if a value is not finite.
pub(super) fn fill(raw: Raw<'_>, out: &mut [f32]) -> Result<(), Refusal> {
    if raw.encoding.bytes_of(out.len()) != Some(raw.bytes.len()) {
        return Err(Refusal::Dtype);
    }
    raw.decode(0, raw.bytes, out)?;
    let finite = out.iter().fold(true, |finite, value| finite & value.is_finite());
    if finite { Ok(()) } else { Err(Refusal::NotFinite) }
}

/// Looks at every value and keeps none; refused if one is not finite.
pub(super) fn check(raw: Raw<'_>) -> Result<(), Refusal> {
    let chunk_bytes = raw.encoding.bytes_of(CHUNK).ok_or(Refusal::Dtype)?;
    let block_bytes = chunk_bytes / (CHUNK / raw.encoding.block());
    raw.bytes.par_chunks(chunk_bytes).enumerate().try_for_each(|(index, bytes)| {
        let wide = &mut vec![0f32; bytes.len() / block_bytes * raw.encoding.block()];
        raw.decode(index * CHUNK, bytes, wide)?;
        if wide.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(Refusal::NotFinite) }
    })
}

impl Raw<'_> {
    /// Decodes values of which the first is number `start`, and multiplies them by their factors.
    fn decode(&self, start: usize, bytes: &[u8], out: &mut [f32]) -> Result<(), Refusal> {
        self.encoding.decode(bytes, out)?;
        match *self.scale {
            [] => {}
            [scale] => out.iter_mut().for_each(|value| *value *= scale),
            _ => {
                let factor = |place: usize| self.scale[(start + place) / self.row];
                out.iter_mut().enumerate().for_each(|(place, value)| *value *= factor(place));
            }
        }
        Ok(())
    }
}
