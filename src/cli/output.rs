//! Flags on what is written, and how.

use std::path::PathBuf;

use clap::Args;
use sora::{
    app::outputs::Outputs,
    media::{Codec, EncodeOptions},
};

/// What is written, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Where the video goes; the ending decides the format
    ///
    /// .mp4 .mov .mkv (H.264), .webm (VP9), .gif, .webp, .y4m; .png or .jpg for one frame; a folder (ending in
    /// `/`) for lossless PNG frames; `-` for y4m on stdout. A file that is there is replaced, in one step, when
    /// the new one is whole. [default: sora-<prompt>-<seed>.mp4]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<String>,

    /// Video codec instead of the format's own
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub codec: Option<Codec>,

    /// Constant quality: lower is better and larger
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub crf: Option<u8>,

    /// Speed preset of the encoder, e.g. medium or slow
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub preset: Option<String>,

    /// Pixel format of the encoder, e.g. yuv444p
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub pix_fmt: Option<String>,

    /// Lay the frames out in one picture, too
    #[arg(long, value_name = "FILE")]
    pub contact_sheet: Option<PathBuf>,
}

impl OutputArgs {
    /// What the library calls this.
    pub fn lower(self) -> Outputs {
        let Self { output, codec, crf, preset, pix_fmt, contact_sheet } = self;
        let encode = EncodeOptions { codec, crf, preset, pix_fmt, ..EncodeOptions::default() };
        Outputs { target: output, encode, contact_sheet, ..Outputs::default() }
    }
}
