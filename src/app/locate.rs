//! From what a user calls a model to its files: a path, a name of the catalog, or a repository of the hub.

use std::path::{Path, PathBuf};

use crate::{
    error::{Error, Result},
    event::{Event, Reporter},
    hub::{Address, Fetched, Hub, MODEL_INDEX, RepoId, Shadow, Wanted},
    models::{
        catalog::{Checkpoint, Kind, Layout, Source, catalog},
        source::{ModelSource, Parts},
    },
};

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Named {
    /// A file or folder that is there.
    Local(PathBuf),
    /// A row of the catalog.
    Catalog(&'static Checkpoint),
    /// A repository of the hub, or one file of it.
    Hub(Address),
}

/// The longest difference at which a name is taken for a misspelling of another.
const MISSPELT: usize = 4;

impl Named {
    /// Finds out what a name stands for. What lies at that path always wins.
    pub fn find(name: &str, hub: &Hub) -> Result<Self> {
        let path = Path::new(name);
        if path.exists() {
            return Ok(Self::Local(path.to_owned()));
        }
        if let Some(row) = catalog().checkpoint(name) {
            return Ok(Self::Catalog(row));
        }
        let local = name.starts_with(['.', '/', '~']) || name.contains('\\') || name.ends_with('/');
        match name.parse() {
            Ok(address) if !local => Ok(Self::Hub(address)),
            Err(error) if !local && name.contains('/') => Err(error),
            _ => Err(unknown(name, hub)),
        }
    }

    /// The parts of a model that isn't a path, but those of which the user has an own one.
    fn parts_beside(&self, own: &Parts) -> Vec<Part> {
        let mut parts = self.parts();
        parts.retain(|part| match part.kind {
            Kind::TextEncoder => own.text_encoder.is_none(),
            Kind::Tokenizer => own.tokenizer.is_none(),
            Kind::Model | Kind::Upsampler => true,
        });
        parts
    }

    /// The files that it is made of, for a model that isn't a path.
    pub(super) fn parts(&self) -> Vec<Part> {
        match self {
            Self::Local(_) => Vec::new(),
            Self::Hub(Address { repo, file: None }) => vec![Part::folder(repo.clone())],
            Self::Hub(Address { repo, file: Some(file) }) => {
                vec![Part { kind: Kind::Model, repo: repo.clone(), wanted: vec![Wanted::named(file)] }]
            }
            Self::Catalog(row) => {
                let mut parts = Vec::new();
                add_row(row, &mut parts);
                parts
            }
        }
    }
}

/// A row's preferred source, then what it needs.
fn add_row(row: &Checkpoint, parts: &mut Vec<Part>) {
    let Some(source) = row.sources.first() else { return };
    let Ok(repo) = RepoId::new(&source.repository, &source.revision) else { return };
    // A model folder says itself what belongs to it.
    let index = source.layout == Layout::Folder && source.paths.iter().any(|path| path == MODEL_INDEX);
    let known = |path: &str| source.files.iter().find(|file| file.path == path);
    let wanted = |path: &String| Wanted {
        // The catalog's sizes are rounded: they are for people.
        sha256: known(path).and_then(|file| file.sha256.clone()),
        ..Wanted::named(path)
    };
    let wanted = if index { Vec::new() } else { source.paths.iter().map(wanted).collect() };
    parts.push(Part { kind: row.kind, repo, wanted });
    for need in source.needs.iter().filter_map(|name| catalog().checkpoint(name)) {
        add_row(need, parts);
    }
}

/// Files of one repository that are one part of a model.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub kind: Kind,
    pub repo: RepoId,
    /// Its files; none stands for those that the model index names.
    pub wanted: Vec<Wanted>,
}

impl Part {
    fn folder(repo: RepoId) -> Self {
        Self { kind: Kind::Model, repo, wanted: Vec::new() }
    }

    /// Where it is cached, if it is there whole.
    pub fn cached(&self, hub: &Hub) -> Option<Fetched> {
        if self.wanted.is_empty() {
            hub.cached_folder(&self.repo)
        } else {
            hub.cached(&self.repo, &self.wanted)
        }
    }

    /// Asks the hub for what belongs to it.
    pub fn files(&self, hub: &Hub) -> Result<Vec<Wanted>> {
        if self.wanted.is_empty() {
            hub.model_folder(&self.repo)
        } else {
            hub.expand(&self.repo, &self.wanted)
        }
    }

    /// Its place below the folder of its commit.
    pub fn path(&self, folder: &Path) -> PathBuf {
        match self.wanted.first() {
            Some(file) => folder.join(file.path.trim_end_matches('/')),
            None => folder.to_owned(),
        }
    }

