//! The program against the hub: what it prints, its exit codes, two of it at once.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::server::{COMMIT, FakeHub, Fault, REPO};

/// The embedded model's folder on a hub, and a folder to work in.
struct Desk {
    server: FakeHub,
    folder: TempDir,
}

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";
const SMALL: [&str; 8] = ["--size", "64x64", "--frames", "9", "--steps", "2", "--seed", "7"];

impl Desk {
    fn new() -> Self {
        let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
        let mut files = BTreeMap::new();
        for part in ["model_index.json", "scheduler", "tokenizer", "text_encoder", "transformer", "vae"] {
            collect(&mini, &mini.join(part), &mut files);
        }
        files.insert("vae/diffusion_pytorch_model.bin".into(), b"pickled".to_vec());
        Self { server: FakeHub::new(files), folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
        command.args(args).current_dir(self.folder.path()).env("HF_HOME", self.folder.path().join("hf"));
        command
            .env("HF_ENDPOINT", self.server.endpoint())
            .env("XDG_CACHE_HOME", self.folder.path().join("xdg"));
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
            command.env_remove(name);
        }
        command
            .env_remove("HTTP_PROXY")
            .env_remove("http_proxy")
            .env_remove("ALL_PROXY")
            .env_remove("all_proxy");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, args: &[&str]) -> (String, String) {
        let (stdout, stderr) = self.ends(args, 0);
        assert!(!stderr.contains("error:"), "{stderr}");
        (stdout, stderr)
    }

    /// stdout and stderr of a command that ends with this code.
    #[track_caller]
    fn ends(&self, args: &[&str], code: i32) -> (String, String) {
        let output = self.run(args);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
        (stdout, stderr)
    }

    fn snapshot(&self) -> PathBuf {
        self.folder.path().join("hf/hub/models--acme--tiny-video/snapshots").join(COMMIT)
    }
}

