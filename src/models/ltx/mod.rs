//! LTX-Video.

mod checkpoint;
pub mod denoiser;
mod keys;
mod layout;
pub(super) mod portable;
pub mod transformer;
pub mod upsampler;
pub mod vae;
mod work;

pub use checkpoint::LtxCheckpoint;
pub use layout::LtxParts;
