//! Seams between frames of a clip and frames that were made to go on with it.
//!
//! What the model makes comes through its autoencoder: colours are a little off, and fine detail is gone. Three
//! things make the joint smooth, in this order: the made frames get the colours of the originals, by what the
//! autoencoder made of originals beside the seam; the detail that it lost of the frame at the seam is carried on
//! into the new frames and fades out; and the step into the first new frame is bounded by the clip's own steps.

use crate::video::Frame;

/// The step across a seam is at most this times the clip's median step.
const WIDEST: f64 = 1.2;

/// Levels of 255 that always count as a step: less can't be seen and can't be stored.
pub(super) const LEAST: f64 = 0.5;

/// Mean absolute difference of two frames of one size, in levels of 255.
#[must_use]
pub fn step(a: &Frame, b: &Frame) -> f64 {
    let sum: u64 = a.rgb.iter().zip(&b.rgb).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / a.rgb.len().max(1) as f64
}

/// The steps between the frames of a clip that is seen once, frame by frame.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    last: Option<Frame>,
    steps: Vec<f64>,
}

impl Steps {
    /// Sees the next frame.
    pub fn see(&mut self, frame: &Frame) {
        if let Some(last) = self.last.replace(frame.clone()) {
            self.steps.push(step(&last, frame));
        }
    }

    /// Frames that were seen.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.steps.len() + usize::from(self.last.is_some())
    }

    /// The median step; 0 for less than two frames.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut steps = self.steps.clone();
        steps.sort_by(f64::total_cmp);
        steps.get(steps.len() / 2).copied().unwrap_or_default()
    }
}

/// One side of new frames: originals, and what the model made of them in the same render.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// As they are, in order.
    pub originals: &'a [Frame],
    /// Of the same size and number.
    pub remade: &'a [Frame],
}

/// New frames as numbers, until they are rounded.
struct Floats(Vec<Vec<f32>>);

/// Fits new frames to what comes before and after them. `median` is the median step of the clip that they go on
/// with; on a side without originals they end freely.
#[must_use]
pub fn fit(new: &[Frame], before: Option<Side<'_>>, after: Option<Side<'_>>, median: f64) -> Vec<Frame> {
    let (Some(first), count) = (new.first(), new.len()) else { return Vec::new() };
    let mut floats =
        Floats(new.iter().map(|frame| frame.rgb.iter().map(|&v| f32::from(v)).collect()).collect());
    floats.recolour(before.map(Colours::between), after.map(Colours::between));
    // Each side has its half of the frames to fade out in, or all of them.
    let room = if before.is_some() && after.is_some() { count.div_ceil(2) } else { count };
    let limit = (WIDEST * median).max(LEAST) as f32;
    if let Some(side) = before {
        floats.meet(side, room, limit, false);
    }
    if let Some(side) = after {
        floats.meet(side, room, limit, true);
    }
    let (width, height) = (first.width, first.height);
    let byte = |v: f32| v.clamp(0.0, 255.0).round_ties_even() as u8;
    floats.0.into_iter().map(|v| Frame { width, height, rgb: v.into_iter().map(byte).collect() }).collect()
}

/// What takes the colours of remade frames to those of the originals: a factor and a summand per channel.
#[derive(Debug, Clone, Copy)]
struct Colours([(f32, f32); 3]);

impl Colours {
    const NONE: Self = Self([(1.0, 0.0); 3]);

    fn between(side: Side<'_>) -> Self {
        let mut colours = Self::NONE;
        for (channel, map) in colours.0.iter_mut().enumerate() {
            let (mean, deviation) = moments(side.originals, channel);
            let (remade_mean, remade_deviation) = moments(side.remade, channel);
            // A blurred picture spreads less; to make up for all of it would exaggerate what is no detail.
            let factor =
                if remade_deviation > 1.0 { (deviation / remade_deviation).clamp(0.9, 1.15) } else { 1.0 };
            *map = (factor as f32, (mean - factor * remade_mean) as f32);
        }
        colours
    }

