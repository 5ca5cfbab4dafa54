//! A denoiser that takes the picture tile by tile, so that memory is bounded by a tile.
//!
//! At every step each tile's velocity is asked for by itself, and the velocities are blended where tiles overlap: all
//! tiles go on from one latent picture, so that they can't drift apart (MultiDiffusion, arXiv 2302.08113). Tiles keep
//! their place in the whole picture's coordinates.

use candle_core::{Device, Tensor};

use crate::{
    error::Result,
    models::api::{
        ClipContext, DenoiseTile, Denoiser, Geometry, LatentGrid, Skip, StepCache, Timestep, TokenBlock,
    },
};

/// A denoiser that never sees more than a tile.
pub struct Tiled<'a> {
    inner: Box<dyn Denoiser + 'a>,
    tile: DenoiseTile,
    geometry: Geometry,
    parts: Vec<Part>,
}

/// One tile of a clip.
struct Part {
    clip: ClipContext,
    /// `[l]`, u32: where its tokens are among the clip's.
    tokens: Tensor,
    /// `[1, l, 1]`, f32: what it has to say of each; the shares of all tiles make 1.
    share: Tensor,
}

impl<'a> Tiled<'a> {
    /// Takes `tile` of the picture at a time.
    #[must_use]
    pub fn new(inner: Box<dyn Denoiser + 'a>, tile: DenoiseTile, geometry: Geometry) -> Self {
        Self { inner, tile, geometry, parts: Vec::new() }
    }

    /// Asks each tile, and blends the answers.
    fn blend(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        ask: &mut dyn FnMut(&mut dyn Denoiser, &Tensor, &Timestep) -> Result<Tensor>,
    ) -> Result<Tensor> {
        if let [_] = &self.parts[..] {
            return ask(&mut *self.inner, tokens, timestep);
        }
        let device = tokens.device();
        let mut all = tokens.zeros_like()?;
        for (number, part) in self.parts.iter().enumerate() {
            self.inner.begin(&part.clip)?;
            if let Some(cache) = self.inner.step_cache() {
                cache.turn_to_tile(number);
            }
            let at = part.tokens.to_device(device)?;
            let timestep = match timestep {
                Timestep::Shared(time) => Timestep::Shared(*time),
                Timestep::PerToken(times) => {
                    Timestep::PerToken(times.index_select(&part.tokens.to_device(times.device())?, 1)?)
                }
            };
            let velocity = ask(&mut *self.inner, &tokens.index_select(&at, 1)?, &timestep)?;
            let velocity = velocity.broadcast_mul(&part.share.to_device(device)?)?;
            all = all.index_add(&at, &velocity, 1)?;
        }
        Ok(all)
    }
}

impl Denoiser for Tiled<'_> {
    fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        self.inner.pack(latents)
    }

    fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor> {
        self.inner.unpack(tokens, grid)
    }

    fn begin(&mut self, clip: &ClipContext) -> Result<()> {
        self.parts = parts(clip, &self.tile, &self.geometry)?;
        match &self.parts[..] {
            [one] => self.inner.begin(&one.clip),
            _ => Ok(()),
        }
    }

    fn velocity(&mut self, tokens: &Tensor, timestep: &Timestep, branch: usize) -> Result<Tensor> {
        self.blend(tokens, timestep, &mut |inner, tokens, time| inner.velocity(tokens, time, branch))
    }

    fn perturbed(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        branch: usize,
        skip: &Skip,
    ) -> Result<Tensor> {
        self.blend(tokens, timestep, &mut |inner, tokens, time| inner.perturbed(tokens, time, branch, skip))
    }

    fn step_cache(&mut self) -> Option<&mut StepCache> {
        self.inner.step_cache()
    }
}

