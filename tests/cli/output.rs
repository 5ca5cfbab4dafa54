//! What a render leaves: files, stdout, stderr, the same bytes every time.

use std::fs;

use predicates::{prelude::*, str::contains};
use serde_json::{Value, json};

use crate::bench::{Bench, copy_of_mini, edit};

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("one JSON object")
}

#[test]
fn stdout_is_the_path_and_nothing_else_is_left() {
    let bench = Bench::new();
    bench.generate(&["-o", "out.mp4"]).assert().success().stdout("out.mp4\n").stderr(contains("denoising"));
    assert_eq!(bench.names(), ["out.mp4"]);
    let file = fs::read(bench.path("out.mp4")).expect("the file is there");
    let holds = |text: &str| file.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("\"prompt\":\"a red fox\"") && holds("\"seed\":7"), "the recipe stands in the file");
}

#[test]
fn quiet_is_quiet() {
    Bench::new().generate(&["-o", "out.gif", "--quiet"]).assert().success().stdout("out.gif\n").stderr("");
    let assert = Bench::new().generate(&["-o", "out.webm", "--progress", "none"]).assert().success();
    assert.stdout("out.webm\n").stderr("");
}

#[test]
fn progress_can_be_json() {
    let bench = Bench::new();
    let output =
        bench.generate(&["-o", "out.mp4", "--progress", "json"]).assert().success().get_output().clone();
    let stderr = String::from_utf8(output.stderr).expect("stderr is text");
    let events: Vec<Value> = stderr.lines().map(|line| json_of(line.as_bytes())).collect();
    let has = |name: &str, phase: &str| events.iter().any(|e| e["event"] == name && e["phase"] == phase);
    assert!(has("started", "denoise") && has("progress", "denoise") && has("finished", "decode"), "{stderr}");
    assert_eq!(events.last().map(|event| event["event"].clone()), Some("written".into()));
    let output = bench.sora(&["gen", "", "--progress", "json"]).assert().code(2).get_output().clone();
    let error = json_of(&output.stderr);
    assert_eq!((&error["event"], &error["exit_code"]), (&"error".into(), &2.into()));
}

#[test]
fn json_says_all_about_a_clip() {
    let bench = Bench::new();
    let args = ["-o", "out.mp4", "--json", "--contact-sheet", "sheet.png", "--save-latents", "l.safetensors"];
    let output = bench.generate(&args).assert().success().get_output().clone();
    let clip = json_of(&output.stdout);
    assert_eq!(clip["path"], "out.mp4");
    assert_eq!(clip["contact_sheet"], "sheet.png");
    assert_eq!(clip["latents"], "l.safetensors");
    assert_eq!(clip["recipe"]["width"], 64);
    assert_eq!(clip["recipe"]["frames"], 9);
    assert_eq!(clip["recipe"]["seed"], 7);
    assert_eq!(clip["recipe"]["dtype"], "f32");
    assert!(clip["seconds"]["denoise"].is_f64() && clip["health"]["verdict"].is_string(), "{clip}");
    assert_eq!(bench.names(), ["l.safetensors", "out.mp4", "sheet.png"]);
}

#[test]
fn a_seed_that_was_drawn_is_told_and_kept() {
    let bench = Bench::new();
    let args = ["gen", "a red fox!", "--size", "64x64", "--frames", "9", "--steps", "2", "--json"];
    let output = bench.sora(&args).assert().success().get_output().clone();
    let seed = json_of(&output.stdout)["recipe"]["seed"].as_u64().expect("a seed");
    let stderr = String::from_utf8(output.stderr).expect("stderr is text");
    assert!(stderr.contains(&format!("seed {seed}")), "{stderr}");
    assert_eq!(bench.names(), [format!("sora-a-red-fox-{seed}.mp4")]);
}

#[test]
fn the_same_seed_gives_the_same_frames() {
    let bench = Bench::new();
    let first = bench.frames(&[]);
    assert!(first == bench.frames(&["--threads", "1"]), "one thread makes other frames");
    assert!(first == bench.frames(&["--threads", "2"]), "two threads make other frames");
    assert!(first != bench.frames(&["--guidance", "1"]), "guidance does nothing");
    assert!(bench.names().is_empty(), "stdout leaves no file");
}

