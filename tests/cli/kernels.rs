//! `SORA_ISA`: every kernel path makes the same clip.

use std::fs;

use predicates::{prelude::*, str::contains};
use sora::device::isa::{Isa, VARIABLE};

use crate::bench::Bench;

#[test]
fn every_path_makes_the_same_clip() {
    let bench = Bench::new();
    let make = |isa: Isa, threads: &str| {
        let args = ["gen", "a red fox", "--steps", "4", "--seed", "1", "--threads", threads, "-o", "out.y4m"];
        bench.sora(&args).env(VARIABLE, isa.name()).assert().success();
        fs::read(bench.path("out.y4m")).expect("a video")
    };
    let plain = make(Isa::Scalar, "2");
    assert!(plain == make(Isa::Scalar, "1"), "threads change nothing");
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_there() && *isa != Isa::Scalar) {
        let wide = make(isa, "1");
        assert!(wide == make(isa, "2"), "threads change nothing");
        assert_eq!(wide.len(), plain.len());
        let apart = wide.iter().zip(&plain).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart <= Some(2), "{}: {apart:?}", isa.name());
    }
}

#[test]
fn a_path_that_is_not_there_is_refused() {
    let bench = Bench::new();
    let run = bench.sora(&["gen", "a red fox", "-o", "out.mp4"]).env(VARIABLE, "sse9").assert().failure();
    run.stderr(contains("SORA_ISA").and(contains("scalar")));
    assert!(!bench.path("out.mp4").exists());
}
