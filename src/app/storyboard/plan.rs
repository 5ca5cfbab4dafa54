//! From a film file to shots that a model can make, and what is there of them already.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::film::{Film, Reference, Shot, Transition};
use crate::{
    app::{
        budget::{Holding, MemoryLimit},
        check::{Checked, latent_bytes},
        clip,
        decode::DecodeChoice,
        direction::Directing,
        fingerprint::{self, hex},
        forecast::Labour,
        generate::{GenerateRequest, recipe_of},
        latents, memory,
        outputs::{Files, Outputs, with_suffix},
        plan::{Plan, plan},
        recipe::Recipe,
        sampling::SamplingChoice,
        shape::{self, LengthChoice, SizeChoice, Upscale},
        take::{self, TakeOptions},
        tally::Tally,
        visual::{Keyframe, Visual},
    },
    device::{DTypeChoice, DeviceChoice},
    error::{Complaint, Error, Result},
    event::{Event, Reporter},
    media::Format,
    models::{
        api::{Checkpoint, Geometry, PerStep, Placement},
        registry,
        source::ModelSource,
    },
    pipeline::render::{RenderRequest, Renderer},
    video::{Size, VideoSpec},
};

/// A film to make. What is `None` is the film file's or the model's own choice.
#[derive(Debug, Clone, Default)]
pub struct StoryboardRequest {
    /// The film file.
    pub film: PathBuf,
    /// The model.
    pub model: Option<ModelSource>,
    /// The size to bring the frames to.
    pub upscale: Option<Upscale>,
    /// How latents become pictures.
    pub decode: DecodeChoice,
    /// How long shots are cut into windows.
    pub take: TakeOptions,
    /// The most memory to take: how shots are decoded is chosen so that it is enough.
    pub max_memory: Option<MemoryLimit>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// How precisely to compute.
    pub dtype: DTypeChoice,
    /// Where the film goes, and how it is encoded.
    pub outputs: Outputs,
    /// The folder of the shots; beside the film if nobody says.
    pub shots: Option<PathBuf>,
}

impl StoryboardRequest {
    /// Reads the film file, and says which model it is made with.
    pub fn read(&self) -> Result<(Film, ModelSource)> {
        let path = &self.film;
        let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
        let here = path.parent().unwrap_or(Path::new(""));
        let film =
            Film::parse(&text, here).map_err(|complaints| Error::Film { path: path.clone(), complaints })?;
        let source = match (&self.model, &film.settings.model) {
            (Some(model), _) => model.clone(),
            (None, Some(path)) => ModelSource::at(path.clone()),
            (None, None) => ModelSource::Embedded,
        };
        Ok((film, source))
    }
}

/// A shot as it will be made.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedShot {
    /// Its name, also of its files.
    pub name: String,
    /// How it comes in: `cut`, `continue` or the frames of its dissolve.
    pub transition: String,
    /// Where it begins in the film, in seconds.
    pub begins: f64,
    /// Its frames.
    pub frames: usize,
    /// Its length in seconds.
    pub seconds: f64,
    /// Windows that it is made in.
    pub windows: usize,
    /// The seed of its noise.
    pub seed: u64,
    /// All that it is told.
    pub prompt: String,
    /// The characters in it.
    pub cast: Vec<String>,
    /// Whether it is there already, just as the film file has it.
    pub ready: bool,
    /// A hash of all that its latents are made from.
    pub content: String,
    /// Frames in which it dissolves with the one before.
    #[serde(skip)]
    pub(super) dissolve: usize,
    /// Whether it goes on from the one before.
    #[serde(skip)]
    pub(super) continues: bool,
    #[serde(skip)]
    pub(super) render: RenderRequest,
    /// The pictures that it holds, with what their files hold.
    #[serde(skip)]
    pub(super) visual: Visual,
    #[serde(skip)]
    pub(super) plan: take::Plan,
    /// Its latents.
    #[serde(skip)]
    pub(super) latents: PathBuf,
    /// Its own video.
    #[serde(skip)]
    pub(super) video: PathBuf,
}

