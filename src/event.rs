//! What the core tells the outside while it works. The core emits, the edges render.

use std::{ops::ControlFlow, path::PathBuf, time::Duration};

/// A stage of a render that a person can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// Fetching a model's files; one unit is one byte.
    Download,
    /// Hashing a model's files; one unit is one byte.
    Verify,
    /// Reading weights.
    Load,
    /// The prompt goes through the text encoder.
    EncodePrompt,
    /// Pictures or clips go through the video encoder.
    EncodeVideo,
    /// The denoising loop; one unit is one step.
    Denoise,
    /// Latents are made larger between two passes.
    Upsample,
    /// The video decoder; one unit is one frame that was decoded and written.
    Decode,
    /// Weights are written in another format; one unit is one tensor.
    Convert,
}

/// What happens to a job of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum JobState {
    /// A worker begins it, or goes on with it.
    Started,
    /// Its output is there.
    Done,
    /// It failed; it may be tried again.
    Failed,
    /// Another worker has taken it over, or somebody has taken it back.
    Lost,
    /// It was stopped on purpose, and waits to be gone on with.
    Stopped,
}

/// One thing that happened.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A phase begins; `total` units are to come.
    Started {
        /// Which.
        phase: Phase,
        /// Number of units, where it is known.
        total: u64,
    },
    /// `done` of the phase's units are done.
    Progress {
        /// Which.
        phase: Phase,
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// A phase has ended.
    Finished {
        /// Which.
        phase: Phase,
        /// How long it took.
        #[serde(serialize_with = "seconds")]
        elapsed: Duration,
    },
    /// Something the user should know; the work goes on. Kept in the output's recipe.
    Warning {
        /// One line, lower case.
        message: String,
    },
    /// How much the step cache has left out of a denoising loop, or of all windows of a clip.
    Cached {
        /// Calls of the model that ran its first block alone.
        skipped: u64,
        /// All calls; a step has one for each branch of its guidance, and each tile.
        calls: u64,
    },
    /// A fact worth a line, such as the seed that was drawn.
    Note {
        /// One line, lower case.
        message: String,
    },
    /// An early look was written.
    Preview {
        /// The picture.
        path: PathBuf,
        /// After this many steps.
        step: u64,
    },
    /// The latents of an unfinished render were saved: it can be gone on with from here.
    Saved {
        /// The latents file.
        path: PathBuf,
        /// Steps that are done.
        step: u64,
    },
    /// A job of a batch begins or ends.
    Job {
        /// Its number in its file.
        job: u64,
        /// The output that it makes.
        output: PathBuf,
        /// What happens to it.
        state: JobState,
        /// Why it failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// How far a batch is, the work of other processes included.
    Batch {
        /// Jobs whose output is there.
        done: u64,
        /// Jobs that failed for good.
        failed: u64,
        /// Jobs that some worker has.
        running: u64,
        /// Jobs in all.
        total: u64,
    },
    /// Nothing has changed: only the answer counts.
    Waiting,
    /// An output stands finished under its name.
    Written {
        /// The file or folder.
        path: PathBuf,
    },
}

fn seconds<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value.as_secs_f64() * 1e3).round() / 1e3)
}

/// Takes events. `Break` asks the work to stop cleanly at the next safe place.
pub trait Reporter: Send + Sync {
    /// Called on every event, from the thread that works. Must not block for long.
    fn emit(&self, event: &Event) -> ControlFlow<()>;
}

/// A reporter that hears nothing and never stops the work.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Reporter for Silent {
    fn emit(&self, _: &Event) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
