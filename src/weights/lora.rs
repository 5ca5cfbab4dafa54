//! LoRA files: pairs of thin matrices that change the weights of linear layers.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};

use super::files::Weights;
use crate::{
    device::Placement,
    error::{Error, Result},
};

/// What training programs put before a layer's name.
const PREFIXES: [&str; 6] = [
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_transformer_",
    "lora_unet_",
];
/// What follows a layer's name where its first, shrinking matrix is.
const DOWN: [&str; 4] =
    [".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight", ".lora.down.weight"];
/// What follows a layer's name where its second, widening matrix is.
const UP: [&str; 4] = [".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight", ".lora.up.weight"];

/// One opened LoRA file: which layers it changes, by their names in the file without the program's prefix.
pub struct Lora {
    path: PathBuf,
    weights: Weights,
    layers: BTreeMap<String, Layer>,
}

/// The keys of one layer's parts.
#[derive(Default)]
struct Layer {
    down: Option<String>,
    up: Option<String>,
    alpha: Option<f32>,
}

/// What is added to a weight: `scale · up · down`.
#[derive(Clone)]
pub(super) struct Patch {
    /// `[rank, in]`, f32, on the CPU.
    down: Tensor,
    /// `[out, rank]`, f32, on the CPU, the factor in it.
    up: Tensor,
}

/// What is added to the products of a weight that can't be changed itself.
#[derive(Clone)]
pub struct Adapter {
    /// `[in, rank]`, f32.
    down: Tensor,
    /// `[rank, out]`, f32.
    up: Tensor,
}

impl Patch {
    /// The changed weight, f32.
    pub fn merge(&self, weight: &Tensor) -> Result<Tensor> {
        Ok((weight + self.up.matmul(&self.down)?.reshape(weight.shape())?)?)
    }

    pub fn adapter(&self, device: &Device) -> Result<Adapter> {
        let turned = |x: &Tensor| x.t()?.contiguous()?.to_device(device);
        Ok(Adapter { down: turned(&self.down)?, up: turned(&self.up)? })
    }
}

impl Adapter {
    /// What is to be added to the outputs `start..start + count` of `x` `[N, in]`, f32: `[N, count]`, f32.
    pub fn forward(&self, x: &Tensor, start: usize, count: usize) -> Result<Tensor> {
        let up = self.up.narrow(1, start, count)?.contiguous()?;
        Ok(x.matmul(&self.down)?.matmul(&up)?)
    }
}

impl Lora {
    /// Opens a file and finds its layers. A key that is no part of a LoRA is an error.
    pub fn open(path: &Path) -> Result<Self> {
        let weights = Weights::open_files(&[path.to_owned()])?;
        let loader = weights.loader(&Placement { device: Device::Cpu, dtype: DType::F32 });
        let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
        for key in weights.keys() {
            let without = |endings: &[&str]| endings.iter().find_map(|ending| key.strip_suffix(ending));
            let layer = |name: &str| layer_name(name).to_owned();
            if let Some(name) = without(&DOWN) {
                layers.entry(layer(name)).or_default().down = Some(key.to_owned());
            } else if let Some(name) = without(&UP) {
                layers.entry(layer(name)).or_default().up = Some(key.to_owned());
            } else if let Some(name) = without(&[".alpha"]) {
                let shape = weights.shape(key).unwrap_or_default();
                let alpha = loader.get_f32(shape, key)?.flatten_all()?.to_vec1::<f32>()?;
                layers.entry(layer(name)).or_default().alpha = alpha.first().copied();
            } else {
                let why = format!("`{key}` is no part of a LoRA that is understood here");
                return Err(Error::damaged(path, why));
            }
        }
        if layers.is_empty() {
            return Err(Error::damaged(path, "it changes no layer"));
        }
        Ok(Self { path: path.to_owned(), weights, layers })
    }

    /// How many layers it changes.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The weights with `scale` times this LoRA's changes. `rename` turns the name of a layer in its training program
    /// into the model's; a layer that isn't there, or is of another shape, is an error.
    pub fn apply(&self, to: &Weights, scale: f64, rename: impl Fn(&str) -> String) -> Result<Weights> {
        // Some programs write `_` for every dot; only the model knows which ones were dots.
        let flat: HashMap<String, &str> = to
            .keys()
            .filter_map(|key| key.strip_suffix(".weight"))
            .map(|name| (name.replace('.', "_"), name))
            .collect();
        let mut patches = to.all_patches().clone();
        for (name, layer) in &self.layers {
            let own = rename(name);
            let own = flat.get(&own.replace('.', "_")).map_or(own.clone(), |name| (*name).to_owned());
            let key = format!("{own}.weight");
            let Some([d_out, d_in]) = to.shape(&key) else {
                let model = to.first_file();
                let why = format!("`{name}` is no linear layer of {}", model.display());
                return Err(Error::LoraMismatch { path: self.path.clone(), why });
            };
            let patch = self.patch(name, layer, scale, (*d_out, *d_in))?;
            patches.entry(key).or_default().push(patch);
        }
        Ok(to.patched(patches))
    }

