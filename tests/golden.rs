//! Golden tests: each stage against fixtures that `tests/golden/make.py` made from the reference.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "golden/support.rs"]
mod support;

#[path = "golden/pipeline.rs"]
mod pipeline;

#[path = "golden/transformer.rs"]
mod transformer;

#[path = "golden/text.rs"]
mod text;
#[path = "golden/vae.rs"]
mod vae;
