//! What a checkpoint is, from its headers alone.

use serde::Serialize;

use crate::{
    device::{DTypeChoice, DeviceChoice},
    error::Result,
    models::{
        api::{Activations, ModelInfo, Placement, Tiling},
        registry,
        source::ModelSource,
    },
    video::VideoSpec,
};

/// A checkpoint, and what it needs for a clip of its own size.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// What it is.
    #[serde(flatten)]
    pub info: ModelInfo,
    /// Bytes beside the weights for a clip of the model's own size, on a CPU in f32, without tiles.
    pub activation_bytes: Activations,
}

/// Reads a checkpoint's headers; no weight is loaded.
pub fn inspect(model: &ModelSource) -> Result<Inspection> {
    let checkpoint = registry::open(model)?;
    let info = checkpoint.info().clone();
    let device = DeviceChoice::Cpu.open()?;
    let place = Placement { dtype: DTypeChoice::F32.resolve(&device), device };
    let defaults = &info.defaults;
    let spec = VideoSpec {
        width: defaults.width,
        height: defaults.height,
        frames: defaults.frames,
        fps: defaults.fps,
    };
    let activation_bytes = checkpoint.activations(&spec, &place, &Tiling::default());
    Ok(Inspection { info, activation_bytes })
}
