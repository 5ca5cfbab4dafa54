//! Batches whose jobs are more than clips from words: films, clips that go on.

use std::fs;

use predicates::{prelude::*, str::contains};
use serde_json::Value;

use crate::{
    batch::{events, jobs, outputs},
    bench::Bench,
};

/// Three small shots; the last one holds a picture.
pub const FILM: &str = r#"
[film]
size = "64x64"
fps = 8
steps = 2
guidance = 1
duration = "1s"

[[shots]]
prompt = "a fox"

[[shots]]
prompt = "a forest"

[[shots]]
prompt = "snow"
reference = "snow.png"
"#;

const JOBS: &str = r#"size = "64x64"
frames = 1
steps = 3
output = "{n:02}-{seed}.png"
[[job]]
prompt = "a fox"
seed = 1
[[job]]
storyboard = "film.toml"
output = "{slug}.y4m"
"#;

fn write(bench: &Bench, name: &str, text: &str) {
    fs::write(bench.path(name), text).expect("a file can be written");
}

/// A folder with a film file, the picture that it needs, and a job file.
pub fn studio(jobs: &str) -> Bench {
    let bench = Bench::new();
    let picture = ["gen", "snow", "--size", "64x64", "--frames", "1", "--steps", "1", "-o", "snow.png"];
    bench.sora(&picture).args(["--seed", "1"]).assert().success();
    write(&bench, "film.toml", FILM);
    write(&bench, "jobs.toml", jobs);
    bench
}

/// Runs the batch, and gives its events.
fn run(bench: &Bench) -> Vec<Value> {
    let mut command = bench.sora(&["batch", "jobs.toml", "--progress=json"]);
    events(&command.assert().success().get_output().stderr)
}

/// How many clips or shots were denoised.
pub fn denoised(events: &[Value]) -> usize {
    events.iter().filter(|event| event["event"] == "started" && event["phase"] == "denoise").count()
}

#[test]
fn a_film_is_a_job_like_others() {
    let bench = studio(JOBS);
    let check = bench.sora(&["batch", "jobs.toml", "--check", "--dry-run"]).assert().success();
    let told = String::from_utf8_lossy(&check.get_output().stdout).into_owned();
    assert!(told.contains("    2  pending  jobs/film.y4m\n") && told.contains("steps       9\n"), "{told}");
    let first = run(&bench);
    assert_eq!((jobs(&first, "done"), denoised(&first)), (vec![1, 2], 4));
    let names = ["01-1.json", "01-1.png", "film.json", "film.y4m", "film.y4m.shots"];
    assert_eq!(outputs(&bench, "jobs"), names);
    bench.sora(&["storyboard", "film.toml", "-o", "alone.y4m"]).assert().success();
    let read = |name: &str| fs::read(bench.path(name)).expect("the film is there");
    assert!(read("alone.y4m") == read("jobs/film.y4m"), "the batch makes another film");
    let recipe: Value = serde_json::from_slice(&read("jobs/film.json")).expect("JSON");
    assert_eq!(recipe["shots"].as_array().map(Vec::len), Some(3));
    let told = bench.refused(&["gen", "--recipe", "jobs/film.json"], 2);
    assert!(told.contains("a film of 3 shots") && told.contains("sora storyboard"), "{told}");
    // What is done is skipped, with its journal or without.
    assert!(jobs(&run(&bench), "started").is_empty());
    let status = bench.sora(&["batch", "status", "jobs.toml", "--all"]).assert().success();
    status.stdout(contains("2 of 2 jobs are done").and(contains("2  done      film.y4m")));
    bench.sora(&["batch", "clean", "jobs.toml", "--all"]).assert().success();
    assert!(jobs(&run(&bench), "started").is_empty());
    // A shot that has changed is rendered, and a picture counts as well as a word.
    write(&bench, "film.toml", &FILM.replace("a forest", "a wood"));
    let again = run(&bench);
    assert_eq!((jobs(&again, "done"), denoised(&again)), (vec![2], 1));
    fs::copy(bench.path("jobs/01-1.png"), bench.path("snow.png")).expect("another picture");
    let again = run(&bench);
    assert_eq!((jobs(&again, "done"), denoised(&again)), (vec![2], 1));
}

#[test]
fn a_film_with_a_mistake_names_both_files() {
    let bench = studio(JOBS);
    let refused = |jobs: &str| {
        write(&bench, "jobs.toml", jobs);
        bench.refused(&["batch", "jobs.toml", "--check"], 2)
    };
    let told = refused(&format!("{JOBS}prompt = \"a fox\"\n"));
    assert!(told.contains("jobs.toml:11:1: key `prompt`") && told.contains("film file"), "{told}");
    let told = refused(&JOBS.replace("film.toml", "none.toml"));
    assert!(told.contains("jobs.toml:9:1: key `storyboard`: can't read none.toml"), "{told}");
    let told = refused(&JOBS.replace("output = \"{slug}.y4m\"\n", ""));
    assert!(told.contains("key `output`: invalid place `{seed}`") && told.contains("of its own"), "{told}");
    let told = refused(&JOBS.replace("{slug}.y4m", "{slug}.png"));
    assert!(told.contains("a film is no still picture"), "{told}");
    write(&bench, "film.toml", &FILM.replace("duration =", "duratoin ="));
    let told = refused(JOBS);
    assert!(told.contains("jobs.toml:9:1: key `storyboard`"), "{told}");
    assert!(told.contains("film.toml") && told.contains("did you mean `duration`?"), "{told}");
    // The others go on.
    bench.sora(&["batch", "jobs.toml"]).assert().code(2);
    assert_eq!(outputs(&bench, "jobs"), ["01-1.json", "01-1.png"]);
}

