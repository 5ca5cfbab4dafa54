//! Flags on what is said while the work goes on.

use clap::{Args, ValueEnum};

/// How progress is shown on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressStyle {
    /// Bars on a terminal, plain lines elsewhere
    #[default]
    Auto,
    /// A line now and then
    Plain,
    /// One JSON object a line
    Json,
    /// Nothing but warnings and errors
    None,
}

/// What is said while the work goes on.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Reporting")]
pub struct ReportArgs {
    /// How progress is shown on stderr
    #[arg(long, value_name = "STYLE", value_enum, default_value_t, hide_short_help = true)]
    pub progress: ProgressStyle,

    /// Print a JSON object per video on stdout: path, recipe, seconds, health
    #[arg(long)]
    pub json: bool,

    /// Say nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say more: the whole recipe, time and memory per phase
    #[arg(short, long, hide_short_help = true)]
    pub verbose: bool,
}
