//! How much memory weights take once they are loaded.

use super::{encoding::Encoding, files::Weights, loader::stays_packed};
use crate::device::Placement;

/// What a set of tensors takes once it is loaded, on a CPU and elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Residency {
    cpu: Share,
    elsewhere: Share,
}

/// Tensors of one kind of device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    /// Bytes of those that stay as they are stored.
    stored: u64,
    /// Values of those that become numbers of the wanted type.
    values: u64,
}

impl Share {
    fn add(&mut self, stored: bool, bytes: usize, values: usize) {
        if stored {
            self.stored += bytes as u64;
        } else {
            self.values += values as u64;
        }
    }
}

impl Residency {
    /// Bytes at a place. On a CPU, what stays in its mapped file counts, since every pass reads it.
    #[must_use]
    pub fn bytes(&self, place: &Placement) -> u64 {
        let share = if place.device.is_cpu() { self.cpu } else { self.elsewhere };
        share.stored + share.values * place.dtype.size_in_bytes() as u64
    }
}

impl Weights {
    /// What the tensors below a prefix take once they are loaded, by the rules of [`super::Loader::matrix`].
    #[must_use]
    pub fn residency(&self, below: &str) -> Residency {
        let mut residency = Residency::default();
        for key in self.keys().filter(|key| key.starts_with(below)) {
            let Some((shape, encoding)) = self.shape(key).zip(self.encoding(key)) else { continue };
            let values: usize = shape.iter().product();
            let bytes = encoding.bytes_of(values).unwrap_or_default();
            let matrix = shape.len() == 2 && key.ends_with("weight");
            residency.cpu.add(matrix && stays_packed(encoding, values), bytes, values);
            residency.elsewhere.add(matrix && matches!(encoding, Encoding::Ggml(_)), bytes, values);
        }
        residency
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn small_matrices_are_unpacked_and_large_ones_stay() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap();
        let tensors = HashMap::from([
            ("a.weight".to_owned(), zeros(&[2048, 2048])),
            ("b.weight".to_owned(), zeros(&[8, 8])),
            ("b.bias".to_owned(), zeros(&[8])),
        ]);
        let weights = Weights::from_tensors("toy", tensors);
        let place = |dtype| Placement { device: Device::Cpu, dtype };
        let large = 2048 * 2048 * 2;
        assert_eq!(weights.residency("").bytes(&place(DType::F32)), large + 72 * 4);
        assert_eq!(weights.residency("").bytes(&place(DType::BF16)), large + 72 * 2);
        assert_eq!(weights.residency("b.").bytes(&place(DType::F32)), 72 * 4);
    }
}
