//! The latent upsamplers: twice the rows and columns, or twice the frames.

mod config;
mod network;

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};

pub use self::{config::UpsamplerConfig, network::Upsampler};
use crate::{
    error::{Error, Result},
    models::api::{LatentUpsampler, Placement, UpsamplerInfo, UpsamplerSource},
    weights::Weights,
};

const STEM: &str = "diffusion_pytorch_model";
const CONFIG: &str = "config.json";

/// An upsampler that was opened from its headers.
pub struct LtxUpsamplerSource {
    info: UpsamplerInfo,
    config: UpsamplerConfig,
    weights: Weights,
}

impl LtxUpsamplerSource {
    /// Opens a single file with its configuration in the metadata, the folder of an upsampler, or the folder of a
    /// pipeline that has one in `latent_upsampler/`.
    pub fn open(path: &Path) -> Result<Self> {
        let (config, weights) = if path.is_dir() { folder(path)? } else { single(path)? };
        let (space, time) = config.factors();
        let info = UpsamplerInfo {
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            space,
            time,
            channels: config.in_channels,
            weight_bytes: weights.byte_len(),
        };
        Ok(Self { info, config, weights })
    }
}

fn folder(path: &Path) -> Result<(UpsamplerConfig, Weights)> {
    let below = path.join("latent_upsampler");
    let folder = if below.is_dir() { below } else { path.to_owned() };
    let file = folder.join(CONFIG);
    if !file.exists() {
        return Err(Error::MissingFile { path: file, what: "it says how the upsampler is built" });
    }
    let json = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
    Ok((UpsamplerConfig::parse(&json, &file)?, Weights::open(&folder, STEM, None)?))
}

fn single(path: &Path) -> Result<(UpsamplerConfig, Weights)> {
    let weights = Weights::open_files(&[PathBuf::from(path)])?;
    let Some(json) = weights.metadata("config") else {
        return Err(Error::damaged(path, "its metadata has no `config`, which every upsampler has"));
    };
    Ok((UpsamplerConfig::parse(json, path)?, weights))
}

impl UpsamplerSource for LtxUpsamplerSource {
    fn info(&self) -> &UpsamplerInfo {
        &self.info
    }

    fn load(&self, place: &Placement) -> Result<Box<dyn LatentUpsampler>> {
        let w = self.weights.loader(place);
        let network = Upsampler::new(&self.config, &w)?;
        w.finish(&[])?;
        Ok(Box::new(Loaded { network, device: place.device.clone() }))
    }
}

struct Loaded {
    network: Upsampler,
    device: Device,
}

impl LatentUpsampler for Loaded {
    fn upsample(&mut self, latents: &Tensor) -> Result<Tensor> {
        let (_, _, _, _, _) = latents.dims5()?;
        let x = latents.to_device(&self.device)?.squeeze(0)?;
        Ok(self.network.forward(&x)?.unsqueeze(0)?.to_device(latents.device())?)
    }
}
