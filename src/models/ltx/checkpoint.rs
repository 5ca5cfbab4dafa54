//! An LTX-Video model, opened from its headers.

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::{
    denoiser::{LtxDenoiser, PositionRule},
    keys,
    layout::LtxParts,
    transformer::LtxTransformer,
    vae::{self, LtxVideoDecoder, LtxVideoEncoder, decode_bytes, encode_bytes},
    work,
};
use crate::{
    error::{Error, Result},
    models::{
        api::{
            Activations, Checkpoint, Conditioning, Defaults, Denoiser, Geometry, Identified, LatentGrid,
            LatentStatistics, LoraUse, ModelInfo, Placement, ScheduleSpec, SigmaSource, TextEncoder, Tiling,
            VideoDecoder, VideoEncoder, WeightBytes, Work,
        },
        catalog,
        source::ModelSource,
        t5::{self, Padding, T5Text, Tokenizer},
    },
    video::VideoSpec,
    weights::{Residency, Weights},
};

/// One opened model. Weights are loaded stage by stage when they are asked for.
#[derive(Debug)]
pub struct LtxCheckpoint {
    source: ModelSource,
    info: ModelInfo,
    schedule: ScheduleSpec,
    rule: PositionRule,
    conditioning: Conditioning,
    parts: LtxParts,
    resident: Resident,
}

/// What the weights of each stage take once they are loaded.
#[derive(Debug)]
struct Resident {
    text: Residency,
    denoiser: Residency,
    decoder: Residency,
}

impl LtxCheckpoint {
    /// The pipeline classes of this family: text alone, a first frame, and any pictures and clips.
    pub const CLASSES: [&str; 3] = ["LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"];

    /// Whether a file holds a transformer of this family.
    #[must_use]
    pub fn recognises(weights: &Weights) -> bool {
        keys::has_transformer(weights)
    }

    /// Reads every config and header of a folder; `class` is the pipeline's class, one of this family's in
    /// `catalog.toml`.
    pub fn open(source: &ModelSource, class: &str, defaults: Defaults) -> Result<Self> {
        Self::assemble(source, LtxParts::of_folder(source, class)?, defaults)
    }

    /// Finds the parts of a model whose transformer is a file.
    pub fn parts_of(source: &ModelSource) -> Result<LtxParts> {
        LtxParts::of_file(source, &source.path(""))
    }

