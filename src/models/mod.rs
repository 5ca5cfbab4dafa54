//! Families of models, and what they all have in common.

pub mod api;
pub mod catalog;
pub mod ltx;
pub mod portable;
pub mod registry;
pub mod sampling;
pub mod source;
pub mod step_cache;
pub mod t5;
