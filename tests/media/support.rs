//! Frames to write, and ways to look at what was written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use sora::{
    ErrorKind, Result,
    media::{Clip, EncodeOptions, Target, open_sink, read_clip},
    video::Frame,
};
use tempfile::TempDir;

pub const WIDTH: usize = 96;
pub const HEIGHT: usize = 64;

/// A smooth moving picture.
pub fn frame(index: usize) -> Frame {
    let wave = |x: usize, scale: f64| (127.5 + 100.0 * ((x as f64) * scale).sin()).round() as u8;
    let rgb = (0..HEIGHT)
        .flat_map(|y| {
            (0..WIDTH)
                .flat_map(move |x| [wave(x + 2 * index, 0.05), wave(y + index, 0.07), wave(x + y, 0.03)])
        })
        .collect();
    Frame { width: WIDTH, height: HEIGHT, rgb }
}

pub fn solid(colour: [u8; 3]) -> Frame {
    Frame { width: WIDTH, height: HEIGHT, rgb: colour.repeat(WIDTH * HEIGHT) }
}

pub fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

pub fn target(folder: &TempDir, name: &str) -> Target {
    Target::parse(folder.path().join(name).to_str().expect("UTF-8")).expect("a known ending")
}

pub fn write(
    target: &Target,
    frames: impl IntoIterator<Item = Frame>,
    options: &EncodeOptions,
) -> Result<PathBuf> {
    let mut sink = open_sink(target, WIDTH, HEIGHT, options)?;
    for frame in frames {
        sink.push(frame)?;
    }
    sink.finish()
}

pub fn at(fps: f64) -> EncodeOptions {
    EncodeOptions { fps, ..Default::default() }
}

pub fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

pub fn failure<T>(result: Result<T>) -> (String, String, ErrorKind) {
    let Err(error) = result else { panic!("expected an error") };
    (error.to_string(), error.hint().unwrap_or_default(), error.kind())
}

/// The first stream and the container.
pub fn probe(path: &Path) -> (Value, Value) {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"])
        .arg(path)
        .output()
        .expect("ffprobe is installed");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    (all["streams"][0].clone(), all["format"].clone())
}

pub fn number(value: &Value) -> f64 {
    value.as_str().expect("a string").parse().expect("a number")
}

pub fn psnr(a: &[Frame], b: &[Frame]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (mut error, mut count) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        assert_eq!((a.width, a.height), (b.width, b.height));
        error += a.rgb.iter().zip(&b.rgb).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        count += a.rgb.len() as f64;
    }
    10.0 * (255.0 * 255.0 / (error / count)).log10()
}

pub fn decoded(path: &Path) -> Vec<Frame> {
    read_clip(path).and_then(Clip::collect::<Result<_>>).expect("a clip that can be decoded")
}

/// Runs one test of this file in a process of its own, where `SORA_CHILD` tells it so.
pub fn in_child(name: &str, folder: &Path) -> bool {
    if std::env::var_os("SORA_CHILD").is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("SORA_CHILD", folder)
        // What is read before it was written is never zero by luck (glibc).
        .env("MALLOC_PERTURB_", "77")
        .stdin(Stdio::null())
        .output()
        .expect("it runs again");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
    false
}
