//! Batches: job files, plans, what is skipped, what a mistake or a full disk does to the others.

use std::{fs, path::Path};

use predicates::{prelude::*, str::contains};
use serde_json::Value;

use crate::bench::Bench;

/// Defaults of a job that takes a moment.
pub const QUICK: [&str; 6] = [
    "--size=64x64",
    "--frames=1",
    "--steps=2",
    "--checkpoint-every=1",
    "--output={n:03}.png",
    "--progress=json",
];

/// The names in a batch's folder, but its own place.
pub fn outputs(bench: &Bench, folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(bench.path(folder))
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".sora")
        .collect();
    names.sort();
    names
}

/// The events of a run, by their stderr.
pub fn events(stderr: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(stderr);
    let whole = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    whole.collect()
}

/// The numbers of the jobs that reached a state.
pub fn jobs(events: &[Value], state: &str) -> Vec<u64> {
    let jobs = events.iter().filter(|event| event["event"] == "job" && event["state"] == state);
    jobs.filter_map(|event| event["job"].as_u64()).collect()
}

fn write(bench: &Bench, name: &str, text: &str) {
    fs::write(bench.path(name), text).expect("a file can be written");
}

fn batch(bench: &Bench, args: &[&str]) -> assert_cmd::Command {
    let mut command = bench.sora(&["batch"]);
    // What comes later counts.
    command.args(QUICK).args(args);
    command
}

#[test]
fn a_matrix_is_done_once_and_then_skipped() {
    let bench = Bench::new();
    let text = "output = \"{n:02}-{ink}-{seed}.png\"\n[[job]]\nprompt = \"a fox, {ink}\"\nink = [\"oil\", \"chalk\"]\nseed = [1, 2]\n";
    write(&bench, "jobs.toml", text);
    let mut run =
        bench.sora(&["batch", "jobs.toml", "--size=64x64", "--frames=1", "--steps=2", "--progress=json"]);
    let first = run.assert().success().get_output().clone();
    assert_eq!(
        String::from_utf8_lossy(&first.stdout),
        "jobs/01-oil-1.png\njobs/02-oil-2.png\njobs/03-chalk-1.png\njobs/04-chalk-2.png\n"
    );
    assert_eq!(jobs(&events(&first.stderr), "done"), [1, 2, 3, 4]);
    assert_eq!(outputs(&bench, "jobs").len(), 8);
    let recipe: Value =
        serde_json::from_slice(&fs::read(bench.path("jobs/03-chalk-1.json")).expect("there")).expect("JSON");
    assert_eq!((&recipe["prompt"], &recipe["seed"]), (&"a fox, chalk".into(), &1.into()));
    let again = run.assert().success().get_output().clone();
    assert!(again.stdout.is_empty() && jobs(&events(&again.stderr), "started").is_empty());
    // The recipe gives the same picture.
    bench.sora(&["gen", "--recipe", "jobs/03-chalk-1.json", "-o", "again.png"]).assert().success();
    let same = fs::read(bench.path("again.png")).expect("there")
        == fs::read(bench.path("jobs/03-chalk-1.png")).expect("there");
    assert!(same, "the recipe gives another picture");
    // What changed is made again, and nothing else.
    write(&bench, "jobs.toml", &text.replace("seed = [1, 2]", "seed = [1, 3]"));
    let changed = run.assert().success().get_output().clone();
    assert_eq!(jobs(&events(&changed.stderr), "done"), [2, 4]);
    fs::remove_file(bench.path("jobs/01-oil-1.png")).expect("removed");
    let gone = run.assert().success().get_output().clone();
    assert_eq!(jobs(&events(&gone.stderr), "done"), [1]);
}

#[test]
fn every_format_says_the_same() {
    let bench = Bench::new();
    write(&bench, "a.jsonl", "{\"defaults\": {\"seed\": 5}}\n{\"prompt\": \"a fox\"}\n");
    write(&bench, "b.csv", "prompt,seed\na fox,5\n");
    write(&bench, "c.txt", "# one\na fox\n");
    batch(&bench, &["a.jsonl"]).assert().success();
    batch(&bench, &["b.csv"]).assert().success();
    batch(&bench, &["c.txt", "--seed=5"]).assert().success();
    batch(&bench, &["-", "--folder=d", "--seed=5"]).write_stdin("a fox\n").assert().success();
    let picture = |folder: &str| fs::read(bench.path(folder).join("001.png")).expect("the picture is there");
    for folder in ["b", "c", "d"] {
        assert!(picture("a") == picture(folder), "{folder} is another picture");
    }
}

