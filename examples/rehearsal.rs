//! A dress rehearsal: random weights as large as the published LTX-Video 0.9.5 (2B) and in its layout, with T5-XXL as a
//! GGUF file beside it. What runs on them runs on the real ones; the pictures are noise.
//!
//! ```sh
//! cargo run --release --example rehearsal -- rehearsal q5_k    # or q4_k, q6_k, q8_0: about 10 GB
//! sora gen "a red fox" --model rehearsal/ltx-video --text-encoder rehearsal/t5-v1_1-xxl-encoder.gguf \
//!     --steps 1 --size 256x256 --frames 9 --verbose -o rehearsal/out.mp4
//! ```

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File},
    io::BufWriter,
    path::Path,
};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::bf16;
use safetensors::{Dtype, View};
use serde_json::{Value, json};
use sora::{
    models::{
        ltx::{transformer::TransformerConfig, vae},
        t5,
    },
    weights::{Audit, Field, GgufWriter},
};

type Shapes = BTreeMap<String, Vec<usize>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let root = words.next().ok_or("give a folder to write into")?;
    let dtype = match words.next().as_deref() {
        None | Some("q5_k") => GgmlDType::Q5K,
        Some("q4_k") => GgmlDType::Q4K,
        Some("q6_k") => GgmlDType::Q6K,
        Some("q8_0") => GgmlDType::Q8_0,
        Some(other) => return Err(format!("{other} is none of q4_k, q5_k, q6_k, q8_0").into()),
    };
    let root = Path::new(&root);
    let model = root.join("ltx-video");
    let configs: Value = serde_json::from_str(include_str!("rehearsal.json"))?;
    let write = |name: &str, value: &Value| -> Result<(), Box<dyn std::error::Error>> {
        fs::create_dir_all(model.join(name).parent().ok_or("a file has a folder")?)?;
        Ok(fs::write(model.join(name), serde_json::to_string_pretty(value)?)?)
    };
    write("model_index.json", &json!({ "_class_name": "LTXConditionPipeline" }))?;
    write("scheduler/scheduler_config.json", &configs["scheduler"])?;

    let path = Path::new("rehearsal.json");
    let transformer = TransformerConfig::parse(&configs["transformer"].to_string(), path)?;
    let mut audit = Audit::listing();
    transformer.expect(&mut audit)?;
    write("transformer/config.json", &configs["transformer"])?;
    random_safetensors(&model.join("transformer/diffusion_pytorch_model.safetensors"), audit.listed())?;

    let vae = vae::Config::from_json(&configs["vae"].to_string(), path)?;
    let mut audit = Audit::listing();
    vae.expect_decoder(&mut audit)?;
    vae.expect_encoder(&mut audit)?;
    write("vae/config.json", &configs["vae"])?;
    random_safetensors(&model.join("vae/diffusion_pytorch_model.safetensors"), audit.listed())?;

    let text = t5::Config::parse(path, configs["text_encoder"].to_string().as_bytes())?;
    let mut audit = Audit::listing();
    text.expect(&mut audit)?;
    random_gguf(&root.join("t5-v1_1-xxl-encoder.gguf"), &text, &audit.listed(), dtype)
}

/// Numbers around zero (around one for what numbers are multiplied by), small enough that layers keep the size of what
/// goes through them.
fn random(key: &str, shape: &[usize], count: usize, seed: u64) -> Vec<f32> {
    let fan_in: usize = shape.iter().skip(1).product();
    let (mean, spread) = match shape.len() {
        0 => (1000.0, 0.0),
        1 if key.ends_with("weight") || key.ends_with("std") => (1.0, 0.1),
        1 => (0.0, 0.02),
        _ if key.contains("scale_shift_table") => (0.0, 0.1),
        _ => (0.0, 1.7 / (fan_in as f32).sqrt()),
    };
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| mean + spread * next()).collect()
}

