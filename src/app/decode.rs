//! From saved latents to a clip.

use std::path::PathBuf;

use crate::{
    app::{
        budget::{Free, Holding, MemoryLimit},
        clip::{self, Clip},
        detail::Held,
        latents::{self, Latents, Origin},
        memory,
        outputs::Outputs,
        recipe::Recipe,
        rescue,
        shape::Upscale,
        tally::Tally,
    },
    device::{DTypeChoice, DeviceChoice},
    error::{Error, Result},
    event::{Event, Reporter},
    media::Target,
    models::{
        api::{Checkpoint, Placement, Tiling},
        registry,
        source::ModelSource,
    },
    pipeline::{noise::Drawn, render::Renderer},
    video::VideoSpec,
};

/// How a render's latents become pictures. What is `None` is the model's own choice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DecodeChoice {
    /// Timestep for decoders that take one.
    pub timestep: Option<f64>,
    /// Share of noise mixed in before such a decoder.
    pub noise_scale: Option<f64>,
    /// How the decode is cut.
    pub tiling: Tiling,
    /// Latent cells read around tiles, if the user says it; else the tiling's own.
    pub context: Option<usize>,
}

impl DecodeChoice {
    /// How the decode is cut, as far as the user says.
    pub(super) fn tiling(&self) -> Tiling {
        Tiling { context: self.context.unwrap_or(self.tiling.context), ..self.tiling }
    }

    /// What is left open of it.
    pub(super) fn free(&self) -> Free {
        Free::beside(&self.tiling, self.context)
    }
}

/// What to decode, and how. What is `None` is taken from the latents' own account of themselves.
#[derive(Debug, Clone, Default)]
pub struct DecodeRequest {
    /// The latents file.
    pub latents: PathBuf,
    /// The model; else the one that made the latents, else the embedded one.
    pub model: Option<ModelSource>,
    /// Frames a second.
    pub fps: Option<f64>,
    /// Seed of the noise that some decoders mix in.
    pub seed: Option<u64>,
    /// Timestep for decoders that take one.
    pub decode_timestep: Option<f64>,
    /// Share of noise mixed in before such a decoder.
    pub decode_noise_scale: Option<f64>,
    /// How the decode is cut.
    pub tiling: Tiling,
    /// Latent cells read around tiles.
    pub context: Option<usize>,
    /// The most memory to take: tiles are chosen so that it is enough.
    pub max_memory: Option<MemoryLimit>,
    /// The size to bring the frames to.
    pub upscale: Option<Upscale>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// How precisely to compute.
    pub dtype: DTypeChoice,
    /// What to write.
    pub outputs: Outputs,
}

/// Decodes one latents file.
pub fn decode(request: &DecodeRequest, reporter: &dyn Reporter) -> Result<Clip> {
    let tally = Tally::new(reporter);
    let stem = request.latents.file_stem().unwrap_or_default().to_string_lossy();
    let stem = stem.strip_suffix(".latents").unwrap_or(&stem);
    // `out.mp4.latents.safetensors` is what a render leaves when `out.mp4` couldn't be written.
    let stem = stem.rsplit_once('.').filter(|_| Target::parse(stem).is_ok()).map_or(stem, |(stem, _)| stem);
    let files = request.outputs.files(0, 1, stem)?;
    let file = latents::load(&request.latents)?;
    if file
        .origin
        .as_ref()
        .is_some_and(|origin| origin.recipe.woven.is_some() && origin.windows_done.is_some())
    {
        let what = format!("latents `{}`", request.latents.display());
        return Err(Error::invalid(what, "they are passages of a clip that goes on, which was stopped")
            .with_hint(format!("sora gen --resume {}", rescue::shell_path(&request.latents))));
    }
    let source = match (&request.model, &file.origin) {
        (Some(model), _) => model.clone(),
        (None, Some(origin)) => origin.model.clone(),
        (None, None) => ModelSource::Embedded,
    };
    let checkpoint = registry::open(&source)?;
    let device = request.device.open()?;
    let place = Placement { dtype: request.dtype.resolve(&device), device };
    let mut origin = origin_of(request, &file, checkpoint.as_ref(), &place)?;
    if let Some(upscale) = request.upscale {
        let (size, note) = upscale.settle(&origin.recipe.spec)?;
        origin.recipe.upscale = Some(size);
        if let Some(message) = note {
            let _ = tally.emit(&Event::Note { message });
        }
    }
    let size = origin.recipe.frame_size();
    let Recipe { spec, tiling, .. } = &mut origin.recipe;
    let holding = Holding {
        checkpoint: checkpoint.as_ref(),
        at_once: *spec,
        whole: *spec,
        size,
        place: &place,
        encodes: false,
        decodes_only: true,
    };
    let free = Free::beside(tiling, request.context);
    if let Some(message) = holding.keep_to(request.max_memory, free, [&mut *tiling])? {
        let _ = tally.emit(&Event::Note { message });
    }
    memory::check(checkpoint.as_ref(), spec, &place, tiling, false)?;
    clip::check_files(&files, &request.outputs, &origin.recipe.spec, origin.recipe.frame_size())?;
    let whole = file.origin.as_ref().map_or(0, |origin| origin.recipe.spec.frames);
    let made = origin.recipe.spec.frames;
    let cut = origin.windows_done.is_some() && made < whole;
    if cut {
        let message = format!("the render of these latents was stopped after {made} of {whole} frames");
        let _ = tally.emit(&Event::Warning { message });
    }
    if let Some(done) = origin.steps_done {
        let (pass, passes) = (origin.pass + 1, origin.recipe.passes.len());
        let of = if passes > 1 { format!(" of pass {pass} of {passes}") } else { String::new() };
        let message = format!("the render of these latents was stopped after step {done}{of}");
        let _ = tally.emit(&Event::Warning { message });
    }
    // In what was stopped, pictures may have other places.
    let finished = origin.steps_done.is_none() && !cut;
    let held = if finished { held(&mut origin.recipe, checkpoint.as_ref(), &tally) } else { Vec::new() };
    origin.recipe.warnings.extend(tally.warnings());
    let renderer = Renderer { checkpoint: checkpoint.as_ref(), place, reporter: &tally };
    let before = tally.warnings().len();
    let (path, health) = clip::write(&renderer, &file.tensor, &origin, &held, &files, &request.outputs)?;
    origin.recipe.warnings.extend(tally.warnings().split_off(before));
    Ok(Clip {
        path,
        latents: Some(request.latents.clone()),
        contact_sheet: files.contact_sheet.map(|sheet| sheet.path().to_owned()),
        recipe: origin.recipe,
        seconds: tally.seconds(),
        health,
    })
}