fn collect(root: &Path, path: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| collect(root, &entry.unwrap().path(), files));
    } else {
        let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        files.insert(name, fs::read(path).unwrap());
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_model_of_the_hub_runs_by_its_name_alone() {
    let desk = Desk::new();
    let args = [["gen", "a red fox", "--model", REPO, "-o", "out.y4m"].as_slice(), &SMALL].concat();
    let (stdout, stderr) = desk.succeeds(&args);
    assert_eq!(stdout, "out.y4m\n");
    assert!(stderr.contains(&format!("fetching {REPO}")), "{stderr}");
    assert!(desk.server.stored(WEIGHTS).len() == 1 && desk.snapshot().join(WEIGHTS).is_file());
    assert!(!desk.snapshot().join("vae/diffusion_pytorch_model.bin").exists());

    // From the cache, without the hub, and the same frames as from the folder itself.
    let before = desk.server.asked().len();
    let args =
        [["gen", "a red fox", "--model", REPO, "--offline", "-o", "again.y4m", "--json"].as_slice(), &SMALL];
    let (stdout, stderr) = desk.succeeds(&args.concat());
    assert_eq!(desk.server.asked().len(), before, "nothing was asked");
    assert!(!stderr.contains("fetching"), "{stderr}");
    assert_eq!(json(&stdout)["recipe"]["model"], REPO);
    let folder = desk.snapshot().to_string_lossy().into_owned();
    let args = [["gen", "a red fox", "--model", &folder, "-o", "local.y4m"].as_slice(), &SMALL].concat();
    desk.succeeds(&args);
    let read = |name: &str| fs::read(desk.folder.path().join(name)).unwrap();
    assert!(read("out.y4m") == read("again.y4m") && read("out.y4m") == read("local.y4m"));

    // A path of that name wins.
    fs::create_dir_all(desk.folder.path().join(REPO)).unwrap();
    let (_, stderr) = desk.ends(&["gen", "a red fox", "--model", REPO, "-o", "x.mp4"], 3);
    assert!(stderr.contains("model_index.json is missing"), "{stderr}");
}

#[test]
fn models_are_pulled_listed_checked_and_deleted() {
    let desk = Desk::new();
    let (stdout, _) = desk.succeeds(&["models", "pull", REPO, "--json"]);
    assert_eq!(json(&stdout)[0]["commit"], COMMIT);
    let (stdout, _) = desk.succeeds(&["models", "path", REPO]);
    assert_eq!(stdout, format!("{}\n", desk.snapshot().display()));
    let (stdout, _) = desk.succeeds(&["models", "list"]);
    assert!(stdout.contains(REPO) && stdout.contains("Known by name"), "{stdout}");
    let (stdout, _) = desk.succeeds(&["models", "list", "--json"]);
    assert_eq!(json(&stdout)["cached"][0]["revisions"][0]["refs"][0], "main");
    let (stdout, _) = desk.succeeds(&["models", "info", REPO]);
    assert!(stdout.contains("it is all here") && stdout.contains("denoiser"), "{stdout}");
    let (stdout, _) = desk.succeeds(&["models", "verify", REPO]);
    assert!(stdout.contains(&format!("right  {WEIGHTS}")) && !stdout.contains("wrong"), "{stdout}");

    let path = desk.snapshot().join(WEIGHTS);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (stdout, stderr) = desk.ends(&["models", "verify", REPO, "--repair"], 7);
    assert!(stdout.contains(&format!("wrong  {WEIGHTS}")) && stderr.contains("hint:"), "{stdout}{stderr}");
    desk.succeeds(&["models", "pull", REPO]);
    desk.succeeds(&["models", "verify", REPO]);

    let (stdout, _) = desk.succeeds(&["models", "rm", REPO]);
    assert!(stdout.starts_with("freed "), "{stdout}");
    assert!(!desk.snapshot().exists());
    for verb in ["rm", "path", "verify"] {
        let (_, stderr) = desk.ends(&["models", verb, REPO], 2);
        assert!(stderr.contains("isn't in the cache") && stderr.contains("sora models pull"), "{stderr}");
    }
}

#[test]
fn a_models_headers_are_known_before_it_is_here() {
    let desk = Desk::new();
    let (stdout, _) = desk.succeeds(&["models", "info", REPO, "--json"]);
    let info = json(&stdout);
    assert_eq!((&info["licence"], &info["headers"]["name"]), (&"mit".into(), &REPO.into()));
    assert!(info["missing_bytes"].as_u64().unwrap() > 1 << 20, "{info}");
    let (stdout, _) = desk.succeeds(&["info", REPO]);
    assert!(stdout.contains("own size"), "{stdout}");
    assert!(!desk.folder.path().join("hf").exists(), "nothing is kept");
    assert!(desk.server.stored(WEIGHTS).iter().all(|asked| asked.range.is_some()), "only headers came");
}

#[test]
fn a_plan_is_made_before_anything_is_downloaded() {
    let desk = Desk::new();
    let (stdout, _) = desk.succeeds(&["plan", "--model", REPO, "--size", "64x64", "--frames", "9", "--json"]);
    let plan = json(&stdout);
    assert_eq!(plan["model"], REPO);
    let weights =
        fs::metadata(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini").join(WEIGHTS)).unwrap();
    assert!(plan["download_bytes"].as_u64().unwrap() > weights.len(), "{plan}");
    assert!(plan["stages"][1]["weight_bytes"].as_u64().unwrap() > 1 << 20, "{plan}");
    assert!(desk.server.stored(WEIGHTS).iter().all(|asked| asked.range.is_some()), "only headers came");
    assert!(!desk.folder.path().join("hf").exists(), "nothing is kept");
}

#[test]
fn two_programs_at_once_share_a_download() {
    let desk = Desk::new();
    desk.server.behave().slow = true;
    desk.server.fail(WEIGHTS, &[Fault::Cut(300_000)]);
    let start = || {
        let mut command = desk.command(&["models", "pull", REPO]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
    for output in &both {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), format!("{}\n", desk.snapshot().display()));
    }
    assert_eq!(desk.server.stored(WEIGHTS).len(), 2, "once, in two pieces");
    desk.server.behave().slow = false;
    desk.succeeds(&["models", "verify", REPO]);
}

#[test]
fn refusals_have_their_own_code_and_a_way_out() {
    let desk = Desk::new();
    let (_, stderr) = desk.ends(&["gen", "fox", "--model", "acme/nothing", "-o", "x.mp4"], 7);
    assert!(stderr.contains("(404)") && stderr.contains("hint: check the spelling"), "{stderr}");
    let (_, stderr) = desk.ends(&["gen", "fox", "--model", REPO, "--offline", "-o", "x.mp4"], 7);
    assert!(stderr.contains("isn't in the cache") && stderr.contains("--offline"), "{stderr}");
    desk.server.behave().token = Some("hf_right".into());
    let (_, stderr) = desk.ends(&["models", "pull", REPO], 7);
    assert!(stderr.contains("(401)") && stderr.contains("HF_TOKEN"), "{stderr}");
    let output = desk.command(&["models", "pull", REPO]).env("HF_TOKEN", "hf_right").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (_, stderr) = desk.ends(&["gen", "fox", "--model", "ltxv-2b-0.9.8-distiled", "-o", "x.mp4"], 2);
    assert!(stderr.contains("did you mean ltxv-2b-0.9.8-distilled"), "{stderr}");
    let offline = desk.command(&["models", "pull", "acme/b"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(text(&offline.stderr).contains("nothing may be downloaded"), "{}", text(&offline.stderr));
}

#[test]
fn doctor_finds_this_machine_fit() {
    let desk = Desk::new();
    let (stdout, _) = desk.succeeds(&["doctor", "--json"]);
    let checks = json(&stdout);
    let check = |name: &str| {
        let found = checks.as_array().unwrap().iter().find(|check| check["name"] == name);
        found.unwrap_or_else(|| panic!("{name}")).clone()
    };
    for name in ["program", "device", "ffmpeg", "embedded model"] {
        assert_ne!(check(name)["state"], "broken", "{checks}");
    }
    assert!(check("encoders")["found"].as_str().unwrap().contains("h264"), "{checks}");
    assert!(check("embedded model")["found"].as_str().unwrap().contains("one step"), "{checks}");
    for check in checks.as_array().unwrap() {
        assert_eq!(check["state"] != "fine", check["fix"].is_string(), "{check}");
    }
    assert!(desk.server.asked().is_empty(), "nothing is asked");
    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), 0, "nothing is left");
    let (stdout, _) = desk.succeeds(&["doctor"]);
    assert!(stdout.contains("embedded model"), "{stdout}");
}