    /// Puts parts together that fit.
    pub fn assemble(source: &ModelSource, parts: LtxParts, defaults: Defaults) -> Result<Self> {
        let rule = match parts.class() {
            "LTXPipeline" | "LTXImageToVideoPipeline" => PositionRule::LtxPipeline,
            "LTXConditionPipeline" => PositionRule::LtxConditionPipeline,
            other => {
                return Err(Error::UnknownPipeline {
                    path: source.path("model_index.json"),
                    found: other.into(),
                    expected: Self::CLASSES.join(", "),
                });
            }
        };
        let own = Own::read(source)?;
        let schedule = ScheduleSpec {
            config: parts.schedule.clone(),
            path: parts.schedule_path.clone(),
            source: match (own.shift, rule) {
                (Some(shift), _) => SigmaSource::Shifted(shift),
                (None, PositionRule::LtxPipeline) => SigmaSource::Linear,
                (None, PositionRule::LtxConditionPipeline) => SigmaSource::LinearQuadratic,
            },
        };
        let LtxParts { transformer, vae, text, .. } = &parts;
        let geometry = Geometry {
            spatial: vae.spatial(),
            temporal: vae.temporal(),
            patch: transformer.patch_size,
            patch_t: transformer.patch_size_t,
            channels: vae.latent_channels,
        };
        let refuse = |key: &str, found: usize, expected: String| {
            let path = source.path("transformer/config.json");
            Err(Error::Config { path, key: key.into(), found: found.to_string(), expected })
        };
        let sides = [geometry.patch, geometry.patch, geometry.patch_t];
        let expected = sides.iter().try_fold(geometry.channels, |n, side| n.checked_mul(*side));
        if Some(transformer.in_channels) != expected {
            let expected = format!(
                "{}, as the video autoencoder has {} latent channels",
                expected.unwrap_or(usize::MAX),
                geometry.channels
            );
            return refuse("in_channels", transformer.in_channels, expected);
        }
        if transformer.caption_channels != text.d_model {
            let expected = format!("{}, the text encoder's d_model", text.d_model);
            return refuse("caption_channels", transformer.caption_channels, expected);
        }
        let (text, denoiser, video) =
            (parts.text_part.text()?, parts.transformer_weights(source)?, parts.vae_part.vae()?);
        let weight_bytes =
            WeightBytes { text: text.byte_len(), denoiser: denoiser.byte_len(), video: video.byte_len() };
        let resident = Resident {
            text: text.residency(""),
            denoiser: denoiser.residency(""),
            decoder: video.residency("decoder."),
        };
        let given = source.parts();
        let loras = given.loras.iter().map(|lora| LoraUse {
            file: lora.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            scale: lora.scale,
        });
        let layout = match source.base() {
            ModelSource::File(_) => catalog::Layout::SingleFile,
            _ => catalog::Layout::Folder,
        };
        let mut facts = catalog::Facts::from([
            ("layers".to_owned(), transformer.num_layers.into()),
            ("width".to_owned(), transformer.inner_dim().into()),
            ("vae".to_owned(), vae.generation().into()),
        ]);
        if let Some(distilled) = parts.distilled {
            facts.insert("distilled".to_owned(), distilled.into());
        }
        let info = ModelInfo {
            name: source.name(),
            pipeline: parts.class.clone(),
            geometry,
            defaults,
            weight_bytes,
            blocks: transformer.num_layers,
            published: match source.read_optional("sora.json")? {
                Some(_) => Identified::Unknown,
                None => catalog::identify("ltx", layout, &facts),
            },
            loras: loras.collect(),
        };
        let conditioning = match (own.conditions, rule) {
            (Some(own), _) => own,
            (None, PositionRule::LtxPipeline) => Conditioning::FirstFrame,
            (None, PositionRule::LtxConditionPipeline) => Conditioning::Beside,
        };
        Ok(Self { source: source.clone(), info, schedule, rule, conditioning, parts, resident })
    }

    /// The class whose arithmetic a render with pictures or clips as prompts follows, where the folder's own
    /// `class` knows text alone: 0.9.5 and later take any number anywhere, older ones a first frame.
    pub fn conditioned_class(source: &ModelSource, class: &str) -> Result<&'static str> {
        Ok(match class {
            "LTXConditionPipeline" => "LTXConditionPipeline",
            "LTXImageToVideoPipeline" => "LTXImageToVideoPipeline",
            _ if Own::read(source)?.conditions.is_some() => "LTXPipeline",
            _ => {
                let text = source.text("vae/config.json", "the video autoencoder's dimensions")?;
                let vae = vae::Config::from_json(&text, &source.path("vae/config.json"))?;
                if vae.is_095() { "LTXConditionPipeline" } else { "LTXImageToVideoPipeline" }
            }
        })
    }
}

/// What the checkpoint says of itself beyond the published layout, in `sora.json`.
#[derive(Debug, Default, serde::Deserialize)]
struct Own {
    /// How it takes pictures and clips as prompts.
    conditions: Option<Conditioning>,
    /// How far the equal steps that it wants are shifted towards noise.
    shift: Option<f64>,
}

impl Own {
    fn read(source: &ModelSource) -> Result<Self> {
        let path = || source.path("sora.json");
        let Some(bytes) = source.read_optional("sora.json")? else { return Ok(Self::default()) };
        let own: Self = serde_json::from_slice(&bytes).map_err(|e| Error::damaged(path(), e.to_string()))?;
        match own.shift {
            Some(shift) if !(shift.is_finite() && shift > 0.0) => Err(Error::Config {
                path: path(),
                key: "shift".into(),
                found: shift.to_string(),
                expected: "a number above 0".into(),
            }),
            _ => Ok(own),
        }
    }
}

impl Checkpoint for LtxCheckpoint {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn schedule(&self) -> &ScheduleSpec {
        &self.schedule
    }

