//! One step of the flow-matching Euler solver, in f32.

use candle_core::{Device, Tensor};

use super::sigmas::{Levels, Schedule};
use crate::{error::Result, models::api::Timestep};

/// The noise levels that a step runs between.
#[derive(Debug, Clone)]
pub enum Span {
    /// All tokens alike.
    Shared {
        /// Where the step starts.
        now: f32,
        /// Where it ends.
        next: f32,
    },
    /// `[1, L, 1]` each, f32.
    PerToken {
        /// Where the step starts.
        now: Tensor,
        /// Where it ends.
        next: Tensor,
    },
}

impl Schedule {
    /// What step number `step` runs between, for tokens that are at `timestep`.
    pub fn span(&self, step: usize, timestep: &Timestep) -> Result<Span> {
        match (self.levels, timestep) {
            (Levels::ByStep, _) => Ok(Span::Shared { now: self.sigmas[step], next: self.sigmas[step + 1] }),
            (Levels::ByTime(scale), Timestep::Shared(t)) => {
                let now = t / scale;
                Ok(Span::Shared { now, next: self.below(now) })
            }
            (Levels::ByTime(scale), Timestep::PerToken(times)) => {
                let (_, l) = times.dims2()?;
                let now: Vec<f32> =
                    times.flatten_all()?.to_vec1()?.into_iter().map(|t: f32| t / scale).collect();
                let next = now.iter().map(|&level| self.below(level)).collect();
                let column = |values: Vec<f32>| {
                    Tensor::from_vec(values, (1, l, 1), &Device::Cpu)?.to_device(times.device())
                };
                Ok(Span::PerToken { now: column(now)?, next: column(next)? })
            }
        }
    }

    /// The highest noise level of the schedule that is clearly below `level`.
    fn below(&self, level: f32) -> f32 {
        self.sigmas.iter().copied().filter(|&sigma| sigma < level - 1e-6).fold(0.0, f32::max)
    }
}

impl Span {
    /// Moves `sample` along `velocity`, both `[1, L, D]`, f32, to the end of the step.
    pub fn advance(&self, sample: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        let change = match self {
            Self::Shared { now, next } => (velocity * f64::from(next - now))?,
            Self::PerToken { now, next } => velocity.broadcast_mul(&(next - now)?)?,
        };
        Ok((sample + change)?)
    }

    /// What `velocity` says that `sample` becomes without its noise.
    pub fn clean(&self, sample: &Tensor, velocity: &Tensor) -> Result<Tensor> {
        let noise = match self {
            Self::Shared { now, .. } => (velocity * f64::from(*now))?,
            Self::PerToken { now, .. } => velocity.broadcast_mul(now)?,
        };
        Ok((sample - noise)?)
    }

    /// The stochastic step: the clean estimate with fresh `noise` of the level at the step's end.
    pub fn renoise(&self, sample: &Tensor, velocity: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let clean = self.clean(sample, velocity)?;
        Ok(match self {
            Self::Shared { next, .. } => ((clean * f64::from(1.0 - next))? + (noise * f64::from(*next))?)?,
            Self::PerToken { next, .. } => {
                let kept = next.affine(-1.0, 1.0)?;
                (clean.broadcast_mul(&kept)? + noise.broadcast_mul(next)?)?
            }
        })
    }
}
