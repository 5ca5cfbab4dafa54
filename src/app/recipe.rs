//! What a clip was made from: written into the clip, into latents files and into `--json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    app::{sampling::PassRecipe, take::Take, visual::Visual, weave::Woven},
    error::{Error, Result},
    media,
    models::{
        api::{LoraUse, ModelInfo, Tiling},
        source::Parts,
    },
    pipeline::pan::Pan,
    video::{Size, VideoSpec},
};

/// All that was decided for one clip. The same recipe with the same model gives the same frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of this program.
    pub sora: String,
    /// The model's name.
    pub model: String,
    /// What changed the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<LoraUse>,
    /// The pipeline class whose arithmetic was followed.
    pub pipeline: String,
    /// What was asked for.
    pub prompt: String,
    /// What was to be kept away.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// Size, length and rate.
    #[serde(flatten)]
    pub spec: VideoSpec,
    /// The passes of the denoise loop, each with its schedule and guidance.
    pub passes: Vec<PassRecipe>,
    /// Tokens that the prompt was padded or cut to.
    pub max_sequence_length: usize,
    /// Timestep of the decoder.
    #[serde(default)]
    pub decode_timestep: f64,
    /// Share of noise mixed in before the decoder; as much as `decode_timestep` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_noise_scale: Option<f64>,
    /// How the decode was cut.
    #[serde(default)]
    pub tiling: Tiling,
    /// The size that the decoded frames were brought to, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upscale: Option<Size>,
    /// How its noise went sideways.
    #[serde(default, skip_serializing_if = "Pan::is_still")]
    pub pan: Pan,
    /// How a clip longer than the model's window was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take: Option<Take>,
    /// Whether the initial latents came from a file instead of the seed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub initial_latents: bool,
    /// Pictures and clips it was prompted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visual: Option<Visual>,
    /// The clips that it goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub woven: Option<Woven>,
    /// The device it ran on.
    pub device: String,
    /// The number type it ran in.
    pub dtype: String,
    /// What the user was warned of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Recipe {
    /// The recipe of latents that don't say what they were made from.
    #[must_use]
    pub fn unknown(model: &ModelInfo, spec: VideoSpec) -> Self {
        Self {
            sora: env!("CARGO_PKG_VERSION").into(),
            model: model.name.clone(),
            loras: model.loras.clone(),
            pipeline: model.pipeline.clone(),
            prompt: String::new(),
            negative_prompt: String::new(),
            seed: 0,
            spec,
            passes: Vec::new(),
            max_sequence_length: 0,
            decode_timestep: 0.0,
            decode_noise_scale: None,
            tiling: Tiling::default(),
            upscale: None,
            pan: Pan::default(),
            take: None,
            initial_latents: false,
            visual: None,
            woven: None,
            device: String::new(),
            dtype: String::new(),
            warnings: Vec::new(),
        }
    }

    /// The size of the frames as they are written.
    #[must_use]
    pub fn frame_size(&self) -> Size {
        self.upscale.unwrap_or(self.spec.size())
    }

    /// Steps of pass number `pass`.
    #[must_use]
    pub fn steps(&self, pass: usize) -> usize {
        self.passes.get(pass).map_or(0, |pass| pass.sampling.count())
    }

    /// The recipe in one line of JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a recipe has string keys and finite numbers only")
    }
}

/// A recipe in a file of its own, beside the clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeFile {
    /// What the clip was made from.
    #[serde(flatten)]
    pub recipe: Recipe,
    /// Where the model lies; nothing means the embedded one, or that nobody says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<PathBuf>,
    /// Parts of the model that lie elsewhere, and what changes it.
    #[serde(default, skip_serializing_if = "Parts::is_empty")]
    pub parts: Parts,
    /// Which job of a batch it was.
    #[serde(flatten)]
    pub stamp: Stamp,
}

impl RecipeFile {
    /// Reads the recipe in a `.json` file or in a video's `comment` tag.
    pub fn read(path: &Path) -> Result<Self> {
        let json = if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json")) {
            std::fs::read_to_string(path).map_err(Error::file("read", path))?
        } else {
            media::read_comment(path)?.ok_or_else(|| {
                Error::invalid(format!("video `{}`", path.display()), "it has no `comment` tag")
                    .with_hint("give a video that sora wrote, or the .json file beside it")
            })?
        };
        serde_json::from_str(&json).map_err(|e| {
            let what = format!("recipe `{}`", path.display());
            match serde_json::from_str::<FilmRecipe>(&json) {
                Ok(film) => {
                    let file = film.film.as_deref().unwrap_or(Path::new("FILM.toml")).display();
                    Error::invalid(what, format!("it is a film of {} shots", film.shots.len()))
                        .with_hint(format!("make it again with `sora storyboard {file}`"))
                }
                Err(_) => Error::invalid(what, e.to_string())
                    .with_hint("give a video that sora wrote, or the .json file beside it"),
            }
        })
    }
}

/// What a film was made from: in its `comment` tag, and in a file of its own beside the film of a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilmRecipe {
    /// Version of this program.
    pub sora: String,
    /// Where the film file lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub film: Option<PathBuf>,
    /// The recipes of its shots, in order.
    pub shots: Vec<Recipe>,
    /// Which job of a batch it was.
    #[serde(flatten)]
    pub stamp: Stamp,
}

/// What a batch writes into a recipe to know its output again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stamp {
    /// The job, by the hash of all that determines it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// SHA-256 of the output, or of the names and contents of its frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_sha256: Option<String>,
}

impl Stamp {
    /// Reads it from the recipe of a clip or a film.
    pub fn read(path: &Path) -> Result<Self> {
        let json = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        serde_json::from_str(&json).map_err(|e| Error::damaged(path, e.to_string()))
    }
}

/// The first words of a prompt as a file name: lower-case letters, digits and `-`, at most 40.
#[must_use]
pub fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    for word in prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let word = word.to_lowercase();
        let gap = usize::from(!slug.is_empty());
        if slug.chars().count() + gap + word.chars().count() > 40 {
            if slug.is_empty() {
                slug = word.chars().take(40).collect();
            }
            break;
        }
        if gap == 1 {
            slug.push('-');
        }
        slug.push_str(&word);
    }
    if slug.is_empty() { "video".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::slug;

    #[test]
    fn slugs_are_short_names() {
        assert_eq!(slug("Pirate ships, in coffee!"), "pirate-ships-in-coffee");
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("猫 walks"), "猫-walks");
        assert_eq!(slug("?!"), "video");
        assert_eq!(slug(&"a".repeat(99)).len(), 40);
        assert_eq!(slug(&"word ".repeat(20)).len(), 39);
    }
}
