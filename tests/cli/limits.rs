//! `--max-memory`: a render takes no more than it may, in tiles if need be.

use std::fs;

use predicates::{prelude::*, str::contains};
use serde_json::Value;

use crate::bench::Bench;

const CLIP: [&str; 12] = [
    "--size",
    "512x512",
    "--frames",
    "17",
    "--window",
    "17",
    "--steps",
    "1",
    "--guidance",
    "1",
    "--seed",
    "1",
];

/// Renders, and gives the file's bytes, what was told, and the most memory that the process had, in MiB.
#[cfg(target_os = "linux")]
fn render(bench: &Bench, flags: &[&str]) -> (Vec<u8>, String, u64) {
    let args = [["gen", "a red fox", "-v", "-o", "out.y4m"].as_slice(), &CLIP, flags].concat();
    // One step of a model makes what is no video; the frames are what counts here.
    let output = bench.sora(&args).assert().get_output().clone();
    let told = String::from_utf8(output.stderr).expect("text");
    let line = told.lines().find(|line| line.contains("most memory")).unwrap_or_else(|| panic!("{told}"));
    let mib = line.split_whitespace().nth(2).and_then(|number| number.parse().ok()).expect("a number");
    (fs::read(bench.path("out.y4m")).expect("a video"), told, mib)
}

/// What `sora plan` says, and whether it says that it fits.
fn plan(bench: &Bench, flags: &[&str]) -> (Value, bool) {
    let args = [["plan", "--json"].as_slice(), &CLIP, flags].concat();
    let output = bench.sora(&args).assert().get_output().clone();
    (serde_json::from_slice(&output.stdout).expect("one JSON object"), output.status.success())
}

#[cfg(target_os = "linux")]
#[test]
fn a_render_keeps_to_a_limit_that_is_tight() {
    let bench = Bench::new();
    let (plain, _, whole) = render(&bench, &[]);
    let (large, told, _) = render(&bench, &["--max-memory", "64GiB"]);
    assert!(large == plain, "what fits is the same");
    assert!(!told.contains("to stay under") && told.contains("decode  in one piece"), "{told}");

    let (refused, fits) = plan(&bench, &["--max-memory", "1M"]);
    assert!(!fits && refused["fits"] == Value::Bool(false), "{refused}");
    let least = refused["over_limit"]["least_mib"].as_u64().expect("the least amount");
    assert!(least < whole, "tiles help: {least} MiB, {whole} MiB without");
    let tight = format!("{least}MiB");
    let (planned, fits) = plan(&bench, &["--max-memory", &tight]);
    assert!(fits && planned["peak_bytes"].as_u64() < Some(least << 20), "{planned}");

    let (tiled, told, taken) = render(&bench, &["--max-memory", &tight]);
    assert!(told.contains(&format!("to stay under {least} MiB")), "{told}");
    assert!(taken <= least, "{taken} MiB taken, {least} MiB allowed, {whole} MiB without a limit");
    assert_eq!(tiled.len(), plain.len());
    // The recipe has the tiles that were chosen, and needs no limit to choose them again.
    let recipe = &told[told.find("\n{\n").expect("a recipe")..told.find("\n}\n").expect("its end") + 2];
    let recipe: Value = serde_json::from_str(recipe).expect("a recipe");
    assert_eq!(recipe["tiling"], planned["tiling"], "{recipe}");
    assert!(recipe["tiling"]["spatial"].is_array() || recipe["tiling"]["temporal"].is_array(), "{recipe}");
    fs::write(bench.path("out.json"), recipe.to_string()).expect("a file can be written");
    bench.sora(&["gen", "--recipe", "out.json", "-o", "again.y4m"]).output().expect("it ran");
    assert!(fs::read(bench.path("again.y4m")).expect("a video") == tiled, "the recipe makes it again");
}

#[test]
fn a_limit_that_is_too_low_is_refused_with_the_least_that_would_do() {
    let bench = Bench::new();
    let refused = bench.refused(
        &[["gen", "a red fox", "-o", "out.mp4", "--max-memory", "20M"].as_slice(), &CLIP].concat(),
        5,
    );
    let told = contains("of memory, the limit is 20 MiB").and(contains("hint: pass --max-memory "));
    assert!(told.eval(&refused), "{refused}");
    assert!(refused.contains("denoising needs") || refused.contains("decoding needs"), "{refused}");
    for size in ["much", "0", "-1G", "4GiBs"] {
        let option = format!("--max-memory={size}");
        let refused = bench.refused(&["gen", "a red fox", &option], 2);
        assert!(refused.contains("expected a size above 0"), "{size}: {refused}");
    }
}

#[test]
fn every_verb_that_decodes_keeps_to_a_limit() {
    let bench = Bench::new();
    let small = ["--size", "64x64", "--frames", "9", "--steps", "1", "--seed", "1"];
    let save = ["gen", "a red fox", "--save-latents", "fox.safetensors", "-o", "fox.y4m", "--keep-loaded"];
    bench.sora(&[save.as_slice(), &small, &["--max-memory", "1GiB"]].concat()).output().expect("it ran");
    assert!(bench.path("fox.safetensors").is_file());
    let refused = bench.refused(&["decode", "fox.safetensors", "-o", "out.y4m", "--max-memory", "9MiB"], 5);
    assert!(refused.contains("decoding needs about") && refused.contains("the limit is 9 MiB"), "{refused}");
    let refused = bench.refused(
        &[
            "gen",
            "a fox",
            "--init-video",
            "fox.y4m",
            "--extend",
            "forward",
            "-o",
            "out.y4m",
            "--max-memory",
            "9M",
        ],
        5,
    );
    assert!(refused.contains("the limit is 9 MiB"), "{refused}");
    let film = "[[shots]]\nprompt = \"a red fox\"\nduration = \"1s\"\n";
    fs::write(bench.path("film.toml"), film).expect("a file can be written");
    let refused = bench.refused(&["storyboard", "film.toml", "-o", "film.mp4", "--max-memory", "9M"], 5);
    assert!(refused.contains("the limit is 9 MiB"), "{refused}");
    fs::write(bench.path("jobs.toml"), "max-memory = \"9M\"\n[[job]]\nprompt = \"a red fox\"\n")
        .expect("a file can be written");
    let output = bench.sora(&["batch", "jobs.toml", "--check"]).assert().failure().get_output().clone();
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains("the limit is 9 MiB"), "{told}");
}
