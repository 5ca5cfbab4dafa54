//! Tokens that the denoise loop holds fast, wholly or for a while.

use candle_core::{Device, Tensor};

use super::{
    conditions::{Conditions, Content, Still},
    noise::TorchRng,
    pan::Pan,
};
use crate::{
    error::{Error, Result},
    models::api::{Conditioning, Denoiser, Geometry, LatentGrid, Timestep, TokenBlock},
    video::VideoSpec,
};

/// Noise levels this near are one.
const NEAR: f32 = 1e-6;

/// What conditions make of a render's start.
#[derive(Debug, Clone)]
pub struct Start {
    /// `[1, C, F, H, W]`, f32, on the CPU.
    pub latents: Tensor,
    /// Tokens before the clip's own, block by block.
    pub before: Vec<TokenBlock>,
    /// What is held; nothing where there are no conditions.
    pub held: Option<Held>,
}

/// Tokens that are held: those of conditions, beside the clip's and among them.
#[derive(Debug, Clone)]
pub struct Held {
    /// `[1, E, D]`: the tokens before the clip's own.
    beside: Option<Tensor>,
    /// `[1, L, D]`: all tokens as they begin.
    initial: Tensor,
    /// How fast each of the `L` tokens is held, 0..1.
    strength: Vec<f32>,
    noise_scale: f64,
    /// The solver's own noise is drawn for the frames after the first, in the layout of latents.
    first_frame: bool,
}

/// What a render is given to start from.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Pictures and clips, encoded.
    pub conditions: &'a Conditions,
    /// `[1, C, F, H, W]`, f32: used instead of drawn noise.
    pub latents: Option<&'a Tensor>,
    /// `[1, C, F, H, W]`, f32: a clip that is done, and gets noise of the level that the render begins at.
    pub clean: Option<&'a Tensor>,
    /// How the drawn noise goes sideways.
    pub pan: &'a Pan,
}

/// Draws initial noise and lays conditions into it and beside it, in the reference's order of draws.
///
/// `level` is the noise level at which a clip to start from is joined.
pub fn start(
    given: Given<'_>,
    rule: Conditioning,
    geometry: &Geometry,
    spec: &VideoSpec,
    level: f32,
    model: &dyn Denoiser,
    rng: &mut TorchRng,
) -> Result<Start> {
    let Given { conditions, latents: given, clean, pan } = given;
    let shape = geometry.latent_shape(spec);
    let mut contents = Vec::new();
    if rule == Conditioning::FirstFrame {
        contents = draw(conditions, rule, rng)?;
    }
    let mut latents = match given {
        Some(latents) => latents.clone(),
        None => pan.carry(rng.randn(&shape)?, spec, geometry, rng)?,
    };
    let source = conditions.source.as_ref().and_then(|source| source.content.mode());
    if let Some(source) = clean.or(source) {
        latents = ((latents * f64::from(level))? + (source * f64::from(1.0 - level))?)?;
    }
    if conditions.list.is_empty() && conditions.still.is_none() {
        return Ok(Start { latents, before: Vec::new(), held: None });
    }
    let grid = geometry.grid(spec);
    let mut frames = vec![0f32; grid.frames];
    let (mut before, mut beside, mut beside_strength) = (Vec::new(), Vec::new(), Vec::new());
    for (i, condition) in conditions.list.iter().enumerate() {
        let slots = condition.slots(rule, geometry, spec)?;
        let content = match contents.get(i) {
            Some(content) => Tensor::clone(content),
            None => draw_one(conditions, i, rule, rng)?,
        };
        let strength = condition.strength as f32;
        let held = slots.in_place.len();
        if held > 0 {
            let start = slots.in_place.start;
            let part = content.narrow(2, slots.skip, held)?;
            let mixed = lerp(&latents.narrow(2, start, held)?, &part, strength)?;
            latents = latents
                .slice_assign(&[0..1, 0..shape[1], start..start + held, 0..shape[3], 0..shape[4]], &mixed)?;
            frames[slots.in_place].fill(strength);
        }
        if slots.beside > 0 {
            let part = content.narrow(2, 0, slots.beside)?;
            let noise = rng.randn(part.dims())?;
            let tokens = model.pack(&lerp(&noise, &part, strength)?)?;
            beside_strength.extend(std::iter::repeat_n(strength, tokens.dim(1)?));
            before.push(TokenBlock {
                grid: LatentGrid { frames: slots.beside, ..grid },
                frame: condition.frame,
            });
            beside.push(tokens);
        }
    }
    let mut tokens = model.pack(&latents)?;
    let per_frame = tokens.dim(1)? * geometry.patch_t / grid.frames;
    let mut own: Vec<f32> = Vec::new();
    for frame in frames.iter().step_by(geometry.patch_t) {
        own.extend(std::iter::repeat_n(*frame, per_frame));
    }
    if let Some(Still { picture, cells }) = &conditions.still {
        let stays = |i: usize| cells[i % per_frame] && own[i] < 1.0 - NEAR;
        let stays: Vec<u8> = (0..own.len()).map(|i| u8::from(stays(i))).collect();
        let picture = picture.mode().ok_or_else(unencoded)?.narrow(2, 0, grid.frames)?;
        tokens = choose(&stays, &model.pack(&picture)?, &tokens)?;
        latents = model.unpack(&tokens, grid)?;
        own.iter_mut().zip(&stays).filter(|(_, stays)| **stays > 0).for_each(|(own, _)| *own = 1.0);
    }
    let strength = [beside_strength, own].concat();
    let beside = if beside.is_empty() { None } else { Some(Tensor::cat(&beside, 1)?) };
    let initial = match &beside {
        Some(beside) => Tensor::cat(&[beside, &tokens], 1)?,
        None => tokens,
    };
    let held = Held {
        beside,
        initial,
        strength,
        noise_scale: conditions.noise(rule),
        first_frame: rule == Conditioning::FirstFrame,
    };
    Ok(Start { latents, before, held: Some(held) })
}

