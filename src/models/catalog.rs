//! `catalog.toml`: checkpoints as data. What there is, where it lies, and how each of them wants to be sampled.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::{Deserialize, Serialize};

use super::{api::Defaults, sampling::Pass};
use crate::error::{Error, Result};

/// Everything in `catalog.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Pipeline classes this build can run, by name.
    pub pipelines: BTreeMap<String, PipelineEntry>,
    /// Ways of sampling, by name; several checkpoints may share one.
    pub recipes: BTreeMap<String, Recipe>,
    /// Checkpoints and what goes with them, the preferred ones first.
    pub checkpoints: Vec<Checkpoint>,
}

/// A pipeline class this build can run.
#[derive(Debug, Clone, Deserialize)]
pub struct PipelineEntry {
    /// The family that runs it.
    pub family: String,
    /// What it does when nobody says anything.
    #[serde(flatten)]
    pub defaults: Defaults,
}

/// How a checkpoint was meant to be sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Number of frames.
    pub frames: usize,
    /// Frames a second.
    pub fps: f64,
    /// Tokens that the prompt is padded or cut to.
    pub max_sequence_length: usize,
    /// Negative prompt.
    pub negative_prompt: String,
    /// Timestep of the decoder.
    pub decode_timestep: f64,
    /// Share of noise mixed in before the decoder.
    pub decode_noise_scale: f64,
    /// The pass of a render without an upsampler.
    pub single: Pass,
    /// The passes of a render with one upsampler between each two of them; empty where nothing is published, and
    /// the single pass is then refined by itself.
    #[serde(default)]
    pub passes: Vec<Pass>,
}

/// What a row of the catalog is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A denoiser with its video autoencoder.
    Model,
    /// A latent upsampler.
    Upsampler,
    /// A text encoder.
    TextEncoder,
    /// The files of a tokenizer.
    Tokenizer,
}

/// One published checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// What users call it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The family that runs it.
    pub family: String,
    /// A sentence for `models list`.
    pub about: String,
    /// Its licence, in a few words.
    pub licence: String,
    /// Where the licence's text is.
    pub licence_url: String,
    /// How it is sampled: a key of [`Catalog::recipes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// What its headers say, as the family reads them: see [`identify`].
    #[serde(default, skip_serializing_if = "Facts::is_empty")]
    pub facts: Facts,
    /// Where it can be had, the preferred layout first.
    pub sources: Vec<Source>,
}

/// One layout of a checkpoint on the hub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// How its files are laid out.
    pub layout: Layout,
    /// Owner and name on the hub.
    pub repository: String,
    /// A commit, or a branch where no commit is known.
    pub revision: String,
    /// Paths in the repository; one that ends in `/` stands for everything readable below it.
    pub paths: Vec<String>,
    /// Names of further rows that are needed beside these files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// What is known of single files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
}

/// How the files of a checkpoint are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// A folder with a `model_index.json`.
    Folder,
    /// One file, its configuration in the metadata.
    SingleFile,
}

/// What is known of a file before it is downloaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Path in the repository.
    pub path: String,
    /// Bytes, to the three digits that the hub shows where the number ends in zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Hash of the content, in hexadecimal digits. Where it is absent nobody published it: the server says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Facts about a checkpoint by name, as its family reads them from its headers.
pub type Facts = BTreeMap<String, serde_json::Value>;

static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    toml::from_str(include_str!("catalog.toml")).expect("catalog.toml is checked by a test")
});

/// The catalog.
#[must_use]
pub fn catalog() -> &'static Catalog {
    &CATALOG
}

impl Catalog {
    /// The row of that name.
    #[must_use]
    pub fn checkpoint(&self, name: &str) -> Option<&Checkpoint> {
        self.checkpoints.iter().find(|row| row.name == name)
    }

    /// The recipe of that name, or of the checkpoint of that name.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the names there are.
    pub fn recipe(&self, name: &str) -> Result<(&str, &Recipe)> {
        let own = self.checkpoint(name).and_then(|row| row.recipe.as_deref()).unwrap_or(name);
        self.recipes.get_key_value(own).map(|(name, recipe)| (name.as_str(), recipe)).ok_or_else(|| {
            let names = self.recipes.keys().cloned().collect::<Vec<_>>().join(", ");
            Error::invalid(format!("recipe `{name}`"), format!("expected one of {names}"))
        })
    }
}

impl Checkpoint {
    /// Whether nothing that is known of a checkpoint of `layout` speaks against this row.
    fn fits(&self, layout: Layout, facts: &Facts) -> bool {
        self.kind == Kind::Model
            && self.sources.iter().any(|source| source.layout == layout)
            && self.facts.iter().all(|(name, expected)| facts.get(name).is_none_or(|found| found == expected))
    }
}

/// What the headers of a checkpoint leave open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Identified {
    /// No published checkpoint looks like that.
    #[default]
    Unknown,
    /// All that look like that are sampled by the recipe of this name.
    Recipe(&'static str),
    /// They are sampled differently, and the headers don't say which it is: the first two recipes.
    Unclear(&'static str, &'static str),
}

