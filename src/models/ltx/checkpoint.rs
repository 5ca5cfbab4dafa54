//! An LTX-Video folder in the published layout, opened from its headers.

use candle_core::{Device, Tensor};

use super::{
    denoiser::{LtxDenoiser, PositionRule},
    transformer::{LtxTransformer, TransformerConfig},
    vae::{self, LtxVideoDecoder, LtxVideoEncoder, decode_bytes},
};
use crate::{
    error::{Error, Result},
    models::{
        api::{
            Activations, Checkpoint, Defaults, Denoiser, Geometry, ModelInfo, Placement, ScheduleSpec,
            SigmaSource, TextEncoder, Tiling, VideoDecoder, VideoEncoder, WeightBytes,
        },
        source::ModelSource,
        t5::{self, Padding, T5Text, Tokenizer},
    },
    video::VideoSpec,
};

const MODEL: &str = "diffusion_pytorch_model";

/// One opened folder. Weights are loaded stage by stage when they are asked for.
#[derive(Debug)]
pub struct LtxCheckpoint {
    source: ModelSource,
    info: ModelInfo,
    schedule: ScheduleSpec,
    rule: PositionRule,
    text: t5::Config,
    transformer: TransformerConfig,
    vae: vae::Config,
}

impl LtxCheckpoint {
    /// Reads every config and header; `class` is the pipeline's class, one of this family's in `catalog.toml`.
    pub fn open(source: ModelSource, class: &str, defaults: Defaults) -> Result<Self> {
        let rule = match class {
            "LTXPipeline" => PositionRule::LtxPipeline,
            "LTXConditionPipeline" => PositionRule::LtxConditionPipeline,
            other => {
                return Err(Error::UnknownPipeline {
                    path: source.path("model_index.json"),
                    found: other.into(),
                    expected: "LTXPipeline, LTXConditionPipeline".into(),
                });
            }
        };
        let file = "text_encoder/config.json";
        let text =
            t5::Config::parse(&source.path(file), &source.read(file, "the text encoder's dimensions")?)?;
        let file = "transformer/config.json";
        let transformer = TransformerConfig::parse(
            &source.text(file, "the transformer's dimensions")?,
            &source.path(file),
        )?;
        let file = "vae/config.json";
        let vae = vae::Config::from_json(
            &source.text(file, "the video autoencoder's dimensions")?,
            &source.path(file),
        )?;
        let schedule = ScheduleSpec {
            config: source.json("scheduler/scheduler_config.json", "it says how noise levels are spaced")?,
            path: source.path("scheduler/scheduler_config.json"),
            source: match rule {
                PositionRule::LtxPipeline => SigmaSource::Linear,
                PositionRule::LtxConditionPipeline => SigmaSource::LinearQuadratic,
            },
        };
        let geometry = Geometry {
            spatial: vae.spatial(),
            temporal: vae.temporal(),
            patch: transformer.patch_size,
            patch_t: transformer.patch_size_t,
            channels: vae.latent_channels,
        };
        let tokens = transformer.in_channels;
        let expected = geometry.channels * geometry.patch * geometry.patch * geometry.patch_t;
        if tokens != expected {
            return Err(Error::Config {
                path: source.path("transformer/config.json"),
                key: "in_channels".into(),
                found: tokens.to_string(),
                expected: format!("{expected}, as vae/config.json has {} latent channels", geometry.channels),
            });
        }
        if transformer.caption_channels != text.d_model {
            return Err(Error::Config {
                path: source.path("transformer/config.json"),
                key: "caption_channels".into(),
                found: transformer.caption_channels.to_string(),
                expected: format!("{}, the text encoder's d_model", text.d_model),
            });
        }
        let weight_bytes = WeightBytes {
            text: source.weights("text_encoder", "model")?.byte_len(),
            denoiser: source.weights("transformer", MODEL)?.byte_len(),
            video: source.weights("vae", MODEL)?.byte_len(),
        };
        let info =
            ModelInfo { name: source.name(), pipeline: class.into(), geometry, defaults, weight_bytes };
        Ok(Self { source, info, schedule, rule, text, transformer, vae })
    }
}

