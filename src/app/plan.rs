//! From a job to its passes: what the user left to the model is filled in.

use std::path::PathBuf;

use crate::{
    app::{
        direction::Part,
        generate::{GenerateRequest, Stopped},
        latents, sampling,
        shape::{self, LengthChoice, SizeChoice},
        visual::Visual,
    },
    error::{Error, Result},
    media::Target,
    models::{
        api::{Checkpoint, Defaults, UpsamplerSource},
        registry,
    },
    pipeline::{conditions::Conditions, noise::Drawn, render::RenderRequest},
};

/// What a job does, and what there is to say of it.
pub(super) struct Plan {
    pub passes: Vec<RenderRequest>,
    pub upsamplers: Vec<Box<dyn UpsamplerSource>>,
    pub notes: Vec<String>,
    pub warning: Option<String>,
}

/// Fills in what the user left to the model.
pub(super) fn plan(
    request: &GenerateRequest,
    checkpoint: &dyn Checkpoint,
    target: &Target,
    seed: u64,
) -> Result<Plan> {
    let info = checkpoint.info();
    let begun = request.sampling.begin(info)?;
    let defaults = begun.defaults(&info.defaults);
    let open = |path: &PathBuf| registry::open_upsampler(path, checkpoint);
    let upsamplers: Vec<_> = request.sampling.upsamplers.iter().map(open).collect::<Result<_>>()?;
    let infos: Vec<_> = upsamplers.iter().map(|source| source.info().clone()).collect();
    let geometry = sampling::coarser(info.geometry, &infos);
    let length = match request.length {
        LengthChoice::Default if target.format().is_still() => {
            LengthChoice::Frames(geometry.frames_around(1).1)
        }
        length => length,
    };
    let size = match (request.size, request.upscale) {
        (SizeChoice::Default | SizeChoice::Sides { width: None, height: None }, Some(upscale)) => {
            upscale.aspect()
        }
        (size, _) => size,
    };
    let (size, length) = shaped_by(&request.visual, request, size, length, checkpoint, &defaults)?;
    let (spec, notes) = shape::settle(size, length, request.fps, &geometry, &defaults)?;
    let seconds = spec.frames as f64 / spec.fps;
    let whole = Part { from: 0.0, until: seconds, whole: seconds };
    let prompt = request.directing.prompt(&request.prompt, &defaults.direction, &info.name, whole)?;
    let pan = request.directing.pan(&defaults.direction, seconds);
    geometry.check(&spec)?;
    let specs = sampling::specs(spec, &infos);
    let passes = request.sampling.passes(&begun)?;
    let negative_prompt = request.negative_prompt.clone().unwrap_or_else(|| defaults.negative_prompt.clone());
    let mut passes: Vec<RenderRequest> = specs
        .into_iter()
        .zip(passes)
        .map(|(spec, pass)| RenderRequest {
            prompt: prompt.clone(),
            negative_prompt: negative_prompt.clone(),
            spec,
            pass,
            seed,
            max_sequence_length: request.max_sequence_length.unwrap_or(defaults.max_sequence_length),
            decode: begun.decoding(&request.decode),
            conditions: Conditions::default(),
            pan: pan.clone(),
            latents: None,
            beside: None,
            refine: false,
            start: 0,
            drawn: Drawn::default(),
        })
        .collect();
    if let Some(Stopped { latents, beside, pass, steps_done, drawn, .. }) = &request.stopped {
        let Some(stopped) = passes.get_mut(*pass) else {
            return Err(Error::invalid(format!("stop in pass {}", pass + 1), "the render has fewer passes"));
        };
        (stopped.latents, stopped.beside) = (Some(latents.clone()), beside.clone());
        (stopped.start, stopped.drawn) = (*steps_done, drawn.clone());
    } else if let Some(path) = &request.initial_latents {
        passes[0].latents = Some(latents::load(path)?.tensor);
        passes[0].refine = passes[0].pass.skip_first > 0;
    } else if passes[0].pass.skip_first > 0 {
        return Err(Error::invalid("--denoise-strength below 1", "there is nothing but noise to begin with")
            .with_hint("pass --latents with a clip that is done"));
    }
    Ok(Plan { passes, upsamplers, notes, warning: begun.warning })
}

/// Size and length as the pictures and clips have them, where the user says nothing.
fn shaped_by(
    visual: &Visual,
    request: &GenerateRequest,
    size: SizeChoice,
    length: LengthChoice,
    checkpoint: &dyn Checkpoint,
    defaults: &Defaults,
) -> Result<(SizeChoice, LengthChoice)> {
    let info = checkpoint.info();
    let nothing = SizeChoice::Sides { width: None, height: None };
    let size = match visual.aspect()? {
        Some(aspect) if size == SizeChoice::Default || size == nothing => SizeChoice::Aspect(aspect),
        _ => size,
    };
    let fps = request.fps.unwrap_or(defaults.fps);
    if length != LengthChoice::Default || !(fps.is_finite() && fps > 0.0) {
        return Ok((size, length));
    }
    let length = match visual.frames(fps, defaults.frames)? {
        Some(frames) => {
            let (below, above) = info.geometry.frames_around(frames);
            LengthChoice::Frames(below.unwrap_or(above))
        }
        None => length,
    };
    Ok((size, length))
}
