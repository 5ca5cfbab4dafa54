//! Batches under fire: workers that are killed, stopped or many; disks that are full, folders that go away.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    batch::{events, jobs, outputs},
    batch_films::{denoised, studio},
    bench::Bench,
};

/// A job file of `count` jobs of `steps` steps each.
fn file_of(bench: &Bench, count: usize, steps: usize, more: &str) {
    let head = format!(
        "size = \"64x64\"\nframes = 9\nsteps = {steps}\ncheckpoint_every = 2\noutput = \"{{n:03}}.y4m\"\n{more}\n"
    );
    let prompts = ["a fox", "a dog", "a ship", "a red heart"];
    let job = |n: usize| format!("[[job]]\nprompt = \"{}\"\nseed = {n}\n", prompts[n % prompts.len()]);
    let text = head + &(1..=count).map(job).collect::<String>();
    fs::write(bench.path("jobs.toml"), text).expect("a file can be written");
}

/// A worker on the job file, its events in a file of their own.
fn start(bench: &Bench, folder: &str, log: &str, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args(["batch", "jobs.toml", "--progress=json", "--folder", folder])
        .args(more)
        .stdout(Stdio::null())
        .stderr(File::create(bench.path(log)).expect("a file can be made"))
        .spawn()
        .expect("the program starts")
}

fn log(bench: &Bench, name: &str) -> Vec<Value> {
    events(&fs::read(bench.path(name)).expect("the log is there"))
}

fn signal(child: &Child, signal: i32) {
    let id = i32::try_from(child.id()).expect("a process number");
    // SAFETY: a signal to a child that hasn't been waited for.
    assert_eq!(unsafe { libc::kill(id, signal) }, 0);
}

/// Waits until a log tells of something.
fn wait_for(bench: &Bench, name: &str, found: impl Fn(&Value) -> bool) {
    let begun = Instant::now();
    while !log(bench, name).iter().any(&found) {
        assert!(begun.elapsed() < Duration::from_secs(120), "nothing of the kind in {name}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_step(event: &Value, step: u64) -> bool {
    event["event"] == "progress" && event["phase"] == "denoise" && event["done"] == step
}

/// What an undisturbed run leaves, and how long it takes.
fn undisturbed(bench: &Bench) -> (BTreeMap<String, Vec<u8>>, Duration) {
    let begun = Instant::now();
    let status = start(bench, "calm", "calm.log", &[]).wait().expect("the program ends");
    assert!(status.success(), "{:?}", log(bench, "calm.log").last());
    (contents(bench, "calm"), begun.elapsed())
}

fn contents(bench: &Bench, folder: &str) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| {
        let bytes = fs::read(bench.path(folder).join(&name)).expect("the file is there");
        (name, bytes)
    };
    outputs(bench, folder).into_iter().map(read).collect()
}

fn assert_same(bench: &Bench, folder: &str, calm: &BTreeMap<String, Vec<u8>>) {
    let found = contents(bench, folder);
    assert_eq!(found.keys().collect::<Vec<_>>(), calm.keys().collect::<Vec<_>>());
    for (name, bytes) in calm {
        assert!(found[name] == *bytes, "{name} isn't what an undisturbed run gives");
    }
    let left = fs::read_dir(bench.path(folder).join(".sora/latents")).expect("a folder");
    // What a killed worker was just writing has a hidden name; it goes after a while.
    let left = left
        .filter(|entry| !entry.as_ref().expect("an entry").file_name().as_encoded_bytes().starts_with(b"."));
    assert_eq!(left.count(), 0, "latents of finished jobs are left");
}

/// Kills a worker at `kills` random moments and starts another each time.
fn chaos(count: usize, steps: usize, kills: usize) {
    let bench = Bench::new();
    file_of(&bench, count, steps, "");
    let (calm, time) = undisturbed(&bench);
    // A small generator: the moments are the same each time, what they hit is not.
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as f64 / u64::MAX as f64
    };
    let mut runs = Vec::new();
    let mut killed = 0;
    loop {
        let name = format!("{}.log", runs.len());
        let mut child = start(&bench, "storm", &name, &[]);
        if killed < kills {
            thread::sleep(time.mul_f64(random() * 1.6 / kills as f64) + Duration::from_millis(30));
            child.kill().expect("the program can be killed");
        }
        let status = child.wait().expect("the program ends");
        runs.push(log(&bench, &name));
        if killed == kills {
            assert!(status.success(), "{:?}", runs.last().and_then(|run| run.last()));
            break;
        }
        killed += 1;
    }
    assert_same(&bench, "storm", &calm);
    // Each job was done once, and a job that was cut went on from what was saved.
    let mut saved: BTreeMap<u64, u64> = BTreeMap::new();
    let mut done: BTreeMap<u64, usize> = BTreeMap::new();
    let (mut starts, mut resumed) = (0, 0);
    for run in &runs {
        let mut job = 0;
        for event in run {
            if event["event"] == "job" && event["state"] == "started" {
                job = event["job"].as_u64().expect("a number");
                starts += 1;
            } else if event["event"] == "job" && event["state"] == "done" {
                *done.entry(job).or_default() += 1;
            } else if event["event"] == "saved" {
                saved.insert(job, event["step"].as_u64().expect("a number"));
            } else if event["event"] == "progress" && event["phase"] == "denoise" {
                let step = event["done"].as_u64().expect("a number");
                let before = saved.get(&job).copied().unwrap_or(0);
                assert!(step >= before, "job {job} does step {step} again, {before} was saved");
                resumed += usize::from(step == before && before > 0 && step < steps as u64);
            }
        }
    }
    assert!(done.values().all(|times| *times == 1), "done twice: {done:?}");
    assert!(starts <= count + kills, "{starts} starts of {count} jobs with {kills} kills");
    println!(
        "{count} jobs, {kills} kills, {starts} starts, {resumed} steps gone on from, undisturbed {time:?}"
    );
}

