//! GGUF files: the header, read without trusting it, and a writer that needs one tensor at a time.
//!
//! Nothing is allocated for a length before the bytes for it are seen to be there; arrays stay where they lie in the
//! file until somebody asks for them.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::Range,
};

use candle_core::quantized::GgmlDType;

/// What a GGUF file begins with.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// Where tensors begin, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
/// ggml has no tensors with more axes.
const MAX_AXES: u32 = 4;
/// Arrays of arrays of arrays are in no file that was ever published.
const MAX_DEPTH: usize = 3;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer.
    Int(i128),
    /// Either float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// Several values of one type: where they lie in the file.
    Array(Array),
}

/// An array in a file's metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    kind: u32,
    count: usize,
    bytes: Range<usize>,
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorInfo {
    pub name: String,
    pub dtype: GgmlDType,
    /// The slowest axis first, as everywhere but in the file itself.
    pub shape: Vec<usize>,
    pub bytes: Range<usize>,
}

/// The header of a file.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<TensorInfo>,
    /// Of the format.
    pub version: u32,
}

/// Metadata types by number.
mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const TEXT: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// Bytes of a value whose size doesn't depend on its content.
fn size_of_kind(kind: u32) -> Option<usize> {
    match kind {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}

fn ggml_dtype(number: u32) -> Option<GgmlDType> {
    DTYPES.iter().find(|(known, _)| *known == number).map(|(_, dtype)| *dtype)
}

const DTYPES: [(u32, GgmlDType); 15] = [
    (0, GgmlDType::F32),
    (1, GgmlDType::F16),
    (2, GgmlDType::Q4_0),
    (3, GgmlDType::Q4_1),
    (6, GgmlDType::Q5_0),
    (7, GgmlDType::Q5_1),
    (8, GgmlDType::Q8_0),
    (9, GgmlDType::Q8_1),
    (10, GgmlDType::Q2K),
    (11, GgmlDType::Q3K),
    (12, GgmlDType::Q4K),
    (13, GgmlDType::Q5K),
    (14, GgmlDType::Q6K),
    (15, GgmlDType::Q8K),
    (30, GgmlDType::BF16),
];

/// Reads the header of a whole file; an error is a sentence about what is wrong.
pub(super) fn read(file: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { file, at: 0, version: 3 };
    if reader.take(4)? != MAGIC {
        return Err("it doesn't begin with `GGUF`".into());
    }
    reader.version = reader.u32()?;
    if !(1..=3).contains(&reader.version) {
        return Err(format!("its GGUF version is {} (expected 1 to 3)", reader.version));
    }
    let (tensors, values) = (reader.length()?, reader.length()?);
    let mut header = Header { version: reader.version, ..Header::default() };
    for _ in 0..values {
        let key = reader.text()?.to_owned();
        let kind = reader.u32()?;
        let value = reader.value(kind)?;
        if header.metadata.insert(key.clone(), value).is_some() {
            return Err(format!("`{key}` is in its metadata twice"));
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensors {
        found.push(reader.tensor()?);
    }
    let alignment = match header.metadata.get("general.alignment") {
        None => ALIGNMENT,
        // Less would leave numbers across the boundaries that the processor reads at.
        Some(Value::Int(n)) if (8..=1 << 16).contains(n) && n % 8 == 0 => *n as u64,
        Some(other) => return Err(format!("`general.alignment` is {other:?} (expected a multiple of 8)")),
    };
    let data = (reader.at as u64).next_multiple_of(alignment);
    for Declared { name, dtype, shape, offset } in found {
        let place = || format!("tensor `{name}`");
        let count = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        let Some(count) = count.filter(|n| n.is_multiple_of(dtype.block_size())) else {
            return Err(format!("{} has shape {shape:?}, which doesn't suit {dtype:?}", place()));
        };
        if shape.last().is_some_and(|row| !row.is_multiple_of(dtype.block_size())) {
            return Err(format!("{} has rows of {:?}, which don't suit {dtype:?}", place(), shape.last()));
        }
        if offset % alignment != 0 {
            return Err(format!("{} begins at {offset}, which isn't a multiple of {alignment}", place()));
        }
        let length = (count / dtype.block_size()).checked_mul(dtype.type_size()).map(|n| n as u64);
        let start = data.checked_add(offset);
        let end = start.zip(length).and_then(|(start, length)| start.checked_add(length));
        let Some((start, end)) = start.zip(end).filter(|(_, end)| *end <= file.len() as u64) else {
            return Err(format!("{} reaches beyond the end of the file", place()));
        };
        header.tensors.push(TensorInfo { name, dtype, shape, bytes: start as usize..end as usize });
    }
    Ok(header)
}

/// A tensor as it is declared.
struct Declared {
    name: String,
    dtype: GgmlDType,
    shape: Vec<usize>,
    offset: u64,
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
    version: u32,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.file.len());
        let end = end.ok_or_else(|| format!("it ends within its header, after {} bytes", self.file.len()))?;
        let taken = &self.file[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The first version counts in 32 bits.
    fn length(&mut self) -> Result<usize, String> {
        let length = if self.version == 1 { u64::from(self.u32()?) } else { self.u64()? };
        // Whatever is counted takes a byte at least.
        match usize::try_from(length) {
            Ok(length) if length <= self.file.len() => Ok(length),
            _ => Err(format!("it announces {length} things and has {} bytes", self.file.len())),
        }
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        str::from_utf8(bytes).map_err(|_| "its header holds text that is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            kind::U8 => Value::Int(u8::from_le_bytes(self.array()?).into()),
            kind::I8 => Value::Int(i8::from_le_bytes(self.array()?).into()),
            kind::U16 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            kind::I16 => Value::Int(i16::from_le_bytes(self.array()?).into()),
            kind::U32 => Value::Int(self.u32()?.into()),
            kind::I32 => Value::Int(i32::from_le_bytes(self.array()?).into()),
            kind::U64 => Value::Int(self.u64()?.into()),
            kind::I64 => Value::Int(i64::from_le_bytes(self.array()?).into()),
            kind::F32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            kind::F64 => Value::Float(f64::from_le_bytes(self.array()?)),
            kind::BOOL => Value::Bool(self.array::<1>()? != [0]),
            kind::TEXT => Value::Text(self.text()?.to_owned()),
            kind::ARRAY => Value::Array(self.elements(0)?),
            other => return Err(format!("its metadata has a value of the unknown type {other}")),
        })
    }

    /// Walks over an array.
    fn elements(&mut self, depth: usize) -> Result<Array, String> {
        if depth >= MAX_DEPTH {
            return Err("its metadata nests arrays too deeply".into());
        }
        let (kind, count) = (self.u32()?, self.length()?);
        let start = self.at;
        match size_of_kind(kind) {
            Some(size) => {
                self.take(count.checked_mul(size).ok_or("its metadata has an endless array")?)?;
            }
            None if kind == kind::TEXT => (0..count).try_for_each(|_| self.text().map(drop))?,
            None if kind == kind::ARRAY => {
                (0..count).try_for_each(|_| self.elements(depth + 1).map(drop))?;
            }
            None => return Err(format!("its metadata has an array of the unknown type {kind}")),
        }
        Ok(Array { kind, count, bytes: start..self.at })
    }

    fn tensor(&mut self) -> Result<Declared, String> {
        let name = self.text()?.to_owned();
        let axes = self.u32()?;
        if axes > MAX_AXES {
            return Err(format!("tensor `{name}` has {axes} axes (expected at most {MAX_AXES})"));
        }
        let mut shape = Vec::new();
        for _ in 0..axes {
            let side = if self.version == 1 { u64::from(self.u32()?) } else { self.u64()? };
            shape.push(usize::try_from(side).map_err(|_| format!("tensor `{name}` is too large"))?);
        }
        shape.reverse();
        let number = self.u32()?;
        let dtype = ggml_dtype(number)
            .ok_or_else(|| format!("tensor `{name}` is of ggml type {number}, which is not read here"))?;
        Ok(Declared { name, dtype, shape, offset: self.u64()? })
    }
}

impl Array {
    /// The texts of an array of those.
    pub(super) fn texts<'a>(&self, file: &'a [u8], version: u32) -> Option<Vec<&'a str>> {
        (self.kind == kind::TEXT).then_some(())?;
        let mut reader = Reader { file: &file[..self.bytes.end], at: self.bytes.start, version };
        (0..self.count).map(|_| reader.text().ok()).collect()
    }

    /// The numbers of an array of those.
    pub(super) fn numbers(&self, file: &[u8]) -> Option<Vec<f64>> {
        size_of_kind(self.kind)?;
        let mut reader = Reader { file: &file[..self.bytes.end], at: self.bytes.start, version: 3 };
        let number = |reader: &mut Reader<'_>| match reader.value(self.kind).ok()? {
            Value::Int(n) => Some(n as f64),
            Value::Float(x) => Some(x),
            _ => None,
        };
        (0..self.count).map(|_| number(&mut reader)).collect()
    }

    /// The bytes of an array of those.
    pub(super) fn bytes<'a>(&self, file: &'a [u8]) -> Option<&'a [u8]> {
        matches!(self.kind, kind::U8 | kind::I8).then(|| &file[self.bytes.clone()])
    }
}

