//! T5 v1.1: the tokenizer and the encoder that read a prompt.

mod added;
mod config;
mod encoder;
mod keys;
mod place;
mod portable;
mod spiece;
mod tokenizer;

use candle_core::{Device, Tensor};

pub use self::{
    config::Config,
    encoder::{Encoder, IGNORED},
    keys::{encoder_weights, has_encoder, to_gguf as gguf_name},
    place::TokenizerPlace,
    portable::portable,
    tokenizer::{Ids, Tokenizer},
};
use super::api::{TextEncoder, TextStates};
use crate::{error::Result, weights::Loader};

/// A T5 as a text encoder.
pub struct T5Text {
    tokenizer: Tokenizer,
    encoder: Encoder,
    device: Device,
    padding: Padding,
}

/// What the encoder makes of the padding behind a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// The encoder reads it like any token, as `LTXPipeline` has it.
    Read,
    /// The encoder doesn't see it, and its states are zero, as good as the reference's masked ones, which no
    /// attention looks at.
    Hidden,
}

impl T5Text {
    /// Loads the encoder's weights.
    pub fn new(tokenizer: Tokenizer, cfg: &Config, padding: Padding, w: &Loader) -> Result<Self> {
        Ok(Self { tokenizer, encoder: Encoder::new(cfg, w)?, device: w.device().clone(), padding })
    }
}

impl TextEncoder for T5Text {
    fn encode(&mut self, prompt: &str, max_length: usize) -> Result<TextStates> {
        let Ids { ids, mask, cut } = self.tokenizer.encode(prompt, max_length)?;
        self.tokenizer.check_bound(&ids, self.encoder.vocab_size())?;
        let read = match self.padding {
            Padding::Read => max_length,
            Padding::Hidden => {
                mask.iter().rposition(|token| *token != 0.0).map_or(max_length, |last| last + 1)
            }
        };
        let ids = Tensor::from_vec(ids, (1, max_length), &self.device)?.narrow(1, 0, read)?;
        let mask = Tensor::from_vec(mask, (1, max_length), &self.device)?;
        let states = self.encoder.forward(&ids.contiguous()?)?.pad_with_zeros(1, 0, max_length - read)?;
        Ok(TextStates { states, mask, cut })
    }
}
