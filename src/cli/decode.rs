//! `sora decode`: from saved latents to a video.

use std::path::PathBuf;

use sora::{
    app::decode::{DecodeRequest, decode},
    models::source::ModelSource,
};

use super::{
    compute::ComputeArgs, decoding::DecodingArgs, hub::HubArgs, model::PartArgs, outcome, output::OutputArgs,
    reporting::ReportArgs, start::start,
};

/// Decode saved latents into a video
///
/// Latents that `sora` wrote say which model, seed and rate they belong to; flags override that. Others need
/// --model, unless they are the built-in model's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sora decode out.latents.safetensors -o out.mp4")]
pub struct Args {
    /// Latents: safetensors, key `latents`, [1, C, F, H, W]
    latents: PathBuf,

    /// Model, as for `sora gen` [default: the one the latents name, else the one that is built in]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    #[command(flatten)]
    parts: PartArgs,

    /// Frames a second [default: as the latents say, else the model's own]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    fps: Option<f64>,

    /// Seed of the decoder's noise, for decoders that want some [default: as the latents say, else 0]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    report: ReportArgs,
}

impl Args {
    pub fn report(&self) -> &ReportArgs {
        &self.report
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let (report, own) = (args.report.clone(), args.parts.clone().lower());
    let (reporter, model) = start(&args.compute, &report, &args.hub, &own, args.model.as_deref())?;
    let parts = args.parts.clone();
    // Parts alone are those of the built-in model.
    let model = match model {
        None if parts.is_empty() => None,
        model => Some(parts.onto(model.unwrap_or_default())),
    };
    let clip = decode(&lower(args, model), reporter.as_ref())?;
    outcome::print(&clip, &report)?;
    Ok(clip.verdict()?)
}

fn lower(args: Args, model: Option<ModelSource>) -> DecodeRequest {
    DecodeRequest {
        model,
        fps: args.fps,
        seed: args.seed,
        decode_timestep: args.decoding.decode_timestep,
        decode_noise_scale: args.decoding.decode_noise_scale,
        tiling: args.decoding.tiling(),
        context: args.decoding.vae_tile_context,
        max_memory: args.compute.max_memory,
        upscale: args.decoding.upscale,
        device: args.compute.device,
        dtype: args.compute.dtype,
        outputs: args.output.lower(),
        latents: args.latents,
    }
}
