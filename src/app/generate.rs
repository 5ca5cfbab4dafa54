//! From a prompt to clips: everything is checked first, then each clip is rendered and written.

mod windowed;

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
};

use candle_core::Tensor;

use crate::{
    app::{
        budget::MemoryLimit,
        check::{Settled, settle},
        clip::{self, Clip},
        decode::DecodeChoice,
        detail::Held,
        direction::Directing,
        forecast::{self, Forecast},
        latents::{self, Origin},
        outputs::{Files, Outputs},
        recipe::{Recipe, RecipeFile, slug},
        remembered::PromptCache,
        rescue,
        sampling::{PassRecipe, SamplingChoice},
        shape::{LengthChoice, SizeChoice, Upscale},
        take::{self, TakeOptions},
        tally::Tally,
        visual::Visual,
        watch::{self, Watch},
    },
    device::{DTypeChoice, DeviceChoice},
    error::{Error, Result},
    event::{Event, Reporter},
    models::{
        api::{Checkpoint, ModelInfo, Placement, TextStates, UpsamplerSource},
        registry,
        source::ModelSource,
    },
    pipeline::{
        denoise::{Step, StepHook},
        health::Health,
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
    /// Passes, schedules and guidance.
    pub sampling: SamplingChoice,
    /// Tokens that the prompt is padded or cut to.
    pub max_sequence_length: Option<usize>,
    /// Seed of the first clip; each further clip has the next one. Drawn if absent.
    pub seed: Option<u64>,
    /// Number of clips, at least 1.
    pub clips: usize,
    /// How latents become pictures.
    pub decode: DecodeChoice,
    /// The size to bring the decoded frames to.
    pub upscale: Option<Upscale>,
    /// A latents file to start from instead of the seed's noise.
    pub initial_latents: Option<PathBuf>,
    /// A stopped render to go on with, see [`GenerateRequest::resume`].
    pub stopped: Option<Stopped>,
    /// How a clip longer than the model's window is cut.
    pub take: TakeOptions,
    /// The most memory to take: how it is decoded is chosen so that it is enough.
    pub max_memory: Option<MemoryLimit>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// How precisely to compute.
    pub dtype: DTypeChoice,
    /// Where encoded prompts are kept on disk; nowhere if absent.
    pub prompt_cache: Option<PromptCache>,
    /// Pictures and clips as prompts.
    pub visual: Visual,
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
            sampling: SamplingChoice::default(),
            max_sequence_length: None,
            seed: None,
            clips: 1,
            decode: DecodeChoice::default(),
            upscale: None,
            initial_latents: None,
            stopped: None,
            take: TakeOptions::default(),
            max_memory: None,
            device: DeviceChoice::default(),
            dtype: DTypeChoice::default(),
            prompt_cache: None,
            visual: Visual::default(),
            outputs: Outputs::default(),
        }
    }
}

/// What a stopped render left: after its last step, or before.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub(super) latents: Tensor,
    pub(super) beside: Option<Tensor>,
    pub(super) pass: usize,
    pub(super) steps_done: usize,
    pub(super) drawn: Drawn,
    /// Steps of the passes before that one.
    before: usize,
    initial_latents: bool,
    warnings: Vec<String>,
}

impl Stopped {
    /// Reads what was saved of a render; nothing if it's some other latents file.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let file = latents::load(path)?;
        Ok(file.origin.map(|Origin { recipe, pass, drawn, steps_done, .. }| Self {
            latents: file.tensor,
            beside: file.beside,
            before: (0..pass).map(|pass| recipe.steps(pass)).sum(),
            pass,
            steps_done: steps_done.unwrap_or_else(|| recipe.steps(pass)),
            drawn,
            initial_latents: recipe.initial_latents,
            // Those of the steps that are left are given again.
            warnings: if steps_done.is_none() { recipe.warnings } else { Vec::new() },
        }))
    }

    /// Steps that were done before the pass in which it was stopped.
    #[must_use]
    pub fn steps_before(&self) -> usize {
        self.before
    }

    /// Steps that are done of the pass in which it was stopped.
    #[must_use]
    pub fn steps_done(&self) -> usize {
        self.steps_done
    }
}

