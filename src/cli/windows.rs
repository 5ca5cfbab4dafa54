//! Flags on clips that are longer than a model's window.

use clap::Args;
use sora::app::take::TakeOptions;

/// How a long clip is cut.
#[derive(Debug, Clone, Args)]
pub struct WindowArgs {
    /// Frames that a window shares with the one before [default: the model's own]
    #[arg(long, value_name = "N", hide_short_help = true)]
    overlap: Option<usize>,

    /// How much of the first window's colours later ones are brought back to (0..1) [default: 1]
    #[arg(long, value_name = "SHARE", hide_short_help = true, allow_negative_numbers = true)]
    match_colour: Option<f64>,
}

impl WindowArgs {
    /// What the library calls this; `window` is how many frames are made in one go.
    pub fn lower(self, window: Option<usize>) -> TakeOptions {
        let Self { overlap, match_colour } = self;
        TakeOptions { window, overlap, match_colour, ..TakeOptions::default() }
    }
}
