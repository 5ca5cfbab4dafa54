//! How a clip is sampled, as data: passes of the denoise loop with their schedules and guidance.

use serde::{Deserialize, Serialize};

/// A number (or list) for all steps of a pass, or one for each part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerStep<T> {
    /// The same at every step.
    All(T),
    /// Without [`Guidance::levels`] one for each step, else one for each level.
    Each(Vec<T>),
}

impl<T> PerStep<T> {
    /// The value for entry `index`: [`PerStep::All`] has the same for each, a list that ends before it none.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&T> {
        match self {
            Self::All(value) => Some(value),
            Self::Each(values) => values.get(index),
        }
    }

    /// How many entries there are; nothing for one that holds always.
    #[must_use]
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::All(_) => None,
            Self::Each(values) => Some(values.len()),
        }
    }

    /// Whether it is a list without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Every value that occurs.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        match self {
            Self::All(value) => std::slice::from_ref(value).iter(),
            Self::Each(values) => values.iter(),
        }
    }
}

/// What the third branch of spatio-temporal guidance leaves out in its skipped blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipMode {
    /// Self-attention gives each token its own value.
    #[default]
    AttentionValues,
    /// Self-attention gives each token what it was given.
    AttentionSkip,
    /// The whole block.
    TransformerBlock,
}

impl SkipMode {
    /// The names that [`std::str::FromStr`] reads.
    pub const NAMES: [&'static str; 3] = ["attention_values", "attention_skip", "transformer_block"];
}

/// Spatio-temporal guidance: away from what the model gives when some of its blocks are skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stg {
    /// How strongly; 0 is not at all.
    pub scale: PerStep<f64>,
    /// How much of the guided velocity is brought back to the spread of the prompt's own, 0..1; heard where the
    /// scale is above 0.
    pub rescale: PerStep<f64>,
    /// Numbers of the blocks that are skipped, from 0.
    pub blocks: PerStep<Vec<usize>>,
    /// What is skipped in them.
    pub mode: SkipMode,
}

impl Default for Stg {
    fn default() -> Self {
        Self {
            scale: PerStep::All(0.0),
            rescale: PerStep::All(0.0),
            blocks: PerStep::All(Vec::new()),
            mode: SkipMode::default(),
        }
    }
}

/// How a pass is guided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guidance {
    /// Classifier-free guidance; 1 or less means the prompt alone.
    pub scale: PerStep<f64>,
    /// How much of the guided velocity is brought back to the spread of the unguided one, 0..1.
    pub rescale: f64,
    /// Shrinks the negative branch to its projection on the positive one first (CFG-Zero*'s scale).
    pub star: bool,
    /// Share of the pass in which all of this applies, from and to (0..1); the prompt alone guides the other steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<[f64; 2]>,
    /// Noise levels that lists are read by: a step takes the first entry whose level it has reached (is not below),
    /// the last if there is none. Without levels, lists have one entry for each step.
    pub levels: Vec<f64>,
    /// Spatio-temporal guidance.
    pub stg: Stg,
}

impl Default for Guidance {
    fn default() -> Self {
        Self {
            scale: PerStep::All(1.0),
            rescale: 0.0,
            star: false,
            interval: None,
            levels: Vec::new(),
            stg: Stg::default(),
        }
    }
}

/// What happens to latents between two passes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Upsample {
    /// How far each channel of the upsampled latents is brought to mean and spread of the ones before, 0..1.
    pub adain: f64,
    /// How much strong latents are pressed together, 0..1.
    pub tone_map: f64,
}

impl Default for Upsample {
    fn default() -> Self {
        Self { adain: 1.0, tone_map: 0.0 }
    }
}

/// One run of the denoise loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pass {
    /// Steps of the checkpoint's own schedule; not heard where sigmas or timesteps are given.
    pub steps: usize,
    /// Noise levels (1..0) of the steps, exactly as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigmas: Option<Vec<f32>>,
    /// Timesteps (1000..0) that go through the checkpoint's scheduler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<Vec<f32>>,
    /// Steps that are left out at the beginning of the schedule. What such a pass starts from gets noise of the
    /// level that it then begins at.
    #[serde(skip_serializing_if = "is_zero")]
    pub skip_first: usize,
    /// Steps that are left out at the end of the schedule: the one before them goes all the way.
    #[serde(skip_serializing_if = "is_zero")]
    pub skip_last: usize,
    /// Whether each step renoises its estimate; nothing means as the checkpoint's scheduler says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stochastic: Option<bool>,
    /// How it is guided.
    pub guidance: Guidance,
    /// Relative change of the first block's answer (0..1) up to which the last full step's answers of all other
    /// blocks are taken again; nothing means that every step is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<f64>,
    /// What happens before it; not heard in the first pass.
    pub upsample: Upsample,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            steps: 1,
            sigmas: None,
            timesteps: None,
            skip_first: 0,
            skip_last: 0,
            stochastic: None,
            guidance: Guidance::default(),
            cache: None,
            upsample: Upsample::default(),
        }
    }
}

impl Pass {
    /// Steps that it takes.
    #[must_use]
    pub fn count(&self) -> usize {
        self.scheduled().saturating_sub(self.skip_first + self.skip_last)
    }

    /// Steps before any is left out.
    #[must_use]
    pub fn scheduled(&self) -> usize {
        let given = self.sigmas.as_ref().or(self.timesteps.as_ref());
        given.map_or(self.steps, Vec::len)
    }
}

impl std::str::FromStr for SkipMode {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self, crate::Error> {
        match text {
            "attention_values" => Ok(Self::AttentionValues),
            "attention_skip" => Ok(Self::AttentionSkip),
            "transformer_block" => Ok(Self::TransformerBlock),
            _ => Err(crate::Error::invalid(
                format!("skip mode `{text}`"),
                format!("expected one of {}", Self::NAMES.join(", ")),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_values_are_read_alike() {
        let guidance: Guidance = toml::from_str(
            "scale = [1, 6.5]\nlevels = [1.0, 0.9]\nstg.blocks = [[], [11, 25]]\nstg.scale = 2\nstg.rescale = 0.7",
        )
        .expect("a guidance");
        assert_eq!(guidance.scale, PerStep::Each(vec![1.0, 6.5]));
        assert_eq!(guidance.stg.blocks.get(1), Some(&vec![11, 25]));
        assert_eq!((guidance.stg.scale.get(7), guidance.stg.scale.len()), (Some(&2.0), None));
        let shared: Stg = toml::from_str("blocks = [19]").expect("an STG");
        assert_eq!(shared.blocks, PerStep::All(vec![19]));
        let json = serde_json::to_string(&guidance).expect("JSON");
        assert_eq!(serde_json::from_str::<Guidance>(&json).expect("the same"), guidance);
        assert!(toml::from_str::<Guidance>("scales = 1").is_err(), "an unknown key");
    }

    #[test]
    fn modes_are_named_alike_everywhere() {
        for name in SkipMode::NAMES {
            let mode: SkipMode = name.parse().expect("a mode");
            assert_eq!(serde_json::to_value(mode).expect("JSON"), name);
        }
        assert!("residual".parse::<SkipMode>().is_err());
    }
}
