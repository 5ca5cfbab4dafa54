//! Models on a hub, and the cache on this machine that they are fetched into.
//!
//! The cache is the one that `huggingface_hub` has, so that what one program fetched the others find. hf-hub knows
//! how it is laid out; the transfer is our own, since hf-hub 0.5 checks no hash, takes file names and hashes from the
//! hub as they come, can't be stopped and knows nothing of being offline:
//!
//! - Names are checked before they become paths; only safetensors, GGUF, JSON and tokenizer files are fetched.
//! - A download goes on where an earlier one stopped, also another program's, under a lock that they share.
//! - Its bytes are hashed on their way: SHA-256 for weights, git's hash for small files, and the catalog's where it
//!   has one. Wrong bytes are fetched again.
//! - A file appears under its name when it is whole and right, in one step; the index of a model folder comes last.
//! - The token goes to the hub alone, not to where the hub sends us on to.

mod cache;
mod client;
mod disk;
mod fetch;
mod name;
mod select;
mod shadow;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

pub use self::{
    cache::{Cache, CachedFile, CachedRepo, CachedRevision},
    client::{ENDPOINT, Listed, Listing, Patience, Token},
    disk::free_bytes,
    name::{Address, MAIN, RepoId, is_readable},
    select::MODEL_INDEX,
    shadow::Shadow,
};
use self::{
    client::{Client, Remote},
    fetch::{Fetch, Meter, tell},
    select::{components, needed, shards},
};
use crate::{
    error::{Error, Result},
    event::{Event, Phase, Reporter},
};

/// Where models come from and where they are kept.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// The folder of the shared cache.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// What proves to it who asks.
    pub token: Option<Token>,
    /// Whether only the cache may be used.
    pub offline: bool,
    /// How long it is waited for.
    pub patience: Patience,
}

impl HubConfig {
    /// The public hub, with the cache in `cache`.
    #[must_use]
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: ENDPOINT.into(),
            token: None,
            offline: false,
            patience: Patience::default(),
        }
    }
}

/// A file that is wanted from a repository.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Its path.
    pub path: String,
    /// Its size, where it is known.
    pub size: Option<u64>,
    /// Its SHA-256, where it is known for sure.
    pub sha256: Option<String>,
}

impl Wanted {
    /// A file nothing is known about.
    #[must_use]
    pub fn named(path: impl Into<String>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

/// Fetched files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The commit they belong to.
    pub commit: String,
    /// The folder that they lie in, each below its path.
    pub folder: PathBuf,
}

/// What was found out about a cached file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Its path in the repository.
    pub path: String,
    /// What is wrong with it, if something is.
    pub wrong: Option<String>,
}

/// A hub and its cache.
///
/// ```no_run
/// use sora::{event::Silent, hub::{Hub, HubConfig, RepoId}};
///
/// let hub = Hub::new(HubConfig::new("/tmp/hub"));
/// let repo = RepoId::new("Lightricks/LTX-Video", "main")?;
/// let wanted = hub.model_folder(&repo)?;
/// let fetched = hub.fetch(&repo, &wanted, &Silent)?;
/// println!("{}", fetched.folder.display());
/// # Ok::<(), sora::Error>(())
/// ```
pub struct Hub {
    config: HubConfig,
    cache: Cache,
    client: Client,
}

impl Hub {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        let client = Client::new(&config.endpoint, config.token.clone(), config.patience);
        Self { cache: Cache::new(&config.cache), client, config }
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where it was told to look.
    #[must_use]
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    fn client(&self) -> &Client {
        &self.client
    }

    /// Refuses to go online where that is forbidden.
    fn online(&self, what: &str) -> Result<()> {
        if !self.config.offline {
            return Ok(());
        }
        Err(Error::Hub {
            what: what.into(),
            why: "it isn't in the cache, and nothing may be downloaded".into(),
            hint: format!(
                "leave out --offline (or HF_HUB_OFFLINE), or copy the model into {}",
                self.cache.root().display()
            ),
        })
    }

    /// What the hub has of a repository.
    pub fn listing(&self, repo: &RepoId) -> Result<Listing> {
        self.online(&repo.to_string())?;
        self.client.listing(repo)
    }

