//! The last stage, shared by all verbs that make a clip: latents into files, and latents kept if that fails.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::Tensor;
use serde::Serialize;

use crate::{
    app::{
        latents::{self, Origin},
        outputs::{Files, Outputs, shell_word},
        recipe::Recipe,
        tally::Tally,
    },
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    media::{EncodeOptions, SheetBuilder, TeeSink, open_sink},
    models::api::DecodeOptions,
    pipeline::render::{Health, Renderer},
    video::{FrameSink, VideoSpec},
};

/// A finished clip.
#[derive(Debug, Clone, Serialize)]
pub struct Clip {
    /// The video; `-` for standard output.
    pub path: PathBuf,
    /// The final latents, if they were kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents: Option<PathBuf>,
    /// The contact sheet, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact_sheet: Option<PathBuf>,
    /// What it was made from; it stands in the video's `comment` tag, too.
    pub recipe: Recipe,
    /// Seconds spent in each phase.
    pub seconds: BTreeMap<Phase, f64>,
    /// What the frames look like to a machine.
    pub health: Health,
}
