//! `sora plan`: what a render will take, before it begins.

use std::{cell::RefCell, io::Write};

use sora::app::{
    budget::describe,
    forecast::{Forecast, forecast},
    locate::outline,
};

use super::{
    generate, progress,
    table::{size, table},
};

const LONG_ABOUT: &str = "Say what `sora gen` would take: memory, time and disk

Takes the flags of `sora gen`. Nothing is rendered and no weights are downloaded: headers are enough. The exit code is 5 \
if it doesn't fit.";

const EXAMPLES: &str = "\
Examples:
  sora plan --model Lightricks/LTX-Video --size 704x480 --frames 97
  sora plan --json";

/// What `sora gen` takes, and nothing else.
#[derive(Debug, clap::Args)]
#[command(
    about = "Say what `sora gen` would take: memory, time and disk",
    long_about = LONG_ABOUT,
    override_usage = "sora plan [OPTIONS] [PROMPT]",
    after_help = EXAMPLES,
    after_long_help = EXAMPLES,
    // A plan needs no prompt, and what clap requires of an argument can't be taken back.
    mut_arg("prompt", |_| clap::Arg::new("prompt").value_name("PROMPT").help("What to show")),
)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    generate: generate::Args,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let generate = args.generate;
    generate.start_threads()?;
    let json = generate.report().json;
    let (name, hub) = (generate.model().map(str::to_owned), generate.hub().open());
    // Headers that were fetched are there as long as their outlines are.
    let outlines = RefCell::new(Vec::new());
    let request = generate::lower(generate, &|name, own, _| {
        let found = outline(name, own, &hub)?;
        let source = found.source.clone();
        outlines.borrow_mut().push(found);
        Ok(source)
    })?;
    let missing = outlines.borrow().iter().map(|outline| outline.missing_bytes).sum();
    let mut forecast = forecast(&request, missing, hub.cache().root())?;
    if let (Some(name), 1..) = (name, missing) {
        forecast.model = name;
    }
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&forecast)?)?;
    } else {
        out.write_all(text(&forecast).as_bytes())?;
    }
    Ok(forecast.verdict()?)
}

/// A forecast for people.
pub fn text(forecast: &Forecast) -> String {
    let spec = &forecast.spec;
    let mut rows = vec![[
        String::new(),
        "weights".into(),
        "working".into(),
        "memory".into(),
        if forecast.device == "cpu" { String::new() } else { "on the GPU".into() },
        "time".into(),
    ]];
    rows.extend(forecast.stages.iter().map(|stage| {
        [
            stage.stage.to_owned(),
            size(stage.weight_bytes),
            size(stage.working_bytes),
            size(stage.host_bytes),
            if stage.device_bytes == 0 { String::new() } else { size(stage.device_bytes) },
            progress::clock(std::time::Duration::from_secs_f64(stage.seconds)),
        ]
    }));
    let available = match forecast.available_bytes {
        Some(have) => format!("{} are free", size(have)),
        None => "this system doesn't say how much is free".into(),
    };
    let limit =
        forecast.limit_bytes.map_or_else(String::new, |bytes| format!(", {} are allowed", size(bytes)));
    let verdict = if forecast.fits { "it fits" } else { "it doesn't fit" };
    let disk = match (forecast.download_bytes, forecast.disk_free_bytes) {
        (0, _) => "nothing to download".to_owned(),
        (bytes, None) => format!("{} to download", size(bytes)),
        (bytes, Some(free)) => format!("{} to download, {} are free", size(bytes), size(free)),
    };
    let lines = [
        format!(
            "{}: {}x{}, {} frames at {} fps",
            forecast.model, spec.width, spec.height, spec.frames, spec.fps
        ),
        format!(
            "{} steps, {} passes through the denoiser, {} in {}, {:.0} Gflop/s measured",
            forecast.steps,
            forecast.calls,
            forecast.device,
            forecast.dtype,
            forecast.speed.flops / 1e9
        ),
        table(&rows).trim_end().to_owned(),
        format!(
            "memory  {} while {}, {available}{limit}: {verdict}",
            size(forecast.peak_bytes),
            forecast.peak_stage
        ),
        format!("decode  in {}", describe(&forecast.tiling)),
        format!("time    about {}", progress::clock(std::time::Duration::from_secs_f64(forecast.seconds))),
        format!("disk    {disk}"),
    ];
    lines.join("\n") + "\n"
}
