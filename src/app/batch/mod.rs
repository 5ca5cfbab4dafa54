//! Batches: many jobs from one file, done by any number of workers, none twice, none lost.
//!
//! [`plan`](plan::plan) understands a job file, [`Batch`] takes its jobs into the journal of a folder and works on
//! them until none is left.

pub mod estimate;
pub mod file;
pub mod matrix;
pub mod options;
pub mod plan;
mod publish;
pub mod request;
pub mod shard;
pub mod slurm;
pub mod survey;
mod template;
pub mod watch;
pub mod work;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    app::{
        batch::{
            plan::{Plan, Planned},
            shard::Shard,
        },
        fingerprint,
        journal::{Claim, Journal, State, Wanted},
        recipe::Stamp,
    },
    error::{Error, Result},
};

/// The name of a batch's own place in its folder.
pub const OWN: &str = ".sora";

/// Half-written files that are older are nobody's any more.
const STALE: Duration = Duration::from_secs(3600);

/// Where a batch keeps what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The outputs' folder.
    pub folder: PathBuf,
}

impl Place {
    /// The batch of this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The batch's own place.
    #[must_use]
    pub fn own(&self) -> PathBuf {
        self.folder.join(OWN)
    }

    /// The journal: one for all, or one for each share.
    #[must_use]
    pub fn journal(&self, shard: Option<Shard>) -> PathBuf {
        self.own().join(match shard {
            None => "journal.sqlite".to_owned(),
            Some(shard) => format!("journal-{}.sqlite", shard.file_word()),
        })
    }

    /// All journals that are there.
    pub fn journals(&self) -> Result<Vec<PathBuf>> {
        let own = self.own();
        let Ok(entries) = std::fs::read_dir(&own) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::file("read", &own))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("journal") && name.ends_with(".sqlite") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Where clips are made before they are whole.
    fn making(&self) -> PathBuf {
        self.own().join("making")
    }

    /// The latents of a job that isn't done, by its hash.
    fn latents(&self, hash: &str) -> PathBuf {
        self.own().join("latents").join(format!("{}.safetensors", &hash[..32.min(hash.len())]))
    }

    /// The finished windows of a long job that isn't done.
    fn windows(&self, hash: &str) -> PathBuf {
        self.latents(hash).with_extension("windows.safetensors")
    }

    /// All that may be saved of a job that isn't done: the clip that a loop is made of has files of its own.
    fn kept(&self, hash: &str) -> [PathBuf; 5] {
        let windows = self.windows(hash);
        let own =
            ["mkv", "begun.safetensors", "mkv.windows.safetensors"].map(|end| windows.with_extension(end));
        let [clip, begun, clip_windows] = own;
        [self.latents(hash), windows, clip, begun, clip_windows]
    }

    /// Removes what was saved of a job that is done.
    fn forget(&self, hash: &str) -> Result<()> {
        for path in self.kept(hash) {
            if path.exists() {
                std::fs::remove_file(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }

    fn create(&self) -> Result<()> {
        for folder in [self.folder.clone(), self.making(), self.own().join("latents")] {
            std::fs::create_dir_all(&folder).map_err(Error::file("write into", &folder))?;
        }
        for folder in [self.making(), self.own().join("latents")] {
            sweep(&folder)?;
        }
        Ok(())
    }

    /// Where an output goes.
    #[must_use]
    pub fn output(&self, name: &str) -> PathBuf {
        self.folder.join(name.trim_end_matches('/'))
    }
}

/// Removes what workers that died were just writing: hidden files that nobody has touched for an hour.
fn sweep(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let touched = std::fs::metadata(&path).and_then(|found| found.modified());
        let age = touched.ok().and_then(|touched| touched.elapsed().ok());
        if hidden && path.is_file() && age.is_some_and(|age| age > STALE) {
            // Another worker may have been faster.
            let _ = std::fs::remove_file(&path);
        }
    }
    Ok(())
}

/// What came of taking in a job file.
#[derive(Debug)]
pub struct TakenIn {
    /// Jobs that can't be done; each error names file, line and, where it is about one, key.
    pub mistakes: Vec<Error>,
}

/// A batch's folder with its journal open.
#[derive(Debug)]
pub struct Batch {
    place: Place,
    journal: Journal,
    shard: Option<Shard>,
}

impl Batch {
    /// Opens the batch of a folder, or starts one. The second value tells of a journal that was damaged: where it lies
    /// now.
    pub fn open(place: Place, shard: Option<Shard>) -> Result<(Self, Option<PathBuf>)> {
        place.create()?;
        let (journal, damaged) = Journal::open(&place.journal(shard))?;
        Ok((Self { place, journal, shard }, damaged))
    }

    /// The folder.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A name for a claim's own files: shares have a journal each, but one folder.
    fn name(&self, claim: &Claim) -> String {
        match self.shard {
            None => claim.name(),
            Some(shard) => format!("{}-{}", shard.file_word(), claim.name()),
        }
    }

    /// The journal.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Takes in this worker's share of a plan.
    pub fn take_in(&mut self, plan: Plan) -> Result<TakenIn> {
        let Plan { source, jobs, mut mistakes } = plan.share(self.shard);
        let wanted: Vec<Wanted> = jobs.iter().map(wanted).collect();
        let place = self.place.clone();
        let there = |output: &str, bytes: u64| bytes_of(&place.output(output)) == Some(bytes);
        let foreign = self.journal.take_in(&source, &wanted, &there, &|job| made_before(&place, job))?;
        for row in self.journal.rows()?.iter().filter(|row| row.state == State::Done) {
            // A worker may have died right after it had put the clip into its place.
            self.place.forget(&row.hash)?;
        }
        for (index, owner) in foreign {
            let job = &jobs[index];
            let error = Error::invalid(format!("output `{}`", job.output), format!("it is a job of {owner}"))
                .with_hint("give another --folder, or names that differ");
            mistakes
                .push(file::Mistake::new(job.spot, Some(matrix::OUTPUT), error).within(Path::new(&source)));
        }
        Ok(TakenIn { mistakes })
    }
}

fn wanted(job: &Planned) -> Wanted {
    Wanted {
        line: job.spot.line,
        n: job.n,
        output: job.output.clone(),
        spec: serde_json::to_string(&job.spec).expect("a spec is JSON"),
        hash: job.hash.clone(),
        model: job.model.clone(),
        steps: job.checked.steps,
        pixels: job.checked.spec.pixels(),
    }
}

/// Whether a job's output is there, whole, by what the recipe beside it says.
fn made_before(place: &Place, job: &Wanted) -> Option<(String, u64)> {
    let output = place.output(&job.output);
    let stamp = Stamp::read(&place.folder.join(plan::recipe_name(&job.output))).ok()?;
    if stamp.job.as_deref() != Some(&job.hash) {
        return None;
    }
    let (sha256, bytes) = fingerprint::output(&output).ok()?;
    (stamp.output_sha256.as_deref() == Some(&sha256)).then_some((sha256, bytes))
}

/// Bytes of an output that is there.
fn bytes_of(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    if found.is_file() {
        return Some(found.len());
    }
    let mut bytes = 0;
    for entry in std::fs::read_dir(path).ok()? {
        let entry = entry.ok()?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            bytes += entry.metadata().ok()?.len();
        }
    }
    Some(bytes)
}
