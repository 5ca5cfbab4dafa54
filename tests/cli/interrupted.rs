//! A render is never lost: Ctrl-C, a full disk, and going on afterwards.
#![cfg(unix)]

use std::{
    fs::File,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::bench::{Bench, SMALL};

/// Starts a render and presses Ctrl-C once two of its steps are done. Gives exit code and stderr.
fn interrupt(bench: &Bench, long: [&str; 8], more: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args(["gen", "a red fox", "-o", "out.y4m", "--progress", "json"])
        .args(long)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut told = String::new();
    let mut pressed = false;
    for line in BufReader::new(child.stderr.take().expect("a pipe")).lines() {
        let line = line.expect("a line of text");
        if !pressed && line.contains(r#""phase":"denoise","done":2"#) {
            pressed = true;
            let id = i32::try_from(child.id()).expect("a process number");
            // SAFETY: a signal to a child that hasn't been waited for.
            assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
        }
        told.push_str(&line);
        told.push('\n');
    }
    (child.wait().expect("the program ends").code(), told)
}

const LONG: [&str; 8] = ["--size", "64x64", "--frames", "9", "--steps", "12", "--seed", "7"];
/// For steps that a cache makes short.
const LONGER: [&str; 8] = ["--size", "64x64", "--frames", "9", "--steps", "60", "--seed", "7"];

#[test]
fn ctrl_c_saves_what_is_done_and_resuming_gives_the_same_frames() {
    let bench = Bench::new();
    let (code, told) = interrupt(&bench, LONG, &[]);
    assert_eq!(code, Some(130), "{told}");
    assert_eq!(bench.names(), ["out.y4m.latents.safetensors"], "{told}");
    assert!(told.contains("sora gen --resume out.y4m.latents.safetensors -o out.y4m"), "{told}");
    let resume = ["gen", "--resume", "out.y4m.latents.safetensors", "-o", "-"];
    let resumed = bench.sora(&resume).assert().success().get_output().stdout.clone();
    let whole = bench
        .sora(&["gen", "a red fox", "-o", "-"])
        .args(LONG)
        .assert()
        .success()
        .get_output()
        .stdout
        .clone();
    assert!(resumed == whole, "the resumed clip is another one");
}

#[test]
fn a_render_with_a_step_cache_is_resumed_where_it_was_wholly_computed() {
    let bench = Bench::new();
    for cache in ["0.1", "1"] {
        let (code, told) = interrupt(&bench, LONGER, &["--cache", cache]);
        assert_eq!(code, Some(130), "{told}");
        let resume = ["gen", "--resume", "out.y4m.latents.safetensors", "-o", "-"];
        let resumed = bench.sora(&resume).assert().success().get_output().stdout.clone();
        let mut whole = bench.sora(&["gen", "a red fox", "-o", "-", "--cache", cache]);
        let whole = whole.args(LONGER).assert().success().get_output().stdout.clone();
        assert!(resumed == whole, "with {cache} the resumed clip is another one");
    }
}

#[test]
fn a_render_with_pictures_is_resumed_with_the_same_ones() {
    let bench = Bench::new();
    for (name, seed) in [("a.png", "1"), ("b.png", "2")] {
        let args = ["gen", "a red fox", "--size", "64x64", "--frames", "1", "--steps", "1", "--seed", seed];
        // A step alone makes no good picture, but one.
        let _ = bench.sora(&[&args[..], &["-o", name]].concat()).output().expect("the program runs");
    }
    let pictures = ["--init-image", "a.png", "--keyframe", "-1:b.png:0.5"];
    let (code, told) = interrupt(&bench, LONG, &pictures);
    assert_eq!(code, Some(130), "{told}");
    let resume = ["gen", "--resume", "out.y4m.latents.safetensors", "-o", "-"];
    let resumed = bench.sora(&resume).assert().success().get_output().stdout.clone();
    let mut whole = bench.sora(&["gen", "a red fox", "-o", "-"]);
    let whole = whole.args(LONG).args(pictures).assert().success().get_output().stdout.clone();
    assert!(resumed == whole, "the resumed clip is another one");
    std::fs::copy(bench.path("a.png"), bench.path("b.png")).expect("a file can be copied");
    let stderr = bench.refused(&resume, 2);
    assert!(stderr.contains("`b.png`: it isn't what the render was begun with"), "{stderr}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_loses_no_latents() {
    let bench = Bench::new();
    let full = File::options().write(true).open("/dev/full").expect("the device is there");
    let output = Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args(["gen", "a red fox", "-o", "-"])
        .args(SMALL)
        .stdout(full)
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8(output.stderr).expect("stderr is text");
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(
        stderr.contains("error: the video is unfinished") && stderr.contains("No space left"),
        "{stderr}"
    );
    let latents = "sora-a-red-fox-7.latents.safetensors";
    assert!(stderr.contains(&format!("sora decode {latents}")), "{stderr}");
    assert_eq!(bench.names(), [latents]);
    let later = bench.sora(&["decode", latents, "-o", "-"]).assert().success().get_output().stdout.clone();
    assert!(later == bench.frames(&[]), "the decoded clip is another one");
}

#[test]
fn what_a_killed_render_saved_is_gone_on_with() {
    let bench = Bench::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args(["gen", "a red fox", "-o", "out.y4m", "--progress", "json", "--checkpoint-every", "3"])
        .args(LONG)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let told = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let saved =
        told.map(|line| line.expect("a line of text")).find(|line| line.contains(r#""event":"saved""#));
    let saved = saved.expect("an event of the latents");
    assert!(saved.ends_with(r#""path":"out.y4m.latents.safetensors","step":3}"#), "{saved}");
    child.kill().expect("the program can be killed");
    child.wait().expect("the program ends");
    let resume = ["gen", "--resume", "out.y4m.latents.safetensors", "-o", "-", "--progress", "json"];
    let resumed = bench.sora(&resume).assert().success().get_output().clone();
    let told = String::from_utf8(resumed.stderr).expect("stderr is text");
    assert!(!told.contains(r#""phase":"denoise","done":1,"#), "it began anew: {told}");
    let mut whole = bench.sora(&["gen", "a red fox", "-o", "-"]);
    assert!(resumed.stdout == whole.args(LONG).assert().success().get_output().stdout);
}

#[test]
fn saved_latents_go_when_the_video_is_there() {
    let bench = Bench::new();
    bench.generate(&["-o", "out.mp4", "--checkpoint-every", "1"]).assert().success();
    assert_eq!(bench.names(), ["out.mp4"]);
}