    /// Whether a path of the repository belongs to it, as far as that is known without asking.
    pub fn holds(&self, path: &str) -> bool {
        let named =
            |file: &Wanted| path == file.path || file.path.ends_with('/') && path.starts_with(&file.path);
        self.wanted.is_empty() || self.wanted.iter().any(named)
    }
}

/// The paths of a model's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    pub model: PathBuf,
    pub text_encoder: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
}

impl Located {
    fn gather(parts: impl Iterator<Item = (Kind, PathBuf)>) -> Option<Self> {
        let (mut model, mut text_encoder, mut tokenizer) = (None, None, None);
        for (kind, path) in parts {
            let place = match kind {
                Kind::Model | Kind::Upsampler => &mut model,
                Kind::TextEncoder => &mut text_encoder,
                Kind::Tokenizer => &mut tokenizer,
            };
            place.get_or_insert(path);
        }
        Some(Self { model: model?, text_encoder, tokenizer })
    }

    fn source(self) -> ModelSource {
        let parts = Parts { text_encoder: self.text_encoder, tokenizer: self.tokenizer, ..Parts::default() };
        ModelSource::at(self.model).with(parts)
    }
}

/// Finds a model's files, and fetches those that aren't here.
///
/// What is cached is taken as it is, whatever the hub has by now: [`super::models::pull`] asks. Parts that `own` has
/// aren't fetched.
pub fn locate(name: &str, own: &Parts, hub: &Hub, reporter: &dyn Reporter) -> Result<ModelSource> {
    let named = Named::find(name, hub)?;
    if let Named::Local(path) = named {
        return Ok(ModelSource::at(path));
    }
    let mut found = Vec::new();
    for part in named.parts_beside(own) {
        let fetched = match part.cached(hub) {
            Some(fetched) => fetched,
            None => {
                let message = format!("fetching {} into {}", part.repo, hub.cache().root().display());
                let _ = reporter.emit(&Event::Note { message });
                hub.fetch(&part.repo, &part.files(hub)?, reporter)?
            }
        };
        found.push((part.kind, part.path(&fetched.folder)));
    }
    Ok(Located::gather(found.into_iter()).ok_or_else(|| unknown(name, hub))?.source())
}

/// The recipe of the catalog that a name alone decides on, where headers might not.
#[must_use]
pub fn recipe_of(name: &str, hub: &Hub) -> Option<&'static str> {
    let rows: Vec<&Checkpoint> = match Named::find(name, hub).ok()? {
        Named::Local(_) => return None,
        Named::Catalog(row) => vec![row],
        Named::Hub(Address { repo, file }) => {
            let repository = format!("{}/{}", repo.owner, repo.name);
            let holds = |source: &Source| {
                source.repository == repository
                    && match &file {
                        Some(file) => source.paths.contains(file),
                        None => source.layout == Layout::Folder,
                    }
            };
            catalog().checkpoints.iter().filter(|row| row.sources.iter().any(holds)).collect()
        }
    };
    let recipe = rows.iter().find_map(|row| row.recipe.as_deref())?;
    rows.iter().filter_map(|row| row.recipe.as_deref()).all(|other| other == recipe).then_some(recipe)
}

/// A model of which only the headers need be here.
pub struct Outline {
    /// Opens like the model itself, as long as the outline lives.
    pub source: ModelSource,
    /// Bytes that are yet to be downloaded.
    pub missing_bytes: u64,
    _shadows: Vec<Shadow>,
}

/// Finds a model's headers; no weights are fetched, and nothing of the parts that `own` has.
pub fn outline(name: &str, own: &Parts, hub: &Hub) -> Result<Outline> {
    let named = Named::find(name, hub)?;
    if let Named::Local(path) = named {
        return Ok(Outline { source: ModelSource::at(path), missing_bytes: 0, _shadows: Vec::new() });
    }
    let (mut found, mut shadows, mut missing_bytes) = (Vec::new(), Vec::new(), 0);
    for part in named.parts_beside(own) {
        let folder = match part.cached(hub) {
            Some(fetched) => fetched.folder,
            None => {
                let shadow = hub.shadow(&part.repo, &part.files(hub)?)?;
                missing_bytes += shadow.missing_bytes;
                let folder = shadow.folder().to_owned();
                shadows.push(shadow);
                folder
            }
        };
        found.push((part.kind, part.path(&folder)));
    }
    let source = Located::gather(found.into_iter()).ok_or_else(|| unknown(name, hub))?.source();
    Ok(Outline { source, missing_bytes, _shadows: shadows })
}

