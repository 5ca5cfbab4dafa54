//! Pictures and clips as prompts: what is kept of them, what is told of them, and what is refused.

use std::{fs, process::Command};

use predicates::{prelude::*, str::contains};
use serde_json::Value;
use sora::{
    app::seam::{Steps, step},
    media::{Clip, Codec, EncodeOptions, Target, open_sink, read_clip},
    video::Frame,
};

use crate::bench::Bench;

const FAST: [&str; 4] = ["--steps", "2", "--seed", "7"];

/// A bright square that moves over a gradient.
fn frame(width: usize, height: usize, time: usize) -> Frame {
    let value = |x: usize, y: usize| {
        let inside = x.abs_diff(width / 4 + 2 * time) < width / 6 && y.abs_diff(height / 2) < height / 5;
        (40 + 100 * y / height + if inside { 90 } else { 0 }) as u8
    };
    let rgb = (0..width * height).flat_map(|i| {
        let v = value(i % width, i / width);
        [v, v - 10, v + 15]
    });
    Frame { width, height, rgb: rgb.collect() }
}

fn frames(width: usize, height: usize, count: usize) -> Vec<Frame> {
    (0..count).map(|i| frame(width, height, i)).collect()
}

fn write(bench: &Bench, name: &str, frames: &[Frame], options: &EncodeOptions) {
    let path = bench.path(name);
    let target = Target::parse(path.to_str().expect("UTF-8")).expect("a known ending");
    let mut sink = open_sink(&target, frames[0].width, frames[0].height, options).expect("a sink");
    frames.iter().for_each(|frame| sink.push(frame.clone()).expect("a frame is taken"));
    sink.finish().expect("a file");
}

/// A lossless clip of `count` frames at 8 a second.
pub fn clip(bench: &Bench, name: &str, count: usize) -> Vec<Frame> {
    let frames = frames(64, 64, count);
    let options = EncodeOptions { fps: 8.0, codec: Some(Codec::Ffv1), ..EncodeOptions::default() };
    write(bench, name, &frames, &options);
    frames
}

fn picture(bench: &Bench, name: &str, width: usize, height: usize) {
    write(bench, name, &frames(width, height, 1), &EncodeOptions::default());
}

fn read(bench: &Bench, name: &str) -> Vec<Frame> {
    read_clip(&bench.path(name)).and_then(Clip::collect).expect("a whole clip")
}

/// Runs a command that must succeed with `--json`, and gives its recipe.
pub fn recipe(bench: &Bench, args: &[&str]) -> Value {
    let output = bench.sora(args).args(FAST).arg("--json").assert().success().get_output().clone();
    let clip: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    clip["recipe"].clone()
}

fn psnr(a: &[Frame], b: &[Frame]) -> f64 {
    assert_eq!(a.len(), b.len());
    let values = a.iter().zip(b).flat_map(|(a, b)| a.rgb.iter().zip(&b.rgb));
    let (error, count) = values.fold((0.0, 0.0), |(error, count), (a, b)| {
        (error + (f64::from(*a) - f64::from(*b)).powi(2), count + 1.0)
    });
    10.0 * (255.0 * 255.0 * count / f64::max(error, 1e-9)).log10()
}

/// The seam is no wider than one and a half of the clip's own median steps.
#[track_caller]
fn smooth(a: &Frame, b: &Frame, originals: &[Frame]) {
    let mut steps = Steps::default();
    originals.iter().for_each(|frame| steps.see(frame));
    let (seam, own) = (step(a, b), steps.median());
    assert!(seam <= 1.5 * own, "a seam of {seam} beside steps of {own}");
}