    /// Asks the hub which files make up the model folder that a repository holds.
    pub fn model_folder(&self, repo: &RepoId) -> Result<Vec<Wanted>> {
        let listing = self.listing(repo)?;
        let pinned = RepoId { revision: listing.commit.clone(), ..repo.clone() };
        if !listing.files.iter().any(|file| file.path == MODEL_INDEX) {
            return Err(self.no_folder(repo, listing.files.iter().map(|file| file.path.as_str())));
        }
        let index = self.small_file(&pinned, MODEL_INDEX)?;
        let index = serde_json::from_slice(&index)
            .map_err(|e| Error::damaged(format!("{repo}/{MODEL_INDEX}"), e.to_string()))?;
        let paths = needed(&components(&index), listing.files.iter().map(|file| file.path.as_str()));
        let size = |path: &str| listing.files.iter().find(|file| file.path == path)?.size;
        Ok(paths.into_iter().map(|path| Wanted { size: size(path), ..Wanted::named(path) }).collect())
    }

    fn no_folder<'a>(&self, repo: &RepoId, paths: impl Iterator<Item = &'a str>) -> Error {
        let weights = paths.filter(|path| path.ends_with(".safetensors") || path.ends_with(".gguf"));
        let mut names: Vec<String> = weights.take(9).map(|path| format!("{}/{path}", repo.id())).collect();
        if names.len() > 8 {
            names[8] = "…".into();
        }
        let hint = match names.is_empty() {
            true => "it holds no weights that can be read here".to_owned(),
            false => format!("name one of its files: {}", names.join(", ")),
        };
        Error::Hub { what: repo.to_string(), why: format!("it has no {MODEL_INDEX}"), hint }
    }

    fn small_file(&self, repo: &RepoId, path: &str) -> Result<Vec<u8>> {
        let shadow = self.shadow(repo, &[Wanted::named(path)])?;
        let file = shadow.folder().join(path);
        fs::read(&file).map_err(Error::file("read", file))
    }

    /// The folder of a model that is cached whole, as far as its own files say what belongs to it.
    #[must_use]
    pub fn cached_folder(&self, repo: &RepoId) -> Option<Fetched> {
        let commit = self.cache.commit(repo)?;
        let folder = self.cache.snapshot(repo, &commit);
        let index = fs::read(folder.join(MODEL_INDEX)).ok()?;
        let components = components(&serde_json::from_slice(&index).ok()?);
        let whole = components.iter().all(|component| self.is_whole(repo, &commit, component));
        (whole && !components.is_empty()).then_some(Fetched { commit, folder })
    }

    /// Whether a folder of a commit is cached with all that its own files speak of.
    fn is_whole(&self, repo: &RepoId, commit: &str, component: &str) -> bool {
        let files = self.cache.files(repo, commit).unwrap_or_default();
        let below = format!("{component}/");
        let names: BTreeSet<&str> = files.iter().filter_map(|file| file.path.strip_prefix(&below)).collect();
        let weights = names.iter().any(|name| name.ends_with(".safetensors"));
        // Whatever has a plain config has weights.
        if names.is_empty() || (names.contains("config.json") && !weights) {
            return false;
        }
        let folder = self.cache.snapshot(repo, commit).join(component);
        let mut indices = names.iter().filter(|name| name.contains(".safetensors.index."));
        indices.all(|index| {
            fs::read(folder.join(index)).is_ok_and(|index| {
                let listed = shards(&index);
                !listed.is_empty() && listed.iter().all(|shard| names.contains(shard.as_str()))
            })
        })
    }

    /// The folder with all of these files, if they are cached. A path that ends in `/` stands for what is below it.
    #[must_use]
    pub fn cached(&self, repo: &RepoId, wanted: &[Wanted]) -> Option<Fetched> {
        let commit = self.cache.commit(repo)?;
        let whole = |file: &Wanted| match file.path.strip_suffix('/') {
            Some(component) => self.is_whole(repo, &commit, component),
            None => {
                let length = self.cache.file(repo, &commit, &file.path).and_then(|path| path.metadata().ok());
                length.is_some_and(|there| file.size.is_none_or(|size| size == there.len()))
            }
        };
        wanted.iter().all(whole).then(|| Fetched { folder: self.cache.snapshot(repo, &commit), commit })
    }

    /// The files that paths stand for: those that end in `/` for all that can be read below them, as the hub lists it.
    pub fn expand(&self, repo: &RepoId, wanted: &[Wanted]) -> Result<Vec<Wanted>> {
        if wanted.iter().all(|file| !file.path.ends_with('/')) {
            return Ok(wanted.to_vec());
        }
        let listing = self.listing(repo)?;
        let mut expanded = Vec::new();
        for file in wanted {
            let Some(component) = file.path.strip_suffix('/') else {
                expanded.push(file.clone());
                continue;
            };
            let below = BTreeSet::from([component.to_owned()]);
            for path in needed(&below, listing.files.iter().map(|file| file.path.as_str())) {
                if path != MODEL_INDEX {
                    expanded.push(Wanted::named(path));
                }
            }
        }
        if expanded.is_empty() {
            let paths = listing.files.iter().map(|file| file.path.as_str());
            return Err(self.no_folder(repo, paths));
        }
        Ok(expanded)
    }

    /// Fetches what the cache lacks of these files, and says where they lie.
    ///
    /// All come from the commit that the revision is at the moment. A file that is cached already is not fetched
    /// again.
    pub fn fetch(&self, repo: &RepoId, wanted: &[Wanted], reporter: &dyn Reporter) -> Result<Fetched> {
        for file in wanted {
            name::check_path(&file.path)?;
            if !is_readable(&file.path) {
                return Err(Error::invalid(
                    format!("file `{}`", file.path),
                    "only safetensors, GGUF, JSON and tokenizer files are fetched",
                ));
            }
        }
        let Some(first) = wanted.first() else {
            return Err(Error::invalid(format!("model {repo}"), "it has no files that can be read here"));
        };
        self.online(&repo.to_string())?;
        let commit = self.client.look(repo, &repo.revision, &first.path)?.commit;
        let mut missing: Vec<(&Wanted, Remote)> = Vec::new();
        for file in wanted {
            if self.cache.file(repo, &commit, &file.path).is_none() {
                let remote = self.client.look(repo, &commit, &file.path)?;
                if let Some(size) = file.size.filter(|size| *size != remote.size && file.sha256.is_some()) {
                    let why = format!("it has {} bytes there (expected {size})", remote.size);
                    let hint =
                        "the file was changed since it was listed; name its repository and revision yourself";
                    let what = format!("{} of {repo}", file.path);
                    return Err(Error::Hub { what, why, hint: hint.into() });
                }
                missing.push((file, remote));
            }
        }
        if !missing.is_empty() {
            self.download(repo, &commit, &missing, reporter)?;
        }
        self.cache.set_ref(repo, &commit)?;
        let folder = self.cache.snapshot(repo, &commit);
        Ok(Fetched { commit, folder })
    }

    fn download(
        &self,
        repo: &RepoId,
        commit: &str,
        missing: &[(&Wanted, Remote)],
        reporter: &dyn Reporter,
    ) -> Result<()> {
        let clock = Instant::now();
        let mut meter = Meter::start(reporter, missing.iter().map(|(_, remote)| remote.size).sum())?;
        for (file, remote) in missing {
            let sha256 = file.sha256.as_deref();
            let fetch =
                Fetch { client: &self.client, cache: &self.cache, repo, path: &file.path, remote, sha256 };
            fetch.blob(&mut meter)?;
            self.cache.place(repo, commit, &file.path, &remote.etag)?;
            meter.file_done(remote.size)?;
        }
        tell(reporter, &Event::Finished { phase: Phase::Download, elapsed: clock.elapsed() })
    }

    /// Hashes those cached files of a revision that `chosen` names again and compares them with their blobs' names.
    ///
    /// With `repair`, wrong files are taken out of the cache, so that the next fetch brings them anew.
    pub fn verify(
        &self,
        repo: &RepoId,
        chosen: &dyn Fn(&str) -> bool,
        repair: bool,
        reporter: &dyn Reporter,
    ) -> Result<Vec<Verified>> {
        let commit = self.cache.commit(repo).ok_or_else(|| not_cached(repo))?;
        let mut files = self.cache.files(repo, &commit)?;
        files.retain(|file| chosen(&file.path));
        let total = files.iter().map(|file| file.bytes).sum();
        tell(reporter, &Event::Started { phase: Phase::Verify, total })?;
        let clock = Instant::now();
        let mut done = 0;
        let mut verified = Vec::new();
        for file in files {
            let link = self.cache.snapshot(repo, &commit).join(&file.path);
            let blob = link.canonicalize().map_err(Error::file("read", &link))?;
            let mut progress = |bytes| {
                done += bytes;
                tell(reporter, &Event::Progress { phase: Phase::Verify, done, total })
            };
            let wrong = fetch::verify(&blob, &mut progress)?;
            if repair && wrong.is_some() {
                remove(&blob)?;
                remove(&link)?;
            }
            verified.push(Verified { path: file.path, wrong });
        }
        tell(reporter, &Event::Finished { phase: Phase::Verify, elapsed: clock.elapsed() })?;
        Ok(verified)
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Error::file("remove", path))
}

/// The error for a repository that nothing is cached of.
#[must_use]
pub fn not_cached(repo: &RepoId) -> Error {
    Error::invalid(format!("model {repo}"), "it isn't in the cache")
        .with_hint(format!("`sora models pull {repo}` fetches it, `sora models list` shows what is there"))
}
