//! What the sinks write, looked at through ffprobe and through our own readers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "media/reading.rs"]
mod reading;
#[path = "media/support.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sora::{
    Error, ErrorKind,
    media::{Codec, EncodeOptions, Format, SheetBuilder, Target, TeeSink, open_sink, read_clip, read_image},
    video::{Frame, FrameSink},
};

use support::*;

/// One row for each container and codec: ending, codec, codec name and pixel format in ffprobe.
const WRITTEN: &[(&str, Codec, &str, &str)] = &[
    ("mp4", Codec::H264, "h264", "yuv420p"),
    ("mov", Codec::H264, "h264", "yuv420p"),
    ("mkv", Codec::H264, "h264", "yuv420p"),
    ("webm", Codec::Vp9, "vp9", "yuv420p"),
    ("mp4", Codec::Hevc, "hevc", "yuv420p"),
    ("mp4", Codec::Vp9, "vp9", "yuv420p"),
    ("webm", Codec::Av1, "av1", "yuv420p"),
    ("mkv", Codec::Ffv1, "ffv1", "bgr0"),
    ("mov", Codec::Prores, "prores", "yuv422p10le"),
    ("mov", Codec::Mjpeg, "mjpeg", "yuvj420p"),
];

#[test]
fn every_codec_comes_back_as_it_was_sent() {
    let folder = folder();
    let frames: Vec<_> = (0..10).map(frame).collect();
    for (ending, codec, name, pixel) in WRITTEN {
        let what = format!("{codec} in {ending}");
        let file = target(&folder, &format!("{codec}.{ending}"));
        let crf = matches!(codec, Codec::H264 | Codec::Hevc | Codec::Vp9 | Codec::Av1).then_some(12);
        let preset =
            crf.map(|_| if matches!(codec, Codec::H264 | Codec::Hevc) { "fast" } else { "6" }.to_owned());
        let options = EncodeOptions { codec: Some(*codec), crf, preset, ..at(23.976) };
        write(&file, frames.clone(), &options).unwrap_or_else(|e| panic!("{what}: {e}"));

        let (stream, container) = probe(file.path());
        assert_eq!(
            (stream["codec_name"].as_str(), stream["pix_fmt"].as_str()),
            (Some(*name), Some(*pixel)),
            "{what}"
        );
        assert_eq!(stream["nb_read_frames"], "10", "{what}");
        assert_eq!(stream["avg_frame_rate"], "24000/1001", "{what}");
        let duration = number(&container["duration"]);
        assert!((duration - 10.0 * 1.001 / 24.0).abs() < 2e-3, "{what}: {duration}");
        let colours =
            ["color_space", "color_range", "color_primaries", "color_transfer"].map(|key| &stream[key]);
        match codec {
            Codec::Ffv1 => assert_eq!(colours[0], "gbr", "{what}"),
            Codec::Mjpeg => assert_eq!((colours[0], colours[1]), (&"bt470bg".into(), &"pc".into()), "{what}"),
            // Its encoder writes no range; limited is the only one ProRes has.
            Codec::Prores => assert_eq!([colours[0], colours[2], colours[3]], ["bt709"; 3], "{what}"),
            _ => assert_eq!(colours, ["bt709", "tv", "bt709", "bt709"], "{what}"),
        }

        let clip = read_clip(file.path()).expect("a clip");
        assert_eq!((clip.width(), clip.height()), (WIDTH, HEIGHT), "{what}");
        assert!((clip.fps() - 24.0 / 1.001).abs() < 1e-9, "{what}");
        let got: Vec<_> = clip.map(|frame| frame.expect("a frame")).collect();
        if *codec == Codec::Ffv1 {
            assert_eq!(got, frames, "lossless");
        }
        let psnr = psnr(&frames, &got);
        assert!(psnr > 35.0, "{what}: {psnr:.1} dB");
    }
}

