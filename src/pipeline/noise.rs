//! Random numbers as torch's CPU generator gives them, so that a seed means the same clip everywhere.

use std::f64::consts::PI;

use candle_core::{Device, Tensor};

use crate::error::Result;

/// Words of the Mersenne Twister's state, and the distance of its recurrence.
const N: usize = 624;
const M: usize = 397;

/// torch's CPU generator: MT19937 and the normal distribution on top of it.
///
/// ```
/// let mut rng = sora::pipeline::noise::TorchRng::new(42);
/// let noise = rng.randn(&[1, 4, 2, 3, 3])?; // torch.randn(1, 4, 2, 3, 3, generator=g)
/// # Ok::<(), sora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct TorchRng {
    state: [u32; N],
    next: usize,
    /// The second value of the last scalar Box–Muller pair, not yet given out.
    spare: Option<f64>,
    drawn: Vec<Run>,
}

/// Draws of one size in a row: how many values each has, and how many draws there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Run(pub usize, pub usize);

impl TorchRng {
    /// `torch.Generator("cpu").manual_seed(seed)`; like torch's, it hears only the low 32 bits.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = [0; N];
        state[0] = (seed & u64::from(u32::MAX)) as u32;
        for i in 1..N {
            let previous = state[i - 1];
            state[i] = (previous ^ (previous >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: N, spare: None, drawn: Vec::new() }
    }

    /// `torch.randn(shape, generator=self)`: standard normal, f32, on the CPU.
    ///
    /// Bit for bit what torch gives on x86 with AVX2; elsewhere torch's own last bits differ.
    pub fn randn(&mut self, shape: &[usize]) -> Result<Tensor> {
        let mut values = vec![0f32; shape.iter().product()];
        match self.drawn.last_mut() {
            Some(Run(size, count)) if *size == values.len() => *count += 1,
            _ => self.drawn.push(Run(values.len(), 1)),
        }
        if values.len() < BLOCK {
            values.fill_with(|| self.normal() as f32);
        } else {
            self.fill(&mut values);
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// 16 values or more: uniforms for all of them, then Box–Muller on blocks of 16; an odd rest is covered by
    /// a last block that is drawn anew and overlaps the one before.
    fn fill(&mut self, values: &mut [f32]) {
        values.fill_with(|| self.uniform());
        let whole = values.len() / BLOCK * BLOCK;
        values[..whole].chunks_exact_mut(BLOCK).for_each(box_muller);
        if whole < values.len() {
            let at = values.len() - BLOCK;
            let last = &mut values[at..];
            last.fill_with(|| self.uniform());
            box_muller(last);
        }
    }

    /// One value by the scalar path, which works in f64 and keeps the second of each pair.
    fn normal(&mut self) -> f64 {
        if let Some(value) = self.spare.take() {
            return value;
        }
        let (turn, level) = (self.uniform_f64(), self.uniform_f64());
        let radius = (-2.0 * (-level).ln_1p()).sqrt();
        let (sin, cos) = (2.0 * PI * turn).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// 24 random bits in 0..1.
    fn uniform(&mut self) -> f32 {
        (self.word() & 0xff_ffff) as f32 / (1u32 << 24) as f32
    }

    /// 53 random bits in 0..1, the first word on top.
    fn uniform_f64(&mut self) -> f64 {
        let bits = u64::from(self.word()) << 32 | u64::from(self.word());
        (bits & ((1 << 53) - 1)) as f64 / (1u64 << 53) as f64
    }

    fn word(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        for i in 0..N {
            let joined = self.state[i] & 0x8000_0000 | self.state[(i + 1) % N] & 0x7fff_ffff;
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + M) % N] ^ joined >> 1 ^ odd;
        }
        self.next = 0;
    }
}

/// Values that one vectorised Box–Muller turn makes: 8 cosines, then 8 sines.
const BLOCK: usize = 16;

fn box_muller(block: &mut [f32]) {
    let (levels, turns) = block.split_at_mut(BLOCK / 2);
    for (level, turn) in levels.iter_mut().zip(turns) {
        let radius = (-2.0 * ln(1.0 - *level)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *turn);
        (*level, *turn) = (radius * cos, radius * sin);
    }
}

/// Natural logarithm of a normal positive number, rounded as torch's vectorised one (Cephes' polynomial).
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        0.070_376_836,
        -0.115_146_1,
        0.116_769_984,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_57,
        0.200_007_14,
        -0.249_999_94,
        0.333_333_3,
    ];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut x = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x += x - 1.0;
    } else {
        x -= 1.0;
    }
    let square = x * x;
    let tail = P[1..].iter().fold(P[0], |sum, &p| sum.mul_add(x, p)) * x;
    let tail = tail.mul_add(square, exponent * -0.000_212_194_44);
    exponent.mul_add(0.693_359_4, x + square.mul_add(-0.5, tail))
}

