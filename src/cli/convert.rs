//! `sora convert`: weights into another number format.

use std::{io::Write, path::PathBuf};

use sora::{
    app::convert::{ConvertRequest, convert},
    models::portable::Format,
};

use super::{compute::ComputeArgs, progress, reporting::ReportArgs};

/// Make a smaller checkpoint: weights in another number format
///
/// The input is a transformer or a T5 (a safetensors or GGUF file, or its folder), a file with several parts, or a whole
/// LTX-Video folder. q8_0, q6_k, q5_k and q4_k become GGUF files under the names that other programs know; bf16, f16 and
/// fp8 (E4M3 with scales) become safetensors.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sora convert ltx-video/text_encoder t5-q5_k.gguf --dtype q5_k
  sora convert ltxv-2b-0.9.5.safetensors ltxv-2b-0.9.5-fp8.safetensors --dtype fp8
  sora convert ltx-video ltx-video-bf16 --dtype bf16")]
pub struct Args {
    /// What to convert
    input: PathBuf,

    /// The new file; for a whole folder, the new folder
    output: PathBuf,

    /// Number format: q8_0, q6_k, q5_k, q4_k, bf16, f16 or fp8
    #[arg(long, value_name = "DTYPE")]
    dtype: Format,

    /// Replace a file of that name
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    report: ReportArgs,
}

impl Args {
    pub fn report(&self) -> &ReportArgs {
        &self.report
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    ComputeArgs::default_threads()?;
    super::interrupt::watch()?;
    let request = ConvertRequest {
        input: args.input.clone(),
        output: args.output.clone(),
        format: args.dtype,
        overwrite: args.overwrite,
    };
    let converted = convert(&request, progress::reporter(&args.report).as_ref())?;
    let mut out = std::io::stdout().lock();
    if args.report.json {
        writeln!(out, "{}", serde_json::to_string(&converted)?)?;
    } else {
        writeln!(out, "{}", converted.path.display())?;
    }
    Ok(())
}
