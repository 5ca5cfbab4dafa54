//! What can be said of a request before a weight is read and a file is opened.

use crate::{
    app::{
        budget::Holding,
        detail::Held,
        forecast::Labour,
        generate::GenerateRequest,
        memory,
        plan::{Plan, plan},
        take,
        visual::Visual,
    },
    error::{Error, Result},
    event::Silent,
    media::Target,
    models::{
        api::{Checkpoint, Placement, Tiling, UpsamplerSource},
        registry,
    },
    pipeline::render::{RenderRequest, Renderer},
    video::{Size, VideoSpec},
};

/// What a request comes to, by the headers of its model.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Size, length and rate.
    pub spec: VideoSpec,
    /// Size of the frames that are written.
    pub size: Size,
    /// What the model has in hand at a time: the clip, or its longest window.
    pub at_once: VideoSpec,
    /// How it is decoded.
    pub tiling: Tiling,
    /// Denoising steps.
    pub steps: usize,
    /// The prompts that are encoded, each with the tokens it is padded or cut to.
    pub prompts: Vec<(String, usize)>,
    /// What is to be computed.
    pub labour: Labour,
    /// Bytes of what stays beside the video, if it is all wanted: latents.
    pub beside_bytes: u64,
    /// Where it is computed.
    pub place: Placement,
}

/// Bytes of a clip's latents on disk.
pub(super) fn latent_bytes(checkpoint: &dyn Checkpoint, spec: &VideoSpec) -> u64 {
    4 * checkpoint.info().geometry.latent_shape(spec).iter().product::<usize>() as u64
}

/// Checks what the model has to say to a request, and nothing that is written.
pub fn check_on(request: &GenerateRequest, checkpoint: &dyn Checkpoint) -> Result<Checked> {
    if request.clips == 0 {
        return Err(Error::invalid("number of videos 0", "expected at least 1"));
    }
    let files = request.outputs.files(0, 1, "sora")?;
    let device = request.device.open()?;
    let place = Placement { dtype: request.dtype.resolve(&device), device };
    let seed = request.seed.unwrap_or_default();
    let Settled { passes, first, upscale, spec, take, conditioned, .. } =
        settle(request, checkpoint, &files.target, seed, &place)?;
    let checkpoint = conditioned.as_deref().unwrap_or(checkpoint);
    let renderer = Renderer { checkpoint, place: place.clone(), reporter: &Silent };
    let (mut steps, mut hears_negative) = (0, false);
    if let Some(plan) = &take {
        plan.check(&renderer, passes.last().expect("a plan has at least one pass"))?;
    }
    for pass in &passes {
        if take.is_none() {
            renderer.check(pass)?;
        }
        steps += pass.pass.count() * take.as_ref().map_or(1, |plan| plan.windows.len());
        hears_negative |= renderer.hears_negative(pass)?;
    }
    let last = passes.last().expect("a plan has at least one pass");
    let negative = hears_negative.then_some(&last.negative_prompt);
    let told = take.as_ref().map_or(&[][..], |plan| &plan.settings.prompts);
    let prompts = negative.into_iter().chain([&last.prompt]).chain(told);
    let prompts = prompts.map(|prompt| (prompt.clone(), last.max_sequence_length)).collect();
    let geometry = checkpoint.info().geometry;
    let at_once = take.as_ref().map_or(spec, |plan| plan.window_spec(&spec, &geometry));
    let (size, tiling) = (upscale.unwrap_or(spec.size()), last.decode.tiling);
    let window = take.as_ref().map(|_| at_once);
    let labour = Labour::of(&renderer, &passes[first..], window, !request.visual.is_empty())?;
    let saved = request.outputs.save_latents.is_some();
    let beside_bytes = if saved { latent_bytes(checkpoint, &spec) } else { 0 };
    Ok(Checked { spec, size, at_once, tiling, steps, prompts, labour, beside_bytes, place })
}

/// A plan that fits into memory, with its pictures read.
pub(super) struct Settled {
    pub passes: Vec<RenderRequest>,
    pub upsamplers: Vec<Box<dyn UpsamplerSource>>,
    /// The pass to begin with.
    pub first: usize,
    pub upscale: Option<Size>,
    pub visual: Visual,
    /// The pictures whose detail is kept.
    pub held: Vec<Held>,
    /// Of the clip.
    pub spec: VideoSpec,
    /// How the clip is cut into windows, if it is too long for one.
    pub take: Option<take::Plan>,
    /// The model opened once more, in the way that windows need; nothing if it was already.
    pub conditioned: Option<Box<dyn Checkpoint>>,
    pub notes: Vec<String>,
    pub warning: Option<String>,
}

/// Plans a request, and checks what needs no weight and no output.
pub(super) fn settle(
    request: &GenerateRequest,
    checkpoint: &dyn Checkpoint,
    target: &Target,
    seed: u64,
    place: &Placement,
) -> Result<Settled> {
    let conditioned = !request.visual.is_empty();
    let Plan { mut passes, upsamplers, mut notes, warning } = plan(request, checkpoint, target, seed)?;
    let first = request.stopped.as_ref().map_or(0, |stopped| stopped.pass);
    let geometry = checkpoint.info().geometry;
    let mut reopened = None;
    let mut take = None;
    if request.needs_windows(&passes, checkpoint) {
        if !conditioned {
            reopened = Some(registry::open_conditioned(&request.model)?);
        }
        let plan = request.cut(&passes[0], reopened.as_deref().unwrap_or(checkpoint))?;
        notes.push(format!("{} frames are made in {} windows", passes[0].spec.frames, plan.windows.len()));
        take = Some(plan);
    }
    let spec = passes.last().expect("a plan has at least one pass").spec;
    let upscale = match request.upscale {
        Some(upscale) => {
            let (size, note) = upscale.settle(&spec)?;
            notes.extend(note);
            Some(size)
        }
        None => None,
    };
    let at_once = take.as_ref().map_or(spec, |plan| plan.window_spec(&spec, &geometry));
    let holding = Holding {
        checkpoint,
        at_once,
        whole: spec,
        size: upscale.unwrap_or(spec.size()),
        place,
        encodes: conditioned,
        decodes_only: false,
    };
    let tilings = passes.iter_mut().map(|pass| &mut pass.decode.tiling);
    notes.extend(holding.keep_to(request.max_memory, request.decode.free(), tilings)?);
    let tiling = passes.last().expect("a plan has at least one pass").decode.tiling;
    memory::check(checkpoint, &at_once, place, &tiling, conditioned)?;
    memory::check_decode(checkpoint, &spec, place, &tiling)?;
    let mut visual = request.visual.clone();
    visual.settle_detail(checkpoint.info().defaults.detail)?;
    for (index, pass) in passes.iter_mut().enumerate().skip(first) {
        if conditioned && upsamplers.iter().any(|upsampler| upsampler.info().time > 1) {
            let why = "with an upsampler of frames, passes have other frames";
            return Err(Error::invalid("pictures or clips as prompts", why));
        }
        pass.conditions = visual.load(&geometry, &pass.spec)?;
        if index > 0 {
            // A later pass starts from the one before.
            pass.conditions.source = None;
        }
    }
    let held = visual.held(&geometry, &spec)?;
    Ok(Settled {
        passes,
        upsamplers,
        first,
        upscale,
        visual,
        held,
        spec,
        take,
        conditioned: reopened,
        notes,
        warning,
    })
}
