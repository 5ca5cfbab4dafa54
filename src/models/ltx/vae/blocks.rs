//! What the encoder and the decoder are built from. Clips are `[F, H, W, C]`, channels last, without a batch.

use candle_core::{D, DType, Tensor};

use super::{
    config::{Config, Down, DownSpec, UP_CELLS, Up, UpSpec},
    stream::{Stage, State},
};
use crate::{
    error::Result,
    models::api::DecodeNoise,
    nn::{
        conv3d::{Conv3d, ConvShape},
        embedding::TimestepEmbedder,
        layer_norm,
        pixel_norm::{Modulation, pixel_norm_silu},
    },
    weights::Loader,
};

/// Epsilon of the norms over channels, whatever the configuration says.
pub(super) const NORM_EPS: f64 = 1e-8;

/// Where layers that add noise get it from; encoders need none.
pub(super) type Noise<'a> = Option<&'a mut dyn DecodeNoise>;

/// A convolution as checkpoints store it: `weight` and `bias` below `conv`.
pub(super) fn causal_conv(c_in: usize, c_out: usize, shape: ConvShape, w: &Loader) -> Result<Conv3d> {
    let (weight, bias) = stored_conv(c_in, c_out, shape, w)?;
    Conv3d::new(&weight, &bias, shape)
}

/// The weight and the bias of [`causal_conv`], for those who lay their channels out in another order.
pub(super) fn stored_conv(
    c_in: usize,
    c_out: usize,
    shape: ConvShape,
    w: &Loader,
) -> Result<(Tensor, Tensor)> {
    let w = w.pp("conv");
    let weight = w.get(&[c_out, c_in, shape.kernel_t, shape.kernel, shape.kernel], "weight")?;
    Ok((weight, w.get_f32(&[c_out], "bias")?))
}

/// A learned table plus a timestep's embedding: `rows` vectors of `channels` numbers, f32.
pub(super) fn modulations(table: &Tensor, embedded: &Tensor) -> Result<Vec<Modulation>> {
    let rows = (embedded.reshape(table.dims())? + table)?;
    let row = |i: usize| rows.get(i);
    (0..table.dim(0)?).step_by(2).map(|i| Ok(Modulation { shift: row(i)?, scale: row(i + 1)? })).collect()
}

/// Says what a resnet has beside its convolutions.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResnetSpec {
    pub c_in: usize,
    pub c_out: usize,
    pub causal: bool,
    pub inject_noise: bool,
    pub timestep: bool,
}

/// Norm, SiLU and convolution, twice, beside a skip connection.
pub(super) struct Resnet {
    conv1: Conv3d,
    conv2: Conv3d,
    shortcut: Option<Shortcut>,
    /// `[C]`, f32: how much noise comes after each convolution.
    per_channel_scales: Option<[Tensor; 2]>,
    /// `[4, C]`, f32.
    scale_shift_table: Option<Tensor>,
}

/// What a skip connection goes through where the channels change.
struct Shortcut {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    conv: Conv3d,
}

impl Resnet {
    pub fn new(cfg: &Config, spec: ResnetSpec, w: &Loader) -> Result<Self> {
        let ResnetSpec { c_in, c_out, causal, .. } = spec;
        let cube = ConvShape::cube(3, 1, causal);
        let conv1 = causal_conv(c_in, c_out, cube, &w.pp("conv1"))?;
        let conv2 = causal_conv(c_out, c_out, cube, &w.pp("conv2"))?;
        let shortcut = if c_in == c_out {
            None
        } else {
            let point = ConvShape::cube(1, 1, causal);
            Some(Shortcut {
                weight: w.get_f32(&[c_in], "norm3.weight")?,
                bias: w.get_f32(&[c_in], "norm3.bias")?,
                eps: cfg.resnet_norm_eps,
                conv: causal_conv(c_in, c_out, point, &w.pp("conv_shortcut"))?,
            })
        };
        let scale = |key: &str| -> Result<Tensor> { Ok(w.get_f32(&[c_in, 1, 1], key)?.flatten_all()?) };
        let per_channel_scales = match spec.inject_noise {
            true => Some([scale("per_channel_scale1")?, scale("per_channel_scale2")?]),
            false => None,
        };
        let table = spec.timestep.then(|| w.get_f32(&[4, c_in], "scale_shift_table")).transpose()?;
        Ok(Self { conv1, conv2, shortcut, per_channel_scales, scale_shift_table: table })
    }