#[test]
fn solid_colours_stay_what_they_are() {
    let folder = folder();
    let patches =
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [0, 0, 0], [255, 255, 255], [200, 120, 40]];
    let cases = [
        ("mp4", None, None),
        ("webm", None, None),
        ("mkv", Some(Codec::Ffv1), Some("yuv420p")),
        ("mov", Some(Codec::Mjpeg), None),
        ("mov", Some(Codec::Prores), None),
        ("mp4", Some(Codec::H264), Some("yuv444p10")),
        ("y4m", None, None),
    ];
    for (ending, codec, pixel) in cases {
        let lossy = matches!(ending, "mp4" | "webm");
        let options =
            EncodeOptions { codec, crf: lossy.then_some(4), pix_fmt: pixel.map(str::to_owned), ..at(8.0) };
        let file = target(&folder, &format!("patches.{ending}"));
        write(&file, patches.map(solid), &options).expect("written");
        let frames = decoded(file.path());
        assert_eq!(frames.len(), patches.len());
        for (frame, expected) in frames.iter().zip(patches) {
            let middle = (HEIGHT / 2 * WIDTH + WIDTH / 2) * 3;
            let got = &frame.rgb[middle..middle + 3];
            let near = got.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 3);
            assert!(near, "{ending} {codec:?} {pixel:?}: {got:?} for {expected:?}");
        }
    }
}

/// The same through FFmpeg's own reading of the tags: proves they say what was done.
#[test]
fn ffmpeg_sees_the_same_colours() {
    let folder = folder();
    for (ending, size) in [("mp4", 64), ("webm", 64), ("y4m", 64)] {
        let file = target(&folder, &format!("red.{ending}"));
        write(&file, [solid([230, 20, 60])], &at(8.0)).expect("written");
        let output = Command::new("ffmpeg")
            .args(["-v", "error", "-i", file.path().to_str().expect("UTF-8")])
            .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
            .output()
            .expect("ffmpeg is installed");
        let got = &output.stdout[size * 3..size * 3 + 3];
        assert!(got.iter().zip([230, 20, 60]).all(|(a, b)| a.abs_diff(b) <= 4), "{ending}: {got:?}");
    }
}

#[test]
fn rates_and_lengths_are_exact() {
    let folder = folder();
    for (fps, rate) in [(8.0, "8/1"), (25.0, "25/1"), (29.97, "30000/1001"), (12.5, "25/2")] {
        for ending in ["mp4", "webm"] {
            let file = target(&folder, &format!("rate.{ending}"));
            write(&file, (0..5).map(frame), &at(fps)).expect("written");
            let (stream, container) = probe(file.path());
            assert_eq!(stream["avg_frame_rate"], rate, "{ending}");
            assert_eq!(stream["r_frame_rate"], rate, "{ending}");
            let duration = number(&container["duration"]);
            assert!((duration - 5.0 / fps).abs() < 2e-3, "{ending} at {fps}: {duration}");
        }
    }
}

#[test]
fn the_shortest_clips_are_whole() {
    let folder = folder();
    if !in_child("the_shortest_clips_are_whole", folder.path()) {
        return;
    }
    for (ending, codec, ..) in WRITTEN {
        for frames in 1..=3 {
            let what = format!("{frames} frames of {codec} in {ending}");
            let file = target(&folder, &format!("short.{ending}"));
            let options = EncodeOptions { codec: Some(*codec), ..at(8.0) };
            write(&file, (0..frames).map(frame), &options).unwrap_or_else(|e| panic!("{what}: {e}"));
            let (stream, container) = probe(file.path());
            assert_eq!(stream["nb_read_frames"], frames.to_string(), "{what}");
            assert!((number(&container["duration"]) - frames as f64 / 8.0).abs() < 2e-3, "{what}");
            assert_eq!(decoded(file.path()).len(), frames, "{what}");
        }
    }
}

