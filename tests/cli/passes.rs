//! Passes, schedules and guidance from the command line.
#![cfg(unix)]

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

use crate::bench::Bench;

/// A number of the embedded model's geometry.
fn geometry(bench: &Bench, name: &str) -> usize {
    let info = bench.sora(&["info", "--json"]).assert().success().get_output().stdout.clone();
    let info: Value = serde_json::from_slice(&info).expect("JSON");
    info["geometry"][name].as_u64().expect("a number") as usize
}

/// So many of the smallest units of size.
fn size(bench: &Bench, columns: usize, rows: usize) -> String {
    let unit = geometry(bench, "spatial") * geometry(bench, "patch");
    format!("{}x{}", columns * unit, rows * unit)
}

/// A latent upsampler for the embedded model, with made-up weights.
fn upsampler(bench: &Bench, name: &str) {
    let channels = geometry(bench, "channels");
    let (mid, mut state) = (32, 1u32);
    let mut tensor = |shape: &[usize], scale: f32| {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<u8> =
            (0..shape.iter().product()).flat_map(|_| (next() * scale).to_le_bytes()).collect();
        (shape.to_vec(), values)
    };
    let tensors = HashMap::from([
        ("initial_conv.weight", tensor(&[mid, channels, 3, 3], 0.2)),
        ("initial_conv.bias", tensor(&[mid], 0.1)),
        ("initial_norm.weight", tensor(&[mid], 2.0)),
        ("initial_norm.bias", tensor(&[mid], 0.5)),
        ("upsampler.0.weight", tensor(&[4 * mid, mid, 3, 3], 0.2)),
        ("upsampler.0.bias", tensor(&[4 * mid], 0.1)),
        ("final_conv.weight", tensor(&[channels, mid, 3, 3], 0.4)),
        ("final_conv.bias", tensor(&[channels], 0.1)),
    ]);
    let views = tensors.iter().map(|(key, (shape, values))| {
        (*key, TensorView::new(Dtype::F32, shape.clone(), values).expect("a tensor"))
    });
    let config = json!({
        "_class_name": "LatentUpsampler", "in_channels": channels, "mid_channels": mid,
        "num_blocks_per_stage": 0, "dims": 2, "spatial_upsample": true, "temporal_upsample": false,
    });
    let metadata = HashMap::from([("config".to_owned(), config.to_string())]);
    let file = safetensors::serialize(views, Some(metadata)).expect("a file");
    fs::write(bench.path(name), file).expect("a file can be written");
}

const TWICE: [&str; 12] = [
    "--frames",
    "9",
    "--seed",
    "7",
    "--steps",
    "3",
    "--steps",
    "5",
    "--upsampler",
    "up.safetensors",
    "--guidance",
    "2",
];