#[test]
fn a_picture_shapes_its_video_and_stands_in_the_recipe() {
    let bench = Bench::new();
    picture(&bench, "wide.png", 200, 100);
    let args = ["gen", "waves", "--init-image", "wide.png", "--frames", "9", "-o", "out.mp4"];
    let made = recipe(&bench, &args);
    assert_eq!(made["width"].as_u64(), made["height"].as_u64().map(|height| 2 * height));
    let keyframe = &made["visual"]["keyframes"][0];
    assert_eq!((keyframe["path"].as_str(), keyframe["frame"].as_i64()), (Some("wide.png"), Some(0)));
    assert_eq!(keyframe["sha256"].as_str().map(str::len), Some(64));
    let sized = [&args[..], &["--size", "64x64", "--fit", "pad", "--no-compress-init"]].concat();
    assert_eq!(recipe(&bench, &sized)["width"], 64);
}

#[test]
fn held_pictures_keep_their_detail() {
    let bench = Bench::new();
    // Fine stripes on a gradient: what small autoencoders lose.
    let mut shown = frame(64, 64, 0);
    for (i, value) in shown.rgb.iter_mut().enumerate() {
        let (x, y) = (i / 3 % 64, i / 192);
        *value += if (x / 2 + y / 3).is_multiple_of(2) { 24 } else { 0 };
    }
    write(&bench, "shown.png", std::slice::from_ref(&shown), &EncodeOptions::default());
    let made = |keep: &str, output: &str| {
        let args = ["gen", "waves", "--size", "64x64", "--frames", "9", "--keyframe", "0:shown.png", keep];
        let ways = ["--keyframe", "-1:shown.png", "--save-latents", "made.safetensors", "-o", output];
        let told = recipe(&bench, &[&args[..], &ways].concat());
        (told["visual"]["detail"].clone(), read(&bench, output))
    };
    let (said, plain) = made("--no-keep-detail", "plain.y4m");
    assert_eq!(said, false);
    let (said, kept) = made("--keep-detail", "kept.y4m");
    assert_eq!(said, true);
    for frame in [0, 8] {
        let near = |made: &[Frame]| psnr(&made[frame..=frame], std::slice::from_ref(&shown));
        let (without, with) = (near(&plain), near(&kept));
        assert!(with > without + 2.0, "frame {frame}: {with} dB with its detail, {without} without");
    }
    let mut steps = Steps::default();
    plain.iter().for_each(|frame| steps.see(frame));
    let (with, without) = (step(&kept[0], &kept[1]), step(&plain[0], &plain[1]));
    assert!(with <= without.max(1.5 * steps.median()) + 1.5, "no flash: {with} beside {without}");
    // From the latents alone, by what they say of the pictures.
    bench.sora(&["decode", "made.safetensors", "-o", "decoded.y4m", "--quiet"]).assert().success();
    assert!(read(&bench, "decoded.y4m") == kept);
    picture(&bench, "shown.png", 64, 64);
    let decoded = bench.sora(&["decode", "made.safetensors", "-o", "decoded.y4m"]).assert().success();
    decoded.stderr(contains("the detail of the pictures isn't kept"));
    assert!(read(&bench, "decoded.y4m") == plain);
}

#[test]
fn keyframes_may_be_anywhere() {
    let bench = Bench::new();
    picture(&bench, "end.png", 64, 64);
    clip(&bench, "start.mkv", 12);
    let keyframes = ["--keyframe", "0:start.mkv", "--keyframe", "-1:end.png:0.9"];
    let small = ["gen", "waves", "--size", "64x64", "--frames", "17", "-o", "out.y4m"];
    let made = recipe(&bench, &[&small[..], &keyframes].concat());
    assert_eq!(made["visual"]["keyframes"][1]["strength"], 0.9);
    // A clip to start from says how long the video is.
    let from = ["gen", "waves", "--size", "64x64", "--init-video", "start.mkv", "--strength", "0.5"];
    assert_eq!(recipe(&bench, &[&from[..], &["--fps", "8", "-o", "b.y4m"]].concat())["frames"], 9);
}

