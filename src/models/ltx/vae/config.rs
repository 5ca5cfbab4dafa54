//! `vae/config.json`, and the blocks that it describes.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The video autoencoder's `config.json`; what is absent there has the published class's default.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct Config {
    /// Channels of a picture that is encoded.
    pub in_channels: usize,
    /// Channels of a picture that was decoded.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of the encoder's levels.
    pub block_out_channels: Vec<usize>,
    /// Classes of the encoder's blocks.
    pub down_block_types: Vec<String>,
    /// Channels of the decoder's levels, the pictures' end first.
    pub decoder_block_out_channels: Vec<usize>,
    /// Resnets in each of the encoder's blocks, the middle block last.
    pub layers_per_block: Vec<usize>,
    /// Resnets in each of the decoder's blocks, the middle block last.
    pub decoder_layers_per_block: Vec<usize>,
    /// Which of the encoder's blocks make the clip smaller.
    pub spatio_temporal_scaling: Vec<bool>,
    /// Which of the decoder's blocks make the clip larger.
    pub decoder_spatio_temporal_scaling: Vec<bool>,
    /// Which of the decoder's blocks add noise, the middle block last.
    pub decoder_inject_noise: Vec<bool>,
    /// How the encoder's blocks of 0.9.5 make the clip smaller.
    pub downsample_type: Vec<String>,
    /// Which of the decoder's upsamplers have a skip connection.
    pub upsample_residual: Vec<bool>,
    /// By how much the decoder's upsamplers divide the channels.
    pub upsample_factor: Vec<usize>,
    /// Whether the decoder knows a timestep.
    pub timestep_conditioning: bool,
    /// Side of the squares of pixels that become channels.
    pub patch_size: usize,
    /// Frames that become channels.
    pub patch_size_t: usize,
    /// Epsilon of the layer norms on skip connections.
    pub resnet_norm_eps: f64,
    /// Factor between latents and what the denoiser sees, beside the channels' own statistics.
    pub scaling_factor: f64,
    /// Whether the encoder never looks ahead.
    pub encoder_causal: bool,
    /// Whether the decoder never looks ahead.
    pub decoder_causal: bool,
    /// Pixels per latent cell along a side; see [`Config::spatial`].
    pub spatial_compression_ratio: Option<usize>,
    /// Frames per latent frame; see [`Config::temporal`].
    pub temporal_compression_ratio: Option<usize>,
    /// Where this was read, for error messages.
    #[serde(skip)]
    pub path: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 128,
            block_out_channels: vec![128, 256, 512, 512],
            down_block_types: vec![PLAIN_BLOCK.into(); 4],
            decoder_block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: vec![4, 3, 3, 3, 4],
            decoder_layers_per_block: vec![4, 3, 3, 3, 4],
            spatio_temporal_scaling: vec![true, true, true, false],
            decoder_spatio_temporal_scaling: vec![true, true, true, false],
            decoder_inject_noise: vec![false; 5],
            downsample_type: vec!["conv".into(); 4],
            upsample_residual: vec![false; 4],
            upsample_factor: vec![1; 4],
            timestep_conditioning: false,
            patch_size: 4,
            patch_size_t: 1,
            resnet_norm_eps: 1e-6,
            scaling_factor: 1.0,
            encoder_causal: true,
            decoder_causal: false,
            spatial_compression_ratio: None,
            temporal_compression_ratio: None,
            path: PathBuf::new(),
        }
    }
}

pub(super) const PLAIN_BLOCK: &str = "LTXVideoDownBlock3D";
pub(super) const BLOCK_095: &str = "LTXVideo095DownBlock3D";

/// Levels that a clip could be halved at.
const MAX_BLOCKS: usize = 16;
/// Far above what was ever published.
const MAX_CHANNELS: usize = 1 << 16;

/// One of the encoder's blocks: resnets, then a downsampler, then a change of channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownSpec {
    /// Channels of the resnets.
    pub c_in: usize,
    /// Channels of the result.
    pub c_out: usize,
    /// Resnets.
    pub layers: usize,
    /// How the clip is made smaller, if it is.
    pub down: Option<Down>,
    /// Whether a last resnet changes the channels.
    pub widen: bool,
}

/// How a block makes its clip smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// A convolution with step two.
    Conv,
    /// Cells become channels: steps over frames and over rows and columns.
    Unshuffle {
        /// Step over frames.
        stride_t: usize,
        /// Step over rows and columns.
        stride: usize,
    },
}

/// One of the decoder's blocks: a change of channels, then an upsampler, then resnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpSpec {
    /// Channels of what comes in.
    pub c_in: usize,
    /// Channels of the resnets and of the result.
    pub c_out: usize,
    /// Resnets.
    pub layers: usize,
    /// How the clip is made larger, if it is.
    pub up: Option<Up>,
    /// Whether a first resnet changes the channels.
    pub narrow: bool,
    /// Whether resnets add noise.
    pub inject_noise: bool,
}

/// How a block makes its clip larger: twice the frames, rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Up {
    /// What the channels are divided by.
    pub factor: usize,
    /// Whether there is a skip connection.
    pub residual: bool,
}