#[test]
fn killed_workers_lose_nothing() {
    chaos(24, 4, 5);
}

#[test]
#[ignore = "needs five minutes: 200 jobs, 20 kills"]
fn killed_workers_lose_nothing_of_a_long_batch() {
    chaos(200, 4, 20);
}

#[test]
fn two_and_four_workers_do_each_job_once() {
    let bench = Bench::new();
    file_of(&bench, 12, 2, "");
    let (calm, _) = undisturbed(&bench);
    for workers in [2, 4] {
        let folder = format!("{workers}");
        let names: Vec<String> = (0..workers).map(|index| format!("{workers}-{index}.log")).collect();
        let children: Vec<Child> =
            names.iter().map(|name| start(&bench, &folder, name, &["--threads=1"])).collect();
        for mut child in children {
            assert!(child.wait().expect("the program ends").success());
        }
        let done: Vec<Vec<u64>> = names.iter().map(|name| jobs(&log(&bench, name), "done")).collect();
        assert!(done.iter().filter(|done| !done.is_empty()).count() > 1, "one worker did all: {done:?}");
        let mut all = done.concat();
        all.sort_unstable();
        assert_eq!(all, (1..=12).collect::<Vec<_>>());
        assert_same(&bench, &folder, &calm);
    }
}

#[test]
fn a_worker_that_was_stopped_too_long_loses_its_job() {
    let bench = Bench::new();
    file_of(&bench, 3, 10, "");
    let (calm, _) = undisturbed(&bench);
    let mut slow = start(&bench, "out", "slow.log", &["--lease=2"]);
    wait_for(&bench, "slow.log", |event| is_step(event, 4));
    signal(&slow, libc::SIGSTOP);
    let mut quick = start(&bench, "out", "quick.log", &["--lease=2"]);
    assert!(quick.wait().expect("the program ends").success());
    let done = jobs(&log(&bench, "quick.log"), "done");
    assert!(done.contains(&1), "the job was not taken over: {done:?}");
    assert_same(&bench, "out", &calm);
    signal(&slow, libc::SIGCONT);
    assert!(slow.wait().expect("the program ends").success());
    let told = log(&bench, "slow.log");
    assert_eq!(jobs(&told, "lost"), [1]);
    assert!(jobs(&told, "done").is_empty());
    assert_same(&bench, "out", &calm);
}

#[test]
fn a_polite_end_gives_the_job_back() {
    let bench = Bench::new();
    file_of(&bench, 2, 10, "");
    let (calm, _) = undisturbed(&bench);
    let mut child = start(&bench, "out", "a.log", &[]);
    wait_for(&bench, "a.log", |event| is_step(event, 3));
    signal(&child, libc::SIGTERM);
    assert_eq!(child.wait().expect("the program ends").code(), Some(130));
    assert_eq!(jobs(&log(&bench, "a.log"), "stopped"), [1]);
    assert!(start(&bench, "out", "b.log", &[]).wait().expect("the program ends").success());
    let again = log(&bench, "b.log");
    assert!(!again.iter().take_while(|e| e["state"] != "done").any(|e| is_step(e, 1) || is_step(e, 2)));
    assert_same(&bench, "out", &calm);
}

