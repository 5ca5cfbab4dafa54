//! Writing weights in another number format, one tensor after another.

use std::{
    collections::HashMap,
    fmt,
    io::{BufWriter, Write},
    path::Path,
    str::FromStr,
};

use candle_core::{
    DType, Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{
    convert::{self, Refusal},
    encoding::{E4M3_MAX, Encoding, to_e4m3},
    files::{Stored, Weights},
    gguf::{Field, Writer},
    scales::MARKER,
};
use crate::error::{Error, Result};

/// Values that one core quantises at a time, or a row.
const SHARE: usize = 1 << 16;

/// What the names of repeated layers hold, in all layouts: these make up nearly all of a model.
const BLOCKS: [&str; 3] = ["transformer_blocks.", "encoder.block.", "enc.blk."];

/// A number format that weights can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE half floats, safetensors.
    F16,
    /// 16-bit floats with f32's range, safetensors.
    Bf16,
    /// 8-bit floats (E4M3) with one factor for each matrix, safetensors.
    Fp8,
    /// 8.5 bits a value, GGUF.
    Q8_0,
    /// 6.6 bits a value, GGUF.
    Q6K,
    /// 5.5 bits a value, GGUF.
    Q5K,
    /// 4.5 bits a value, GGUF.
    Q4K,
}

const NAMES: [(Format, &str); 7] = [
    (Format::Q8_0, "q8_0"),
    (Format::Q6K, "q6_k"),
    (Format::Q5K, "q5_k"),
    (Format::Q4K, "q4_k"),
    (Format::Bf16, "bf16"),
    (Format::F16, "f16"),
    (Format::Fp8, "fp8"),
];

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(format, _)| format == self).map(|(_, name)| *name);
        f.write_str(name.expect("the table has every format"))
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        NAMES.iter().find(|(_, name)| *name == text).map(|(format, _)| *format).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
            Error::invalid(format!("dtype `{text}`"), format!("expected one of {}", names.join(", ")))
        })
    }
}

impl Format {
    /// Whether files of this format are GGUF.
    #[must_use]
    pub fn is_gguf(self) -> bool {
        self.ggml().is_some()
    }

    fn ggml(self) -> Option<GgmlDType> {
        match self {
            Self::Q8_0 => Some(GgmlDType::Q8_0),
            Self::Q6K => Some(GgmlDType::Q6K),
            Self::Q5K => Some(GgmlDType::Q5K),
            Self::Q4K => Some(GgmlDType::Q4K),
            Self::F16 | Self::Bf16 | Self::Fp8 => None,
        }
    }
}

/// Weights on their way into a file.
pub struct Save<'a> {
    /// What is written, under the names that it is to have.
    pub weights: &'a Weights,
    /// In which format.
    pub format: Format,
    /// `general.architecture` of a GGUF file.
    pub architecture: &'a str,
    /// What else a GGUF file says of itself.
    pub fields: Vec<(String, Field)>,
    /// What a safetensors file says of itself.
    pub metadata: HashMap<String, String>,
    /// Called with the number of tensors done and of all.
    pub progress: &'a dyn Fn(usize, usize) -> Result<()>,
}

/// How one tensor is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum As {
    F32,
    F16,
    Bf16,
    /// With a factor.
    Fp8,
    Blocks(GgmlDType),
}

impl<'a> Save<'a> {
    /// Half floats, and nothing said of them.
    #[must_use]
    pub fn new(weights: &'a Weights) -> Self {
        Self {
            weights,
            format: Format::F16,
            architecture: "",
            fields: Vec::new(),
            metadata: HashMap::new(),
            progress: &|_, _| Ok(()),
        }
    }

