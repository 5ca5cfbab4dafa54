//! From what a user asks of the sampling to the passes of a render.

use std::{path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    app::decode::DecodeChoice,
    error::{Error, Result},
    models::{
        api::{
            DecodeOptions, Defaults, Geometry, Guidance, Identified, ModelInfo, Pass, PerStep, SkipMode,
            UpsamplerInfo,
        },
        catalog::{Recipe, catalog},
    },
    video::VideoSpec,
};

/// A second pass where nothing is published: the last 4 of 10 steps.
const REFINE: (usize, usize) = (10, 6);

/// Whose way of sampling a render begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RecipeChoice {
    /// The one of the published checkpoint that the model looks like, by its headers.
    #[default]
    Recognised,
    /// The one of this name in the catalog.
    Named(String),
    /// None: what the model's pipeline class does.
    Plain,
}

impl FromStr for RecipeChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Recognised),
            "none" => Ok(Self::Plain),
            name => catalog().recipe(name).map(|(name, _)| Self::Named(name.to_owned())),
        }
    }
}

/// What a user asks of the sampling. Lists have an entry for each pass: of schedules the first one is the first pass's,
/// of guidance the last one holds for all passes after it, too.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingChoice {
    /// What the passes begin with.
    pub recipe: RecipeChoice,
    /// Files or folders of latent upsamplers: each makes one more pass.
    pub upsamplers: Vec<PathBuf>,
    /// Denoising steps.
    pub steps: Vec<usize>,
    /// Noise levels by hand, instead of `steps`.
    pub sigmas: Vec<Vec<f32>>,
    /// Timesteps by hand, instead of `steps`.
    pub timesteps: Vec<Vec<f32>>,
    /// Shares of the schedule that are done: 1 is all of it, from pure noise.
    pub strength: Vec<f64>,
    /// Whether steps renoise their estimate.
    pub stochastic: Option<bool>,
    /// Classifier-free guidance.
    pub guidance: Vec<PerStep<f64>>,
    /// Noise levels that lists are read by.
    pub guidance_levels: Vec<Vec<f64>>,
    /// Share of each pass in which there is guidance.
    pub guidance_interval: Option<[f64; 2]>,
    /// Guidance rescale, 0..1.
    pub guidance_rescale: Vec<f64>,
    /// Whether the negative branch is shrunk to its projection on the positive one.
    pub guidance_star: Option<bool>,
    /// Scale of spatio-temporal guidance.
    pub stg_scale: Vec<PerStep<f64>>,
    /// Its rescale, 0..1.
    pub stg_rescale: Vec<PerStep<f64>>,
    /// Blocks that it skips.
    pub stg_blocks: Vec<PerStep<Vec<usize>>>,
    /// What it skips in them.
    pub stg_mode: Option<SkipMode>,
    /// Threshold of the step cache, above 0 and up to 1.
    pub cache: Option<f64>,
    /// How far upsampled latents are brought to the look of the ones before, 0..1.
    pub adain: Option<f64>,
    /// How much strong upsampled latents are pressed together, 0..1.
    pub tone_map: Option<f64>,
    /// The passes of an earlier render, as they are; nothing else here is heard then but the upsamplers.
    pub exact: Option<Vec<Pass>>,
}

/// One pass, as a recipe keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassRecipe {
    /// Size, length and rate of the clip in this pass.
    #[serde(flatten)]
    pub spec: VideoSpec,
    /// Schedule and guidance.
    pub sampling: Pass,
    /// What made the latents larger before it: its path as it was given, or its name if that was a whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upsampler: Option<PathBuf>,
}

/// What was found out about a model's sampling.
pub(super) struct Begun {
    /// The recipe from the catalog, if there is one.
    pub recipe: Option<&'static Recipe>,
    /// What the user should hear.
    pub warning: Option<String>,
    passes: Vec<Pass>,
}

impl Begun {
    /// What the model does when nobody says anything.
    pub fn defaults(&self, own: &Defaults) -> Defaults {
        let Some(recipe) = self.recipe else { return own.clone() };
        Defaults {
            width: recipe.width,
            height: recipe.height,
            frames: recipe.frames,
            fps: recipe.fps,
            max_sequence_length: recipe.max_sequence_length,
            negative_prompt: recipe.negative_prompt.clone(),
            ..own.clone()
        }
    }

    /// How it decodes, as far as nobody says otherwise.
    pub fn decoding(&self, choice: &DecodeChoice) -> DecodeOptions {
        let timestep = choice.timestep.or(self.recipe.map(|recipe| recipe.decode_timestep));
        // Without a share of its own, noise goes with the timestep that was asked for.
        let shared =
            self.recipe.filter(|_| choice.timestep.is_none()).map(|recipe| recipe.decode_noise_scale);
        DecodeOptions {
            timestep: timestep.unwrap_or(0.0),
            noise_scale: choice.noise_scale.or(shared),
            tiling: choice.tiling(),
        }
    }
}

