//! Latents kept when a clip can't be finished: a render is never lost to its last stage.

use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::{
    app::{
        latents::{self, Origin},
        outputs::{Files, Outputs, shell_word},
    },
    error::Error,
};

/// Saves latents beside the output, else in the system's temporary folder, and wraps the error that made it
/// necessary. If they can be saved nowhere, the error stays as it is.
pub(super) fn keep(
    error: Error,
    latents: &Tensor,
    beside: Option<&Tensor>,
    origin: &Origin,
    files: &Files,
    outputs: &Outputs,
) -> Error {
    let kept = match &files.latents {
        Some(path) if origin.steps_done.is_none() && path.exists() => Some(path.clone()),
        _ => save_somewhere(latents, beside, origin, &files.rescue),
    };
    let Some(saved) = kept else { return error };
    let verb = if origin.steps_done.is_some() { "gen --resume" } else { "decode" };
    self::kept(error, &saved, verb, files, outputs)
}

/// Wraps an error when all that was done lies in a file already; `verb` goes on from there.
pub(super) fn kept(error: Error, saved: &Path, verb: &str, files: &Files, outputs: &Outputs) -> Error {
    let target = Some(files.target.path().to_string_lossy().into_owned());
    let flags = Outputs { target, ..outputs.clone() }.flags();
    let go_on = format!("sora {verb} {} {flags}", shell_path(saved));
    Error::Unfinished { saved: saved.to_owned(), go_on, source: Box::new(error) }
}

fn save_somewhere(
    latents: &Tensor,
    beside: Option<&Tensor>,
    origin: &Origin,
    rescue: &Path,
) -> Option<PathBuf> {
    let name = rescue.file_name()?;
    let places = [rescue.to_owned(), std::env::temp_dir().join(name)];
    places.into_iter().find(|place| latents::save(place, latents, beside, origin).is_ok())
}

/// A path as a shell reads it back.
pub(super) fn shell_path(path: &Path) -> String {
    shell_word(&path.to_string_lossy())
}