#[test]
fn a_killed_film_goes_on_with_the_shot_that_was_cut() {
    let bench = studio("[[job]]\nstoryboard = \"film.toml\"\noutput = \"film.y4m\"\n");
    let film = fs::read_to_string(bench.path("film.toml")).expect("there").replace("steps = 2", "steps = 12");
    fs::write(bench.path("film.toml"), film).expect("written");
    assert!(start(&bench, "calm", "calm.log", &[]).wait().expect("the program ends").success());
    let mut child = start(&bench, "out", "a.log", &[]);
    wait_for(&bench, "a.log", |event| event["message"].to_string().contains("shot 2 of 3"));
    child.kill().expect("the program can be killed");
    child.wait().expect("the program ends");
    assert!(start(&bench, "out", "b.log", &[]).wait().expect("the program ends").success());
    let told = log(&bench, "b.log");
    assert_eq!((denoised(&told), jobs(&told, "done")), (2, vec![1]));
    let read = |name: &str| fs::read(bench.path(name)).expect("the film is there");
    assert!(read("out/film.y4m") == read("calm/film.y4m"), "it is another film");
    let status = bench.sora(&["batch", "status", "out", "--json"]).assert().success().get_output().clone();
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!((&status["jobs"][0]["steps_done"], &status["jobs"][0]["steps"]), (&36.into(), &36.into()));
}

#[test]
fn shares_at_the_same_time_keep_apart() {
    let bench = Bench::new();
    file_of(&bench, 8, 2, "");
    let (calm, _) = undisturbed(&bench);
    let log_of = |share: usize| format!("{share}.log");
    let shares = 1..=4;
    let workers: Vec<Child> = shares
        .clone()
        .map(|share| start(&bench, "out", &log_of(share), &["--shard", &format!("{share}/4"), "--retries=0"]))
        .collect();
    for mut worker in workers {
        assert!(worker.wait().expect("the program ends").success());
    }
    for share in shares {
        let done = jobs(&log(&bench, &log_of(share)), "done");
        assert_eq!(done, [share as u64, share as u64 + 4]);
    }
    assert_same(&bench, "out", &calm);
}

