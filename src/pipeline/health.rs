//! Looks at a clip's frames as they pass and says whether they can be a video of anything.

use super::pictures::Picture;
use crate::error::Error;

/// Below this spread (in bytes, over all pixels of all frames) a channel is one tone.
const FLAT: f64 = 1.0;
/// Noise spreads wider than this, in bytes; rounding alone makes fine patterns below it.
const LOUD: f64 = 10.0;
/// Noise is unlike itself at every distance: no correlation reaches this.
const UNLIKE: f64 = 0.1;
/// Stars, rain and snow are unlike their neighbours too, but rare: their kurtosis is above this.
const RARE: f64 = 6.0;
/// Noise whose frames correlate above this doesn't move.
const STILL: f64 = 0.9;
/// Sides from which correlations mean something.
const SIDE: usize = 32;
/// Frames of a clip that are searched for noise.
const SEARCHED: usize = 16;
/// Distances in pixels at which a picture is compared with itself, across and down; far ones too, since what a
/// decoder paints in patches is like itself a patch away.
const DISTANCES: [usize; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32];

/// What the frames look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing is known against them.
    Fine,
    /// Some numbers are NaN or infinite.
    NotFinite,
    /// Every pixel of every frame has one colour.
    OneColour,
    /// White noise, new in each frame (or in a still picture).
    Noise,
    /// White noise, the same in all frames.
    FrozenNoise,
}

impl Verdict {
    /// The complaint, as [`Error::BadOutput`] words it.
    #[must_use]
    pub fn complaint(self) -> Option<&'static str> {
        match self {
            Self::Fine => None,
            Self::NotFinite => Some("not finite"),
            Self::OneColour => Some("all one colour"),
            Self::Noise => Some("nothing but noise"),
            Self::FrozenNoise => Some("noise that doesn't move"),
        }
    }

    /// The error for a verdict that isn't fine.
    #[must_use]
    pub fn error(self) -> Option<Error> {
        let hint = match self {
            Self::NotFinite => "pass --dtype f32; if that doesn't help, the weights are damaged",
            _ => {
                "the weights are damaged or untrained, or the settings are far from what they were trained for"
            }
        };
        Some(Error::BadOutput { what: self.complaint()?, hint: hint.into() })
    }
}

/// The numbers behind a [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Figures {
    /// Frames seen.
    pub frames: usize,
    /// Numbers that were NaN or infinite.
    pub not_finite: usize,
    /// Standard deviation of the most varied channel over all pixels of all frames, in bytes.
    pub spread: f64,
    /// The largest absolute correlation of a channel with itself some pixels away; `None` if there is no telling.
    pub likeness: Option<f64>,
    /// Fourth standardised moment of the channel with the highest; 3 is normal.
    pub kurtosis: Option<f64>,
    /// Highest correlation of a channel between frames; `None` with fewer than two.
    pub stillness: Option<f64>,
}

/// Verdict and figures.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Health {
    /// What the frames look like.
    pub verdict: Verdict,
    /// Why.
    pub figures: Figures,
}

/// Running sums over a stream of frames; keeps one frame.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// One frame of so many is searched for noise.
    every: usize,
    frames: usize,
    not_finite: usize,
    pixels: u64,
    smallest_side: usize,
    /// Sum and sum of squares of each channel's bytes.
    bytes: [(u64, u64); 3],
    grain: [Grain; 3],
}

/// Sums over the searched frames of one channel, each frame around its own mean.
#[derive(Debug, Clone, Default)]
struct Grain {
    /// Mean squares and mean fourth powers, and of how many frames.
    square: f64,
    fourth: f64,
    frames: f64,
    /// Mean products of each frame with itself moved across and down by each distance.
    products: [[f64; DISTANCES.len()]; 2],
    /// Mean products with the frame searched before, and what they would be for frames alike.
    between: (f64, f64),
    previous: Vec<f32>,
}

