//! How many multiplications and additions a clip takes, reckoned from shapes. Only products of matrices and
//! convolutions count: norms and activations are small beside them in every published model.

use super::{
    transformer::TransformerConfig,
    vae::{self, UP_CELLS},
};
use crate::models::{
    api::{LatentGrid, Tiling},
    t5,
};

/// Taps of the autoencoder's convolutions.
const TAPS: f64 = 27.0;

/// One text of `tokens` tokens through the text encoder.
pub(super) fn text(cfg: &t5::Config, tokens: usize) -> f64 {
    let (l, d, inner, ff) =
        (tokens as f64, cfg.d_model as f64, (cfg.num_heads * cfg.d_kv) as f64, cfg.d_ff as f64);
    let products = 4.0 * d * inner + 3.0 * d * ff;
    let scores = 2.0 * l * inner;
    2.0 * cfg.num_layers as f64 * l * (products + scores)
}

/// One pass of the transformer over `tokens` tokens, with a text of `text` tokens.
pub(super) fn velocity(cfg: &TransformerConfig, tokens: usize, text: usize) -> f64 {
    let (l, d) = (tokens as f64, cfg.inner_dim() as f64);
    // Four products among the tokens, two to the text, and the feed-forward layer's widening and narrowing.
    let products = 4.0 * d * d + 2.0 * d * d + 8.0 * d * d;
    let scores = 2.0 * (l + text as f64) * d;
    let ends = d * (cfg.in_channels + cfg.out_channels()) as f64;
    2.0 * l * (cfg.num_layers as f64 * (products + scores) + ends)
}

/// A clip through the decoder. Tiles that overlap are decoded as often as they are read.
pub(super) fn decode(cfg: &vae::Config, grid: LatentGrid, tiling: &Tiling) -> f64 {
    let context = 2 * tiling.context;
    // How much longer an axis is when all its tiles are laid end to end.
    let share = |length: usize, cut: Option<(usize, usize)>, ratio: usize, extra: usize| {
        let Some((tile, step)) = cut.map(|(tile, step)| ((tile / ratio).max(1), (step / ratio).max(1)))
        else {
            return 1.0;
        };
        if length <= tile {
            return 1.0;
        }
        let read =
            (0..length).step_by(step).map(|start| (tile + extra + context).min(length - start + context));
        read.sum::<usize>() as f64 / length as f64
    };
    let spatial = |length| share(length, tiling.spatial, cfg.spatial(), 0);
    let more =
        spatial(grid.height) * spatial(grid.width) * share(grid.frames, tiling.temporal, cfg.temporal(), 1);
    let channels = cfg.decoder_block_out_channels.last().copied().unwrap_or_default();
    let mut cells = (grid.frames * grid.height * grid.width) as f64;
    let mut frames = grid.frames;
    let conv = |cells: f64, c_in: usize, c_out: usize| 2.0 * TAPS * cells * (c_in * c_out) as f64;
    let mut sum = conv(cells, cfg.latent_channels, channels);
    sum += 2.0 * cfg.decoder_layers(0).unwrap_or(0) as f64 * conv(cells, channels, channels);
    let mut there = channels;
    for block in cfg.up_blocks().unwrap_or_default() {
        if block.narrow {
            sum += conv(cells, block.c_in, block.c_out) + conv(cells, block.c_out, block.c_out);
            sum += conv(cells, block.c_in, block.c_out) / TAPS;
        }
        if let Some(up) = block.up {
            sum += conv(cells, block.c_out * up.factor, block.c_out * UP_CELLS);
            let longer = 2 * frames - 1;
            cells *= 4.0 * longer as f64 / frames as f64;
            frames = longer;
        }
        sum += 2.0 * block.layers as f64 * conv(cells, block.c_out, block.c_out);
        there = block.c_out;
    }
    more * (sum + conv(cells, there, cfg.out_channels * cfg.patch_size * cfg.patch_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_model_costs_what_its_weights_say() {
        // Products of weights and tokens: two operations a weight and token, and the scores come on top.
        let cfg = TransformerConfig::default();
        let weights = 28.0 * 14.0 * 2048f64.powi(2);
        let few = velocity(&cfg, 100, 0) / (2.0 * 100.0 * weights);
        assert!((1.0..1.02).contains(&few), "{few}");
        let many = velocity(&cfg, 10_000, 128) / (2.0 * 10_000.0 * weights);
        assert!((1.5..2.0).contains(&many), "{many}");
        let xxl = t5::Config {
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            ..t5::Config::default()
        };
        let text = text(&xxl, 128) / (2.0 * 128.0 * 4.6e9);
        assert!((0.95..1.05).contains(&text), "{text}");
    }

    #[test]
    fn tiles_cost_what_they_overlap() {
        let cfg = vae::Config::default();
        let grid = LatentGrid { frames: 9, height: 16, width: 16 };
        let whole = decode(&cfg, grid, &Tiling::default());
        let tiles = |spatial, context| {
            decode(&cfg, grid, &Tiling { spatial: Some(spatial), context, ..Tiling::default() })
        };
        assert_eq!(tiles((512, 512), 4), whole);
        assert!(tiles((256, 192), 0) > 1.2 * whole);
        assert!(tiles((256, 192), 4) > 2.0 * whole);
        let longer = decode(&cfg, LatentGrid { frames: 17, ..grid }, &Tiling::default());
        assert!((1.85..2.0).contains(&(longer / whole)), "{}", longer / whole);
    }
}