/// A metadata value to be written.
#[derive(Debug, Clone)]
pub enum Field {
    /// A count.
    U32(u32),
    /// A number.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Several numbers.
    F32s(Vec<f32>),
    /// Several integers.
    I32s(Vec<i32>),
    /// Bytes of any meaning.
    Bytes(Vec<u8>),
}

impl Field {
    fn write(&self, to: &mut Vec<u8>) {
        fn head(to: &mut Vec<u8>, kind: u32) {
            to.extend(kind.to_le_bytes());
        }
        fn array(to: &mut Vec<u8>, kind: u32, count: usize) {
            head(to, kind::ARRAY);
            head(to, kind);
            to.extend((count as u64).to_le_bytes());
        }
        match self {
            Self::U32(n) => {
                head(to, kind::U32);
                to.extend(n.to_le_bytes());
            }
            Self::F32(x) => {
                head(to, kind::F32);
                to.extend(x.to_le_bytes());
            }
            Self::Bool(b) => {
                head(to, kind::BOOL);
                to.push(u8::from(*b));
            }
            Self::Text(text) => {
                head(to, kind::TEXT);
                write_text(to, text);
            }
            Self::Texts(texts) => {
                array(to, kind::TEXT, texts.len());
                texts.iter().for_each(|text| write_text(to, text));
            }
            Self::F32s(values) => {
                array(to, kind::F32, values.len());
                values.iter().for_each(|x| to.extend(x.to_le_bytes()));
            }
            Self::I32s(values) => {
                array(to, kind::I32, values.len());
                values.iter().for_each(|n| to.extend(n.to_le_bytes()));
            }
            Self::Bytes(bytes) => {
                array(to, kind::U8, bytes.len());
                to.extend(bytes);
            }
        }
    }
}

