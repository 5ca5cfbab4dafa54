//! The family-agnostic way of the data: noise, sigmas, guidance and the one denoise loop.

mod beta;
pub mod guidance;
pub mod noise;
pub mod sigmas;
pub mod solver;
