//! Guidance: away from a negative prompt, and away from what the model gives without some of its blocks.

use candle_core::{DType, Tensor};

use super::sigmas::Schedule;
use crate::{
    error::{Error, Result},
    models::api::{Guidance, PerStep, Skip, Stg},
};

/// How one step is guided.
#[derive(Debug, Clone, PartialEq)]
pub struct StepGuidance {
    /// 1 or less: the prompt alone, without a negative branch.
    pub scale: f64,
    /// How much of the guided velocity is brought back to the spread of the unguided one, 0..1.
    pub rescale: f64,
    /// Whether the negative branch is shrunk to its projection on the positive one first.
    pub star: bool,
    /// Scale of spatio-temporal guidance; 0 is none.
    pub stg: f64,
    /// As `rescale`, after spatio-temporal guidance.
    pub stg_rescale: f64,
    /// What spatio-temporal guidance leaves out.
    pub skip: Skip,
}

impl StepGuidance {
    /// Whether there is a negative branch.
    #[must_use]
    pub fn has_negative(&self) -> bool {
        self.scale > 1.0
    }

    /// Whether there is a branch with blocks left out.
    #[must_use]
    pub fn has_perturbed(&self) -> bool {
        self.stg > 0.0
    }

    /// Joins the velocities of a step, `[1, L, D]`, f32: under the prompt, and under the negative prompt and with
    /// blocks left out where there are such branches.
    pub fn join(
        &self,
        positive: Tensor,
        negative: Option<&Tensor>,
        perturbed: Option<&Tensor>,
    ) -> Result<Tensor> {
        let guided = match negative {
            Some(negative) => self.away_from(negative, &positive)?,
            None => positive.clone(),
        };
        let Some(perturbed) = perturbed else { return Ok(guided) };
        let guided = (guided + ((&positive - perturbed)? * self.stg)?)?;
        rescaled(guided, &positive, self.stg_rescale)
    }

    fn away_from(&self, negative: &Tensor, positive: &Tensor) -> Result<Tensor> {
        let shrunk = if self.star { Some((negative * projection(positive, negative)?)?) } else { None };
        let negative = shrunk.as_ref().unwrap_or(negative);
        let guided = (negative + ((positive - negative)? * self.scale)?)?;
        rescaled(guided, positive, self.rescale)
    }
}

/// Brings `share` of `guided` to the spread of `positive`.
fn rescaled(guided: Tensor, positive: &Tensor, share: f64) -> Result<Tensor> {
    if share <= 0.0 {
        return Ok(guided);
    }
    let factor = (deviation(positive)? / deviation(&guided)?) as f32;
    let rescaled = (&guided * f64::from(factor))?;
    Ok(((rescaled * share)? + (guided * (1.0 - share))?)?)
}

/// How much of `negative` comes nearest to `positive`, summed in f64.
fn projection(positive: &Tensor, negative: &Tensor) -> Result<f64> {
    let (positive, negative) = (values(positive)?, values(negative)?);
    let pairs = positive.iter().zip(&negative);
    let dot: f64 = pairs.map(|(&p, &n)| f64::from(p) * f64::from(n)).sum();
    let square: f64 = negative.iter().map(|&n| f64::from(n).powi(2)).sum();
    Ok(f64::from((dot / (square + 1e-8)) as f32))
}