/// All tiles of a clip, row by row.
fn parts(clip: &ClipContext, tile: &DenoiseTile, geometry: &Geometry) -> Result<Vec<Part>> {
    let Geometry { patch, patch_t, .. } = *geometry;
    let size = tile.grid(clip.grid, geometry);
    let (tops, lefts) = tile.starts(clip.grid, geometry);
    let (rows, columns) = (ramps(&tops, size.height, patch), ramps(&lefts, size.width, patch));
    let cut = |grid: LatentGrid| LatentGrid { height: size.height, width: size.width, ..grid };
    let mut parts = Vec::new();
    for (top, row) in tops.iter().zip(&rows) {
        for (left, column) in lefts.iter().zip(&columns) {
            let (mut tokens, mut share) = (Vec::new(), Vec::new());
            let (width, height) = (clip.grid.width / patch, clip.grid.height / patch);
            let mut first = 0;
            let grids = clip.before.iter().map(|block| block.grid).chain([clip.grid]);
            for frames in grids.map(|grid| grid.frames / patch_t) {
                for frame in 0..frames {
                    for (y, down) in row.iter().enumerate() {
                        for (x, right) in column.iter().enumerate() {
                            let (y, x) = (top / patch + y, left / patch + x);
                            tokens.push((first + (frame * height + y) * width + x) as u32);
                            share.push(down * right);
                        }
                    }
                }
                first += frames * height * width;
            }
            let count = tokens.len();
            let before = clip.before.iter().map(|block| TokenBlock { grid: cut(block.grid), ..*block });
            parts.push(Part {
                clip: ClipContext {
                    grid: cut(clip.grid),
                    before: before.collect(),
                    origin: (clip.origin.0 + top, clip.origin.1 + left),
                    ..clip.clone()
                },
                tokens: Tensor::from_vec(tokens, count, &Device::Cpu)?,
                share: Tensor::from_vec(share, (1, count, 1), &Device::Cpu)?,
            });
        }
    }
    Ok(parts)
}

