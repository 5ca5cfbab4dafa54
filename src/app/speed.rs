//! How fast this machine multiplies, measured for a moment.

use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use serde::Serialize;

use crate::{error::Result, models::api::Placement};

/// How long a measurement takes.
const MOMENT: Duration = Duration::from_millis(200);
/// Rows, columns and depth of the products that are timed: those of a small clip's tokens in a middling layer.
const SIDES: (usize, usize, usize) = (512, 1024, 1024);

/// What a placement does in a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Speed {
    /// Multiplications and additions in products of matrices.
    pub flops: f64,
}

impl Speed {
    /// Times products of matrices for a fifth of a second. What else the machine does at the moment takes its share of
    /// them, as it will of the render.
    pub fn measure(place: &Placement) -> Result<Self> {
        let (rows, columns, depth) = SIDES;
        // A CPU computes in f32 whatever its weights are kept in.
        let dtype = if place.device.is_cpu() { DType::F32 } else { place.dtype };
        let ones = |shape| Tensor::ones(shape, DType::F32, &place.device)?.affine(0.01, 0.0)?.to_dtype(dtype);
        let (a, b) = (ones((rows, depth))?, ones((depth, columns))?);
        let once = || -> Result<Duration> {
            place.device.synchronize()?;
            let clock = Instant::now();
            let product = a.matmul(&b)?;
            place.device.synchronize()?;
            drop(product);
            Ok(clock.elapsed())
        };
        // The first one wakes threads and loads kernels.
        once()?;
        let (mut time, mut products) = (Duration::ZERO, 0u32);
        while time < MOMENT {
            time += once()?;
            products += 1;
        }
        let operations = 2.0 * (rows * columns * depth) as f64 * f64::from(products);
        Ok(Self { flops: operations / time.as_secs_f64().max(1e-9) })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_machine_has_a_speed() {
        let speed = Speed::measure(&Placement { device: Device::Cpu, dtype: DType::F32 }).unwrap();
        assert!((1e8..1e15).contains(&speed.flops), "{speed:?}");
    }
}
