//! Sets of safetensors files: found, mapped into memory, and checked before anything is read from them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Tensor;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::loader::Loader;
use crate::{
    device::Placement,
    error::{Error, Result},
};

/// Index files are a few hundred kilobytes; more than this is not one.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// An opened set of safetensors files: mapped into memory, headers read and checked, no tensor loaded.
///
/// ```no_run
/// use sora::{device::Placement, weights::Weights};
///
/// let weights = Weights::open("transformer".as_ref(), "diffusion_pytorch_model", None)?;
/// let place = Placement { device: candle_core::Device::Cpu, dtype: candle_core::DType::F32 };
/// let proj = weights.loader(&place).pp("proj_in").get(&[2048, 128], "weight")?;
/// # Ok::<(), sora::Error>(())
/// ```
#[derive(Clone)]
pub struct Weights(Arc<Opened>);

struct Opened {
    sources: Vec<Source>,
    entries: BTreeMap<String, Entry>,
}

struct Source {
    path: PathBuf,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

struct Entry {
    source: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// One stored tensor.
pub(super) struct Stored<'a> {
    pub file: &'a Path,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// The part of an index file that matters.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the weights that lie in `folder` under `stem`, as diffusers and transformers name them:
    /// `STEM.safetensors`, or the shards that `STEM.safetensors.index.json` lists; with a variant
    /// `STEM.VARIANT.safetensors`, or `STEM.safetensors.index.VARIANT.json`.
    pub fn open(folder: &Path, stem: &str, variant: Option<&str>) -> Result<Self> {
        let dotted = variant.map(|v| format!(".{v}")).unwrap_or_default();
        let single = folder.join(format!("{stem}{dotted}.safetensors"));
        if single.exists() {
            return Self::open_files(&[single]);
        }
        let index = folder.join(format!("{stem}.safetensors.index{dotted}.json"));
        if !index.exists() {
            return Err(Error::MissingFile { path: single, what: "the weights" });
        }
        Self::open_index(folder, &index)
    }

    fn open_index(folder: &Path, path: &Path) -> Result<Self> {
        let size = std::fs::metadata(path).map_err(Error::file("read", path))?.len();
        if size > MAX_INDEX_BYTES {
            return Err(Error::damaged(path, format!("{size} bytes are too many for an index")));
        }
        let text = std::fs::read(path).map_err(Error::file("read", path))?;
        let Index { weight_map } =
            serde_json::from_slice(&text).map_err(|e| Error::damaged(path, e.to_string()))?;
        let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        if names.is_empty() {
            return Err(Error::damaged(path, "it lists no tensors"));
        }
        let mut files = Vec::with_capacity(names.len());
        for name in &names {
            // A shard lies beside its index; anything else is not an index we want to follow.
            if Path::new(name).file_name().is_none_or(|file| file != *name) {
                return Err(Error::damaged(path, format!("`{name}` is not the name of a shard")));
            }
            let file = folder.join(name);
            if !file.exists() {
                return Err(Error::MissingFile { path: file, what: "a shard of the weights" });
            }
            files.push(file);
        }
        let weights = Self::open_files(&files)?;
        for (key, name) in &weight_map {
            let at = weights.0.entries.get(key).map(|entry| &weights.0.sources[entry.source].path);
            if at != Some(&folder.join(name)) {
                return Err(Error::damaged(
                    path,
                    format!("`{key}` is not in {name}, where the index says it is"),
                ));
            }
        }
        Ok(weights)
    }

    /// Opens the given files as one set; a key may be in one of them only.
    pub fn open_files(files: &[PathBuf]) -> Result<Self> {
        files
            .iter()
            .map(|path| Ok(Source { path: path.clone(), bytes: Bytes::Mapped(map(path)?) }))
            .collect::<Result<_>>()
            .and_then(Self::read)
    }

    /// Opens a file that is compiled into the program; its bytes are used where they lie.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::read(vec![Source { path: name.into(), bytes: Bytes::Static(bytes) }])
    }

    /// Wraps tensors that are in memory already.
    ///
    /// # Panics
    /// If a tensor is on a device that can't be read.
    #[must_use]
    pub fn from_tensors(name: &str, tensors: HashMap<String, Tensor>) -> Self {
        let bytes = safetensors::serialize(tensors, None).expect("tensors have consistent shapes");
        Self::read(vec![Source { path: name.into(), bytes: Bytes::Owned(bytes) }])
            .expect("what was just written can be read")
    }

    fn read(sources: Vec<Source>) -> Result<Self> {
        let mut entries = BTreeMap::new();
        for (index, Source { path, bytes }) in sources.iter().enumerate() {
            let bytes = bytes.get();
            let (header, metadata) =
                SafeTensors::read_metadata(bytes).map_err(|e| Error::damaged(path, e.to_string()))?;
            let data = size_of::<u64>() + header;
            for (key, info) in metadata.tensors() {
                let entry = Entry {
                    source: index,
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    start: data + info.data_offsets.0,
                    end: data + info.data_offsets.1,
                };
                if let Some(first) = entries.insert(key.clone(), entry) {
                    let other = sources[first.source].path.display();
                    return Err(Error::damaged(path, format!("`{key}` is in {other} as well")));
                }
            }
        }
        Ok(Self(Arc::new(Opened { sources, entries })))
    }

    /// Bytes of all files together.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.0.sources.iter().map(|source| source.bytes.get().len() as u64).sum()
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    #[must_use]
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.0.entries.get(key).map(|entry| entry.shape.as_slice())
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.0.entries.contains_key(key)
    }

    /// Starts loading onto a device in a dtype, with its own account of what was read.
    #[must_use]
    pub fn loader(&self, place: &Placement) -> Loader {
        Loader::new(self.clone(), place)
    }

    /// The first file, which stands for the set in error messages.
    pub(super) fn first_file(&self) -> PathBuf {
        self.0.sources.first().map(|source| source.path.clone()).unwrap_or_default()
    }

    pub(super) fn stored(&self, key: &str) -> Option<Stored<'_>> {
        let entry = self.0.entries.get(key)?;
        let source = &self.0.sources[entry.source];
        Some(Stored {
            file: &source.path,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &source.bytes.get()[entry.start..entry.end],
        })
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::file("read", path))?;
    let metadata = file.metadata().map_err(Error::file("read", path))?;
    if !metadata.is_file() {
        return Err(Error::damaged(path, "it is not a file"));
    }
    if metadata.len() < size_of::<u64>() as u64 {
        return Err(Error::damaged(path, format!("it has {} bytes, too few for a header", metadata.len())));
    }
    // SAFETY: the map is only read. Should another process change or cut the file meanwhile, the values
    // read are arbitrary or the system ends this process, as with every program that maps weights.
    unsafe { Mmap::map(&file) }.map_err(Error::file("read", path))
}