/// For each tile along an axis, the share that it has of each of its tokens: it fades where a neighbour begins.
fn ramps(starts: &[usize], side: usize, patch: usize) -> Vec<Vec<f32>> {
    let side = side / patch;
    let starts: Vec<usize> = starts.iter().map(|start| start / patch).collect();
    let weight = |tile: usize, at: usize| -> f64 {
        let fade = |inside: usize, shared: usize| {
            if inside < shared { (inside as f64 + 0.5) / shared as f64 } else { 1.0 }
        };
        let from = match tile.checked_sub(1) {
            Some(last) => fade(at - starts[tile], (starts[last] + side).saturating_sub(starts[tile])),
            None => 1.0,
        };
        let until = match starts.get(tile + 1) {
            Some(next) => fade(starts[tile] + side - 1 - at, (starts[tile] + side).saturating_sub(*next)),
            None => 1.0,
        };
        from * until
    };
    let covers = |tile: usize, at: usize| (starts[tile]..starts[tile] + side).contains(&at);
    let share = |tile: usize, at: usize| {
        let all = (0..starts.len()).filter(|&other| covers(other, at)).map(|other| weight(other, at));
        (weight(tile, at) / all.sum::<f64>()) as f32
    };
    let of = |tile: usize| (starts[tile]..starts[tile] + side).map(|at| share(tile, at)).collect();
    (0..starts.len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::{models::api::TextStates, pipeline::noise::TorchRng};

    const GEOMETRY: Geometry = Geometry { spatial: 8, temporal: 4, patch: 1, patch_t: 1, channels: 2 };
    const GRID: LatentGrid = LatentGrid { frames: 2, height: 5, width: 7 };
    const TILE: DenoiseTile = DenoiseTile { width: 32, height: 24, overlap: 8 };

    /// Answers with where a token is, as its origin and grid tell it, plus what it is and its time.
    struct Places {
        clip: Option<ClipContext>,
        /// The most tokens that it was ever asked for.
        most: Arc<AtomicUsize>,
    }

    impl Denoiser for Places {
        fn pack(&self, latents: &Tensor) -> Result<Tensor> {
            Ok(latents.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
        }

        fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor> {
            let (b, _, c) = tokens.dims3()?;
            Ok(tokens.transpose(1, 2)?.reshape((b, c, grid.frames, grid.height, grid.width))?)
        }

        fn begin(&mut self, clip: &ClipContext) -> Result<()> {
            self.clip = Some(clip.clone());
            Ok(())
        }

        fn velocity(&mut self, tokens: &Tensor, timestep: &Timestep, branch: usize) -> Result<Tensor> {
            let clip = self.clip.as_ref().expect("begun");
            let mut places = Vec::new();
            let blocks = clip.before.iter().copied().chain([TokenBlock { grid: clip.grid, frame: 0 }]);
            for TokenBlock { grid, frame } in blocks {
                for i in 0..grid.frames * grid.height * grid.width {
                    let (x, y) = (i % grid.width, i / grid.width % grid.height);
                    let t = i / grid.width / grid.height + frame;
                    places.push((100 * t + 10 * (y + clip.origin.0) + x + clip.origin.1) as f32);
                }
            }
            let count = places.len();
            assert_eq!(tokens.dims(), [1, count, 2]);
            self.most.fetch_max(count, Ordering::Relaxed);
            let times = match timestep {
                Timestep::Shared(time) => Tensor::full(*time, (1, count), &Device::Cpu)?,
                Timestep::PerToken(times) => times.clone(),
            };
            let places = Tensor::from_vec(places, (1, count, 1), &Device::Cpu)?;
            let sum = tokens.broadcast_add(&places)?.broadcast_add(&times.unsqueeze(2)?)?;
            Ok((sum + branch as f64)?)
        }

        fn perturbed(&mut self, tokens: &Tensor, time: &Timestep, branch: usize, _: &Skip) -> Result<Tensor> {
            Ok((self.velocity(tokens, time, branch)? * 2.0)?)
        }
    }

    fn clip() -> ClipContext {
        let still = TokenBlock { grid: LatentGrid { frames: 1, ..GRID }, frame: 9 };
        let texts: Vec<TextStates> = Vec::new();
        ClipContext { grid: GRID, fps: 8.0, texts, before: vec![still], origin: (0, 0) }
    }

    fn asked(tile: Option<DenoiseTile>) -> (Vec<f32>, Vec<f32>, usize) {
        let most = Arc::<AtomicUsize>::default();
        let places = Places { clip: None, most: Arc::clone(&most) };
        let mut model: Box<dyn Denoiser> = match tile {
            Some(tile) => Box::new(Tiled::new(Box::new(places), tile, GEOMETRY)),
            None => Box::new(places),
        };
        model.begin(&clip()).unwrap();
        let tokens = TorchRng::new(4).randn(&[1, 3 * 35, 2]).unwrap();
        let times = Tensor::arange(0f32, 105.0, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let velocity = values(model.velocity(&tokens, &Timestep::PerToken(times), 1).unwrap());
        let skip = Skip { blocks: vec![0], mode: crate::models::api::SkipMode::default() };
        let perturbed = values(model.perturbed(&tokens, &Timestep::Shared(3.0), 0, &skip).unwrap());
        (velocity, perturbed, most.load(Ordering::Relaxed))
    }

    #[test]
    fn tiles_say_what_the_whole_says_of_what_a_token_knows_itself() {
        let (velocity, perturbed, most) = asked(None);
        assert_eq!(most, 105);
        let (tiled, tiled_perturbed, most) = asked(Some(TILE));
        assert_eq!(most, 3 * 3 * 4, "no more than a tile at a time");
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(near(&velocity, &tiled) && near(&perturbed, &tiled_perturbed));
        let one = DenoiseTile { width: 640, height: 640, overlap: 64 };
        let (single, _, most) = asked(Some(one));
        assert_eq!((single, most), (velocity, 105), "one tile is no tile");
    }

    #[test]
    fn tiles_cover_all_and_fade_into_each_other() {
        assert_eq!(TILE.starts(GRID, &GEOMETRY), (vec![0, 2], vec![0, 3]));
        let [left, right] = &ramps(&[0, 3], 4, 1)[..] else { panic!("two tiles") };
        assert_eq!((&left[..3], &right[1..]), (&[1.0; 3][..], &[1.0; 3][..]));
        assert_eq!((left[3], right[0]), (0.5, 0.5));
        let wide = ramps(&[0, 1, 2], 4, 1);
        for at in 0..6usize {
            let all: f32 = (0..3).filter_map(|i| wide[i].get(at.checked_sub(i)?)).sum();
            assert!((all - 1.0).abs() < 1e-6, "{at}: {all}");
        }
        let even = DenoiseTile { width: 32, height: 32, overlap: 8 };
        let grid = LatentGrid { frames: 1, height: 4, width: 8 };
        assert_eq!(even.starts(grid, &GEOMETRY), (vec![0], vec![0, 2, 4]), "spread evenly");
        let patched = Geometry { patch: 2, ..GEOMETRY };
        assert_eq!(even.starts(grid, &patched), (vec![0], vec![0, 2, 4]), "on the model's grid");
    }

    #[test]
    fn impossible_tiles_are_refused() {
        let told = |text: &str| text.parse::<DenoiseTile>().and_then(|t| t.check(&GEOMETRY)).unwrap_err();
        assert_eq!(told("30x32").to_string(), "invalid tile 30x32:7: expected sides that are multiples of 8");
        assert_eq!(
            told("32x16:16").to_string(),
            "invalid tile 32x16:16: expected an overlap of at most 8 pixels"
        );
        assert!(told("32").to_string().contains("expected WIDTHxHEIGHT[:OVERLAP]"));
        assert_eq!("64x32".parse::<DenoiseTile>().unwrap().overlap, 8);
    }
}