    fn mixed(self, other: Self, share: f32) -> Self {
        let mix = |a: f32, b: f32| a + share * (b - a);
        Self(std::array::from_fn(|i| (mix(self.0[i].0, other.0[i].0), mix(self.0[i].1, other.0[i].1))))
    }
}

/// Mean and standard deviation of a channel over frames.
fn moments(frames: &[Frame], channel: usize) -> (f64, f64) {
    let (mut count, mut sum, mut squares) = (0u64, 0u64, 0u64);
    for &value in frames.iter().flat_map(|frame| frame.rgb.iter().skip(channel).step_by(3)) {
        count += 1;
        sum += u64::from(value);
        squares += u64::from(value) * u64::from(value);
    }
    let n = count.max(1) as f64;
    let mean = sum as f64 / n;
    (mean, (squares as f64 / n - mean * mean).max(0.0).sqrt())
}

impl Floats {
    /// Gives the frames the originals' colours: those of the side they are nearer to, passing over in between.
    fn recolour(&mut self, before: Option<Colours>, after: Option<Colours>) {
        let (Some(start), Some(end)) = (before.or(after), after.or(before)) else { return };
        let count = self.0.len();
        for (i, frame) in self.0.iter_mut().enumerate() {
            let colours = start.mixed(end, (i as f32 + 0.5) / count as f32);
            for pixel in frame.chunks_exact_mut(3) {
                for (value, (factor, summand)) in pixel.iter_mut().zip(colours.0) {
                    *value = *value * factor + summand;
                }
            }
        }
    }

    /// Makes the frames meet an original: the first of them the last original before them or, `backward`, the last
    /// of them the first original after them. What that takes fades out over `room` frames.
    fn meet(&mut self, side: Side<'_>, room: usize, limit: f32, backward: bool) {
        let at =
            |frames: &'_ [Frame]| if backward { frames.first().cloned() } else { frames.last().cloned() };
        let (Some(original), Some(remade)) = (at(side.originals), at(side.remade)) else { return };
        let colours = Colours::between(side);
        let count = self.0.len();
        let nearest = if backward { count - 1 } else { 0 };
        // What was lost of the original, then what is too much of a step beyond it.
        let mut lost: Vec<f32> = Vec::with_capacity(original.rgb.len());
        let mut beyond = Vec::with_capacity(original.rgb.len());
        for (i, (&kept, &made)) in original.rgb.iter().zip(&remade.rgb).enumerate() {
            let (factor, summand) = colours.0[i % 3];
            let made = f32::from(made) * factor + summand;
            lost.push(f32::from(kept) - made);
            beyond.push(self.0[nearest][i] - made);
        }
        let size = beyond.iter().map(|v| f64::from(v.abs())).sum::<f64>() / beyond.len().max(1) as f64;
        let share = if size as f32 > limit { 1.0 - limit / size as f32 } else { 0.0 };
        for distance in 0..room.min(count) {
            let fade = fade(distance, room);
            let frame = &mut self.0[if backward { count - 1 - distance } else { distance }];
            for ((value, lost), beyond) in frame.iter_mut().zip(&lost).zip(&beyond) {
                *value += fade * (lost - share * beyond);
            }
        }
    }
}