/// The latents of all conditions.
fn draw(conditions: &Conditions, rule: Conditioning, rng: &mut TorchRng) -> Result<Vec<Tensor>> {
    (0..conditions.list.len()).map(|i| draw_one(conditions, i, rule, rng)).collect()
}

/// The latents of a condition: drawn from what the encoder knows of them where the reference draws them.
fn draw_one(conditions: &Conditions, i: usize, rule: Conditioning, rng: &mut TorchRng) -> Result<Tensor> {
    match &conditions.list[i].content {
        Content::Latents(latents) => Ok(latents.clone()),
        Content::Encoded(posterior) if rule == Conditioning::InPlace => Ok(posterior.mean.clone()),
        Content::Encoded(posterior) => posterior.sample(&rng.randn(posterior.mean.dims())?),
        Content::Pixels(_) => Err(unencoded()),
    }
}

fn unencoded() -> Error {
    candle_core::Error::msg("a condition was used before it was encoded").bt().into()
}

/// `yes` for the tokens that are chosen, `no` for the others.
fn choose(chosen: &[u8], yes: &Tensor, no: &Tensor) -> Result<Tensor> {
    let chosen = Tensor::from_vec(chosen.to_vec(), (1, chosen.len(), 1), &Device::Cpu)?;
    Ok(chosen.to_device(yes.device())?.broadcast_as(yes.shape())?.where_cond(yes, no)?)
}

impl Held {
    /// With the tokens beside the clip's as a stopped render left them.
    pub fn resumed(self, beside: Option<Tensor>) -> Self {
        Self { beside: beside.or(self.beside.clone()), ..self }
    }

    /// On the device that computes.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let beside = self.beside.as_ref().map(|tokens| tokens.to_device(device)).transpose()?;
        Ok(Self { beside, initial: self.initial.to_device(device)?, ..self.clone() })
    }

    /// How many tokens stand before the clip's own.
    #[must_use]
    pub fn beside(&self) -> usize {
        self.beside.as_ref().map_or(0, |tokens| tokens.dims()[1])
    }

    /// `[1, L, D]`: all tokens as they begin, those beside the clip's in front.
    #[must_use]
    pub fn initial(&self) -> &Tensor {
        &self.initial
    }

    /// The clip's tokens `[1, L, D]` with those beside it in front.
    pub(super) fn join(&self, tokens: Tensor) -> Result<Tensor> {
        Ok(match &self.beside {
            Some(beside) => Tensor::cat(&[beside, &tokens], 1)?,
            None => tokens,
        })
    }

    /// The time each token is at when the rest is at `time`.
    pub fn times(&self, time: f32) -> Result<Timestep> {
        let times: Vec<f32> = self.strength.iter().map(|held| time.min((1.0 - held) * 1000.0)).collect();
        let count = times.len();
        Ok(Timestep::PerToken(Tensor::from_vec(times, (1, count), &Device::Cpu)?))
    }

    /// The tokens with fresh noise on those that are held wholly.
    pub fn renoise(&self, tokens: &Tensor, time: f32, rng: &mut TorchRng) -> Result<Tensor> {
        if self.noise_scale <= 0.0 {
            return Ok(tokens.clone());
        }
        let level = time / 1000.0;
        let noise = rng.randn(tokens.dims())?.to_device(tokens.device())?;
        let noise = ((noise * self.noise_scale)? * f64::from(level * level))?;
        let noised = (&self.initial + noise)?;
        self.choose(|held| held > 1.0 - NEAR, &noised, tokens)
    }

    /// The tokens after a step: those that are held at `time` stay as they were `before`.
    pub fn keep(&self, before: &Tensor, after: &Tensor, time: f32) -> Result<Tensor> {
        self.choose(|held| time / 1000.0 - NEAR < 1.0 - held, after, before)
    }

    /// `yes` for the tokens whose strength says so, `no` for the others.
    fn choose(&self, says: impl Fn(f32) -> bool, yes: &Tensor, no: &Tensor) -> Result<Tensor> {
        let said: Vec<u8> = self.strength.iter().map(|held| u8::from(says(*held))).collect();
        choose(&said, yes, no)
    }

    /// A stochastic solver's noise, in the shape in which the pipeline draws it.
    pub(super) fn fresh(
        &self,
        model: &dyn Denoiser,
        tokens: &Tensor,
        grid: LatentGrid,
        rng: &mut TorchRng,
    ) -> Result<Tensor> {
        if !self.first_frame {
            return rng.randn(tokens.dims());
        }
        let latents = model.unpack(&tokens.to_device(&Device::Cpu)?, grid)?;
        let (b, c, f, h, w) = latents.dims5()?;
        if f == 1 {
            return Ok(tokens.zeros_like()?.to_device(&Device::Cpu)?);
        }
        let rest = rng.randn(&[b, c, f - 1, h, w])?;
        model.pack(&Tensor::cat(&[&latents.narrow(2, 0, 1)?.zeros_like()?, &rest], 2)?)
    }
}

/// `torch.lerp` with one weight.
fn lerp(start: &Tensor, end: &Tensor, weight: f32) -> Result<Tensor> {
    let way = (end - start)?;
    Ok(if weight < 0.5 {
        (start + (way * f64::from(weight))?)?
    } else {
        (end - (way * f64::from(1.0 - weight))?)?
    })
}

#[cfg(test)]
#[path = "held_tests.rs"]
mod tests;