impl GenerateRequest {
    /// The model that is asked for, opened from its headers.
    pub fn open(&self) -> Result<Box<dyn Checkpoint>> {
        let checkpoint = if self.visual.is_empty() {
            registry::open(&self.model)?
        } else {
            registry::open_conditioned(&self.model)?
        };
        Ok(match &self.prompt_cache {
            Some(cache) => cache.wrap(checkpoint),
            None => checkpoint,
        })
    }

    /// Requests with the same one run on the same weights in the same way.
    #[must_use]
    pub fn weights(&self) -> String {
        weights(&self.model, &self.sampling.upsamplers, self.device, self.dtype, !self.visual.is_empty())
    }

    /// The pictures, clips and latents that it reads.
    #[must_use]
    pub fn inputs(&self) -> Vec<PathBuf> {
        let keyframes = self.visual.keyframes.iter().map(|keyframe| &keyframe.path);
        let video = self.visual.video.iter().map(|video| &video.path);
        let region = self.visual.region.iter().map(|region| &region.path);
        self.initial_latents.iter().chain(keyframes).chain(video).chain(region).cloned().collect()
    }

    /// The rest of a render that was stopped: its latents file says all but where the video goes.
    pub fn resume(path: &Path) -> Result<Self> {
        let file = latents::load(path)?;
        let refuse = |why: &str, hint: String| {
            Error::invalid(format!("latents `{}`", path.display()), why).with_hint(hint)
        };
        let Some(Origin { model, upsamplers, recipe, pass, drawn, steps_done, windows_done, .. }) =
            file.origin
        else {
            let hint = "pass --latents, with prompt, size and length, to start from them";
            return Err(refuse("they don't say what render they come from", hint.into()));
        };
        if windows_done.is_some() {
            let take = TakeOptions::of(&recipe, Some(path));
            return Ok(Self { take, ..Self::again(recipe, model)? });
        }
        let Some(steps_done) = steps_done else {
            let hint = format!("sora decode {}", rescue::shell_path(path));
            return Err(refuse("all steps of their render are done", hint));
        };
        let stopped = Stopped {
            latents: file.tensor,
            beside: file.beside,
            before: (0..pass).map(|pass| recipe.steps(pass)).sum(),
            pass,
            steps_done,
            drawn,
            initial_latents: recipe.initial_latents,
            warnings: Vec::new(),
        };
        let mut request = Self { stopped: Some(stopped), ..Self::again(recipe, model)? };
        request.sampling.upsamplers = upsamplers;
        Ok(request)
    }