/// Sine and cosine of 0..2π, rounded as torch's vectorised ones (Cephes' polynomials).
fn sin_cos(x: f32) -> (f32, f32) {
    let octant = (x * 1.273_239_5) as u32;
    let octant = (octant + 1) & !1;
    // π/4 in three parts, so that the rest keeps its last bits.
    let x = [-0.785_156_25, -0.000_241_875_65, -3.774_895e-8]
        .iter()
        .fold(x, |rest, &part| (octant as f32).mul_add(part, rest));
    let square = x * x;
    let cos = 2.443_315_7e-5_f32.mul_add(square, -0.001_388_731_6).mul_add(square, 0.041_666_646) * square;
    let cos = cos.mul_add(square, square * -0.5) + 1.0;
    let sin = -0.000_195_152_96_f32;
    let sin = sin.mul_add(square, 0.008_332_161).mul_add(square, -0.166_666_55) * square;
    let sin = sin.mul_add(x, x);
    match octant & 6 {
        0 => (sin, cos),
        2 => (cos, -sin),
        4 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// How far a render has used its seed: what it drew from each of the two generators, in order.
///
/// Kept beside saved latents, so that going on from them draws what an uninterrupted render would have drawn.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Drawn {
    /// From [`Noise::clip`]: initial noise, and what conditions want.
    #[serde(default)]
    pub clip: Vec<Run>,
    /// From [`Noise::global`]: one draw for each step of a stochastic solver.
    #[serde(default)]
    pub global: Vec<Run>,
}

impl Drawn {
    /// What a render of latents of this shape has drawn when nothing but text is its prompt.
    #[must_use]
    pub fn initial_noise(shape: &[usize]) -> Self {
        Self { clip: vec![Run(shape.iter().product(), 1)], global: Vec::new() }
    }
}

/// The two generators of a reference run, seeded alike: `torch.manual_seed(seed)` for what its layers and its
/// stochastic solver draw, and `generator=torch.Generator("cpu").manual_seed(seed)` for the pipeline's own noise.
#[derive(Debug, Clone)]
pub struct Noise {
    /// Initial noise, noise of conditions, and the decoder's noise on the latents.
    pub clip: TorchRng,
    /// Noise of a stochastic solver and of layers that inject it.
    pub global: TorchRng,
}

impl Noise {
    /// Both generators as they begin.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { clip: TorchRng::new(seed), global: TorchRng::new(seed) }
    }

    /// Both generators after what was `drawn`.
    pub fn after(seed: u64, drawn: &Drawn) -> Result<Self> {
        let mut noise = Self::new(seed);
        for (rng, runs) in [(&mut noise.clip, &drawn.clip), (&mut noise.global, &drawn.global)] {
            for Run(size, count) in runs {
                for _ in 0..*count {
                    rng.randn(&[*size])?;
                }
            }
        }
        Ok(noise)
    }

    /// What was drawn from both so far.
    #[must_use]
    pub fn drawn(&self) -> Drawn {
        Drawn { clip: self.clip.drawn.clone(), global: self.global.drawn.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_where_a_render_stopped() {
        let mut whole = Noise::new(7);
        for _ in 0..3 {
            whole.global.randn(&[1, 3, 2, 4, 5]).expect("noise");
        }
        for size in [120, 120, 7, 31, 120] {
            whole.clip.randn(&[size]).expect("noise");
        }
        let drawn = whole.drawn();
        assert_eq!(drawn.clip, [Run(120, 2), Run(7, 1), Run(31, 1), Run(120, 1)]);
        assert_eq!(drawn.global, [Run(120, 3)]);
        let mut later = Noise::after(7, &drawn).expect("generators");
        assert_eq!(later.drawn(), drawn);
        assert_eq!(whole.clip.normal(), later.clip.normal());
        assert_eq!(whole.clip.word(), later.clip.word());
        assert_eq!(whole.global.word(), later.global.word());
    }

    #[test]
    fn the_twister_gives_the_published_numbers() {
        let mut rng = TorchRng::new(5489);
        let last = (0..10_000).map(|_| rng.word()).last();
        assert_eq!(last, Some(4_123_659_995), "the 10000th word that the C++ standard asks of mt19937");
    }
}
