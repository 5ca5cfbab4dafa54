//! The configuration of an autoencoder whose file has none in this form: from its tensors' shapes.

use std::path::Path;

use super::config::{BLOCK_095, Config, PLAIN_BLOCK, UP_CELLS};
use crate::{
    error::{Error, Result},
    weights::Weights,
};

/// What the original's own configuration says that no shape does.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Original {
    causal_decoder: bool,
    scaling_factor: Option<f64>,
    /// From the pictures to the latents.
    decoder_blocks: Vec<(String, serde_json::Value)>,
}

impl Config {
    /// Finds out what an autoencoder with these tensors is. `original` is the configuration in the original's form, if
    /// its file has one; `path` is for error messages.
    pub fn infer(weights: &Weights, original: Option<&serde_json::Value>, path: &Path) -> Result<Self> {
        let original: Original = original
            .map(|json| serde_json::from_value(json.clone()))
            .transpose()
            .map_err(|e| Error::damaged(path, format!("its configuration of the video autoencoder: {e}")))?
            .unwrap_or_default();
        let rows = |key: &str| weights.shape(key).and_then(|shape| shape.first()).copied();
        let needed = |key: &str| {
            let missing = || Error::MissingTensor { file: path.into(), key: key.into(), expected: vec![] };
            weights.shape(key).filter(|shape| shape.len() == 5).ok_or_else(missing)
        };
        let patches = needed("decoder.conv_out.conv.weight")?[0];
        let mut config = Self {
            latent_channels: needed("decoder.conv_in.conv.weight")?[1],
            patch_size: (patches / 3).isqrt(),
            timestep_conditioning: weights
                .contains("decoder.time_embedder.timestep_embedder.linear_1.weight"),
            decoder_causal: original.causal_decoder,
            scaling_factor: original.scaling_factor.unwrap_or(1.0),
            path: path.into(),
            ..Self::default()
        };
        config.infer_decoder(weights, &original, &rows);
        config.infer_encoder(weights, &rows);
        let ups = config.decoder_spatio_temporal_scaling.iter().filter(|scales| **scales).count().min(16);
        config.spatial_compression_ratio = Some(config.patch_size.saturating_mul(1 << ups));
        config.temporal_compression_ratio = Some(1 << ups);
        config.check()?;
        Ok(config)
    }

    fn infer_decoder(
        &mut self,
        weights: &Weights,
        original: &Original,
        rows: &dyn Fn(&str) -> Option<usize>,
    ) {
        let (mut channels, mut layers, mut noise) = (Vec::new(), Vec::new(), Vec::new());
        let (mut scaling, mut residual, mut factors) = (Vec::new(), Vec::new(), Vec::new());
        let injects =
            |block: &str| weights.contains(&format!("decoder.{block}.resnets.0.per_channel_scale1"));
        layers.push(resnets(weights, "decoder.mid_block"));
        noise.push(injects("mid_block"));
        // In the order of the blocks here, which is from the latents to the pictures.
        let mut said = original.decoder_blocks.iter().rev().filter(|(kind, _)| kind.starts_with("compress"));
        for i in 0.. {
            let block = format!("up_blocks.{i}");
            let Some(width) = rows(&format!("decoder.{block}.resnets.0.conv1.conv.weight")) else { break };
            let up = weights.shape(&format!("decoder.{block}.upsamplers.0.conv.conv.weight"));
            let factor = match up {
                Some([made, read, ..]) => (read * UP_CELLS / made.max(&1)).max(1),
                _ => 1,
            };
            let named =
                up.and_then(|_| said.next()).and_then(|(_, options)| options.get("residual")?.as_bool());
            channels.push(width.saturating_mul(factor));
            layers.push(resnets(weights, &format!("decoder.{block}")));
            noise.push(injects(&block));
            scaling.push(up.is_some());
            residual.push(up.is_some() && named.unwrap_or(factor > 1));
            factors.push(factor);
        }
        [&mut layers, &mut channels, &mut factors].into_iter().for_each(|list| list.reverse());
        [&mut noise, &mut scaling, &mut residual].into_iter().for_each(|list| list.reverse());
        self.decoder_block_out_channels = channels;
        self.decoder_layers_per_block = layers;
        self.decoder_inject_noise = noise;
        self.decoder_spatio_temporal_scaling = scaling;
        self.upsample_residual = residual;
        self.upsample_factor = factors;
    }

    /// A file without an encoder leaves the defaults, of which nothing reads more than the generation: decoders that know
    /// a timestep and add no noise came with it.
    fn infer_encoder(&mut self, weights: &Weights, rows: &dyn Fn(&str) -> Option<usize>) {
        let width = |block: &str| rows(&format!("encoder.{block}.resnets.0.conv1.conv.weight"));
        let Some(last) = width("mid_block") else {
            if self.timestep_conditioning && !self.decoder_inject_noise.contains(&true) {
                self.down_block_types.fill(BLOCK_095.to_owned());
                self.block_out_channels.push(512);
                self.downsample_type.fill("conv".to_owned());
                self.block_out_channels.fill(512);
            }
            return;
        };
        let (mut channels, mut layers, mut types) = (Vec::new(), Vec::new(), Vec::new());
        let (mut scaling, mut down) = (Vec::new(), Vec::new());
        for i in 0.. {
            let block = format!("down_blocks.{i}");
            let Some(here) = width(&block) else { break };
            let next = width(&format!("down_blocks.{}", i + 1)).unwrap_or(last);
            let below = format!("encoder.{block}.downsamplers.0");
            let unshuffled = rows(&format!("{below}.conv.conv.weight"));
            let conv = rows(&format!("{below}.conv.weight"));
            channels.push(here);
            layers.push(resnets(weights, &format!("encoder.{block}")));
            scaling.push(unshuffled.or(conv).is_some());
            down.push(match unshuffled.map(|made| next / made.max(1)) {
                Some(2) => "temporal",
                Some(4) => "spatial",
                Some(_) => "spatiotemporal",
                None => "conv",
            });
        }
        let since_095 = down.iter().any(|kind| *kind != "conv");
        types.resize(channels.len(), if since_095 { BLOCK_095 } else { PLAIN_BLOCK }.to_owned());
        if since_095 {
            channels.push(last);
        }
        layers.push(resnets(weights, "encoder.mid_block"));
        self.block_out_channels = channels;
        self.layers_per_block = layers;
        self.down_block_types = types;
        self.spatio_temporal_scaling = scaling;
        self.downsample_type = down.into_iter().map(str::to_owned).collect();
    }
}

/// Resnets of a block.
fn resnets(weights: &Weights, block: &str) -> usize {
    (0..).take_while(|i| weights.contains(&format!("{block}.resnets.{i}.conv1.conv.weight"))).count()
}
