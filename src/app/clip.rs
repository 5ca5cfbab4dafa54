//! The last stage, shared by all verbs that make a clip: latents into files.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{DeviceLocation, Tensor};
use serde::Serialize;

use crate::{
    app::{
        detail::{DetailSink, Held},
        latents::Origin,
        outputs::{Files, Outputs},
        recipe::Recipe,
    },
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    media::{EncodeOptions, Format, SheetBuilder, Target, TeeSink, UpscaleSink, open_sink},
    models::api::{DecodeOptions, Placement},
    pipeline::{health::Health, render::Renderer},
    video::{FrameSink, Size, VideoSpec},
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

impl Clip {
    /// [`Error::BadOutput`] if the frames can't be a video of anything. The file is there all the same.
    pub fn verdict(&self) -> Result<()> {
        self.health.verdict.error().map_or(Ok(()), Err)
    }
}

/// Options for the sink of a clip: how it is encoded, its rate and its recipe.
fn sink_options(encode: &EncodeOptions, recipe: &Recipe) -> EncodeOptions {
    let metadata = vec![("comment".to_owned(), recipe.to_json())];
    EncodeOptions { fps: recipe.spec.fps, metadata, ..encode.clone() }
}

/// Opens `target` for the frames of a recipe: they come in as decoded and are written as the recipe says.
pub(super) fn open_video(
    target: &Target,
    recipe: &Recipe,
    options: &EncodeOptions,
) -> Result<Box<dyn FrameSink>> {
    let size = recipe.frame_size();
    let sink = open_sink(target, size.width, size.height, options)?;
    Ok(if size == recipe.spec.size() { sink } else { Box::new(UpscaleSink::new(sink, size)) })
}

/// Refuses files that can't be written as they are asked for: opens them for frames of `size`, then leaves nothing
/// behind.
pub(super) fn check_files(files: &Files, outputs: &Outputs, spec: &VideoSpec, size: Size) -> Result<()> {
    let target = &files.target;
    if target.format().is_still() && spec.frames != 1 {
        let what = format!("output `{}`", target.path().display());
        return Err(Error::invalid(what, format!("it holds one frame, not {}", spec.frames))
            .with_hint("pass --frames 1 for a still picture, or name a video or a folder"));
    }
    files.check_writable()?;
    if target.format() != Format::Stdout {
        let options = EncodeOptions { fps: spec.fps, ..outputs.encode.clone() };
        drop(open_sink(target, size.width, size.height, &options)?);
    }
    Ok(())
}

/// Decodes latents into the files of a clip, with the detail of pictures that are `held`. Unless all goes well, no
/// file is there.
pub(super) fn write(
    renderer: &Renderer<'_>,
    latents: &Tensor,
    origin: &Origin,
    held: &[Held],
    files: &Files,
    outputs: &Outputs,
) -> Result<(PathBuf, Health)> {
    let recipe = &origin.recipe;
    let spec = &recipe.spec;
    let mut sink = DetailSink::new(sinks(files, outputs, recipe)?, held.to_vec());
    let decode = DecodeOptions {
        timestep: recipe.decode_timestep,
        noise_scale: recipe.decode_noise_scale,
        tiling: recipe.tiling,
    };
    let health = renderer.decode(latents, spec, recipe.seed, &origin.drawn, &decode, &mut sink)?;
    let path = Box::new(sink).finish()?;
    announce(renderer.reporter, files, &path, &health);
    Ok((path, health))
}

/// Opens the files that a clip's frames go into.
pub(super) fn sinks(files: &Files, outputs: &Outputs, recipe: &Recipe) -> Result<TeeSink> {
    let spec = &recipe.spec;
    let options = sink_options(&outputs.encode, recipe);
    let mut sinks = vec![open_video(&files.target, recipe, &options)?];
    if let Some(sheet) = &files.contact_sheet {
        sinks.push(Box::new(SheetBuilder::new(sheet, spec.frames)?.with_metadata(options.metadata)));
    }
    Ok(TeeSink::new(sinks))
}

/// Says that a clip is written, and what is wrong with it.
pub(super) fn announce(reporter: &dyn Reporter, files: &Files, path: &Path, health: &Health) {
    for path in files.contact_sheet.iter().map(|sheet| sheet.path()).chain([path]) {
        // The clip is whole: nothing is left to stop.
        let _ = reporter.emit(&Event::Written { path: path.to_owned() });
    }
    if let Some(complaint) = health.verdict.complaint() {
        let message = format!("{} is {complaint}", path.display());
        let _ = reporter.emit(&Event::Warning { message });
    }
}

/// `cpu`, `cuda:0`, … as a recipe names it.
pub(super) fn device_name(place: &Placement) -> String {
    match place.device.location() {
        DeviceLocation::Cpu => "cpu".into(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { .. } => "metal".into(),
    }
}
