//! `rope`: where tokens are in time and space, as angles.

use std::f32::consts::PI;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::{error::Result, nn::rope::Rotary};

/// Seconds, rows and columns in pixels: what the coordinates are measured against.
const BASE: [f32; 3] = [20.0, 2048.0, 2048.0];
/// The highest frequency over the lowest.
const THETA: f64 = 10_000.0;

/// The angles that channels are turned by at a place.
pub struct Positions {
    /// Shared by the three axes; `dim / 6` of them.
    frequencies: Vec<f32>,
    /// Pairs in front that aren't turned, because `dim` is no multiple of 6.
    still: usize,
}

impl Positions {
    /// For `dim` channels, all heads together; an even number.
    #[must_use]
    pub fn new(dim: usize) -> Self {
        let n = dim / 6;
        Self { frequencies: (0..n).map(|i| frequency(i, n)).collect(), still: dim % 6 / 2 }
    }

    /// `coords` is `[3, L]` or `[B, 3, L]`: second, row and column of each token.
    pub fn table(&self, coords: &Tensor, device: &Device) -> Result<Rotary> {
        let coords = if coords.rank() == 2 { coords.unsqueeze(0)? } else { coords.clone() };
        let (b, _, l) = coords.dims3()?;
        let coords = coords.to_dtype(DType::F32)?.to_vec3::<f32>()?;
        let pairs = self.still + 3 * self.frequencies.len();
        let mut angles = vec![0f32; b * l * pairs];
        if pairs > 0 {
            angles.par_chunks_exact_mut(pairs).enumerate().for_each(|(token, angles)| {
                let clip = &coords[token / l];
                // 0..1 becomes -1..1.
                let place: [f32; 3] =
                    std::array::from_fn(|axis| clip[axis][token % l] / BASE[axis] * 2.0 - 1.0);
                let turned = angles[self.still..].chunks_exact_mut(3);
                for (angles, frequency) in turned.zip(&self.frequencies) {
                    for (angle, place) in angles.iter_mut().zip(place) {
                        *angle = frequency * place;
                    }
                }
            });
        }
        Rotary::from_angles(&angles, b, l, pairs, device)
    }
}

/// Frequency `i` of `n`: π/2 · 10000^(i / (n − 1)).
///
/// Every step rounds to f32 as the reference's does: it counts the second half of the exponents down from 1
/// with a fused multiply-add, and phases go up to 15,000, where one more rounding is seen in the third digit.
fn frequency(i: usize, n: usize) -> f32 {
    let step = 1.0 / (n.max(2) - 1) as f32;
    let exponent = if n == 1 {
        0.0
    } else if i < n / 2 {
        step * i as f32
    } else {
        (-step).mul_add((n - i - 1) as f32, 1.0)
    };
    THETA.powf(f64::from(exponent)) as f32 * PI / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_run_from_a_quarter_turn_to_theta_times_that() {
        let frequencies = Positions::new(64).frequencies;
        assert_eq!(frequencies.len(), 10);
        assert_eq!(frequencies[0], PI / 2.0);
        assert_eq!(frequencies[9], 10_000.0 * PI / 2.0);
        assert!(frequencies.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Positions::new(6).frequencies, [PI / 2.0]);
        assert_eq!(Positions::new(4).still, 2);
    }
}
