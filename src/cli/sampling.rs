//! Flags on how the noise becomes a clip.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use sora::{
    Error,
    app::sampling::{List, RecipeChoice, SamplingChoice},
    models::api::{PerStep, SkipMode},
};

/// How the noise becomes a clip.
///
/// Flags that can be given again have one value for each pass. A schedule belongs to its pass alone; guidance holds for
/// the passes after it, too.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Denoising steps: more is slower and finer
    #[arg(long, value_name = "N")]
    pub steps: Vec<usize>,

    /// How strongly the prompt pulls; up to 1 is not at all
    ///
    /// One number, or one for each step: 1,6,8,6,1. With --guidance-levels, one for each of them. Again for the second
    /// pass, as all of these flags.
    #[arg(short, long, value_name = "SCALE", allow_hyphen_values = true)]
    pub guidance: Vec<List<f64>>,

    /// Take back over-exposure by strong guidance (0..1)
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub guidance_rescale: Vec<f64>,

    /// Noise levels (1..0) that lists are read by: a step takes the first entry whose level is not above its own
    #[arg(long, value_name = "S,S,…", hide_short_help = true)]
    pub guidance_levels: Vec<Numbers<f64>>,

    /// Share of the steps with guidance, e.g. 0.2:0.8
    #[arg(long, value_name = "FROM:TO", value_parser = interval, hide_short_help = true)]
    pub guidance_interval: Option<[f64; 2]>,

    /// Shrink the negative branch to its projection on the prompt's first
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true
    )]
    pub guidance_star: Option<bool>,

    /// Spatio-temporal guidance: away from what the model gives without some of its blocks
    #[arg(long, value_name = "SCALE", allow_hyphen_values = true, hide_short_help = true)]
    pub stg_scale: Vec<List<f64>>,

    /// Blocks that are left out for it, e.g. 19, or for lists: /11,25/28
    #[arg(long, value_name = "N,N,…", hide_short_help = true)]
    pub stg_blocks: Vec<List<Vec<usize>>>,

    /// What is left out in them: attention_values, attention_skip or transformer_block
    #[arg(long, value_name = "MODE", hide_short_help = true)]
    pub stg_mode: Option<SkipMode>,

    /// Take back over-exposure by it (0..1)
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true, hide_short_help = true)]
    pub stg_rescale: Vec<List<f64>>,

    /// Skip most of a step where the model's first block changes by no more than this share (0..1), e.g. 0.05
    ///
    /// The last full step's answers of all other blocks are taken again: faster, and a slightly other clip.
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub cache: Option<f64>,

    /// Noise levels by hand (1..0), exactly as they are, as distilled models want them; they count instead of --steps
    #[arg(long, value_name = "S,S,…", hide_short_help = true, allow_hyphen_values = true)]
    pub sigmas: Vec<Numbers<f32>>,

    /// Timesteps by hand (1000..0), through the model's scheduler; they count instead of --steps
    #[arg(long, value_name = "T,T,…", hide_short_help = true, allow_hyphen_values = true)]
    pub timesteps: Vec<Numbers<f32>>,

    /// Share of the schedule that is done (0..1): less keeps more of --latents, or of the pass before
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub denoise_strength: Vec<f64>,

    /// Renoise the estimate at each step [default: as the model's scheduler says]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true
    )]
    pub stochastic: Option<bool>,

    /// Make a smaller clip first, enlarge it with this latent upsampler (a file or a folder), then refine it
    ///
    /// The size is that of the finished clip. Given again, each makes one more pass.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub upsampler: Vec<PathBuf>,

    /// How far enlarged latents are brought to the look of the ones before (0..1) [default: 1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub adain: Option<f64>,

    /// How much strong enlarged latents are pressed together (0..1)
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, hide_short_help = true)]
    pub tone_map: Option<f64>,

    /// Sample as this published model or recipe is sampled; `none` for what the pipeline class does
    ///
    /// By default the model's headers say which one it is.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub recipe_name: Option<RecipeChoice>,
}

/// Numbers with commas between.
#[derive(Debug, Clone)]
pub struct Numbers<T>(Vec<T>);

impl<T: FromStr> FromStr for Numbers<T> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers: Option<Vec<T>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        numbers
            .map(Self)
            .ok_or_else(|| Error::invalid(format!("list `{text}`"), "expected numbers with commas between"))
    }
}

fn interval(text: &str) -> Result<[f64; 2], Error> {
    text.split_once(':')
        .and_then(|(from, to)| Some([from.trim().parse().ok()?, to.trim().parse().ok()?]))
        .ok_or_else(|| Error::invalid(format!("interval `{text}`"), "expected FROM:TO, e.g. 0.2:0.8"))
}

impl SamplingArgs {
    /// What the library calls this.
    pub fn lower(self) -> SamplingChoice {
        fn lists<T>(flags: Vec<List<T>>) -> Vec<PerStep<T>> {
            flags.into_iter().map(|list| list.0).collect()
        }
        fn numbers<T>(flags: Vec<Numbers<T>>) -> Vec<Vec<T>> {
            flags.into_iter().map(|numbers| numbers.0).collect()
        }
        SamplingChoice {
            recipe: self.recipe_name.unwrap_or_default(),
            upsamplers: self.upsampler,
            steps: self.steps,
            sigmas: numbers(self.sigmas),
            timesteps: numbers(self.timesteps),
            strength: self.denoise_strength,
            stochastic: self.stochastic,
            guidance: lists(self.guidance),
            guidance_levels: numbers(self.guidance_levels),
            guidance_interval: self.guidance_interval,
            guidance_rescale: self.guidance_rescale,
            guidance_star: self.guidance_star,
            stg_scale: lists(self.stg_scale),
            stg_rescale: lists(self.stg_rescale),
            stg_blocks: lists(self.stg_blocks),
            stg_mode: self.stg_mode,
            cache: self.cache,
            adain: self.adain,
            tone_map: self.tone_map,
            exact: None,
        }
    }
}
