//! Opening weight files: memory maps, shards, and an audit of every key.

mod convert;
mod files;
mod loader;

pub use files::Weights;
pub use loader::Loader;

#[cfg(test)]
mod tests;