impl PlannedShot {
    /// Denoising steps of all its windows.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.render.pass.count() * self.plan.windows.len()
    }
}

/// A film that has passed every check that takes no weights.
pub struct Storyboard<'a> {
    pub(super) request: &'a StoryboardRequest,
    pub(super) source: ModelSource,
    pub(super) checkpoint: Box<dyn Checkpoint>,
    pub(super) place: Placement,
    pub(super) tally: Tally<'a>,
    pub(super) files: Files,
    /// Where the shots lie.
    pub(super) folder: PathBuf,
    /// Size and rate; the frames are those of the whole film.
    pub(super) spec: VideoSpec,
    pub(super) upscale: Option<Size>,
    pub(super) shots: Vec<PlannedShot>,
}

impl<'a> Storyboard<'a> {
    /// Reads and checks a film file, then what the model's headers say about it, and finds the shots that are there.
    pub fn prepare(request: &'a StoryboardRequest, reporter: &'a dyn Reporter) -> Result<Self> {
        let (film, source) = request.read()?;
        let checkpoint = registry::open_conditioned(&source)?;
        Self::plan(request, reporter, (film, source), checkpoint)?.checked_files()
    }

    /// [`Storyboard::prepare`] on the film's model, opened by [`registry::open_conditioned`]: one whose stages stay
    /// loaded, say.
    pub fn prepare_on(
        request: &'a StoryboardRequest,
        reporter: &'a dyn Reporter,
        checkpoint: Box<dyn Checkpoint>,
    ) -> Result<Self> {
        Self::plan(request, reporter, request.read()?, checkpoint)?.checked_files()
    }

    /// [`Storyboard::prepare_on`] without a look at what is to be written.
    pub(in crate::app) fn plan_on(
        request: &'a StoryboardRequest,
        reporter: &'a dyn Reporter,
        checkpoint: Box<dyn Checkpoint>,
    ) -> Result<Self> {
        Self::plan(request, reporter, request.read()?, checkpoint)
    }

    fn plan(
        request: &'a StoryboardRequest,
        reporter: &'a dyn Reporter,
        (film, source): (Film, ModelSource),
        checkpoint: Box<dyn Checkpoint>,
    ) -> Result<Self> {
        let tally = Tally::new(reporter);
        let path = &request.film;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let files = request.outputs.files(0, 1, &stem)?;
        if files.target.format().is_still() {
            let what = format!("output `{}`", files.target.path().display());
            return Err(Error::invalid(what, "a film is no still picture"));
        }
        let folder = match (&request.shots, files.target.format()) {
            (Some(folder), _) => folder.clone(),
            (None, Format::Stdout) => PathBuf::from(format!("{stem}.shots")),
            (None, _) => shots_beside(files.target.path()),
        };
        let settings = &film.settings;
        let device = request.device.open()?;
        let place = Placement { dtype: request.dtype.resolve(&device), device };
        let wanted = request.upscale.or(settings.upscale);
        let info = checkpoint.info();
        let size = match (settings.size, wanted) {
            (Some(Size { width, height }), _) => {
                SizeChoice::Sides { width: Some(width), height: Some(height) }
            }
            (None, Some(upscale)) => upscale.aspect(),
            (None, None) => SizeChoice::Default,
        };
        let one = LengthChoice::Frames(info.geometry.frames_around(1).1);
        let (spec, _) = shape::settle(size, one, settings.fps, &info.geometry, &info.defaults)?;
        info.geometry.check(&spec)?;
        let mut storyboard = Self {
            request,
            source,
            checkpoint,
            place,
            tally,
            files,
            folder,
            spec,
            upscale: None,
            shots: Vec::new(),
        };
        if let Some(upscale) = wanted {
            let (size, note) = upscale.settle(&spec)?;
            storyboard.upscale = Some(size);
            if let Some(message) = note {
                let _ = storyboard.tally.emit(&Event::Note { message });
            }
        }
        let complaints = storyboard.plan_shots(&film)?;
        if !complaints.is_empty() {
            return Err(Error::Film { path: path.clone(), complaints });
        }
        storyboard.keep_to_limit()?;
        storyboard.check()?;
        Ok(storyboard)
    }

