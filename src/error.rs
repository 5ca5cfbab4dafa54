//! The one error type of the library: what is wrong, what was expected, and the way out.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Shorthand for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something wrong in a text file, and where.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Complaint {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.text)
    }
}

/// Everything that can go wrong in the library.
///
/// `Display` says what is wrong and what was expected; [`Error::hint`] says the way out and
/// [`Error::kind`] groups errors for exit codes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that can't be met as it is written: `what` names the argument, `why` the rule.
    #[error("invalid {what}: {why}")]
    Invalid {
        /// The argument, e.g. `frame count 100`.
        what: String,
        /// What was expected, e.g. `expected 8k+1`.
        why: String,
        /// The way out, e.g. `pass --frames 97`.
        hint: Option<String>,
    },
    /// An output or input name whose ending is not one this program knows.
    #[error("unknown file ending `{ending}` of {path} (expected {expected})")]
    UnknownEnding {
        /// The file as given.
        path: PathBuf,
        /// Its ending.
        ending: String,
        /// The endings that are known.
        expected: String,
    },
    /// A film file that asks for what can't be.
    #[error("{}", told(path, complaints))]
    Film {
        /// The film file.
        path: PathBuf,
        /// All that is wrong with it, from the top on.
        complaints: Vec<Complaint>,
    },
    /// Reading or writing a file failed.
    #[error("can't {action} {path}")]
    File {
        /// What was being done: `read`, `write`, `rename`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file of a model folder is missing.
    #[error("{path} is missing ({what})")]
    MissingFile {
        /// The expected place.
        path: PathBuf,
        /// What the file is for.
        what: &'static str,
    },
    /// A file isn't what its name or place promises: truncated, not JSON, wrong magic, …
    #[error("{path} is damaged or not what it should be: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A configuration value that no code here implements or that contradicts another.
    #[error("{path}: `{key}` is {found} (expected {expected})")]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value found.
        found: String,
        /// What can be handled.
        expected: String,
    },
    /// A folder that is a different kind of pipeline.
    #[error("{path} holds a `{found}` pipeline (expected one of {expected})")]
    UnknownPipeline {
        /// The folder.
        path: PathBuf,
        /// `_class_name` of its `model_index.json`.
        found: String,
        /// The classes this build runs.
        expected: String,
    },
    /// A weight that is missing from its file.
    #[error("{file}: tensor `{key}` is missing (expected shape {expected:?})")]
    MissingTensor {
        /// The weight file (the first of its shards).
        file: PathBuf,
        /// The key.
        key: String,
        /// The shape the model needs.
        expected: Vec<usize>,
    },
    /// A weight of another shape.
    #[error("{file}: tensor `{key}` has shape {found:?} (expected {expected:?})")]
    MisshapenTensor {
        /// The weight file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape the model needs.
        expected: Vec<usize>,
    },
    /// Weights nobody asked for: the configuration and the file don't belong together.
    #[error("{file}: {count} tensors belong to no part of the model, the first is `{first}`")]
    UnusedTensors {
        /// The weight file.
        file: PathBuf,
        /// How many.
        count: usize,
        /// The first by name.
        first: String,
    },
    /// A weight that holds NaN or infinity.
    #[error("{file}: tensor `{key}` holds values that are not finite")]
    NotFiniteTensor {
        /// The weight file.
        file: PathBuf,
        /// The key.
        key: String,
    },
    /// A weight stored in a number type that can't be read.
    #[error(
        "{file}: tensor `{key}` is stored as {found} (expected F32, F16, BF16, F8_E4M3, F8_E5M2 or a GGUF type)"
    )]
    TensorDtype {
        /// The weight file.
        file: PathBuf,
        /// The key.
        key: String,
        /// The number type in the file.
        found: String,
    },
    /// A LoRA for another model.
    #[error("{path} doesn't fit the model: {why}")]
    LoraMismatch {
        /// The LoRA's file.
        path: PathBuf,
        /// What of it fits nothing.
        why: String,
    },
    /// A checkpoint without one of its parts.
    #[error("{path} holds no {what}")]
    MissingPart {
        /// The checkpoint.
        path: PathBuf,
        /// The part: `text encoder`, `video autoencoder`, …
        what: &'static str,
        /// How to give it.
        hint: String,
    },
    /// The wanted device isn't there or wasn't built in.
    #[error("device `{device}` can't be used: {why}")]
    Device {
        /// As asked for: `cuda:0`, `metal`.
        device: String,
        /// The reason.
        why: String,
        /// The way out.
        hint: String,
    },
    /// The estimate says that this machine can't hold the work.
    #[error("{what} needs about {need_mib} MiB of memory, {have_mib} MiB are available")]
    OutOfMemory {
        /// Which stage.
        what: String,
        /// The estimate.
        need_mib: u64,
        /// What is there.
        have_mib: u64,
        /// What would fit.
        hint: String,
    },
    /// The estimate says that the work can't be held under the limit that the user has set.
    #[error("{what} needs about {least_mib} MiB of memory, the limit is {limit}")]
    OverLimit {
        /// Which stage.
        what: String,
        /// The least limit under which it could be done.
        least_mib: u64,
        /// The limit.
        limit: String,
        /// The way out.
        hint: String,
    },
    /// Something that every render needs doesn't work.
    #[error("this machine isn't fit to make videos: {broken} doesn't work")]
    Unfit {
        /// The names of what is broken.
        broken: String,
    },
    /// The hub refused, couldn't be reached, or doesn't have it.
    #[error("can't get {what}: {why}")]
    Hub {
        /// The model or file.
        what: String,
        /// The reason.
        why: String,
        /// The way out.
        hint: String,
    },
    /// A download whose bytes were wrong, again and again.
    #[error("{file} came with wrong bytes: their hash is {found} (expected {expected})")]
    WrongBytes {
        /// The file.
        file: String,
        /// The hash of what came.
        found: String,
        /// The hash it should have.
        expected: String,
    },
    /// A download that the disk has no room for.
    #[error("the disk of {path} has {have_mib} MiB free, the download needs {need_mib} MiB")]
    DiskFull {
        /// The folder.
        path: PathBuf,
        /// What is needed.
        need_mib: u64,
        /// What is there.
        have_mib: u64,
    },
    /// FFmpeg refused.
    #[error("can't {action} {path}: {source}")]
    Ffmpeg {
        /// What was being done.
        action: &'static str,
        /// The media file.
        path: PathBuf,
        /// FFmpeg's reason.
        #[source]
        source: ffmpeg_next::Error,
    },
    /// The result is not a picture of anything: NaN, one colour, or frozen noise.
    #[error("the output is {what}, which is never what a working model gives")]
    BadOutput {
        /// `not finite`, `all one colour`, `noise that doesn't move`.
        what: &'static str,
        /// The way out.
        hint: String,
    },
    /// Cancelled by the user; `saved` is where the work so far lies.
    #[error("stopped")]
    Cancelled {
        /// Latents to go on from.
        saved: Option<PathBuf>,
    },
    /// A clip that couldn't be finished, with what was done of it kept.
    #[error("the video is unfinished")]
    Unfinished {
        /// The latents that were saved.
        saved: PathBuf,
        /// The command that goes on from there.
        go_on: String,
        /// Why it couldn't be finished.
        #[source]
        source: Box<Error>,
    },
    /// A job of a job file that can't be done; `source` says why.
    #[error("{}: {source}", job_place(path, *line, *column, key.as_deref()))]
    Job {
        /// The job file.
        path: PathBuf,
        /// The line, from 1; 0 for what stands on the command line.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The key, if it is about one.
        key: Option<String>,
        /// What is wrong.
        #[source]
        source: Box<Error>,
    },
    /// A job file with mistakes; its other jobs were done.
    #[error("{mistakes} of {total} jobs can't be done as they are written")]
    BadJobs {
        /// How many.
        mistakes: usize,
        /// Jobs in all.
        total: usize,
    },
    /// A batch that isn't whole.
    #[error("{failed} of {total} jobs failed, {suspect} more gave no picture of anything")]
    SomeFailed {
        /// Jobs without an output.
        failed: usize,
        /// Jobs whose output is no picture of anything.
        suspect: usize,
        /// Jobs in all.
        total: usize,
    },
    /// A journal that can't be read or written.
    #[error("the journal {path} can't be used: {source}")]
    Journal {
        /// The database.
        path: PathBuf,
        /// SQLite's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another program that was asked for something refused.
    #[error("`{program}` failed: {why}")]
    Command {
        /// The program.
        program: &'static str,
        /// What it said.
        why: String,
    },
    /// A defect of this program that was caught.
    #[error("sora has a defect: {what}")]
    Defect {
        /// What was noticed.
        what: String,
    },
    /// A tensor operation failed: a bug here or a shape no check caught.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The tokenizer refused.
    #[error("{path}: {why}")]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

/// `jobs.toml:57:1: key `steps``
fn job_place(path: &std::path::Path, line: usize, column: usize, key: Option<&str>) -> String {
    let place = match line {
        0 => "the command line".to_owned(),
        _ => format!("{}:{line}:{column}", path.display()),
    };
    match key {
        Some(key) => format!("{place}: key `{key}`"),
        None => place,
    }
}

/// A line for each complaint, as compilers write them.
fn told(path: &Path, complaints: &[Complaint]) -> String {
    let lines: Vec<String> = complaints.iter().map(|one| format!("{}:{one}", path.display())).collect();
    lines.join("\n")
}

/// The groups that exit codes are made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is wrong: fix the command line.
    Usage,
    /// A model's files are missing, damaged or of another kind.
    Model,
    /// Reading or writing failed: permissions, disk full, no such folder.
    Io,
    /// No such device, or too little memory.
    Resources,
    /// The model gave something that is no video.
    BadOutput,
    /// A hub refused, couldn't be reached, or sent wrong bytes.
    Hub,
    /// Some jobs of a batch failed, others are done.
    Partial,
    /// Ctrl-C.
    Cancelled,
    /// A defect of this program.
    Internal,
}