fn write_text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

/// Writes a file of version 3 whose tensors come one after another.
pub struct Writer<W: Write> {
    to: W,
    /// What is yet to be written, in order.
    expected: std::vec::IntoIter<(String, usize)>,
}

impl<W: Write> Writer<W> {
    /// Writes the header; every tensor must follow, in the given order.
    pub fn new(
        mut to: W,
        metadata: &[(String, Field)],
        tensors: &[(String, GgmlDType, Vec<usize>)],
    ) -> io::Result<Self> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            write_text(&mut header, key);
            value.write(&mut header);
        }
        let (mut offset, mut expected) = (0u64, Vec::new());
        for (name, dtype, shape) in tensors {
            write_text(&mut header, name);
            header.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|side| header.extend((*side as u64).to_le_bytes()));
            let number = DTYPES.iter().find(|(_, known)| known == dtype).map(|(number, _)| *number);
            header.extend(number.expect("the table has every type").to_le_bytes());
            header.extend(offset.to_le_bytes());
            let length = shape.iter().product::<usize>() / dtype.block_size() * dtype.type_size();
            offset = (offset + length as u64).next_multiple_of(ALIGNMENT);
            expected.push((name.clone(), length));
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        to.write_all(&header)?;
        Ok(Self { to, expected: expected.into_iter() })
    }

    /// Writes the next tensor.
    pub fn tensor(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let next = self.expected.next();
        if next.as_ref().is_none_or(|(expected, length)| expected != name || *length != bytes.len()) {
            let what = format!("{name} with {} bytes came, {next:?} was announced", bytes.len());
            return Err(io::Error::other(what));
        }
        self.to.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(ALIGNMENT as usize) - bytes.len();
        self.to.write_all(&[0; ALIGNMENT as usize][..padding])
    }

    /// Ends the file, of which nothing may be missing.
    pub fn finish(mut self) -> io::Result<()> {
        match self.expected.next() {
            Some((missing, _)) => Err(io::Error::other(format!("{missing} was announced and didn't come"))),
            None => self.to.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut file = Vec::new();
        let metadata = [
            ("general.architecture".to_owned(), Field::Text("toy".into())),
            ("toy.count".to_owned(), Field::U32(7)),
            ("toy.eps".to_owned(), Field::F32(0.5)),
            ("toy.flag".to_owned(), Field::Bool(true)),
            ("toy.words".to_owned(), Field::Texts(["a", "", "▁c"].map(str::to_owned).to_vec())),
            ("toy.scores".to_owned(), Field::F32s(vec![1.0, -2.5])),
            ("toy.types".to_owned(), Field::I32s(vec![3, -1])),
            ("toy.map".to_owned(), Field::Bytes(vec![1, 2, 255])),
        ];
        let tensors =
            [("a".to_owned(), GgmlDType::F32, vec![2, 3]), ("b".to_owned(), GgmlDType::Q8_0, vec![1, 32])];
        let mut writer = Writer::new(&mut file, &metadata, &tensors).unwrap();
        writer.tensor("a", &[1; 24]).unwrap();
        assert!(writer.tensor("c", &[2; 34]).is_err());
        file.clear();
        let mut writer = Writer::new(&mut file, &metadata, &tensors).unwrap();
        writer.tensor("a", &[1; 24]).unwrap();
        writer.tensor("b", &[2; 34]).unwrap();
        writer.finish().unwrap();
        file
    }

    #[test]
    fn what_is_written_is_read() {
        let file = sample();
        let header = read(&file).unwrap();
        assert_eq!(header.metadata["general.architecture"], Value::Text("toy".into()));
        assert_eq!(header.metadata["toy.count"], Value::Int(7));
        assert_eq!(header.metadata["toy.eps"], Value::Float(0.5));
        assert_eq!(header.metadata["toy.flag"], Value::Bool(true));
        let array = |key: &str| match &header.metadata[key] {
            Value::Array(array) => array.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(array("toy.words").texts(&file, 3).unwrap(), ["a", "", "▁c"]);
        assert_eq!(array("toy.scores").numbers(&file).unwrap(), [1.0, -2.5]);
        assert_eq!(array("toy.types").numbers(&file).unwrap(), [3.0, -1.0]);
        assert_eq!(array("toy.map").bytes(&file).unwrap(), [1, 2, 255]);
        assert!(array("toy.map").texts(&file, 3).is_none());
        let tensors: Vec<_> = header.tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())).collect();
        assert_eq!(tensors, [("a", &[2usize, 3][..]), ("b", &[1, 32])]);
        assert_eq!(&file[header.tensors[1].bytes.clone()], [2; 34]);
    }

    #[test]
    fn every_cut_is_seen() {
        let file = sample();
        let end = read(&file).unwrap().tensors[1].bytes.end;
        for length in 0..end {
            assert!(read(&file[..length]).is_err(), "{length}");
        }
    }
}
