//! What a render will take, and what it took: memory that was forecast, prompts that were encoded before.

use std::fs;

use predicates::{prelude::*, str::contains};
use serde_json::Value;

use crate::bench::{Bench, SMALL, copy_of_mini};

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("one JSON object")
}

#[test]
fn a_plan_names_stages_memory_and_time() {
    let bench = Bench::new();
    let text = contains("reading the prompt").and(contains("denoising")).and(contains("decoding"));
    let plan = bench.sora(&["plan", "--size", "64x64", "--frames", "9"]).assert().success();
    plan.stdout(text.and(contains("it fits")).and(contains("nothing to download")));
    let output = bench.sora(&["plan", "a red fox", "--json"]).assert().success().get_output().clone();
    let plan = json_of(&output.stdout);
    assert_eq!(plan["stages"].as_array().map(Vec::len), Some(3), "{plan}");
    let peak =
        plan["stages"].as_array().expect("a list").iter().filter_map(|s| s["host_bytes"].as_u64()).max();
    assert_eq!(plan["peak_bytes"].as_u64(), peak);
    assert!(plan["seconds"].as_f64().expect("a number") > 0.0 && plan["speed"]["flops"].as_f64() > Some(1e8));
    assert!(bench.names().is_empty(), "a plan leaves nothing");
    bench.refused(&["plan", "--size", "65x64"], 2);
}

#[cfg(target_os = "linux")]
#[test]
fn what_cant_fit_is_planned_all_the_same_and_refused() {
    let bench = Bench::new();
    let script = "ulimit -v 1000000; exec \"$0\" plan --size 2048x2048 --frames 257";
    let mut limited = assert_cmd::Command::new("sh");
    let assert = limited.args(["-c", script, env!("CARGO_BIN_EXE_sora")]).assert().code(5);
    let assert = assert.stdout(contains("it doesn't fit"));
    assert.stderr(contains("MiB are available").and(contains("this would fit: ")));
    assert!(bench.names().is_empty());
}

#[cfg(target_os = "linux")]
#[test]
fn the_peak_of_a_render_is_foreseen() {
    let bench = Bench::new();
    copy_of_mini(&bench.path("model"));
    let clip = ["--size", "384x384", "--frames", "17", "--steps", "1", "--guidance", "1", "--model", "model"];
    let plan = bench.sora(&[["plan", "--json"].as_slice(), &clip].concat()).assert().success();
    let foreseen = json_of(&plan.get_output().stdout)["peak_bytes"].as_f64().expect("a number");
    let args = [["gen", "a red fox", "--seed", "1", "-o", "out.y4m", "-v"].as_slice(), &clip].concat();
    let output = bench.sora(&args).assert().get_output().clone();
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains("memory  "), "the forecast comes first: {told}");
    let line = told.lines().find(|line| line.contains("most memory")).expect("a line");
    let mib: f64 = line.split_whitespace().nth(2).expect("a number").parse().expect("a number");
    let ratio = foreseen / (mib * 1_048_576.0);
    assert!((0.85..1.15).contains(&ratio), "foreseen: {foreseen}, taken: {mib} MiB, ratio {ratio}");
}

#[test]
fn a_prompt_that_was_encoded_before_gives_the_same_bytes() {
    let bench = Bench::new();
    let plain = bench.frames(&["--no-prompt-cache"]);
    assert!(bench.names().is_empty(), "no cache is no cache");
    assert!(plain == bench.frames(&["--prompt-cache", "prompts"]));
    let kept = || {
        let mut names: Vec<_> = fs::read_dir(bench.path("prompts"))
            .expect("a folder")
            .map(|e| e.expect("an entry").path())
            .collect();
        names.sort();
        names
    };
    let first = kept();
    assert_eq!(first.len(), 2, "the prompt and the negative one");
    assert!(plain == bench.frames(&["--prompt-cache", "prompts"]), "from the cache");
    assert_eq!(kept(), first);
    // What is kept is what is used: another model's answer under the same name would show.
    let half = bench.frames(&["--prompt-cache", "prompts", "--dtype", "bf16"]);
    assert!(half != plain && kept().len() == 4);
    // A file that isn't whole is no answer.
    for path in &first {
        fs::write(path, "no safetensors").expect("a file can be written");
    }
    assert!(plain == bench.frames(&["--prompt-cache", "prompts"]), "encoded again");
}

#[test]
fn the_cut_of_a_long_prompt_is_told_from_the_cache_too() {
    let prompt = "a red fox runs through the snow ".repeat(60);
    let bench = Bench::new();
    let args = ["gen", &prompt, "--size", "64x64", "--frames", "1", "--steps", "2", "-o", "out.png"];
    for _ in 0..2 {
        let told = contains("this part is not heard");
        bench.sora(&args).args(["--prompt-cache", "prompts"]).assert().success().stderr(told);
    }
}

#[test]
fn stages_that_stay_loaded_make_the_same_videos() {
    let bench = Bench::new();
    for (name, flags) in [("a.y4m", [].as_slice()), ("b.y4m", &["--keep-loaded"])] {
        let args = [["gen", "a red fox", "-o", name, "--num-videos", "2"].as_slice(), &SMALL, flags].concat();
        bench.sora(&args).assert().success();
    }
    let read = |name: &str| fs::read(bench.path(name)).expect("the file is there");
    assert!(read("a-1.y4m") == read("b-1.y4m") && read("a-2.y4m") == read("b-2.y4m"));
}
