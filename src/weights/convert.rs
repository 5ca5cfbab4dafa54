//! Stored bytes → numbers of the wanted type, all cores at once, with a look at every value.

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Values that one core converts at a time.
const CHUNK: usize = 1 << 16;

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

/// Makes a tensor of `shape` from little-endian `bytes`.
pub(super) fn tensor(
    bytes: &[u8],
    stored: Dtype,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor, Refusal> {
    match dtype {
        DType::F32 => to::<f32>(bytes, stored, shape, device),
        DType::F16 => to::<f16>(bytes, stored, shape, device),
        DType::BF16 => to::<bf16>(bytes, stored, shape, device),
        other => Err(candle_core::Error::UnsupportedDTypeForOp(other, "load").into()),
    }
}

fn to<T: WithDType + Wanted>(
    bytes: &[u8],
    stored: Dtype,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor, Refusal> {
    let values: Vec<T> = match stored {
        Dtype::F32 => values(bytes, |b: [u8; 4]| f32::from_le_bytes(b)),
        Dtype::F16 => values(bytes, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => values(bytes, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
        _ => return Err(Refusal::Dtype),
    }
    .ok_or(Refusal::NotFinite)?;
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// A type that weights are kept in; each of the stored types passes through f32 exactly.
trait Wanted: Copy + Send + Sync {
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

/// `None` if a value is not finite.
fn values<T: Wanted, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32 + Sync) -> Option<Vec<T>> {
    let mut values = vec![T::ZERO; bytes.len() / N];
    let finite = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N)).map(|(to, from)| {
        let (words, _) = from.as_chunks::<N>();
        let mut finite = true;
        for (to, from) in to.iter_mut().zip(words) {
            let value = read(*from);
            finite &= value.is_finite();
            *to = T::from_f32(value);
        }
        finite
    });
    finite.reduce(|| true, |a, b| a & b).then_some(values)
}
