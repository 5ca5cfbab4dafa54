//! Reading fixtures and comparing tensors with a tolerance that explains itself.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{DType, Device, Result, Tensor};
use sora::device::isa;

/// One fixture file: weights, inputs, outputs and the configs they were made with.
pub struct Fixture {
    pub path: PathBuf,
    pub tensors: HashMap<String, Tensor>,
    pub metadata: HashMap<String, String>,
}

impl Fixture {
    /// Opens `tests/golden/fixtures/NAME.safetensors`; a missing fixture is a failure.
    pub fn open(name: &str) -> Self {
        if let Ok(name) = std::env::var(isa::VARIABLE) {
            name.parse::<isa::Isa>().unwrap().force().expect("no kernel has run yet, or one of these");
        }
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/fixtures/{name}.safetensors"));
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e} (run tests/golden/make.py)", path.display()));
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).expect("a safetensors header");
        let metadata = header.metadata().clone().unwrap_or_default();
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).expect("tensors");
        Self { path, tensors, metadata }
    }

    /// A tensor by its full name, e.g. `out.states`.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no `{name}`", self.path.display()))
    }

    /// A metadata entry parsed as JSON.
    pub fn json(&self, name: &str) -> serde_json::Value {
        let text = self
            .metadata
            .get(name)
            .unwrap_or_else(|| panic!("{} has no metadata `{name}`", self.path.display()));
        serde_json::from_str(text).expect("JSON metadata")
    }

    /// The weights under `w.` without that prefix.
    pub fn weights(&self) -> HashMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("w.")?.to_owned(), value.clone())))
            .collect()
    }
}

/// Largest absolute difference and smallest cosine that still count as equal.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    pub max_abs: f64,
    pub cosine: f64,
}

impl Tolerance {
    pub const F32: Self = Self { max_abs: 1e-4, cosine: 0.999_999 };
    pub const BF16: Self = Self { max_abs: 0.1, cosine: 0.999 };

    /// Panics with both figures when `actual` is not `expected`.
    #[track_caller]
    pub fn check(self, what: &str, actual: &Tensor, expected: &Tensor) {
        let (max_abs, cosine) = distance(actual, expected).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(
            max_abs <= self.max_abs && cosine >= self.cosine,
            "{what}: max-abs {max_abs:.3e} (at most {:.1e}), cosine {cosine:.7} (at least {})",
            self.max_abs,
            self.cosine,
        );
    }
}

fn distance(actual: &Tensor, expected: &Tensor) -> Result<(f64, f64)> {
    if actual.dims() != expected.dims() {
        candle_core::bail!("shape {:?}, expected {:?}", actual.dims(), expected.dims());
    }
    let flat = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (a, b) = (flat(actual)?, flat(expected)?);
    if a.iter().any(|x| !x.is_finite()) {
        candle_core::bail!("not finite");
    }
    let max_abs = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    let (mut dot, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(&b) {
        dot += x * y;
        aa += x * x;
        bb += y * y;
    }
    Ok((max_abs, dot / (aa.sqrt() * bb.sqrt()).max(1e-30)))
}
