//! How much memory a decode takes at its worst moment, reckoned from shapes.

use candle_core::DType;

use super::{
    config::{Config, Down, UP_CELLS},
    stream::piece,
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
    let cuts = Cuts::decoding(cfg, tiling).unwrap_or(Cuts::NONE);
    let temporal = cuts.temporal.filter(|cut| grid.frames > cut.tile);
    let spatial = cuts.spatial.filter(|cut| grid.height > cut.tile || grid.width > cut.tile);
    let around = 2 * cuts.context;
    let frames = temporal.map_or(grid.frames, |cut| longest_run(cut, cuts.context, grid.frames));
    let clip = LatentGrid { frames, ..grid };
    let side = |length: usize| spatial.map_or(length, |cut| length.min(cut.tile + around));
    let tile = LatentGrid { frames, height: side(grid.height), width: side(grid.width) };
    // Frames pass through the levels in pieces, joined with those that convolutions still need.
    let piece = piece(tile.height, tile.width);
    let kept = if frames > piece { kept_bytes(cfg, tile, place) } else { 0 };
    let levels = levels_bytes(cfg, tile, piece, place) + kept;
    let f32s = size_of::<f32>() as u64;
    let latents = 3 * f32s * (grid.frames * grid.height * grid.width * cfg.latent_channels) as u64;
    let passing = LatentGrid { frames: frames.min(piece + 1), ..tile };
    let making = levels.max(kept + 2 * pictures_bytes(cfg, passing));
    if temporal.is_none() && spatial.is_none() {
        return latents + making;
    }
    // Tiles are put into the pictures of the run, beside which are the edges that the next ones fade in from: of two
    // rows of tiles, and of two tiles.
    let whole = pictures_bytes(cfg, clip);
    let edges = spatial.map_or(0, |cut| {
        let columns = grid.width.div_ceil(cut.step.max(1)) * cut.tile.min(grid.width);
        let cells = 2 * (columns + cut.tile.min(grid.height)) * cut.blend;
        whole / (grid.height * grid.width * cfg.spatial()) as u64 * cells as u64
    });
    // The end of the run before fades into this one, in a copy, and frames leave one by one.
    let picture = pictures_bytes(cfg, LatentGrid { frames: 1, ..grid });
    let before = temporal.map_or(0, |cut| cut.blend as u64 * picture);
    let leaving = 3 * before + 2 * picture;
    latents + whole + (making + edges + before).max(leaving)
}

/// Latent frames of the longest run that a decode reads at once, with what is read around it.
fn longest_run(cut: Cut, context: usize, frames: usize) -> usize {
    let run = |start: usize| {
        let length = (cut.tile + 1).min(frames - start);
        (start + length + context).min(frames) - start.saturating_sub(context)
    };
    (0..frames).step_by(cut.step.max(1)).map(run).max().unwrap_or(frames)
}

/// Peak bytes of an encode beside the weights: the level of the patches and those that blocks make of it, of all
/// pictures or of a tile.
#[must_use]
pub fn encode_bytes(cfg: &Config, grid: LatentGrid, place: &Placement, tiling: &Tiling) -> u64 {
    let cuts = Cuts::encoding(cfg, tiling).unwrap_or(Cuts::NONE);
    let side = |length: usize| cuts.spatial.map_or(length, |cut| length.min(cut.tile / cfg.spatial()));
    let frames = cuts.temporal.map_or(grid.frames, |cut| grid.frames.min(cut.tile / cfg.temporal() + 1));
    let tile = LatentGrid { frames, height: side(grid.height), width: side(grid.width) };
    pictures_bytes(cfg, grid) + encoded_bytes(cfg, tile, place)
}