#[test]
fn mp4_starts_at_once_and_carries_tags() {
    let folder = folder();
    let recipe = r#"{"prompt":"pirate ships in coffee – ☕","seed":7}"#;
    let metadata = vec![("comment".to_owned(), recipe.to_owned()), ("sora_seed".to_owned(), "7".to_owned())];
    let options = EncodeOptions { metadata, ..at(24.0) };
    for (ending, keys) in [
        ("mp4", ["comment", "sora_seed"]),
        ("mov", ["comment", "sora_seed"]),
        ("mkv", ["COMMENT", "SORA_SEED"]),
    ] {
        let file = target(&folder, &format!("tags.{ending}"));
        write(&file, (0..3).map(frame), &options).expect("written");
        let tags = &probe(file.path()).1["tags"];
        assert_eq!(tags[keys[0]], recipe, "{ending}: {tags}");
        assert_eq!(tags[keys[1]], "7", "{ending}");
    }
    let bytes = fs::read(folder.path().join("tags.mp4")).expect("the file");
    let find = |what: &[u8]| bytes.windows(4).position(|w| w == what).expect("a box");
    assert!(find(b"moov") < find(b"mdat"));
    assert!(find(b"avc1") < find(b"mdat"));

    write(
        &target(&folder, "apple.mov"),
        (0..2).map(frame),
        &EncodeOptions { codec: Some(Codec::Hevc), ..at(24.0) },
    )
    .expect("written");
    assert_eq!(probe(&folder.path().join("apple.mov")).0["codec_tag_string"], "hvc1");

    for name in ["tags.png", "tags.jpg", "tags.gif"] {
        let file = target(&folder, name);
        write(&file, [frame(0)], &options).expect("written");
        let bytes = fs::read(file.path()).expect("the file");
        assert!(bytes.windows(recipe.len()).any(|w| w == recipe.as_bytes()), "{name}");
        probe(file.path());
    }
}

/// A thread that sees one core stands for a machine that has one.
#[cfg(target_os = "linux")]
#[test]
fn same_frames_same_bytes_on_any_number_of_cores() {
    let folder = folder();
    let encode = |name: String, codec: Option<Codec>| {
        let file = target(&folder, &name);
        write(&file, (0..12).map(frame), &EncodeOptions { codec, ..at(24.0) }).expect("written");
        fs::read(file.path()).expect("the file")
    };
    let cases = [
        ("mp4", Some(Codec::H264)),
        ("mp4", Some(Codec::Hevc)),
        ("webm", Some(Codec::Vp9)),
        ("webm", Some(Codec::Av1)),
        ("mkv", Some(Codec::Ffv1)),
        ("gif", None),
        ("webp", None),
    ];
    for (ending, codec) in cases {
        let many = encode(format!("many.{ending}"), codec);
        assert!(many == encode(format!("again.{ending}"), codec), "{ending} {codec:?} twice");
        let one = std::thread::scope(|scope| {
            let one = scope.spawn(|| {
                // SAFETY: the set is plain bits, zero is a valid one; it holds for this thread only.
                unsafe {
                    let mut cores: libc::cpu_set_t = std::mem::zeroed();
                    libc::CPU_SET(0, &mut cores);
                    libc::sched_setaffinity(0, size_of_val(&cores), &cores);
                }
                encode(format!("one.{ending}"), codec)
            });
            one.join().expect("written")
        });
        assert!(many == one, "{ending} {codec:?} on one core");
    }
}

#[test]
fn y4m_is_laid_out_as_its_header_says() {
    let folder = folder();
    let file = target(&folder, "clip.y4m");
    let mut sink = open_sink(&file, 5, 3, &at(29.97)).expect("odd sizes are fine with full chroma");
    for _ in 0..2 {
        sink.push(Frame { width: 5, height: 3, rgb: vec![255; 45] }).expect("pushed");
    }
    sink.finish().expect("finished");
    let bytes = fs::read(file.path()).expect("the file");
    let header = b"YUV4MPEG2 W5 H3 F30000:1001 Ip A1:1 C444 XCOLORRANGE=LIMITED\n";
    let white = [&b"FRAME\n"[..], &[235; 15], &[128; 30]].concat();
    assert_eq!(bytes, [&header[..], &white, &white].concat());
}

