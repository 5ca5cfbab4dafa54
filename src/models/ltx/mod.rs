//! LTX-Video.

pub mod denoiser;
pub mod transformer;
pub mod vae;