#[test]
fn a_mistake_names_its_place_and_the_others_go_on() {
    let bench = Bench::new();
    let lines = |bad: &str| -> String {
        let line = |n: usize| if n == 57 { bad.to_owned() } else { format!("{{\"prompt\": \"fox {n}\"}}") };
        (1..=200).map(|n| line(n) + "\n").collect()
    };
    let refused = |bad: &str| {
        write(&bench, "jobs.jsonl", &lines(bad));
        bench.refused(&["batch", "jobs.jsonl", "--check", "--size=64x64", "--frames=1"], 2)
    };
    let told = refused(r#"{"prompt": "fox", "steps": "many"}"#);
    assert!(
        told.contains("error: jobs.jsonl:57:19: key `steps`: invalid option: invalid value 'many'"),
        "{told}"
    );
    assert!(told.contains("1 of 200 jobs can't be done"), "{told}");
    let told = refused(r#"{"prompt": "fox", "stpes": 3}"#);
    assert!(
        told.contains("jobs.jsonl:57:19: key `stpes`") && told.contains("did you mean `steps`?"),
        "{told}"
    );
    let told = refused(r#"{"prompt": "fox", "frames": 4}"#);
    assert!(told.contains("jobs.jsonl:57:19: key `frames`: invalid frame count 4"), "{told}");
    assert!(refused("{\"prompt\": ").contains("jobs.jsonl:57:"));
    write(
        &bench,
        "few.jsonl",
        "{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"fps\": \"x\"}\n{\"prompt\": \"c\"}\n",
    );
    let output = batch(&bench, &["few.jsonl"]).assert().code(2).get_output().clone();
    assert_eq!(jobs(&events(&output.stderr), "done"), [1, 3]);
    assert_eq!(outputs(&bench, "few"), ["001.json", "001.png", "003.json", "003.png"]);
    bench.sora(&["batch", "nowhere.toml"]).assert().code(4).stderr(contains("can't read nowhere.toml"));
    write(&bench, "bad.toml", "[[job]]\nprompt = \"a\n");
    bench.sora(&["batch", "bad.toml"]).assert().code(2).stderr(contains("bad.toml:2:"));
}

#[test]
fn plans_are_shown_and_nothing_is_done() {
    let bench = Bench::new();
    write(&bench, "p.txt", "a fox\na dog\n");
    let args = ["batch", "p.txt", "--size=64x64", "--frames=1", "--steps=2", "--num-videos=2"];
    let list = bench.sora(&args).arg("--dry-run").assert().success();
    let list = String::from_utf8_lossy(&list.get_output().stdout).into_owned();
    assert_eq!(list.lines().count(), 4);
    assert!(list.contains("    2  pending  p/0002-a-fox-"), "{list}");
    bench.sora(&args).arg("--check").assert().success().stdout(
        contains("jobs        4")
            .and(contains("steps       8"))
            .and(contains(", by this machine's speed"))
            .and(contains(" free")),
    );
    assert_eq!(bench.names(), ["p.txt"]);
    bench.sora(&args).assert().success();
    let check = bench.sora(&args).args(["--check", "--json"]).assert().success().get_output().clone();
    let check: Value = serde_json::from_slice(&check.stdout).expect("JSON");
    assert_eq!((&check["jobs"], &check["done"], &check["seconds"]), (&4.into(), &4.into(), &0.0.into()));
}

#[test]
fn names_that_clash_are_refused() {
    let bench = Bench::new();
    write(&bench, "p.txt", "a fox\na dog\n");
    let told = bench.refused(&["batch", "p.txt", "--output=x.png", "--frames=1", "--check"], 2);
    assert!(told.contains("key `output`: invalid output `x.png`: the job on line 1 has the same"), "{told}");
    let told = bench.refused(&["batch", "p.txt", "--output=../{n}.png", "--frames=1", "--check"], 2);
    assert!(told.contains("expected one within the batch's folder"), "{told}");
    // A second batch may come into the same folder, but not for the same outputs.
    write(&bench, "q.txt", "a cat\n");
    batch(&bench, &["p.txt", "--folder=o", "--seed=1"]).assert().success();
    batch(&bench, &["q.txt", "--folder=o", "--seed=1"])
        .assert()
        .code(2)
        .stderr(contains("q.txt:1:1").and(contains("it is a job of")));
    batch(&bench, &["q.txt", "--folder=o", "--output=q-{n}.png"]).assert().success();
    assert_eq!(outputs(&bench, "o").len(), 6);
}

#[test]
fn status_retry_cancel_and_clean() {
    let bench = Bench::new();
    write(&bench, "p.txt", "a fox\na dog\n");
    fs::create_dir_all(bench.path("p/001.png/mine")).expect("a folder in the way");
    let output = batch(&bench, &["p.txt", "--retries=0"]).assert().code(8).get_output().clone();
    assert_eq!(jobs(&events(&output.stderr), "failed"), [1]);
    assert_eq!(jobs(&events(&output.stderr), "done"), [2]);
    let status = |more: &[&str]| {
        let output =
            bench.sora(&["batch", "status", "p.txt"]).args(more).assert().success().get_output().clone();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let told = status(&[]);
    assert!(
        told.starts_with("1 of 2 jobs are done, 1 failed\n") && told.contains("a folder is there"),
        "{told}"
    );
    // Once the folder is out of the way, the saved latents are decoded and no step is done again.
    fs::remove_dir_all(bench.path("p/001.png")).expect("removed");
    batch(&bench, &["p.txt"]).assert().code(8);
    bench.sora(&["batch", "retry", "p"]).assert().success().stderr(contains("1 jobs are pending again"));
    let output = batch(&bench, &["p.txt"]).assert().success().get_output().clone();
    let told = events(&output.stderr);
    assert!(
        !told
            .iter()
            .any(|event| event["event"] == "progress" && event["phase"] == "denoise" && event["done"] == 1)
    );
    let json: Value = serde_json::from_str(&status(&["--json"])).expect("JSON");
    assert_eq!((&json["done"], &json["jobs"][0]["state"]), (&2.into(), &"done".into()));
    write(&bench, "p.txt", "a fox\na dog\na cat\n");
    bench.sora(&["batch", "cancel", "p.txt"]).assert().success().stderr(contains("0 jobs are cancelled"));
    bench.sora(&["batch", "clean", "p.txt", "--all"]).assert().success();
    assert!(!bench.path("p/.sora").exists());
    // The recipes beside the outputs still say what is done.
    let output = batch(&bench, &["p.txt"]).assert().success().get_output().clone();
    assert_eq!(jobs(&events(&output.stderr), "started"), [3]);
    bench.sora(&["batch", "status", "nowhere"]).assert().code(2).stderr(contains("no batch has run there"));
}

#[test]
fn a_damaged_journal_loses_nothing() {
    let bench = Bench::new();
    write(&bench, "p.txt", "a fox\na dog\n");
    batch(&bench, &["p.txt"]).assert().success();
    write(&bench, "p/.sora/journal.sqlite", &"garbage ".repeat(999));
    let output = batch(&bench, &["p.txt"]).assert().success().get_output().clone();
    let told = events(&output.stderr);
    assert!(
        told.iter()
            .any(|event| event["event"] == "warning" && event.to_string().contains("journal.damaged-"))
    );
    assert!(jobs(&told, "started").is_empty());
    bench.sora(&["batch", "clean", "p.txt"]).assert().success().stderr(contains("1 files removed"));
}

#[test]
fn shares_make_a_whole() {
    let bench = Bench::new();
    write(&bench, "p.txt", "a\nb\nc\nd\ne\n");
    let done = |shard: &str, variable: (&str, &str)| {
        let output = batch(&bench, &["p.txt", "--shard", shard])
            .env(variable.0, variable.1)
            .assert()
            .success()
            .get_output()
            .clone();
        jobs(&events(&output.stderr), "done")
    };
    assert_eq!(done("1/2", ("A", "")), [1, 3, 5]);
    assert_eq!(done("auto/2", ("JOB_COMPLETION_INDEX", "1")), [2, 4]);
    bench.sora(&["batch", "status", "p.txt"]).assert().success().stdout(contains("5 of 5 jobs are done"));
    bench.refused(&["batch", "p.txt", "--shard", "auto"], 2);
}

#[test]
fn a_job_array_is_written_for_slurm() {
    let bench = Bench::new();
    write(&bench, "p.txt", "a fox\n");
    let args = [
        "batch",
        "submit",
        "p.txt",
        "--slurm",
        "--print",
        "--partition=gpu",
        "--gres=gpu:1",
        "--array-limit=4",
        "--steps=2",
        "--frames=1",
    ];
    let output = bench.sora(&args).assert().success().get_output().clone();
    let script = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "#SBATCH --array=1-8%4\n",
        "#SBATCH --partition=gpu\n",
        "#SBATCH --gres=gpu:1\n",
        " --task auto",
        " --steps=2",
    ] {
        assert!(script.contains(part), "{part} is not in\n{script}");
    }
    assert_eq!(bench.names(), ["p.txt"]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |dir: &Path| dir.join("sbatch").exists();
    if !std::env::split_paths(&path).any(|dir| has(&dir)) {
        let args: Vec<&str> = args.iter().copied().filter(|arg| *arg != "--print").collect();
        bench
            .sora(&args)
            .assert()
            .code(4)
            .stderr(contains("`sbatch` failed").and(contains("hint: is Slurm installed")));
    }
}