impl SamplingChoice {
    /// The passes of an earlier render.
    #[must_use]
    pub fn again(passes: Vec<PassRecipe>) -> Self {
        let upsamplers = passes.iter().filter_map(|pass| pass.upsampler.clone()).collect();
        let exact = Some(passes.into_iter().map(|pass| pass.sampling).collect());
        Self { upsamplers, exact, ..Self::default() }
    }

    /// The recipe that a model begins with.
    pub(super) fn begin(&self, info: &ModelInfo) -> Result<Begun> {
        let mut warning = None;
        let recipe = match (&self.recipe, info.published) {
            _ if self.exact.is_some() => None,
            (RecipeChoice::Plain, _) | (RecipeChoice::Recognised, Identified::Unknown) => None,
            (RecipeChoice::Named(name), _) => Some(catalog().recipe(name)?.1),
            (RecipeChoice::Recognised, Identified::Recipe(name)) => Some(catalog().recipe(name)?.1),
            (RecipeChoice::Recognised, Identified::Unclear(name, other)) => {
                warning = Some(format!(
                    "the model's headers don't say how it was meant to be sampled: taking `{name}`, which may be \
                     wrong (--recipe-name {other}, for one)"
                ));
                Some(catalog().recipe(name)?.1)
            }
        };
        let single = || match recipe {
            Some(recipe) => recipe.single.clone(),
            None => Pass {
                steps: info.defaults.steps,
                guidance: Guidance { scale: PerStep::All(info.defaults.guidance), ..Guidance::default() },
                ..Pass::default()
            },
        };
        let count = self.upsamplers.len() + 1;
        let mut passes = match (&self.exact, recipe) {
            (Some(exact), _) => exact.clone(),
            (None, Some(recipe)) if count > 1 => recipe.passes.clone(),
            (None, _) => vec![single()],
        };
        if passes.is_empty() {
            passes.push(single());
        }
        while passes.len() < count {
            let (steps, skip_first) = REFINE;
            let like = passes.last().map(|pass| (pass.guidance.clone(), pass.stochastic));
            let (guidance, stochastic) = like.unwrap_or_default();
            passes.push(match recipe.and_then(|recipe| recipe.passes.last()) {
                Some(refining) => refining.clone(),
                None => Pass { steps, skip_first, guidance, stochastic, ..Pass::default() },
            });
        }
        if passes.len() > count {
            let what = format!("{} upsamplers", self.upsamplers.len());
            return Err(Error::invalid(what, format!("expected {}, one between passes", passes.len() - 1)));
        }
        Ok(Begun { recipe, warning, passes })
    }

    /// The passes, with all that the user asks for.
    pub(super) fn passes(&self, begun: &Begun) -> Result<Vec<Pass>> {
        let mut passes = begun.passes.clone();
        if self.exact.is_some() {
            return Ok(passes);
        }
        let most = passes.len();
        let count = |name: &str, n: usize| {
            if n <= most {
                return Ok(());
            }
            Err(Error::invalid(format!("--{name} given {n} times"), format!("there are {most} passes"))
                .with_hint("each --upsampler makes one more pass"))
        };
        count("steps", self.steps.len())?;
        count("sigmas", self.sigmas.len())?;
        count("timesteps", self.timesteps.len())?;
        count("denoise-strength", self.strength.len())?;
        count("guidance", self.guidance.len())?;
        for (index, pass) in passes.iter_mut().enumerate() {
            self.schedule(index, pass)?;
            self.guide(index, pass);
            pass.cache = self.cache.or(pass.cache);
            pass.upsample.adain = self.adain.unwrap_or(pass.upsample.adain);
            pass.upsample.tone_map = self.tone_map.unwrap_or(pass.upsample.tone_map);
            check(pass)?;
        }
        Ok(passes)
    }

