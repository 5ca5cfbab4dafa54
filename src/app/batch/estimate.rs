//! What a batch will take, by what its jobs took so far.

use std::collections::HashSet;

use super::plan::Planned;
use crate::{
    app::journal::{Row, State},
    event::Phase,
};

/// Time and disk, roughly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Models that are loaded.
    pub models: usize,
    /// Denoising steps in all.
    pub steps: usize,
    /// Seconds of one worker; nothing is known before a job is done.
    pub seconds: Option<f64>,
    /// Bytes of the outputs.
    pub bytes: u64,
}

/// Bytes a pixel of a frame, of an output of this ending, before any is there.
fn usual(output: &str) -> f64 {
    match output.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "mp4" | "mov" | "mkv" | "webm" => 0.2,
        "gif" | "webp" | "jpg" | "jpeg" => 0.5,
        "y4m" => 3.0,
        _ => 2.0,
    }
}

impl Estimate {
    /// For these jobs; `rows` are what the journal knows of this batch.
    #[must_use]
    pub fn of(jobs: &[&Planned], rows: &[Row]) -> Self {
        let models: HashSet<&str> = jobs.iter().map(|job| job.model.as_str()).collect();
        let done: Vec<&Row> =
            rows.iter().filter(|row| row.state == State::Done && row.seconds.is_some()).collect();
        let spent = |phase: Phase| -> f64 {
            let name = serde_json::to_value(phase).ok();
            let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or_default();
            done.iter().filter_map(|row| row.seconds.as_ref()?.get(name)?.as_f64()).sum()
        };
        // A step costs by the pixels it works on, and so does the decode.
        let stepped: f64 = done.iter().map(|row| (row.steps * row.pixels) as f64).sum();
        let decoded: f64 = done.iter().map(|row| row.pixels as f64).sum();
        let seconds = (decoded > 0.0).then(|| {
            let (step, decode) = (spent(Phase::Denoise) / stepped, spent(Phase::Decode) / decoded);
            let job = |job: &&Planned| {
                let pixels = job.checked.spec.pixels() as f64;
                step * job.checked.steps as f64 * pixels + decode * pixels
            };
            jobs.iter().map(job).sum()
        });
        let written: f64 = done.iter().filter_map(|row| row.output_bytes).map(|bytes| bytes as f64).sum();
        let bytes = |job: &&Planned| {
            let each = if decoded > 0.0 { written / decoded } else { usual(&job.output) };
            job.checked.spec.pixels() as f64 * each
        };
        Self {
            models: models.len(),
            steps: jobs.iter().map(|job| job.checked.steps).sum(),
            seconds,
            bytes: jobs.iter().map(bytes).sum::<f64>() as u64,
        }
    }
}
