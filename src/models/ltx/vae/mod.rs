//! The video autoencoder: causal 3-D convolutions between pictures and latents, every published generation.

mod blocks;
mod canvas;
mod codec;
mod config;
mod decoder;
mod encoder;
mod expect;
mod infer;
mod memory;
mod stream;
mod tiling;

pub use codec::{LtxVideoDecoder, LtxVideoEncoder};
pub use config::Config;
pub(super) use config::UP_CELLS;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use memory::{decode_bytes, encode_bytes};