/// Presses Ctrl-C at step number `at` of all passes together; leaves latents to go on from.
fn interrupt(bench: &Bench, size: &str, at: usize) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args(["gen", "a red fox", "-o", "out.y4m", "--progress", "json", "--size", size])
        .args(TWICE)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut steps = 0;
    for line in BufReader::new(child.stderr.take().expect("a pipe")).lines() {
        steps += usize::from(line.expect("a line of text").contains(r#""phase":"denoise","done""#));
        if steps == at {
            steps += 1000;
            let id = i32::try_from(child.id()).expect("a process number");
            // SAFETY: a signal to a child that hasn't been waited for.
            assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
        }
    }
    assert_eq!(child.wait().expect("the program ends").code(), Some(130));
}

#[test]
fn a_render_of_two_passes_goes_on_in_either() {
    let bench = Bench::new();
    upsampler(&bench, "up.safetensors");
    let size = size(&bench, 4, 4);
    let whole = bench.sora(&["gen", "a red fox", "-o", "-", "--size", &size]).args(TWICE).assert().success();
    let whole = whole.get_output().stdout.clone();
    for at in [1, 3, 4] {
        interrupt(&bench, &size, at);
        let saved = bench.path("out.y4m.latents.safetensors");
        assert!(saved.exists(), "stopped at step {at}: {:?}", bench.names());
        let resume = ["gen", "--resume", "out.y4m.latents.safetensors", "-o", "-"];
        let resumed = bench.sora(&resume).assert().success().get_output().stdout.clone();
        assert!(resumed == whole, "stopped at step {at}, the resumed clip is another one");
        fs::remove_file(saved).expect("a file can be removed");
    }
}

fn recipe(bench: &Bench, args: &[&str]) -> Value {
    let size = size(bench, 4, 4);
    let mut command = bench.sora(&["gen", "a red fox", "-o", "out.mp4", "--json", "--frames", "9"]);
    let output = command.args(["--size", &size]).args(args).assert().success().get_output().stdout.clone();
    serde_json::from_slice::<Value>(&output).expect("JSON")["recipe"].take()
}

#[test]
fn the_recipe_holds_every_pass() {
    let bench = Bench::new();
    upsampler(&bench, "up.safetensors");
    let recipe = recipe(&bench, &["--steps", "2", "--upsampler", "up.safetensors", "--sigmas", "1,0.5"]);
    let passes = recipe["passes"].as_array().expect("passes");
    let width = |pass: usize| passes[pass]["width"].as_u64().expect("a number");
    assert_eq!(2 * width(0), width(1));
    assert_eq!(passes[0]["sampling"]["sigmas"], json!([1.0, 0.5]));
    assert_eq!(
        (&passes[1]["sampling"]["steps"], &passes[1]["sampling"]["skip_first"]),
        (&json!(10), &json!(6))
    );
    assert_eq!(passes[1]["upsampler"], json!("up.safetensors"));
    // The video says enough to be made again.
    let again = bench.sora(&["gen", "--recipe", "out.mp4", "-o", "again.mp4"]).assert().success();
    drop(again);
    let read = |name: &str| fs::read(bench.path(name)).expect("the file is there");
    assert!(read("out.mp4") == read("again.mp4"));
}

#[test]
fn guidance_may_change_on_the_way() {
    let bench = Bench::new();
    let plain = bench.frames(&["--guidance", "2"]);
    assert!(plain == bench.frames(&["--guidance", "2,2"]), "a list of the same is the same");
    assert!(plain != bench.frames(&["--guidance", "2,1"]));
    assert!(
        bench.frames(&["--guidance", "2,1"])
            == bench.frames(&["--guidance", "2", "--guidance-interval", "0:0.5"])
    );
    let stg = bench.frames(&["--guidance", "2", "--stg-scale", "1", "--stg-blocks", "0"]);
    assert!(plain != stg, "STG does nothing");
    assert!(plain == bench.frames(&["--guidance", "2", "--stg-scale", "0", "--stg-blocks", "0"]));
}

#[test]
fn the_step_cache_skips_and_is_kept_in_the_recipe() {
    let bench = Bench::new();
    let render = |args: &[&str]| {
        let small = ["--size", "64x64", "--frames", "9", "--steps", "4", "--seed", "7", "--guidance", "3"];
        let output = bench.sora(&["gen", "a red fox"]).args(small).args(args).assert().success();
        output.get_output().clone()
    };
    let plain = render(&["-o", "-"]).stdout;
    assert!(plain == render(&["-o", "-", "--cache", "1e-9"]).stdout, "nothing is that near");
    let told = render(&["--cache", "1", "-o", "out.y4m", "--progress", "json", "--json"]);
    let stderr = String::from_utf8(told.stderr).expect("stderr is text");
    assert!(stderr.contains(r#"{"event":"cached","skipped":6,"calls":8}"#), "{stderr}");
    let told: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!(told["recipe"]["passes"][0]["sampling"]["cache"], json!(1.0));
    let read = |name: &str| fs::read(bench.path(name)).expect("the file is there");
    assert!(read("out.y4m") != plain);
    render(&["--cache", "1", "-o", "out.mp4"]);
    bench.sora(&["gen", "--recipe", "out.mp4", "-o", "again.mp4"]).assert().success();
    assert!(read("out.mp4") == read("again.mp4"));
    for wrong in ["0", "1.5", "-0.1", "NaN"] {
        let stderr = bench.refused(&["gen", "fox", "-o", "x.mp4", "--cache", wrong], 2);
        assert!(stderr.contains(&format!("invalid step cache {wrong}: expected a number above 0, up to 1")));
    }
}

#[test]
fn what_does_not_fit_is_refused_before_a_weight_is_read() {
    let bench = Bench::new();
    upsampler(&bench, "up.safetensors");
    let usage = |args: &[&str], words: &[&str]| {
        let mut all = vec!["gen", "fox", "-o", "x.mp4", "--frames", "9"];
        all.extend(args);
        let stderr = bench.refused(&all, 2);
        assert!(words.iter().all(|word| stderr.contains(word)), "{args:?}: {stderr}");
    };
    usage(&["--steps", "2", "--guidance", "1,2,3"], &["guidance list of 3", "2 steps"]);
    usage(&["--stg-scale", "1"], &["--stg-blocks"]);
    usage(&["--stg-scale", "1", "--stg-blocks", "999"], &["STG block 999", "blocks 0 to"]);
    usage(&["--steps", "2", "--steps", "2"], &["--steps given 2 times", "--upsampler"]);
    usage(&["--denoise-strength", "0.5"], &["--latents"]);
    usage(&["--recipe-name", "nothing"], &["recipe `nothing`", "ltxv-2b"]);
    let odd = size(&bench, 3, 4);
    usage(&["--upsampler", "up.safetensors", "--size", &odd], &["invalid width", "expected a multiple of"]);
    fs::write(bench.path("bad.safetensors"), b"no header").expect("a file can be written");
    let bad = ["gen", "fox", "-o", "x.mp4", "--upsampler", "bad.safetensors"];
    let stderr = String::from_utf8(bench.sora(&bad).assert().failure().get_output().stderr.clone());
    assert!(stderr.expect("text").contains("bad.safetensors"));
    assert!(!bench.path("x.mp4").exists());
}
