//! Golden tests: each stage against fixtures that `tests/golden/make.py` made from the reference.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "golden/support.rs"]
mod support;

#[path = "golden/conditions.rs"]
mod conditions;
#[path = "golden/guidance.rs"]
mod guidance;
#[path = "golden/layouts.rs"]
mod layouts;
#[path = "golden/pipeline.rs"]
mod pipeline;
#[path = "golden/step_cache.rs"]
mod step_cache;
#[path = "golden/upsampler.rs"]
mod upsampler;

#[path = "golden/transformer.rs"]
mod transformer;

#[path = "golden/text.rs"]
mod text;
#[path = "golden/vae.rs"]
mod vae;
