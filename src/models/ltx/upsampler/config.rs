//! The configuration of a latent upsampler: `latent_upsampler/config.json`, or the metadata of a single file.

use std::path::Path;

use crate::error::{Error, Result};

/// Groups of the norms.
pub(super) const GROUPS: usize = 32;

/// What is absent has the published class's default.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct UpsamplerConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels in between.
    pub mid_channels: usize,
    /// Resnets on either side of the upsampling.
    pub num_blocks_per_stage: usize,
    /// Axes of the convolutions: 3, or 2 for a network that sees one frame at a time.
    pub dims: usize,
    /// Whether rows and columns double.
    pub spatial_upsample: bool,
    /// Whether frames double.
    pub temporal_upsample: bool,
}

impl Default for UpsamplerConfig {
    fn default() -> Self {
        Self {
            in_channels: 128,
            mid_channels: 512,
            num_blocks_per_stage: 4,
            dims: 3,
            spatial_upsample: true,
            temporal_upsample: false,
        }
    }
}

impl UpsamplerConfig {
    /// Reads a configuration; `path` is for error messages.
    pub fn parse(json: &str, path: &Path) -> Result<Self> {
        let config: Self = serde_json::from_str(json).map_err(|e| Error::damaged(path, e.to_string()))?;
        config.check(path)?;
        Ok(config)
    }

    /// Factors by which rows and columns, and frames, grow.
    #[must_use]
    pub fn factors(&self) -> (usize, usize) {
        (1 + usize::from(self.spatial_upsample), 1 + usize::from(self.temporal_upsample))
    }

    fn check(&self, path: &Path) -> Result<()> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(Error::Config { path: path.into(), key: key.into(), found, expected: expected.into() })
        };
        if !matches!(self.dims, 2 | 3) {
            return refuse("dims", self.dims.to_string(), "2 or 3");
        }
        if !(self.spatial_upsample || self.temporal_upsample) {
            return refuse("spatial_upsample", "false".into(), "true, or true for `temporal_upsample`");
        }
        if self.dims == 2 && self.temporal_upsample {
            return refuse("dims", "2".into(), "3, with `temporal_upsample`");
        }
        if self.in_channels == 0 || self.in_channels > 1 << 16 {
            return refuse("in_channels", self.in_channels.to_string(), "a sensible number of channels");
        }
        let mid = self.mid_channels;
        if mid == 0 || !mid.is_multiple_of(GROUPS) || mid > 1 << 16 {
            return refuse("mid_channels", mid.to_string(), "a multiple of 32");
        }
        if self.num_blocks_per_stage > 1024 {
            return refuse("num_blocks_per_stage", self.num_blocks_per_stage.to_string(), "a few");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_make_no_network_are_refused() {
        let parse = |text: &str| UpsamplerConfig::parse(text, Path::new("config.json"));
        assert_eq!(
            parse(r#"{"_class_name": "LTXLatentUpsamplerModel"}"#).unwrap(),
            UpsamplerConfig::default()
        );
        assert_eq!(parse(r#"{"temporal_upsample": true}"#).unwrap().factors(), (2, 2));
        for (text, words) in [
            (r#"{"dims": 4}"#, "`dims` is 4 (expected 2 or 3)"),
            (r#"{"dims": 2, "temporal_upsample": true}"#, "`dims` is 2 (expected 3"),
            (r#"{"spatial_upsample": false}"#, "`spatial_upsample` is false"),
            (r#"{"mid_channels": 100}"#, "`mid_channels` is 100 (expected a multiple of 32)"),
            (r#"{"in_channels": 0}"#, "`in_channels` is 0"),
            ("[", "damaged"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
