//! The cache that all programs share: `models--OWNER--NAME/{blobs,refs,snapshots}`.
//!
//! A blob is named by its content's hash. A snapshot is one commit's files, as links to blobs. A ref says which commit
//! a branch or tag was when it was last asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use hf_hub::{CacheRepo, Repo, RepoType};
use serde::Serialize;

use super::name::{RepoId, check_path, is_commit};
use crate::error::{Error, Result};

/// What a download is called until it is whole, as the Python library calls it.
const INCOMPLETE: &str = "incomplete";

/// The shared cache.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachedFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// One commit of a cached repository.
#[derive(Debug, Clone, Serialize)]
pub struct CachedRevision {
    /// The commit.
    pub commit: String,
    /// Branches and tags that were at this commit when they were last asked for.
    pub refs: Vec<String>,
    /// Where its files lie.
    pub folder: PathBuf,
    /// Its files, by path.
    pub files: Vec<CachedFile>,
}

/// A repository in the cache.
#[derive(Debug, Clone, Serialize)]
pub struct CachedRepo {
    /// `owner/name`.
    pub id: String,
    /// What its blobs take on the disk.
    pub bytes: u64,
    /// The part of it that belongs to downloads that aren't whole.
    pub unfinished_bytes: u64,
    /// Its commits.
    pub revisions: Vec<CachedRevision>,
}

impl Cache {
    /// `root` is the folder that holds `models--…`: `HF_HUB_CACHE`, or `HF_HOME/hub`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder that holds all repositories.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a repository.
    #[must_use]
    pub fn folder(&self, repo: &RepoId) -> PathBuf {
        self.root.join(Repo::model(repo.id()).folder_name())
    }

    fn places(&self, repo: &RepoId) -> CacheRepo {
        let repo = Repo::with_revision(repo.id(), RepoType::Model, repo.revision.clone());
        hf_hub::Cache::new(self.root.clone()).repo(repo)
    }

    /// Where the files of a commit lie, or would.
    #[must_use]
    pub fn snapshot(&self, repo: &RepoId, commit: &str) -> PathBuf {
        self.places(repo).pointer_path(commit)
    }

    pub(super) fn blob(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.places(repo).blob_path(etag)
    }

    pub(super) fn incomplete(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.blob(repo, &format!("{etag}.{INCOMPLETE}"))
    }

    /// The file whose lock says that somebody works on a blob: the Python library's, so that it waits, too.
    pub(super) fn lock(&self, repo: &RepoId, etag: &str) -> PathBuf {
        self.root.join(".locks").join(Repo::model(repo.id()).folder_name()).join(format!("{etag}.lock"))
    }

    /// The commit that a repository's revision stands for here, if something of it is cached.
    #[must_use]
    pub fn commit(&self, repo: &RepoId) -> Option<String> {
        let commit = if is_commit(&repo.revision) {
            repo.revision.clone()
        } else {
            fs::read_to_string(self.folder(repo).join("refs").join(&repo.revision)).ok()?.trim().to_owned()
        };
        (is_commit(&commit) && self.snapshot(repo, &commit).is_dir()).then_some(commit)
    }

    /// A cached file of a commit.
    #[must_use]
    pub fn file(&self, repo: &RepoId, commit: &str, path: &str) -> Option<PathBuf> {
        check_path(path).ok()?;
        Some(self.snapshot(repo, commit).join(path)).filter(|file| file.is_file())
    }

