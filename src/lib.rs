//! `sora` makes videos from words on your own machine.
//!
//! The command line is the first user of this library; `ARCHITECTURE.md` explains the floors.
#![warn(missing_docs)]

pub mod app;
pub mod device;
pub mod error;
pub mod event;
pub mod hub;
pub mod media;
pub mod models;
pub mod nn;
pub mod pipeline;
pub mod video;
pub mod weights;

pub use error::{Error, ErrorKind, Result};