#[test]
fn the_same_seed_gives_the_same_file() {
    let bench = Bench::new();
    for name in ["a.mp4", "b.mp4"] {
        bench.generate(&["-o", name]).assert().success();
    }
    let read = |name| fs::read(bench.path(name)).expect("the file is there");
    assert!(read("a.mp4") == read("b.mp4"));
}

#[test]
fn several_videos_count_their_seeds() {
    let bench = Bench::new();
    let args = ["-o", "out.y4m", "--num-videos", "2"];
    bench.generate(&args).assert().success().stdout("out-1.y4m\nout-2.y4m\n");
    assert_eq!(bench.names(), ["out-1.y4m", "out-2.y4m"]);
    let read = |name| fs::read(bench.path(name)).expect("the file is there");
    assert!(read("out-1.y4m") == bench.frames(&[]), "the first has the seed");
    assert!(read("out-1.y4m") != read("out-2.y4m"), "the second has another");
}

#[test]
fn warnings_of_one_video_are_not_the_next_ones() {
    let prompt = "a red fox runs through the snow ".repeat(60);
    let bench = Bench::new();
    let args =
        ["gen", &prompt, "--size", "64x64", "--frames", "1", "--steps", "2", "-o", "out.png", "--json"];
    let output = bench.sora(&args).args(["--num-videos", "2"]).assert().success().get_output().clone();
    let clips: Vec<Value> =
        output.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(json_of).collect();
    assert_eq!(clips.len(), 2);
    for clip in clips {
        let warnings = clip["recipe"]["warnings"].as_array().expect("a list");
        let cut = warnings.iter().filter(|w| w.to_string().contains("not heard")).count();
        assert_eq!(cut, 1, "{warnings:?}");
    }
}

#[test]
fn latents_can_be_decoded_later() {
    let bench = Bench::new();
    let frames = bench.frames(&["--save-latents", "fox.latents.safetensors"]);
    bench.sora(&["decode", "fox.latents.safetensors", "-o", "-"]).assert().success().stdout(frames);
    bench.sora(&["decode", "fox.latents.safetensors"]).assert().success().stdout("fox.mp4\n");
}

#[test]
fn a_still_picture_needs_no_frame_count() {
    let bench = Bench::new();
    let args = ["gen", "fox", "--size", "64x64", "--steps", "2", "--seed", "1", "-o", "fox.png", "--json"];
    let output = bench.sora(&args).assert().success().get_output().clone();
    assert_eq!(json_of(&output.stdout)["recipe"]["frames"], 1);
}

#[test]
fn wishes_become_what_the_model_can_do() {
    let bench = Bench::new();
    let args =
        ["gen", "fox", "-a", "2:1", "-d", "1s", "--fps", "8", "--steps", "2", "-o", "out.mp4", "--json"];
    let assert =
        bench.sora(&args).assert().success().stderr(contains("2:1 becomes").and(contains("1 s becomes 9")));
    let recipe = &json_of(&assert.get_output().stdout)["recipe"];
    assert_eq!(recipe["frames"], 9);
    assert_eq!(recipe["width"].as_u64(), recipe["height"].as_u64().map(|height| height * 2));
}

#[test]
fn a_prompt_can_come_from_stdin() {
    let bench = Bench::new();
    let args = ["gen", "-", "--size", "64x64", "--frames", "9", "--steps", "2", "--seed", "7", "-o", "-"];
    let stdin = bench.sora(&args).write_stdin("a red fox\n").assert().success().get_output().clone();
    assert!(stdin.stdout == bench.frames(&[]));
}

#[test]
fn a_prompt_too_long_is_cut_and_says_so() {
    let prompt = "a red fox runs through the snow ".repeat(60);
    let args = ["gen", &prompt, "--size", "64x64", "--frames", "1", "--steps", "2", "-o", "out.png"];
    Bench::new()
        .sora(&args)
        .assert()
        .success()
        .stderr(contains("warning: ").and(contains("this part is not heard")));
}