/// Cells that an upsampler makes of one.
pub(in crate::models::ltx) const UP_CELLS: usize = 8;

impl Config {
    /// Reads and checks the text of a `config.json`, which lies at `path`.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let mut config: Self = serde_json::from_str(text).map_err(|e| Error::damaged(path, e.to_string()))?;
        path.clone_into(&mut config.path);
        config.check()?;
        Ok(config)
    }

    /// Refuses what no code here could compute with, and sizes that no memory could hold.
    pub(super) fn check(&self) -> Result<()> {
        for (key, list) in [
            ("block_out_channels", &self.block_out_channels),
            ("decoder_block_out_channels", &self.decoder_block_out_channels),
            ("layers_per_block", &self.layers_per_block),
            ("decoder_layers_per_block", &self.decoder_layers_per_block),
        ] {
            let widest = list.iter().max().copied().unwrap_or(0);
            if list.len() > MAX_BLOCKS || widest > MAX_CHANNELS {
                let expected = format!("up to {MAX_BLOCKS} numbers up to {MAX_CHANNELS}");
                return Err(self.refuse(key, format!("{} numbers up to {widest}", list.len()), expected));
            }
        }
        for (key, found) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if found != 3 {
                return Err(self.refuse(key, found, "3, for red, green and blue"));
            }
        }
        if self.patch_size_t != 1 {
            return Err(self.refuse("patch_size_t", self.patch_size_t, "1"));
        }
        if self.halvings() > MAX_BLOCKS {
            let found = format!("{} times true", self.halvings());
            return Err(self.refuse("spatio_temporal_scaling", found, format!("up to {MAX_BLOCKS}")));
        }
        for (key, found, most) in
            [("patch_size", self.patch_size, 64), ("latent_channels", self.latent_channels, MAX_CHANNELS)]
        {
            if !(1..=most).contains(&found) {
                return Err(self.refuse(key, found, format!("1 to {most}")));
            }
        }
        for (key, found) in
            [("spatial_compression_ratio", self.spatial()), ("temporal_compression_ratio", self.temporal())]
        {
            if !(1..=MAX_CHANNELS).contains(&found) {
                return Err(self.refuse(key, found, format!("1 to {MAX_CHANNELS}")));
            }
        }
        self.down_blocks()?;
        self.up_blocks()?;
        if !(self.scaling_factor.is_finite() && self.scaling_factor != 0.0) {
            return Err(self.refuse("scaling_factor", self.scaling_factor, "a number other than 0"));
        }
        Ok(())
    }

    /// Whether it is of the generation of 0.9.5 and later.
    #[must_use]
    pub fn is_095(&self) -> bool {
        self.down_block_types.last().is_some_and(|class| class == BLOCK_095)
    }

    /// Pixels per latent cell along a side: what the file says, or else what the class makes of the scalings.
    #[must_use]
    pub fn spatial(&self) -> usize {
        self.spatial_compression_ratio.unwrap_or_else(|| self.patch_size << self.halvings())
    }

    /// Frames per latent frame: what the file says, or else what the class makes of the scalings.
    #[must_use]
    pub fn temporal(&self) -> usize {
        self.temporal_compression_ratio.unwrap_or_else(|| self.patch_size_t << self.halvings())
    }

    /// The release that first had this kind of autoencoder.
    #[must_use]
    pub fn generation(&self) -> &'static str {
        if self.is_095() {
            "0.9.5"
        } else if self.timestep_conditioning {
            "0.9.1"
        } else {
            "0.9.0"
        }
    }

    fn halvings(&self) -> usize {
        self.spatio_temporal_scaling.iter().filter(|halves| **halves).count()
    }

    /// The encoder's blocks in order, the middle block not among them.
    pub fn down_blocks(&self) -> Result<Vec<DownSpec>> {
        let key = "block_out_channels";
        let channels = &self.block_out_channels;
        let since_095 = self.is_095();
        let count = channels.len().saturating_sub(usize::from(since_095));
        if count == 0 || channels.contains(&0) {
            return Err(self.refuse(key, format!("{channels:?}"), "channels of each level"));
        }
        let mut blocks = Vec::with_capacity(count);
        let mut c_in = channels[0];
        for i in 0..count {
            let c_out = match since_095 {
                true => channels[i + 1],
                false => channels[(i + 1).min(count - 1)],
            };
            let layers = *self.at("layers_per_block", &self.layers_per_block, i)?;
            let scales = *self.at("spatio_temporal_scaling", &self.spatio_temporal_scaling, i)?;
            let block = match self.at("down_block_types", &self.down_block_types, i)?.as_str() {
                PLAIN_BLOCK => {
                    DownSpec { c_in, c_out, layers, down: scales.then_some(Down::Conv), widen: c_in != c_out }
                }
                BLOCK_095 => {
                    let down = if scales { Some(self.down_095(i, c_in, c_out)?) } else { None };
                    if c_in != c_out && !matches!(down, Some(Down::Unshuffle { .. })) {
                        let found = format!("{c_in} → {c_out} in block {i}, which keeps its channels");
                        return Err(self.refuse(key, found, "the same channels on both sides"));
                    }
                    DownSpec { c_in, c_out, layers, down, widen: false }
                }
                other => {
                    let expected = format!("{PLAIN_BLOCK} or {BLOCK_095}");
                    return Err(self.refuse("down_block_types", other, expected));
                }
            };
            c_in = block.c_out;
            blocks.push(block);
        }
        Ok(blocks)
    }

    fn down_095(&self, i: usize, c_in: usize, c_out: usize) -> Result<Down> {
        let (stride_t, stride) = match self.at("downsample_type", &self.downsample_type, i)?.as_str() {
            "conv" => return Ok(Down::Conv),
            "spatial" => (1, 2),
            "temporal" => (2, 1),
            "spatiotemporal" => (2, 2),
            other => {
                let expected = "conv, spatial, temporal or spatiotemporal";
                return Err(self.refuse("downsample_type", other, expected));
            }
        };
        let cells = stride_t * stride * stride;
        if !c_out.is_multiple_of(cells) || !(c_in * cells).is_multiple_of(c_out) {
            let found = format!("{c_in} → {c_out} in block {i}");
            let expected = format!("a multiple of {cells} that divides {}", c_in * cells);
            return Err(self.refuse("block_out_channels", found, expected));
        }
        Ok(Down::Unshuffle { stride_t, stride })
    }

    /// The decoder's blocks in order, the middle block not among them.
    pub fn up_blocks(&self) -> Result<Vec<UpSpec>> {
        let key = "decoder_block_out_channels";
        let channels = &self.decoder_block_out_channels;
        if channels.is_empty() || channels.contains(&0) {
            return Err(self.refuse(key, format!("{channels:?}"), "channels of each level"));
        }
        let mut blocks = Vec::with_capacity(channels.len());
        let mut there = channels[channels.len() - 1];
        for i in 0..channels.len() {
            let factor = *self.nth_back("upsample_factor", &self.upsample_factor, i)?;
            let residual = *self.nth_back("upsample_residual", &self.upsample_residual, i)?;
            let scaling = &self.decoder_spatio_temporal_scaling;
            let scales = *self.nth_back("decoder_spatio_temporal_scaling", scaling, i)?;
            if ![1, 2, 4, 8].contains(&factor) {
                return Err(self.refuse("upsample_factor", factor, "1, 2, 4 or 8"));
            }
            let (c_in, c_out) = (there / factor, channels[channels.len() - 1 - i] / factor);
            let block = UpSpec {
                c_in,
                c_out,
                layers: self.decoder_layers(i + 1)?,
                up: scales.then_some(Up { factor, residual }),
                narrow: c_in != c_out,
                inject_noise: self.injects_noise(i + 1)?,
            };
            self.check_up(&block, i, there, factor)?;
            there = c_out;
            blocks.push(block);
        }
        Ok(blocks)
    }

    /// Refuses what the published class accepts at first and can't compute with.
    fn check_up(&self, block: &UpSpec, i: usize, there: usize, factor: usize) -> Result<()> {
        let key = "decoder_block_out_channels";
        let UpSpec { c_in, c_out, .. } = *block;
        if block.narrow && (self.timestep_conditioning || block.inject_noise) {
            let found = format!("{c_in} → {c_out} in block {i}, which knows a timestep or adds noise");
            return Err(self.refuse(key, found, "the same channels on both sides"));
        }
        let fits = if block.narrow || block.up.is_none() { factor == 1 } else { there == c_out * factor };
        if c_out == 0 || !fits {
            let found = format!("{there} → {c_out} in block {i}, with upsample_factor {factor}");
            return Err(self.refuse(key, found, "channels that the factor leads to"));
        }
        let upsampled = c_out * factor;
        if block.up.is_some_and(|up| up.residual) && !upsampled.is_multiple_of(UP_CELLS) {
            return Err(self.refuse(key, upsampled, "a multiple of 8, for a skip connection"));
        }
        Ok(())
    }

    /// Resnets of the decoder's block number `i`, of which number 0 is the middle block.
    pub fn decoder_layers(&self, i: usize) -> Result<usize> {
        self.nth_back("decoder_layers_per_block", &self.decoder_layers_per_block, i).copied()
    }

    /// Whether the decoder's block number `i` adds noise; number 0 is the middle block.
    pub fn injects_noise(&self, i: usize) -> Result<bool> {
        self.nth_back("decoder_inject_noise", &self.decoder_inject_noise, i).copied()
    }

    fn at<'a, T: std::fmt::Debug>(&self, key: &str, list: &'a [T], i: usize) -> Result<&'a T> {
        list.get(i)
            .ok_or_else(|| self.refuse(key, format!("{list:?}"), format!("at least {} entries", i + 1)))
    }

    fn nth_back<'a, T: std::fmt::Debug>(&self, key: &str, list: &'a [T], i: usize) -> Result<&'a T> {
        list.iter()
            .nth_back(i)
            .ok_or_else(|| self.refuse(key, format!("{list:?}"), format!("at least {} entries", i + 1)))
    }

    fn refuse(&self, key: &str, found: impl ToString, expected: impl Into<String>) -> Error {
        Error::Config {
            path: self.path.clone(),
            key: key.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
