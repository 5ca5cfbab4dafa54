//! The command line: clap types, one file per verb, what is said on stderr, exit codes.

mod batch;
mod completions;
mod compute;
mod convert;
mod decode;
mod decoding;
mod doctor;
mod exit;
mod generate;
mod hub;
mod info;
mod interrupt;
mod join;
mod man;
mod message;
mod model;
mod models;
mod outcome;
mod output;
mod plan;
mod progress;
mod reporting;
mod sampling;
mod start;
mod storyboard;
mod table;
mod visual;
mod windows;

use std::process::ExitCode;

use clap::Parser;

use exit::Exit;
use sora::device::isa;

const EXAMPLES: &str = "\
Examples:
  sora gen \"pirate ships in coffee\" -o out.mp4
  sora gen --help
  sora decode out.latents.safetensors -o out.webm
  sora info ./ltx-video";

/// Text-to-video on your own machine: one command, no Python, no account, no cloud
#[derive(Debug, Parser)]
#[command(
    name = "sora",
    version,
    max_term_width = 110,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\nExit codes:\n{}", exit::table()),
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    #[command(name = "gen")]
    Generate(Box<generate::Args>),
    Plan(Box<plan::Args>),
    Batch(Box<batch::Args>),
    Join(Box<join::Args>),
    Decode(Box<decode::Args>),
    Storyboard(Box<storyboard::Args>),
    Info(info::Args),
    Models(models::Args),
    Doctor(doctor::Args),
    Convert(convert::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    message::announce_panics();
    let json = verb.speaks_json();
    let result = std::panic::catch_unwind(|| {
        choose_kernels()?;
        run(verb)
    });
    match result {
        Ok(Ok(())) => Exit::Ok,
        // Whoever read our output has seen enough.
        Ok(Err(error)) if closed_pipe(&error) => Exit::Ok,
        Ok(Err(error)) => message::Failure::from(&error).print(json),
        Err(_) => Exit::Internal,
    }
    .into()
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Generate(args) => generate::run(*args),
        Verb::Plan(args) => plan::run(*args),
        Verb::Batch(args) => batch::run(*args),
        Verb::Join(args) => join::run(*args),
        Verb::Decode(args) => decode::run(*args),
        Verb::Storyboard(args) => storyboard::run(*args),
        Verb::Info(args) => info::run(&args),
        Verb::Models(args) => models::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Convert(args) => convert::run(&args),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
    }
}

/// Takes the kernels that `SORA_ISA` names.
fn choose_kernels() -> anyhow::Result<()> {
    match std::env::var(isa::VARIABLE) {
        Err(std::env::VarError::NotPresent) => {}
        named => named?.parse::<isa::Isa>()?.force()?,
    }
    Ok(())
}

fn closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

impl Verb {
    /// Whether stderr is a stream of JSON objects.
    fn speaks_json(&self) -> bool {
        let report = match self {
            Self::Generate(args) => args.report(),
            Self::Batch(args) => return args.speaks_json(),
            Self::Join(args) => args.report(),
            Self::Decode(args) => args.report(),
            Self::Models(args) => return args.speaks_json(),
            Self::Convert(args) => args.report(),
            Self::Storyboard(args) => args.report(),
            _ => return false,
        };
        report.progress == reporting::ProgressStyle::Json
    }
}