/// 1 at the seam, then falling smoothly to 0 at a distance of `room` frames.
pub(super) fn fade(distance: usize, room: usize) -> f32 {
    let at = distance as f32 / room.max(1) as f32;
    0.5 + 0.5 * (std::f32::consts::PI * at).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDE: usize = 24;

    /// A bright square on a gradient, moved by `x`, with fine stripes.
    fn frame(x: f64) -> Frame {
        let value = |column: usize, row: usize| {
            let inside = (column as f64 - x).abs() < 5.0 && (8..16).contains(&row);
            let stripes = if (column + row).is_multiple_of(2) { 8.0 } else { -8.0 };
            (60.0 + 3.0 * row as f64 + if inside { 80.0 } else { 0.0 } + stripes) as u8
        };
        let rgb = (0..SIDE * SIDE).flat_map(|i| {
            let v = value(i % SIDE, i / SIDE);
            [v, v / 2, 200 - v / 2]
        });
        Frame { width: SIDE, height: SIDE, rgb: rgb.collect() }
    }

    /// What a poor autoencoder makes of a frame: another tint, and every 2 × 2 pixels alike.
    fn remade(frame: &Frame) -> Frame {
        let at = |x: usize, y: usize, c: usize| f64::from(frame.rgb[(y * SIDE + x) * 3 + c]);
        let rgb = (0..SIDE * SIDE * 3).map(|i| {
            let (x, y, c) = (i / 3 % SIDE / 2 * 2, i / 3 / SIDE / 2 * 2, i % 3);
            let mean = (at(x, y, c) + at(x + 1, y, c) + at(x, y + 1, c) + at(x + 1, y + 1, c)) / 4.0;
            (mean * 0.95 + [12.0, -6.0, 4.0][c]) as u8
        });
        Frame { rgb: rgb.collect(), ..*frame }
    }

    fn run(from: f64, count: usize) -> Vec<Frame> {
        (0..count).map(|i| frame(from + i as f64 * 0.5)).collect()
    }

    fn median(frames: &[Frame]) -> f64 {
        let mut steps = Steps::default();
        frames.iter().for_each(|frame| steps.see(frame));
        assert_eq!(steps.frames(), frames.len());
        steps.median()
    }

    fn all(frames: &[Frame]) -> Vec<Frame> {
        frames.iter().map(remade).collect()
    }

    #[test]
    fn a_seam_is_no_wider_than_the_clips_own_steps() {
        let clip = run(4.0, 9);
        let own = median(&clip);
        let side = |remade| Side { originals: &clip, remade };
        let context = all(&clip);
        let rough = all(&run(8.5, 8));
        let plain = step(&clip[8], &rough[0]);
        assert!(plain > 3.0 * own, "untreated, the seam is seen: {plain} beside {own}");
        let forward = fit(&rough, Some(side(&context)), None, own);
        assert!(step(&clip[8], &forward[0]) <= 1.5 * own, "{} {own}", step(&clip[8], &forward[0]));
        assert!(median(&forward) < 2.5 * own, "what fades out is spread over the frames");
        // The far end is the model's own, in the clip's colours.
        assert!(step(&forward[7], &frame(12.0)) < step(&rough[7], &frame(12.0)));

        let rough = all(&run(0.0, 8));
        let backward = fit(&rough, None, Some(side(&context)), own);
        assert!(step(&clip[0], &backward[7]) <= 1.5 * own);

        // From the end of the clip back to its start.
        let between = fit(&all(&run(20.0, 7)), Some(side(&context)), Some(side(&context)), own);
        assert!(step(&clip[8], &between[0]) <= 1.5 * own);
        assert!(step(&clip[0], &between[6]) <= 1.5 * own);
    }

    #[test]
    fn frames_that_jump_are_drawn_near() {
        let clip = run(4.0, 5);
        let context = all(&clip);
        let black = vec![Frame { rgb: vec![0; SIDE * SIDE * 3], ..frame(0.0) }; 6];
        let own = median(&clip);
        let side = Side { originals: &clip, remade: &context };
        let fitted = fit(&black, Some(side), None, own);
        assert!(step(&clip[4], &fitted[0]) <= 1.5 * own);
        assert!(step(&fitted[5], &black[5]) < 30.0, "in the end they are what was made");
    }

    #[test]
    fn without_originals_nothing_changes() {
        let new = run(0.0, 3);
        assert_eq!(fit(&new, None, None, 1.0), new);
        assert!(fit(&[], None, None, 1.0).is_empty());
    }
}