    /// Finds out now what would fail when the film is written.
    fn checked_files(self) -> Result<Self> {
        let size = self.upscale.unwrap_or(self.spec.size());
        clip::check_files(&self.files, &self.request.outputs, &self.spec, size)?;
        Ok(self)
    }

    /// What the film comes to.
    pub(in crate::app) fn checked(&self) -> Result<Checked> {
        let (renderer, geometry) = (self.renderer(), self.checkpoint.info().geometry);
        let (mut prompts, mut at_once) = (Vec::new(), None::<VideoSpec>);
        let (mut labour, mut beside_bytes) = (Labour::default(), 0);
        for shot in &self.shots {
            let PlannedShot { render, plan, .. } = shot;
            let negative = renderer.hears_negative(render)?.then_some(&render.negative_prompt);
            let told = negative.into_iter().chain([&render.prompt]).chain(&plan.settings.prompts);
            prompts.extend(told.map(|prompt| (prompt.clone(), render.max_sequence_length)));
            let window = plan.window_spec(&render.spec, &geometry);
            let part = std::slice::from_ref(render);
            labour = labour.and(Labour::of(&renderer, part, Some(window), !shot.visual.is_empty())?);
            beside_bytes += latent_bytes(self.checkpoint.as_ref(), &render.spec);
            if at_once.is_none_or(|longest| longest.frames < window.frames) {
                at_once = Some(window);
            }
        }
        Ok(Checked {
            spec: self.spec,
            size: self.upscale.unwrap_or(self.spec.size()),
            at_once: at_once.unwrap_or(self.spec),
            tiling: self.shots.first().map(|shot| shot.render.decode.tiling).unwrap_or_default(),
            steps: self.shots.iter().map(PlannedShot::steps).sum(),
            prompts,
            labour,
            beside_bytes,
            place: self.place.clone(),
        })
    }

    /// The shots, in order.
    #[must_use]
    pub fn shots(&self) -> &[PlannedShot] {
        &self.shots
    }

    /// Size, length and rate of the film before it is enlarged.
    #[must_use]
    pub fn spec(&self) -> &VideoSpec {
        &self.spec
    }