#[test]
fn ten_jobs_cost_one_load() {
    let bench = Bench::new();
    file_of(&bench, 10, 8, "");
    let begun = Instant::now();
    let args = ["batch", "jobs.toml", "--json", "--size=128x128", "--progress=none"];
    // The file's own size counts more than the command line's: take it out.
    let text = fs::read_to_string(bench.path("jobs.toml")).expect("there").replace("size = \"64x64\"\n", "");
    fs::write(bench.path("jobs.toml"), text).expect("written");
    let output = bench.sora(&args).assert().success().get_output().clone();
    let whole = begun.elapsed().as_secs_f64();
    let clips = events(&output.stdout);
    let seconds = |clip: &Value, phase: &str| clip["seconds"][phase].as_f64().unwrap_or(0.0);
    let work: f64 = clips.iter().map(|clip| seconds(clip, "denoise") + seconds(clip, "decode")).sum();
    assert_eq!(clips.len(), 10);
    println!(
        "ten jobs: {whole:.2} s in all, {work:.2} s of denoising and decoding, ratio {:.3}",
        whole / work
    );
    assert!(whole <= 1.2 * work, "{whole} s for {work} s of work");
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_too_large_fails_alone_and_its_latents_are_kept() {
    let bench = Bench::new();
    file_of(&bench, 2, 2, "");
    let text = fs::read_to_string(bench.path("jobs.toml")).expect("there");
    // The second job's frames don't fit under the limit, the first one's do.
    fs::write(bench.path("jobs.toml"), format!("{text}frames = 97\n")).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
    command.current_dir(bench.path("")).args(["batch", "jobs.toml", "--progress=json", "--retries=0"]);
    // SAFETY: both calls are safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 480 << 10, rlim_max: 480 << 10 };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        });
    }
    let output = command.output().expect("the program runs");
    let told = events(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{told:?}");
    assert_eq!((jobs(&told, "done"), jobs(&told, "failed")), (vec![1], vec![2]));
    assert!(
        told.iter().any(|e| e["state"] == "failed" && e["error"].to_string().contains("File too large")),
        "{told:?}"
    );
    assert_eq!(outputs(&bench, "jobs"), ["001.json", "001.y4m"]);
    bench.sora(&["batch", "retry", "jobs.toml"]).assert().success();
    let output =
        bench.sora(&["batch", "jobs.toml", "--progress=json"]).assert().success().get_output().clone();
    assert!(!events(&output.stderr).iter().any(|event| is_step(event, 1)), "the job began anew");
    assert_eq!(outputs(&bench, "jobs").len(), 4);
}

/// What makes a program see a small disk; see the C file.
#[cfg(target_os = "linux")]
fn small_disk(bench: &Bench) -> std::path::PathBuf {
    let (source, library) = ("tests/cli/full_disk.c", bench.path("full_disk.so"));
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(compiler.status().expect("a C compiler, as the build has one").success());
    library
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_fails_one_job_and_the_others_go_on() {
    let bench = Bench::new();
    let library = small_disk(&bench);
    file_of(&bench, 3, 2, "");
    // The first job's frames are 19 MB, the others' 55 kB.
    let text = fs::read_to_string(bench.path("jobs.toml")).expect("there");
    let text = text.replacen("seed = 1\n", "seed = 1\nupscale = \"1200x1200\"\n", 1);
    fs::write(bench.path("jobs.toml"), text).expect("written");
    fs::create_dir(bench.path("jobs")).expect("a folder");
    let folder = bench.path("jobs").canonicalize().expect("the folder is there");
    let run = |mib: u64| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
        command
            .current_dir(bench.path(""))
            .args(["batch", "jobs.toml", "--progress=json", "--retries=0"])
            .env("LD_PRELOAD", &library)
            .env("FULL_BELOW", &folder)
            .env("FULL_BYTES", (mib << 20).to_string());
        command.output().expect("the program runs")
    };
    let output = run(18);
    let told = events(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{told:?}");
    assert_eq!((jobs(&told, "done"), jobs(&told, "failed")), (vec![2, 3], vec![1]));
    let failed = told.iter().find(|event| event["state"] == "failed").expect("a failure");
    let error = failed["error"].as_str().expect("a text");
    assert!(error.contains("jobs/001.y4m") && error.contains("No space left on device"), "{error}");
    assert_eq!(outputs(&bench, "jobs"), ["002.json", "002.y4m", "003.json", "003.y4m"]);
    // With less room than a job may need, none is begun.
    bench.sora(&["batch", "retry", "jobs.toml"]).assert().success();
    let output = run(4);
    let told = events(&output.stderr);
    assert_eq!((output.status.code(), jobs(&told, "started")), (Some(4), vec![]));
    let last = told.last().expect("an event").to_string();
    assert!(last.contains("can't write jobs") && last.contains("free"), "{last}");
    // With room, what was saved is decoded.
    let output =
        bench.sora(&["batch", "jobs.toml", "--progress=json"]).assert().success().get_output().clone();
    assert!(!events(&output.stderr).iter().any(|event| is_step(event, 1)), "the job began anew");
    assert_eq!(outputs(&bench, "jobs").len(), 6);
}

#[test]
fn a_folder_that_goes_away_is_made_again_or_told_of() {
    let bench = Bench::new();
    file_of(&bench, 3, 8, "");
    let text =
        fs::read_to_string(bench.path("jobs.toml")).expect("there").replace("{n:03}.y4m", "clips/{n}.y4m");
    fs::write(bench.path("jobs.toml"), text).expect("written");
    let mut child = start(&bench, "out", "a.log", &[]);
    wait_for(&bench, "a.log", |event| event["state"] == "done");
    fs::remove_dir_all(bench.path("out/clips")).expect("removed");
    assert!(child.wait().expect("the program ends").success());
    assert_eq!(outputs(&bench, "out/clips"), ["2.json", "2.y4m", "3.json", "3.y4m"]);
    // What was there before is made again.
    assert!(start(&bench, "out", "b.log", &[]).wait().expect("the program ends").success());
    assert_eq!(jobs(&log(&bench, "b.log"), "done"), [1]);
    // Without its journal a batch can't go on, and says so.
    let mut child = start(&bench, "gone", "c.log", &[]);
    wait_for(&bench, "c.log", |event| is_step(event, 2));
    fs::remove_dir_all(bench.path("gone")).expect("removed");
    assert_eq!(child.wait().expect("the program ends").code(), Some(4));
    let told = log(&bench, "c.log");
    let last = told.last().expect("an event").to_string();
    assert!(last.contains("journal.sqlite") && last.contains("it was removed while the batch ran"), "{last}");
}

#[test]
fn files_dropped_into_a_folder_are_taken() {
    let bench = Bench::new();
    fs::create_dir(bench.path("inbox")).expect("a folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sora"))
        .current_dir(bench.path(""))
        .args([
            "batch",
            "--watch",
            "inbox",
            "--folder",
            "out",
            "--progress",
            "json",
            "--size=64x64",
            "--frames=1",
            "--steps=2",
            "--seed=1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("another line").expect("text");
    fs::write(bench.path("inbox/bad.toml"), "[[job]\n").expect("a file");
    fs::write(bench.path("inbox/one.txt"), "a fox\n").expect("a file");
    assert_eq!(next(), "out/one-0001-a-fox-1.mp4");
    fs::write(bench.path("inbox/two.jsonl"), "{\"prompt\": \"a dog\"}\n").expect("a file");
    assert_eq!(next(), "out/two-0001-a-dog-1.mp4");
    signal(&child, libc::SIGINT);
    assert_eq!(child.wait().expect("the program ends").code(), Some(130));
}
