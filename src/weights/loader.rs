//! Reading tensors by key, with an account of what was read.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{QStorage, QTensor},
};

use super::{
    convert,
    encoding::Encoding,
    files::{Stored, Weights},
    lora::{Adapter, Patch},
    packed::Packed,
};
use crate::{
    device::Placement,
    error::{Error, Result},
};

/// 16-bit matrices of so many values and more stay in their file on a CPU: decoding them again and again costs little
/// beside multiplying with them. Smaller ones are worth their memory.
const PACKED_FROM: usize = 4 << 20;

/// Whether a matrix of so many values stays in its file on a CPU.
pub(super) fn stays_packed(encoding: Encoding, values: usize) -> bool {
    encoding.is_quantised() || (encoding != Encoding::F32 && values >= PACKED_FROM)
}

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

/// The weight of a linear layer, `[out, in]`, in the form that suits its format and its device.
pub enum Matrix {
    /// Numbers of the loader's dtype.
    Real(Tensor),
    /// In its file, for a CPU.
    Packed(Packed),
    /// Blocks on a device that multiplies with them as they are.
    Blocks(QTensor),
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

    /// The tensor `key`, in this loader's dtype and on its device, whatever it is stored as.
    ///
    /// It is an error if it is missing, of another shape, of a type that isn't read here, or holds a value that is
    /// not finite.
    pub fn get(&self, shape: &[usize], key: &str) -> Result<Tensor> {
        self.get_as(self.place.dtype, shape, key)
    }

    /// As [`Loader::get`], in f32 whatever the loader's dtype.
    pub fn get_f32(&self, shape: &[usize], key: &str) -> Result<Tensor> {
        self.get_as(DType::F32, shape, key)
    }

    /// The weight `key` of a linear layer, and what is to be added to its products.
    ///
    /// Quantised weights, and large 16-bit ones, are not unpacked on a CPU; adapters of those come with them. Into all
    /// others adapters are merged.
    pub fn matrix(&self, d_out: usize, d_in: usize, key: &str) -> Result<(Matrix, Vec<Adapter>)> {
        let full = self.full(&key);
        let stored = self.checked(&[d_out, d_in], &full)?;
        let encoding = stored.entry.encoding;
        let on_cpu = self.place.device.is_cpu();
        let matrix = match encoding {
            _ if on_cpu && !stays_packed(encoding, d_out * d_in) => None,
            _ if on_cpu => {
                convert::check(stored.raw()).map_err(|refusal| stored.refuse(refusal, &full))?;
                Some(Matrix::Packed(Packed::new(self.weights.sources().clone(), stored.entry.clone())))
            }
            Encoding::Ggml(dtype) => {
                convert::check(stored.raw()).map_err(|refusal| stored.refuse(refusal, &full))?;
                let blocks = QStorage::from_data(Cow::Borrowed(stored.bytes), &self.place.device, dtype)?;
                stored.source.release(stored.entry.start, stored.entry.end);
                Some(Matrix::Blocks(QTensor::new(blocks, (d_out, d_in))?))
            }
            _ => None,
        };
        let Some(matrix) = matrix else {
            return Ok((Matrix::Real(self.get(&[d_out, d_in], key)?), Vec::new()));
        };
        let adapters = self.weights.patches(&full).iter().map(|patch| patch.adapter(&self.place.device));
        let adapters = adapters.collect::<Result<_>>()?;
        self.note(full);
        Ok((matrix, adapters))
    }

    fn get_as(&self, dtype: DType, shape: &[usize], key: &str) -> Result<Tensor> {
        let key = self.full(&key);
        let stored = self.checked(shape, &key)?;
        let patches = self.weights.patches(&key);
        let device = &self.place.device;
        let convert = |dtype, device| {
            convert::tensor(stored.raw(), shape, dtype, device)
                .map_err(|refusal| stored.refuse(refusal, &key))
        };
        let tensor = match patches {
            [] => convert(dtype, device)?,
            patches => {
                let weight = convert(DType::F32, &Device::Cpu)?;
                let merged = patches.iter().try_fold(weight, |weight, patch| Patch::merge(patch, &weight));
                merged?.to_dtype(dtype)?.to_device(device)?
            }
        };
        stored.source.release(stored.entry.start, stored.entry.end);
        self.note(key);
        Ok(tensor)
    }

    /// The stored tensor of a full key, if it has this shape.
    fn checked(&self, shape: &[usize], key: &str) -> Result<Stored<'_>> {
        let Some(stored) = self.weights.stored(key) else {
            return Err(Error::MissingTensor {
                file: self.weights.first_file(),
                key: key.to_owned(),
                expected: shape.to_vec(),
            });
        };
        if stored.entry.shape != shape {
            let (found, expected) = (stored.entry.shape.clone(), shape.to_vec());
            let (file, key) = (stored.source.path.clone(), stored.name(key));
            return Err(Error::MisshapenTensor { file, key, found, expected });
        }
        Ok(stored)
    }

    fn note(&self, key: String) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
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
