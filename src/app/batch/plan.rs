//! From a job file to a plan: every job with its request, its output, its hash; every mistake with its place.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    file::{Block, Entry, FileFormat, JobFile, Mistake, Spot},
    matrix::{self, Combination, OUTPUT},
    options::{Options, STORYBOARD, Setting, Settings},
    request::JobRequest,
    shard::Shard,
    template,
};
use crate::{
    app::{
        check::Checked,
        fingerprint,
        loaded::{Keep, Loaded},
        outputs::Preview,
        storyboard::shots_beside,
        weave::Looks,
    },
    error::{Error, Result},
    media::{Format, Target, open_sink},
};

/// What outputs are called unless the jobs say otherwise.
pub const NAMES: &str = "{n:04}-{slug}-{seed}.mp4";

/// What a worker needs to do a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Options of `gen`, without those that follow.
    pub settings: Settings,
    /// Seed of the clip; the shots of a film have their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Where a contact sheet, latents or an early look go, by option, relative to the batch's folder.
    #[serde(default, skip_serializing_if = "Settings::is_empty")]
    pub files: Settings,
}

/// A job that can be done.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its number in the file, from 1.
    pub n: usize,
    /// Where it stands in the file.
    pub spot: Spot,
    /// What a worker needs.
    pub spec: JobSpec,
    /// Its output, relative to the batch's folder, `/` at the end of a folder of frames.
    pub output: String,
    /// Hash of all that determines the output.
    pub hash: String,
    /// Jobs with the same one share the weights.
    pub model: String,
    /// What it comes to.
    pub checked: Checked,
}

/// A job file, understood.
#[derive(Debug)]
pub struct Plan {
    /// The file, as the journal names it.
    pub source: String,
    /// The jobs, in order.
    pub jobs: Vec<Planned>,
    /// Whatever can't be done; each names file, line and, where it is about one, key.
    pub mistakes: Vec<Error>,
}

/// A job file and what is to be known to understand it.
pub struct Source<'a> {
    /// Its name, for messages and for `{file}`.
    pub path: &'a Path,
    /// Its text.
    pub text: &'a str,
    /// How it is written; by its ending if nothing is said.
    pub format: Option<FileFormat>,
    /// Defaults that count more than the file's own.
    pub defaults: &'a [Entry],
    /// How outputs are called by default.
    pub names: &'a str,
}

/// Options whose values are files that a job writes beside its video.
const FILES: [&str; 3] = ["contact-sheet", "save-latents", "preview"];

/// Understands a job file. No weight is read; of models, headers are.
pub fn plan(source: &Source<'_>, options: &dyn Options) -> Result<Plan> {
    let format = match source.format {
        Some(format) => format,
        None => FileFormat::of(source.path, source.text)?,
    };
    let file = JobFile::parse(source.path, source.text, format)?;
    let mut planner = Planner {
        source,
        options,
        defaults: [&file.head, source.defaults].concat(),
        models: HashMap::new(),
        encoders: HashSet::new(),
        looks: Looks::default(),
        seen: HashMap::new(),
        outputs: HashMap::new(),
        n: 0,
        jobs: Vec::new(),
        mistakes: Vec::new(),
    };
    for block in file.blocks {
        match block {
            Ok(block) => planner.block(&block),
            // It keeps its number: when it is mended, the names of the others stay.
            Err(mistake) => {
                planner.n += 1;
                planner.mistakes.push(mistake.within(source.path));
            }
        }
    }
    let Planner { jobs, mistakes, .. } = planner;
    if jobs.is_empty() && mistakes.is_empty() {
        return Err(Error::invalid(format!("job file {}", source.path.display()), "there is no job in it"));
    }
    let absolute = std::path::absolute(source.path).unwrap_or_else(|_| source.path.to_owned());
    Ok(Plan { source: absolute.to_string_lossy().into_owned(), jobs, mistakes })
}

impl Plan {
    /// Leaves another worker's share out.
    #[must_use]
    pub fn share(mut self, shard: Option<Shard>) -> Self {
        if let Some(shard) = shard {
            self.jobs.retain(|job| shard.has(job.n));
        }
        self
    }
}

/// A model whose headers were read, or why they can't be.
struct Model {
    checkpoint: Loaded,
    fingerprint: String,
}

