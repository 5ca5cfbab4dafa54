//! The family-agnostic way of the data: noise, sigmas, guidance and the one denoise loop.

pub mod noise;
