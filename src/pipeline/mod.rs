//! The family-agnostic way of the data: noise, sigmas, guidance and the one denoise loop.

mod beta;
pub mod conditions;
pub mod denoise;
pub mod guidance;
pub mod health;
pub mod held;
pub mod noise;
pub mod pan;
pub mod pictures;
pub mod preview;
pub mod render;
pub mod sigmas;
pub mod solver;
pub mod tiled;
pub mod upsample;
pub mod windows;

#[cfg(test)]
pub(crate) mod fake;