    /// `embedded` is the block's `[4·C]`, f32, if it knows a timestep.
    pub fn modulations(&self, embedded: Option<&Tensor>) -> Result<Vec<Modulation>> {
        match (&self.scale_shift_table, embedded) {
            (Some(table), Some(embedded)) => modulations(table, embedded),
            _ => Ok(Vec::new()),
        }
    }

    /// A whole clip, without noise or a timestep.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let made = self.feed(&mut State::default(), x, /* last */ true, &[], &mut None)?;
        Ok(made.ok_or_else(|| candle_core::Error::msg("a clip without frames").bt())?)
    }

    /// The next frames of a clip, its end if `last`; `None` while more are needed.
    pub fn feed(
        &self,
        state: &mut State,
        x: &Tensor,
        last: bool,
        modulations: &[Modulation],
        noise: &mut Noise,
    ) -> Result<Option<Tensor>> {
        state.waiting.push(x)?;
        let h = pixel_norm_silu(x, NORM_EPS, modulations.first())?;
        let Some(mut h) = state.first.convolve(&self.conv1, &h, last)? else { return Ok(None) };
        let [noise1, noise2] = &mut state.noise;
        if let Some([scale, _]) = &self.per_channel_scales {
            h = add_noise(&h, scale, noise1, noise)?;
        }
        h = pixel_norm_silu(&h, NORM_EPS, modulations.get(1))?;
        let (clip, due) = state.second.take(&self.conv2, &h, last)?;
        drop(h);
        if due.is_empty() {
            return Ok(None);
        }
        let skip = state.waiting.pop(due.len())?;
        let skip = match &self.shortcut {
            Some(shortcut) => shortcut.forward(&skip)?,
            None => skip,
        };
        let h = self.conv2.forward_frames(&clip, due, Some(&skip))?;
        Ok(Some(match &self.per_channel_scales {
            Some([_, scale]) => add_noise(&h, scale, noise2, noise)?,
            None => h,
        }))
    }
}

impl Shortcut {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(&layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)?)
    }
}

/// Adds one picture of noise, drawn unless it was before, to every frame, each channel its share.
fn add_noise(x: &Tensor, scale: &Tensor, drawn: &mut Option<Tensor>, noise: &mut Noise) -> Result<Tensor> {
    let Some(noise) = noise else { return Ok(x.clone()) };
    let (_, h, w, _) = x.dims4()?;
    let picture = match drawn {
        Some(drawn) => drawn,
        None => drawn.insert(noise.layer(&[h, w])?.to_device(x.device())?.to_dtype(DType::F32)?),
    };
    let noise = picture.unsqueeze(2)?.broadcast_mul(scale)?; // [H, W, C]
    Ok(x.broadcast_add(&noise.to_dtype(x.dtype())?)?)
}

/// Reads `count` resnets that keep the channels, below `resnets`.
fn resnets(cfg: &Config, spec: ResnetSpec, count: usize, w: &Loader) -> Result<Vec<Resnet>> {
    (0..count).map(|i| Resnet::new(cfg, spec, &w.pp("resnets").pp(i))).collect()
}

/// The block between the encoder's or decoder's two halves: resnets at the smallest size.
pub(super) struct MidBlock {
    time_embedder: Option<TimestepEmbedder>,
    resnets: Vec<Resnet>,
}

impl MidBlock {
    pub fn new(cfg: &Config, spec: ResnetSpec, layers: usize, w: &Loader) -> Result<Self> {
        Ok(Self { time_embedder: time_embedder(spec, w)?, resnets: resnets(cfg, spec, layers, w)? })
    }

    /// A whole clip, without noise or a timestep.
    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        self.resnets.iter().try_fold(x, |x, resnet| resnet.forward(&x))
    }

    /// What frames of a decoder pass through.
    pub fn stages<'a>(&'a self, time: Option<f32>, stages: &mut Vec<Stage<'a>>) -> Result<()> {
        let embedded = embed(self.time_embedder.as_ref(), time)?;
        push_resnets(&self.resnets, embedded.as_ref(), stages)
    }
}

