//! Weight files: found, mapped into memory, and checked before anything is read from them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Tensor;
use memmap2::Mmap;
use safetensors::SafeTensors;

use super::{
    convert::{Raw, Refusal},
    encoding::Encoding,
    gguf::{self, Value},
    loader::Loader,
    lora::Patch,
    scales,
};
use crate::{
    device::Placement,
    error::{Error, Result},
};

/// Index files are a few hundred kilobytes; more than this is not one.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// An opened set of weight files: mapped into memory, headers read and checked, no tensor loaded.
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
pub struct Weights {
    sources: Arc<Vec<Source>>,
    entries: Arc<BTreeMap<String, Entry>>,
    patches: Arc<HashMap<String, Vec<Patch>>>,
}

/// One file.
pub(super) struct Source {
    pub path: PathBuf,
    bytes: Bytes,
    header: Header,
}

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

/// What a file says beside its tensors.
enum Header {
    Safetensors(HashMap<String, String>),
    Gguf(gguf::Header),
}

impl Source {
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// Whether it is a file on disk.
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped(_))
    }

    /// Lets the system take back the memory of a part that was copied elsewhere.
    pub fn release(&self, start: usize, end: usize) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = &self.bytes {
            // SAFETY: the map is shared, read-only and of a file: pages that are read again come from the file again.
            let given_back =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            // A system that refuses keeps the pages, and may drop them when it needs the room.
            drop(given_back);
        }
        #[cfg(not(unix))]
        let _ = (start, end);
    }
}

/// Where a tensor lies, and in what form.
#[derive(Clone)]
pub(super) struct Entry {
    pub source: usize,
    pub encoding: Encoding,
    pub shape: Vec<usize>,
    pub start: usize,
    pub end: usize,
    /// What stored values are multiplied by: one number, or one for each row. Empty means 1.
    pub scale: Arc<[f32]>,
    /// Its name in the file, where that is another.
    pub stored_as: Option<Arc<str>>,
}