impl Error {
    /// An invalid argument without a hint; chain [`Error::with_hint`].
    pub fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into(), hint: None }
    }

    /// Adds the way out to an error that can carry one.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Invalid { hint, .. } => *hint = Some(text.into()),
            Self::Device { hint, .. }
            | Self::OutOfMemory { hint, .. }
            | Self::OverLimit { hint, .. }
            | Self::BadOutput { hint, .. } => {
                *hint = text.into();
            }
            _ => {}
        }
        self
    }

    /// A closure for `map_err` on file operations.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// A file that isn't what it should be.
    pub fn damaged(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), why: why.into() }
    }

    /// Which group this error belongs to.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } | Self::UnknownEnding { .. } | Self::BadJobs { .. } | Self::Film { .. } => {
                ErrorKind::Usage
            }
            Self::Job { source, .. } => source.kind(),
            Self::SomeFailed { .. } => ErrorKind::Partial,
            Self::MissingFile { .. }
            | Self::Damaged { .. }
            | Self::Config { .. }
            | Self::UnknownPipeline { .. }
            | Self::MissingTensor { .. }
            | Self::MisshapenTensor { .. }
            | Self::UnusedTensors { .. }
            | Self::NotFiniteTensor { .. }
            | Self::TensorDtype { .. }
            | Self::LoraMismatch { .. }
            | Self::MissingPart { .. }
            | Self::Tokenizer { .. } => ErrorKind::Model,
            Self::File { .. }
            | Self::Journal { .. }
            | Self::Command { .. }
            | Self::Ffmpeg { .. }
            | Self::DiskFull { .. } => ErrorKind::Io,
            Self::Hub { .. } | Self::WrongBytes { .. } => ErrorKind::Hub,
            Self::Device { .. } | Self::OutOfMemory { .. } | Self::OverLimit { .. } | Self::Unfit { .. } => {
                ErrorKind::Resources
            }
            Self::BadOutput { .. } => ErrorKind::BadOutput,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::Unfinished { source, .. } => source.kind(),
            Self::Tensor(_) | Self::Defect { .. } => ErrorKind::Internal,
        }
    }

    /// The way out, where one is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } => hint.clone(),
            Self::Device { hint, .. }
            | Self::OutOfMemory { hint, .. }
            | Self::OverLimit { hint, .. }
            | Self::BadOutput { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::UnknownEnding { .. } => {
                Some("give the output a known ending, or a folder (ending in `/`) for PNG frames".into())
            }
            Self::File { action: "write", source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free some space, or write to another disk".into())
            }
            Self::File { action: "write into", path, source } => match source.kind() {
                io::ErrorKind::NotFound => Some(format!("make it first: mkdir -p {}", path.display())),
                io::ErrorKind::NotADirectory => Some("a folder in the path is a file; choose another".into()),
                io::ErrorKind::PermissionDenied => Some("choose a folder you may write to".into()),
                io::ErrorKind::StorageFull => Some("free some space, or write to another disk".into()),
                _ => None,
            },
            Self::Unfit { .. } => Some("`sora doctor` says how to fix it".into()),
            Self::Hub { hint, .. } => (!hint.is_empty()).then(|| hint.clone()),
            Self::WrongBytes { .. } => {
                Some("something between here and the hub changes files; try another network".into())
            }
            Self::DiskFull { .. } => Some(
                "free some space (`sora models list` and `rm`), or set HF_HUB_CACHE to another disk".into(),
            ),
            Self::Job { source, .. } => source.hint(),
            Self::BadJobs { .. } => {
                Some("mend them and run the same line again: what is done is skipped".into())
            }
            Self::SomeFailed { .. } => {
                Some("`sora batch status` says why; `sora batch retry` lets them be tried again".into())
            }
            Self::Command { program: "sbatch" | "squeue" | "scancel", .. } => {
                Some("is Slurm installed here, and does `sinfo` answer?".into())
            }
            Self::UnknownPipeline { .. } => Some("point --model at a text-to-video pipeline folder".into()),
            Self::Damaged { .. } | Self::MissingTensor { .. } | Self::NotFiniteTensor { .. } => {
                Some("fetch or copy the file again".into())
            }
            Self::TensorDtype { .. } => Some("get the weights as f32, f16, bf16, fp8 or GGUF".into()),
            Self::MissingPart { hint, .. } => Some(hint.clone()),
            Self::LoraMismatch { .. } => {
                Some("see which model the LoRA was made for; --model must be one like it".into())
            }
            Self::UnusedTensors { .. } | Self::MisshapenTensor { .. } => {
                Some("the weights and the config.json beside them belong to different models".into())
            }
            Self::Unfinished { saved, go_on, .. } => Some(format!(
                "nothing is lost: the latents are in {}; go on with\n  {go_on}",
                saved.display()
            )),
            Self::Cancelled { saved: Some(path) } => {
                Some(format!("what was done so far is in {}", path.display()))
            }
            _ => None,
        }
    }
}