fn push_resnets<'a>(
    resnets: &'a [Resnet],
    embedded: Option<&Tensor>,
    stages: &mut Vec<Stage<'a>>,
) -> Result<()> {
    for resnet in resnets {
        stages.push(Stage::Resnet(resnet, resnet.modulations(embedded)?));
    }
    Ok(())
}

fn time_embedder(spec: ResnetSpec, w: &Loader) -> Result<Option<TimestepEmbedder>> {
    let w = w.pp("time_embedder.timestep_embedder");
    spec.timestep.then(|| TimestepEmbedder::new(4 * spec.c_in, &w)).transpose()
}

/// The block's own vector for a time, f32.
fn embed(embedder: Option<&TimestepEmbedder>, time: Option<f32>) -> Result<Option<Tensor>> {
    let Some((embedder, time)) = embedder.zip(time) else { return Ok(None) };
    Ok(Some(embedder.forward(&[time])?.squeeze(0)?.to_dtype(DType::F32)?))
}

/// One of the encoder's levels.
pub(super) struct DownBlock {
    resnets: Vec<Resnet>,
    downsampler: Option<Downsampler>,
    conv_out: Option<Resnet>,
}

enum Downsampler {
    Conv(Conv3d),
    Unshuffle { conv: Conv3d, c_out: usize, stride_t: usize, stride: usize },
}

impl DownBlock {
    pub fn new(cfg: &Config, spec: &DownSpec, w: &Loader) -> Result<Self> {
        let DownSpec { c_in, c_out, layers, down, widen } = *spec;
        let causal = cfg.encoder_causal;
        let same = ResnetSpec { c_in, c_out: c_in, causal, inject_noise: false, timestep: false };
        let below = w.pp("downsamplers.0");
        let downsampler = match down {
            None => None,
            Some(Down::Conv) => {
                Some(Downsampler::Conv(causal_conv(c_in, c_in, ConvShape::cube(3, 2, causal), &below)?))
            }
            Some(Down::Unshuffle { stride_t, stride }) => {
                let (cube, below) = (ConvShape::cube(3, 1, causal), below.pp("conv"));
                let conv = causal_conv(c_in, c_out / (stride_t * stride * stride), cube, &below)?;
                Some(Downsampler::Unshuffle { conv, c_out, stride_t, stride })
            }
        };
        let conv_out = widen.then(|| Resnet::new(cfg, ResnetSpec { c_out, ..same }, &w.pp("conv_out")));
        Ok(Self { resnets: resnets(cfg, same, layers, w)?, downsampler, conv_out: conv_out.transpose()? })
    }

    pub fn forward(&self, x: Tensor) -> Result<Tensor> {
        let x = self.resnets.iter().try_fold(x, |x, resnet| resnet.forward(&x))?;
        let x = match &self.downsampler {
            Some(downsampler) => downsampler.forward(&x)?,
            None => x,
        };
        self.conv_out.as_ref().map_or(Ok(x.clone()), |resnet| resnet.forward(&x))
    }
}

impl Downsampler {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (conv, c_out, stride_t, stride) = match self {
            Self::Conv(conv) => return conv.forward(x),
            Self::Unshuffle { conv, c_out, stride_t, stride } => (conv, *c_out, *stride_t, *stride),
        };
        // The first frame stands alone: it fills the steps that lead up to it.
        let x = &Tensor::cat(&[&x.narrow(0, 0, (stride_t - 1).min(x.dim(0)?))?, x], 0)?;
        let skip = unshuffle(x, stride_t, stride)?;
        let (f, h, w, c) = skip.dims4()?;
        let skip = skip.reshape((f, h, w, c_out, c / c_out))?;
        let skip = skip.to_dtype(DType::F32)?.mean(D::Minus1)?.to_dtype(x.dtype())?; // [F, H, W, out]
        Ok((unshuffle(&conv.forward(x)?, stride_t, stride)? + skip)?)
    }
}

/// `[F·t, H·s, W·s, C]` → `[F, H, W, C·t·s·s]`, the cells' places running fastest.
fn unshuffle(x: &Tensor, t: usize, s: usize) -> Result<Tensor> {
    let (f, h, w, c) = x.dims4()?;
    let x = x.reshape(&[f / t, t, h / s, s, w / s, s, c][..])?;
    let x = x.permute(&[0, 2, 4, 6, 1, 3, 5][..])?; // [F, H, W, C, t, s, s]
    Ok(x.reshape((f / t, h / s, w / s, c * t * s * s))?)
}

