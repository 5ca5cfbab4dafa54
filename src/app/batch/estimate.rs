//! What a batch will take: reckoned from shapes and this machine's speed, corrected by what its jobs took so far.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{options::STORYBOARD, plan::Planned};
use crate::{
    app::{
        journal::{Row, State},
        speed::Speed,
    },
    device::Placement,
    error::Result,
    event::Phase,
};

/// Time and disk, roughly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Models that are loaded.
    pub models: usize,
    /// Denoising steps in all.
    pub steps: usize,
    /// Seconds of one worker.
    pub seconds: f64,
    /// Jobs whose own times have corrected what was reckoned.
    pub measured: usize,
    /// Bytes of the outputs, with what stays beside them.
    pub bytes: u64,
}

/// Bytes a pixel of a frame, of an output of this ending, before any is there.
fn usual(ending: &str) -> f64 {
    match ending {
        "mp4" | "mov" | "mkv" | "webm" => 0.2,
        "gif" | "webp" | "jpg" | "jpeg" => 0.5,
        "y4m" => 3.0,
        _ => 2.0,
    }
}

fn ending(output: &str) -> &str {
    output.rsplit_once('.').map_or("", |(_, ending)| ending)
}

/// How many times as long as reckoned jobs of one model took.
#[derive(Debug, Clone, Copy)]
struct Correction {
    denoise: f64,
    decode: f64,
}

impl Estimate {
    /// For the jobs of a plan that are `left`; `rows` are what the journal knows of this batch, `speed` measures how
    /// fast a place is.
    pub fn of(
        jobs: &[Planned],
        left: &[&Planned],
        rows: &[Row],
        speed: &mut dyn FnMut(&Placement) -> Result<Speed>,
    ) -> Result<Self> {
        let mut speeds = Speeds { known: BTreeMap::new(), measure: speed };
        let (corrections, measured) = corrections(jobs, rows, &mut speeds)?;
        let sizes = sizes(rows);
        let mut models = HashSet::new();
        let mut prompts = HashSet::new();
        let (mut seconds, mut bytes) = (0.0, 0.0);
        for job in left {
            let (labour, speed) = (&job.checked.labour, speeds.of(&job.checked.place)?);
            if models.insert(&job.model) {
                seconds += labour.load_seconds();
            }
            // What the text encoder says of a prompt is kept.
            let new = job.checked.prompts.iter().filter(|prompt| prompts.insert((&job.model, *prompt)));
            seconds += labour.text_seconds(speed) * new.count() as f64;
            let own = corrections.get(job.model.as_str());
            let Correction { denoise, decode } =
                own.copied().unwrap_or(Correction { denoise: 1.0, decode: 1.0 });
            seconds += labour.encode_seconds(speed)
                + denoise * labour.denoise_seconds(speed)
                + decode * labour.decode_seconds(speed);
            let written = job.checked.size.width * job.checked.size.height * job.checked.spec.frames;
            let size = |ending: &str| match sizes.get(ending) {
                Some(size) => size * job.checked.spec.pixels() as f64,
                None => usual(ending) * written as f64,
            };
            bytes += size(ending(&job.output)) + job.checked.beside_bytes as f64;
            if job.spec.settings.contains_key(STORYBOARD) {
                // Its shots have files of their own.
                bytes += size("mp4");
            }
        }
        let steps = left.iter().map(|job| job.checked.steps).sum();
        Ok(Self { models: models.len(), steps, seconds, measured, bytes: bytes as u64 })
    }
}

/// The speeds of places, each measured once.
struct Speeds<'a> {
    known: BTreeMap<String, Speed>,
    measure: &'a mut dyn FnMut(&Placement) -> Result<Speed>,
}

impl Speeds<'_> {
    fn of(&mut self, place: &Placement) -> Result<Speed> {
        let name = format!("{:?} {:?}", place.device.location(), place.dtype);
        if let Some(known) = self.known.get(&name) {
            return Ok(*known);
        }
        let speed = (self.measure)(place)?;
        self.known.insert(name, speed);
        Ok(speed)
    }
}

/// The median of what jobs took against what was reckoned, by model, and how many jobs have told.
fn corrections<'a>(
    jobs: &'a [Planned],
    rows: &[Row],
    speeds: &mut Speeds<'_>,
) -> Result<(HashMap<&'a str, Correction>, usize)> {
    let by_hash: HashMap<&str, &Planned> = jobs.iter().map(|job| (job.hash.as_str(), job)).collect();
    let mut by_model: HashMap<&str, &Planned> = HashMap::new();
    for job in jobs {
        by_model.entry(&job.model).or_insert(job);
    }
    let mut told: HashMap<&str, (Vec<f64>, Vec<f64>)> = HashMap::new();
    let mut measured = 0;
    for row in rows.iter().filter(|row| row.state == State::Done) {
        let Some(seconds) = &row.seconds else { continue };
        let spent = |phase: Phase| {
            let name = serde_json::to_value(phase).ok()?;
            seconds.get(name.as_str()?)?.as_f64().filter(|seconds| *seconds > 0.0)
        };
        // A job that isn't in the file any more tells of others with its model, by its steps and pixels.
        let twin = by_hash.get(row.hash.as_str()).or_else(|| by_model.get(row.model.as_str()));
        let Some(twin) = twin else { continue };
        let (labour, speed) = (&twin.checked.labour, speeds.of(&twin.checked.place)?);
        let pixels = row.pixels as f64 / twin.checked.spec.pixels().max(1) as f64;
        let steps = row.steps as f64 / twin.checked.steps.max(1) as f64;
        let (denoised, decoded) = told.entry(&twin.model).or_default();
        denoised.extend(
            spent(Phase::Denoise).map(|spent| spent / (labour.denoise_seconds(speed) * pixels * steps)),
        );
        decoded.extend(spent(Phase::Decode).map(|spent| spent / (labour.decode_seconds(speed) * pixels)));
        measured += 1;
    }
    let correction = |(model, (denoised, decoded))| {
        (model, Correction { denoise: median(denoised), decode: median(decoded) })
    };
    Ok((told.into_iter().map(correction).collect(), measured))
}

