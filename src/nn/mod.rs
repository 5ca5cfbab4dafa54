//! Layers and kernels below all families: shapes and speed, no family's name.

pub mod activation;
pub mod attention;
pub mod conv3d;
pub mod embedding;
pub mod group_norm;
pub(crate) mod kernel;
pub mod linear;
mod micro;
pub mod modulate;
pub mod norm;
pub mod pixel_norm;
pub(crate) mod product;
pub mod rope;
mod turn;

pub use linear::Linear;
pub use norm::{layer_norm, rms_norm};
