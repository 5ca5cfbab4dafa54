//! Films of several shots.

use std::fs;

use predicates::str::contains;
use serde_json::Value;

use crate::bench::Bench;

const FILM: &str = r#"
[film]
size = "64x64"
fps = 8
steps = 2
guidance = 1
duration = "1s"

[characters.fox]
description = "a red fox"
seed = 11
reference = "fox.png"

[[shots]]
name = "start"
prompt = "{fox} in the snow"
camera = "static"

[[shots]]
name = "wood"
prompt = "a forest"
transition = "dissolve 0.25s"
style = "black and white"

[[shots]]
name = "sleep"
prompt = "{fox} sleeps"

[[shots]]
name = "dream"
prompt = "{fox} dreams"
transition = "continue"
duration = "2s"
"#;

fn bench() -> Bench {
    let bench = Bench::new();
    bench
        .sora(&["gen", "fox", "--size", "64x64", "--frames", "1", "--steps", "2", "-o", "fox.png"])
        .assert()
        .success();
    fs::write(bench.path("film.toml"), FILM).expect("a file can be written");
    bench
}

fn edit(bench: &Bench, from: &str, to: &str) {
    assert!(FILM.contains(from), "{from}");
    fs::write(bench.path("film.toml"), FILM.replace(from, to)).expect("a file can be written");
}

/// Makes the film, and gives what `--json` says and which shots were rendered.
fn make(bench: &Bench) -> (Value, Vec<bool>) {
    let args = ["storyboard", "film.toml", "-o", "film.y4m", "--json", "--quiet"];
    let output = bench.sora(&args).assert().success().get_output().clone();
    let film: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let shots = film["shots"].as_array().expect("a list").iter();
    let rendered = shots.map(|shot| shot["rendered"].as_bool().expect("a truth")).collect();
    (film, rendered)
}

#[test]
fn a_film_renders_what_has_changed() {
    let bench = bench();
    let (film, rendered) = make(&bench);
    assert_eq!(rendered, [true; 4]);
    let frames = |film: &Value| {
        let shots = film["shots"].as_array().expect("a list").iter();
        shots.map(|shot| shot["frames"].as_u64().expect("a number")).sum::<u64>()
    };
    assert_eq!(film["frames"], frames(&film) - 2, "the dissolve takes two frames");
    let read = |name: &str| fs::read(bench.path(name)).expect("the file is there");
    let first = read("film.y4m");
    assert_eq!(
        first.windows(6).filter(|part| part == b"FRAME\n").count() as u64,
        film["frames"].as_u64().unwrap()
    );
    for name in ["start", "wood", "sleep", "dream"] {
        let clip =
            sora::media::read_clip(&bench.path(&format!("film.y4m.shots/{name}.mp4"))).expect("a clip");
        assert_eq!((clip.width(), clip.height()), (64, 64));
    }
    let (_, rendered) = make(&bench);
    assert_eq!(rendered, [false; 4]);
    assert!(first == read("film.y4m"), "the same film again");

    edit(&bench, "a forest", "a dark forest");
    let (_, rendered) = make(&bench);
    assert_eq!(rendered, [false, true, false, false]);
    // What goes on from a shot changes with it.
    edit(&bench, "{fox} sleeps", "{fox} sleeps deeply");
    let (_, rendered) = make(&bench);
    assert_eq!(rendered, [false, true, true, true]);
}

#[test]
fn a_check_shows_the_plan_and_renders_nothing() {
    let bench = bench();
    let before = bench.names();
    let assert = bench.sora(&["storyboard", "film.toml", "--check"]).assert().success();
    assert
        .stdout(contains("a red fox in the snow"))
        .stdout(contains("dissolve 2 frames"))
        .stdout(contains("to render"));
    let output =
        bench.sora(&["storyboard", "film.toml", "--check", "--json"]).assert().success().get_output().clone();
    let plan: Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    assert_eq!((&plan[0]["seed"], &plan[1]["seed"]), (&11.into(), &0.into()));
    assert_eq!(bench.names(), before);
}

#[test]
fn mistakes_are_told_before_a_model_is_opened() {
    let bench = bench();
    let told = |from: &str, to: &str| {
        // A model that isn't there: nothing has looked for it.
        edit(&bench, "[film]", "[film]\nmodel = \"nowhere\"");
        let text = fs::read_to_string(bench.path("film.toml")).expect("the file is there");
        fs::write(bench.path("film.toml"), text.replace(from, to)).expect("a file can be written");
        bench.refused(&["storyboard", "film.toml", "--check"], 2)
    };
    assert!(
        told("prompt = \"a f", "promt = \"a f")
            .contains("film.toml:22:1: unknown key `promt`: did you mean `prompt`?")
    );
    assert!(told("\"fox.png\"", "\"cat.png\"").contains("film.toml:13:13: there is no picture `cat.png`"));
    assert!(told("\"2s\"", "\"-2s\"").contains("film.toml:34:12: a shot can't last -2 s"));
    assert!(told("\"1s\"", "\"1s\"").contains("no such file or folder"));
    edit(&bench, "\"static\"", "\"statik\"");
    let told = bench.refused(&["storyboard", "film.toml", "--check"], 2);
    assert!(told.contains("film.toml:17:10: invalid camera `statik`") && told.contains("static"), "{told}");
}