#[test]
fn a_folder_is_lossless_and_forgets_longer_clips() {
    let folder = folder();
    let frames: Vec<_> = (0..4).map(frame).collect();
    let clip = target(&folder, "clip/");
    assert_eq!(write(&clip, frames.clone(), &at(8.0)).expect("written"), clip.path());
    assert_eq!(names_in(clip.path()), ["000000.png", "000001.png", "000002.png", "000003.png"]);
    for (i, expected) in frames.iter().enumerate() {
        assert_eq!(read_image(&clip.path().join(format!("{i:06}.png"))).expect("a picture"), *expected);
    }

    fs::write(clip.path().join("notes.txt"), "mine").expect("written");
    fs::write(clip.path().join("7.png"), "mine too").expect("written");
    write(
        &Target::parse(clip.path().to_str().expect("UTF-8")).expect("a folder"),
        frames[2..].to_vec(),
        &at(8.0),
    )
    .expect("written");
    assert_eq!(names_in(clip.path()), ["000000.png", "000001.png", "7.png", "notes.txt"]);
    assert_eq!(read_image(&clip.path().join("000001.png")).expect("a picture"), frames[3]);
    assert_eq!(names_in(folder.path()), ["clip"]);

    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let plain = folder.path().join("plain");
        fs::create_dir(&plain).expect("made");
        assert_eq!(mode(clip.path()), mode(&plain));
        fs::write(plain.join("file"), "").expect("written");
        write(&target(&folder, "clip.mp4"), [frame(0)], &at(8.0)).expect("written");
        assert_eq!(mode(&folder.path().join("clip.mp4")), mode(&plain.join("file")));
    }
}

#[test]
fn stills_hold_exactly_one_frame() {
    let folder = folder();
    for (name, least) in [("still.png", f64::INFINITY), ("still.jpg", 38.0)] {
        let file = target(&folder, name);
        write(&file, [frame(0)], &at(24.0)).expect("written");
        assert!(psnr(&[frame(0)], &[read_image(file.path()).expect("a picture")]) >= least, "{name}");
        let (text, hint, _) = failure(write(&file, [frame(0), frame(1)], &at(24.0)));
        assert!(text.contains("second frame") && hint.contains("folder"), "{text} / {hint}");
    }
    assert_eq!(names_in(folder.path()), ["still.jpg", "still.png"]);
}

#[test]
fn gifs_play_at_the_right_speed_and_forever() {
    let folder = folder();
    let file = target(&folder, "clip.gif");
    let frames: Vec<_> = (0..24).map(frame).collect();
    write(&file, frames.clone(), &at(24.0)).expect("written");
    let (stream, container) = probe(file.path());
    assert_eq!((&stream["codec_name"], &stream["nb_read_frames"]), (&"gif".into(), &"24".into()));
    let duration = number(&container["duration"]);
    assert!((duration - 1.0).abs() < 0.011, "{duration}");
    let bytes = fs::read(file.path()).expect("the file");
    assert!(bytes.windows(14).any(|w| w == b"NETSCAPE2.0\x03\x01\x00"), "loops");
    let got = decoded(file.path());
    let quality = psnr(&frames, &got);
    // Three waves of their own are hard on 255 colours; FFmpeg's palette filters come to 30.4.
    assert!(quality > 30.0, "{quality:.1} dB");

    // Few colours stay as they are, and what doesn't move costs nearly nothing.
    let flat = target(&folder, "flat.gif");
    let mut still = solid([12, 200, 100]);
    still.rgb[..300].fill(255);
    write(&flat, vec![still.clone(); 50], &EncodeOptions { loop_count: 1, ..at(10.0) }).expect("written");
    assert!(decoded(flat.path()).iter().all(|frame| *frame == still));
    let bytes = fs::read(flat.path()).expect("the file");
    assert!(bytes.len() < 4000, "{}", bytes.len());
    assert!(!bytes.windows(11).any(|w| w == b"NETSCAPE2.0"), "plays once");
}

