//! Golden tests: each stage against fixtures that `tests/golden/make.py` made from the reference.

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
