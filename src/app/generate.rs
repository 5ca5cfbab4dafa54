//! From a prompt to clips: everything is checked first, then each clip is rendered and written.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
};

use candle_core::Tensor;

use crate::{
    app::{
        clip::{self, Clip},
        direction::{Directing, Part},
        latents::{self, Origin},
        memory,
        outputs::{Files, Outputs},
        preview::Previewer,
        recipe::{Recipe, RecipeFile, slug},
        rescue,
        shape::{self, LengthChoice, SizeChoice, Upscale},
        tally::Tally,
    },
    device::{DTypeChoice, DeviceChoice},
    error::{Error, Result},
    event::{Event, Reporter},
    media::Target,
    models::{
        api::{Checkpoint, DecodeOptions, Placement, TextStates},
        registry,
        source::ModelSource,
    },
    pipeline::{
        denoise::Step,
        noise::Drawn,
        render::{Denoised, RenderRequest, Renderer},
    },
    video::Size,
};

/// A job: one prompt, one or more clips. What is `None` is the model's own choice.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The model.
    pub model: ModelSource,
    /// What to show.
    pub prompt: String,
    /// What camera and style add to the prompt.
    pub directing: Directing,
    /// What to keep away from.
    pub negative_prompt: Option<String>,
    /// Size in pixels.
    pub size: SizeChoice,
    /// Length in frames or seconds.
    pub length: LengthChoice,
    /// Frames a second.
    pub fps: Option<f64>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Timesteps by hand, instead of `steps`.
    pub timesteps: Option<Vec<f32>>,
    /// Classifier-free guidance scale.
    pub guidance: Option<f64>,
    /// Guidance rescale, 0..1.
    pub guidance_rescale: f64,
    /// Tokens that the prompt is padded or cut to.
    pub max_sequence_length: Option<usize>,
    /// Seed of the first clip; each further clip has the next one. Drawn if absent.
    pub seed: Option<u64>,
    /// Number of clips, at least 1.
    pub clips: usize,
    /// How latents become pictures.
    pub decode: DecodeOptions,
    /// The size to bring the decoded frames to.
    pub upscale: Option<Upscale>,
    /// A latents file to start from instead of the seed's noise.
    pub initial_latents: Option<PathBuf>,
    /// A stopped render to go on with, see [`GenerateRequest::resume`].
    pub stopped: Option<Stopped>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// How precisely to compute.
    pub dtype: DTypeChoice,
    /// What to write.
    pub outputs: Outputs,
}

impl Default for GenerateRequest {
    fn default() -> Self {
        Self {
            model: ModelSource::Embedded,
            prompt: String::new(),
            directing: Directing::default(),
            negative_prompt: None,
            size: SizeChoice::default(),
            length: LengthChoice::default(),
            fps: None,
            steps: None,
            timesteps: None,
            guidance: None,
            guidance_rescale: 0.0,
            max_sequence_length: None,
            seed: None,
            clips: 1,
            decode: DecodeOptions::default(),
            upscale: None,
            initial_latents: None,
            stopped: None,
            device: DeviceChoice::default(),
            dtype: DTypeChoice::default(),
            outputs: Outputs::default(),
        }
    }
}

/// What a stopped render left: after its last step, or before.
#[derive(Debug, Clone)]
pub struct Stopped {
    latents: Tensor,
    steps_done: usize,
    drawn: Drawn,
    initial_latents: bool,
    warnings: Vec<String>,
}

impl Stopped {
    /// Reads what was saved of a render; nothing if it's some other latents file.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let file = latents::load(path)?;
        Ok(file.origin.map(|Origin { recipe, drawn, steps_done, .. }| Self {
            latents: file.tensor,
            steps_done: steps_done.unwrap_or(recipe.steps),
            drawn,
            initial_latents: recipe.initial_latents,
            // Those of the steps that are left are given again.
            warnings: if steps_done.is_none() { recipe.warnings } else { Vec::new() },
        }))
    }

    /// Steps that are done.
    #[must_use]
    pub fn steps_done(&self) -> usize {
        self.steps_done
    }
}

impl GenerateRequest {
    /// The model that is asked for, opened from its headers.
    pub fn open(&self) -> Result<Box<dyn Checkpoint>> {
        registry::open(&self.model)
    }

