//! Flags for parts of a model that lie elsewhere.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use sora::{
    Error,
    models::source::{LoraFile, ModelSource, Parts},
};

/// Parts of a model that lie elsewhere, and what changes it.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct PartArgs {
    /// Text encoder (T5): a folder, or a safetensors or GGUF file [default: the model's own]
    #[arg(long, value_name = "PATH", help_heading = "Models", hide_short_help = true)]
    text_encoder: Option<PathBuf>,

    /// Video autoencoder: a folder or a safetensors file [default: the model's own]
    #[arg(long, value_name = "PATH", help_heading = "Models", hide_short_help = true)]
    vae: Option<PathBuf>,

    /// Tokenizer: a folder, a spiece.model or a tokenizer.json [default: the text encoder's own]
    #[arg(long, value_name = "PATH", help_heading = "Models", hide_short_help = true)]
    tokenizer: Option<PathBuf>,

    /// LoRA, and how strongly it acts; may be given several times
    #[arg(long, value_name = "FILE[:SCALE]", help_heading = "Models", hide_short_help = true)]
    lora: Vec<Lora>,
}

#[derive(Debug, Clone, PartialEq)]
struct Lora(LoraFile);

impl FromStr for Lora {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let scaled = text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse::<f64>().ok()?)));
        let (path, scale) = scaled.unwrap_or((text, 1.0));
        if !scale.is_finite() {
            return Err(Error::invalid(format!("scale {scale} of a LoRA"), "expected a finite number"));
        }
        Ok(Self(LoraFile { path: path.into(), scale }))
    }
}

impl PartArgs {
    /// Whether any of the flags was given.
    pub fn is_empty(&self) -> bool {
        self.text_encoder.is_none() && self.vae.is_none() && self.tokenizer.is_none() && self.lora.is_empty()
    }

    /// These parts.
    pub fn lower(self) -> Parts {
        Parts {
            text_encoder: self.text_encoder,
            vae: self.vae,
            tokenizer: self.tokenizer,
            loras: self.lora.into_iter().map(|lora| lora.0).collect(),
        }
    }

    /// The model with these parts.
    pub fn onto(self, model: ModelSource) -> ModelSource {
        model.with(self.lower())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_a_colon() {
        for (text, path, scale) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.5", "a.safetensors", 0.5),
            ("a:b.safetensors", "a:b.safetensors", 1.0),
            ("a:b.safetensors:-1", "a:b.safetensors", -1.0),
        ] {
            assert_eq!(text.parse::<Lora>().unwrap().0, LoraFile { path: path.into(), scale });
        }
        assert!("a:inf".parse::<Lora>().is_err());
    }
}
