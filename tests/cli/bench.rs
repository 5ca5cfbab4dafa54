//! A folder to work in, and the program to run in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

/// Arguments of a clip that takes a second or two.
pub const SMALL: [&str; 8] = ["--size", "64x64", "--frames", "9", "--steps", "2", "--seed", "7"];

pub struct Bench(TempDir);

impl Bench {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program, run in this folder.
    pub fn sora(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sora"));
        command.current_dir(self.0.path()).args(args).env_remove("NO_COLOR");
        command
    }

    /// `sora gen PROMPT` of a small clip.
    pub fn generate(&self, args: &[&str]) -> Command {
        let mut command = self.sora(&["gen", "a red fox"]);
        command.args(SMALL).args(args);
        command
    }

    /// The raw frames of a small clip.
    pub fn frames(&self, args: &[&str]) -> Vec<u8> {
        let output = self.generate(&["-o", "-"]).args(args).assert().success().get_output().clone();
        assert!(output.stdout.starts_with(b"YUV4MPEG2 "), "frames in y4m");
        output.stdout
    }

    /// All names in this folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the folder is there");
        let mut names: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Runs a command that must fail with `code`, and gives its stderr. It must print nothing on stdout and leave
    /// no file.
    pub fn refused(&self, args: &[&str], code: i32) -> String {
        let before = self.names();
        let output = self.sora(args).assert().code(code).get_output().clone();
        let stderr = String::from_utf8(output.stderr).expect("stderr is text");
        assert!(output.stdout.is_empty(), "{args:?} printed on stdout");
        assert_eq!(self.names(), before, "{args:?} left something: {stderr}");
        stderr
    }
}

/// A copy of the embedded model's folder, to be broken.
pub fn copy_of_mini(to: &Path) {
    let mini = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/mini");
    let parts =
        ["model_index.json", "sora.json", "scheduler", "tokenizer", "text_encoder", "transformer", "vae"];
    for part in parts {
        copy(&mini.join(part), &to.join(part));
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("a folder can be made");
        for entry in fs::read_dir(from).expect("the folder is there") {
            let entry = entry.expect("an entry").path();
            copy(&entry, &to.join(entry.file_name().expect("an entry has a name")));
        }
    } else {
        fs::create_dir_all(to.parent().expect("a file has a folder")).expect("a folder can be made");
        fs::copy(from, to).expect("a file can be copied");
    }
}

/// Changes a JSON file.
pub fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(path).expect("the file is there");
    let mut json = serde_json::from_str(&text).expect("the file is JSON");
    change(&mut json);
    fs::write(path, json.to_string()).expect("a file can be written");
}
