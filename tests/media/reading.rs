//! What the readers make of whole, broken and turned files.

use std::{fs, process::Command};

use sora::{
    Error, ErrorKind,
    media::{Codec, EncodeOptions, Footage, content_hash, read_clip, read_image},
};

use crate::support::*;

#[test]
fn broken_and_wrong_clips_are_told_apart() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    assert_eq!(failure(read_clip(&path("missing.mp4"))).2, ErrorKind::Io);
    fs::write(path("text.mp4"), "not a video at all").expect("written");
    assert!(failure(read_clip(&path("text.mp4"))).0.contains("no video in it"));
    assert!(failure(read_clip(folder.path())).0.contains("folder"));

    // Sound without pictures.
    let wave = [&b"RIFF\x64\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00data\x40\x00\x00\x00"[..], &[0; 64]];
    fs::write(path("sound.wav"), wave.concat()).expect("written");
    assert!(failure(read_clip(&path("sound.wav"))).0.contains("no video stream"));

    let whole = target(&folder, "whole.mp4");
    write(&whole, (0..30).map(frame), &at(24.0)).expect("written");
    let bytes = fs::read(whole.path()).expect("the file");
    fs::write(path("cut.mp4"), &bytes[..bytes.len() * 3 / 4]).expect("written");
    let cut = read_clip(&path("cut.mp4")).expect("its head is whole");
    let results: Vec<_> = cut.collect();
    assert!(matches!(results.last(), Some(Err(Error::Damaged { .. }))), "{:?}", results.len());
}

#[test]
fn turned_clips_come_out_upright() {
    let folder = folder();
    let stored = target(&folder, "stored.mp4");
    let mut half = solid([250, 10, 10]);
    half.rgb[WIDTH * HEIGHT / 2 * 3..].fill(200);
    write(&stored, [half], &at(8.0)).expect("written");
    // The track's matrix, from upright to a quarter clockwise.
    let matrix = |entries: [i32; 9]| entries.map(i32::to_be_bytes).concat();
    let (one, upright) = (1 << 16, matrix([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]));
    let mut bytes = fs::read(stored.path()).expect("the file");
    let track = bytes.windows(4).position(|w| w == b"tkhd").expect("a track");
    let place = track + bytes[track..].windows(36).position(|w| w == upright).expect("a matrix");
    bytes[place..place + 36].copy_from_slice(&matrix([0, one, 0, -one, 0, 0, 0, 0, 1 << 30]));
    let turned = folder.path().join("turned.mp4");
    fs::write(&turned, bytes).expect("written");
    // What FFmpeg itself shows is the judge.
    let expected = Command::new("ffmpeg")
        .args([
            "-v",
            "error",
            "-i",
            turned.to_str().expect("UTF-8"),
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-",
        ])
        .output()
        .expect("ffmpeg is installed")
        .stdout;
    let clip = read_clip(&turned).expect("a clip");
    assert_eq!((clip.width(), clip.height()), (HEIGHT, WIDTH));
    let got = clip.map(|frame| frame.expect("a frame")).next().expect("one frame");
    let corner = |rgb: &[u8]| (rgb[0] > 225, rgb[(HEIGHT - 1) * 3] > 225);
    assert_ne!(corner(&got.rgb).0, corner(&got.rgb).1, "left and right differ now");
    assert_eq!(corner(&got.rgb), corner(&expected));
}

#[test]
fn pictures_are_turned_and_bounded() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let jpeg = target(&folder, "plain.jpg");
    write(&jpeg, [frame(0)], &at(8.0)).expect("written");
    // EXIF orientation 6: a quarter clockwise.
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut bytes = fs::read(jpeg.path()).expect("the file");
    bytes.splice(2..2, exif.iter().copied());
    fs::write(path("turned.jpg"), &bytes).expect("written");
    let turned = read_image(&path("turned.jpg")).expect("a picture");
    let plain = read_image(jpeg.path()).expect("a picture");
    assert_eq!((turned.width, turned.height), (HEIGHT, WIDTH));
    assert_eq!(turned.rgb[(HEIGHT - 1) * 3..][..3], plain.rgb[..3], "the first pixel is top right now");

    let png = target(&folder, "small.png");
    write(&png, [frame(0)], &at(8.0)).expect("written");
    let whole = fs::read(png.path()).expect("the file");
    fs::write(path("cut.png"), &whole[..whole.len() / 2]).expect("written");
    assert!(matches!(read_image(&path("cut.png")), Err(Error::Damaged { .. })));
    fs::write(path("text.png"), "no picture").expect("written");
    assert!(failure(read_image(&path("text.png"))).1.contains("png, jpeg"));
    assert_eq!(failure(read_image(&path("missing.png"))).2, ErrorKind::Io);
    // A header that promises 100000 × 100000 is refused by its promise.
    let huge = b"P6 100000 100000 255\n";
    fs::write(path("huge.ppm"), huge).expect("written");
    assert!(failure(read_image(&path("huge.ppm"))).0.contains("at most 16384"));
}

#[test]
fn footage_comes_at_any_rate() {
    let folder = folder();
    let clip = target(&folder, "clip.mkv");
    let lossless = EncodeOptions { codec: Some(Codec::Ffv1), ..at(24.0) };
    write(&clip, (0..24).map(frame), &lossless).expect("written");
    let shown = |path: &std::path::Path, fps: f64| -> Vec<usize> {
        let footage = Footage::open(path).expect("footage");
        assert_eq!(footage.size(), (WIDTH, HEIGHT));
        let frames = footage.frames(fps).map(|frame| frame.expect("a frame"));
        frames.map(|got| (0..24).find(|i| frame(*i) == got).expect("one of those written")).collect()
    };
    assert_eq!(shown(clip.path(), 24.0), (0..24).collect::<Vec<_>>());
    assert_eq!(shown(clip.path(), 8.0).len(), 8);
    assert!(shown(clip.path(), 8.0).windows(2).all(|pair| pair[1] == pair[0] + 3));
    assert_eq!(shown(clip.path(), 8.0)[0], 0);
    assert_eq!(shown(clip.path(), 48.0).len(), 48);
    assert_eq!(shown(clip.path(), 48.0)[..5], [0, 0, 1, 1, 2]);
    let pictures = target(&folder, "pictures/");
    write(&pictures, (0..5).map(frame), &at(24.0)).expect("written");
    assert_eq!(shown(pictures.path(), 8.0), [0, 1, 2, 3, 4]);
    let still = target(&folder, "still.png");
    write(&still, [frame(7)], &at(24.0)).expect("written");
    assert!(Footage::open(still.path()).expect("footage").picture().is_some());
    assert_eq!(shown(still.path(), 8.0), [7]);
    assert_ne!(content_hash(clip.path()).expect("a hash"), content_hash(pictures.path()).expect("a hash"));
}
