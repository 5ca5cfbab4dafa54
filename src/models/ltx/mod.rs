//! LTX-Video.

mod checkpoint;
pub mod denoiser;
pub mod transformer;
pub mod vae;

pub use checkpoint::LtxCheckpoint;
