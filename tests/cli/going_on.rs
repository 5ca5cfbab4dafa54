//! Clips that go on are never lost: Ctrl-C, a killed program, and the same frames afterwards.
#![cfg(unix)]

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use predicates::{prelude::*, str::contains};

use crate::{bench::Bench, visual::clip};

const FAST: [&str; 4] = ["--steps", "3", "--seed", "7"];
const SHORT: [&str; 4] = ["--context", "1", "--window", "9"];

/// Runs a command until it has said something so many times, then sends a signal. Gives exit code and stderr.
pub fn stopped(bench: &Bench, args: &[&str], when: &str, times: usize, signal: i32) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args(args)
        .args(["--progress", "json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let (mut told, mut seen) = (String::new(), 0);
    for line in BufReader::new(child.stderr.take().expect("a pipe")).lines() {
        let line = line.expect("a line of text");
        seen += usize::from(line.contains(when));
        if seen == times {
            seen += 1;
            let id = i32::try_from(child.id()).expect("a process number");
            // SAFETY: a signal to a child that hasn't been waited for.
            assert_eq!(unsafe { libc::kill(id, signal) }, 0);
        }
        told += &(line + "\n");
    }
    assert!(seen > times, "it never said `{when}` {times} times:\n{told}");
    (child.wait().expect("the program ends").code(), told)
}

fn read(bench: &Bench, name: &str) -> Vec<u8> {
    fs::read(bench.path(name)).expect("the file is there")
}

/// What is in the folder. A program that was killed can't remove the hidden file it was writing.
fn names(bench: &Bench) -> Vec<String> {
    bench.names().into_iter().filter(|name| !name.starts_with('.')).collect()
}

/// The same without its seed: what is kept says which it was.
fn unseeded<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().filter(|word| !["--seed", "7"].contains(word)).collect()
}

