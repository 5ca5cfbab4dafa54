//! `sora doctor`: what a render needs, and whether it is there.

use std::io::Write;

use sora::app::doctor::{Check, State, examine, verdict};

use super::{compute::ComputeArgs, hub::HubArgs, table::table};

/// Look at everything a render needs on this machine
///
/// Devices, FFmpeg and its encoders, memory, disk, the cache, and one step of the built-in model. What is wrong comes
/// with its fix; the exit code says whether anything is broken.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  sora doctor\n  sora doctor --json")]
pub struct Args {
    /// Print a JSON list
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    hub: HubArgs,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    ComputeArgs::default_threads()?;
    let checks = examine(&args.hub.open());
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&checks)?)?;
    } else {
        out.write_all(text(&checks).as_bytes())?;
    }
    Ok(verdict(&checks)?)
}

fn text(checks: &[Check]) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for check in checks {
        let state = match check.state {
            State::Fine => "fine",
            State::Warning => "warning",
            State::Broken => "broken",
        };
        rows.push([check.name.into(), state.into(), check.found.clone()]);
        rows.extend(check.fix.iter().map(|fix| [String::new(), "fix".into(), fix.clone()]));
    }
    table(&rows)
}
