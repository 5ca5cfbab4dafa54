//! Help, version, completions, the manual.

use predicates::{prelude::*, str::contains};

use crate::bench::Bench;

#[test]
fn help_has_groups_examples_and_exit_codes() {
    let groups =
        contains("Video:").and(contains("Sampling:")).and(contains("Output:")).and(contains("Compute:"));
    let example = contains("sora gen \"pirate ships in coffee\" -o out.mp4");
    Bench::new()
        .sora(&["gen", "--help"])
        .assert()
        .success()
        .stdout(groups.and(example.clone()).and(contains("Exit codes:")).and(contains("--guidance-rescale")));
    Bench::new().sora(&["--help"]).assert().success().stdout(example.and(contains("130  stopped by Ctrl-C")));
}

#[test]
fn short_help_fits_a_screen() {
    let output = Bench::new().sora(&["gen", "-h"]).assert().success().get_output().clone();
    let lines = output.stdout.split(|byte| *byte == b'\n').count();
    assert!(lines <= 50, "{lines} lines");
    Bench::new().sora(&["gen", "-h"]).assert().stdout(contains("--guidance-rescale").not());
}

#[test]
fn version_is_one_line() {
    let line = format!("sora {}\n", env!("CARGO_PKG_VERSION"));
    Bench::new().sora(&["--version"]).assert().success().stdout(line).stderr("");
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let assert = Bench::new().sora(&["completions", shell]).assert().success().stderr("");
        assert.stdout(contains("contact-sheet").and(contains("decode")));
    }
    Bench::new().refused(&["completions", "tcsh"], 2);
}

#[test]
fn the_manual_leaves_nothing_out() {
    let all = contains("contact\\-sheet").and(contains("Pixel format of the encoder"));
    Bench::new().sora(&["man", "gen"]).assert().success().stdout(all);
    Bench::new().sora(&["man"]).assert().success().stdout(contains(".TH sora 1").and(contains("Exit codes")));
    let refusal = Bench::new().refused(&["man", "fly"], 2);
    assert!(refusal.contains("expected one of gen, ") && refusal.contains("decode"), "{refusal}");
}

#[test]
fn info_says_what_the_model_is() {
    Bench::new().sora(&["info"]).assert().success().stdout(contains("own size").and(contains("denoiser")));
    let output = Bench::new().sora(&["info", "--json"]).assert().success().get_output().clone();
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a JSON object");
    assert!(info["geometry"]["channels"].is_u64() && info["defaults"]["fps"].is_f64(), "{info}");
}