    /// The render that left this recipe.
    pub fn remake(file: RecipeFile) -> Result<Self> {
        let RecipeFile { recipe, model_path, parts, .. } = file;
        let what = || format!("recipe of `{}`", recipe.model);
        let model = match model_path {
            Some(path) => ModelSource::at(path),
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
        if recipe.loras.len() != parts.loras.len() {
            let names: Vec<&str> = recipe.loras.iter().map(|lora| lora.file.as_str()).collect();
            let why = format!("LoRAs changed its model ({}), others than are given", names.join(", "));
            return Err(Error::invalid(what(), why).with_hint("pass --lora for each of them"));
        }
        Self::again(recipe, model.with(parts))
    }

    /// All that a recipe says.
    pub(super) fn again(recipe: Recipe, model: ModelSource) -> Result<Self> {
        if let Some(woven) = &recipe.woven {
            let why = "the video goes on with a clip, which a recipe doesn't hold";
            return Err(Error::invalid(format!("recipe of `{}`", woven.pattern), why).with_hint(
                "extend, join or loop the clip again; what was stopped goes on with `sora gen --resume`",
            ));
        }
        let take = TakeOptions::of(&recipe, None);
        Ok(Self {
            model,
            prompt: recipe.prompt,
            directing: Directing { pan: recipe.pan, ..Directing::default() },
            negative_prompt: Some(recipe.negative_prompt),
            size: SizeChoice::Sides { width: Some(recipe.spec.width), height: Some(recipe.spec.height) },
            length: LengthChoice::Frames(recipe.spec.frames),
            fps: Some(recipe.spec.fps),
            sampling: SamplingChoice::again(recipe.passes),
            max_sequence_length: Some(recipe.max_sequence_length),
            seed: Some(recipe.seed),
            decode: DecodeChoice {
                timestep: Some(recipe.decode_timestep),
                noise_scale: recipe.decode_noise_scale,
                tiling: recipe.tiling,
                context: None,
            },
            upscale: recipe.upscale.map(Upscale::To),
            take,
            dtype: recipe.dtype.parse()?,
            visual: recipe.visual.unwrap_or_default(),
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
    /// One after the other; the last one makes the clip.
    passes: Vec<RenderRequest>,
    /// What lies between each two of them.
    upsamplers: Vec<Box<dyn UpsamplerSource>>,
    /// The pass to begin with.
    first: usize,
    /// The size that decoded frames are brought to.
    upscale: Option<Size>,
    /// The request's, with what the files held.
    visual: Visual,
    /// The pictures whose detail is kept.
    held: Vec<Held>,
    /// How the clip is cut into windows, if it is too long for one.
    take: Option<take::Plan>,
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
        mut checkpoint: Box<dyn Checkpoint>,
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
        let mut files: Vec<Files> = files.collect::<Result<_>>()?;
        let device = request.device.open()?;
        let place = Placement { dtype: request.dtype.resolve(&device), device };
        let settled = settle(request, checkpoint.as_ref(), &files[0].target, seed, &place)?;
        let Settled {
            passes,
            upsamplers,
            first,
            upscale,
            visual,
            held,
            spec,
            take,
            conditioned,
            notes,
            warning,
        } = settled;
        checkpoint = conditioned.unwrap_or(checkpoint);
        if take.is_some() {
            files.iter_mut().for_each(|files| request.take.keep_in(&mut files.windows));
        }
        let mut job = Self {
            request,
            checkpoint,
            place,
            tally,
            passes,
            upsamplers,
            first,
            upscale,
            visual,
            held,
            take,
            files,
            texts: None,
            done: 0,
        };
        match &job.take {
            Some(plan) => plan.check(&job.renderer(), job.last())?,
            None => job.passes[first..].iter().try_for_each(|pass| job.renderer().check(pass))?,
        }
        for files in &job.files {
            clip::check_files(files, &request.outputs, &spec, job.upscale.unwrap_or(spec.size()))?;
        }
        warning.into_iter().for_each(|warning| job.warn(warning));
        job.tally.share_warnings();
        if request.seed.is_none() {
            // A render that was killed goes on with the seed it had drawn.
            let seed = job.kept_seed()?.unwrap_or(seed);
            job.passes.iter_mut().for_each(|pass| pass.seed = seed);
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
        let seed = self.last().seed.wrapping_add(self.done as u64);
        if let Some(plan) = self.take.clone() {
            let render = RenderRequest { seed, ..self.last().clone() };
            return self.next_take(&plan, &render, files).map(Some);
        }
        let texts = match &self.texts {
            // Nothing is left to denoise.
            _ if self.nothing_is_left() => {
                let stopped = self.request.stopped.iter();
                stopped.flat_map(|stopped| &stopped.warnings).for_each(|warning| self.warn(warning.clone()));
                Vec::new()
            }
            Some(texts) => texts.clone(),
            None => {
                let texts = self.renderer().encode(self.asks_most()?)?;
                self.tally.share_warnings();
                for index in self.first..self.passes.len() {
                    self.passes[index].conditions = self.renderer().encode_conditions(&self.passes[index])?;
                }
                self.texts.insert(texts).clone()
            }
        };
        let (denoised, origin) = self.run(seed, &texts, &files)?;
        let latents = &denoised.latents;
        if let Some(path) = &files.latents {
            latents::save(path, latents, None, &origin)?;
            let _ = self.tally.emit(&Event::Written { path: path.clone() });
        }
        let checkpoints = self.request.outputs.checkpoint_every.is_some();
        if checkpoints && !self.nothing_is_left() {
            self.save(&files.rescue, latents, None, &origin)?;
        }
        let written =
            clip::write(&self.renderer(), latents, &origin, &self.held, &files, &self.request.outputs);
        let written = written
            .map_err(|error| rescue::keep(error, latents, None, &origin, &files, &self.request.outputs))?;
        // Who names a place for them keeps them until the clip is where it belongs.
        if checkpoints && self.request.outputs.rescue.is_none() && files.rescue.exists() {
            fs::remove_file(&files.rescue).map_err(Error::file("remove", &files.rescue))?;
        }
        Ok(Some(self.finished(written, origin, files)))
    }

    fn finished(&mut self, (path, health): (PathBuf, Health), origin: Origin, files: Files) -> Clip {
        self.done += 1;
        Clip {
            path,
            latents: files.latents,
            contact_sheet: files.contact_sheet.map(|sheet| sheet.path().to_owned()),
            recipe: Recipe { warnings: self.tally.warnings(), ..origin.recipe },
            seconds: self.tally.seconds(),
            health,
        }
    }

    /// What the next clip will take.
    pub fn forecast(&self) -> Result<Forecast> {
        let (passes, conditioned) = (&self.passes[self.first..], !self.request.visual.is_empty());
        let geometry = self.checkpoint.info().geometry;
        let window = self.take.as_ref().map(|plan| plan.window_spec(&self.last().spec, &geometry));
        forecast::of(
            self.checkpoint.as_ref(),
            passes,
            window,
            &self.place,
            conditioned,
            self.request.max_memory,
        )
    }

    fn renderer(&self) -> Renderer<'_> {
        Renderer { checkpoint: self.checkpoint.as_ref(), place: self.place.clone(), reporter: &self.tally }
    }

    /// The pass that makes the clip.
    fn last(&self) -> &RenderRequest {
        self.passes.last().expect("a plan has at least one pass")
    }

    /// Whether all steps of all passes were done before this job.
    fn nothing_is_left(&self) -> bool {
        self.first + 1 == self.passes.len() && self.last().start == self.last().pass.count()
    }

    /// A pass whose prompts are enough for all of them.
    fn asks_most(&self) -> Result<&RenderRequest> {
        for pass in &self.passes[self.first..] {
            if self.renderer().hears_negative(pass)? {
                return Ok(pass);
            }
        }
        Ok(self.last())
    }

    /// Takes a clip through all passes that are left. What is done is kept if they can't be finished.
    fn run(&self, seed: u64, texts: &[TextStates], files: &Files) -> Result<(Denoised, Origin)> {
        let (mut enlarged, mut before) = (None, None::<(Tensor, Origin)>);
        for (index, pass) in self.passes.iter().enumerate().skip(self.first) {
            let mut render = RenderRequest { seed, ..pass.clone() };
            if let Some(latents) = enlarged.take() {
                (render.latents, render.refine) = (Some(latents), true);
            }
            let origin = self.origin(index, seed)?;
            let done =
                self.denoise(&render, texts.to_vec(), files, &origin).map_err(|error| match &before {
                    Some((latents, origin)) => {
                        rescue::keep(error, latents, None, origin, files, &self.request.outputs)
                    }
                    None => error,
                })?;
            let last = index + 1 == self.passes.len();
            let steps_done = (done.cancelled || !last).then_some(done.finished_steps);
            let origin = Origin { drawn: done.drawn.clone(), steps_done, ..origin };
            let keep = |error| {
                let beside = done.beside.as_ref();
                rescue::keep(error, &done.latents, beside, &origin, files, &self.request.outputs)
            };
            if done.cancelled {
                return Err(keep(Error::Cancelled { saved: None }));
            }
            if last {
                return Ok((done, origin));
            }
            if self.request.outputs.checkpoint_every.is_some() {
                self.save(&files.rescue, &done.latents, None, &origin)?;
            }
            let (upsampler, next) = (self.upsamplers[index].as_ref(), &self.passes[index + 1].pass);
            enlarged = Some(self.renderer().upsample(&done.latents, upsampler, next).map_err(keep)?);
            before = Some((done.latents, origin));
        }
        unreachable!("a plan has at least one pass, and a stopped render was in one of them")
    }

    fn denoise(
        &self,
        render: &RenderRequest,
        texts: Vec<TextStates>,
        files: &Files,
        origin: &Origin,
    ) -> Result<Denoised> {
        self.watched(render, files, Some(origin), |hook| self.renderer().denoise(render, texts, hook))
    }

    /// Runs what denoises, shows early looks if they are wanted, and saves latents after every so many steps.
    fn watched<T>(
        &self,
        render: &RenderRequest,
        files: &Files,
        saved: Option<&Origin>,
        run: impl FnOnce(&mut StepHook<'_>) -> Result<T>,
    ) -> Result<T> {
        let every = self.request.outputs.checkpoint_every.filter(|_| saved.is_some());
        let (checkpoint, tally) = (self.checkpoint.as_ref(), &self.tally);
        let watch = Watch { checkpoint, tally, files, fps: render.spec.fps, every };
        let mut save = |step: &Step<'_>| {
            let Some(origin) = saved else { return Ok(()) };
            let origin = Origin { drawn: step.drawn(), steps_done: Some(step.saved()), ..origin.clone() };
            self.save(&files.rescue, &step.latents()?, step.beside()?.as_ref(), &origin)
        };
        watch.run(&mut save, run)
    }

    fn save(&self, path: &Path, latents: &Tensor, beside: Option<&Tensor>, origin: &Origin) -> Result<()> {
        watch::save(&self.tally, path, latents, beside, origin)
    }

    fn origin(&self, pass: usize, seed: u64) -> Result<Origin> {
        Ok(Origin {
            model: self.request.model.absolute()?,
            upsamplers: self
                .request
                .sampling
                .upsamplers
                .iter()
                .map(|path| whole_path(path))
                .collect::<Result<_>>()?,
            recipe: self.recipe(seed),
            pass,
            drawn: Drawn::default(),
            steps_done: None,
            windows_done: None,
            passages: Vec::new(),
            content: None,
        })
    }

    pub(super) fn recipe(&self, seed: u64) -> Recipe {
        let recipe = recipe_of(self.checkpoint.info(), self.last(), &self.place);
        let named = |path: &PathBuf| match path.file_name() {
            // Where it lies on this machine is nothing that a video should tell.
            Some(name) if path.is_absolute() => PathBuf::from(name),
            _ => path.clone(),
        };
        let uses =
            std::iter::once(None).chain(self.request.sampling.upsamplers.iter().map(|p| Some(named(p))));
        let passes = self.passes.iter().zip(uses);
        let passes = passes.map(|(pass, upsampler)| PassRecipe { upsampler, ..pass_of(pass) });
        Recipe {
            seed,
            passes: passes.collect(),
            upscale: self.upscale,
            take: self.take.as_ref().map(|plan| plan.settings.clone()),
            initial_latents: match &self.request.stopped {
                Some(stopped) => stopped.initial_latents,
                None => self.request.initial_latents.is_some(),
            },
            visual: (!self.visual.is_empty()).then(|| self.visual.clone()),
            warnings: self.tally.warnings(),
            ..recipe
        }
    }

    fn note(&self, message: String) {
        let _ = self.tally.emit(&Event::Note { message });
    }

    fn warn(&self, message: String) {
        let _ = self.tally.emit(&Event::Warning { message });
    }
}

/// Whoever has the same one runs on the same weights in the same way.
pub(super) fn weights(
    model: &ModelSource,
    upsamplers: &[PathBuf],
    device: DeviceChoice,
    dtype: DTypeChoice,
    conditioned: bool,
) -> String {
    let conditioned = if conditioned { ", conditioned" } else { "" };
    format!("{model:?} with {upsamplers:?} on {device} in {dtype}{conditioned}")
}

/// What a pass says of itself.
fn pass_of(render: &RenderRequest) -> PassRecipe {
    PassRecipe { spec: render.spec, sampling: render.pass.clone(), upsampler: None }
}

/// What a render says of itself, before anything is known of files and warnings.
pub(super) fn recipe_of(info: &ModelInfo, render: &RenderRequest, place: &Placement) -> Recipe {
    Recipe {
        sora: env!("CARGO_PKG_VERSION").into(),
        model: info.name.clone(),
        loras: info.loras.clone(),
        pipeline: info.pipeline.clone(),
        prompt: render.prompt.clone(),
        negative_prompt: render.negative_prompt.clone(),
        seed: render.seed,
        spec: render.spec,
        passes: vec![pass_of(render)],
        max_sequence_length: render.max_sequence_length,
        decode_timestep: render.decode.timestep,
        decode_noise_scale: render.decode.noise_scale,
        tiling: render.decode.tiling,
        upscale: None,
        pan: render.pan.clone(),
        take: None,
        initial_latents: false,
        visual: None,
        woven: None,
        device: clip::device_name(place),
        dtype: place.dtype.as_str().into(),
        warnings: Vec::new(),
    }
}

/// A path for whoever reads it from another folder.
fn whole_path(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::file("find", path))
}

/// A seed that nobody chose, short enough to be typed again.
pub(super) fn draw_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) & u64::from(u32::MAX)
}