    /// The files of a commit that are cached, by path.
    pub fn files(&self, repo: &RepoId, commit: &str) -> Result<Vec<CachedFile>> {
        let root = self.snapshot(repo, commit);
        let mut files = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for path in entries(&folder)? {
                let Ok(metadata) = path.metadata() else { continue };
                if path.symlink_metadata().is_ok_and(|own| own.is_dir()) {
                    folders.push(path);
                } else if let (true, Ok(inside)) = (metadata.is_file(), path.strip_prefix(&root)) {
                    let path = inside.to_string_lossy().replace('\\', "/");
                    files.push(CachedFile { path, bytes: metadata.len() });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// Lets a commit's file point to its blob.
    pub(super) fn place(&self, repo: &RepoId, commit: &str, path: &str, etag: &str) -> Result<PathBuf> {
        check_path(path)?;
        let file = self.snapshot(repo, commit).join(path);
        let folder = file.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(Error::file("write into", folder))?;
        // No link that was there before may lead out of the repository's own folder.
        let real = |path: &Path| path.canonicalize().map_err(Error::file("read", path));
        if !real(folder)?.starts_with(real(&self.folder(repo))?) {
            return Err(Error::invalid(format!("file name `{path}`"), "it leads out of the cache"));
        }
        let depth = path.matches('/').count() + 2;
        let target: PathBuf = std::iter::repeat_n("..", depth).collect::<PathBuf>().join("blobs").join(etag);
        link(&target, &self.blob(repo, etag), &file)?;
        Ok(file)
    }

    /// Remembers which commit a branch or tag is.
    pub(super) fn set_ref(&self, repo: &RepoId, commit: &str) -> Result<()> {
        if is_commit(&repo.revision) {
            return Ok(());
        }
        let path = self.folder(repo).join("refs").join(&repo.revision);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(Error::file("write into", folder))?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(Error::file("write into", folder))?;
        file.write_all(commit.as_bytes()).map_err(Error::file("write", &path))?;
        file.persist(&path).map_err(|e| Error::file("write", path)(e.error))?;
        Ok(())
    }

    /// All repositories, by name.
    pub fn list(&self) -> Result<Vec<CachedRepo>> {
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for path in entries(&self.root)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((owner, name)) = name.strip_prefix("models--").and_then(|name| name.split_once("--"))
            else {
                continue;
            };
            if let Ok(repo) = RepoId::new(&format!("{owner}/{name}"), super::name::MAIN) {
                found.push(self.describe(&repo)?);
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// What is cached of a repository, whatever its revision.
    pub fn describe(&self, repo: &RepoId) -> Result<CachedRepo> {
        let folder = self.folder(repo);
        let (mut bytes, mut unfinished_bytes) = (0, 0);
        for blob in entries(&folder.join("blobs")).unwrap_or_default() {
            let length = blob.metadata().map_or(0, |metadata| metadata.len());
            bytes += length;
            if blob.extension().is_some_and(|ending| ending == INCOMPLETE) {
                unfinished_bytes += length;
            }
        }
        let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, commit) in self.refs(repo) {
            refs.entry(commit).or_default().push(name);
        }
        let mut revisions = Vec::new();
        for snapshot in entries(&folder.join("snapshots")).unwrap_or_default() {
            let commit = snapshot.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let files = self.files(repo, &commit)?;
            let refs = refs.remove(&commit).unwrap_or_default();
            revisions.push(CachedRevision { commit, refs, folder: snapshot, files });
        }
        revisions.sort_by(|a, b| a.commit.cmp(&b.commit));
        Ok(CachedRepo { id: repo.id(), bytes, unfinished_bytes, revisions })
    }

    /// Names below `refs/`, and their commits.
    fn refs(&self, repo: &RepoId) -> Vec<(String, String)> {
        let root = self.folder(repo).join("refs");
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for path in entries(&folder).unwrap_or_default() {
                if path.is_dir() {
                    folders.push(path);
                } else if let (Ok(commit), Ok(name)) = (fs::read_to_string(&path), path.strip_prefix(&root)) {
                    found.push((name.to_string_lossy().replace('\\', "/"), commit.trim().to_owned()));
                }
            }
        }
        found.sort();
        found
    }

    /// Deletes a repository, and says how many bytes that freed; 0 if nothing of it was cached.
    pub fn remove(&self, repo: &RepoId) -> Result<u64> {
        let folder = self.folder(repo);
        if !folder.is_dir() {
            return Ok(0);
        }
        let bytes = self.describe(repo)?.bytes;
        // Under another name first, so that no half of a model is ever found.
        let doomed = tempfile::Builder::new()
            .prefix(".removed-")
            .tempdir_in(&self.root)
            .map_err(Error::file("write into", &self.root))?;
        fs::rename(&folder, doomed.path().join("model")).map_err(Error::file("remove", &folder))?;
        doomed.close().map_err(Error::file("remove", &folder))?;
        Ok(bytes)
    }

    /// Deletes those files of a commit that `chosen` names, with the blobs that nothing else uses, and says how many
    /// bytes that freed. A commit without files is forgotten.
    pub fn remove_files(&self, repo: &RepoId, commit: &str, chosen: &dyn Fn(&str) -> bool) -> Result<u64> {
        let snapshot = self.snapshot(repo, commit);
        let blobs_of = |folder: &Path, chosen: &dyn Fn(&str) -> bool| -> BTreeSet<PathBuf> {
            let commit = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let files = self.files(repo, &commit).unwrap_or_default();
            let chosen = files.iter().filter(|file| chosen(&file.path));
            chosen.filter_map(|file| folder.join(&file.path).canonicalize().ok()).collect()
        };
        let mut doomed = blobs_of(&snapshot, chosen);
        for other in entries(&self.folder(repo).join("snapshots"))? {
            let kept = |path: &str| other != snapshot || !chosen(path);
            let used = blobs_of(&other, &kept);
            doomed.retain(|blob| !used.contains(blob));
        }
        for file in self.files(repo, commit)?.iter().filter(|file| chosen(&file.path)) {
            let link = snapshot.join(&file.path);
            fs::remove_file(&link).map_err(Error::file("remove", &link))?;
        }
        let blobs = self.folder(repo).join("blobs").canonicalize().map_err(Error::file("read", &snapshot))?;
        let mut freed = 0;
        for blob in doomed.iter().filter(|blob| blob.starts_with(&blobs)) {
            freed += blob.metadata().map_or(0, |metadata| metadata.len());
            fs::remove_file(blob).map_err(Error::file("remove", blob))?;
        }
        if self.files(repo, commit)?.is_empty() {
            for (name, _) in self.refs(repo).into_iter().filter(|(_, at)| at == commit) {
                let path = self.folder(repo).join("refs").join(name);
                fs::remove_file(&path).map_err(Error::file("remove", path))?;
            }
            fs::remove_dir_all(&snapshot).map_err(Error::file("remove", &snapshot))?;
        }
        Ok(freed)
    }

    /// The folder to lock and write in, made if it isn't there.
    pub(super) fn open_lock(&self, repo: &RepoId, etag: &str) -> Result<File> {
        let path = self.lock(repo, etag);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(Error::file("write into", folder))?;
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(Error::file("write", path))
    }
}

/// What lies in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).map_err(Error::file("read", folder))?;
    let mut paths = listed
        .map(|entry| entry.map(|entry| entry.path()).map_err(Error::file("read", folder)))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Makes `file` a link to `target` (which is `blob`, seen from the file's folder), in one step.
#[cfg(unix)]
fn link(target: &Path, _blob: &Path, file: &Path) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    let temporary = tempfile::Builder::new()
        .prefix(".link-")
        .make_in(folder, |path| std::os::unix::fs::symlink(target, path))
        .map_err(Error::file("write into", folder))?;
    temporary.persist(file).map_err(|e| Error::file("write", file)(e.error))?;
    Ok(())
}

/// Links need a privilege on Windows: the blob itself is linked, or else copied.
#[cfg(not(unix))]
fn link(_target: &Path, blob: &Path, file: &Path) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    fs::hard_link(blob, file).or_else(|_| fs::copy(blob, file).map(drop)).map_err(Error::file("write", file))
}
