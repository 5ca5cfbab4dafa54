//! Clips longer than a window: cut, kept, gone on with.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use predicates::{prelude::*, str::contains};
use serde_json::Value;

use crate::bench::Bench;

const LONG: [&str; 15] = [
    "gen",
    "a red fox",
    "--size",
    "64x64",
    "--frames",
    "41",
    "--window",
    "9",
    "--overlap",
    "1",
    "--steps",
    "3",
    "--seed",
    "7",
    "--quiet",
];

/// Starts a long clip and kills it once a window is kept; what was kept is left in the folder.
fn killed(bench: &Bench) {
    let kept = bench.path("out.y4m.windows.safetensors");
    for _ in 0..20 {
        let mut program = Command::new(env!("CARGO_BIN_EXE_sora"));
        program.current_dir(bench.path("")).args(LONG).args(["-o", "out.y4m"]).stdout(Stdio::null());
        let mut child = program.spawn().expect("the program starts");
        while !kept.exists() && child.try_wait().expect("a state").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("it can be killed");
        if !child.wait().expect("a status").success() && kept.exists() {
            return;
        }
        let _ = fs::remove_file(bench.path("out.y4m"));
    }
    panic!("the clip was done before it could be killed");
}

fn read(bench: &Bench, name: &str) -> Vec<u8> {
    fs::read(bench.path(name)).expect("the file is there")
}

#[test]
fn a_long_clip_is_made_in_windows() {
    let bench = Bench::new();
    let output = bench.sora(&LONG).args(["-o", "out.mp4", "--json"]).assert().success().get_output().clone();
    let clip: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let take = &clip["recipe"]["take"];
    assert_eq!((&take["window"], &take["overlap"]), (&9.into(), &1.into()));
    assert_eq!(clip["health"]["figures"]["frames"], 41);
    assert_eq!(bench.names(), ["out.mp4"]);
    let loud: Vec<&str> = LONG.into_iter().filter(|word| *word != "--quiet").collect();
    let one = bench.sora(&loud).args(["-o", "out.y4m", "--vae-tile-frames", "16:8"]).assert().success();
    one.stderr(contains("41 frames are made in"));
}

#[test]
fn a_killed_clip_goes_on_to_the_same_frames() {
    let bench = Bench::new();
    bench.sora(&LONG).args(["-o", "whole.y4m"]).assert().success();
    killed(&bench);
    fs::copy(bench.path("out.y4m.windows.safetensors"), bench.path("half.safetensors")).expect("a copy");
    // The same command; without a seed, the one that was drawn is the one that is kept.
    let unseeded: Vec<&str> =
        LONG.iter().copied().filter(|w| !["--seed", "7", "--quiet"].contains(w)).collect();
    let again = bench.sora(&unseeded).args(["-o", "out.y4m"]).assert().success();
    again.stderr(contains("going on after window ").and(contains("seed 7")));
    assert!(read(&bench, "out.y4m") == read(&bench, "whole.y4m"), "the frames differ");
    // From the file alone, and what there is of it as a clip.
    bench.sora(&["gen", "--resume", "half.safetensors", "-o", "rest.y4m", "--quiet"]).assert().success();
    assert!(read(&bench, "rest.y4m") == read(&bench, "whole.y4m"), "the frames differ");
    assert_eq!(bench.names(), ["out.y4m", "rest.y4m", "whole.y4m"]);
}

#[test]
fn kept_windows_are_never_lost_to_another_render() {
    let bench = Bench::new();
    killed(&bench);
    let kept = read(&bench, "out.y4m.windows.safetensors");
    let mut other = LONG;
    other[1] = "a blue fox";
    let args: Vec<&str> = other.into_iter().chain(["-o", "out.y4m"]).collect();
    let told = bench.refused(&args, 2);
    assert!(told.contains("windows of another render") && told.contains("`prompt`"), "{told}");
    assert!(kept == read(&bench, "out.y4m.windows.safetensors"));
    let half = bench.sora(&["decode", "out.y4m.windows.safetensors", "-o", "half.mp4"]).assert().success();
    half.stderr(contains("was stopped after"));
}

#[test]
fn windows_that_cant_be_are_refused() {
    let bench = Bench::new();
    let told = |more: [&str; 2]| {
        let args: Vec<&str> = ["gen", "fox", "--size", "64x64", "--frames", "41", "--window", "9"].to_vec();
        bench.refused(&[args, more.to_vec()].concat(), 2)
    };
    assert!(told(["--overlap", "9"]).contains("less than the window of 9 frames"));
    assert!(told(["--match-colour", "2"]).contains("from 0 to 1"));
}

#[test]
fn a_pan_is_kept_in_the_recipe_and_in_every_window() {
    let bench = Bench::new();
    // 1.6 seconds a window, in which the noise goes one of the four cells.
    let make = |more: &[&str]| bench.sora(&LONG).args(["--fps", "4"]).args(more).assert().success();
    let made = make(&["--camera", "pan left", "--json", "-o", "pan.y4m"]).get_output().stdout.clone();
    let recipe = serde_json::from_slice::<Value>(&made).expect("one JSON object")["recipe"].clone();
    fs::write(bench.path("pan.json"), recipe.to_string()).expect("a recipe");
    assert_eq!(recipe["pan"][0]["speed"], 0.15, "{recipe}");
    bench.sora(&["gen", "--recipe", "pan.json", "-o", "again.y4m"]).assert().success();
    assert!(read(&bench, "pan.y4m") == read(&bench, "again.y4m"), "the recipe gives other frames");
    // Words alone leave the noise where it is.
    let said = recipe["prompt"].as_str().expect("a prompt");
    assert_eq!(said, "a red fox, camera pans left");
    let words: Vec<&str> = LONG.iter().map(|word| if *word == "a red fox" { said } else { word }).collect();
    bench.sora(&words).args(["--fps", "4", "-o", "said.y4m"]).assert().success();
    assert!(read(&bench, "pan.y4m") != read(&bench, "said.y4m"), "the noise doesn't go with the camera");
}