#[test]
fn webp_is_animated() {
    let folder = folder();
    let file = target(&folder, "clip.webp");
    write(&file, (0..6).map(frame), &at(10.0)).expect("written");
    let bytes = fs::read(file.path()).expect("the file");
    let chunk = |name: &[u8]| bytes.windows(4).filter(|w| *w == name).count();
    assert_eq!((&bytes[..4], &bytes[8..12], chunk(b"ANMF")), (&b"RIFF"[..], &b"WEBP"[..], 6));
    let anim = bytes.windows(4).position(|w| w == b"ANIM").expect("an animation");
    assert_eq!(bytes[anim + 12..anim + 14], [0, 0], "forever");
    let first = read_image(file.path()).expect("its first frame");
    assert!(psnr(&[frame(0)], &[first]) > 33.0);
}

#[test]
fn endings_decide() {
    let folder = folder();
    let cases = [
        ("a.mp4", Format::Mp4),
        ("a.MOV", Format::Mov),
        ("a.mkv", Format::Mkv),
        ("a.webm", Format::Webm),
        ("a.gif", Format::Gif),
        ("a.webp", Format::Webp),
        ("a.png", Format::Png),
        ("a.jpeg", Format::Jpeg),
        ("a.y4m", Format::Y4m),
        ("frames", Format::Frames),
        ("a.mp4/", Format::Frames),
        ("-", Format::Stdout),
    ];
    for (name, format) in cases {
        assert_eq!(Target::parse(name).expect(name).format(), format, "{name}");
    }
    let (text, hint, kind) = failure(Target::parse("clip.avi"));
    assert_eq!(
        text,
        "unknown file ending `.avi` of clip.avi (expected .mp4, .mov, .mkv, .webm, .gif, .webp, .png, .jpg, .y4m, a folder, or - for stdout)"
    );
    assert!(hint.contains("folder") && kind == ErrorKind::Usage);
    assert!(Target::parse("").is_err());
    fs::create_dir(folder.path().join("take.2")).expect("made");
    assert_eq!(target(&folder, "take.2").format(), Format::Frames);
}