struct Planner<'a> {
    source: &'a Source<'a>,
    options: &'a dyn Options,
    defaults: Vec<Entry>,
    models: HashMap<String, Model>,
    /// What was opened for a try: how each was encoded.
    encoders: HashSet<String>,
    /// Clips that jobs go on with.
    looks: Looks,
    /// How often the same settings came: each time they mean another seed.
    seen: HashMap<String, usize>,
    /// The line that an output was first asked for on.
    outputs: HashMap<String, usize>,
    n: usize,
    jobs: Vec<Planned>,
    mistakes: Vec<Error>,
}

impl Planner<'_> {
    fn block(&mut self, block: &Block) {
        let combinations = match matrix::expand(block, &self.defaults, self.options) {
            Ok(combinations) => combinations,
            Err(mistake) => {
                self.n += 1;
                return self.mistakes.push(mistake.within(self.source.path));
            }
        };
        for combination in combinations {
            if let Err(mistake) = self.combination(block, combination) {
                self.mistakes.push(mistake.within(self.source.path));
                // The other jobs of a matrix would say the same, as often as there are some.
                if self.mistakes.len() > 100 {
                    return;
                }
            }
        }
    }

    /// Plans one job, or as many as it asks for videos.
    fn combination(&mut self, block: &Block, combination: Combination) -> Result<(), Mistake> {
        let Combination { mut settings, output, values } = combination;
        self.n += 1;
        let files: Settings =
            FILES.iter().filter_map(|name| Some((name.to_string(), settings.remove(*name)?))).collect();
        let request = self.options.lower(&settings).map_err(|mistake| self.placed(block, mistake))?;
        let clips = request.clips();
        settings.remove("num-videos");
        let told = serde_json::to_string(&settings).expect("settings are JSON");
        let times = self.seen.entry(told.clone()).or_default();
        *times += 1;
        let seed = request.is_seeded().then(|| request.seed().unwrap_or_else(|| seed_of(&told, *times)));
        for take in 0..clips.max(1) {
            if take > 0 {
                self.n += 1;
            }
            let seed = seed.map(|seed| seed.wrapping_add(take as u64));
            let mut request = request.clone();
            request.one(seed);
            let mut values = values.clone();
            let stem = self.source.path.file_stem().unwrap_or_default().to_string_lossy();
            for (name, value) in [
                ("n", Some(self.n.to_string())),
                ("take", Some((take + 1).to_string())),
                ("seed", seed.map(|seed| seed.to_string())),
                ("slug", Some(request.slug())),
                ("file", Some(stem.into_owned())),
            ] {
                values.extend(value.map(|value| (name.to_owned(), value)));
            }
            let job = Draft {
                settings: &settings,
                files: &files,
                output: output.as_deref(),
                values,
                seed,
                request,
            };
            let planned = self.job(block, job)?;
            self.jobs.push(planned);
        }
        Ok(())
    }

    fn job(&mut self, block: &Block, draft: Draft<'_>) -> Result<Planned, Mistake> {
        let Draft { settings, files, output, values, seed, request } = draft;
        let defaults = self.defaults.clone();
        let about = |key: &str| {
            let spot = matrix::spot_of(block, &defaults, key).unwrap_or(block.spot);
            let key = key.to_owned();
            move |error: Error| Mistake::new(spot, Some(&key), error)
        };
        let fill =
            |template: &str| template::fill(template, &values, file_word).and_then(|name| inside(&name));
        let film = !request.is_seeded();
        // A film has no one seed to be called after.
        let names =
            if film { self.source.names.replace("-{seed}", "") } else { self.source.names.to_owned() };
        let own = |error: Error| match film {
            true => error.with_hint(format!("give the job with `{STORYBOARD}` an `output` of its own")),
            false => error,
        };
        let output = fill(output.unwrap_or(&names)).map_err(own).map_err(about(OUTPUT))?;
        let target = Target::parse(&output).map_err(about(OUTPUT))?;
        if target.format() == Format::Stdout {
            let error = Error::invalid("output `-`", "a batch has no standard output to give");
            return Err(about(OUTPUT)(error));
        }
        let mut filled = Settings::new();
        for (name, setting) in files {
            let setting = match setting {
                Setting::One(text) => Setting::One(fill(text).map_err(about(name))?),
                other => other.clone(),
            };
            filled.insert(name.clone(), setting);
        }
        let spec = JobSpec { settings: settings.clone(), seed, files: filled };
        let mut request = request;
        spec.place(&mut request, Path::new(""), &output);
        if let Some(first) = self.claim_names(&spec, &output, block.spot.line) {
            let why = format!("the job on line {first} has the same");
            let error = Error::invalid(format!("output `{output}`"), why)
                .with_hint("put {n}, {seed} or {take} into the name");
            return Err(about(OUTPUT)(error));
        }
        let placed = |planner: &Self, error: Error| {
            let key = film.then_some(STORYBOARD);
            planner.placed(block, Mistake::new(block.spot, key, error))
        };
        let model = request.weights().map_err(|error| placed(self, error))?;
        if !self.models.contains_key(&model) {
            let opened = request.open().and_then(|checkpoint| {
                let checkpoint = Loaded::new(checkpoint, Keep::NONE);
                Ok(Model { checkpoint, fingerprint: request.fingerprint()? })
            });
            let opened = opened.map_err(|error| match matrix::spot_of(block, &self.defaults, "model") {
                Some(spot) => Mistake::new(spot, Some("model"), error),
                None => placed(self, error),
            })?;
            self.models.insert(model.clone(), opened);
        }
        let opened = &self.models[&model];
        let checked =
            request.check_on(&opened.checkpoint, &mut self.looks).map_err(|error| placed(self, error))?;
        let hash =
            hash_of(&request, &spec, &target, &opened.fingerprint).map_err(|error| placed(self, error))?;
        self.try_encoder(&request, &target, &checked).map_err(|error| placed(self, error))?;
        Ok(Planned { n: self.n, spot: block.spot, spec, output, hash, model, checked })
    }

    /// Whoever asks for a name first has it: gives the line of whoever has one of these already.
    fn claim_names(&mut self, spec: &JobSpec, output: &str, line: usize) -> Option<usize> {
        let video = output.trim_end_matches('/');
        let recipe = recipe_name(output).to_string_lossy().into_owned();
        let others = spec.files.values().filter_map(|setting| match setting {
            Setting::One(name) => Some(name.clone()),
            _ => None,
        });
        let shots = shots_beside(Path::new(video)).to_string_lossy().into_owned();
        let shots = spec.settings.contains_key(STORYBOARD).then_some(shots);
        let names: Vec<String> = [video.to_owned(), recipe].into_iter().chain(others).chain(shots).collect();
        let taken = names.iter().find_map(|name| self.outputs.get(name).copied());
        if taken.is_none() {
            self.outputs.extend(names.into_iter().map(|name| (name, line)));
        }
        taken
    }

    /// Opens an encoder as this job will, once for all jobs that want the same.
    fn try_encoder(&mut self, request: &JobRequest, target: &Target, checked: &Checked) -> Result<()> {
        let spec = checked.spec;
        if target.format().is_still() && spec.frames != 1 {
            let what = format!("output `{}`", target.path().display());
            return Err(Error::invalid(what, format!("it holds one frame, not {}", spec.frames))
                .with_hint("pass --frames 1 for a still picture, or name a video or a folder"));
        }
        let encode = &request.outputs().encode;
        let size = checked.size;
        let way = format!("{:?} {encode:?} {}x{}", target.format(), size.width, size.height);
        if !self.encoders.insert(way) {
            return Ok(());
        }
        let folder = tempfile::tempdir().map_err(Error::file("write into", std::env::temp_dir()))?;
        let name = folder.path().join(target.path().file_name().unwrap_or_default());
        let mark = if target.format() == Format::Frames { "/" } else { "" };
        let target = Target::parse(&format!("{}{mark}", name.to_string_lossy()))?;
        let options = crate::media::EncodeOptions { fps: spec.fps, ..encode.clone() };
        open_sink(&target, size.width, size.height, &options).map(drop)
    }

    /// Finds the place of a mistake's key; a mistake that names none may name an option in its text.
    fn placed(&self, block: &Block, mistake: Mistake) -> Mistake {
        let Mistake { key, error, .. } = mistake;
        let known = |key: &str| matrix::spot_of(block, &self.defaults, key);
        let key = key.or_else(|| {
            // What is wrong begins with its name, or a flag of that name is in the text.
            let what = match &*error {
                Error::Invalid { what, .. } => what.split(' ').next(),
                _ => None,
            };
            let text = format!("{error} {}", error.hint().unwrap_or_default());
            let flags = text.split("--").skip(1);
            let flags = flags.map(|rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '-')).next());
            what.into_iter().chain(flags.flatten()).find(|name| known(name).is_some()).map(str::to_owned)
        });
        let spot = key.as_deref().and_then(known).unwrap_or(block.spot);
        Mistake { spot, key, error }
    }
}

