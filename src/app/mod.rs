//! The verbs as library functions: jobs and files on this floor, tensors below it.

pub mod clip;
pub mod decode;
pub mod generate;
pub mod inspect;
pub mod latents;
pub mod memory;
pub mod outputs;
pub mod preview;
pub mod recipe;
pub mod shape;
pub mod tally;
