//! One file's way from the hub into the cache: locked, gone on with, checked, and put in place whole.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use sha2::Digest as _;

use super::{
    cache::Cache,
    client::{Client, Digest, Remote, Trouble},
    name::RepoId,
};
use crate::{
    error::{Error, Result},
    event::{Event, Phase, Reporter},
};

/// Bytes that are read at a time.
const CHUNK: usize = 128 << 10;
/// Downloads of one file whose bytes may turn out wrong.
const DOWNLOADS: usize = 3;
/// How often somebody else's download is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// Bytes that were fetched of how many, told no more often than a bar can move.
pub(super) struct Meter<'a> {
    reporter: &'a dyn Reporter,
    /// Bytes of the files that are whole.
    before: u64,
    total: u64,
    told: Instant,
}

impl<'a> Meter<'a> {
    pub fn start(reporter: &'a dyn Reporter, total: u64) -> Result<Self> {
        tell(reporter, &Event::Started { phase: Phase::Download, total })?;
        Ok(Self { reporter, before: 0, total, told: Instant::now() })
    }

    /// `done` bytes of the current file are there.
    fn at(&mut self, done: u64) -> Result<()> {
        if self.told.elapsed() < Duration::from_millis(50) {
            return Ok(());
        }
        self.say(self.before + done)
    }

    /// The current file of `size` bytes is whole.
    pub fn file_done(&mut self, size: u64) -> Result<()> {
        self.before += size;
        self.say(self.before)
    }

    fn say(&mut self, done: u64) -> Result<()> {
        self.told = Instant::now();
        tell(self.reporter, &Event::Progress { phase: Phase::Download, done, total: self.total })
    }
}

pub(super) fn tell(reporter: &dyn Reporter, event: &Event) -> Result<()> {
    match reporter.emit(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled { saved: None }),
    }
}

/// A file that is being fetched.
pub(super) struct Fetch<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub repo: &'a RepoId,
    pub path: &'a str,
    pub remote: &'a Remote,
    /// What the catalog says the content's hash is.
    pub sha256: Option<&'a str>,
}

impl Fetch<'_> {
    /// Sees to it that the file's blob is there and right.
    pub fn blob(&self, meter: &mut Meter<'_>) -> Result<()> {
        let blob = self.cache.blob(self.repo, &self.remote.etag);
        let folder = blob.parent().unwrap_or(&blob);
        fs::create_dir_all(folder).map_err(Error::file("write into", folder))?;
        let lock = self.cache.open_lock(self.repo, &self.remote.etag)?;
        self.wait(&lock, meter)?;
        if blob.metadata().is_ok_and(|there| there.len() == self.remote.size) {
            return Ok(());
        }
        self.check_room(folder)?;
        let part = self.cache.incomplete(self.repo, &self.remote.etag);
        let mut found = String::new();
        for _ in 0..DOWNLOADS {
            match self.download(&part, meter)? {
                None => {
                    fs::rename(&part, &blob).map_err(Error::file("write", &blob))?;
                    return Ok(());
                }
                Some(wrong) => {
                    fs::remove_file(&part).map_err(Error::file("remove", &part))?;
                    let message = format!("{} came with wrong bytes and is fetched again", self.path);
                    tell(meter.reporter, &Event::Warning { message })?;
                    found = wrong;
                }
            }
        }
        let expected = match (self.sha256, &self.remote.digest) {
            (Some(sha256), _) => sha256.to_owned(),
            (None, Digest::Sha256(hash) | Digest::Git(hash)) => hash.clone(),
            (None, Digest::Unknown) => format!("{} bytes", self.remote.size),
        };
        Err(Error::WrongBytes { file: format!("{} of {}", self.path, self.repo), found, expected })
    }

    /// Waits until nobody else works on this blob.
    fn wait(&self, lock: &File, meter: &Meter<'_>) -> Result<()> {
        let mut said = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => {}
                // A disk without locks: files still appear in one step, they may only be fetched twice.
                Err(TryLockError::Error(_)) => return Ok(()),
            }
            if !said {
                said = true;
                let message = format!("another program is fetching {}; waiting for it", self.path);
                tell(meter.reporter, &Event::Note { message })?;
            }
            std::thread::sleep(GLANCE);
            tell(
                meter.reporter,
                &Event::Progress { phase: Phase::Download, done: meter.before, total: meter.total },
            )?;
        }
    }

    fn check_room(&self, folder: &Path) -> Result<()> {
        let there = self.cache.incomplete(self.repo, &self.remote.etag).metadata().map_or(0, |m| m.len());
        let need = self.remote.size.saturating_sub(there);
        match super::disk::free_bytes(folder) {
            Some(free) if free < need => Err(Error::DiskFull {
                path: folder.to_owned(),
                need_mib: need.div_ceil(1 << 20),
                have_mib: free >> 20,
            }),
            _ => Ok(()),
        }
    }

    /// Goes on with `part` until it is whole. `Some` hash if that isn't the right one.
    fn download(&self, part: &Path, meter: &mut Meter<'_>) -> Result<Option<String>> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(Error::file("write", part))?;
        let size = self.remote.size;
        let mut hashes = Hashes::new(self.remote);
        let mut done = hashes.read(&mut file).map_err(Error::file("read", part))?;
        let (mut fruitless, mut wait) = (0, self.client.patience.retry);
        while done < size {
            let before = done;
            let outcome = self.stream(&mut file, part, &mut done, &mut hashes, meter);
            let why = match outcome {
                Ok(()) if done >= size => break,
                Ok(()) => "the connection ended early".to_owned(),
                Err(Trouble::Passing(why)) => why,
                Err(Trouble::Lasting(error)) => return Err(error),
            };
            (fruitless, wait) =
                if done > before { (0, self.client.patience.retry) } else { (fruitless + 1, wait * 2) };
            if fruitless >= self.client.patience.tries {
                return Err(self.client.unreachable(&format!("{} of {}", self.path, self.repo), why));
            }
            std::thread::sleep(wait);
            meter.say(meter.before + done)?;
        }
        file.sync_all().map_err(Error::file("write", part))?;
        Ok(hashes.wrong(done, self.remote, self.sha256))
    }

    /// One connection's worth of the file's bytes from `done` on.
    fn stream(
        &self,
        file: &mut File,
        part: &Path,
        done: &mut u64,
        hashes: &mut Hashes,
        meter: &mut Meter<'_>,
    ) -> Result<(), Trouble> {
        let write = |e| Trouble::Lasting(Error::file("write", part)(e));
        let (answer, first) =
            self.client.content(self.repo, &self.remote.commit, self.path, (*done, None))?;
        if first != *done {
            // The hub knows no ranges, or another one came: from the beginning.
            if first != 0 {
                return Err(Trouble::Passing(format!("the hub sent byte {first} instead of {done}")));
            }
            *done = 0;
            *hashes = Hashes::new(self.remote);
            file.set_len(0).map_err(write)?;
        }
        file.seek(SeekFrom::Start(*done)).map_err(write)?;
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match body.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Trouble::Passing(e.to_string())),
            };
            let bytes = &chunk[..read];
            file.write_all(bytes).map_err(write)?;
            hashes.update(bytes);
            *done += read as u64;
            meter.at(*done).map_err(Trouble::Lasting)?;
            if *done > self.remote.size {
                // More than was promised: the hash will tell, and nothing fills the disk.
                return Ok(());
            }
        }
    }
}