#[test]
fn a_clip_is_extended_both_ways_and_stays_what_it_was() {
    let bench = Bench::new();
    let originals = clip(&bench, "clip.mkv", 20);
    let args = ["gen", "waves", "--init-video", "clip.mkv", "--extend", "both", "--frames", "10"];
    let made = recipe(&bench, &[&args[..], &["--crf", "12", "--window", "17", "-o", "long.mp4"]].concat());
    assert_eq!((made["frames"].as_u64(), made["woven"]["new"].as_u64()), (Some(40), Some(10)));
    let long = read(&bench, "long.mp4");
    assert_eq!(long.len(), 40);
    let kept = psnr(&long[10..30], &originals);
    assert!(kept >= 40.0, "{kept} dB");
    smooth(&long[9], &long[10], &originals);
    smooth(&long[29], &long[30], &originals);

    let args = ["gen", "waves", "--init-video", "clip.mkv", "--extend", "backward", "--only-new"];
    let more = ["--duration", "500ms", "--window", "17", "-o", "new.y4m"];
    recipe(&bench, &[&args[..], &more].concat());
    assert_eq!(read(&bench, "new.y4m").len(), 4);
}

#[test]
fn clips_are_joined_and_closed_to_loops() {
    let bench = Bench::new();
    let first = clip(&bench, "a.mkv", 11);
    let mut last = first.clone();
    last.reverse();
    let options = EncodeOptions { fps: 8.0, codec: Some(Codec::Ffv1), ..EncodeOptions::default() };
    write(&bench, "b.mkv", &last, &options);
    let args = ["join", "a.mkv", "b.mkv", "--prompt", "waves", "--duration", "1s", "--window", "17"];
    let made = recipe(&bench, &[&args[..], &["--crf", "12", "-o", "joined.mp4"]].concat());
    let new = made["woven"]["new"].as_u64().expect("a number") as usize;
    let joined = read(&bench, "joined.mp4");
    assert_eq!(joined.len(), 22 + new);
    assert!(psnr(&joined[..11], &first).min(psnr(&joined[11 + new..], &last)) >= 40.0);
    smooth(&joined[10], &joined[11], &first);
    smooth(&joined[10 + new], &joined[11 + new], &last);

    let args = ["gen", "waves", "--init-video", "a.mkv", "--loop", "--window", "17", "--crf", "12"];
    recipe(&bench, &[&args[..], &["-o", "loop.mp4"]].concat());
    let looped = read(&bench, "loop.mp4");
    smooth(&looped[10], &looped[11], &first);
    smooth(&looped[looped.len() - 1], &looped[0], &first);

    let args = ["gen", "waves", "--loop", "--size", "64x64", "--frames", "9", "-o", "made.mp4"];
    let made = recipe(&bench, &args);
    assert_eq!(made["woven"]["clips"], serde_json::json!([]));
    assert!(made["frames"].as_u64() > Some(9));
}

/// Runs the ffmpeg binary in the bench's folder.
pub fn ffmpeg(bench: &Bench, args: &[&str]) {
    let status = Command::new("ffmpeg")
        .current_dir(bench.path(""))
        .args(["-v", "error", "-y"])
        .args(args)
        .status()
        .expect("ffmpeg is installed");
    assert!(status.success(), "{args:?}");
}

fn streams(bench: &Bench, name: &str) -> Vec<String> {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0"])
        .arg(bench.path(name))
        .output()
        .expect("ffprobe is installed");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn sound_is_kept_where_frames_pass_through() {
    let bench = Bench::new();
    let sine = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=8:duration=2", "-f", "lavfi", "-i"];
    ffmpeg(
        &bench,
        &[&sine[..], &["sine=duration=2", "-c:a", "aac", "-pix_fmt", "yuv420p", "clip.mp4"]].concat(),
    );
    let args = ["gen", "waves", "--init-video", "clip.mp4", "--extend", "backward", "--frames", "4"];
    recipe(&bench, &[&args[..], &["--window", "17", "-o", "long.mp4"]].concat());
    assert_eq!(streams(&bench, "long.mp4"), ["video", "audio"]);
    assert_eq!(read(&bench, "long.mp4").len(), 20);
    let start = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "a", "-show_entries", "packet=pts_time", "-of", "csv=p=0"])
        .arg(bench.path("long.mp4"))
        .output()
        .expect("ffprobe is installed");
    let start = String::from_utf8(start.stdout).expect("text");
    let first: f64 = start.lines().next().and_then(|t| t.trim_end_matches(',').parse().ok()).expect("a time");
    assert!((first - 0.5).abs() < 0.05, "the sound begins after four frames: {first}");
    let output = bench
        .sora(&[&args[..], &["--window", "17", "-o", "long.gif"]].concat())
        .args(FAST)
        .assert()
        .success();
    output.stderr(contains("the sound isn't kept: gif has no sound"));
}