    /// The rest of a render that was stopped: its latents file says all but where the video goes.
    pub fn resume(path: &Path) -> Result<Self> {
        let file = latents::load(path)?;
        let refuse = |why: &str, hint: String| {
            Error::invalid(format!("latents `{}`", path.display()), why).with_hint(hint)
        };
        let Some(Origin { model, recipe, drawn, steps_done }) = file.origin else {
            let hint = "pass --latents, with prompt, size and length, to start from them";
            return Err(refuse("they don't say what render they come from", hint.into()));
        };
        let Some(steps_done) = steps_done else {
            let hint = format!("sora decode {}", rescue::shell_path(path));
            return Err(refuse("all steps of their render are done", hint));
        };
        let stopped = Stopped {
            latents: file.tensor,
            steps_done,
            drawn,
            initial_latents: recipe.initial_latents,
            warnings: Vec::new(),
        };
        let model = model.map_or(ModelSource::Embedded, ModelSource::Folder);
        Ok(Self { stopped: Some(stopped), ..Self::again(recipe, model)? })
    }

    /// The render that left this recipe.
    pub fn remake(file: RecipeFile) -> Result<Self> {
        let RecipeFile { recipe, model_path, .. } = file;
        let what = || format!("recipe of `{}`", recipe.model);
        let model = match model_path {
            Some(path) => ModelSource::Folder(path),
            None if recipe.model == ModelSource::Embedded.name() => ModelSource::Embedded,
            None => {
                return Err(Error::invalid(what(), "it doesn't say where that model lies")
                    .with_hint("pass --model, too"));
            }
        };
        if recipe.initial_latents {
            return Err(Error::invalid(what(), "the video began with a latents file, which it doesn't hold")
                .with_hint("pass --latents, with prompt, size and length"));
        }
        Self::again(recipe, model)
    }

    /// All that a recipe says.
    fn again(recipe: Recipe, model: ModelSource) -> Result<Self> {
        Ok(Self {
            model,
            prompt: recipe.prompt,
            negative_prompt: Some(recipe.negative_prompt),
            size: SizeChoice::Sides { width: Some(recipe.spec.width), height: Some(recipe.spec.height) },
            length: LengthChoice::Frames(recipe.spec.frames),
            fps: Some(recipe.spec.fps),
            steps: Some(recipe.steps),
            timesteps: recipe.timesteps,
            guidance: Some(recipe.guidance),
            guidance_rescale: recipe.guidance_rescale,
            max_sequence_length: Some(recipe.max_sequence_length),
            seed: Some(recipe.seed),
            decode: DecodeOptions {
                timestep: recipe.decode_timestep,
                noise_scale: recipe.decode_noise_scale,
                tiling: recipe.tiling,
            },
            upscale: recipe.upscale.map(Upscale::To),
            dtype: recipe.dtype.parse()?,
            ..Self::default()
        })
    }
}

/// A job that has passed every check that takes no weights.
pub struct Job<'a> {
    request: &'a GenerateRequest,
    checkpoint: Box<dyn Checkpoint>,
    place: Placement,
    tally: Tally<'a>,
    render: RenderRequest,
    /// The size that decoded frames are brought to.
    upscale: Option<Size>,
    /// The files of each clip.
    files: Vec<Files>,
    /// The prompts, once they are encoded: all clips share them.
    texts: Option<Vec<TextStates>>,
    done: usize,
}

impl<'a> Job<'a> {
    /// Checks all that can be checked before a weight is read: names, folders, the model's headers, the grid,
    /// the encoder's options, memory.
    pub fn prepare(request: &'a GenerateRequest, reporter: &'a dyn Reporter) -> Result<Self> {
        Self::prepare_on(request, reporter, request.open()?)
    }

    /// [`Job::prepare`] on a checkpoint that [`GenerateRequest::open`] gave for this request, or for another with
    /// the same model: one whose stages stay loaded, say.
    pub fn prepare_on(
        request: &'a GenerateRequest,
        reporter: &'a dyn Reporter,
        checkpoint: Box<dyn Checkpoint>,
    ) -> Result<Self> {
        let tally = Tally::new(reporter);
        if request.clips == 0 {
            return Err(Error::invalid("number of videos 0", "expected at least 1"));
        }
        let seed = request.seed.unwrap_or_else(draw_seed);
        let files = (0..request.clips).map(|index| {
            let name = format!("sora-{}-{}", slug(&request.prompt), seed.wrapping_add(index as u64));
            request.outputs.files(index, request.clips, &name)
        });
        let files: Vec<Files> = files.collect::<Result<_>>()?;
        let device = request.device.open()?;
        let place = Placement { dtype: request.dtype.resolve(&device), device };
        let (render, mut notes) = plan(request, checkpoint.as_ref(), &files[0].target, seed)?;
        let mut job =
            Self { request, checkpoint, place, tally, render, upscale: None, files, texts: None, done: 0 };
        job.renderer().check(&job.render)?;
        if let Some(upscale) = request.upscale {
            let (size, note) = upscale.settle(&job.render.spec)?;
            job.upscale = Some(size);
            notes.extend(note);
        }
        memory::check(job.checkpoint.as_ref(), &job.render.spec, &job.place, &job.render.decode.tiling)?;
        for files in &job.files {
            let size = job.upscale.unwrap_or(job.render.spec.size());
            clip::check_files(files, &request.outputs, &job.render.spec, size)?;
        }
        if request.seed.is_none() {
            job.note(format!("seed {seed}"));
        }
        notes.into_iter().for_each(|note| job.note(note));
        Ok(job)
    }