/// Finds out how a checkpoint wants to be sampled, by what its headers say.
///
/// A fact that a checkpoint doesn't give excludes nothing; one that it gives must be as the row has it.
#[must_use]
pub fn identify(family: &str, layout: Layout, facts: &Facts) -> Identified {
    let rows = CATALOG.checkpoints.iter().filter(|row| row.family == family && row.fits(layout, facts));
    let mut recipes: Vec<&'static str> = Vec::new();
    for recipe in rows.filter_map(|row| row.recipe.as_deref()) {
        if !recipes.contains(&recipe) {
            recipes.push(recipe);
        }
    }
    match recipes[..] {
        [] => Identified::Unknown,
        [one] => Identified::Recipe(one),
        [first, second, ..] => Identified::Unclear(first, second),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::sampling::PerStep;

    fn facts(value: serde_json::Value) -> Facts {
        serde_json::from_value(value).expect("facts")
    }

    #[test]
    fn every_row_can_be_used() {
        let catalog = catalog();
        assert!(catalog.pipelines.values().all(|entry| entry.family == "ltx"));
        for (index, row) in catalog.checkpoints.iter().enumerate() {
            let name = &row.name;
            assert!(catalog.checkpoints[..index].iter().all(|other| other.name != *name), "{name} twice");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)), "{name}");
            assert_eq!(row.kind == Kind::Model, row.recipe.is_some(), "{name}");
            assert!(row.recipe.iter().all(|recipe| catalog.recipes.contains_key(recipe)), "{name}");
            assert!(!row.sources.is_empty() && row.licence_url.starts_with("https://"), "{name}");
            for source in &row.sources {
                assert_eq!(source.repository.split('/').count(), 2, "{name}");
                assert!(!source.paths.is_empty(), "{name}");
                assert!(source.needs.iter().all(|need| catalog.checkpoint(need).is_some()), "{name}");
                for file in &source.files {
                    let listed = source
                        .paths
                        .iter()
                        .any(|path| *path == file.path || path.ends_with('/') && file.path.starts_with(path));
                    assert!(listed, "{name}: {}", file.path);
                    let hash = file.sha256.as_deref().unwrap_or("");
                    assert!(hash.is_empty() || hash.len() == 64, "{name}: {}", file.path);
                    assert!(hash.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)));
                }
            }
        }
    }

    #[test]
    fn every_recipe_is_whole() {
        for (name, recipe) in &catalog().recipes {
            assert!(recipe.width % 64 == 0 && recipe.height % 32 == 0, "{name}");
            assert_eq!(recipe.frames % 8, 1, "{name}");
            for pass in std::iter::once(&recipe.single).chain(&recipe.passes) {
                let (guidance, n) = (&pass.guidance, pass.scheduled());
                assert!(pass.skip_first + pass.skip_last < n, "{name}");
                let entries = if guidance.levels.is_empty() { n } else { guidance.levels.len() };
                let stg = &guidance.stg;
                for len in [guidance.scale.len(), stg.scale.len(), stg.rescale.len(), stg.blocks.len()] {
                    assert!(len.is_none_or(|len| len == entries), "{name}: {len:?} of {entries}");
                }
            }
        }
    }

    #[test]
    fn the_published_recipes_are_the_references() {
        let (name, dev) = catalog().recipe("ltxv-13b-0.9.8-dev").expect("a recipe");
        assert_eq!(name, "ltxv-13b-dev");
        let first = &dev.passes[0];
        assert_eq!((first.steps, first.skip_last, first.guidance.star), (30, 3, true));
        assert_eq!(first.guidance.stg.blocks.get(2), Some(&vec![22, 35, 39]));
        assert_eq!((dev.passes[1].steps, dev.passes[1].skip_first), (30, 17));
        let (_, distilled) = catalog().recipe("ltxv-2b-0.9.8-distilled").expect("a recipe");
        let steps: Vec<usize> = distilled.passes.iter().map(Pass::scheduled).collect();
        assert_eq!(steps, [7, 3]);
        assert_eq!(distilled.single.guidance.scale, PerStep::All(1.0));
        let error = catalog().recipe("ltx-9").expect_err("no such recipe").to_string();
        assert!(error.contains("ltxv-13b-distilled"), "{error}");
    }

    #[test]
    fn headers_say_how_a_checkpoint_is_sampled() {
        let found = |layout, value| identify("ltx", layout, &facts(value));
        let old = json!({ "layers": 28, "width": 2048, "vae": "0.9.0" });
        assert_eq!(found(Layout::Folder, old), Identified::Recipe("ltx-video-2b"));
        let dev = json!({ "layers": 28, "width": 2048, "vae": "0.9.5", "distilled": false });
        assert_eq!(found(Layout::SingleFile, dev), Identified::Recipe("ltxv-2b"));
        let large = json!({ "layers": 48, "width": 4096, "vae": "0.9.5" });
        assert_eq!(
            found(Layout::Folder, large),
            Identified::Unclear("ltxv-13b-dev", "ltxv-13b-0.9.8-distilled"),
            "a folder doesn't say whether it is distilled"
        );
        let toy = json!({ "layers": 2, "width": 32, "vae": "0.9.0" });
        assert_eq!(found(Layout::Folder, toy), Identified::Unknown);
    }
}
