//! Reading tensors by key, with an account of what was read.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{DType, Device, Tensor};

use super::{
    convert::{self, Refusal},
    files::Weights,
};
use crate::{
    device::Placement,
    error::{Error, Result},
};

/// Reads tensors below a prefix of keys onto one device in one dtype.
///
/// All loaders that come from one [`Weights::loader`] call share an account of the keys that were
/// read; [`Loader::finish`] compares it with the file.
#[derive(Clone)]
pub struct Loader {
    weights: Weights,
    place: Placement,
    prefix: String,
    read: Arc<Mutex<HashSet<String>>>,
}

impl Loader {
    pub(super) fn new(weights: Weights, place: &Placement) -> Self {
        Self { weights, place: place.clone(), prefix: String::new(), read: Arc::default() }
    }

    /// The loader for the keys below `name`.
    #[must_use]
    pub fn pp(&self, name: impl fmt::Display) -> Self {
        Self { prefix: self.full(&name), ..self.clone() }
    }

    /// The same loader giving another dtype.
    #[must_use]
    pub fn with_dtype(&self, dtype: DType) -> Self {
        let place = Placement { dtype, ..self.place.clone() };
        Self { place, ..self.clone() }
    }

    /// The tensor `key`, in this loader's dtype and on its device.
    ///
    /// It is an error if it is missing, of another shape, of a type that isn't F32, F16 or BF16, or
    /// holds a value that is not finite.
    pub fn get(&self, shape: &[usize], key: &str) -> Result<Tensor> {
        self.get_as(self.place.dtype, shape, key)
    }

    /// As [`Loader::get`], in f32 whatever the loader's dtype.
    pub fn get_f32(&self, shape: &[usize], key: &str) -> Result<Tensor> {
        self.get_as(DType::F32, shape, key)
    }

    fn get_as(&self, dtype: DType, shape: &[usize], key: &str) -> Result<Tensor> {
        let key = self.full(&key);
        let Some(stored) = self.weights.stored(&key) else {
            return Err(Error::MissingTensor {
                file: self.weights.first_file(),
                key,
                expected: shape.to_vec(),
            });
        };
        let file = stored.file.to_owned();
        if stored.shape != shape {
            let (found, expected) = (stored.shape.to_vec(), shape.to_vec());
            return Err(Error::MisshapenTensor { file, key, found, expected });
        }
        let tensor = match convert::tensor(stored.bytes, stored.dtype, shape, dtype, &self.place.device) {
            Ok(tensor) => tensor,
            Err(Refusal::NotFinite) => return Err(Error::NotFiniteTensor { file, key }),
            Err(Refusal::Dtype) => {
                return Err(Error::TensorDtype { file, key, found: stored.dtype.to_string() });
            }
            Err(Refusal::Candle(error)) => return Err(error.into()),
        };
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        Ok(tensor)
    }

    /// Whether there is a tensor `key`.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.weights.contains(&self.full(&key))
    }

    /// The shape of tensor `key`, if it is there.
    #[must_use]
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.weights.shape(&self.full(&key))
    }

    /// Where tensors go.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.place.device
    }

    /// What [`Loader::get`] gives.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.place.dtype
    }

    /// Ends the loading of everything below this loader's prefix: keys that nobody read are an error,
    /// except those that end in one of `ignore`, or begin with one that itself ends in a dot.
    pub fn finish(&self, ignore: &[&str]) -> Result<()> {
        let below = if self.prefix.is_empty() { String::new() } else { format!("{}.", self.prefix) };
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut unused = self.weights.keys().filter(|key| {
            let Some(name) = key.strip_prefix(&below) else { return false };
            let ignored =
                |part: &&str| name.ends_with(*part) || part.ends_with('.') && name.starts_with(*part);
            !read.contains(*key) && !ignore.iter().any(ignored)
        });
        match unused.next() {
            None => Ok(()),
            Some(first) => Err(Error::UnusedTensors {
                file: self.weights.first_file(),
                first: first.to_owned(),
                count: 1 + unused.count(),
            }),
        }
    }

    fn full(&self, name: &dyn fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}