    /// Renders the next clip; nothing when all are done.
    ///
    /// When a clip can't be finished, what was done of it is kept in a latents file, and
    /// [`Error::Unfinished`] says where it is and how to go on.
    pub fn next_clip(&mut self) -> Result<Option<Clip>> {
        let Some(files) = self.files.get(self.done).cloned() else { return Ok(None) };
        self.tally.restart();
        let render =
            RenderRequest { seed: self.render.seed.wrapping_add(self.done as u64), ..self.render.clone() };
        let texts = match &self.texts {
            // Nothing is left to denoise.
            _ if render.start == render.steps => {
                let stopped = self.request.stopped.iter();
                stopped.flat_map(|stopped| &stopped.warnings).for_each(|warning| self.warn(warning.clone()));
                Vec::new()
            }
            Some(texts) => texts.clone(),
            None => {
                let texts = self.renderer().encode(&render)?;
                self.tally.share_warnings();
                self.texts.insert(texts).clone()
            }
        };
        let denoised = self.denoise(&render, texts, &files)?;
        let mut origin = Origin {
            drawn: denoised.drawn,
            steps_done: denoised.cancelled.then_some(denoised.finished_steps),
            ..self.origin(&render)?
        };
        let latents = &denoised.latents;
        if denoised.cancelled {
            let source = Error::Cancelled { saved: None };
            return Err(rescue::keep(source, latents, &origin, &files, &self.request.outputs));
        }
        if let Some(path) = &files.latents {
            latents::save(path, latents, &origin)?;
            let _ = self.tally.emit(&Event::Written { path: path.clone() });
        }
        let checkpoints = self.request.outputs.checkpoint_every.is_some();
        if checkpoints && render.start < render.steps {
            self.save(&files.rescue, latents, &origin)?;
        }
        let written = clip::write(&self.renderer(), latents, &origin, &files, &self.request.outputs);
        let (path, health) =
            written.map_err(|error| rescue::keep(error, latents, &origin, &files, &self.request.outputs))?;
        if checkpoints && files.rescue.exists() {
            fs::remove_file(&files.rescue).map_err(Error::file("remove", &files.rescue))?;
        }
        origin.recipe.warnings = self.tally.warnings();
        self.done += 1;
        Ok(Some(Clip {
            path,
            latents: files.latents,
            contact_sheet: files.contact_sheet.map(|sheet| sheet.path().to_owned()),
            recipe: origin.recipe,
            seconds: self.tally.seconds(),
            health,
        }))
    }