/// A job whose names are still to be found.
struct Draft<'a> {
    settings: &'a Settings,
    files: &'a Settings,
    output: Option<&'a str>,
    values: template::Values,
    seed: Option<u64>,
    request: JobRequest,
}

impl JobSpec {
    /// What is asked for by this job: its files go into `folder`, its video to `output` as it stands.
    pub fn request(&self, options: &dyn Options, folder: &Path, output: &str) -> Result<JobRequest> {
        let mut request = options.lower(&self.settings).map_err(|mistake| *mistake.error)?;
        request.one(self.seed);
        self.place(&mut request, folder, output);
        Ok(request)
    }

    fn place(&self, request: &mut JobRequest, folder: &Path, output: &str) {
        let outputs = request.outputs_mut();
        outputs.target = Some(output.to_owned());
        let file = |name: &str| match self.files.get(name) {
            Some(Setting::One(path)) if !path.is_empty() => Some(folder.join(path)),
            _ => None,
        };
        outputs.contact_sheet = file("contact-sheet");
        outputs.save_latents = file("save-latents");
        outputs.preview = match (file("preview"), self.files.get("preview")) {
            (Some(path), _) => Preview::At(path),
            (None, Some(_)) => Preview::Beside,
            (None, None) => Preview::Off,
        };
    }

