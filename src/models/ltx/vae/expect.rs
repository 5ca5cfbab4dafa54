//! The tensors of an autoencoder, from its configuration.

use super::config::{Config, Down, UP_CELLS};
use crate::{error::Result, weights::Audit};

/// Inputs of a block's vector for a timestep.
const SINUSOIDS: usize = 256;

/// What a resnet has beside its convolutions.
#[derive(Clone, Copy)]
struct Has {
    noise: bool,
    timestep: bool,
}

impl Config {
    /// Expects all tensors of the decoder, and the latents' statistics.
    pub fn expect_decoder(&self, audit: &mut Audit<'_>) -> Result<()> {
        for key in ["latents_mean", "latents_std"] {
            audit.expect(key.into(), &[self.latent_channels])?;
        }
        let timestep = self.timestep_conditioning;
        let first = self.decoder_block_out_channels.last().copied().unwrap_or_default();
        conv(audit, "decoder.conv_in", first, self.latent_channels, 3)?;
        let has = Has { noise: self.injects_noise(0)?, timestep };
        embedder(audit, "decoder.mid_block", 4 * first, timestep)?;
        resnets(audit, "decoder.mid_block", first, self.decoder_layers(0)?, has)?;
        let mut last = first;
        for (i, block) in self.up_blocks()?.iter().enumerate() {
            let name = format!("decoder.up_blocks.{i}");
            let has = Has { noise: block.inject_noise, timestep };
            if block.narrow {
                resnet(audit, &format!("{name}.conv_in"), block.c_in, block.c_out, has)?;
            }
            embedder(audit, &name, 4 * block.c_in, timestep)?;
            if let Some(up) = block.up {
                let below = format!("{name}.upsamplers.0.conv");
                conv(audit, &below, block.c_out * UP_CELLS, block.c_out * up.factor, 3)?;
            }
            resnets(audit, &name, block.c_out, block.layers, has)?;
            last = block.c_out;
        }
        conv(audit, "decoder.conv_out", self.out_channels * self.patch_size * self.patch_size, last, 3)?;
        if timestep {
            audit.expect("decoder.timestep_scale_multiplier".into(), &[])?;
            audit.expect("decoder.scale_shift_table".into(), &[2, last])?;
            embedder(audit, "decoder", 2 * last, timestep)?;
        }
        Ok(())
    }

    /// Expects all tensors of the encoder.
    pub fn expect_encoder(&self, audit: &mut Audit<'_>) -> Result<()> {
        let plain = Has { noise: false, timestep: false };
        let mut last = self.block_out_channels.first().copied().unwrap_or_default();
        conv(audit, "encoder.conv_in", last, self.in_channels * self.patch_size * self.patch_size, 3)?;
        for (i, block) in self.down_blocks()?.iter().enumerate() {
            let name = format!("encoder.down_blocks.{i}");
            resnets(audit, &name, block.c_in, block.layers, plain)?;
            let below = format!("{name}.downsamplers.0");
            match block.down {
                None => {}
                Some(Down::Conv) => {
                    audit.expect(format!("{below}.conv.weight"), &[block.c_in, block.c_in, 3, 3, 3])?;
                    audit.expect(format!("{below}.conv.bias"), &[block.c_in])?;
                }
                Some(Down::Unshuffle { stride_t, stride }) => {
                    let made = block.c_out / (stride_t * stride * stride);
                    conv(audit, &format!("{below}.conv"), made, block.c_in, 3)?;
                }
            }
            if block.widen {
                resnet(audit, &format!("{name}.conv_out"), block.c_in, block.c_out, plain)?;
            }
            last = block.c_out;
        }
        let layers = self.layers_per_block.last().copied().unwrap_or_default();
        resnets(audit, "encoder.mid_block", last, layers, plain)?;
        conv(audit, "encoder.conv_out", self.latent_channels + 1, last, 3)
    }
}

fn conv(audit: &mut Audit<'_>, name: &str, c_out: usize, c_in: usize, kernel: usize) -> Result<()> {
    audit.expect(format!("{name}.conv.weight"), &[c_out, c_in, kernel, kernel, kernel])?;
    audit.expect(format!("{name}.conv.bias"), &[c_out])
}

fn resnets(audit: &mut Audit<'_>, name: &str, channels: usize, count: usize, has: Has) -> Result<()> {
    (0..count).try_for_each(|i| resnet(audit, &format!("{name}.resnets.{i}"), channels, channels, has))
}

fn resnet(audit: &mut Audit<'_>, name: &str, c_in: usize, c_out: usize, has: Has) -> Result<()> {
    conv(audit, &format!("{name}.conv1"), c_out, c_in, 3)?;
    conv(audit, &format!("{name}.conv2"), c_out, c_out, 3)?;
    if c_in != c_out {
        audit.expect(format!("{name}.norm3.weight"), &[c_in])?;
        audit.expect(format!("{name}.norm3.bias"), &[c_in])?;
        conv(audit, &format!("{name}.conv_shortcut"), c_out, c_in, 1)?;
    }
    if has.noise {
        audit.expect(format!("{name}.per_channel_scale1"), &[c_in, 1, 1])?;
        audit.expect(format!("{name}.per_channel_scale2"), &[c_in, 1, 1])?;
    }
    if has.timestep {
        audit.expect(format!("{name}.scale_shift_table"), &[4, c_in])?;
    }
    Ok(())
}

fn embedder(audit: &mut Audit<'_>, name: &str, dim: usize, timestep: bool) -> Result<()> {
    if !timestep {
        return Ok(());
    }
    let name = format!("{name}.time_embedder.timestep_embedder");
    audit.expect(format!("{name}.linear_1.weight"), &[dim, SINUSOIDS])?;
    audit.expect(format!("{name}.linear_1.bias"), &[dim])?;
    audit.expect(format!("{name}.linear_2.weight"), &[dim, dim])?;
    audit.expect(format!("{name}.linear_2.bias"), &[dim])
}