    fn renderer(&self) -> Renderer<'_> {
        Renderer { checkpoint: self.checkpoint.as_ref(), place: self.place.clone(), reporter: &self.tally }
    }

    fn denoise(&self, render: &RenderRequest, texts: Vec<TextStates>, files: &Files) -> Result<Denoised> {
        let mut previewer = match &files.preview {
            Some(target) => Previewer::new(self.checkpoint.as_ref(), target.clone(), render.spec.fps)?,
            None => None,
        };
        if previewer.is_none() && files.preview.is_some() {
            self.warn("this model has no map from latents to colours: there is no preview".into());
        }
        let origin = self.origin(render)?;
        let every = self.request.outputs.checkpoint_every;
        let mut hook = |step: &Step<'_>| {
            if step.done < step.total && every.is_some_and(|every| step.done.is_multiple_of(every.get())) {
                let mut drawn = render.drawn_at_start();
                drawn.global += step.draws;
                let origin = Origin { drawn, steps_done: Some(step.done), ..origin.clone() };
                self.save(&files.rescue, &step.latents()?, &origin)?;
            }
            let Some(shown) = previewer.as_ref().filter(|_| step.done < step.total) else { return Ok(()) };
            match shown.show(&step.estimate()?) {
                Ok(path) => {
                    let _ = self.tally.emit(&Event::Preview { path, step: step.done as u64 });
                }
                // A look is no reason to lose the clip.
                Err(error) => {
                    self.warn(format!("no more previews: {error}"));
                    previewer = None;
                }
            }
            Ok(())
        };
        self.renderer().denoise(render, texts, &mut hook)
    }

    /// Saves latents to go on from. A disk that can't take them is no reason to lose the clip.
    fn save(&self, path: &Path, latents: &Tensor, origin: &Origin) -> Result<()> {
        match latents::save(path, latents, origin) {
            Ok(()) => {
                let step = origin.steps_done.unwrap_or(origin.recipe.steps) as u64;
                let _ = self.tally.emit(&Event::Saved { path: path.to_owned(), step });
            }
            Err(Error::File { action, path, source }) => {
                self.note(format!("nothing is saved yet: can't {action} {}: {source}", path.display()));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn origin(&self, render: &RenderRequest) -> Result<Origin> {
        Ok(Origin {
            model: self.model_path()?,
            recipe: self.recipe(render),
            drawn: Drawn::default(),
            steps_done: None,
        })
    }

    fn recipe(&self, render: &RenderRequest) -> Recipe {
        let info = self.checkpoint.info();
        Recipe {
            sora: env!("CARGO_PKG_VERSION").into(),
            model: info.name.clone(),
            pipeline: info.pipeline.clone(),
            prompt: render.prompt.clone(),
            negative_prompt: render.negative_prompt.clone(),
            seed: render.seed,
            spec: render.spec,
            steps: render.steps,
            timesteps: render.timesteps.clone(),
            guidance: render.guidance,
            guidance_rescale: render.guidance_rescale,
            max_sequence_length: render.max_sequence_length,
            decode_timestep: render.decode.timestep,
            decode_noise_scale: render.decode.noise_scale,
            tiling: render.decode.tiling,
            upscale: self.upscale,
            initial_latents: match &self.request.stopped {
                Some(stopped) => stopped.initial_latents,
                None => render.latents.is_some(),
            },
            device: clip::device_name(&self.place),
            dtype: self.place.dtype.as_str().into(),
            warnings: self.tally.warnings(),
        }
    }

    /// Where the model lies, for whoever reads the latents from another folder.
    fn model_path(&self) -> Result<Option<PathBuf>> {
        match &self.request.model {
            ModelSource::Embedded => Ok(None),
            ModelSource::Folder(path) => {
                std::path::absolute(path).map(Some).map_err(Error::file("find", path))
            }
        }
    }

    fn note(&self, message: String) {
        let _ = self.tally.emit(&Event::Note { message });
    }

    fn warn(&self, message: String) {
        let _ = self.tally.emit(&Event::Warning { message });
    }
}

/// Fills in what the user left to the model.
fn plan(
    request: &GenerateRequest,
    checkpoint: &dyn Checkpoint,
    target: &Target,
    seed: u64,
) -> Result<(RenderRequest, Vec<String>)> {
    let info = checkpoint.info();
    let defaults = &info.defaults;
    let length = match request.length {
        LengthChoice::Default if target.format().is_still() => {
            LengthChoice::Frames(info.geometry.frames_around(1).1)
        }
        length => length,
    };
    let size = match (request.size, request.upscale) {
        (SizeChoice::Default | SizeChoice::Sides { width: None, height: None }, Some(upscale)) => {
            upscale.aspect()
        }
        (size, _) => size,
    };
    let (spec, notes) = shape::settle(size, length, request.fps, &info.geometry, defaults)?;
    let (latents, start, drawn) = match (&request.stopped, &request.initial_latents) {
        (Some(stopped), _) => (Some(stopped.latents.clone()), stopped.steps_done, stopped.drawn),
        (None, Some(path)) => (Some(latents::load(path)?.tensor), 0, Drawn::default()),
        (None, None) => (None, 0, Drawn::default()),
    };
    let steps = request.timesteps.as_ref().map(Vec::len).or(request.steps).unwrap_or(defaults.steps);
    let seconds = spec.frames as f64 / spec.fps;
    let whole = Part { from: 0.0, until: seconds, whole: seconds };
    let render = RenderRequest {
        prompt: request.directing.prompt(&request.prompt, &defaults.direction, &info.name, whole)?,
        negative_prompt: request.negative_prompt.clone().unwrap_or_else(|| defaults.negative_prompt.clone()),
        spec,
        steps,
        guidance: request.guidance.unwrap_or(defaults.guidance),
        guidance_rescale: request.guidance_rescale,
        seed,
        max_sequence_length: request.max_sequence_length.unwrap_or(defaults.max_sequence_length),
        timesteps: request.timesteps.clone(),
        decode: request.decode.clone(),
        latents,
        start,
        drawn,
    };
    Ok((render, notes))
}

/// A seed that nobody chose, short enough to be typed again.
fn draw_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX)
}
