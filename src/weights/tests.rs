use std::{collections::HashMap, fs, path::Path};

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::{device::Placement, error::Error};

const CPU_F32: Placement = Placement { device: Device::Cpu, dtype: DType::F32 };

fn tensors() -> HashMap<String, Tensor> {
    let of = |values: &[f32], shape: &[usize]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
    HashMap::from([
        ("a.weight".to_owned(), of(&[1.0, -2.5, 3.25, 0.0, 7.0, 8.5], &[2, 3])),
        ("a.bias".to_owned(), of(&[0.5, 0.25], &[2])),
        ("b.half".to_owned(), of(&[1.5, -3.0], &[2]).to_dtype(DType::F16).unwrap()),
        ("b.brain".to_owned(), of(&[1.5, -3.0], &[2]).to_dtype(DType::BF16).unwrap()),
        ("c.nan".to_owned(), of(&[1.0, f32::NAN], &[2])),
        ("c.inf".to_owned(), of(&[f32::INFINITY], &[1]).to_dtype(DType::BF16).unwrap()),
        ("c.wide".to_owned(), of(&[1.0], &[1]).to_dtype(DType::F64).unwrap()),
    ])
}

fn write(path: &Path, tensors: HashMap<String, Tensor>) {
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// Xorshift: tests draw the same numbers everywhere.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Cuts, flips, and lies about lengths.
fn mutate(bytes: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match draw.below(4) {
        0 => bytes.truncate(draw.below(bytes.len())),
        1 => {
            let huge = [u64::MAX, 1 << 62, 99_999_999, bytes.len() as u64][draw.below(4)];
            bytes[..8].copy_from_slice(&huge.to_le_bytes());
        }
        2 => {
            let (at, digit) = (draw.below(bytes.len()), b'0' + draw.below(10) as u8);
            bytes.splice(at..at, [digit; 19]);
        }
        _ => {
            for _ in 0..1 + draw.below(4) {
                let at = draw.below(bytes.len());
                bytes[at] ^= 1 << draw.below(8);
            }
        }
    }
    bytes
}

#[test]
fn reads_every_stored_type_into_every_wanted_one() {
    let weights = Weights::from_tensors("toy", tensors());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let loader = weights.loader(&Placement { device: Device::Cpu, dtype });
        for key in ["half", "brain"] {
            let tensor = loader.pp("b").get(&[2], key).unwrap();
            assert_eq!(tensor.dtype(), dtype);
            assert_eq!(tensor.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(), [1.5, -3.0]);
        }
        assert_eq!(loader.get_f32(&[2, 3], "a.weight").unwrap().dtype(), DType::F32);
    }
}

#[test]
fn says_what_is_wrong_with_a_tensor() {
    let loader = Weights::from_tensors("toy", tensors()).loader(&CPU_F32);
    assert!(matches!(loader.get(&[2], "a.scale"), Err(Error::MissingTensor { key, .. }) if key == "a.scale"));
    assert!(
        matches!(loader.get(&[3, 2], "a.weight"), Err(Error::MisshapenTensor { found, .. }) if found == [2, 3])
    );
    assert!(matches!(loader.get(&[2], "c.nan"), Err(Error::NotFiniteTensor { .. })));
    assert!(matches!(loader.get(&[1], "c.inf"), Err(Error::NotFiniteTensor { .. })));
    assert!(matches!(loader.get(&[1], "c.wide"), Err(Error::TensorDtype { found, .. }) if found == "F64"));
}

#[test]
fn unread_keys_are_an_error() {
    let loader = Weights::from_tensors("toy", tensors()).loader(&CPU_F32);
    let a = loader.pp("a");
    a.get(&[2, 3], "weight").unwrap();
    assert!(matches!(a.finish(&[]), Err(Error::UnusedTensors { count: 1, first, .. }) if first == "a.bias"));
    a.finish(&["bias"]).unwrap();
    a.get(&[2], "bias").unwrap();
    a.finish(&[]).unwrap();
    assert!(matches!(loader.finish(&[]), Err(Error::UnusedTensors { count: 5, .. })));
    assert!(matches!(loader.finish(&["c."]), Err(Error::UnusedTensors { count: 2, .. })));
}