#[test]
fn clips_go_on_as_jobs() {
    let bench = Bench::new();
    let clip = ["gen", "waves", "--size", "64x64", "--frames", "9", "--steps", "2", "--seed", "3"];
    bench.sora(&clip).args(["--crf", "12", "-o", "clip.mkv"]).assert().success();
    let jobs_of = |more: &str| {
        format!(
            "prompt = \"waves\"\nsteps = 2\nseed = 5\noutput = \"{{n}}.mkv\"\ncrf = 12\n\
             [[job]]\ninit_video = \"clip.mkv\"\nextend = [\"forward\", \"both\"]\nframes = 8\n\
             [[job]]\ninit_video = \"clip.mkv\"\nextend = \"backward\"\nonly_new = true\nduration = \"1s\"\ncontext = 5\n\
             [[job]]\nloop = true\nsize = \"64x64\"\nframes = 9\n{more}"
        )
    };
    write(&bench, "jobs.toml", &jobs_of(""));
    let check = bench.sora(&["batch", "jobs.toml", "--check", "--dry-run", "--json"]).assert().success();
    let told = String::from_utf8_lossy(&check.get_output().stdout).into_owned();
    let last: Value = serde_json::from_str(told.lines().last().expect("a line")).expect("JSON");
    assert_eq!((&last["jobs"], &last["models"]), (&4.into(), &1.into()));
    let first = run(&bench);
    assert_eq!(jobs(&first, "done"), [1, 2, 3, 4]);
    let planned = last["steps"].as_u64().expect("a number") as usize;
    assert_eq!(denoised(&first) * 2, planned, "the plan and the run differ in steps");
    // The same as `sora gen` makes of it.
    let read = |name: &str| fs::read(bench.path(name)).expect("the clip is there");
    let alone =
        ["gen", "waves", "--init-video", "clip.mkv", "--extend", "both", "--frames", "8", "--steps", "2"];
    bench.sora(&alone).args(["--seed", "5", "--crf", "12", "-o", "alone.mkv"]).assert().success();
    assert!(read("alone.mkv") == read("jobs/2.mkv"), "the batch makes another clip");
    let recipe: Value = serde_json::from_slice(&read("jobs/3.json")).expect("JSON");
    assert_eq!(
        (&recipe["woven"]["context"], &recipe["woven"]["pattern"]),
        (&5.into(), &"extend backward".into())
    );
    assert!(jobs(&run(&bench), "started").is_empty());
    // Another clip under the same name is another job.
    fs::copy(bench.path("jobs/4.mkv"), bench.path("clip.mkv")).expect("another clip");
    assert_eq!(jobs(&run(&bench), "done"), [1, 2, 3]);
    // What can't be is told with its place.
    let refused = |more: &str| {
        write(&bench, "jobs.toml", &jobs_of(more));
        bench.refused(&["batch", "jobs.toml", "--check"], 2)
    };
    let told = refused("upscale = \"2x\"\n");
    assert!(told.contains("jobs.toml:20:1: key `upscale`: invalid --upscale"), "{told}");
    let told = refused("[[job]]\nextend = \"forward\"\n");
    assert!(told.contains("jobs.toml:20:1") && told.contains("--init-video"), "{told}");
    let told = refused("[[job]]\ncontext = 5\n");
    assert!(told.contains("jobs.toml:21:1: key `context`"), "{told}");
    let told = refused("[[job]]\ninit_video = \"none.mp4\"\nextend = \"forward\"\n");
    assert!(told.contains("jobs.toml:20:1") && told.contains("none.mp4"), "{told}");
}

#[cfg(unix)]
#[test]
fn a_job_that_goes_on_with_a_clip_keeps_its_passages() {
    let bench = Bench::new();
    crate::visual::clip(&bench, "clip.mkv", 12);
    let shared = "prompt = \"waves\"\nsteps = 3\nseed = 7\ncontext = 1\nwindow = 9\noutput = \"{n}.y4m\"\n";
    let jobs = "[[job]]\ninit_video = \"clip.mkv\"\nextend = \"both\"\nframes = 14\n\
                [[job]]\nloop = true\nsize = \"64x64\"\nframes = 9\n";
    write(&bench, "jobs.toml", &format!("{shared}{jobs}"));
    let batch = ["batch", "jobs.toml", "--checkpoint-every", "1"];
    let saved = r#""event":"saved""#;
    // Within the second passage of the first job.
    crate::going_on::stopped(&bench, &batch, saved, 5, libc::SIGKILL);
    let again = bench.sora(&[&batch[..], &["--progress=json"]].concat()).assert().success();
    again.stderr(contains("going on after 1 passage"));
    let alone = ["gen", "waves", "--steps", "3", "--seed", "7", "--context", "1", "--window", "9"];
    let both = ["--init-video", "clip.mkv", "--extend", "both", "--frames", "14", "-o", "1.y4m"];
    bench.sora(&[&alone[..], &both].concat()).assert().success();
    let looped = ["--loop", "--size", "64x64", "--frames", "9", "-o", "2.y4m"];
    bench.sora(&[&alone[..], &looped].concat()).assert().success();
    for name in ["1.y4m", "2.y4m"] {
        let read = |path: String| fs::read(bench.path(&path)).expect("the clip is there");
        assert!(read(name.to_owned()) == read(format!("jobs/{name}")), "{name} differs");
    }
    // A program that was killed can't remove the hidden file it was writing; a later run does.
    let left = fs::read_dir(bench.path("jobs/.sora/latents")).expect("a folder");
    let names = left.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let left: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}