impl HealthCheck {
    /// For a clip of `frames` frames.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        Self {
            every: frames.div_ceil(SEARCHED).max(1),
            frames: 0,
            not_finite: 0,
            pixels: 0,
            smallest_side: usize::MAX,
            bytes: Default::default(),
            grain: Default::default(),
        }
    }

    /// Takes the next frame into account.
    pub fn see(&mut self, picture: &Picture) {
        let frame = &picture.frame;
        self.not_finite += picture.not_finite;
        for (channel, (sum, squares)) in self.bytes.iter_mut().enumerate() {
            for &byte in frame.rgb.iter().skip(channel).step_by(3) {
                *sum += u64::from(byte);
                *squares += u64::from(byte) * u64::from(byte);
            }
        }
        self.pixels += (frame.width * frame.height) as u64;
        self.smallest_side = self.smallest_side.min(frame.width).min(frame.height);
        if self.frames.is_multiple_of(self.every) {
            for (channel, grain) in self.grain.iter_mut().enumerate() {
                grain.see(
                    frame.rgb.iter().skip(channel).step_by(3).copied().map(f32::from).collect(),
                    frame.width,
                );
            }
        }
        self.frames += 1;
    }

    /// What was seen.
    #[must_use]
    pub fn health(&self) -> Health {
        let spread = |&(sum, squares): &(u64, u64)| {
            let (n, sum) = (self.pixels as f64, sum as f64);
            ((squares as f64 - sum * sum / n) / n).max(0.0).sqrt()
        };
        let most = |values: [Option<f64>; 3]| values.into_iter().flatten().reduce(f64::max);
        let grain = self.grain.each_ref();
        let figures = Figures {
            frames: self.frames,
            not_finite: self.not_finite,
            spread: self.bytes.iter().map(spread).fold(0.0, f64::max),
            likeness: most(grain.map(Grain::likeness)).filter(|_| self.smallest_side >= SIDE),
            kurtosis: most(grain.map(Grain::kurtosis)),
            stillness: most(grain.map(Grain::stillness)),
        };
        let noise = figures.likeness.is_some_and(|likeness| likeness < UNLIKE)
            && figures.kurtosis.is_some_and(|kurtosis| kurtosis < RARE)
            && figures.spread > LOUD;
        let verdict = if figures.not_finite > 0 {
            Verdict::NotFinite
        } else if figures.spread < FLAT {
            Verdict::OneColour
        } else if noise && figures.stillness.is_some_and(|stillness| stillness > STILL) {
            Verdict::FrozenNoise
        } else if noise {
            Verdict::Noise
        } else {
            Verdict::Fine
        };
        Health { verdict, figures }
    }
}

impl Grain {
    fn see(&mut self, mut values: Vec<f32>, width: usize) {
        let n = values.len().max(1) as f64;
        let mean = (values.iter().copied().map(f64::from).sum::<f64>() / n) as f32;
        for v in &mut values {
            *v -= mean;
        }
        let square = mean_product(&values, &values);
        self.frames += 1.0;
        self.square += square;
        self.fourth += values.iter().map(|&v| f64::from(v).powi(4)).sum::<f64>() / n;
        for (i, &far) in DISTANCES.iter().enumerate() {
            if far < width {
                let rows = values.chunks_exact(width);
                let height = rows.len() as f64;
                self.products[0][i] += rows.map(|row| mean_product(row, &row[far..])).sum::<f64>() / height;
            }
            if let Some(below) = values.get(far * width..) {
                self.products[1][i] += mean_product(&values, below);
            }
        }
        if self.previous.len() == values.len() {
            let before = mean_product(&self.previous, &self.previous);
            self.between.0 += mean_product(&self.previous, &values);
            self.between.1 += (before * square).sqrt();
        }
        self.previous = values;
    }

    fn likeness(&self) -> Option<f64> {
        let products = self.products.iter().flatten();
        (self.square > 0.0).then(|| products.map(|p| (p / self.square).abs()).fold(0.0, f64::max))
    }

    fn kurtosis(&self) -> Option<f64> {
        (self.square > 0.0).then(|| self.fourth * self.frames / (self.square * self.square))
    }

    fn stillness(&self) -> Option<f64> {
        (self.between.1 > 0.0).then(|| self.between.0 / self.between.1)
    }
}

