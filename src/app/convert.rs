//! Weights from one number format into another.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;

use crate::{
    app::outputs::folder_of,
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    models::portable::{self, Format, Portable},
};

/// What to convert into what.
#[derive(Debug, Clone)]
pub struct ConvertRequest {
    /// A transformer, a text encoder, a file with several parts, or a whole folder in the published layout.
    pub input: PathBuf,
    /// The new file or folder.
    pub output: PathBuf,
    /// In which format.
    pub format: Format,
    /// Whether a file of that name may be replaced.
    pub overwrite: bool,
}

/// What was converted.
#[derive(Debug, Clone, Serialize)]
pub struct Converted {
    /// The new file or folder.
    pub path: PathBuf,
    /// Bytes of the weights before.
    pub bytes_before: u64,
    /// Bytes of the weights now.
    pub bytes_after: u64,
}

/// The parts of a folder that are converted.
const PARTS: [&str; 2] = ["transformer", "text_encoder"];

/// Converts weights. The output stands finished under its name, or not at all.
pub fn convert(request: &ConvertRequest, reporter: &dyn Reporter) -> Result<Converted> {
    let ConvertRequest { input, output, format, overwrite } = request;
    if output.exists() && (!overwrite || output.is_dir()) {
        let hint =
            if output.is_dir() { "choose another name" } else { "choose another name, or pass --overwrite" };
        return Err(
            Error::invalid(format!("output `{}`", output.display()), "it is there already").with_hint(hint)
        );
    }
    let folder = folder_of(output);
    if !folder.is_dir() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Error::file("write into", folder)(missing));
    }
    let clock = Instant::now();
    let converted = if input.join("model_index.json").is_file() {
        whole_folder(request, reporter)?
    } else {
        let part = portable::open(input)?;
        check_name(output, *format)?;
        write(&part, *format, output, reporter)?;
        Converted {
            path: output.clone(),
            bytes_before: part.weights.byte_len(),
            bytes_after: fs::metadata(output).map_err(Error::file("read", output))?.len(),
        }
    };
    let _ = reporter.emit(&Event::Finished { phase: Phase::Convert, elapsed: clock.elapsed() });
    let _ = reporter.emit(&Event::Written { path: output.clone() });
    Ok(converted)
}

/// Files are opened by their headers, but a name that lies confuses everybody else.
fn check_name(output: &Path, format: Format) -> Result<()> {
    let expected = if format.is_gguf() { "gguf" } else { "safetensors" };
    if output.extension().and_then(OsStr::to_str).is_some_and(|ending| ending.eq_ignore_ascii_case(expected))
    {
        return Ok(());
    }
    let what = format!("output `{}`", output.display());
    let hint = format!("name it {}", output.with_extension(expected).display());
    Err(Error::invalid(what, format!("{format} is written as .{expected}")).with_hint(hint))
}

fn write(part: &Portable, format: Format, output: &Path, reporter: &dyn Reporter) -> Result<()> {
    let progress = |done: usize, total: usize| {
        let (done, total) = (done as u64, total as u64);
        let event = match done {
            0 => Event::Started { phase: Phase::Convert, total },
            _ => Event::Progress { phase: Phase::Convert, done, total },
        };
        if reporter.emit(&event).is_break() { Err(Error::Cancelled { saved: None }) } else { Ok(()) }
    };
    if let Some(message) = part.write(format, output, &progress)? {
        let _ = reporter.emit(&Event::Warning { message });
    }
    Ok(())
}

/// A folder in the published layout becomes one with smaller weights; all else in it is copied.
fn whole_folder(request: &ConvertRequest, reporter: &dyn Reporter) -> Result<Converted> {
    let ConvertRequest { input, output, format, .. } = request;
    if format.is_gguf() {
        let parts: Vec<String> = PARTS.iter().map(|part| input.join(part).display().to_string()).collect();
        return Err(Error::invalid(
            format!("dtype {format} for a whole folder"),
            "a GGUF file holds one part of a model",
        )
        .with_hint(format!("convert {} each into a file of its own", parts.join(" and "))));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sora-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let folder = folder_of(output);
    let temporary = builder.tempdir_in(folder).map_err(Error::file("write into", folder))?;
    let (mut before, mut after) = (0, 0);
    for entry in sorted(input)? {
        let name = entry.file_name().unwrap_or_default().to_owned();
        let to = temporary.path().join(&name);
        if name.to_str().is_some_and(|name| PARTS.contains(&name)) {
            fs::create_dir(&to).map_err(Error::file("write", &to))?;
            let part = portable::open(&entry)?;
            for file in sorted(&entry)?.iter().filter(|file| !is_weights(file)) {
                copy(file, &to.join(file.file_name().unwrap_or_default()))?;
            }
            let file = to.join(format!("{}.safetensors", part.stem));
            write(&part, *format, &file, reporter)?;
            before += part.weights.byte_len();
            after += fs::metadata(&file).map_err(Error::file("read", &file))?.len();
        } else {
            copy(&entry, &to)?;
        }
    }
    let made = temporary.keep();
    fs::rename(&made, output).map_err(|error| {
        // Nothing of it is left behind, and the first failure is the one to tell of.
        let _ = fs::remove_dir_all(&made);
        Error::file("write", output)(error)
    })?;
    Ok(Converted { path: output.clone(), bytes_before: before, bytes_after: after })
}

/// Weights, in whichever shards and variants, and their index files.
fn is_weights(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.ends_with(".safetensors") || name.contains(".safetensors.index.")
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::file("read", folder))?;
    let paths = entries.map(|entry| Ok(entry.map_err(Error::file("read", folder))?.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir(to).map_err(Error::file("write", to))?;
        return sorted(from)?
            .iter()
            .try_for_each(|path| copy(path, &to.join(path.file_name().unwrap_or_default())));
    }
    fs::copy(from, to).map_err(Error::file("write", to)).map(drop)
}
