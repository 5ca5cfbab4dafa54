//! What passes through a clip that goes on: the samples that its file stores, not pictures made of them.

use std::process::Command;

use crate::{
    bench::Bench,
    visual::{ffmpeg, recipe},
};

/// Saturated patterns whose chroma no way through RGB leaves as it is; 12 frames at 8 a second.
fn pattern(bench: &Bench, name: &str, size: &str, more: &[&str]) {
    let source = format!("testsrc2=size={size}:rate=8:duration=1.5");
    ffmpeg(bench, &[&["-f", "lavfi", "-i", &source], more, &[name]].concat());
}

/// All samples of a clip's frames, as they are stored.
fn samples(bench: &Bench, name: &str, frames: usize) -> Vec<Vec<u8>> {
    let output = Command::new("ffmpeg")
        .current_dir(bench.path(""))
        .args(["-v", "error", "-i", name, "-f", "rawvideo", "-fps_mode", "passthrough", "-"])
        .output()
        .expect("ffmpeg is installed");
    assert!(output.status.success(), "{name}");
    assert_eq!(output.stdout.len() % frames, 0, "{name} has {frames} frames");
    output.stdout.chunks_exact(output.stdout.len() / frames).map(<[u8]>::to_vec).collect()
}

/// Over all planes of 8 bits.
fn psnr(a: &[Vec<u8>], b: &[Vec<u8>]) -> f64 {
    let (mut error, mut count) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        error += a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        count += a.len() as f64;
    }
    10.0 * (255.0 * 255.0 * count / f64::max(error, 1e-9)).log10()
}

/// How the file says that its frames are stored.
fn tags(bench: &Bench, name: &str) -> String {
    let entries = "stream=pix_fmt,color_range,color_space,color_primaries,color_transfer";
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v", "-show_entries", entries, "-of", "default=nw=1"])
        .arg(bench.path(name))
        .output()
        .expect("ffprobe is installed");
    String::from_utf8(output.stdout).expect("text")
}

const YUV: [&str; 4] = ["-pix_fmt", "yuv420p", "-crf", "10"];
const FULL: [&str; 8] = [
    "-vf",
    "scale=out_range=full:out_color_matrix=bt601",
    "-color_range",
    "pc",
    "-colorspace",
    "smpte170m",
    "-pix_fmt",
    "yuv420p",
];

#[test]
fn saturated_originals_come_through_both_ways() {
    let bench = Bench::new();
    pattern(&bench, "clip.mp4", "128x128", &YUV);
    let originals = samples(&bench, "clip.mp4", 12);
    let args = ["gen", "waves", "--init-video", "clip.mp4", "--extend", "both", "--frames", "4"];
    let small = ["--context", "5", "--window", "9"];
    recipe(&bench, &[&args[..], &small, &["--crf", "12", "-o", "long.mp4"]].concat());
    let kept = psnr(&samples(&bench, "long.mp4", 20)[4..16], &originals);
    assert!(kept >= 40.0, "{kept} dB");
    recipe(&bench, &[&args[..], &small, &["--codec", "ffv1", "-o", "long.mkv"]].concat());
    assert!(samples(&bench, "long.mkv", 20)[4..16] == originals, "lossless is lossless");
}

#[test]
fn joined_and_looped_originals_come_through() {
    let bench = Bench::new();
    pattern(&bench, "a.mp4", "128x128", &YUV);
    // Stored in another way: what it shows stays the same, and so does how it is stored in the file that is made.
    pattern(&bench, "b.mkv", "128x128", &[&FULL[..], &["-c:v", "ffv1"]].concat());
    let small = ["--context", "1", "--window", "9"];
    let join = ["join", "b.mkv", "a.mp4", "--prompt", "waves", "--duration", "500ms"];
    let made = recipe(&bench, &[&join[..], &small, &["--crf", "12", "-o", "joined.mp4"]].concat());
    let frames = made["frames"].as_u64().expect("a number") as usize;
    let joined = samples(&bench, "joined.mp4", frames);
    let kept = psnr(&joined[..12], &samples(&bench, "b.mkv", 12));
    assert!(kept >= 40.0, "the first clip: {kept} dB");
    let expected = [&FULL[..], &["-crf", "0"]].concat();
    ffmpeg(&bench, &[&["-i", "a.mp4"], &expected[..], &["as-b.mp4"]].concat());
    let kept = psnr(&joined[frames - 12..], &samples(&bench, "as-b.mp4", 12));
    assert!(kept >= 37.0, "the second clip, by the first one's matrix and range: {kept} dB");

    let close = ["gen", "waves", "--init-video", "a.mp4", "--loop"];
    recipe(&bench, &[&close[..], &small, &["-o", "loop.y4m"]].concat());
    let y4m = samples(&bench, "loop.y4m", 19);
    assert!(y4m[..12] == samples(&bench, "a.mp4", 12), "y4m is lossless");
}

#[test]
fn the_output_says_what_the_clip_said() {
    let bench = Bench::new();
    let args = ["gen", "waves", "--extend", "forward", "--frames", "4", "--context", "1", "--window", "9"];
    pattern(&bench, "full.mp4", "64x64", &FULL);
    pattern(&bench, "deep.mkv", "64x64", &["-pix_fmt", "yuv422p10le", "-c:v", "ffv1"]);
    pattern(&bench, "turned.mp4", "64x48", &YUV);
    ffmpeg(&bench, &["-i", "turned.mp4", "-c", "copy", "-metadata:s:v", "rotate=90", "turn.mp4"]);
    for (clip, more) in [("full.mp4", &[][..]), ("deep.mkv", &["--codec", "ffv1"]), ("turn.mp4", &[])] {
        let output = format!("long-{}.mkv", &clip[..4]);
        recipe(&bench, &[&args[..], &["--init-video", clip, "-o", &output], more].concat());
        let (there, here) = (tags(&bench, clip), tags(&bench, &output));
        let field = |tags: &str, name: &str| {
            let line = tags.lines().find(|line| line.starts_with(name)).expect("a tag");
            line.replace("yuvj", "yuv").replace("unknown", "")
        };
        let names: &[&str] =
            if clip == "full.mp4" { &["pix_fmt", "color_range", "color_space"] } else { &["pix_fmt"] };
        for name in names {
            assert_eq!(field(&here, name), field(&there, name), "{clip}");
        }
    }
    assert!(samples(&bench, "long-deep.mkv", 16)[..12] == samples(&bench, "deep.mkv", 12));
    // Turned upright, by ffmpeg and by us.
    let kept = psnr(&samples(&bench, "long-turn.mkv", 16)[..12], &samples(&bench, "turn.mp4", 12));
    assert!(kept >= 38.0, "{kept} dB");
    // Who asks for something gets it.
    let eight = ["--init-video", "deep.mkv", "--pix-fmt", "yuv420p", "-o", "eight.mp4"];
    recipe(&bench, &[&args[..], &eight].concat());
    assert!(tags(&bench, "eight.mp4").contains("pix_fmt=yuv420p\n"));
}
