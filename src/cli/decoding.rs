//! Flags on how latents become pictures.

use clap::Args;
use sora::{
    Error,
    app::{decode::DecodeChoice, shape::Upscale},
    models::api::{DenoiseTile, Tiling},
};

/// How latents become pictures.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Decoding")]
pub struct DecodingArgs {
    /// Enlarge the frames (Lanczos) to a size or by a factor, e.g. 1920x1080 or 4x
    ///
    /// The picture covers the new size; what sticks out of another shape is cut off. Without --size or --aspect, the
    /// clip itself is made in the nearest shape.
    #[arg(long, value_name = "WxH|Nx", hide_short_help = true)]
    pub upscale: Option<Upscale>,

    /// Timestep of decoders that take one (0..1)
    #[arg(long, value_name = "T", hide_short_help = true, allow_negative_numbers = true)]
    pub decode_timestep: Option<f64>,

    /// Share of noise mixed in before such a decoder [default: as --decode-timestep]
    #[arg(long, value_name = "S", hide_short_help = true, allow_negative_numbers = true)]
    pub decode_noise_scale: Option<f64>,

    /// Decode in tiles of this many pixels a side, a stride apart, e.g. 512:448, to save memory
    #[arg(long, value_name = "SIDE:STRIDE", value_parser = tile, hide_short_help = true)]
    pub vae_tile: Option<(usize, usize)>,

    /// Decode in runs of this many frames, a stride apart, e.g. 16:8, to save memory
    #[arg(long, value_name = "FRAMES:STRIDE", value_parser = tile, hide_short_help = true)]
    pub vae_tile_frames: Option<(usize, usize)>,

    /// Latent cells read around each tile and cut off again: more hide the tiles better, 0 is as diffusers does it
    /// [default: 4]
    #[arg(long, value_name = "CELLS", hide_short_help = true)]
    pub vae_tile_context: Option<usize>,
}

/// How the denoiser's work is cut.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct TileArgs {
    /// Denoise in tiles of this size, e.g. 768x512:128 with 128 pixels shared, to make larger pictures than memory holds
    ///
    /// Each step takes the tiles one after another and blends what the model says where they overlap. A tile doesn't
    /// see the others, so pictures much larger than a tile may repeat themselves: begin with a smaller one and an
    /// --upsampler.
    #[arg(long, value_name = "WxH[:SHARED]", hide_short_help = true)]
    pub tile: Option<DenoiseTile>,
}

impl TileArgs {
    /// Overrides what was asked for by a flag.
    pub fn apply(&self, options: &mut DecodeChoice) {
        options.tiling.denoise = self.tile.or(options.tiling.denoise);
    }
}

/// Cells around a tile: with this many, tiles differ from an uncut decode by little more than rounding.
const CONTEXT: usize = 4;

impl DecodingArgs {
    /// Overrides what was asked for by flags.
    pub fn apply(&self, options: &mut DecodeChoice) {
        options.timestep = self.decode_timestep.or(options.timestep);
        options.noise_scale = self.decode_noise_scale.or(options.noise_scale);
        if options.tiling.spatial.is_none() && options.tiling.temporal.is_none() {
            // What has been cut keeps its own.
            options.tiling.context = CONTEXT;
        }
        options.context = self.vae_tile_context.or(options.context);
        options.tiling.spatial = self.vae_tile.or(options.tiling.spatial);
        options.tiling.temporal = self.vae_tile_frames.or(options.tiling.temporal);
    }

    /// The tiles that were asked for.
    pub fn tiling(&self) -> Tiling {
        Tiling { denoise: None, spatial: self.vae_tile, temporal: self.vae_tile_frames, context: CONTEXT }
    }
}

fn tile(text: &str) -> Result<(usize, usize), Error> {
    text.split_once(':')
        .and_then(|(side, stride)| Some((side.parse().ok()?, stride.parse().ok()?)))
        .filter(|(side, stride)| (1..=*side).contains(stride))
        .ok_or_else(|| {
            Error::invalid(format!("tile `{text}`"), "expected SIDE:STRIDE with a stride from 1 to the side")
        })
}