/// Mean of the products of two rows as far as both go.
fn mean_product(a: &[f32], b: &[f32]) -> f64 {
    let n = a.len().min(b.len()).max(1);
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pipeline::noise::TorchRng, video::Frame};

    const W: usize = 96;
    const H: usize = 64;

    /// A clip of `frames` frames painted by a function of frame, row and column to RGB.
    fn look(frames: usize, paint: impl FnMut(usize, usize, usize) -> [u8; 3]) -> Health {
        look_at(W, H, frames, paint)
    }

    fn look_at(
        width: usize,
        height: usize,
        frames: usize,
        mut paint: impl FnMut(usize, usize, usize) -> [u8; 3],
    ) -> Health {
        let mut check = HealthCheck::new(frames);
        for t in 0..frames {
            let mut rgb = Vec::new();
            for y in 0..height {
                (0..width).for_each(|x| rgb.extend(paint(t, y, x)));
            }
            check.see(&Picture { frame: Frame { width, height, rgb }, not_finite: 0 });
        }
        check.health()
    }

    /// Repeatable bytes, flat between 0 and 255.
    fn dice(seed: u64, frames: usize) -> Vec<u8> {
        let values = TorchRng::new(seed).randn(&[frames * W * H * 3]).expect("noise");
        values
            .to_vec1::<f32>()
            .expect("f32")
            .iter()
            .map(|x| (x * 40.0 + 128.0).clamp(0.0, 255.0) as u8)
            .collect()
    }

    fn at(bytes: &[u8], t: usize, y: usize, x: usize) -> [u8; 3] {
        let i = ((t * H + y) * W + x) * 3;
        [bytes[i], bytes[i + 1], bytes[i + 2]]
    }

    #[test]
    fn noise_is_told_from_pictures() {
        let bytes = dice(1, 9);
        assert_eq!(look(9, |t, y, x| at(&bytes, t, y, x)).verdict, Verdict::Noise);
        assert_eq!(look(1, |t, y, x| at(&bytes, t, y, x)).verdict, Verdict::Noise);
        let frozen = look(9, |_, y, x| at(&bytes, 0, y, x));
        assert_eq!(frozen.verdict, Verdict::FrozenNoise, "{:?}", frozen.figures);
        let grey = look(9, |t, y, x| [at(&bytes, t, y, x)[0]; 3]);
        assert_eq!(grey.verdict, Verdict::Noise, "{:?}", grey.figures);
        let hard = look(9, |t, y, x| [if at(&bytes, t, y, x)[0] > 128 { 255 } else { 0 }; 3]);
        assert_eq!(hard.verdict, Verdict::Noise, "{:?}", hard.figures);
    }

    #[test]
    fn one_colour_is_no_video_whatever_the_colour() {
        assert_eq!(look(9, |_, _, _| [200, 30, 7]).verdict, Verdict::OneColour);
        assert_eq!(look(1, |_, _, _| [0; 3]).verdict, Verdict::OneColour);
        let speck = look(9, |t, y, x| if (t, y, x) == (3, 3, 3) { [128; 3] } else { [127; 3] });
        assert_eq!(speck.verdict, Verdict::OneColour);
        assert_eq!(look(9, |t, _, _| [t as u8 * 20; 3]).verdict, Verdict::Fine, "a fade");
    }

    #[test]
    fn what_is_not_finite_is_said_first() {
        let mut check = HealthCheck::new(1);
        let frame = Frame { width: 2, height: 2, rgb: vec![0; 12] };
        check.see(&Picture { frame, not_finite: 1 });
        let health = check.health();
        assert_eq!(health.verdict, Verdict::NotFinite);
        assert!(health.verdict.error().is_some_and(|error| error.to_string().contains("not finite")));
    }

    #[test]
    fn pictures_pass() {
        let bytes = dice(2, 9);
        let inside =
            |t: usize, y: usize, x: usize| (20 + 4 * t..44 + 4 * t).contains(&x) && (20..44).contains(&y);
        let fine = |name: &str, health: Health| {
            assert_eq!(health.verdict, Verdict::Fine, "{name}: {:?}", health.figures);
        };
        fine("a gradient", look(9, |t, y, x| [x as u8 * 2, y as u8 * 3, t as u8 * 9]));
        let sprite = |t, y, x| if inside(t, y, x) { [230, 60, 40] } else { [40, 90, 200] };
        fine("a moving sprite", look(9, sprite));
        fine("a still picture", look(1, sprite));
        fine("a scene that doesn't move", look(9, |_, y, x| sprite(0, y, x)));
        fine("a grainy sprite", {
            look(9, |t, y, x| {
                let (base, grain) = (sprite(t, y, x), at(&bytes, t, y, x));
                [0, 1, 2].map(|c| (i32::from(base[c]) + i32::from(grain[c]) / 2 - 64).clamp(0, 255) as u8)
            })
        });
        fine("a chess board", look(9, |_, y, x| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]));
        fine("stripes", look(9, |_, _, x| [if x % 2 == 0 { 255 } else { 0 }; 3]));
        fine(
            "a dithered gradient",
            look(1, |t, y, x| [if usize::from(at(&bytes, t, y, x)[0]) > 2 * x + 30 { 255 } else { 0 }; 3]),
        );
        let star = |t, y, x| if at(&bytes, t, y, x)[0] > 215 { [255; 3] } else { [3; 3] };
        fine("stars", look(9, |_, y, x| star(0, y, x)));
        fine("snow", look(9, star));
        fine("a wall", look(9, |t, y, x| [150 + at(&bytes, t, y, x)[0] / 16; 3]));
        // What a patchwise decoder with random weights gives: each place within its patches has a level of its own.
        fine(
            "patches",
            look(9, |t, y, x| {
                let (own, level) = (at(&bytes, t, y, x)[0], at(&bytes, 0, y % 4, x % 4)[1]);
                [own / 2 + level / 2; 3]
            }),
        );
        fine("a tiny picture", look_at(16, 16, 1, |t, y, x| at(&bytes, t, y, x)));
    }
}