/// Standard deviation of all values, over n − 1, summed in f64.
fn deviation(x: &Tensor) -> Result<f64> {
    let values = values(x)?;
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    Ok((squares / (n - 1.0)).sqrt())
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// How each step of a pass is guided.
#[derive(Debug, Clone, PartialEq)]
pub struct GuidancePlan(Vec<StepGuidance>);

impl GuidancePlan {
    /// The plan for a schedule. `blocks` is how many blocks the denoiser has.
    ///
    /// # Errors
    /// [`Error::Invalid`] for scales that are no numbers from 0 on, for lists of another length than the levels (or
    /// the steps) are, and for blocks that aren't there.
    pub fn new(guidance: &Guidance, schedule: &Schedule, blocks: usize) -> Result<Self> {
        check(guidance, schedule.steps(), blocks)?;
        let levels: Vec<f32> = guidance.levels.iter().map(|&level| level as f32).collect();
        let steps = (0..schedule.steps()).map(|step| {
            let reached = |level: &f32| *level <= schedule.sigmas[step];
            let entry = match levels.len() {
                0 => step,
                n => levels.iter().position(reached).unwrap_or(n - 1),
            };
            let stg = &guidance.stg;
            let at = step as f64 / schedule.steps() as f64;
            let applies = guidance.interval.is_none_or(|[from, to]| (from..to).contains(&at));
            StepGuidance {
                scale: if applies { number(&guidance.scale, entry) } else { 1.0 },
                rescale: guidance.rescale,
                star: guidance.star,
                stg: if applies { number(&stg.scale, entry) } else { 0.0 },
                stg_rescale: number(&stg.rescale, entry),
                skip: Skip { blocks: stg.blocks.get(entry).cloned().unwrap_or_default(), mode: stg.mode },
            }
        });
        Ok(Self(steps.collect()))
    }

    /// Step number `step`.
    #[must_use]
    pub fn at(&self, step: usize) -> &StepGuidance {
        &self.0[step]
    }

    /// Branches of all steps from `start` on.
    #[must_use]
    pub fn calls_from(&self, start: usize) -> usize {
        let calls =
            |step: &StepGuidance| 1 + usize::from(step.has_negative()) + usize::from(step.has_perturbed());
        self.0.iter().skip(start).map(calls).sum()
    }

    /// Whether some step has a negative branch.
    #[must_use]
    pub fn has_negative(&self) -> bool {
        self.0.iter().any(StepGuidance::has_negative)
    }
}

fn number(values: &PerStep<f64>, entry: usize) -> f64 {
    values.get(entry).copied().unwrap_or_default()
}

fn check(guidance: &Guidance, steps: usize, blocks: usize) -> Result<()> {
    let Guidance { scale, rescale, interval, levels, stg, .. } = guidance;
    let Stg { scale: stg_scale, rescale: stg_rescale, blocks: skipped, .. } = stg;
    let one = PerStep::All(*rescale);
    let numbers = [
        ("guidance", scale, None),
        ("guidance rescale", &one, Some(1.0)),
        ("STG scale", stg_scale, None),
        ("STG rescale", stg_rescale, Some(1.0)),
    ];
    for (name, values, most) in numbers {
        for value in values.values() {
            at_least(name, *value, most)?;
        }
    }
    if let Some([from, to]) = interval
        && !(0.0 <= *from && from < to && *to <= 1.0)
    {
        let why = "expected two shares of the steps, rising, from 0 to 1";
        return Err(Error::invalid(format!("guidance interval {from}:{to}"), why));
    }
    for level in levels {
        at_least("guidance level", *level, Some(1.0))?;
    }
    let (expected, of) = match levels.len() {
        0 => (steps, "steps"),
        n => (n, "guidance levels"),
    };
    let lengths = [
        ("guidance", scale.len()),
        ("STG scale", stg_scale.len()),
        ("STG rescale", stg_rescale.len()),
        ("STG blocks", skipped.len()),
    ];
    for (name, found) in lengths.into_iter().filter_map(|(name, len)| Some((name, len?))) {
        if found != expected {
            return Err(Error::invalid(
                format!("{name} list of {found}"),
                format!("expected one entry for each of the {expected} {of}"),
            ));
        }
    }
    if let Some(block) = skipped.values().flatten().find(|block| **block >= blocks)
        && stg_scale.values().any(|scale| *scale > 0.0)
    {
        return Err(Error::invalid(
            format!("STG block {block}"),
            format!("the model has blocks 0 to {}", blocks.saturating_sub(1)),
        ));
    }
    Ok(())
}

/// Refuses numbers that are below 0, above `most`, or no numbers.
pub(super) fn at_least(name: &str, value: f64, most: Option<f64>) -> Result<()> {
    if value.is_finite() && value >= 0.0 && most.is_none_or(|most| value <= most) {
        return Ok(());
    }
    let why = match most {
        Some(most) => format!("expected a number from 0 to {most}"),
        None => "expected a number from 0 on".into(),
    };
    Err(Error::invalid(format!("{name} {value}"), why))
}

#[cfg(test)]
#[path = "guidance_tests.rs"]
mod tests;
