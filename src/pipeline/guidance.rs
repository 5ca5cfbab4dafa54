//! Classifier-free guidance.

use candle_core::{DType, Tensor};

use crate::error::Result;

/// How strongly the prompt pulls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// 1 or less: the prompt alone, without a negative branch.
    pub scale: f64,
    /// How much of the guided velocity is brought back to the spread of the unguided one, 0..1.
    pub rescale: f64,
}

impl Guidance {
    /// Whether there is a negative branch.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.scale > 1.0
    }

    /// Joins the velocities under the negative prompt and under the prompt, `[1, L, D]`, f32.
    pub fn join(&self, negative: &Tensor, positive: &Tensor) -> Result<Tensor> {
        let guided = (negative + ((positive - negative)? * self.scale)?)?;
        if self.rescale <= 0.0 {
            return Ok(guided);
        }
        let factor = (deviation(positive)? / deviation(&guided)?) as f32;
        let rescaled = (&guided * f64::from(factor))?;
        Ok(((rescaled * self.rescale)? + (guided * (1.0 - self.rescale))?)?)
    }
}

/// Standard deviation of all values, over n − 1, summed in f64.
fn deviation(x: &Tensor) -> Result<f64> {
    let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    Ok((squares / (n - 1.0)).sqrt())
}