/// The pictures whose detail the recipe keeps. Where they aren't what they were, it isn't kept, which is said.
fn held(recipe: &mut Recipe, checkpoint: &dyn Checkpoint, tally: &Tally<'_>) -> Vec<Held> {
    let Some(visual) = &mut recipe.visual else { return Vec::new() };
    visual.held(&checkpoint.info().geometry, &recipe.spec).unwrap_or_else(|error| {
        let message = format!("the detail of the pictures isn't kept: {error}");
        let _ = tally.emit(&Event::Warning { message });
        visual.detail = Some(false);
        Vec::new()
    })
}

/// The latents' own account of themselves, as far as they give one and the request doesn't say otherwise.
fn origin_of(
    request: &DecodeRequest,
    file: &Latents,
    checkpoint: &dyn Checkpoint,
    place: &Placement,
) -> Result<Origin> {
    let info = checkpoint.info();
    let mut origin = match &file.origin {
        Some(origin) => origin.clone(),
        None => Origin {
            model: ModelSource::Embedded,
            upsamplers: Vec::new(),
            recipe: Recipe::unknown(info, spec_of(file, checkpoint)?),
            pass: 0,
            drawn: Drawn::initial_noise(file.tensor.dims()),
            steps_done: None,
            windows_done: None,
            passages: Vec::new(),
            content: None,
        },
    };
    let recipe = &mut origin.recipe;
    // An earlier pass has a smaller clip.
    recipe.spec = recipe.passes.get(origin.pass).map_or(recipe.spec, |pass| pass.spec);
    if origin.windows_done.is_some() {
        let (_, _, latent, ..) = file.tensor.dims5()?;
        recipe.spec.frames = (latent - 1) * info.geometry.temporal + 1;
        origin.drawn = Drawn::initial_noise(file.tensor.dims());
    }
    recipe.spec.fps = request.fps.unwrap_or(recipe.spec.fps);
    recipe.seed = request.seed.unwrap_or(recipe.seed);
    recipe.decode_timestep = request.decode_timestep.unwrap_or(recipe.decode_timestep);
    recipe.decode_noise_scale = request.decode_noise_scale.or(recipe.decode_noise_scale);
    let was_cut = recipe.tiling.spatial.is_some() || recipe.tiling.temporal.is_some();
    recipe.tiling.spatial = request.tiling.spatial.or(recipe.tiling.spatial);
    recipe.tiling.temporal = request.tiling.temporal.or(recipe.tiling.temporal);
    let told = if was_cut { recipe.tiling.context } else { request.tiling.context };
    recipe.tiling.context = request.context.unwrap_or(told);
    recipe.device = clip::device_name(place);
    recipe.dtype = place.dtype.as_str().into();
    Ok(origin)
}

/// The clip that latents of this shape become.
fn spec_of(file: &Latents, checkpoint: &dyn Checkpoint) -> Result<VideoSpec> {
    let info = checkpoint.info();
    let (_, channels, frames, height, width) = file.tensor.dims5()?;
    let geometry = &info.geometry;
    if channels != geometry.channels {
        let why = format!("`{}` wants {}", info.name, geometry.channels);
        return Err(Error::invalid(format!("latents with {channels} channels"), why)
            .with_hint("pass --model with the model that made them"));
    }
    Ok(VideoSpec {
        width: width * geometry.spatial,
        height: height * geometry.spatial,
        frames: (frames - 1) * geometry.temporal + 1,
        fps: info.defaults.fps,
    })
}