    fn patch(&self, name: &str, layer: &Layer, scale: f64, (d_out, d_in): (usize, usize)) -> Result<Patch> {
        let (Some(down), Some(up)) = (&layer.down, &layer.up) else {
            return Err(Error::damaged(&self.path, format!("`{name}` has one of its two matrices only")));
        };
        let loader = self.weights.loader(&Placement { device: Device::Cpu, dtype: DType::F32 });
        let rank = self.weights.shape(down).and_then(|shape| shape.first()).copied().unwrap_or(0);
        let (down, up) = (loader.get_f32(&[rank, d_in], down)?, loader.get_f32(&[d_out, rank], up)?);
        // Without an alpha the two matrices are meant as they are.
        let alpha = layer.alpha.map_or(1.0, |alpha| f64::from(alpha) / rank.max(1) as f64);
        Ok(Patch { down, up: (up * (scale * alpha))? })
    }
}

/// A layer's name without what training programs put before it.
fn layer_name(key: &str) -> &str {
    let mut name = key;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        name = rest;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn file(tensors: Vec<(&str, Tensor)>) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let tensors: HashMap<_, _> = tensors.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        (folder, path)
    }

    fn model() -> Weights {
        let tensors = [("blocks.0.to_q.weight", draw(&[6, 4])), ("blocks.0.to_k.weight", draw(&[6, 4]))];
        Weights::from_tensors("model", tensors.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }

    fn values(weights: &Weights, key: &str) -> Vec<f32> {
        let loader = weights.loader(&Placement { device: Device::Cpu, dtype: DType::F32 });
        loader.get(&[6, 4], key).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn all_styles_of_keys_change_the_weight_alike() {
        let (model, down, up) = (model(), draw(&[2, 4]), draw(&[6, 2]));
        let delta = (up.matmul(&down).unwrap() * 0.5).unwrap();
        let delta: Vec<f32> = delta.flatten_all().unwrap().to_vec1().unwrap();
        let before = values(&model, "blocks.0.to_q.weight");
        for (a, b, alpha) in [
            ("transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight", None),
            ("blocks.0.to_q.lora_A.default.weight", "blocks.0.to_q.lora_B.default.weight", None),
            (
                "diffusion_model.blocks.0.to_q.lora_down.weight",
                "diffusion_model.blocks.0.to_q.lora_up.weight",
                Some("diffusion_model.blocks.0.to_q.alpha"),
            ),
            (
                "lora_unet_blocks_0_to_q.lora_down.weight",
                "lora_unet_blocks_0_to_q.lora_up.weight",
                Some("lora_unet_blocks_0_to_q.alpha"),
            ),
        ] {
            let mut tensors = vec![(a, down.clone()), (b, up.clone())];
            // Half the rank at full scale is the whole rank at half the scale.
            tensors.extend(alpha.map(|key| (key, Tensor::new(1f32, &Device::Cpu).unwrap())));
            let (_folder, path) = file(tensors);
            let lora = Lora::open(&path).unwrap();
            let scale = if alpha.is_some() { 1.0 } else { 0.5 };
            let patched = lora.apply(&model, scale, str::to_owned).unwrap();
            let after = values(&patched, "blocks.0.to_q.weight");
            for ((before, delta), after) in before.iter().zip(&delta).zip(after) {
                assert!((before + delta - after).abs() < 1e-6, "{a}");
            }
            assert_eq!(values(&patched, "blocks.0.to_k.weight"), values(&model, "blocks.0.to_k.weight"));
        }
    }

    #[test]
    fn several_add_up() {
        let (model, down, up) = (model(), draw(&[2, 4]), draw(&[6, 2]));
        let (_folder, path) =
            file(vec![("blocks.0.to_k.lora_A.weight", down), ("blocks.0.to_k.lora_B.weight", up)]);
        let lora = Lora::open(&path).unwrap();
        let once = lora.apply(&model, 1.5, str::to_owned).unwrap();
        let twice = lora.apply(&lora.apply(&model, 1.0, str::to_owned).unwrap(), 0.5, str::to_owned).unwrap();
        let (a, b) = (values(&once, "blocks.0.to_k.weight"), values(&twice, "blocks.0.to_k.weight"));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn what_fits_nothing_is_an_error() {
        let pair = |layer: &str, d_in: usize| {
            vec![
                (format!("{layer}.lora_A.weight"), draw(&[2, d_in])),
                (format!("{layer}.lora_B.weight"), draw(&[6, 2])),
            ]
        };
        let opened = |tensors: Vec<(String, Tensor)>| {
            let tensors: Vec<_> = tensors.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            let (folder, path) = file(tensors);
            (folder, Lora::open(&path))
        };
        let apply = |tensors| opened(tensors).1.unwrap().apply(&model(), 1.0, str::to_owned).map(drop);
        assert!(matches!(apply(pair("blocks.1.to_q", 4)), Err(Error::LoraMismatch { .. })));
        assert!(matches!(apply(pair("blocks.0.to_q", 5)), Err(Error::MisshapenTensor { .. })));
        let mut half = pair("blocks.0.to_q", 4);
        half.pop();
        assert!(matches!(apply(half), Err(Error::Damaged { .. })));
        let other = vec![("blocks.0.to_q.dora_scale".to_owned(), draw(&[6]))];
        assert!(matches!(opened(other).1, Err(Error::Damaged { .. })));
    }
}