/// One stored tensor.
pub(super) struct Stored<'a> {
    pub source: &'a Source,
    pub entry: &'a Entry,
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

    /// As [`Weights::open`], with the variant that is there: `fp16` where there is only `STEM.fp16.safetensors`, whole
    /// or in shards. Two variants and no plain weights are an error, since nothing says which one is meant.
    pub fn open_any_variant(folder: &Path, stem: &str) -> Result<Self> {
        Self::open(folder, stem, variant(folder, stem)?.as_deref())
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
            let at = weights.entries.get(key).map(|entry| &weights.sources[entry.source].path);
            // Scales are taken out of the list of tensors; they have no place of their own.
            if at != Some(&folder.join(name)) && !scales::is_scale(key) {
                return Err(Error::damaged(
                    path,
                    format!("`{key}` is not in {name}, where the index says it is"),
                ));
            }
        }
        Ok(weights)
    }

    /// Opens the given files as one set, safetensors or GGUF, as each one's first bytes say; a key may be in one of
    /// them only.
    pub fn open_files(files: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| Ok((path.clone(), Bytes::Mapped(map(path)?)));
        Self::read(files.iter().map(open).collect::<Result<_>>()?)
    }

    /// Opens a file that is compiled into the program; its bytes are used where they lie.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::read(vec![(name.into(), Bytes::Static(bytes))])
    }

    /// Wraps tensors that are in memory already.
    ///
    /// # Panics
    /// If a tensor is on a device that can't be read.
    #[must_use]
    pub fn from_tensors(name: &str, tensors: HashMap<String, Tensor>) -> Self {
        let bytes = safetensors::serialize(tensors, None).expect("tensors have consistent shapes");
        Self::read(vec![(name.into(), Bytes::Owned(bytes))]).expect("what was just written can be read")
    }

    fn read(files: Vec<(PathBuf, Bytes)>) -> Result<Self> {
        let mut sources: Vec<Source> = Vec::with_capacity(files.len());
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (path, bytes) in files {
            let mut source = Source { path, bytes, header: Header::Safetensors(HashMap::new()) };
            let (header, found) = match source.bytes() {
                bytes if bytes.starts_with(gguf::MAGIC) => read_gguf(bytes),
                bytes => read_safetensors(bytes),
            }
            .map_err(|why| Error::damaged(&source.path, why))?;
            source.header = header;
            for (key, entry) in found {
                if let Some(first) = entries.get(&key) {
                    let other = sources.get(first.source).map_or(&source.path, |source| &source.path);
                    let why = format!("`{key}` is in {} as well", other.display());
                    return Err(Error::damaged(&source.path, why));
                }
                entries.insert(key, Entry { source: sources.len(), ..entry });
            }
            sources.push(source);
        }
        scales::attach(&sources, &mut entries)?;
        Ok(Self { sources: Arc::new(sources), entries: Arc::new(entries), patches: Arc::default() })
    }

    /// The same tensors under other names; those that get none are left out. Errors go on to say what a tensor is
    /// called in its file.
    pub fn renamed(&self, rename: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for (key, entry) in self.entries.iter() {
            let Some(name) = rename(key) else { continue };
            let mut entry = entry.clone();
            if name != *key && entry.stored_as.is_none() {
                entry.stored_as = Some(key.as_str().into());
            }
            let path = &self.sources[entry.source].path;
            if let Some(other) = entries.insert(name.clone(), entry) {
                let other = other.stored_as.as_deref().unwrap_or(&name).to_owned();
                return Err(Error::damaged(path, format!("`{key}` and `{other}` are the same tensor")));
            }
        }
        Ok(Self { entries: Arc::new(entries), ..self.clone() })
    }

    /// The same tensors with changes to some of them, by key.
    pub(super) fn patched(&self, patches: HashMap<String, Vec<Patch>>) -> Self {
        Self { patches: Arc::new(patches), ..self.clone() }
    }

    /// The changes to a tensor.
    pub(super) fn patches(&self, key: &str) -> &[Patch] {
        self.patches.get(key).map_or(&[], Vec::as_slice)
    }

    /// All changes, by key.
    pub(super) fn all_patches(&self) -> &HashMap<String, Vec<Patch>> {
        &self.patches
    }

    /// Bytes of all tensors together.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.entries.values().map(|entry| (entry.end - entry.start) as u64).sum()
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor, if it is there.
    #[must_use]
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.entries.get(key).map(|entry| entry.shape.as_slice())
    }

    /// The number format of a tensor, if it is there.
    #[must_use]
    pub fn encoding(&self, key: &str) -> Option<Encoding> {
        self.entries.get(key).map(|entry| entry.encoding)
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// What the header of a safetensors file says under `key`.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.sources.iter().find_map(|source| match &source.header {
            Header::Safetensors(metadata) => metadata.get(key).map(String::as_str),
            Header::Gguf(_) => None,
        })
    }

    /// All that the header of the first file says, if it is safetensors.
    #[must_use]
    pub fn all_metadata(&self) -> HashMap<String, String> {
        match self.sources.first().map(|source| &source.header) {
            Some(Header::Safetensors(metadata)) => metadata.clone(),
            _ => HashMap::new(),
        }
    }

    /// Whether this is a GGUF file.
    #[must_use]
    pub fn is_gguf(&self) -> bool {
        self.gguf().is_some()
    }

    fn gguf(&self) -> Option<(&Source, &gguf::Header)> {
        self.sources.iter().find_map(|source| match &source.header {
            Header::Gguf(header) => Some((source, header)),
            Header::Safetensors(_) => None,
        })
    }

    /// A metadata value of a GGUF file.
    #[must_use]
    pub fn gguf_value(&self, key: &str) -> Option<&Value> {
        self.gguf()?.1.metadata.get(key)
    }

    /// A text in the metadata of a GGUF file.
    #[must_use]
    pub fn gguf_text(&self, key: &str) -> Option<&str> {
        match self.gguf_value(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number in the metadata of a GGUF file.
    #[must_use]
    pub fn gguf_number(&self, key: &str) -> Option<f64> {
        match self.gguf_value(key)? {
            Value::Int(n) => Some(*n as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// A list of texts in the metadata of a GGUF file.
    #[must_use]
    pub fn gguf_texts(&self, key: &str) -> Option<Vec<&str>> {
        let (source, header) = self.gguf()?;
        match header.metadata.get(key)? {
            Value::Array(array) => array.texts(source.bytes(), header.version),
            _ => None,
        }
    }

    /// A list of numbers in the metadata of a GGUF file.
    #[must_use]
    pub fn gguf_numbers(&self, key: &str) -> Option<Vec<f64>> {
        let (source, header) = self.gguf()?;
        match header.metadata.get(key)? {
            Value::Array(array) => array.numbers(source.bytes()),
            _ => None,
        }
    }

    /// A list of bytes in the metadata of a GGUF file.
    #[must_use]
    pub fn gguf_bytes(&self, key: &str) -> Option<&[u8]> {
        let (source, header) = self.gguf()?;
        match header.metadata.get(key)? {
            Value::Array(array) => array.bytes(source.bytes()),
            _ => None,
        }
    }

    /// Starts loading onto a device in a dtype, with its own account of what was read.
    #[must_use]
    pub fn loader(&self, place: &Placement) -> Loader {
        Loader::new(self.clone(), place)
    }

    /// The first file, which stands for the set in error messages.
    #[must_use]
    pub fn first_file(&self) -> PathBuf {
        self.sources.first().map(|source| source.path.clone()).unwrap_or_default()
    }

    pub(super) fn sources(&self) -> &Arc<Vec<Source>> {
        &self.sources
    }

    pub(super) fn stored(&self, key: &str) -> Option<Stored<'_>> {
        let entry = self.entries.get(key)?;
        let source = &self.sources[entry.source];
        Some(Stored { source, entry, bytes: &source.bytes()[entry.start..entry.end] })
    }
}

impl Stored<'_> {
    /// A key for people: with its name in the file, if that is another.
    pub fn name(&self, key: &str) -> String {
        self.entry.stored_as.as_ref().map_or_else(|| key.to_owned(), |other| format!("{key} ({other})"))
    }

    /// Why it can't be used.
    pub fn refuse(&self, refusal: Refusal, key: &str) -> Error {
        let (file, key) = (self.source.path.clone(), self.name(key));
        match refusal {
            Refusal::NotFinite => Error::NotFiniteTensor { file, key },
            Refusal::Dtype => Error::TensorDtype { file, key, found: self.entry.encoding.to_string() },
            Refusal::Candle(error) => error.into(),
        }
    }

    /// Its values as they lie there.
    pub fn raw(&self) -> Raw<'_> {
        let row = self.entry.shape.iter().skip(1).product();
        Raw { bytes: self.bytes, encoding: self.entry.encoding, scale: &self.entry.scale, row }
    }
}

fn read_safetensors(bytes: &[u8]) -> Result<(Header, Vec<(String, Entry)>), String> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let data = size_of::<u64>() + header;
    let entry = |info: &safetensors::tensor::TensorInfo| Entry {
        source: 0,
        encoding: info.dtype.into(),
        shape: info.shape.clone(),
        start: data + info.data_offsets.0,
        end: data + info.data_offsets.1,
        scale: Arc::default(),
        stored_as: None,
    };
    let tensors = metadata.tensors();
    let entries = tensors.into_iter().map(|(key, info)| (key, entry(info))).collect();
    Ok((Header::Safetensors(metadata.metadata().clone().unwrap_or_default()), entries))
}

