//! T5 v1.1: the tokenizer and the encoder that read a prompt.

mod added;
mod config;
mod encoder;
mod spiece;
mod tokenizer;

use candle_core::{Device, Tensor};

pub use self::{
    config::Config,
    encoder::Encoder,
    tokenizer::{Ids, Tokenizer},
};
use super::api::{TextEncoder, TextStates};
use crate::{error::Result, weights::Loader};

/// A T5 as a text encoder.
pub struct T5Text {
    tokenizer: Tokenizer,
    encoder: Encoder,
    device: Device,
}

impl T5Text {
    /// Loads the encoder's weights.
    pub fn new(tokenizer: Tokenizer, cfg: &Config, w: &Loader) -> Result<Self> {
        Ok(Self { tokenizer, encoder: Encoder::new(cfg, w)?, device: w.device().clone() })
    }
}

impl TextEncoder for T5Text {
    fn encode(&mut self, prompt: &str, max_length: usize) -> Result<TextStates> {
        let Ids { ids, mask, cut } = self.tokenizer.encode(prompt, max_length)?;
        self.tokenizer.check_bound(&ids, self.encoder.vocab_size())?;
        let ids = Tensor::from_vec(ids, (1, max_length), &self.device)?;
        let mask = Tensor::from_vec(mask, (1, max_length), &self.device)?;
        Ok(TextStates { states: self.encoder.forward(&ids)?, mask, cut })
    }
}