/// The hashes of a growing file.
struct Hashes {
    sha256: sha2::Sha256,
    git: Option<sha1::Sha1>,
}

impl Hashes {
    fn new(remote: &Remote) -> Self {
        let git = matches!(remote.digest, Digest::Git(_)).then(|| {
            let mut git = sha1::Sha1::new();
            git.update(format!("blob {}\0", remote.size));
            git
        });
        Self { sha256: sha2::Sha256::new(), git }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.git.iter_mut().for_each(|git| git.update(bytes));
    }

    /// Takes a file in from its beginning, and says how long it is.
    fn read(&mut self, file: &mut File) -> std::io::Result<u64> {
        file.seek(SeekFrom::Start(0))?;
        let mut chunk = vec![0; CHUNK];
        let mut length = 0;
        loop {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                return Ok(length);
            }
            self.update(&chunk[..read]);
            length += read as u64;
        }
    }

    /// The hash of `length` bytes, unless it is the right one.
    fn wrong(self, length: u64, remote: &Remote, known: Option<&str>) -> Option<String> {
        let sha256 = hex(&self.sha256.finalize());
        if length != remote.size {
            return Some(format!("{length} bytes"));
        }
        if known.is_some_and(|known| !known.eq_ignore_ascii_case(&sha256)) {
            return Some(sha256);
        }
        match (&remote.digest, self.git) {
            (Digest::Sha256(expected), _) => (*expected != sha256).then_some(sha256),
            (Digest::Git(expected), Some(git)) => {
                let git = hex(&git.finalize());
                (*expected != git).then_some(git)
            }
            _ => None,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is wrong with a blob of the cache, by its name; nothing if its name says nothing or all is well.
pub(super) fn verify(blob: &Path, progress: &mut dyn FnMut(u64) -> Result<()>) -> Result<Option<String>> {
    let name = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut file = File::open(blob).map_err(Error::file("read", blob))?;
    let size = file.metadata().map_err(Error::file("read", blob))?.len();
    let digest = match name.len() {
        64 => Digest::Sha256(name.clone()),
        40 => Digest::Git(name.clone()),
        _ => return Ok(None),
    };
    let remote = Remote { commit: String::new(), etag: name, digest, size };
    let mut hashes = Hashes::new(&remote);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut chunk).map_err(Error::file("read", blob))?;
        if read == 0 {
            return Ok(hashes.wrong(size, &remote, None));
        }
        hashes.update(&chunk[..read]);
        progress(read as u64)?;
    }
}
