//! The family-agnostic way of the data: noise, sigmas, guidance and the one denoise loop.

mod beta;
pub mod denoise;
pub mod guidance;
pub mod health;
pub mod noise;
pub mod pictures;
pub mod preview;
pub mod render;
pub mod sigmas;
pub mod solver;

#[cfg(test)]
pub(crate) mod fake;
