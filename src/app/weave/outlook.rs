//! What a clip that goes on comes to, before a weight is read.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::{
    Direction, Loom, MIN_WINDOW, Pattern, WeaveRequest, check_request,
    loom::{check_window, originals},
};
use crate::{
    app::{
        budget::Holding,
        check::{Checked, check_on},
        forecast::Labour,
        generate::GenerateRequest,
        memory,
        passage::Lengths,
        plan::plan,
        seam::Steps,
        shape::{LengthChoice, SizeChoice},
        visual::Visual,
    },
    device::Placement,
    error::{Error, Result},
    event::Silent,
    media::content_hash,
    models::api::{Checkpoint, Conditioning},
    pipeline::render::{RenderRequest, Renderer},
    video::{Layout, Original, VideoSpec},
};

/// What there is to know of a clip that others go on with.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub frames: usize,
    /// The median step from frame to frame.
    pub median: f64,
    pub sha256: String,
    /// How its frames lie in their file, if they are passed on like that.
    pub stored: Option<Layout>,
}

impl Look {
    /// Sees all frames of a clip, in the output's size and rate.
    fn at(path: &Path, size: (usize, usize), fps: f64) -> Result<Self> {
        let (mut steps, mut stored) = (Steps::default(), None);
        for original in originals(path, size, fps)? {
            let Original { frame, planes } = original?;
            stored = stored.or(planes.map(|planes| planes.layout));
            steps.see(&frame);
        }
        Ok(Self { frames: steps.frames(), median: steps.median(), sha256: content_hash(path)?, stored })
    }
}

/// Clips that were looked at: each is seen once for all jobs that go on with it.
#[derive(Debug, Default)]
pub struct Looks(HashMap<(PathBuf, (usize, usize), u64), Look>);

impl Looks {
    pub(super) fn at(&mut self, path: &Path, size: (usize, usize), fps: f64) -> Result<Look> {
        let key = (path.to_owned(), size, fps.to_bits());
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let look = Look::at(path, size, fps)?;
        self.0.insert(key, look.clone());
        Ok(look)
    }
}

/// [`check_on`] for a clip that goes on.
pub(in crate::app) fn check_weave(
    request: &WeaveRequest,
    checkpoint: &dyn Checkpoint,
    looks: &mut Looks,
) -> Result<Checked> {
    let base = &request.base;
    check_request(base)?;
    let files = base.outputs.files(0, 1, "sora")?;
    let device = base.device.open()?;
    let place = Placement { dtype: base.dtype.resolve(&device), device };
    let mut loom = Loom::prepare(request, checkpoint, &files, base.seed.unwrap_or_default(), looks)?;
    let (spec, tiling) = (loom.render.spec, &mut loom.render.decode.tiling);
    holding(checkpoint, &spec, &place).keep_to(base.max_memory, base.decode.free(), [tiling])?;
    let tiling = loom.render.decode.tiling;
    memory::check(checkpoint, &loom.render.spec, &place, &tiling, true)?;
    let renders = loom.renders(&request.pattern);
    let passages = Passed { renders, render: &loom.render };
    passages.checked(checkpoint, place, loom.output)
}

/// [`check_on`] for a clip that is made and closed to a loop: the clip on `first`, what closes it on `second`.
pub(in crate::app) fn check_loop(
    request: &GenerateRequest,
    context: Option<usize>,
    window: Option<usize>,
    (first, second): (&dyn Checkpoint, &dyn Checkpoint),
) -> Result<Checked> {
    check_request(&GenerateRequest { visual: Visual::default(), ..request.clone() })?;
    if !request.sampling.upsamplers.is_empty() {
        return Err(Error::invalid("--upsampler", "a clip that goes on is made in one pass"));
    }
    let clip = check_on(request, first)?;
    let frames = clip.spec.frames;
    let geometry = second.info().geometry;
    let window = window.unwrap_or(frames.max(MIN_WINDOW));
    check_window(window, &geometry)?;
    let rule = second.conditioning();
    if rule == Conditioning::FirstFrame {
        return Err(Error::invalid("loop", "this model takes one picture, as the first frame")
            .with_hint("use a model from 0.9.5 on"));
    }
    let lengths = Lengths::of(&geometry, window, rule);
    let context = lengths.context(context, frames, 2)?;
    let new = lengths.between_by_default(context);
    let spec = VideoSpec { frames: geometry.frames_around(new + 2 * context).1, ..clip.spec };
    let base = GenerateRequest {
        size: SizeChoice::Sides { width: Some(spec.width), height: Some(spec.height) },
        length: LengthChoice::Frames(spec.frames),
        fps: Some(spec.fps),
        visual: Visual::default(),
        ..request.clone()
    };
    let files = base.outputs.files(0, 1, "sora")?;
    let mut passes = plan(&base, second, &files.target, base.seed.unwrap_or_default())?.passes;
    let tilings = passes.iter_mut().map(|pass| &mut pass.decode.tiling);
    holding(second, &spec, &clip.place).keep_to(base.max_memory, base.decode.free(), tilings)?;
    let render = passes.last().expect("a plan has at least one pass");
    memory::check(second, &render.spec, &clip.place, &render.decode.tiling, true)?;
    let output = VideoSpec { frames: frames + new, ..clip.spec };
    let closing = Passed { renders: 1, render }.checked(second, clip.place.clone(), output)?;
    Ok(Checked {
        steps: clip.steps + closing.steps,
        prompts: [clip.prompts, closing.prompts].concat(),
        labour: clip.labour.and(closing.labour),
        ..closing
    })
}

/// Work on a clip that goes on, as far as memory is concerned.
pub(super) fn holding<'a>(
    checkpoint: &'a dyn Checkpoint,
    spec: &VideoSpec,
    place: &'a Placement,
) -> Holding<'a> {
    Holding {
        checkpoint,
        at_once: *spec,
        whole: *spec,
        size: spec.size(),
        place,
        encodes: true,
        decodes_only: false,
    }
}

/// Passages that are to be made, all as long as the longest.
struct Passed<'a> {
    renders: usize,
    render: &'a RenderRequest,
}

impl Passed<'_> {
    fn checked(self, checkpoint: &dyn Checkpoint, place: Placement, output: VideoSpec) -> Result<Checked> {
        let Self { renders, render } = self;
        let renderer = Renderer { checkpoint, place: place.clone(), reporter: &Silent };
        let negative = renderer.hears_negative(render)?.then_some(&render.negative_prompt);
        let prompts = negative.into_iter().chain([&render.prompt]);
        let labour = Labour::of(&renderer, std::slice::from_ref(render), None, /* encodes */ true)?;
        Ok(Checked {
            spec: output,
            size: output.size(),
            at_once: render.spec,
            tiling: render.decode.tiling,
            steps: renders * render.pass.count(),
            prompts: prompts.map(|prompt| (prompt.clone(), render.max_sequence_length)).collect(),
            labour: labour.times(renders),
            beside_bytes: 0,
            place,
        })
    }
}

impl Loom {
    /// Renders that the new frames take.
    fn renders(&self, pattern: &Pattern) -> usize {
        let beyond = |mut left: usize| {
            let mut renders = 0;
            while left > 0 {
                left = left.saturating_sub(self.lengths.beyond(self.context, left));
                renders += 1;
            }
            renders
        };
        match pattern {
            Pattern::Extend { direction: Direction::Both, .. } => 2 * beyond(self.new),
            Pattern::Extend { .. } => beyond(self.new),
            _ => 1 + beyond(self.new.saturating_sub(self.lengths.between_by_default(self.context))),
        }
    }
}
