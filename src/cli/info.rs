//! `sora info`: what a checkpoint is.

use std::io::Write;

use sora::{
    app::{
        inspect::{Inspection, inspect},
        locate::outline,
    },
    models::{api::Identified, source::ModelSource},
};

use super::{hub::HubArgs, model::PartArgs};

/// Say what a model is, from its headers alone
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sora info\n  sora info ./ltx-video --json")]
pub struct Args {
    /// Model: a folder or a file, OWNER/NAME of the hub, or a name from `sora models list` [default: the one that is
    /// built in]
    model: Option<String>,

    #[command(flatten)]
    hub: HubArgs,

    #[command(flatten)]
    parts: PartArgs,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let hub = args.hub.open();
    let own = args.parts.clone().lower();
    let outline = args.model.as_ref().map(|name| outline(name, &own, &hub)).transpose()?;
    let model = outline.as_ref().map_or(ModelSource::Embedded, |outline| outline.source.clone());
    let inspection = inspect(&args.parts.clone().onto(model))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&inspection)?)?;
    } else {
        out.write_all(table(&inspection).as_bytes())?;
    }
    Ok(())
}

pub fn table(inspection: &Inspection) -> String {
    let Inspection { info, activation_bytes } = inspection;
    let (g, d, w) = (&info.geometry, &info.defaults, &info.weight_bytes);
    let unit = g.spatial * g.patch;
    let rows = [
        ("name", info.name.clone()),
        ("pipeline", info.pipeline.clone()),
        ("own size", format!("{}x{}, {} frames at {} fps", d.width, d.height, d.frames, d.fps)),
        ("sizes", format!("multiples of {unit}")),
        ("frames", format!("{}k+1", g.temporal * g.patch_t)),
        (
            "latents",
            format!(
                "{} channels, {}x{} pixels and {} frames a cell",
                g.channels, g.spatial, g.spatial, g.temporal
            ),
        ),
        ("steps", d.steps.to_string()),
        ("guidance", d.guidance.to_string()),
        (
            "recipe",
            match info.published {
                Identified::Unknown => "its pipeline's own".into(),
                Identified::Recipe(name) => name.into(),
                Identified::Unclear(one, other) => format!("{one} or {other}: --recipe-name says which"),
            },
        ),
        ("prompt", format!("up to {} tokens", d.max_sequence_length)),
        ("text encoder", mib(w.text)),
        ("denoiser", format!("{} + {} while it works", mib(w.denoiser), mib(activation_bytes.denoise))),
        ("video coder", format!("{} + {} while it works", mib(w.video), mib(activation_bytes.decode))),
    ];
    rows.iter().map(|(name, value)| format!("{name:<13} {value}\n")).collect()
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
