//! The tokenizer and the T5 encoder.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use sora::{
    device::Placement,
    error::Error,
    models::{
        api::TextEncoder,
        t5::{Config, Encoder, Padding, T5Text, Tokenizer},
    },
    weights::Weights,
};

use crate::support::{Fixture, Tolerance};

/// The files of one layout of a tokenizer's folder.
fn layout(fixture: &Fixture, name: &str) -> Vec<(String, Vec<u8>)> {
    let layouts = fixture.json("layouts");
    let files = layouts[name].as_object().expect("a layout").iter();
    files
        .map(|(file, content)| {
            let bytes = match content {
                Value::String(model) => fixture.tensor(&format!("in.{model}")).to_vec1::<u8>().unwrap(),
                json => json.to_string().into_bytes(),
            };
            (file.clone(), bytes)
        })
        .collect()
}

fn tokenizer(files: &[(String, Vec<u8>)]) -> sora::Result<Tokenizer> {
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    Tokenizer::from_files(Path::new("tokenizer"), &files)
}

#[test]
fn tokenizer_gives_the_references_ids() {
    let fixture = Fixture::open("tokenizer");
    let texts = fixture.json("texts");
    let texts: Vec<&str> = texts.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    assert!(texts.len() >= 60);
    let expected = fixture.json("expected");
    let mut wrong = Vec::new();
    for (name, expected) in expected.as_object().unwrap() {
        let tokenizer = tokenizer(&layout(&fixture, name)).unwrap();
        for (text, expected) in texts.iter().zip(expected.as_array().unwrap()) {
            for length in [16, 128] {
                let expected = &expected[length.to_string()];
                let mut ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
                let mut mask = vec![1.0; ids.len()];
                ids.resize(length, expected["pad"].as_u64().unwrap() as u32);
                mask.resize(length, 0.0);
                let actual = tokenizer.encode(text, length).unwrap();
                if actual.ids != ids || actual.mask != mask || actual.cut != expected["cut"] {
                    wrong.push(format!(
                        "{name} {length} {text:?}\n  {actual:?}\n  {:?} {}",
                        ids, expected["cut"]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn tokenizer_opens_folders() {
    let fixture = Fixture::open("tokenizer");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::open(folder.path()), Err(Error::MissingFile { .. })));
    for (name, bytes) in layout(&fixture, "published") {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let spiece = Tokenizer::open(folder.path()).unwrap().encode("pirate ships", 8).unwrap();
    for (name, bytes) in layout(&fixture, "json") {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let json = Tokenizer::open(folder.path()).unwrap().encode("pirate ships", 8).unwrap();
    assert_ne!(spiece.ids, json.ids, "a tokenizer.json goes before a spiece.model");
}

#[test]
fn tokenizer_keeps_the_end_token() {
    let fixture = Fixture::open("tokenizer");
    let tokenizer = tokenizer(&layout(&fixture, "bare")).unwrap();
    assert_eq!(tokenizer.encode("", 3).unwrap().ids, [1, 0, 0]);
    let one = tokenizer.encode("pirate ships", 1).unwrap();
    assert_eq!((one.ids, one.mask, one.cut.as_str()), (vec![1], vec![1.0], "pirate ships"));
    assert!(matches!(tokenizer.encode("a", 0), Err(Error::Invalid { .. })));
}

#[test]
fn damaged_tokenizers_are_errors() {
    let fixture = Fixture::open("tokenizer");
    let mut draw = Draw(5);
    for name in ["bare", "json", "published"] {
        let whole = layout(&fixture, name);
        let mut refused = 0;
        for round in 0..300 {
            let mut files = whole.clone();
            let (_, bytes) = &mut files[round % whole.len()];
            mutate(bytes, &mut draw);
            match tokenizer(&files) {
                Err(_) => refused += 1,
                // A flipped letter of a piece leaves a tokenizer, which has to work then.
                Ok(tokenizer) => {
                    for text in ["pirate ships ｐ é½ 東京 \u{1}\t", "</s> <extra_id_3>"] {
                        let _ = tokenizer.encode(text, 9);
                    }
                }
            }
        }
        assert!(refused > 50, "{name}: {refused}");
    }
}

#[test]
fn other_sides_and_models_are_refused() {
    let fixture = Fixture::open("tokenizer");
    let mut files = layout(&fixture, "bare");
    files.push(("tokenizer_config.json".into(), br#"{"padding_side": "left"}"#.to_vec()));
    assert!(matches!(tokenizer(&files), Err(Error::Config { key, .. }) if key == "padding_side"));
    let bpe = br#"{"added_tokens": [], "model": {"type": "BPE", "vocab": {}}}"#.to_vec();
    assert!(matches!(tokenizer(&[("tokenizer.json".into(), bpe)]), Err(Error::Damaged { .. })));
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

/// Cuts, flips, and puts in huge lengths.
fn mutate(bytes: &mut Vec<u8>, draw: &mut Draw) {
    let at = draw.below(bytes.len());
    match draw.below(4) {
        0 => bytes.truncate(at),
        1 => drop(bytes.splice(at..at, [0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f])),
        2 => bytes[at..].iter_mut().take(4).for_each(|byte| *byte = 0xff),
        _ => {
            for _ in 0..1 + draw.below(8) {
                let at = draw.below(bytes.len());
                bytes[at] ^= 1 << draw.below(8);
            }
        }
    }
}

fn config(fixture: &Fixture) -> Config {
    let path = Path::new("text_encoder/config.json");
    Config::parse(path, fixture.metadata["config"].as_bytes()).unwrap()
}

fn encoder(fixture: &Fixture, dtype: DType) -> Encoder {
    let weights = Weights::from_tensors("t5", fixture.weights());
    Encoder::new(&config(fixture), &weights.loader(&Placement { device: Device::Cpu, dtype })).unwrap()
}

fn ids(fixture: &Fixture, name: &str) -> Tensor {
    fixture.tensor(name).to_dtype(DType::U32).unwrap()
}

#[test]
fn t5_agrees_in_f32() {
    let fixture = Fixture::open("t5");
    let encoder = encoder(&fixture, DType::F32);
    let tolerance = Tolerance { max_abs: 1e-5, cosine: 0.999_999_9 };
    for name in ["short", "padded"] {
        let states = encoder.forward(&ids(&fixture, &format!("in.{name}"))).unwrap();
        tolerance.check(name, &states, fixture.tensor(&format!("out.{name}")));
    }
}

#[test]
fn t5_agrees_in_16_bits() {
    let fixture = Fixture::open("t5");
    let f16 = Tolerance { max_abs: 1e-2, cosine: 0.999_99 };
    for (name, dtype, tolerance) in [("bf16", DType::BF16, Tolerance::BF16), ("f16", DType::F16, f16)] {
        let states = encoder(&fixture, dtype).forward(&ids(&fixture, "in.padded")).unwrap();
        assert_eq!(states.dtype(), dtype);
        tolerance.check(name, &states, fixture.tensor(&format!("out.{name}")));
    }
}

#[test]
fn t5_stays_finite_where_f16_overflows() {
    let fixture = Fixture::open("t5");
    let mut tensors = fixture.weights();
    let key = "encoder.block.0.layer.0.SelfAttention.o.weight";
    tensors.insert(key.into(), (&tensors[key] * 1e5).unwrap());
    let place = Placement { device: Device::Cpu, dtype: DType::F16 };
    let loader = Weights::from_tensors("t5", tensors).loader(&place);
    let states =
        Encoder::new(&config(&fixture), &loader).unwrap().forward(&ids(&fixture, "in.short")).unwrap();
    let tolerance = Tolerance { max_abs: 2e-2, cosine: 0.999_99 };
    tolerance.check("large", &states, fixture.tensor("out.f16_large"));
}

#[test]
fn t5_takes_the_embedding_under_either_name() {
    let fixture = Fixture::open("t5");
    for key in ["shared.weight", "encoder.embed_tokens.weight"] {
        let mut tensors = fixture.weights();
        tensors.remove(key).expect("both names in the fixture");
        tensors.insert(
            "decoder.final_layer_norm.weight".into(),
            tensors["encoder.final_layer_norm.weight"].clone(),
        );
        let place = Placement { device: Device::Cpu, dtype: DType::F32 };
        let loader = Weights::from_tensors("t5", tensors.clone()).loader(&place);
        let states =
            Encoder::new(&config(&fixture), &loader).unwrap().forward(&ids(&fixture, "in.short")).unwrap();
        Tolerance::F32.check(key, &states, fixture.tensor("out.short"));

        tensors.insert("encoder.block.2.layer.0.layer_norm.weight".into(), states);
        let loader = Weights::from_tensors("t5", tensors).loader(&place);
        assert!(matches!(
            Encoder::new(&config(&fixture), &loader),
            Err(Error::UnusedTensors { count: 1, .. })
        ));
    }
}

#[test]
fn t5_text_encodes_a_prompt() {
    let fixture = Fixture::open("t5");
    let files = layout(&Fixture::open("tokenizer"), "bare");
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let loader = Weights::from_tensors("t5", fixture.weights()).loader(&place);
    let read =
        |padding| T5Text::new(tokenizer(&files).unwrap(), &config(&fixture), padding, &loader).unwrap();
    let hidden = read(Padding::Hidden).encode("", 5).unwrap().states;
    let alone =
        encoder(&fixture, DType::F32).forward(&Tensor::new(&[[1u32]], &Device::Cpu).unwrap()).unwrap();
    Tolerance::F32.check("states without padding", &hidden.narrow(1, 0, 1).unwrap(), &alone);
    assert_eq!(hidden.dim(1).unwrap(), 5);
    let mut text = read(Padding::Read);
    let states = text.encode("", 5).unwrap();
    let expected = Tensor::new(&[[1u32, 0, 0, 0, 0]], &Device::Cpu).unwrap();
    let expected = encoder(&fixture, DType::F32).forward(&expected).unwrap();
    Tolerance::F32.check("states", &states.states, &expected);
    assert_eq!(states.mask.to_vec2::<f32>().unwrap(), [[1.0, 0.0, 0.0, 0.0, 0.0]]);
    assert_eq!(states.cut, "");
    // The toy encoder has fewer rows than the tokenizer has pieces.
    assert!(matches!(text.encode("<extra_id_0>", 5), Err(Error::Tokenizer { .. })));
}