#[test]
fn finds_files_as_they_are_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    assert!(matches!(Weights::open(folder.path(), "model", None), Err(Error::MissingFile { .. })));
    write(&path("model.fp16.safetensors"), tensors());
    assert!(matches!(Weights::open(folder.path(), "model", None), Err(Error::MissingFile { .. })));
    assert_eq!(Weights::open(folder.path(), "model", Some("fp16")).unwrap().keys().count(), 7);

    let (first, second): (HashMap<_, _>, HashMap<_, _>) =
        tensors().into_iter().partition(|(key, _)| key.starts_with('a'));
    write(&path("m-00001-of-00002.safetensors"), first);
    write(&path("m-00002-of-00002.safetensors"), second);
    let index = |key: &str, file: &str| {
        let map = serde_json::json!({ "metadata": {}, "weight_map": {
            "a.bias": "m-00001-of-00002.safetensors", key: file } });
        fs::write(path("model.safetensors.index.json"), map.to_string()).unwrap();
        Weights::open(folder.path(), "model", None)
    };
    let weights = index("b.half", "m-00002-of-00002.safetensors").unwrap();
    assert_eq!(weights.shape("a.weight"), Some([2, 3].as_slice()));
    assert!(weights.contains("b.half") && weights.byte_len() == 58);
    assert!(matches!(index("b.half", "m-00003-of-00002.safetensors"), Err(Error::MissingFile { .. })));
    assert!(matches!(index("b.half", "m-00001-of-00002.safetensors"), Err(Error::Damaged { .. })));
    assert!(matches!(index("b.half", "../m.safetensors"), Err(Error::Damaged { .. })));
    assert!(matches!(index("b.half", ""), Err(Error::Damaged { .. })));
}

#[test]
fn a_key_in_two_files_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["x.safetensors", "y.safetensors"].map(|name| folder.path().join(name));
    files.iter().for_each(|file| write(file, tensors()));
    assert!(matches!(Weights::open_files(&files), Err(Error::Damaged { .. })));
}

#[test]
fn damaged_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    let whole = safetensors::serialize(tensors(), None).unwrap();
    let mut draw = Draw(7);
    for _ in 0..300 {
        fs::write(&file, mutate(&whole, &mut draw)).unwrap();
        // A flip among the values themselves leaves a file that opens.
        if let Ok(weights) = Weights::open(folder.path(), "model", None) {
            let loader = weights.loader(&CPU_F32);
            for key in weights.keys() {
                let _ = loader.get(weights.shape(key).unwrap(), key);
            }
        }
    }
    for bytes in [&b""[..], b"1234567", &[0; 8], &[0xff; 64], b"<!DOCTYPE html><html></html>"] {
        fs::write(&file, bytes).unwrap();
        assert!(matches!(Weights::open(folder.path(), "model", None), Err(Error::Damaged { .. })));
    }
    for cut in 0..whole.len() {
        fs::write(&file, &whole[..cut]).unwrap();
        assert!(matches!(Weights::open(folder.path(), "model", None), Err(Error::Damaged { .. })), "{cut}");
    }
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(Weights::open(folder.path(), "model", None).is_err());
}

#[test]
fn damaged_indices_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("m-1.safetensors"), tensors());
    let map: HashMap<_, _> = tensors().into_keys().map(|key| (key, "m-1.safetensors")).collect();
    let whole = serde_json::json!({ "metadata": { "total_size": 99 }, "weight_map": map }).to_string();
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, &whole).unwrap();
    Weights::open(folder.path(), "model", None).unwrap();
    let (mut draw, mut refused) = (Draw(11), 0);
    for _ in 0..300 {
        fs::write(&index, mutate(whole.as_bytes(), &mut draw)).unwrap();
        refused += usize::from(Weights::open(folder.path(), "model", None).is_err());
    }
    assert!(refused > 200, "{refused}");
    for text in ["", "[]", "{}", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#] {
        fs::write(&index, text).unwrap();
        assert!(matches!(Weights::open(folder.path(), "model", None), Err(Error::Damaged { .. })));
    }
}
