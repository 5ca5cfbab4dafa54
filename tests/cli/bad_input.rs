//! Every bad command line gets a reason, a way out and a code, and leaves nothing behind.

use std::fs;

use predicates::{prelude::*, str::contains};

use crate::bench::Bench;

/// `sora gen` with these arguments is a mistake of usage that says all of `told`.
fn usage(args: &[&str], told: &[&str]) {
    let all: Vec<&str> = ["gen"].into_iter().chain(args.iter().copied()).collect();
    let stderr = Bench::new().refused(&all, 2);
    for part in told {
        assert!(stderr.contains(part), "{args:?} doesn't say `{part}` but:\n{stderr}");
    }
}

#[test]
fn prompts_that_say_nothing() {
    for prompt in ["", "  \n"] {
        usage(&[prompt, "-o", "out.mp4"], &["invalid prompt", "it is empty", "hint: "]);
    }
    usage(&["-o", "out.mp4"], &["<PROMPT>"]);
    Bench::new().sora(&["gen", "-"]).write_stdin(" \n").assert().code(2).stderr(contains("it is empty"));
}

#[test]
fn endings_nobody_knows() {
    usage(&["fox", "-o", "out.avi"], &["unknown file ending `.avi`", ".mp4", "hint: "]);
    usage(&["fox", "-o", ""], &["output name", "hint: "]);
    usage(&["fox", "--contact-sheet", "sheet.mp4"], &["unknown file ending `.mp4`", ".png"]);
    usage(&["fox", "--preview=look.xyz"], &["unknown file ending `.xyz`"]);
    usage(&["fox", "--preview=-"], &["invalid preview `-`", "look.gif"]);
}

#[test]
fn sizes_and_lengths_off_the_grid() {
    usage(
        &["fox", "--width", "100"],
        &["invalid width 100", "expected a multiple of", "pass --width 9", "--width 1"],
    );
    usage(&["fox", "--size", "64x1"], &["invalid height 1", "pass --height"]);
    usage(&["fox", "--frames", "10"], &["invalid frame count 10", "k+1", "pass --frames 9 or --frames 1"]);
    usage(&["fox", "--frames", "0"], &["invalid frame count 0", "pass --frames 1"]);
    usage(&["fox", "--upscale", "64x32"], &["invalid upscaled size 64x32", "larger than that"]);
    usage(&["fox", "--upscale", "half"], &["invalid upscaled size `half`", "1920x1080 or 4x"]);
    usage(&["fox", "--size", "64"], &["invalid size `64`", "768x512"]);
    usage(&["fox", "--aspect", "16"], &["invalid aspect `16`", "16:9"]);
    usage(&["fox", "--duration", "soon"], &["invalid duration `soon`", "5s"]);
    usage(&["fox", "--fps", "0"], &["invalid frame rate 0", "above 0"]);
    usage(&["fox", "--frames", "9", "-o", "out.png"], &["it holds one frame, not 9", "--frames 1"]);
}

#[test]
fn numbers_that_cant_be() {
    usage(&["fox", "--steps", "0"], &["0", "expected"]);
    usage(&["fox", "--guidance", "-1"], &["invalid guidance -1"]);
    usage(&["fox", "--guidance", "NaN"], &["invalid guidance NaN"]);
    usage(&["fox", "--guidance-rescale", "2"], &["invalid guidance rescale 2", "0 to 1"]);
    usage(&["fox", "--num-videos", "0"], &["number of videos 0", "at least 1"]);
    usage(&["fox", "--decode-timestep", "-0.5"], &["invalid decode timestep -0.5"]);
    usage(&["fox", "--vae-tile", "64:128"], &["invalid tile `64:128`", "SIDE:STRIDE"]);
    usage(&["fox", "--max-sequence-length", "0"], &["at least 1 token"]);
    usage(&["fox", "--threads", "0"], &["--threads"]);
    usage(&["fox", "--crf", "99", "-o", "out.mp4"], &["99"]);
}

