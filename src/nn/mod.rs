//! Layers and kernels below all families: shapes and speed, no family's name.

pub mod linear;
pub mod norm;

pub use linear::Linear;
pub use norm::{layer_norm, rms_norm};
