//! The step cache of diffusion transformers: blocks that would hardly say anything new aren't asked again.
//!
//! Each step runs the first block. Where what it adds differs from what it added in the last full step by no more than
//! a threshold, all other blocks are left out, and what they added together in that step is added again (first block
//! cache of ParaAttention, `FirstBlockCacheConfig` of diffusers).

use std::collections::HashMap;

use candle_core::{D, DType, Tensor};

use super::api::Skip;
use crate::error::Result;

/// What the blocks of a transformer added in the last full step, for each branch of guidance and each tile by itself.
///
/// A denoiser that has one keeps it through [`super::api::Denoiser::begin`]; the denoise loop empties it at the start
/// of each pass and window.
#[derive(Debug, Default)]
pub struct StepCache {
    threshold: Option<f64>,
    step: usize,
    tile: usize,
    kept: HashMap<Key, Kept>,
    count: CallCount,
}

/// Whose answers they are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    tile: usize,
    branch: usize,
    skip: Option<Skip>,
}

#[derive(Debug)]
struct Kept {
    /// The step that it is of.
    step: usize,
    /// `[B, L, D]`: what the first block added.
    first: Tensor,
    /// `[B, L, D]`: what all others added.
    rest: Tensor,
}

/// Calls of the transformer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallCount {
    /// Those that ran the first block alone.
    pub skipped: usize,
    /// All of them.
    pub all: usize,
}

impl StepCache {
    /// Forgets everything. With a threshold it keeps answers from now on, without one it doesn't.
    pub fn begin(&mut self, threshold: Option<f64>) {
        *self = Self { threshold, ..Self::default() };
    }

    /// Says which step comes next.
    pub fn turn_to_step(&mut self, step: usize) {
        self.step = step;
    }

    /// Says which tile of the picture comes next.
    pub fn turn_to_tile(&mut self, tile: usize) {
        self.tile = tile;
    }

    /// Whether all that is kept is of this very step: who begins with it and an empty cache gets the same.
    #[must_use]
    pub fn is_of_this_step(&self) -> bool {
        self.kept.values().all(|kept| kept.step == self.step)
    }

    /// Calls since [`StepCache::begin`].
    #[must_use]
    pub fn count(&self) -> CallCount {
        self.count
    }

    /// What is kept for a branch of guidance, which may leave out parts of blocks; nothing if the cache is off.
    pub fn branch(&mut self, branch: usize, skip: Option<&Skip>) -> Option<CachedBranch<'_>> {
        let threshold = self.threshold?;
        let key = Key { tile: self.tile, branch, skip: skip.cloned() };
        Some(CachedBranch { cache: self, key, threshold })
    }
}

/// The cache of one branch of guidance.
#[derive(Debug)]
pub struct CachedBranch<'a> {
    cache: &'a mut StepCache,
    key: Key,
    threshold: f64,
}

impl CachedBranch<'_> {
    /// What all blocks but the first are to add, `[B, L, D]`, where `first`, what the first one adds, is near enough to
    /// what is kept. It is decided for all of the batch together.
    pub fn rest(&mut self, first: &Tensor) -> Result<Option<Tensor>> {
        self.cache.count.all += 1;
        let Some(kept) = self.cache.kept.get(&self.key) else { return Ok(None) };
        // What is no number is near to nothing.
        let near = kept.first.dims() == first.dims() && distance(first, &kept.first)? <= self.threshold;
        if !near {
            return Ok(None);
        }
        self.cache.count.skipped += 1;
        Ok(Some(kept.rest.clone()))
    }

    /// Keeps what the first block and all others added in this step, `[B, L, D]` each.
    pub fn keep(self, first: Tensor, rest: Tensor) {
        let step = self.cache.step;
        self.cache.kept.insert(self.key, Kept { step, first, rest });
    }
}

/// Mean distance of `now` `[B, L, D]` from `before`, over the mean size of `before`: in f32, tokens summed in f64.
fn distance(now: &Tensor, before: &Tensor) -> Result<f64> {
    let (now, before) = (now.to_dtype(DType::F32)?, before.to_dtype(DType::F32)?);
    Ok(size(&(now - &before)?)? / size(&before)?)
}

/// The sum of all values' sizes.
fn size(x: &Tensor) -> Result<f64> {
    let tokens = x.abs()?.sum(D::Minus1)?.flatten_all()?.to_vec1::<f32>()?; // [B·L]
    Ok(tokens.into_iter().map(f64::from).sum())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::models::sampling::SkipMode;

    fn values(value: f32) -> Tensor {
        Tensor::full(value, (1, 4, 8), &Device::Cpu).expect("a tensor")
    }

    /// A call in which the first block adds `first`; whether the others were left out.
    fn skips(cache: &mut StepCache, branch: usize, skip: Option<&Skip>, first: f32) -> bool {
        let mut branch = cache.branch(branch, skip).expect("it is on");
        let skipped = branch.rest(&values(first)).expect("a distance").is_some();
        if !skipped {
            branch.keep(values(first), values(10.0 * first));
        }
        skipped
    }

    #[test]
    fn it_compares_with_the_last_full_step() {
        let mut cache = StepCache::default();
        assert!(cache.branch(0, None).is_none(), "off by default");
        cache.begin(Some(0.125));
        // 1.25 is near to 1.125, which was skipped, and far from 1.
        let skipped = [1.0, 1.0625, 1.125, 1.25, 1.25].map(|first| skips(&mut cache, 0, None, first));
        assert_eq!(skipped, [false, true, true, false, true]);
        assert_eq!(cache.count(), CallCount { skipped: 3, all: 5 });
        cache.begin(Some(1.0));
        assert!(!skips(&mut cache, 0, None, 1.25), "the first step is whole");
    }

    #[test]
    fn branches_and_tiles_keep_to_themselves() {
        let mut cache = StepCache::default();
        cache.begin(Some(0.5));
        let skip = |block| Skip { blocks: vec![block], mode: SkipMode::default() };
        let calls = [(0, None), (1, None), (1, Some(skip(1))), (1, Some(skip(2)))];
        for tile in 0..2 {
            cache.turn_to_tile(tile);
            for (number, (branch, skip)) in calls.iter().enumerate() {
                let first = 10f32.powi((number + 4 * tile) as i32);
                assert!(!skips(&mut cache, *branch, skip.as_ref(), first));
                assert!(skips(&mut cache, *branch, skip.as_ref(), first));
            }
        }
        cache.turn_to_tile(0);
        assert!(skips(&mut cache, 0, None, 1.0));
    }

    #[test]
    fn what_has_no_size_is_never_near() {
        let mut cache = StepCache::default();
        cache.begin(Some(1.0));
        for first in [0.0, 0.0, f32::NAN, f32::NAN, 1.0] {
            assert!(!skips(&mut cache, 0, None, first));
        }
    }

    #[test]
    fn it_knows_whether_a_step_was_whole() {
        let mut cache = StepCache::default();
        cache.begin(Some(0.125));
        let mut step = |step, firsts: &[(usize, f32)]| {
            cache.turn_to_step(step);
            for (branch, first) in firsts {
                skips(&mut cache, *branch, None, *first);
            }
            cache.is_of_this_step()
        };
        assert!(step(0, &[(0, 1.0), (1, 1.0)]));
        assert!(!step(1, &[(0, 2.0), (1, 1.0)]), "branch 1 was skipped");
        assert!(!step(2, &[(0, 4.0)]), "branch 1 wasn't asked");
        assert!(step(3, &[(0, 8.0), (1, 8.0)]));
    }
}