    /// Folders of the files that go beside the video.
    pub fn other_files(&self) -> impl Iterator<Item = &str> {
        self.files.values().filter_map(|setting| match setting {
            Setting::One(name) if !name.is_empty() => Some(name.as_str()),
            _ => None,
        })
    }
}

/// `a/out.mp4` → `a/out.json`: the recipe beside an output.
#[must_use]
pub fn recipe_name(output: &str) -> PathBuf {
    Path::new(output.trim_end_matches('/')).with_extension("json")
}

/// A value as part of a file's name.
fn file_word(value: &str) -> String {
    let kept = value.chars().map(|c| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '-' });
    kept.take(80).collect::<String>().trim_matches('-').to_owned()
}

/// Refuses names that lead out of the batch's folder, or into its own place there.
fn inside(name: &str) -> Result<String> {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain || path.starts_with(super::OWN) {
        return Err(Error::invalid(format!("name `{name}`"), "expected one within the batch's folder")
            .with_hint("choose that folder with --folder"));
    }
    Ok(name.to_owned())
}

/// A seed for a job that asks for none: the same each time the file is read.
fn seed_of(settings: &str, times: usize) -> u64 {
    let digest = Sha256::new().chain_update(settings).chain_update(times.to_le_bytes()).finalize();
    u64::from(u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]]))
}

/// Hash of all that determines what an output holds.
fn hash_of(request: &JobRequest, spec: &JobSpec, target: &Target, model: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(spec).expect("a spec is JSON"));
    hash.update(target.format().name());
    hash.update(model);
    for path in request.inputs()? {
        hash.update(fingerprint::output(&path)?.0);
    }
    Ok(fingerprint::hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder() {
        assert!(inside("a/b.mp4").is_ok());
        for name in ["../a.mp4", "/a.mp4", "a/../../b.mp4", ".sora/a.mp4"] {
            assert!(inside(name).is_err(), "{name}");
        }
        assert_eq!(file_word("16:9, oil / paint"), "16-9--oil---paint");
        assert_eq!(recipe_name("a/frames/"), Path::new("a/frames.json"));
        assert_eq!(recipe_name("a.b.mp4"), Path::new("a.b.json"));
    }

    #[test]
    fn seeds_follow_from_the_job() {
        assert_eq!(seed_of("a", 1), seed_of("a", 1));
        assert_ne!(seed_of("a", 1), seed_of("a", 2));
        assert!(seed_of("b", 1) <= u64::from(u32::MAX));
    }
}