#[test]
fn a_killed_extension_goes_on_to_the_same_frames() {
    let bench = Bench::new();
    clip(&bench, "clip.mkv", 12);
    let args = ["gen", "waves", "--init-video", "clip.mkv", "--extend", "both", "--frames", "14"];
    let args = [&args[..], &SHORT, &FAST].concat();
    bench.sora(&[&args[..], &["-o", "whole.y4m", "--quiet"]].concat()).assert().success();
    // Two passages lead to the start; the first of them is done.
    let out = [&args[..], &["-o", "out.y4m"]].concat();
    stopped(&bench, &out, r#""event":"saved""#, 1, libc::SIGKILL);
    let kept = "out.y4m.windows.safetensors";
    fs::copy(bench.path(kept), bench.path("half.safetensors")).expect("a copy");
    bench
        .sora(&unseeded(&out))
        .assert()
        .success()
        .stderr(contains("going on after 1 passage ").and(contains("seed 7")));
    assert!(read(&bench, "out.y4m") == read(&bench, "whole.y4m"), "the frames differ");
    bench.sora(&["gen", "--resume", "half.safetensors", "-o", "rest.y4m", "--quiet"]).assert().success();
    assert!(read(&bench, "rest.y4m") == read(&bench, "whole.y4m"), "the frames differ");
    assert_eq!(names(&bench), ["clip.mkv", "out.y4m", "rest.y4m", "whole.y4m"]);
}

#[test]
fn ctrl_c_keeps_the_step_of_a_passage() {
    let bench = Bench::new();
    clip(&bench, "a.mkv", 9);
    clip(&bench, "b.mkv", 9);
    let args = ["join", "a.mkv", "b.mkv", "--prompt", "waves", "--duration", "750ms"];
    let args = [&args[..], &SHORT, &["--steps", "6", "--seed", "7"]].concat();
    bench.sora(&[&args[..], &["-o", "whole.y4m", "--quiet"]].concat()).assert().success();
    let out = [&args[..], &["-o", "out.y4m"]].concat();
    let (code, told) = stopped(&bench, &out, r#""phase":"denoise","done":2"#, 1, libc::SIGINT);
    assert_eq!(code, Some(130), "{told}");
    let kept = "out.y4m.windows.safetensors";
    assert_eq!(names(&bench), ["a.mkv", "b.mkv", kept, "whole.y4m"], "{told}");
    assert!(told.contains(&format!("sora gen --resume {kept} -o out.y4m")), "{told}");
    let refused = bench.refused(&["decode", kept, "-o", "x.mp4"], 2);
    assert!(refused.contains("passages of a clip") && refused.contains("sora gen --resume"), "{refused}");
    let mut other = out.clone();
    other[4] = "sand";
    let refused = bench.refused(&other, 2);
    assert!(refused.contains("windows of another render") && refused.contains("`prompt`"), "{refused}");
    let resumed =
        bench.sora(&["gen", "--resume", kept, "-o", "out.y4m", "--progress", "json"]).assert().success();
    let told = String::from_utf8(resumed.get_output().stderr.clone()).expect("text");
    assert!(!told.contains(r#""phase":"denoise","done":1,"#), "it began anew: {told}");
    assert!(read(&bench, "out.y4m") == read(&bench, "whole.y4m"), "the frames differ");
    assert_eq!(names(&bench), ["a.mkv", "b.mkv", "out.y4m", "whole.y4m"]);
    // Another clip under the same name isn't taken for the old one.
    stopped(
        &bench,
        &[&out[..], &["--checkpoint-every", "2"]].concat(),
        r#""event":"saved""#,
        1,
        libc::SIGKILL,
    );
    clip(&bench, "b.mkv", 10);
    let refused = bench.refused(&["gen", "--resume", kept, "-o", "out.y4m"], 2);
    assert!(refused.contains("`b.mkv`: it isn't what the render was begun with"), "{refused}");
}

#[test]
fn a_loop_from_words_goes_on_wherever_it_was_stopped() {
    let bench = Bench::new();
    let args = ["gen", "waves", "--loop", "--size", "64x64", "--frames", "9", "--checkpoint-every", "1"];
    let args = [&args[..], &SHORT, &FAST].concat();
    bench.sora(&[&args[..], &["-o", "whole.y4m", "--quiet"]].concat()).assert().success();
    let out = [&args[..], &["-o", "out.y4m"]].concat();
    // In the clip, then in what leads back to its start.
    stopped(&bench, &out, r#""event":"saved""#, 1, libc::SIGKILL);
    assert_eq!(names(&bench), ["out.y4m.windows.begun.safetensors", "whole.y4m"]);
    let (_, told) = stopped(&bench, &unseeded(&out), r#""event":"saved""#, 4, libc::SIGKILL);
    let there = names(&bench);
    assert!(there.iter().any(|name| name == "out.y4m.windows.mkv"), "{there:?}\n{told}");
    bench.sora(&unseeded(&out)).assert().success().stderr(contains("going on after"));
    assert!(read(&bench, "out.y4m") == read(&bench, "whole.y4m"), "the frames differ");
    assert_eq!(names(&bench), ["out.y4m", "whole.y4m"]);
}

#[test]
fn passages_are_looked_at_and_kept_as_latents() {
    let bench = Bench::new();
    clip(&bench, "clip.mkv", 9);
    let args = ["gen", "waves", "--init-video", "clip.mkv", "--extend", "forward", "--frames", "12"];
    let more = ["-o", "out.mp4", "--save-latents", "new.safetensors", "--preview=look.gif"];
    bench.sora(&[&args[..], &SHORT, &FAST, &more].concat()).assert().success();
    let expected = ["clip.mkv", "look.gif", "new-1.safetensors", "new-2.safetensors", "out.mp4"];
    assert_eq!(names(&bench), expected);
    bench.sora(&["decode", "new-2.safetensors", "-o", "new.y4m", "--quiet"]).assert().success();
    let head = read(&bench, "new.y4m");
    assert!(head.starts_with(b"YUV4MPEG2 W64 H64 F8:1 "));
}
