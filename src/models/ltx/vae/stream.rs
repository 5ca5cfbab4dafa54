//! A decoder as a line of stages that frames pass through a few at a time: each stage keeps the few frames that its
//! convolutions still need, so that nothing is computed twice, every number is that of the whole clip, and memory doesn't
//! grow with the clip.

use std::ops::Range;

use candle_core::Tensor;

use super::blocks::{NORM_EPS, Noise, Resnet, Upsampler};
use crate::{
    error::Result,
    nn::{
        conv3d::Conv3d,
        pixel_norm::{Modulation, pixel_norm_silu},
    },
};

/// Cells of the latents that pass through a stage at a time: enough for its weights to be read seldom.
const CELLS: usize = 256;

/// Latent frames that pass through a stage at a time.
pub(super) fn piece(height: usize, width: usize) -> usize {
    CELLS.div_ceil((height * width).max(1))
}

/// What frames pass through.
pub(super) enum Stage<'a> {
    Conv(&'a Conv3d),
    Resnet(&'a Resnet, Vec<Modulation>),
    Up(&'a Upsampler),
    Out(&'a Conv3d, Option<Modulation>),
}

/// What a stage keeps between pieces.
#[derive(Default)]
pub(super) struct State {
    pub first: Tail,
    pub second: Tail,
    pub waiting: Waiting,
    /// Pictures of noise, drawn when the first piece comes by.
    pub noise: [Option<Tensor>; 2],
    /// Whether anything has come out.
    pub begun: bool,
}

/// The frames that a convolution's next ones still need.
#[derive(Default)]
pub(super) struct Tail {
    frames: Option<Tensor>,
    /// How many of them have had their own result.
    done: usize,
}

impl Tail {
    /// Takes the next frames, the clip's end if `last`, and gives what the convolution can be made of now: a clip, and
    /// those of its frames whose results are due.
    pub fn take(&mut self, conv: &Conv3d, x: &Tensor, last: bool) -> Result<(Tensor, Range<usize>)> {
        let (before, after) = conv.reach();
        let clip = join(self.frames.take(), x)?;
        let frames = clip.dim(0)?;
        let end = if last { frames } else { frames.saturating_sub(after) };
        let due = self.done.min(end)..end;
        let kept = due.end.saturating_sub(before);
        if !last && kept < frames {
            // A copy, or the whole clip would live as long as its last frames.
            self.frames = Some(clip.narrow(0, kept, frames - kept)?.force_contiguous()?);
        }
        self.done = due.end - kept;
        Ok((clip, due))
    }

    /// The convolution of the next frames, if any are due.
    pub fn convolve(&mut self, conv: &Conv3d, x: &Tensor, last: bool) -> Result<Option<Tensor>> {
        let (clip, due) = self.take(conv, x, last)?;
        if due.is_empty() { Ok(None) } else { conv.forward_frames(&clip, due, None).map(Some) }
    }
}

/// Frames that go round a convolution, until their results are there.
#[derive(Default)]
pub(super) struct Waiting(Option<Tensor>);

impl Waiting {
    pub fn push(&mut self, x: &Tensor) -> Result<()> {
        self.0 = Some(join(self.0.take(), x)?);
        Ok(())
    }

    /// The first `count` of them, which are there.
    pub fn pop(&mut self, count: usize) -> Result<Tensor> {
        let all = self.0.take().ok_or_else(|| candle_core::Error::msg("no frame waits").bt())?;
        let rest = all.dim(0)? - count;
        if rest == 0 {
            return Ok(all);
        }
        self.0 = Some(all.narrow(0, count, rest)?.force_contiguous()?);
        Ok(all.narrow(0, 0, count)?)
    }
}

fn join(before: Option<Tensor>, x: &Tensor) -> Result<Tensor> {
    match before {
        Some(before) => Ok(Tensor::cat(&[&before, x], 0)?),
        None => Ok(x.clone()),
    }
}

/// Stages with their states.
pub(super) struct Stream<'a> {
    stages: Vec<(Stage<'a>, State)>,
}

impl<'a> Stream<'a> {
    pub fn new(stages: Vec<Stage<'a>>) -> Self {
        Self { stages: stages.into_iter().map(|stage| (stage, State::default())).collect() }
    }

    /// Sends a clip `[F, H, W, C]` through all stages, `piece` frames at a time, and hands on what comes out.
    pub fn run(
        &mut self,
        x: Tensor,
        piece: usize,
        noise: &mut Noise,
        emit: &mut dyn FnMut(Tensor) -> Result<()>,
    ) -> Result<()> {
        pass(&mut self.stages, x, piece.max(1), true, noise, emit)
    }
}

/// `last` says that the clip ends with `x`. What a stage gives beyond `piece` frames goes on in pieces, so that frames held
/// back at the end don't gather.
fn pass(
    stages: &mut [(Stage, State)],
    x: Tensor,
    piece: usize,
    last: bool,
    noise: &mut Noise,
    emit: &mut dyn FnMut(Tensor) -> Result<()>,
) -> Result<()> {
    let Some(((stage, state), rest)) = stages.split_first_mut() else { return emit(x) };
    let frames = x.dim(0)?;
    let grown = if matches!(stage, Stage::Up(_)) { 2 * piece } else { piece };
    // A piece that is little longer is not worth cutting.
    let step = if frames <= piece + piece.div_ceil(4) { frames.max(1) } else { piece };
    let mut x = Some(x);
    for start in (0..frames).step_by(step) {
        let end = frames.min(start + step);
        let last = last && end == frames;
        let part = match &x {
            Some(whole) if end - start < frames => whole.narrow(0, start, end - start)?,
            _ => x.take().ok_or_else(|| candle_core::Error::msg("a clip without frames").bt())?,
        };
        let made = stage.feed(state, &part, last, noise)?;
        drop(part);
        if let Some(made) = made {
            pass(rest, made, grown, last, noise, emit)?;
        }
    }
    Ok(())
}

impl Stage<'_> {
    fn feed(&self, state: &mut State, x: &Tensor, last: bool, noise: &mut Noise) -> Result<Option<Tensor>> {
        match self {
            Self::Conv(conv) => state.first.convolve(conv, x, last),
            Self::Resnet(resnet, modulations) => resnet.feed(state, x, last, modulations, noise),
            Self::Up(upsampler) => upsampler.feed(state, x, last),
            Self::Out(conv, modulation) => {
                let normed = pixel_norm_silu(x, NORM_EPS, modulation.as_ref())?;
                state.first.convolve(conv, &normed, last)
            }
        }
    }
}