#[test]
fn values_nobody_knows() {
    usage(&["fox", "--codec", "theora"], &["invalid codec `theora`", "h264"]);
    usage(&["fox", "--dtype", "f8"], &["invalid dtype `f8`", "bf16"]);
    usage(&["fox", "--device", "tpu"], &["invalid device `tpu`", "cuda:N"]);
    usage(&["fox", "--progress", "loud"], &["--progress", "plain"]);
    usage(&["fox", "--preset", "warp", "-o", "out.mp4"], &["warp", "medium"]);
    usage(&["fox", "--pix-fmt", "pink", "-o", "out.mp4"], &["pink", "yuv420p"]);
    usage(&["fox", "--codec", "h264", "-o", "out.webm"], &["h264"]);
    usage(&["fox", "--frobnicate"], &["--frobnicate"]);
}

#[test]
fn wishes_that_contradict_each_other() {
    usage(&["fox", "--size", "64x64", "--width", "64"], &["cannot be used with"]);
    usage(&["fox", "--aspect", "1:1", "--size", "64x64"], &["cannot be used with"]);
    usage(&["fox", "--duration", "1s", "--frames", "9"], &["cannot be used with"]);
    usage(&["fox", "-o", "-", "--num-videos", "2"], &["standard output takes one video", "hint: "]);
}

#[test]
fn folders_that_arent_there_or_cant_be_written() {
    let bench = Bench::new();
    let stderr = bench.refused(&["gen", "fox", "-o", "no/such/out.mp4"], 4);
    assert!(stderr.contains("no/such") && stderr.contains("hint: "), "{stderr}");
    fs::write(bench.path("file"), "").expect("a file can be written");
    bench.refused(&["gen", "fox", "-o", "file/out.mp4"], 4);
    bench.refused(&["gen", "fox", "-o", "out.mp4", "--save-latents", "no/latents.safetensors"], 4);
    bench.refused(&["gen", "fox", "-o", "out.mp4", "--contact-sheet", "no/sheet.png"], 4);
    fs::create_dir(bench.path("out.mp4")).expect("a folder can be made");
    let stderr = bench.refused(&["gen", "fox", "-o", "out.mp4"], 2);
    assert!(stderr.contains("a folder of that name is there"), "{stderr}");
    #[cfg(target_os = "linux")]
    bench.refused(&["gen", "fox", "-o", "/proc/out.mp4"], 4);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_cant_be_had() {
    let bench = Bench::new();
    let script = "ulimit -v 1000000; exec \"$0\" gen fox --size 2048x2048 --frames 257 -o out.mp4";
    let mut limited = assert_cmd::Command::new("sh");
    let assert =
        limited.current_dir(bench.path("")).args(["-c", script, env!("CARGO_BIN_EXE_sora")]).assert();
    let told = contains("MiB are available").and(contains("this would fit: ")).and(contains("--frames "));
    assert.code(5).stdout("").stderr(told);
    assert!(bench.names().is_empty());
}

#[test]
fn devices_that_arent_there() {
    if cfg!(any(feature = "cuda", feature = "metal")) {
        return;
    }
    for device in ["cuda", "cuda:3", "metal"] {
        let stderr = Bench::new().refused(&["gen", "fox", "--device", device], 5);
        assert!(stderr.contains("built without") && stderr.contains("--device cpu"), "{stderr}");
    }
}

#[test]
fn latents_that_arent() {
    let bench = Bench::new();
    bench.refused(&["decode", "no.safetensors"], 4);
    fs::write(bench.path("text.safetensors"), "not at all").expect("a file can be written");
    let stderr = bench.refused(&["decode", "text.safetensors", "-o", "out.mp4"], 3);
    assert!(stderr.contains("no safetensors file"), "{stderr}");
    bench.refused(&["gen", "--resume", "text.safetensors"], 3);
    bench.generate(&["-o", "a.mp4", "--save-latents", "a.safetensors"]).assert().success();
    let stderr = bench.refused(&["gen", "fox", "--latents", "a.safetensors", "--size", "96x64"], 2);
    assert!(stderr.contains("invalid latents of shape"), "{stderr}");
    let stderr = bench.refused(&["gen", "--resume", "a.safetensors"], 2);
    assert!(
        stderr.contains("all steps of their render are done") && stderr.contains("sora decode"),
        "{stderr}"
    );
}
