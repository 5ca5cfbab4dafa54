//! The video autoencoder: causal 3-D convolutions between pictures and latents, every published generation.

mod blocks;
mod codec;
mod config;
mod decoder;
mod encoder;
mod memory;
mod tiling;

pub use codec::{LtxVideoDecoder, LtxVideoEncoder};
pub use config::Config;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use memory::decode_bytes;