    /// Writes beside `path` and moves the file there when it is whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".sora-").suffix(".part");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut temporary = builder.tempfile_in(folder).map_err(Error::file("write into", folder))?;
        let mut to = BufWriter::with_capacity(1 << 20, &mut temporary);
        if self.format.is_gguf() {
            self.gguf(&mut to, path)?
        } else {
            self.safetensors(&mut to, path)?
        }
        to.flush().map_err(Error::file("write", path))?;
        drop(to);
        temporary.as_file().sync_all().map_err(Error::file("write", path))?;
        temporary.persist(path).map_err(|e| Error::file("write", path)(e.error))?;
        Ok(())
    }

    /// Each tensor, and how it is written.
    fn plan(&self) -> Result<Vec<(&'a str, Stored<'a>, As)>> {
        let tensor = |key: &'a str| {
            let stored = self.weights.stored(key)?;
            let form = self.form(key, &stored);
            Some((key, stored, form))
        };
        let all: Vec<_> = self.weights.keys().filter_map(tensor).collect();
        for (key, stored, _) in &all {
            if stored.entry.encoding.block_bytes().is_none() {
                return Err(stored.refuse(Refusal::Dtype, key));
            }
        }
        Ok(all)
    }

    fn form(&self, key: &str, stored: &Stored<'_>) -> As {
        let shape = &stored.entry.shape;
        let matrix = shape.len() == 2
            && key.ends_with(".weight")
            && !key.contains("relative_attention_bias")
            && !key.contains("attn_rel_b")
            && shape[0] > 1;
        let row = shape.last().copied().unwrap_or(1);
        let in_blocks = BLOCKS.iter().any(|blocks| key.contains(blocks));
        match self.format {
            Format::F16 => As::F16,
            Format::Bf16 => As::Bf16,
            Format::Fp8 if matrix && in_blocks => As::Fp8,
            // All others are few, and every token goes through them.
            Format::Fp8 => match stored.entry.encoding {
                Encoding::F32 => As::F32,
                Encoding::F16 => As::F16,
                _ => As::Bf16,
            },
            _ if !matrix => As::F32,
            format => match format.ggml() {
                Some(dtype) if in_blocks && row.is_multiple_of(dtype.block_size()) => As::Blocks(dtype),
                Some(_) if row.is_multiple_of(GgmlDType::Q8_0.block_size()) => As::Blocks(GgmlDType::Q8_0),
                _ => As::F16,
            },
        }
    }

    fn gguf(&self, to: &mut impl Write, path: &Path) -> Result<()> {
        let plan = self.plan()?;
        let mut fields = vec![("general.architecture".to_owned(), Field::Text(self.architecture.to_owned()))];
        // Who reads the file finds out which format most of it has.
        let file_type = match self.format {
            Format::Q8_0 => 7,
            Format::Q6K => 18,
            Format::Q5K => 17,
            _ => 15,
        };
        fields.push(("general.quantization_version".to_owned(), Field::U32(2)));
        fields.push(("general.file_type".to_owned(), Field::U32(file_type)));
        fields.extend(self.fields.iter().cloned());
        let tensors: Vec<(String, GgmlDType, Vec<usize>)> = plan
            .iter()
            .map(|(key, stored, form)| ((*key).to_owned(), form.ggml(), stored.entry.shape.clone()))
            .collect();
        let failed = |error| Error::file("write", path)(error);
        let mut writer = Writer::new(to, &fields, &tensors).map_err(failed)?;
        for (done, (key, stored, form)) in plan.iter().enumerate() {
            (self.progress)(done, plan.len())?;
            let (bytes, _) = encode(stored, *form).map_err(|refusal| stored.refuse(refusal, key))?;
            stored.source.release(stored.entry.start, stored.entry.end);
            writer.tensor(key, &bytes).map_err(failed)?;
        }
        writer.finish().map_err(failed)?;
        (self.progress)(plan.len(), plan.len())
    }

    fn safetensors(&self, to: &mut impl Write, path: &Path) -> Result<()> {
        let plan = self.plan()?;
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            let sorted: std::collections::BTreeMap<_, _> = self.metadata.iter().collect();
            header.insert("__metadata__".into(), serde_json::json!(sorted));
        }
        let mut offset = 0;
        let mut list = |key: String, dtype: &str, shape: &[usize], length: usize| {
            let entry = serde_json::json!({
                "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]
            });
            header.insert(key, entry);
            offset += length;
        };
        // The factors follow all else: they are known last.
        for (key, stored, form) in &plan {
            let shape = &stored.entry.shape;
            let (dtype, size) = form.dtype();
            list((*key).to_owned(), dtype, shape, size * shape.iter().product::<usize>());
        }
        let scaled: Vec<&str> =
            plan.iter().filter(|(.., form)| *form == As::Fp8).map(|(key, ..)| *key).collect();
        for key in &scaled {
            list(format!("{}.scale_weight", key.trim_end_matches(".weight")), "F32", &[], 4);
        }
        if let Some(first) = scaled.first() {
            // Other programs look for the marker where the model begins.
            let prefix =
                if first.starts_with("model.diffusion_model.") { "model.diffusion_model." } else { "" };
            list(format!("{prefix}{MARKER}"), "F8_E4M3", &[0], 0);
        }
        let mut text = serde_json::to_vec(&header).expect("a header has string keys");
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut write = |bytes: &[u8]| to.write_all(bytes).map_err(Error::file("write", path));
        write(&(text.len() as u64).to_le_bytes())?;
        write(&text)?;
        let mut factors = Vec::new();
        for (done, (key, stored, form)) in plan.iter().enumerate() {
            (self.progress)(done, plan.len())?;
            let (bytes, factor) = encode(stored, *form).map_err(|refusal| stored.refuse(refusal, key))?;
            stored.source.release(stored.entry.start, stored.entry.end);
            factors.extend(factor);
            write(&bytes)?;
        }
        factors.iter().try_for_each(|factor| write(&factor.to_le_bytes()))?;
        (self.progress)(plan.len(), plan.len())
    }
}

