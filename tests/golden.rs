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

/// All of the above once more with each kernel path that this processor has beside its widest.
#[test]
fn every_kernel_path_passes() {
    use sora::device::isa::{Isa, VARIABLE};
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let widest = Isa::chosen();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there() && *isa != widest) {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .env(VARIABLE, isa.name())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && !told.contains("running 0 tests"), "{}: {told}", isa.name());
    }
}
