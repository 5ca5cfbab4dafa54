//! How much memory a decode takes at its worst moment, reckoned from shapes.

use candle_core::DType;

use super::{
    config::{Config, UP_CELLS},
    tiling::{Cut, Cuts},
};
use crate::{
    device::Placement,
    models::api::{LatentGrid, Tiling},
    nn::conv3d::UNFOLDED_BYTES,
};

/// Clips of one level that are there at once: what a resnet reads, what it normed, and what it makes.
const LIVE: u64 = 3;
/// The same where a convolution turns its clip to channels first and back.
const LIVE_TURNED: u64 = 6;

/// Peak bytes of a decode beside the weights. `cfg` is one that [`Config::from_json`] accepts, and `tiling` fits it.
#[must_use]
pub fn decode_bytes(cfg: &Config, grid: LatentGrid, place: &Placement, tiling: &Tiling) -> u64 {
    let none = Cuts { spatial: None, temporal: None, context: 0 };
    let cuts = Cuts::decoding(cfg, tiling).unwrap_or(none);
    let temporal = cuts.temporal.filter(|cut| grid.frames > cut.tile);
    let spatial = cuts.spatial.filter(|cut| grid.height > cut.tile || grid.width > cut.tile);
    let around = 2 * cuts.context;
    let frames = temporal.map_or(grid.frames, |cut| (cut.tile + 1 + around).min(grid.frames));
    let clip = LatentGrid { frames, ..grid };
    let side = |length: usize| spatial.map_or(length, |cut| length.min(cut.tile + around));
    let tile = LatentGrid { frames, height: side(grid.height), width: side(grid.width) };
    let (levels, made) = (levels_bytes(cfg, tile, place), pictures_bytes(cfg, tile));
    let f32s = size_of::<f32>() as u64;
    let latents = 3 * f32s * (grid.frames * grid.height * grid.width * cfg.latent_channels) as u64;
    // Joined tiles lie beside their parts once; a blended clip lies beside the one that it is blended with.
    let kept = |cut: Option<Cut>| if cut.is_some() { 2 * pictures_bytes(cfg, clip) } else { 0 };
    let whole = pictures_bytes(cfg, clip);
    latents + kept(spatial) + kept(temporal) + levels.max(2 * made).max(whole)
}

/// Pictures of a grid's size, f32.
fn pictures_bytes(cfg: &Config, grid: LatentGrid) -> u64 {
    let frames = grid.frames.saturating_sub(1) * cfg.temporal() + 1;
    let cells = frames * grid.height * grid.width * cfg.spatial() * cfg.spatial();
    (cells * cfg.out_channels * size_of::<f32>()) as u64
}

/// The decoder's largest level.
fn levels_bytes(cfg: &Config, grid: LatentGrid, place: &Placement) -> u64 {
    let on_cpu = place.device.is_cpu();
    let dtype = if on_cpu { DType::F32 } else { place.dtype };
    let clip = |cells: usize, channels: usize| (cells * channels * dtype.size_in_bytes()) as u64;
    let live = if on_cpu { LIVE } else { LIVE_TURNED };
    let LatentGrid { mut frames, mut height, mut width } = grid;
    let mut there = cfg.decoder_block_out_channels.last().copied().unwrap_or_default();
    let mut peak = live * clip(frames * height * width, there);
    for block in cfg.up_blocks().unwrap_or_default() {
        let before = clip(frames * height * width, there);
        if block.up.is_some() {
            // All cells are made; the copies of the first frame are dropped afterwards.
            let made = clip(UP_CELLS * frames * height * width, block.c_out);
            (frames, height, width) = (2 * frames - 1, 2 * height, 2 * width);
            peak = peak.max(2 * before + live * made);
        }
        there = block.c_out;
        peak = peak.max(live * clip(frames * height * width, there));
    }
    let patches = clip(frames * height * width, cfg.out_channels * cfg.patch_size * cfg.patch_size);
    peak = peak.max(clip(frames * height * width, there) + patches * live);
    if on_cpu { peak } else { peak + UNFOLDED_BYTES as u64 }
}
