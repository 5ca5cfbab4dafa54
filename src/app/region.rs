//! The part of a picture that moves, painted by hand.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    app::visual::check_hash,
    error::{Error, Result},
    media::{Fit, Footage},
    models::api::Geometry,
    pipeline::conditions::{Condition, Content, Still},
    video::{Frame, VideoSpec},
};

/// Cells whose mean brightness (0..1) is below this stay.
const DARK: f64 = 0.1;

/// A picture of what may move: white on black, of the shape of the picture that it belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MotionRegion {
    /// The file.
    pub path: PathBuf,
    /// What it held, once it was read; a resumed render takes no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl MotionRegion {
    /// What stays: all that isn't painted, as the picture shows it that the video begins with.
    pub(super) fn still(
        &mut self,
        list: &[Condition],
        fit: Fit,
        geometry: &Geometry,
        spec: &VideoSpec,
    ) -> Result<Still> {
        let begins = |condition: &&Condition| {
            let Content::Pixels(pixels) = &condition.content else { return false };
            condition.frame == 0 && condition.strength >= 1.0 && pixels.dims().get(2) == Some(&1)
        };
        let Some(first) = list.iter().find(begins) else {
            let why = "there is no picture that the rest could stay like";
            return Err(Error::invalid("--motion-region", why).with_hint("give one with --init-image"));
        };
        check_hash(&self.path, &mut self.sha256)?;
        let mut frames = Footage::open(&self.path)?.frames(spec.fps);
        let Some(mask) = frames.next().transpose()? else {
            return Err(Error::invalid(format!("`{}`", self.path.display()), "it holds no picture"));
        };
        let mask = fit.apply(&mask, spec.width, spec.height)?;
        let cells = dark(&mask, geometry.spatial * geometry.patch);
        Ok(Still { picture: first.content.clone(), cells })
    }
}

/// Whether each cell of `side` pixels is dark, row by row.
fn dark(mask: &Frame, side: usize) -> Vec<bool> {
    let columns = mask.width / side;
    let mut sums = vec![0u64; columns * (mask.height / side)];
    for (i, pixel) in mask.rgb.chunks_exact(3).enumerate() {
        let cell = i / mask.width / side * columns + i % mask.width / side;
        sums[cell] += pixel.iter().map(|&channel| u64::from(channel)).sum::<u64>();
    }
    let full = (side * side * 3 * 255) as f64;
    sums.into_iter().map(|sum| (sum as f64 / full) < DARK).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_painted_moves() {
        let (width, height) = (12, 8);
        let mut mask = Frame { width, height, rgb: vec![0; width * height * 3] };
        // A stroke through the second cell of three, and a speck that is too small.
        for y in 0..4 {
            mask.rgb[(y * width + 5) * 3..][..6].fill(255);
        }
        mask.rgb[0] = 255;
        assert_eq!(dark(&mask, 4), [true, false, true, true, true, true]);
    }
}