/// The middle one; 1 of nothing. A job that was cut off tells less than it took, and is one of many.
fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| value.is_finite() && *value > 0.0);
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(1.0)
}

/// Bytes a pixel of the outputs that are there, by their ending.
fn sizes(rows: &[Row]) -> HashMap<String, f64> {
    let mut sums: HashMap<String, (f64, f64)> = HashMap::new();
    for row in rows.iter().filter(|row| row.state == State::Done && row.pixels > 0) {
        if let Some(bytes) = row.output_bytes {
            let sum = sums.entry(ending(&row.output.to_string_lossy()).to_owned()).or_default();
            *sum = (sum.0 + bytes as f64, sum.1 + row.pixels as f64);
        }
    }
    sums.into_iter().map(|(ending, (bytes, pixels))| (ending, bytes / pixels)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        app::{
            batch::{file::Spot, plan::JobSpec, request::JobRequest},
            generate::GenerateRequest,
            loaded::{Keep, Loaded},
            sampling::SamplingChoice,
            weave::Looks,
        },
        models::{registry, source::ModelSource},
    };

    fn job(hash: &str, steps: usize) -> Planned {
        let sampling = SamplingChoice { steps: vec![steps], ..SamplingChoice::default() };
        let prompt = "a fox".to_owned();
        let request =
            JobRequest::Clip(Box::new(GenerateRequest { prompt, sampling, ..GenerateRequest::default() }));
        let model = Loaded::new(registry::open(&ModelSource::Embedded).expect("a model"), Keep::NONE);
        let checked = request.check_on(&model, &mut Looks::default()).expect("a job");
        let spec = JobSpec { settings: BTreeMap::new(), seed: Some(1), files: BTreeMap::new() };
        let (spot, model) = (Spot::default(), "embedded".into());
        Planned { n: 1, spot, spec, output: format!("{hash}.y4m"), hash: hash.into(), model, checked }
    }

    fn row(job: &Planned, hash: &str, denoise: f64) -> Row {
        Row {
            n: 1,
            source: String::new(),
            line: 1,
            output: job.output.clone().into(),
            hash: hash.into(),
            model: job.model.clone(),
            state: State::Done,
            failures: 0,
            claims: 1,
            worker: None,
            steps_done: job.checked.steps,
            steps: job.checked.steps,
            pixels: job.checked.spec.pixels(),
            seconds: Some(json!({ "denoise": denoise })),
            error: None,
            output_sha256: None,
            output_bytes: Some(job.checked.spec.pixels() as u64),
        }
    }

    #[test]
    fn what_is_done_corrects_what_was_reckoned() -> Result<()> {
        let speed = Speed { flops: 1e9 };
        let (one, two) = (job("one", 10), job("two", 20));
        let jobs = [one.clone(), two.clone()];
        let mut asked = 0;
        let mut estimate = |rows: &[Row]| {
            Estimate::of(&jobs, &[&two], rows, &mut |_| {
                asked += 1;
                Ok(speed)
            })
        };
        let reckoned = estimate(&[])?;
        let labour = &two.checked.labour;
        let text = labour.text_seconds(speed) * two.checked.prompts.len() as f64;
        let (denoise, decode) = (labour.denoise_seconds(speed), labour.decode_seconds(speed));
        let whole = labour.load_seconds() + text + denoise + decode;
        assert!((reckoned.seconds / whole - 1.0).abs() < 1e-9, "{reckoned:?}, expected {whole} s");
        assert_eq!((reckoned.measured, reckoned.bytes), (0, 3 * two.checked.spec.pixels() as u64));
        // A job that took three times as long, whether it still stands in the file or not.
        let took = 3.0 * one.checked.labour.denoise_seconds(speed);
        for hash in ["one", "gone"] {
            let corrected = estimate(&[row(&one, hash, took)])?;
            let more = (corrected.seconds - reckoned.seconds) / denoise;
            assert!((more - 2.0).abs() < 0.05, "{hash}: {more} times more");
            assert_eq!((corrected.measured, corrected.bytes), (1, two.checked.spec.pixels() as u64));
        }
        assert_eq!(asked, 3, "a place is measured once an estimate");
        Ok(())
    }
}
