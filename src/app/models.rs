//! What models there are, and keeping them.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    app::{
        inspect::{Inspection, inspect},
        locate::{Named, Part, outline},
    },
    error::{Error, Result},
    event::{Event, Reporter},
    hub::{Address, CachedRepo, Hub, Verified, not_cached},
    models::{
        catalog::{Checkpoint, Kind, catalog},
        source::Parts,
    },
};

/// What there is.
#[derive(Debug, Clone, Serialize)]
pub struct ModelList {
    /// The folder of the cache.
    pub cache: PathBuf,
    /// What is in it.
    pub cached: Vec<CachedRepo>,
    /// Published models that are known by name.
    pub known: Vec<KnownModel>,
}

/// A row of the catalog.
#[derive(Debug, Clone, Serialize)]
pub struct KnownModel {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// A sentence on it.
    pub about: String,
    /// Its licence.
    pub licence: String,
    /// Bytes of its own files, about, where they are known.
    pub bytes: Option<u64>,
    /// Whether all that it needs is in the cache.
    pub cached: bool,
}

/// Files that are in the cache now.
#[derive(Debug, Clone, Serialize)]
pub struct Pulled {
    /// The repository and revision.
    pub repository: String,
    /// The commit.
    pub commit: String,
    /// What it is of the model.
    pub kind: Kind,
    /// The folder or file.
    pub path: PathBuf,
}

/// All that is known of a model.
#[derive(Debug, Clone, Serialize)]
pub struct ModelFacts {
    /// Its row in the catalog, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Option<Checkpoint>,
    /// What its page says its licence is, if it was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// What its headers say.
    pub headers: Inspection,
    /// Bytes that a download would fetch.
    pub missing_bytes: u64,
}

/// Files of a model that were hashed again.
#[derive(Debug, Clone, Serialize)]
pub struct VerifiedRepo {
    /// The repository and revision.
    pub repository: String,
    /// Its files.
    pub files: Vec<Verified>,
}

/// Lists the cache and the catalog.
pub fn list(hub: &Hub) -> Result<ModelList> {
    let known = catalog().checkpoints.iter().map(|row| KnownModel {
        name: row.name.clone(),
        kind: row.kind,
        about: row.about.clone(),
        licence: row.licence.clone(),
        bytes: row.sources.first().and_then(|source| source.files.iter().map(|file| file.size).sum()),
        cached: Named::Catalog(row).parts().iter().all(|part| part.cached(hub).is_some()),
    });
    Ok(ModelList {
        cache: hub.cache().root().to_owned(),
        cached: hub.cache().list()?,
        known: known
            .map(|known| KnownModel { bytes: known.bytes.filter(|bytes| *bytes > 0), ..known })
            .collect(),
    })
}

/// Fetches a model, or what is new of it.
pub fn pull(name: &str, hub: &Hub, reporter: &dyn Reporter) -> Result<Vec<Pulled>> {
    let named = remote(name, hub)?;
    if let Named::Catalog(row) = &named {
        let message = format!("{}: {} ({})", row.name, row.licence, row.licence_url);
        let _ = reporter.emit(&Event::Note { message });
    }
    let mut pulled = Vec::new();
    for part in named.parts() {
        let fetched = hub.fetch(&part.repo, &part.files(hub)?, reporter)?;
        pulled.push(Pulled {
            repository: part.repo.to_string(),
            commit: fetched.commit,
            kind: part.kind,
            path: part.path(&fetched.folder),
        });
    }
    Ok(pulled)
}

/// Where a model's parts lie in the cache.
pub fn paths(name: &str, hub: &Hub) -> Result<Vec<PathBuf>> {
    let parts = remote(name, hub)?.parts();
    let place = |part: &Part| match part.cached(hub) {
        Some(fetched) => Ok(part.path(&fetched.folder)),
        None => Err(not_cached(&part.repo)),
    };
    parts.iter().map(place).collect()
}

/// Deletes a model's own files from the cache (not what it shares with others), and says how many bytes that freed.
pub fn remove(name: &str, hub: &Hub) -> Result<u64> {
    let named = remote(name, hub)?;
    let cache = hub.cache();
    let parts = named.parts();
    let Some(part) = parts.first() else { return Err(not_known(name)) };
    match &named {
        // A repository as a whole, with all of its commits.
        Named::Hub(Address { file: None, repo }) if !name.contains('@') => {
            match cache.folder(repo).is_dir() {
                true => cache.remove(repo),
                false => Err(not_cached(repo)),
            }
        }
        _ => {
            let commit = cache.commit(&part.repo).ok_or_else(|| not_cached(&part.repo))?;
            if !cache.files(&part.repo, &commit)?.iter().any(|file| part.holds(&file.path)) {
                return Err(not_cached(&part.repo));
            }
            cache.remove_files(&part.repo, &commit, &|path| part.holds(path))
        }
    }
}

/// Hashes a model's files again. With `repair`, wrong ones are taken out of the cache.
pub fn verify(name: &str, hub: &Hub, repair: bool, reporter: &dyn Reporter) -> Result<Vec<VerifiedRepo>> {
    let mut verified: Vec<VerifiedRepo> = Vec::new();
    for part in remote(name, hub)?.parts() {
        let holds = |path: &str| part.holds(path);
        let files = hub.verify(&part.repo, &holds, repair, reporter)?;
        verified.push(VerifiedRepo { repository: part.repo.to_string(), files });
    }
    Ok(verified)
}

/// What is known of a model, from its headers; no weights are fetched.
pub fn facts(name: &str, hub: &Hub) -> Result<ModelFacts> {
    let named = Named::find(name, hub)?;
    let outline = outline(name, &Parts::default(), hub)?;
    let catalog = match &named {
        Named::Catalog(row) => Some((*row).clone()),
        _ => None,
    };
    let licence = match (&named, outline.missing_bytes) {
        (Named::Hub(address), 1..) => hub.listing(&address.repo)?.licence,
        _ => None,
    };
    let mut headers = inspect(&outline.source)?;
    if !matches!(named, Named::Local(_)) {
        name.clone_into(&mut headers.info.name);
    }
    Ok(ModelFacts { catalog, licence, headers, missing_bytes: outline.missing_bytes })
}

/// A name that isn't a path's.
fn remote(name: &str, hub: &Hub) -> Result<Named> {
    match Named::find(name, hub)? {
        Named::Local(_) => Err(not_known(name)),
        named => Ok(named),
    }
}

fn not_known(name: &str) -> Error {
    Error::invalid(format!("model `{name}`"), "it is a file or folder of yours, not a model of the cache")
}
