//! The verbs as library functions: jobs and files on this floor, tensors below it.

pub mod clip;
pub mod decode;
pub mod direction;
pub mod doctor;
pub mod generate;
pub mod inspect;
pub mod latents;
pub mod loaded;
pub mod locate;
pub mod memory;
pub mod models;
pub mod outputs;
mod preview;
pub mod recipe;
mod rescue;
pub mod shape;
mod tally;
mod wording;