#[test]
fn odd_clips_are_taken_or_told() {
    let bench = Bench::new();
    let test = |size: &str, rate: u32, more: &[&str], name: &str| {
        let source = format!("testsrc2=size={size}:rate={rate}:duration=1");
        let from = ["-f", "lavfi", "-i", &source];
        ffmpeg(&bench, &[&from[..], more, &[name]].concat());
    };
    let extend = |name: &str, more: &[&str]| {
        let args = ["gen", "waves", "--init-video", name, "--extend", "forward", "--frames", "4"];
        let all = [&args[..], &["--window", "17", "-o", "out.mp4"], more].concat();
        let mut command = bench.sora(&all);
        command.args(FAST);
        command
    };
    // Ten bits, turned, of changing rate.
    test("64x64", 8, &["-pix_fmt", "yuv420p10le", "-c:v", "ffv1"], "ten.mkv");
    extend("ten.mkv", &[]).assert().success();
    test("64x48", 8, &["-pix_fmt", "yuv420p"], "flat.mp4");
    ffmpeg(&bench, &["-i", "flat.mp4", "-c", "copy", "-metadata:s:v", "rotate=90", "turned.mp4"]);
    extend("turned.mp4", &[]).assert().success().stderr(contains("of 48x64"));
    let uneven = ["-vf", "select='not(mod(n,3))+lt(n,9)'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p"];
    test("64x64", 24, &uneven, "uneven.mp4");
    extend("uneven.mp4", &["--fps", "8"])
        .assert()
        .success()
        .stderr(contains("frames of 64x64 at 8 a second"));
    // Odd sides need another pixel format, which is said.
    let lossless = EncodeOptions { fps: 8.0, codec: Some(Codec::Ffv1), ..EncodeOptions::default() };
    write(&bench, "odd.mkv", &frames(65, 63, 8), &lossless);
    extend("odd.mkv", &[]).assert().code(2).stderr(contains("even width").and(contains("yuv444p")));
    extend("odd.mkv", &["--pix-fmt", "yuv444p"]).assert().success();
    // One frame is a picture.
    ffmpeg(&bench, &["-i", "flat.mp4", "-frames:v", "1", "-c:v", "ffv1", "one.mkv"]);
    extend("one.mkv", &[]).assert().success().stderr(contains("context 1"));
    // No video, and half a video.
    ffmpeg(&bench, &["-f", "lavfi", "-i", "sine=duration=1", "sound.m4a"]);
    extend("sound.m4a", &[]).assert().code(2).stderr(contains("it has no video stream"));
    write(&bench, "whole.mp4", &frames(64, 64, 30), &EncodeOptions::default());
    let whole = fs::read(bench.path("whole.mp4")).expect("the file");
    fs::write(bench.path("cut.mp4"), &whole[..whole.len() * 3 / 4]).expect("written");
    extend("cut.mp4", &[]).assert().code(3).stderr(contains("cut.mp4 is damaged"));
}