/// What the levels of an encoder take.
fn encoded_bytes(cfg: &Config, grid: LatentGrid, place: &Placement) -> u64 {
    let on_cpu = place.device.is_cpu();
    let dtype = if on_cpu { DType::F32 } else { place.dtype };
    let clip = |cells: usize, channels: usize| (cells * channels * dtype.size_in_bytes()) as u64;
    let live = if on_cpu { LIVE } else { LIVE_TURNED };
    let mut frames = grid.frames.saturating_sub(1) * cfg.temporal() + 1;
    let scale = cfg.spatial() / cfg.patch_size.max(1);
    let (mut height, mut width) = (grid.height * scale, grid.width * scale);
    let first = cfg.block_out_channels.first().copied().unwrap_or_default();
    let patches = clip(frames * height * width, cfg.in_channels * cfg.patch_size * cfg.patch_size);
    let mut peak = patches + live * clip(frames * height * width, first);
    for block in cfg.down_blocks().unwrap_or_default() {
        let before = clip(frames * height * width, block.c_in.max(block.c_out));
        let (stride_t, stride) = match block.down {
            None => (1, 1),
            Some(Down::Conv) => (2, 2),
            Some(Down::Unshuffle { stride_t, stride }) => (stride_t, stride),
        };
        (frames, height, width) = (frames.div_ceil(stride_t), height / stride, width / stride);
        peak = peak.max((live + 1) * before + live * clip(frames * height * width, block.c_out));
    }
    if on_cpu { peak } else { peak + UNFOLDED_BYTES as u64 }
}

/// Pictures of a grid's size, f32.
fn pictures_bytes(cfg: &Config, grid: LatentGrid) -> u64 {
    let frames = grid.frames.saturating_sub(1) * cfg.temporal() + 1;
    let cells = frames * grid.height * grid.width * cfg.spatial() * cfg.spatial();
    (cells * cfg.out_channels * size_of::<f32>()) as u64
}

/// What stages keep between pieces: two frames before each convolution and two that go round them, of every resnet.
fn kept_bytes(cfg: &Config, grid: LatentGrid, place: &Placement) -> u64 {
    let dtype = if place.device.is_cpu() { DType::F32 } else { place.dtype };
    let (mut cells, mut bytes) = (grid.height * grid.width, 0);
    let frame = |cells: usize, channels: usize| (cells * channels * dtype.size_in_bytes()) as u64;
    let first = cfg.decoder_block_out_channels.last().copied().unwrap_or_default();
    let layers = |block: usize| cfg.decoder_layers(block).unwrap_or_default() as u64;
    bytes += (6 * layers(0) + 2) * frame(cells, first);
    let mut there = first;
    for (index, block) in cfg.up_blocks().unwrap_or_default().iter().enumerate() {
        bytes += 6 * frame(cells, there);
        if block.up.is_some() {
            cells *= 4;
        }
        there = block.c_out;
        bytes += 6 * layers(index + 1) * frame(cells, there);
    }
    bytes + 2 * frame(cells, there)
}

/// The decoder's largest level, when frames pass through it in pieces.
fn levels_bytes(cfg: &Config, grid: LatentGrid, mut piece: usize, place: &Placement) -> u64 {
    let on_cpu = place.device.is_cpu();
    let dtype = if on_cpu { DType::F32 } else { place.dtype };
    let clip = |cells: usize, channels: usize| (cells * channels * dtype.size_in_bytes()) as u64;
    let live = if on_cpu { LIVE } else { LIVE_TURNED };
    let LatentGrid { frames: mut all, mut height, mut width } = grid;
    let passing = |all: usize, piece: usize| all.min(piece + 2);
    let mut frames = passing(all, piece);
    let mut there = cfg.decoder_block_out_channels.last().copied().unwrap_or_default();
    let mut peak = live * clip(frames * height * width, there);
    for block in cfg.up_blocks().unwrap_or_default() {
        let before = clip(frames * height * width, there);
        if let Some(up) = block.up {
            // All cells are made and then put in order; the copies of the first frame are dropped afterwards. A skip
            // connection is put in order and repeated beside them, and the sum is one clip more.
            let made = clip(UP_CELLS * frames * height * width, block.c_out);
            let skip = if up.residual { made + before } else { 0 };
            (all, piece, height, width) = (2 * all - 1, 2 * piece, 2 * height, 2 * width);
            frames = passing(all, piece);
            peak = peak.max(before + (live - 1) * made + skip);
        }
        there = block.c_out;
        peak = peak.max(live * clip(frames * height * width, there));
    }
    let patches = clip(frames * height * width, cfg.out_channels * cfg.patch_size * cfg.patch_size);
    peak = peak.max(clip(frames * height * width, there) + patches * live);
    if on_cpu { peak } else { peak + UNFOLDED_BYTES as u64 }
}