    pub(super) fn renderer(&self) -> Renderer<'_> {
        Renderer { checkpoint: self.checkpoint.as_ref(), place: self.place.clone(), reporter: &self.tally }
    }

    /// Plans every shot; what the model can't do is a complaint about the film file.
    fn plan_shots(&mut self, film: &Film) -> Result<Vec<Complaint>> {
        let text = fs::read_to_string(&self.request.film).map_err(Error::file("read", &self.request.film))?;
        let source = super::sections::Source::new(&text);
        let mut frames = 0;
        let of_model = GenerateRequest { model: self.source.clone(), ..GenerateRequest::default() };
        let model = fingerprint::model(&of_model)?;
        for shot in &film.shots {
            let place = match self.plan_shot(film, shot, frames, &model) {
                Ok(planned) => {
                    frames += planned.frames - planned.dissolve;
                    let shorter =
                        self.shots.last().map_or(usize::MAX, |before| before.frames).min(planned.frames);
                    let too_long = (planned.dissolve >= shorter && planned.dissolve > 0).then(|| {
                        let dissolve = planned.dissolve;
                        format!(
                            "a dissolve of {dissolve} frames needs longer shots: one has {shorter} frames"
                        )
                    });
                    self.shots.push(planned);
                    too_long.map(|why| (&shot.places.transition, why))
                }
                Err(error) => {
                    let what = error.to_string();
                    let place = match what.split(' ').nth(1) {
                        Some("camera") => &shot.places.camera,
                        Some("style") => &shot.places.style,
                        _ => &shot.places.prompt,
                    };
                    let why = error.hint().map_or(what.clone(), |hint| format!("{what} ({hint})"));
                    Some((place, why))
                }
            };
            if let Some((place, why)) = place {
                source.complain(place, why);
            }
        }
        self.spec.frames = frames;
        Ok(source.complaints())
    }

    fn plan_shot(&self, film: &Film, shot: &Shot, begins: usize, model: &str) -> Result<PlannedShot> {
        let info = self.checkpoint.info();
        let (geometry, defaults) = (&info.geometry, &info.defaults);
        let continues = shot.transition == Transition::Continue;
        let before = if continues { self.shots.last() } else { None };
        let (frames, latent) = length(shot.duration, self.spec.fps, continues, geometry);
        let spec = VideoSpec { frames: (latent - 1) * geometry.temporal + 1, ..self.spec };
        let directing =
            Directing { camera: shot.camera.clone(), style: shot.style.clone(), ..Directing::default() };
        let told = |part| directing.prompt(&shot.prompt, &defaults.direction, &info.name, part);
        let seconds = frames as f64 / spec.fps;
        let cut = self.request.take.plan(
            &spec,
            geometry,
            defaults,
            self.checkpoint.conditioning(),
            before.map_or(0, |before| geometry.grid(&before.render.spec).frames),
            |_, part| told(part),
        )?;
        let request = self.asked(film, shot, &spec);
        let Plan { mut passes, warning, .. } =
            plan(&request, self.checkpoint.as_ref(), &self.files.target, shot.seed)?;
        if let Some(message) = warning {
            let _ = self.tally.emit(&Event::Warning { message });
        }
        let mut render = match (passes.pop(), passes.is_empty()) {
            (Some(render), true) => render,
            _ => {
                return Err(Error::invalid("film", "its model makes clips in several passes (expected one)")
                    .with_hint("give a model that needs one pass"));
            }
        };
        let mut visual = request.visual.clone();
        render.conditions = visual.load(geometry, &spec)?;
        let mut planned = PlannedShot {
            name: shot.name.clone(),
            dissolve: match shot.transition {
                Transition::Dissolve(seconds) => ((seconds * spec.fps).round() as usize).max(1),
                _ => 0,
            },
            transition: String::new(),
            begins: begins as f64 / spec.fps,
            frames,
            seconds,
            windows: cut.windows.len(),
            seed: shot.seed,
            prompt: match cut.settings.prompts.as_slice() {
                [] => render.prompt.clone(),
                prompts => prompts.join(" | "),
            },
            cast: shot.cast.clone(),
            ready: false,
            content: String::new(),
            continues,
            latents: self.folder.join(format!("{}.latents.safetensors", shot.name)),
            video: self.folder.join(format!("{}.mp4", shot.name)),
            render,
            visual,
            plan: cut,
        };
        planned.transition = match shot.transition {
            Transition::Cut => "cut".into(),
            Transition::Continue => "continue".into(),
            Transition::Dissolve(_) => format!("dissolve {} frames", planned.dissolve),
        };
        planned.begins -= planned.dissolve as f64 / spec.fps;
        planned.content = self.content(&planned, before, model)?;
        planned.ready = kept_content(&planned.latents)? == Some(planned.content.clone());
        Ok(planned)
    }

    /// The recipe of a shot's latents.
    pub(super) fn recipe(&self, shot: &PlannedShot) -> Recipe {
        Recipe {
            upscale: self.upscale,
            take: Some(shot.plan.settings.clone()),
            visual: (!shot.visual.is_empty()).then(|| shot.visual.clone()),
            ..recipe_of(self.checkpoint.info(), &shot.render, &self.place)
        }
    }

    /// A hash of all that a shot's latents are made from: its recipe, its pictures, the model, and the shot that it
    /// goes on from.
    fn content(&self, planned: &PlannedShot, before: Option<&PlannedShot>, model: &str) -> Result<String> {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        let recipe = take::latents_recipe(&self.recipe(planned));
        add(recipe.to_string().as_bytes());
        add(model.as_bytes());
        if let Some(before) = before {
            add(before.content.as_bytes());
        }
        Ok(hex(&hash.finalize()))
    }

    /// A shot as a job of its own.
    fn asked(&self, film: &Film, shot: &Shot, spec: &VideoSpec) -> GenerateRequest {
        let settings = &film.settings;
        GenerateRequest {
            model: self.source.clone(),
            prompt: shot.prompt.clone(),
            directing: Directing {
                camera: shot.camera.clone(),
                style: shot.style.clone(),
                ..Directing::default()
            },
            negative_prompt: shot.negative_prompt.clone(),
            size: SizeChoice::Sides { width: Some(spec.width), height: Some(spec.height) },
            length: LengthChoice::Frames(spec.frames),
            fps: Some(spec.fps),
            sampling: SamplingChoice {
                steps: settings.steps.into_iter().collect(),
                guidance: settings.guidance.map(PerStep::All).into_iter().collect(),
                ..SamplingChoice::default()
            },
            decode: self.request.decode.clone(),
            visual: self.visual(shot, spec),
            ..GenerateRequest::default()
        }
    }

    /// The pictures that a shot is to hold.
    fn visual(&self, shot: &Shot, spec: &VideoSpec) -> Visual {
        let keyframe = |picture: &Reference| Keyframe {
            path: picture.path.clone(),
            frame: ((picture.at * spec.fps).round() as i64).min(spec.frames as i64 - 1),
            strength: picture.strength,
            sha256: None,
        };
        Visual { keyframes: shot.references.iter().map(keyframe).collect(), ..Visual::default() }
    }

    /// Cuts the decode of all shots so that the film keeps to the limit on memory.
    fn keep_to_limit(&mut self) -> Result<()> {
        let geometry = self.checkpoint.info().geometry;
        let windows = self.shots.iter().map(|shot| shot.plan.window_spec(&shot.render.spec, &geometry));
        let Some(at_once) = windows.max_by_key(|window| window.frames) else { return Ok(()) };
        let holding = Holding {
            checkpoint: self.checkpoint.as_ref(),
            at_once,
            whole: self.spec,
            size: self.upscale.unwrap_or(self.spec.size()),
            place: &self.place,
            encodes: self.shots.iter().any(|shot| !shot.visual.is_empty()),
            decodes_only: false,
        };
        let tilings = self.shots.iter_mut().map(|shot| &mut shot.render.decode.tiling);
        let free = self.request.decode.free();
        if let Some(message) = holding.keep_to(self.request.max_memory, free, tilings)? {
            let _ = self.tally.emit(&Event::Note { message });
        }
        Ok(())
    }

    /// Finds out now what would fail later for the model's sake.
    fn check(&self) -> Result<()> {
        let renderer = self.renderer();
        let geometry = self.checkpoint.info().geometry;
        for shot in &self.shots {
            shot.plan.check(&renderer, &shot.render)?;
            let window = shot.plan.window_spec(&shot.render.spec, &geometry);
            let tiling = &shot.render.decode.tiling;
            let encodes = !shot.visual.is_empty();
            memory::check(self.checkpoint.as_ref(), &window, &self.place, tiling, encodes)?;
            memory::check_decode(self.checkpoint.as_ref(), &self.spec, &self.place, tiling)?;
        }
        Ok(())
    }
}

/// The folder of a film's shots, where nobody names another.
pub fn shots_beside(film: &Path) -> PathBuf {
    with_suffix(film, "shots")
}

/// Frames of a shot in the film, and in its latents.
fn length(seconds: f64, fps: f64, continues: bool, geometry: &Geometry) -> (usize, usize) {
    let frames = seconds * fps;
    if continues {
        // All of its latent frames are whole ones: the single first frame is another shot's.
        let latent = (frames / geometry.temporal as f64).round().max(1.0) as usize;
        let latent = latent.next_multiple_of(geometry.patch_t);
        (latent * geometry.temporal, latent)
    } else {
        let frames = shape::nearest_frames(frames, geometry);
        (frames, (frames - 1) / geometry.temporal + 1)
    }
}

/// The hash that latents of a finished shot carry.
fn kept_content(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(latents::load(path)?.origin.and_then(|origin| origin.content))
}