fn read_gguf(bytes: &[u8]) -> Result<(Header, Vec<(String, Entry)>), String> {
    let mut header = gguf::read(bytes)?;
    let entry = |info: gguf::TensorInfo| {
        let entry = Entry {
            source: 0,
            encoding: info.dtype.into(),
            shape: info.shape,
            start: info.bytes.start,
            end: info.bytes.end,
            scale: Arc::default(),
            stored_as: None,
        };
        (info.name, entry)
    };
    let entries = std::mem::take(&mut header.tensors).into_iter().map(entry).collect();
    Ok((Header::Gguf(header), entries))
}

/// Whether a file begins as GGUF files do. A file that can't be read doesn't.
#[must_use]
pub fn begins_as_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok()) && magic == *gguf::MAGIC
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

fn variant(folder: &Path, stem: &str) -> Result<Option<String>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut variants = BTreeSet::new();
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(stem) else { continue };
        if rest == ".safetensors" || rest == ".safetensors.index.json" {
            return Ok(None);
        }
        let middle = rest
            .strip_suffix(".safetensors")
            .or_else(|| rest.strip_prefix(".safetensors.index.")?.strip_suffix(".json"));
        let variant = middle.map(|m| m.trim_start_matches('.')).filter(|m| !m.is_empty() && !m.contains('-'));
        variants.extend(variant.map(str::to_owned));
    }
    if variants.len() > 1 {
        let list = variants.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::damaged(folder, format!("it holds the variants {list} and no plain weights")));
    }
    Ok(variants.pop_first())
}
