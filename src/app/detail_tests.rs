use super::*;
use crate::{app::seam::Steps, video::Frames};

const SIDE: usize = 64;

/// A picture with fine stripes, and a bright square at `x`.
fn picture(x: f64, stripes: bool) -> Frame {
    let value = |column: usize, row: usize| {
        let inside = (column as f64 - x).abs() < 7.0 && (20..36).contains(&row);
        let fine = if stripes && (column / 2 + row).is_multiple_of(2) { 16 } else { 0 };
        (70 + row as u8) + if inside { 80 } else { 0 } + fine
    };
    let rgb = (0..SIDE * SIDE).flat_map(|i| {
        let v = value(i % SIDE, i / SIDE);
        [v, v / 2, 230 - v]
    });
    Frame { width: SIDE, height: SIDE, rgb: rgb.collect() }
}

/// What is decoded: without the stripes, a little darker, and the square moves.
fn decoded(count: usize, from: f64) -> Vec<Frame> {
    (0..count)
        .map(|i| {
            let frame = picture(from + 2.0 * i as f64, false);
            Frame { rgb: frame.rgb.iter().map(|v| v.saturating_sub(3)).collect(), ..frame }
        })
        .collect()
}

/// Collects what comes out.
#[derive(Clone, Default)]
struct Kept(std::sync::Arc<std::sync::Mutex<Frames>>);

impl FrameSink for Kept {
    fn push(&mut self, frame: Frame) -> Result<()> {
        self.0.lock().expect("no thread panicked").push(frame)
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        Ok(PathBuf::new())
    }
}

fn kept(frames: &[Frame], held: Vec<Held>) -> Vec<Frame> {
    let inner = Kept::default();
    let mut sink = Box::new(DetailSink::new(inner.clone(), held));
    frames.iter().for_each(|frame| sink.push(frame.clone()).expect("a frame is taken"));
    sink.finish().expect("nothing can fail");
    let frames = inner.0.lock().expect("no thread panicked");
    frames.0.clone()
}

fn psnr(a: &Frame, b: &Frame) -> f64 {
    let sum: f64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.rgb.len() as f64 / sum.max(1e-9)).log10()
}

fn steps(frames: &[Frame]) -> (Vec<f64>, f64) {
    let mut steps = Steps::default();
    frames.iter().for_each(|frame| steps.see(frame));
    (frames.windows(2).map(|pair| step(&pair[0], &pair[1])).collect(), steps.median())
}

#[test]
fn a_held_picture_gets_its_detail_back_and_what_moves_loses_it() {
    let raw = decoded(17, 12.0);
    let shown = picture(12.0, true);
    assert!(psnr(&raw[0], &shown) < 30.0);
    let made = kept(&raw, vec![Held { frame: 0, picture: shown.clone() }]);
    assert_eq!(made.len(), raw.len());
    assert!(psnr(&made[0], &shown) > 40.0, "{}", psnr(&made[0], &shown));
    let (with, _) = steps(&made);
    let (without, median) = steps(&raw);
    assert!(without.iter().zip(&with).all(|(a, b)| *b <= a.max(WIDEST * median) + LEAST + 1.0), "{with:?}");
    assert!(with[0] <= 1.5 * median, "{} beside {median}", with[0]);
    // In the corner nothing moves, and the stripes stay for a while; in the end they are gone.
    let contrast = |frame: &Frame| {
        let at = |x: usize, y: usize| f64::from(frame.rgb[(y * SIDE + x) * 3]);
        (4..20).map(|x| (at(x, 50) - at(x, 51) + 1.0).abs()).sum::<f64>() / 16.0
    };
    assert!(contrast(&made[4]) > 0.75 * contrast(&shown), "{} {}", contrast(&made[4]), contrast(&shown));
    // Where the square has come, the stripes of what it covers are not its own.
    let covered = |frame: &Frame| frame.rgb[(28 * SIDE + 44) * 3].abs_diff(raw[16].rgb[(28 * SIDE + 44) * 3]);
    assert!(covered(&made[16]) <= 2, "{}", covered(&made[16]));
}

#[test]
fn detail_goes_both_ways_in_time_and_two_pictures_share_the_frames_between() {
    let raw = decoded(40, 0.0);
    let at = |frame: usize| Held { frame, picture: picture(2.0 * frame as f64, true) };
    let made = kept(&raw, vec![at(39), at(10)]);
    assert_eq!(made.len(), 40);
    for frame in [10, 39] {
        assert!(psnr(&made[frame], &at(frame).picture) > 40.0, "{frame}");
    }
    for frame in [8, 12, 37] {
        let shown = picture(2.0 * frame as f64, true);
        assert!(psnr(&made[frame], &shown) > psnr(&raw[frame], &shown) + 3.0, "{frame}");
    }
    let (with, _) = steps(&made);
    let (without, median) = steps(&raw);
    // Each of the two may add as much.
    let most = |plain: f64| plain + 2.0 * ((WIDEST * median - plain).max(LEAST) + 1.0);
    assert!(without.iter().zip(&with).all(|(a, b)| *b <= most(*a)), "{with:?} {without:?}");
}

#[test]
fn what_the_video_does_not_show_is_not_put_there() {
    let raw = decoded(3, 12.0);
    let white = Frame { rgb: vec![255; SIDE * SIDE * 3], ..picture(0.0, true) };
    let made = kept(&raw, vec![Held { frame: 1, picture: white }]);
    assert!(step(&made[1], &raw[1]) < 4.0, "{}", step(&made[1], &raw[1]));
    assert_eq!(kept(&raw, Vec::new()), raw);
    // A clip that ends early loses no frame.
    let late = kept(&raw, vec![Held { frame: 9, picture: picture(0.0, true) }]);
    assert_eq!(late, raw);
}