/// The error for a name that stands for nothing.
fn unknown(name: &str, hub: &Hub) -> Error {
    let cached = hub.cache().list().unwrap_or_default().into_iter().map(|repo| repo.id);
    let known: Vec<String> = catalog().checkpoints.iter().map(|row| row.name.clone()).chain(cached).collect();
    let near = near(name, &known);
    let hint = match near.is_empty() {
        true => "give a folder or file, OWNER/NAME of the hub, or a name from `sora models list`".to_owned(),
        false => format!("did you mean {}? `sora models list` shows all names", near.join(", ")),
    };
    Error::invalid(format!("model `{name}`"), "no such file or folder, and no model of that name is known")
        .with_hint(hint)
}

/// Up to four names that resemble this one, the nearest first.
fn near<'a>(name: &str, known: &'a [String]) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let rate = |known: &'a String| {
        let lower = known.to_lowercase();
        let last = lower.rsplit('/').next().unwrap_or(&lower);
        let part = name.len() >= 3 && lower.contains(&name);
        let distance = distance(&name, &lower).min(distance(&name, last));
        (part || distance <= MISSPELT.min(name.chars().count() / 2)).then_some((distance, known.as_str()))
    };
    let mut near: Vec<(usize, &str)> = known.iter().filter_map(rate).collect();
    near.sort_unstable();
    near.into_iter().take(4).map(|(_, known)| known).collect()
}

/// Letters to change, add or leave out to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::HubConfig;

    fn hub() -> Hub {
        Hub::new(HubConfig { offline: true, ..HubConfig::new("/nonexistent") })
    }

    #[test]
    fn a_path_wins_then_the_catalog_then_the_hub() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_string_lossy().into_owned();
        assert_eq!(Named::find(&path, &hub()).unwrap(), Named::Local(folder.path().to_owned()));
        let row = &catalog().checkpoints[0];
        assert_eq!(Named::find(&row.name, &hub()).unwrap(), Named::Catalog(row));
        assert!(matches!(Named::find("a/b@v1", &hub()).unwrap(), Named::Hub(Address { file: None, .. })));
        assert!(matches!(
            Named::find("a/b/c.gguf", &hub()).unwrap(),
            Named::Hub(Address { file: Some(_), .. })
        ));
    }

    #[test]
    fn a_name_says_how_a_model_is_sampled() {
        let recipe = |name: &str| recipe_of(name, &hub());
        assert_eq!(recipe("ltxv-13b-0.9.8-dev"), Some("ltxv-13b-dev"));
        // Its headers are those of the model that it was distilled from.
        assert_eq!(recipe("Lightricks/LTX-Video-0.9.7-distilled"), Some("ltxv-13b-distilled"));
        assert_eq!(recipe("Lightricks/LTX-Video"), Some("ltx-video-2b"));
        let file = "Lightricks/LTX-Video/ltxv-2b-0.9.6-distilled-04-25.safetensors";
        assert_eq!(recipe(file), Some("ltxv-2b-distilled"));
        assert_eq!((recipe("somebody/else"), recipe("nowhere")), (None, None));
    }

    #[test]
    fn a_name_that_is_nothing_says_what_is_near() {
        let row = catalog().checkpoints[0].name.clone();
        let misspelt = format!("{}x", &row[..row.len() - 1]);
        let error = Named::find(&misspelt, &hub()).unwrap_err();
        assert!(error.hint().unwrap().contains(&row), "{:?}", error.hint());
        for name in ["./nowhere", "nowhere", "/a/b", "~/x"] {
            let error = Named::find(name, &hub()).unwrap_err();
            assert!(error.to_string().contains("no such file or folder"), "{error}");
            assert!(error.hint().unwrap().contains("sora models list"));
        }
        assert!(Named::find("a/b/../c", &hub()).is_err());
    }

    #[test]
    fn distances_are_counted_in_letters() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!((distance("", "abc"), distance("abc", "abc")), (3, 0));
    }

    #[test]
    fn every_row_of_the_catalog_has_its_parts() {
        for row in catalog().checkpoints.iter().filter(|row| row.kind == Kind::Model) {
            let parts = Named::Catalog(row).parts();
            assert_eq!(parts.iter().filter(|part| part.kind == Kind::Model).count(), 1, "{}", row.name);
            let single = row.sources[0].layout == Layout::SingleFile;
            let has = |kind| parts.iter().any(|part| part.kind == kind);
            assert!(!single || has(Kind::TextEncoder) && has(Kind::Tokenizer), "{}", row.name);
        }
    }
}
