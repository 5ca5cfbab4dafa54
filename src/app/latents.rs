//! Latents on disk: safetensors, key `latents`, `[1, C, F, H, W]`, f32, as the denoiser leaves them.

use std::{
    collections::HashMap,
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::{
    app::{outputs::folder_of, recipe::Recipe},
    error::{Error, Result},
    models::source::ModelSource,
    pipeline::noise::Drawn,
};

const KEY: &str = "latents";
/// Tokens of conditions that stand beside a stopped render's own.
const BESIDE: &str = "beside";
const METADATA: &str = "sora";

/// What a latents file of ours says about itself, as JSON under the metadata key `sora`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Where the model lies.
    #[serde(default)]
    pub model: ModelSource,
    /// Where the upsamplers between its passes lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upsamplers: Vec<PathBuf>,
    /// What the latents were made from.
    pub recipe: Recipe,
    /// What had been drawn from the seed when they were left.
    #[serde(default)]
    pub drawn: Drawn,
    /// The pass that they come from, from 0.
    #[serde(default)]
    pub pass: usize,
    /// Steps of that pass that were done before the render was stopped; nothing means that all of all passes were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_done: Option<usize>,
    /// Windows of a long clip that were done before it was stopped; nothing means that all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows_done: Option<usize>,
    /// The passages of a clip that goes on, which lie here one after another; the one that was stopped comes last, and
    /// isn't counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passages: Vec<PassageLatents>,
    /// A hash of all that a film's shot is made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Latents of one passage within a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PassageLatents {
    /// Latent frames.
    pub frames: usize,
    /// What had been drawn from its seed.
    pub drawn: Drawn,
}

/// A latents file that was read.
#[derive(Debug, Clone)]
pub struct Latents {
    /// `[1, C, F, H, W]`, f32, on the CPU.
    pub tensor: Tensor,
    /// `[1, E, D]`, f32, on the CPU: tokens of conditions, in the file of a stopped render that has some.
    pub beside: Option<Tensor>,
    /// Where they come from; files by other programs don't say.
    pub origin: Option<Origin>,
}

/// Writes latents, and what a stopped render needs `beside` them, next to `path` and moves them there when they are
/// whole.
pub fn save(path: &Path, latents: &Tensor, beside: Option<&Tensor>, origin: &Origin) -> Result<()> {
    let (_, _, _, _, _) = latents.dims5()?;
    let broken = |e: safetensors::SafeTensorError| Error::damaged(path, e.to_string());
    let mut stored = Vec::new();
    for (key, tensor) in [(KEY, Some(latents)), (BESIDE, beside)] {
        let Some(tensor) = tensor else { continue };
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        stored.push((key, tensor.dims().to_vec(), bytes));
    }
    let views = stored.iter().map(|(key, shape, bytes)| {
        Ok((*key, TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(broken)?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let origin = serde_json::to_string(origin).expect("an origin has string keys and finite numbers only");
    // One key only: the order of several would change from run to run.
    let metadata = HashMap::from([(METADATA.to_owned(), origin)]);
    let file = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
    write_whole(path, &file)
}

/// Writes a file beside its place and moves it there when it is whole.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".sora-").suffix(".part");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(folder_of(path)).map_err(Error::file("write", path))?;
    temporary.write_all(bytes).map_err(Error::file("write", path))?;
    temporary.as_file().sync_all().map_err(Error::file("write", path))?;
    temporary.persist(path).map_err(|e| Error::file("write", path)(e.error))?;
    Ok(())
}

/// Reads a latents file, by this program or any other that keeps to the layout.
pub fn load(path: &Path) -> Result<Latents> {
    let bytes = std::fs::read(path).map_err(Error::file("read", path))?;
    let broken = |e: safetensors::SafeTensorError| Error::damaged(path, format!("no safetensors file: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let origin = match header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA)) {
        Some(json) => Some(
            serde_json::from_str(json)
                .map_err(|e| Error::damaged(path, format!("metadata `{METADATA}`: {e}")))?,
        ),
        None => None,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let view = file.tensor(KEY).map_err(|_| {
        Error::damaged(path, format!("no tensor `{KEY}` (found: {})", file.names().join(", ")))
    })?;
    if view.shape().len() != 5 || view.shape()[0] != 1 {
        let why = format!("`{KEY}` has shape {:?} (expected [1, C, F, H, W])", view.shape());
        return Err(Error::damaged(path, why));
    }
    let tensor = read(path, KEY, &view)?;
    let beside = file.tensor(BESIDE).ok().map(|view| read(path, BESIDE, &view)).transpose()?;
    Ok(Latents { tensor, beside, origin })
}

/// A tensor of finite numbers as f32.
fn read(path: &Path, key: &str, view: &TensorView<'_>) -> Result<Tensor> {
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(Error::damaged(path, format!("`{key}` is {other:?} (expected F32, F16 or BF16)")));
        }
    };
    let tensor =
        Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?.to_dtype(DType::F32)?;
    if tensor.flatten_all()?.to_vec1::<f32>()?.iter().any(|value| !value.is_finite()) {
        return Err(Error::NotFiniteTensor { file: path.into(), key: key.into() });
    }
    Ok(tensor)
}