impl As {
    fn ggml(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 | Self::Fp8 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Blocks(dtype) => dtype,
        }
    }

    /// The name in a safetensors header, and the bytes of a value.
    fn dtype(self) -> (&'static str, usize) {
        match self {
            Self::F32 | Self::Blocks(_) => ("F32", 4),
            Self::F16 => ("F16", 2),
            Self::Bf16 => ("BF16", 2),
            Self::Fp8 => ("F8_E4M3", 1),
        }
    }
}

/// The bytes of a tensor in another form, and the factor that they are to be multiplied by.
fn encode(stored: &Stored<'_>, form: As) -> Result<(Vec<u8>, Option<f32>), Refusal> {
    let shape = &stored.entry.shape;
    let values: Vec<f32> = convert::values(stored.raw(), shape.iter().product())?;
    Ok(match form {
        As::F32 => (values.iter().flat_map(|value| value.to_le_bytes()).collect(), None),
        As::F16 => {
            let halves: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
            if halves.iter().any(|half| !half.is_finite()) {
                return Err(Refusal::NotFinite);
            }
            (halves.iter().flat_map(|half| half.to_le_bytes()).collect(), None)
        }
        As::Bf16 => (values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(), None),
        As::Fp8 => {
            let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
            let factor = if largest > 0.0 { largest / E4M3_MAX } else { 1.0 };
            (values.par_iter().map(|value| to_e4m3(value / factor)).collect(), Some(factor))
        }
        As::Blocks(dtype) => {
            let row = shape.last().copied().unwrap_or(1).max(1);
            let share = (SHARE / row).max(1) * row;
            let blocks = values.par_chunks(share).map(|values| {
                let tensor = Tensor::from_slice(values, (values.len() / row, row), &Device::Cpu)?;
                Ok(QTensor::quantize(&tensor.to_dtype(DType::F32)?, dtype)?.data()?.into_owned())
            });
            (blocks.collect::<candle_core::Result<Vec<Vec<u8>>>>()?.concat(), None)
        }
    })
}