impl Checkpoint for LtxCheckpoint {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn schedule(&self) -> &ScheduleSpec {
        &self.schedule
    }

    fn text_encoder(&self, place: &Placement) -> Result<Box<dyn TextEncoder>> {
        let tokenizer = match &self.source {
            ModelSource::Embedded => Tokenizer::from_files(
                &self.source.path("tokenizer"),
                &ModelSource::embedded_below("tokenizer/"),
            )?,
            ModelSource::Folder(folder) => Tokenizer::open(&folder.join("tokenizer"))?,
        };
        let weights = self.source.weights("text_encoder", "model")?.loader(place);
        let padding = match self.rule {
            PositionRule::LtxPipeline => Padding::Read,
            PositionRule::LtxConditionPipeline => Padding::Hidden,
        };
        let encoder = T5Text::new(tokenizer, &self.text, padding, &weights)?;
        weights.finish(&[])?;
        Ok(Box::new(encoder))
    }

    fn denoiser(&self, place: &Placement) -> Result<Box<dyn Denoiser>> {
        let weights = self.source.weights("transformer", MODEL)?.loader(place);
        let transformer = LtxTransformer::new(&self.transformer, &weights)?;
        weights.finish(&[])?;
        Ok(Box::new(LtxDenoiser::new(transformer, self.info.geometry, self.rule)))
    }

    fn video_decoder(&self, place: &Placement) -> Result<Box<dyn VideoDecoder>> {
        let weights = self.source.weights("vae", MODEL)?.loader(place);
        Ok(Box::new(LtxVideoDecoder::new(&self.vae, &weights)?))
    }

    fn video_encoder(&self, place: &Placement) -> Result<Box<dyn VideoEncoder>> {
        let weights = self.source.weights("vae", MODEL)?.loader(place);
        Ok(Box::new(LtxVideoEncoder::new(&self.vae, &weights)?))
    }

    fn latent_rgb(&self) -> Result<Option<(Tensor, Tensor)>> {
        #[derive(serde::Deserialize)]
        struct Preview {
            latent_rgb: Option<LatentRgb>,
        }
        #[derive(serde::Deserialize)]
        struct LatentRgb {
            weight: Vec<Vec<f32>>,
            bias: Vec<f32>,
        }
        let Some(bytes) = self.source.read_optional("sora.json")? else { return Ok(None) };
        let path = self.source.path("sora.json");
        let preview: Preview =
            serde_json::from_slice(&bytes).map_err(|e| Error::damaged(&path, e.to_string()))?;
        let Some(map) = preview.latent_rgb else { return Ok(None) };
        let channels = self.info.geometry.channels;
        if map.weight.len() != 3 || map.bias.len() != 3 || map.weight.iter().any(|row| row.len() != channels)
        {
            return Err(Error::Config {
                path,
                key: "latent_rgb".into(),
                found: "another shape".into(),
                expected: format!("weight [3][{channels}] and bias [3]"),
            });
        }
        let weight = Tensor::new(map.weight, &Device::Cpu)?;
        let bias = Tensor::new(map.bias, &Device::Cpu)?;
        Ok(Some((weight, bias)))
    }

    fn activations(&self, spec: &VideoSpec, place: &Placement, tiling: &Tiling) -> Activations {
        let grid = self.info.geometry.grid(spec);
        let Geometry { patch, patch_t, .. } = self.info.geometry;
        let tokens = grid.frames * grid.height * grid.width / (patch * patch * patch_t);
        Activations {
            denoise: LtxTransformer::activation_bytes(&self.transformer, tokens, place.dtype),
            decode: decode_bytes(&self.vae, grid, place, tiling),
        }
    }
}