    fn schedule(&self, index: usize, pass: &mut Pass) -> Result<()> {
        let by_hand = (self.steps.get(index), self.sigmas.get(index), self.timesteps.get(index));
        let blank = Pass { skip_first: 0, skip_last: 0, sigmas: None, timesteps: None, ..pass.clone() };
        match by_hand {
            (_, Some(sigmas), None) => *pass = Pass { sigmas: Some(sigmas.clone()), ..blank },
            (_, None, Some(timesteps)) => *pass = Pass { timesteps: Some(timesteps.clone()), ..blank },
            (_, Some(_), Some(_)) => {
                return Err(Error::invalid("--sigmas with --timesteps", "expected one of them for a pass"));
            }
            // A second pass keeps its share of the schedule.
            (Some(steps), None, None) => {
                let skipped = |n: usize| n * steps / pass.scheduled().max(1);
                let (skip_first, skip_last) = match pass.sigmas {
                    Some(_) => (0, 0),
                    None => (skipped(pass.skip_first), skipped(pass.skip_last)),
                };
                *pass = Pass { steps: *steps, skip_first, skip_last, ..blank };
            }
            (None, None, None) => {}
        }
        if let Some(strength) = self.strength.get(index) {
            if !(*strength > 0.0 && *strength <= 1.0) {
                let what = format!("denoise strength {strength}");
                return Err(Error::invalid(what, "expected a number above 0, up to 1"));
            }
            let steps = pass.scheduled();
            pass.skip_first = steps - ((steps as f64 * strength) as usize).min(steps);
        }
        pass.stochastic = self.stochastic.or(pass.stochastic);
        Ok(())
    }

    fn guide(&self, index: usize, pass: &mut Pass) {
        let guidance = &mut pass.guidance;
        set(&mut guidance.scale, &self.guidance, index);
        set(&mut guidance.levels, &self.guidance_levels, index);
        set(&mut guidance.rescale, &self.guidance_rescale, index);
        set(&mut guidance.stg.scale, &self.stg_scale, index);
        set(&mut guidance.stg.rescale, &self.stg_rescale, index);
        set(&mut guidance.stg.blocks, &self.stg_blocks, index);
        guidance.interval = self.guidance_interval.or(guidance.interval);
        guidance.star = self.guidance_star.unwrap_or(guidance.star);
        guidance.stg.mode = self.stg_mode.unwrap_or(guidance.stg.mode);
    }
}

/// What is asked for pass number `index`: the last entry holds on.
fn set<T: Clone>(value: &mut T, asked: &[T], index: usize) {
    if let Some(asked) = asked.get(index).or(asked.last()) {
        *value = asked.clone();
    }
}

fn check(pass: &Pass) -> Result<()> {
    let stg = &pass.guidance.stg;
    let wanted = stg.scale.values().any(|scale| *scale > 0.0);
    if wanted && stg.blocks.values().all(Vec::is_empty) {
        return Err(Error::invalid("--stg-scale", "nothing says which blocks are skipped")
            .with_hint("pass --stg-blocks, e.g. 19"));
    }
    Ok(())
}

/// The grid rules of a clip that is to be made smaller for the passes before the last one.
pub(super) fn coarser(geometry: Geometry, upsamplers: &[UpsamplerInfo]) -> Geometry {
    upsamplers.iter().fold(geometry, |geometry, info| Geometry {
        spatial: geometry.spatial * info.space,
        temporal: geometry.temporal * info.time,
        ..geometry
    })
}

/// The clip of each pass, when the last one has shape `last`, which keeps the rules of [`coarser`].
pub(super) fn specs(last: VideoSpec, upsamplers: &[UpsamplerInfo]) -> Vec<VideoSpec> {
    let mut specs = vec![last];
    for UpsamplerInfo { space, time, .. } in upsamplers.iter().rev() {
        let spec = specs[specs.len() - 1];
        specs.push(VideoSpec {
            width: spec.width / space,
            height: spec.height / space,
            frames: spec.frames.saturating_sub(1) / time + 1,
            fps: spec.fps / *time as f64,
        });
    }
    specs.reverse();
    specs
}

/// `A`, or `A,B,C`, as a flag.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T>(pub PerStep<T>);

impl FromStr for List<f64> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some([one]) => Ok(Self(PerStep::All(*one))),
            Some(many) => Ok(Self(PerStep::Each(many.to_vec()))),
            None => {
                Err(Error::invalid(format!("`{text}`"), "expected a number, or several with commas between"))
            }
        }
    }
}

impl FromStr for List<Vec<usize>> {
    type Err = Error;

    /// `19`, `11,25` for all steps; `/11,25/28` for lists that change, one of them empty.
    fn from_str(text: &str) -> Result<Self> {
        let blocks = |part: &str| -> Option<Vec<usize>> {
            let part = part.trim();
            if part.is_empty() {
                return Some(Vec::new());
            }
            part.split(',').map(|number| number.trim().parse().ok()).collect()
        };
        let lists: Option<Vec<Vec<usize>>> = text.split('/').map(blocks).collect();
        match lists.as_deref() {
            Some([one]) => Ok(Self(PerStep::All(one.clone()))),
            Some(many) => Ok(Self(PerStep::Each(many.to_vec()))),
            None => Err(Error::invalid(
                format!("blocks `{text}`"),
                "expected numbers with commas between, lists with `/` between",
            )),
        }
    }
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