/// One of the decoder's levels.
pub(super) struct UpBlock {
    conv_in: Option<Resnet>,
    time_embedder: Option<TimestepEmbedder>,
    upsampler: Option<Upsampler>,
    resnets: Vec<Resnet>,
}

impl UpBlock {
    pub fn new(cfg: &Config, spec: &UpSpec, w: &Loader) -> Result<Self> {
        let UpSpec { c_in, c_out, layers, up, narrow, inject_noise } = *spec;
        let (causal, timestep) = (cfg.decoder_causal, cfg.timestep_conditioning);
        let change = ResnetSpec { c_in, c_out, causal, inject_noise, timestep };
        let same = ResnetSpec { c_in: c_out, ..change };
        let conv_in = narrow.then(|| Resnet::new(cfg, change, &w.pp("conv_in"))).transpose()?;
        let up = up.map(|up| Upsampler::new(c_out, up, causal, &w.pp("upsamplers.0"))).transpose()?;
        Ok(Self {
            conv_in,
            time_embedder: time_embedder(change, w)?,
            upsampler: up,
            resnets: resnets(cfg, same, layers, w)?,
        })
    }

    /// What frames pass through.
    pub fn stages<'a>(&'a self, time: Option<f32>, stages: &mut Vec<Stage<'a>>) -> Result<()> {
        if let Some(conv_in) = &self.conv_in {
            stages.push(Stage::Resnet(conv_in, Vec::new()));
        }
        stages.extend(self.upsampler.as_ref().map(Stage::Up));
        let embedded = embed(self.time_embedder.as_ref(), time)?;
        push_resnets(&self.resnets, embedded.as_ref(), stages)
    }
}

/// Twice the frames (less the first one's copy), rows and columns, made from channels.
pub(super) struct Upsampler {
    conv: Conv3d,
    c_out: usize,
    residual: bool,
}

impl Upsampler {
    fn new(c_out: usize, up: Up, causal: bool, w: &Loader) -> Result<Self> {
        let cube = ConvShape::cube(3, 1, causal);
        let (weight, bias) = stored_conv(c_out * up.factor, c_out * UP_CELLS, cube, &w.pp("conv"))?;
        // Stored: the cells' places run fastest. Used: the channels do, so that whole rows of them move.
        let places_first = |x: &Tensor| x.reshape((c_out, UP_CELLS, ()))?.transpose(0, 1)?.reshape(x.dims());
        let conv = Conv3d::new(&places_first(&weight)?, &places_first(&bias)?, cube)?;
        Ok(Self { conv, c_out, residual: up.residual })
    }

    /// The next frames of a clip, its end if `last`; `None` while more are needed.
    pub fn feed(&self, state: &mut State, x: &Tensor, last: bool) -> Result<Option<Tensor>> {
        let (_, h, w, c) = x.dims4()?;
        if self.residual {
            state.waiting.push(x)?;
        }
        let (clip, due) = state.first.take(&self.conv, x, last)?;
        let f = due.len();
        if f == 0 {
            return Ok(None);
        }
        let copies = usize::from(!state.begun);
        state.begun = true;
        let spread = |x: Tensor, order: &[usize]| -> Result<Tensor> {
            let x = x.permute(order)?.contiguous()?; // [F, 2, H, 2, W, 2, C]
            let channels = x.dim(6)?;
            let x = x.reshape((2 * f, 2 * h, 2 * w, channels))?;
            Ok(x.narrow(0, copies, 2 * f - copies)?)
        };
        let y = self.conv.forward_frames(&clip, due, None)?.reshape(&[f, h, w, 2, 2, 2, self.c_out][..])?;
        drop(clip);
        let y = spread(y, &[0, 3, 1, 4, 2, 5, 6])?;
        if !self.residual {
            return Ok(Some(y));
        }
        let skip = state.waiting.pop(f)?.reshape(&[f, h, w, c / UP_CELLS, 2, 2, 2][..])?;
        let skip = spread(skip, &[0, 4, 1, 5, 2, 6, 3])?;
        let repeats = self.c_out / (c / UP_CELLS);
        Ok(Some((y + Tensor::cat(&vec![skip; repeats], 3)?)?))
    }
}