#[test]
fn an_early_look_is_shown() {
    let bench = Bench::new();
    copy_of_mini(&bench.path("model"));
    let channels = json_of(&fs::read(bench.path("model/vae/config.json")).expect("the file is there"));
    let channels = channels["latent_channels"].as_u64().expect("a number") as usize;
    edit(&bench.path("model/sora.json"), |json| {
        json["latent_rgb"] = json!({ "weight": vec![vec![0.1; channels]; 3], "bias": [0.0, 0.0, 0.0] });
    });
    let assert = bench.generate(&["--model", "model", "-o", "out.mp4", "--preview"]).assert().success();
    assert.stderr(contains("preview after step 1: out.mp4.preview.gif"));
    assert_eq!(bench.names(), ["model", "out.mp4", "out.mp4.preview.gif"]);
}

#[test]
fn frames_can_be_enlarged() {
    let bench = Bench::new();
    let args = ["-o", "out.mp4", "--upscale", "160x120", "--json", "--save-latents", "l.safetensors"];
    let assert = bench.generate(&args).assert().success().stderr(contains("is cut off at top and bottom"));
    let clip = json_of(&assert.get_output().stdout);
    assert_eq!(clip["recipe"]["upscale"], json!({ "width": 160, "height": 120 }));
    assert_eq!((&clip["recipe"]["width"], &clip["recipe"]["height"]), (&64.into(), &64.into()));
    let video = sora::media::read_clip(&bench.path("out.mp4")).expect("a clip");
    assert_eq!((video.width(), video.height()), (160, 120));
    // The latents remember the size; a flag overrides it.
    bench.sora(&["decode", "l.safetensors", "-o", "again.mp4"]).assert().success();
    let read = |name| fs::read(bench.path(name)).expect("the file is there");
    assert!(read("out.mp4").len().abs_diff(read("again.mp4").len()) < 64);
    let assert = bench.sora(&["decode", "l.safetensors", "-o", "-", "--upscale", "2x"]).assert().success();
    assert!(assert.get_output().stdout.starts_with(b"YUV4MPEG2 W128 H128 "));
}

#[test]
fn a_video_can_be_made_again_from_its_recipe() {
    let bench = Bench::new();
    bench.generate(&["-o", "out.webm"]).assert().success();
    let again =
        bench.sora(&["gen", "--recipe", "out.webm", "-o", "-"]).assert().success().get_output().clone();
    assert!(again.stdout == bench.frames(&[]), "the video is another one");
    bench.generate(&["-o", "bare.y4m"]).assert().success();
    let refused = bench.refused(&["gen", "--recipe", "bare.y4m", "-o", "-"], 2);
    assert!(refused.contains("it has no `comment` tag") && refused.contains("hint: "), "{refused}");
    let refused = bench.refused(&["gen", "--recipe", "out.webm", "--seed", "3"], 2);
    assert!(refused.contains("cannot be used with"), "{refused}");
}

#[test]
fn a_picture_is_denoised_tile_by_tile() {
    let bench = Bench::new();
    let wide = |more: &[&str]| {
        let flags = [
            "gen",
            "a red fox",
            "--size",
            "128x64",
            "--frames",
            "9",
            "--steps",
            "2",
            "--seed",
            "7",
            "-o",
            "-",
        ];
        let output = bench.sora(&flags).args(more).assert().success().get_output().clone();
        output.stdout
    };
    let whole = wide(&[]);
    assert!(whole == wide(&["--tile", "128x64:32"]), "one tile is the whole picture");
    let tiled = wide(&["--tile", "64x64:32"]);
    assert!(tiled.len() == whole.len() && tiled != whole, "tiles see less than the whole");
    let mut refused = bench.generate(&["-o", "out.mp4", "--tile", "64x40"]);
    refused.assert().code(2).stderr(contains("expected sides that are multiples of 16"));
}