    fn text_identity(&self) -> Result<Option<String>> {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?}", self.rule, self.parts.text));
        match &self.parts.tokenizer {
            Some(place) => hash.update(place.identity()?),
            None => {
                ModelSource::embedded_below("tokenizer/").iter().for_each(|(_, bytes)| hash.update(bytes))
            }
        }
        hash.update(self.parts.text_part.text()?.identity());
        Ok(Some(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn conditioning(&self) -> Conditioning {
        self.conditioning
    }

    fn text_encoder(&self, place: &Placement) -> Result<Box<dyn TextEncoder>> {
        let tokenizer = match &self.parts.tokenizer {
            Some(place) => place.open()?,
            None => Tokenizer::from_files(
                &self.source.path("tokenizer"),
                &ModelSource::embedded_below("tokenizer/"),
            )?,
        };
        let weights = self.parts.text_part.text()?.loader(place);
        let padding = match self.rule {
            PositionRule::LtxPipeline => Padding::Read,
            PositionRule::LtxConditionPipeline => Padding::Hidden,
        };
        let encoder = T5Text::new(tokenizer, &self.parts.text, padding, &weights)?;
        weights.finish(&t5::IGNORED)?;
        Ok(Box::new(encoder))
    }

    fn denoiser(&self, place: &Placement) -> Result<Box<dyn Denoiser>> {
        let weights = self.parts.transformer_weights(&self.source)?.loader(place);
        let transformer = LtxTransformer::new(&self.parts.transformer, &weights)?;
        weights.finish(&[])?;
        Ok(Box::new(LtxDenoiser::new(transformer, self.info.geometry, self.rule)))
    }

    fn video_decoder(&self, place: &Placement) -> Result<Box<dyn VideoDecoder>> {
        let weights = self.parts.vae_part.vae()?.loader(place);
        Ok(Box::new(LtxVideoDecoder::new(&self.parts.vae, &weights)?))
    }

    fn video_encoder(&self, place: &Placement) -> Result<Box<dyn VideoEncoder>> {
        let weights = self.parts.vae_part.vae()?.loader(place);
        Ok(Box::new(LtxVideoEncoder::new(&self.parts.vae, &weights)?))
    }

    fn latent_statistics(&self) -> Result<LatentStatistics> {
        let place = Placement { device: Device::Cpu, dtype: DType::F32 };
        let weights = self.parts.vae_part.vae()?.loader(&place);
        let read = |key: &str| weights.get_f32(&[self.parts.vae.latent_channels], key);
        let factor = self.parts.vae.scaling_factor;
        Ok(LatentStatistics { mean: read("latents_mean")?, std: read("latents_std")?, factor })
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
        let at_once = tiling.denoise.map_or(grid, |tile| tile.grid(grid, &self.info.geometry));
        let tokens = at_once.frames * at_once.height * at_once.width / (patch * patch * patch_t);
        Activations {
            text: self.parts.text.activation_bytes(self.info.defaults.max_sequence_length),
            denoise: LtxTransformer::activation_bytes(&self.parts.transformer, tokens, place.dtype),
            decode: decode_bytes(&self.parts.vae, grid, place, tiling),
            encode: encode_bytes(&self.parts.vae, grid, place, tiling),
        }
    }

    fn resident(&self, place: &Placement) -> WeightBytes {
        let Resident { text, denoiser, decoder } = &self.resident;
        let mut bytes = WeightBytes {
            text: text.bytes(place),
            denoiser: denoiser.bytes(place),
            video: decoder.bytes(place),
        };
        if *self.source.base() == ModelSource::Embedded {
            // What was read of the program itself stays in memory.
            let WeightBytes { text, denoiser, video } = self.info.weight_bytes;
            bytes.text += text;
            bytes.denoiser += text + denoiser;
            bytes.video += text + denoiser + video;
        }
        bytes
    }

    fn work(&self, spec: &VideoSpec, text_tokens: usize, tiling: &Tiling) -> Work {
        let grid = self.info.geometry.grid(spec);
        let Geometry { patch, patch_t, .. } = self.info.geometry;
        let velocity = |grid: LatentGrid| {
            let tokens = grid.frames * grid.height * grid.width / (patch * patch * patch_t);
            work::velocity(&self.parts.transformer, tokens, text_tokens)
        };
        Work {
            text: work::text(&self.parts.text, text_tokens),
            denoise: match tiling.denoise {
                None => velocity(grid),
                Some(tile) => {
                    let (rows, columns) = tile.starts(grid, &self.info.geometry);
                    (rows.len() * columns.len()) as f64 * velocity(tile.grid(grid, &self.info.geometry))
                }
            },
            decode: work::decode(&self.parts.vae, grid, tiling),
        }
    }
}
