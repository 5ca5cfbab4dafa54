//! `sora join`: what lies between two clips.

use std::path::PathBuf;

use sora::{
    Error,
    app::{
        generate::GenerateRequest,
        shape::LengthChoice,
        weave::{Pattern, WeaveRequest, weave},
    },
    models::source::ModelSource,
};

use super::{
    compute::ComputeArgs,
    decoding::{DecodingArgs, TileArgs},
    generate::{ClipsArgs, SavingArgs, seconds},
    hub::HubArgs,
    model::PartArgs,
    outcome,
    output::OutputArgs,
    reporting::ReportArgs,
    sampling::SamplingArgs,
    start::start,
    visual::WeavingArgs,
};

/// Join two clips by a passage that leads from the one to the other
///
/// The output holds the first clip, the passage and the second clip, in the size and at the rate of the first.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sora join beach.mp4 city.mp4 --prompt \"the tide turns into traffic\" -o trip.mp4"
)]
pub struct Args {
    /// The clip that comes first
    first: PathBuf,

    /// The clip that comes last
    last: PathBuf,

    /// What to show in between
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: String,

    /// Model: a path, OWNER/NAME of the hub or a known name [default: the one that is built in]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// What to keep away from
    #[arg(short, long, value_name = "TEXT")]
    negative_prompt: Option<String>,

    /// Length of the passage, e.g. 2s; the nearest valid one is taken
    #[arg(short, long, value_name = "TIME", value_parser = seconds)]
    duration: Option<f64>,

    #[command(flatten)]
    weaving: WeavingArgs,
    #[command(flatten)]
    clips: ClipsArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    tile: TileArgs,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    saving: SavingArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    parts: PartArgs,
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
    let request = lower(args, model)?;
    let clip = weave(&request, reporter.as_ref())?;
    outcome::print(&clip, &report)?;
    Ok(clip.verdict()?)
}

fn lower(args: Args, model: Option<ModelSource>) -> Result<WeaveRequest, Error> {
    let mut base = GenerateRequest {
        prompt: args.prompt,
        negative_prompt: args.negative_prompt,
        length: args.duration.map_or(LengthChoice::Default, LengthChoice::Seconds),
        upscale: args.decoding.upscale,
        max_memory: args.compute.max_memory,
        device: args.compute.device,
        dtype: args.compute.dtype,
        outputs: args.output.lower(),
        ..args.clips.request(args.sampling)
    };
    base.model = args.parts.onto(model.unwrap_or_default());
    args.decoding.apply(&mut base.decode);
    args.tile.apply(&mut base.decode);
    args.saving.apply(&mut base.outputs);
    let pattern = Pattern::Join { first: args.first, last: args.last };
    let WeavingArgs { context, window } = args.weaving;
    Ok(WeaveRequest { base, pattern, context, window, made: None })
}