#[test]
fn unwritable_targets_are_found_before_the_work() {
    let folder = folder();
    fs::create_dir(folder.path().join("taken.mp4")).expect("made");
    fs::write(folder.path().join("file"), "").expect("written");
    let before = names_in(folder.path());
    target(&folder, "fine.mp4").check_writable().expect("writable");
    target(&folder, "frames/").check_writable().expect("writable");
    target(&folder, ".").check_writable().expect("writable");

    let (text, hint, kind) = failure(target(&folder, "missing/out.mp4").check_writable());
    let missing = folder.path().join("missing");
    assert_eq!(text, format!("can't write into {}", missing.display()));
    assert_eq!(hint, format!("make it first: mkdir -p {}", missing.display()));
    assert_eq!(kind, ErrorKind::Io);
    failure(target(&folder, "missing/frames/").check_writable());
    failure(target(&folder, "file/out.mp4").check_writable());
    assert!(failure(target(&folder, "taken.mp4").check_writable()).0.contains("a folder of that name"));
    assert!(failure(target(&folder, "file").check_writable()).0.contains("a file of that name"));
    assert_eq!(names_in(folder.path()), before);
    // The sink says the same.
    assert!(failure(open_sink(&target(&folder, "missing/out.mp4"), 64, 64, &at(8.0))).1.contains("mkdir -p"));
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let folder = folder();
    let refused = |name: &str, size: (usize, usize), options: EncodeOptions| {
        let (text, hint, kind) = failure(open_sink(&target(&folder, name), size.0, size.1, &options));
        assert_eq!(kind, ErrorKind::Usage, "{text}");
        format!("{text} / {hint}")
    };
    let crf = |codec, crf| EncodeOptions { codec: Some(codec), crf: Some(crf), ..at(24.0) };
    let even = (64, 64);
    let texts = [
        refused("a.webm", even, EncodeOptions { codec: Some(Codec::H264), ..at(24.0) }),
        refused("a.mp4", even, crf(Codec::H264, 52)),
        refused("a.mkv", even, crf(Codec::Ffv1, 5)),
        refused("a.mp4", even, EncodeOptions { preset: Some("warp".into()), ..at(24.0) }),
        refused("a.mp4", even, EncodeOptions { pix_fmt: Some("rgb24".into()), ..at(24.0) }),
        refused("a.mp4", (65, 64), at(24.0)),
        refused("a.mp4", even, at(0.0)),
        refused("a.gif", even, at(60.0)),
        refused("a.png", even, EncodeOptions { codec: Some(Codec::H264), ..at(24.0) }),
        refused("a.mp4", even, EncodeOptions { loop_count: 2, ..at(24.0) }),
        refused("a.mp4", even, EncodeOptions { metadata: vec![("a\0".into(), String::new())], ..at(24.0) }),
        refused("a.mp4", (0, 64), at(24.0)),
    ];
    insta::assert_snapshot!(texts.join("\n"));
    assert!(names_in(folder.path()).is_empty());

    let full = EncodeOptions { pix_fmt: Some("yuv444p".into()), ..at(24.0) };
    let mut sink = open_sink(&target(&folder, "odd.mp4"), 65, 63, &full).expect("odd sizes with full chroma");
    sink.push(Frame { width: 65, height: 63, rgb: vec![90; 65 * 63 * 3] }).expect("pushed");
    sink.finish().expect("finished");
    assert_eq!("H265".parse::<Codec>().expect("known"), Codec::Hevc);
    assert!("divx".parse::<Codec>().is_err());
}

#[test]
fn a_dropped_sink_leaves_nothing() {
    let folder = folder();
    for name in ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "a.jpg", "a.y4m", "frames/"] {
        fs::write(folder.path().join("a.mp4"), "the earlier one").expect("written");
        let mut sink = open_sink(&target(&folder, name), WIDTH, HEIGHT, &at(8.0)).expect(name);
        sink.push(frame(0)).expect("pushed");
        assert!(names_in(folder.path()).len() > 1, "{name} is written beside its target");
        drop(sink);
        assert_eq!(names_in(folder.path()), ["a.mp4"], "{name}");
        let empty = open_sink(&target(&folder, name), WIDTH, HEIGHT, &at(8.0)).expect(name).finish();
        assert!(failure(empty).0.contains("no frames"), "{name}");
        let small = Frame { width: 2, height: 2, rgb: vec![0; 12] };
        assert!(
            failure(write(&target(&folder, name), [small], &at(8.0))).0.contains("expected 96x64"),
            "{name}"
        );
    }
    assert_eq!(names_in(folder.path()), ["a.mp4"]);
    assert_eq!(fs::read(folder.path().join("a.mp4")).expect("the file"), b"the earlier one");
}

#[cfg(unix)]
#[test]
fn a_link_is_written_through() {
    let folder = folder();
    fs::create_dir(folder.path().join("store")).expect("made");
    let real = folder.path().join("store/real.mp4");
    fs::write(&real, "").expect("written");
    std::os::unix::fs::symlink(&real, folder.path().join("link.mp4")).expect("linked");
    write(&target(&folder, "link.mp4"), [frame(0)], &at(8.0)).expect("written");
    assert!(folder.path().join("link.mp4").is_symlink());
    assert_eq!(probe(&real).0["nb_read_frames"], "1");
}

#[test]
fn names_are_never_protocols_or_patterns() {
    let folder = folder();
    for name in ["a:b.mp4", "50%d.mp4", "-x.mkv", "Kaffee ☕.webm"] {
        let file = target(&folder, name);
        write(&file, (0..2).map(frame), &at(8.0)).expect(name);
        assert_eq!(decoded(file.path()).len(), 2, "{name}");
    }
}