/// One tensor that exists only while it is written.
struct Random {
    key: String,
    shape: Vec<usize>,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = random(&self.key, &self.shape, self.shape.iter().product(), self.seed);
        values.into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

fn random_safetensors(path: &Path, shapes: Shapes) -> Result<(), Box<dyn std::error::Error>> {
    let tensors = shapes.into_iter().enumerate();
    let tensors =
        tensors.map(|(seed, (key, shape))| (key.clone(), Random { key, shape, seed: seed as u64 + 1 }));
    Ok(safetensors::serialize_to_file(tensors, None, path)?)
}

/// A million random numbers in blocks, over and over: as good as any others here, and there in a moment.
fn random_gguf(
    path: &Path,
    config: &t5::Config,
    shapes: &Shapes,
    dtype: GgmlDType,
) -> Result<(), Box<dyn std::error::Error>> {
    const NUMBERS: usize = 1 << 20;
    let width = config.d_model;
    let values = random("weight", &[NUMBERS / width, width], NUMBERS, 7);
    let blocks =
        QTensor::quantize(&Tensor::from_vec(values, (NUMBERS / width, width), &Device::Cpu)?, dtype)?;
    let blocks = blocks.data()?.into_owned();
    let form = |key: &str, shape: &[usize]| match shape.len() {
        2 if !key.contains("relative_attention_bias") => dtype,
        _ => GgmlDType::F32,
    };
    let named = shapes.iter().map(|(key, shape)| {
        let name = t5::gguf_name(key).ok_or_else(|| format!("{key} has no name in GGUF files"))?;
        Ok((name, form(key, shape), shape.clone()))
    });
    let tensors: Vec<(String, GgmlDType, Vec<usize>)> = named.collect::<Result<_, String>>()?;
    let to = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut writer = GgufWriter::new(to, &vocabulary(config.vocab_size), &tensors)?;
    for ((key, shape), (name, form, _)) in shapes.iter().zip(&tensors) {
        let count: usize = shape.iter().product();
        if *form == GgmlDType::F32 {
            let values = random(key, shape, count, 11);
            writer.tensor(name, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())?;
        } else {
            let length = count / form.block_size() * form.type_size();
            let bytes: Vec<u8> = blocks.iter().copied().cycle().take(length).collect();
            writer.tensor(name, &bytes)?;
        }
    }
    Ok(writer.finish()?)
}

/// A vocabulary of made-up words, so that the file needs no tokenizer beside it.
fn vocabulary(rows: usize) -> Vec<(String, Field)> {
    const LETTERS: &str = "etaoinshrdlucmfwypvbgkjqxz";
    let letters: Vec<char> = LETTERS.chars().collect();
    let mut texts: Vec<String> = ["<pad>", "</s>", "<unk>", "▁"].map(str::to_owned).to_vec();
    texts.extend(letters.iter().map(char::to_string));
    let mut number = 0;
    while texts.len() < rows - 128 {
        let mut word = String::from("▁");
        let mut rest = number;
        for _ in 0..3 {
            word.push(letters[rest % letters.len()]);
            rest /= letters.len();
        }
        number += 1;
        if rest > 0 {
            word.push(letters[rest % letters.len()]);
        }
        texts.push(word);
    }
    let used = texts.len();
    texts.extend((used..rows).map(|id| format!("[PAD{id}]")));
    let kind = |id: usize| match id {
        0 | 1 => 3,
        2 => 2,
        id if id < used => 1,
        _ => 5,
    };
    vec![
        ("general.architecture".into(), Field::Text("t5encoder".into())),
        ("t5encoder.attention.layer_norm_rms_epsilon".into(), Field::F32(1e-6)),
        ("tokenizer.ggml.model".into(), Field::Text("t5".into())),
        (
            "tokenizer.ggml.scores".into(),
            Field::F32s((0..rows).map(|id| -1.0 - id as f32 / 1000.0).collect()),
        ),
        ("tokenizer.ggml.token_type".into(), Field::I32s((0..rows).map(kind).collect())),
        ("tokenizer.ggml.tokens".into(), Field::Texts(texts)),
    ]
}
