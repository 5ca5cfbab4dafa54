//! Opening weight files: memory maps, shards, safetensors and GGUF, and an audit of every key.

mod audit;
mod convert;
mod encoding;
mod files;
mod gguf;
mod identity;
mod loader;
mod lora;
mod packed;
mod residency;
mod save;
mod scales;

pub use audit::Audit;
pub use encoding::Encoding;
pub use files::{Weights, begins_as_gguf};
pub use gguf::{Array, Field, Value, Writer as GgufWriter};
pub use loader::{Loader, Matrix};
pub use lora::{Adapter, Lora};
pub use packed::Packed;
pub use residency::Residency;
pub use save::{Format, Save};

#[cfg(test)]
mod tests;