#[test]
fn what_cannot_be_held_is_refused() {
    let bench = Bench::new();
    picture(&bench, "a.png", 64, 64);
    fs::write(bench.path("huge.ppm"), b"P6 30000 30000 255\n").expect("written");
    let refused = |args: &[&str], told: &[&str]| {
        let small = ["gen", "waves", "--size", "64x64", "--frames", "17", "-o", "out.mp4"];
        let stderr = bench.refused(&[&small[..], args].concat(), 2);
        for part in told {
            assert!(stderr.contains(part), "{args:?} doesn't say `{part}` but:\n{stderr}");
        }
    };
    refused(&["--init-image", "huge.ppm"], &["30000x30000", "at most 16384", "hint: "]);
    refused(&["--keyframe", "17:a.png"], &["keyframe at frame 17", "frames 0 to 16", "-1 is the last"]);
    refused(&["--keyframe", "-18:a.png"], &["keyframe at frame -18", "-17 to -1"]);
    refused(&["--keyframe", "a.png"], &["FRAME:PATH"]);
    refused(&["--init-image", "a.png", "--keyframe", "0:a.png"], &["frames 0 and 0", "same part"]);
    refused(&["--init-image", "a.png", "--init-image-strength", "2"], &["strength", "0 to 1"]);
    refused(&["--init-image", "a.png", "--fit", "zoom"], &["fit `zoom`", "crop, pad or stretch"]);
    refused(&["--init-image", "a.png", "--condition-noise", "-1"], &["noise of conditions -1"]);
    refused(&["--init-video", "a.png"], &["`a.png` has 1", "--frames 1"]);
    refused(&["--extend", "forward"], &["--init-video"]);
    refused(&["--keep-detail"], &["no picture whose detail", "--init-image or --keyframe"]);
    refused(&["--context", "9"], &["--extend or --loop"]);
    refused(
        &["--init-video", "a.png", "--extend", "forward", "--context", "5"],
        &["the clip has 1 frames", "--context 1 or less"],
    );
    let stderr = bench.refused(&["gen", "waves", "--init-image", "no.png", "-o", "out.mp4"], 4);
    assert!(stderr.contains("no.png"), "{stderr}");
    // The smallest of all pictures is one.
    picture(&bench, "dot.png", 1, 1);
    let dot =
        ["gen", "waves", "--init-image", "dot.png", "--frames", "9", "--size", "64x64", "-o", "dot.gif"];
    bench.sora(&dot).args(FAST).assert().stderr(contains("denoising"));
}

#[test]
fn only_what_is_painted_moves() {
    let bench = Bench::new();
    picture(&bench, "in.png", 64, 64);
    let half = |x: usize| if x < 32 { 0 } else { 255 };
    let mask = |of: &dyn Fn(usize) -> u8| {
        let rgb = (0..64 * 64).flat_map(|i| [of(i % 64); 3]).collect();
        vec![Frame { width: 64, height: 64, rgb }]
    };
    write(&bench, "mask.png", &mask(&half), &EncodeOptions::default());
    write(&bench, "black.png", &mask(&|_| 0), &EncodeOptions::default());
    let flags = ["gen", "a red fox", "--init-image", "in.png", "--size", "64x64", "--frames", "9"];
    let more = ["--no-keep-detail", "-o", "out.mkv", "--codec", "ffv1", "--motion-region"];
    let recipe = recipe(&bench, &[&flags[..], &more, &["mask.png"]].concat());
    assert!(recipe["visual"]["region"]["sha256"].is_string(), "{recipe}");
    let made = read(&bench, "out.mkv");
    let moved = |columns: std::ops::Range<usize>| {
        let (first, last) = (&made[0].rgb, &made[8].rgb);
        let inside = (0..64 * 64).filter(|i| columns.contains(&(i % 64)));
        let steps = inside.map(|i| f64::from(first[3 * i].abs_diff(last[3 * i])));
        steps.sum::<f64>() / (64 * columns.len()) as f64
    };
    // Beside the border the decoder sees both halves.
    assert!(3.0 * moved(0..16) < moved(48..64), "{} and {}", moved(0..16), moved(48..64));
    let refused = |more: &[&str], why: &str| {
        let output = ["-o", "out.mkv", "--motion-region"];
        let flags: Vec<&str> = [&flags[..], &output, more].concat();
        bench.sora(&flags).args(FAST).assert().code(2).stderr(contains(why));
    };
    refused(&["black.png"], "no cell of 16x16 pixels would move");
    refused(&["mask.png", "--init-image-strength", "0.5"], "no picture that the rest could stay like");
}
