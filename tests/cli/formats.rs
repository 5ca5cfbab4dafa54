//! Single files, other number formats, LoRAs, and what is said when a part is missing.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{Device, Tensor};
use predicates::str::contains;
use serde_json::{Value, json};

use crate::bench::{Bench, SMALL, copy_of_mini, edit};

const TRANSFORMER: &str = "model/transformer/diffusion_pytorch_model.safetensors";

fn bench() -> Bench {
    let bench = Bench::new();
    copy_of_mini(&bench.path("model"));
    bench
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).expect("a safetensors file")
}

/// Mean difference of two clips of equal size, 0..255.
fn apart(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

#[test]
fn a_file_needs_its_other_parts() {
    let bench = bench();
    bench.sora(&["convert", "model/transformer", "t.gguf", "--dtype", "q8_0"]).assert().success();
    let refused = |more: &[&str]| {
        let args = [&["gen", "a fox", "--model", "t.gguf", "-o", "out.mp4"], more, &SMALL].concat();
        bench.refused(&args, 3)
    };
    let stderr = refused(&[]);
    assert!(stderr.contains("no video autoencoder") && stderr.contains("--vae"), "{stderr}");
    let stderr = refused(&["--vae", "model"]);
    assert!(stderr.contains("no text encoder") && stderr.contains("--text-encoder"), "{stderr}");
    let stderr = refused(&["--vae", "nowhere"]);
    assert!(stderr.contains("nowhere is missing"), "{stderr}");
    bench.sora(&["convert", "model/vae", "v.safetensors", "--dtype", "f16"]).assert().success();
    let stderr = bench.refused(&["info", "v.safetensors"], 3);
    assert!(stderr.contains("no transformer"), "{stderr}");
    // The text encoder's neighbour is its tokenizer.
    let frames =
        bench.frames(&["--model", "t.gguf", "--vae", "model", "--text-encoder", "model/text_encoder"]);
    assert!(frames.len() > 1000);
    fs::create_dir(bench.path("alone")).expect("a folder can be made");
    fs::rename(bench.path("model/text_encoder/model.safetensors"), bench.path("alone/t5.safetensors"))
        .expect("a file can be moved");
    let stderr = refused(&["--vae", "model", "--text-encoder", "alone/t5.safetensors"]);
    assert!(stderr.contains("no tokenizer") && stderr.contains("--tokenizer"), "{stderr}");
}

#[test]
fn a_converted_folder_makes_nearly_the_same_video() {
    let bench = bench();
    let before = bench.frames(&["--model", "model"]);
    for (dtype, tolerance) in [("f16", 1.0), ("bf16", 6.0), ("fp8", 16.0)] {
        let args = ["convert", "model", dtype, "--dtype", dtype];
        bench.sora(&args).assert().success().stdout(contains(dtype));
        bench.refused(&args, 2);
        let distance = apart(&before, &bench.frames(&["--model", dtype]));
        assert!(distance < tolerance, "{dtype}: {distance}");
    }
    let parts = ["--text-encoder", "t5.gguf", "--tokenizer", "model/tokenizer"];
    bench.sora(&["convert", "model/text_encoder", "t5.gguf", "--dtype", "q8_0"]).assert().success();
    let distance = apart(&before, &bench.frames(&[&["--model", "model"], parts.as_slice()].concat()));
    assert!(distance < 8.0, "{distance}");
    // The vocabulary went along.
    let named = bench.frames(&["--model", "model", "--text-encoder", "t5.gguf", "--tokenizer", "t5.gguf"]);
    assert_eq!(named, bench.frames(&[&["--model", "model"], parts.as_slice()].concat()));
}

#[test]
fn conversions_that_make_no_sense_are_refused() {
    let bench = bench();
    let refused = |args: &[&str], code| bench.refused(&[&["convert"], args].concat(), code);
    assert!(refused(&["model", "out", "--dtype", "q4_k"], 2).contains("model/text_encoder"));
    assert!(refused(&["model/transformer", "t.safetensors", "--dtype", "q4_k"], 2).contains("t.gguf"));
    assert!(refused(&["model/transformer", "t.gguf", "--dtype", "int8"], 2).contains("q4_k"));
    assert!(refused(&["model/vae", "v.gguf", "--dtype", "q8_0"], 2).contains("video autoencoder"));
    refused(&["nowhere.safetensors", "t.gguf", "--dtype", "q8_0"], 3);
    refused(&["model/sora.json", "t.gguf", "--dtype", "q8_0"], 3);
    refused(&["model/transformer", "no/such/folder/t.gguf", "--dtype", "q8_0"], 4);
}

#[test]
fn loras_change_the_video_and_stand_in_the_recipe() {
    let bench = bench();
    let before = bench.frames(&["--model", "model"]);
    let weights = tensors(&bench.path(TRANSFORMER));
    let (key, weight) =
        weights.iter().find(|(key, _)| key.ends_with("0.attn1.to_v.weight")).expect("a block");
    let (out, into) = weight.dims2().expect("a matrix");
    let ones =
        |shape: (usize, usize), value: f32| Tensor::full(value, shape, &Device::Cpu).expect("a tensor");
    let write = |name: &str, layer: &str, scale: f32| {
        let pair = [("lora_A", ones((2, into), scale)), ("lora_B", ones((out, 2), 1.0))];
        let pair: HashMap<_, _> = pair
            .into_iter()
            .map(|(part, value)| (format!("transformer.{layer}.{part}.weight"), value))
            .collect();
        candle_core::safetensors::save(&pair, bench.path(name)).expect("a file can be written");
    };
    let layer = key.trim_end_matches(".weight");
    write("lora.safetensors", layer, 0.2);
    write("none.safetensors", layer, 0.0);
    write("other.safetensors", "transformer_blocks.999.attn1.to_q", 0.2);
    let with = |lora: &str| bench.frames(&["--model", "model", "--lora", lora]);
    assert!(apart(&before, &with("lora.safetensors")) > 0.5);
    assert!(apart(&before, &with("lora.safetensors:0")) < 1.0);
    assert!(apart(&before, &with("none.safetensors")) < 1.0);
    let lora = ["--lora", "lora.safetensors:0.5", "--lora", "none.safetensors"];
    let args = [
        &["--model", "model", "-o", "out.mp4", "--json", "--save-latents", "l.safetensors"],
        lora.as_slice(),
    ];
    let output = bench.generate(&args.concat()).assert().success().get_output().clone();
    let clip: Value = serde_json::from_slice(&output.stdout).expect("a JSON object");
    let expected =
        json!([{ "file": "lora.safetensors", "scale": 0.5 }, { "file": "none.safetensors", "scale": 1.0 }]);
    assert_eq!(clip["recipe"]["loras"], expected);
    // The latents know which model they are from, wherever they are decoded.
    bench.sora(&["decode", "l.safetensors", "-o", "again.mp4"]).assert().success();
    let args = ["gen", "a fox", "--model", "model", "--lora", "other.safetensors", "-o", "new.mp4"];
    let stderr = bench.refused(&[&args, SMALL.as_slice()].concat(), 3);
    assert!(stderr.contains("other.safetensors") && stderr.contains("transformer_blocks.999"), "{stderr}");
}

#[test]
fn a_broken_stage_shows_before_any_work() {
    let bench = bench();
    edit(&bench.path("model/vae/config.json"), |json| {
        let layers = json["decoder_layers_per_block"].as_array_mut().expect("a list");
        *layers.last_mut().expect("a number") = json!(9);
    });
    let args = [&["gen", "a fox", "--model", "model", "-o", "out.mp4"], SMALL.as_slice()].concat();
    let stderr = bench.refused(&args, 3);
    assert!(stderr.contains("is missing") && !stderr.contains("denoising"), "{stderr}");
    bench.refused(&["info", "model"], 3);
}

#[test]
fn a_text_encoder_may_lie_in_the_same_file() {
    let bench = bench();
    let transformer = tensors(&bench.path(TRANSFORMER)).into_iter();
    let mut all: HashMap<_, _> =
        transformer.map(|(key, value)| (format!("model.diffusion_model.{key}"), value)).collect();
    let text = tensors(&bench.path("model/text_encoder/model.safetensors"));
    all.extend(
        text.into_iter().map(|(key, value)| (format!("text_encoders.t5xxl.transformer.{key}"), value)),
    );
    candle_core::safetensors::save(&all, bench.path("all.safetensors")).expect("a file can be written");
    let frames =
        bench.frames(&["--model", "all.safetensors", "--vae", "model/vae", "--tokenizer", "model/tokenizer"]);
    assert!(frames.len() > 1000);
}
