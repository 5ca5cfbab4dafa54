//! How stored numbers are encoded, and how they become f32.

use std::{borrow::Cow, fmt};

use candle_core::{CpuStorage, quantized::GgmlDType};
use half::{bf16, f16};
use safetensors::Dtype;

/// The number format of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Encoding {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// 16-bit floats with f32's range.
    Bf16,
    /// 8-bit floats with 4 bits of exponent and no infinities.
    F8E4M3,
    /// 8-bit floats with 5 bits of exponent.
    F8E5M2,
    /// Blocks of a GGUF file.
    Ggml(GgmlDType),
    /// Something that isn't read here.
    Other(Dtype),
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("F32"),
            Self::F16 => f.write_str("F16"),
            Self::Bf16 => f.write_str("BF16"),
            Self::F8E4M3 => f.write_str("F8_E4M3"),
            Self::F8E5M2 => f.write_str("F8_E5M2"),
            Self::Ggml(dtype) => write!(f, "{dtype:?}"),
            Self::Other(dtype) => write!(f, "{dtype}"),
        }
    }
}

impl From<Dtype> for Encoding {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            Dtype::F8_E4M3 => Self::F8E4M3,
            Dtype::F8_E5M2 => Self::F8E5M2,
            other => Self::Other(other),
        }
    }
}

impl From<GgmlDType> for Encoding {
    fn from(dtype: GgmlDType) -> Self {
        match dtype {
            GgmlDType::F32 => Self::F32,
            GgmlDType::F16 => Self::F16,
            GgmlDType::BF16 => Self::Bf16,
            other => Self::Ggml(other),
        }
    }
}

impl Encoding {
    /// Values that are stored together.
    #[must_use]
    pub fn block(self) -> usize {
        match self {
            Self::Ggml(dtype) => dtype.block_size(),
            _ => 1,
        }
    }

    /// Bytes of one block.
    pub(super) fn block_bytes(self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::F8E4M3 | Self::F8E5M2 => Some(1),
            Self::Ggml(dtype) => Some(dtype.type_size()),
            Self::Other(_) => None,
        }
    }

    /// Bytes of `count` values in whole blocks; nothing if the format isn't known or the number overflows.
    #[must_use]
    pub fn bytes_of(self, count: usize) -> Option<usize> {
        count.is_multiple_of(self.block()).then_some(())?;
        (count / self.block()).checked_mul(self.block_bytes()?)
    }

    /// Whether it takes fewer than 16 bits a value.
    #[must_use]
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::F8E4M3 | Self::F8E5M2 | Self::Ggml(_))
    }

    /// Decodes whole blocks into as many values as `out` has. `bytes` must be aligned as the format wants it, which
    /// every reader of files sees to.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) -> candle_core::Result<()> {
        fn each<const N: usize>(bytes: &[u8], out: &mut [f32], read: impl Fn([u8; N]) -> f32) {
            let (words, _) = bytes.as_chunks::<N>();
            out.iter_mut().zip(words).for_each(|(to, from)| *to = read(*from));
        }
        match self {
            Self::F32 => each(bytes, out, f32::from_le_bytes),
            Self::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            Self::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F8E4M3 => each(bytes, out, |[b]| E4M3[b as usize]),
            Self::F8E5M2 => each(bytes, out, |[b]| f16::from_bits(u16::from(b) << 8).to_f32()),
            Self::Ggml(dtype) => match dtype.from_data(Cow::Borrowed(bytes)).dequantize(out.len())? {
                CpuStorage::F32(values) => out.copy_from_slice(&values),
                _ => candle_core::bail!("{dtype:?} blocks don't become f32"),
            },
            Self::Other(dtype) => candle_core::bail!("{dtype} is not read here"),
        }
        Ok(())
    }
}

/// The value of each byte of an E4M3 number without infinities.
static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (exponent, mantissa) = ((byte >> 3) & 15, (byte & 7) as f32);
        let magnitude = match exponent {
            0 => mantissa / 512.0,
            // The top pattern is no number.
            15 if byte & 7 == 7 => f32::NAN,
            _ => (1.0 + mantissa / 8.0) * power_of_two(exponent as i32 - 7),
        };
        table[byte] = if byte & 0x80 == 0 { magnitude } else { -magnitude };
        byte += 1;
    }
    table
};

const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((127 + exponent) as u32) << 23)
}

/// The largest E4M3 number.
pub(super) const E4M3_MAX: f32 = 448.0;

/// The nearest E4M3 number, ties to even; beyond the largest it stays there.
#[must_use]
pub(super) fn to_e4m3(value: f32) -> u8 {
    let sign = u8::from(value.is_sign_negative()) << 7;
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(E4M3_MAX);
    // Steps are 2⁻⁹ up to 2⁻⁶ and an eighth of the power of two from there on.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * power_of_two(3 - exponent)).round_ties_even() as u8;
    // Below 8 steps it has no leading one; 16 steps are 8 of the next exponent, which the sum gets right.
    sign | if steps < 8 { steps } else { ((exponent + 7) as u8) * 8 + (steps - 8) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_e4m3_number_is_its_own_nearest() {
        for byte in 0..=255u8 {
            let value = E4M3[byte as usize];
            if !value.is_nan() {
                assert_eq!(to_e4m3(value), byte, "{value}");
            }
        }
        assert_eq!((E4M3[0x7e], E4M3[1], E4M3[0x38]), (448.0, 1.0 / 512.0, 1.0));
    }

    #[test]
    fn the_nearest_e4m3_number_is_found() {
        let numbers: Vec<f32> = (0..0x7f).map(|byte| E4M3[byte]).collect();
        for step in 0..4000 {
            let value = 0.0003 * 1.004f32.powi(step);
            let best = numbers.iter().copied().min_by(|a, b| (a - value).abs().total_cmp(&(b - value).abs()));
            let found = E4M3[to_e4m3(value) as usize];
            assert!((found - value).abs() <= (best.unwrap() - value).abs(), "{value}: {found} {best:?}");
            assert_eq!(E4M3[to_e4m3(-value) as usize], -found);
        }
        assert!(E4M3[to_e4m3(f32::NAN) as usize].is_nan());
    }
}