#[test]
fn a_contact_sheet_shows_evenly_spaced_frames() {
    let folder = folder();
    let sheet = target(&folder, "sheet.png");
    let builder = SheetBuilder::new(&sheet, 23).expect("a picture");
    let clip = open_sink(&target(&folder, "clip.mp4"), WIDTH, HEIGHT, &at(8.0)).expect("open");
    let mut tee = Box::new(TeeSink::new(vec![clip, Box::new(builder)]));
    for i in 0..23_u8 {
        tee.push(solid([i * 10, 0, 0])).expect("pushed");
    }
    assert_eq!(tee.finish().expect("finished"), folder.path().join("clip.mp4"));
    let picture = read_image(&folder.path().join("sheet.png")).expect("a picture");
    let red = |x: usize, y: usize| picture.rgb[(y * picture.width + x) * 3];
    assert_eq!((picture.width, picture.height), (4 * 102 + 6, 3 * 70 + 6));
    assert_eq!((red(0, 0), red(20, 20)), (32, 0));
    assert_eq!(red(picture.width - 20, picture.height - 20), 220, "the last frame stands last");
    assert!(SheetBuilder::new(&target(&folder, "sheet.mp4"), 5).is_err());
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let outer = folder();
    if !in_child("a_full_disk_is_said_and_leaves_nothing", outer.path()) {
        assert!(names_in(outer.path()).is_empty());
        return;
    }
    let place = PathBuf::from(std::env::var_os("SORA_CHILD").expect("set by the parent"));
    // SAFETY: plain calls of the system; the limit holds for this process, which runs this test only.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit { rlim_cur: 12_000, rlim_max: libc::RLIM_INFINITY };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let noise = |i: usize| {
        let mut state = i as u32 + 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Frame { width: WIDTH, height: HEIGHT, rgb: (0..WIDTH * HEIGHT * 3).map(|_| next()).collect() }
    };
    for name in ["a.mp4", "a.mkv", "a.webm", "a.gif", "a.webp", "a.png", "a.y4m", "frames/"] {
        let file = Target::parse(place.join(name).to_str().expect("UTF-8")).expect("known");
        let frames = if file.format().is_still() { 1 } else { 12 };
        let Err(error) = write(&file, (0..frames).map(noise), &at(8.0)) else { panic!("{name} was written") };
        let Error::File { source, .. } = &error else { panic!("{name}: {error:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::FileTooLarge, "{name}");
        assert!(names_in(&place).is_empty(), "{name}: {:?}", names_in(&place));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn stdout_takes_y4m() {
    let outer = folder();
    if !in_child("stdout_takes_y4m", outer.path()) {
        let piped = outer.path().join("piped.y4m");
        assert_eq!(decoded(&piped).len(), 3);
        assert_eq!(probe(&piped).0["pix_fmt"], "yuv444p");
        return;
    }
    let place = PathBuf::from(std::env::var_os("SORA_CHILD").expect("set by the parent"));
    let stdout_into = |file: fs::File| {
        use std::os::fd::AsRawFd as _;
        // SAFETY: plain calls of the system on descriptors that are open.
        unsafe {
            let kept = libc::dup(1);
            assert!(kept >= 0 && libc::dup2(file.as_raw_fd(), 1) == 1);
            let target = Target::parse("-").expect("stdout");
            let written = target.check_writable().and_then(|()| write(&target, (0..3).map(frame), &at(8.0)));
            assert!(libc::dup2(kept, 1) == 1 && libc::close(kept) == 0);
            written
        }
    };
    let piped = fs::File::create(place.join("piped.y4m")).expect("made");
    assert_eq!(stdout_into(piped).expect("written"), Path::new("-"));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let Err(error) = stdout_into(full) else { panic!("a full device took everything") };
    assert!(error.hint().is_some_and(|hint| hint.contains("space")), "{error:?}");
}
