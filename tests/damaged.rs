//! Damaged files of every kind: a clear error or a model, never a panic, never memory without bound.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::HashMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{DType, Device, Tensor};
use sora::{
    device::Placement,
    models::{
        portable::{self, Format},
        registry,
        source::{ModelSource, Parts},
    },
    weights::{Lora, Weights},
};

/// The system's allocator, with an account of what is in use and the most that ever was.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller keeps to the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the rules of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that opening a model takes whatever its size: tables of tokens, threads' stacks of work, messages.
const BASE: usize = 24 << 20;
/// Bytes that may be in use for each byte of the model's files.
const FACTOR: usize = 24;
/// What each mutation is drawn from.
const MUTATIONS: usize = 1000;

/// Xorshift: the same numbers everywhere.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Cuts, flips, lies about lengths, digits where there were fewer. Half of it hits the head, where the lengths are.
fn mutate(bytes: &mut Vec<u8>, draw: &mut Draw) {
    let reach = if draw.below(2) == 0 { bytes.len() } else { bytes.len().min(4096) };
    let at = draw.below(reach);
    match draw.below(6) {
        0 => bytes.truncate(at),
        1 => {
            let huge =
                [u64::MAX, 1 << 62, 1 << 40, 99_999_999, bytes.len() as u64][draw.below(5)].to_le_bytes();
            let end = bytes.len().min(at + 8);
            bytes[at..end].copy_from_slice(&huge[..end - at]);
        }
        2 => {
            let digit = b'0' + draw.below(10) as u8;
            let count = 1 + draw.below(19);
            drop(bytes.splice(at..at, std::iter::repeat_n(digit, count)));
        }
        3 => {
            let end = bytes.len().min(at + 1 + draw.below(16));
            bytes.drain(at..end);
        }
        4 => {
            // A number of a text becomes another one.
            if let Some(place) = bytes[at..].iter().position(u8::is_ascii_digit) {
                bytes[at + place] = b'0' + draw.below(10) as u8;
            }
        }
        _ => {
            for _ in 0..1 + draw.below(8) {
                let at = draw.below(reach.min(bytes.len()));
                bytes[at] ^= 1 << draw.below(8);
            }
        }
    }
}

fn size_of(path: &Path) -> usize {
    if path.is_file() {
        return fs::metadata(path).unwrap().len() as usize;
    }
    fs::read_dir(path).unwrap().map(|entry| size_of(&entry.unwrap().path())).sum()
}

/// Opens a model and its text encoder, and encodes some words.
fn open(source: &ModelSource) -> sora::Result<()> {
    let checkpoint = registry::open(source)?;
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let states = checkpoint.text_encoder(&place)?.encode("a red fox, running", 16)?;
    assert_eq!(states.states.dims()[..2], [1, 16]);
    checkpoint.denoiser(&place)?;
    checkpoint.video_decoder(&place)?;
    Ok(())
}

/// Damages `file` in many ways and opens the model each time; gives how often it was refused.
fn damage(file: &Path, whole: &Path, seed: u64, count: usize, open: &dyn Fn() -> sora::Result<()>) -> usize {
    open().unwrap_or_else(|e| panic!("{}: undamaged, it is refused: {e}", file.display()));
    let bytes = fs::read(file).unwrap();
    let bound = BASE + FACTOR * size_of(whole);
    let (mut draw, mut refused) = (Draw(seed), 0);
    for number in 0..count {
        let mut damaged = bytes.clone();
        for _ in 0..1 + draw.below(2) {
            mutate(&mut damaged, &mut draw);
            if damaged.is_empty() {
                damaged.push(b'{');
            }
        }
        fs::write(file, &damaged).unwrap();
        let before = USED.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let place = || format!("{}, seed {seed}, mutation {number}", file.display());
        let outcome = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| panic!("{}: a panic", place()));
        if let Err(error) = outcome {
            refused += 1;
            assert!(!matches!(error, sora::Error::Tensor(_)), "{}: {error}", place());
            assert!(!error.to_string().is_empty());
        }
        let most = MOST.load(Ordering::Relaxed).saturating_sub(before);
        assert!(most < bound, "{}: {most} bytes in use, {bound} allowed", place());
    }
    fs::write(file, bytes).unwrap();
    refused
}

/// Tensors of these shapes, small numbers in all of them.
fn tensors(shapes: &[(String, Vec<usize>)]) -> HashMap<String, Tensor> {
    let mut draw = Draw(77);
    let tensor = |draw: &mut Draw, shape: &[usize]| {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| draw.below(1000) as f32 / 5000.0 - 0.1).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap()
    };
    shapes.iter().map(|(key, shape)| (key.clone(), tensor(&mut draw, shape))).collect()
}

fn save(path: &Path, shapes: &[(String, Vec<usize>)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize(tensors(shapes), None).unwrap()).unwrap();
}

/// A whole model of a few kilobytes in the published layout.
fn tiny(folder: &Path) {
    let json = |name: &str, value: serde_json::Value| {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), value.to_string()).unwrap();
    };
    json("model_index.json", serde_json::json!({ "_class_name": "LTXPipeline" }));
    json("scheduler/scheduler_config.json", serde_json::json!({ "shift": 2.0 }));
    json(
        "transformer/config.json",
        serde_json::json!({
            "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
            "cross_attention_dim": 32, "num_layers": 1, "caption_channels": 32
        }),
    );
    json(
        "text_encoder/config.json",
        serde_json::json!({
            "vocab_size": 120, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4,
            "feed_forward_proj": "gated-gelu"
        }),
    );
    json(
        "vae/config.json",
        serde_json::json!({
            "latent_channels": 4, "block_out_channels": [4, 4], "decoder_block_out_channels": [4],
            "layers_per_block": [1, 1, 1], "decoder_layers_per_block": [1, 1], "patch_size": 2,
            "spatio_temporal_scaling": [true, false], "decoder_spatio_temporal_scaling": [true],
            "decoder_inject_noise": [false, false], "upsample_residual": [false], "upsample_factor": [1]
        }),
    );
    let named = |list: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        list.iter().map(|(key, shape)| ((*key).to_owned(), shape.to_vec())).collect()
    };
    let mut transformer = named(&[
        ("proj_in.weight", &[32, 4]),
        ("proj_in.bias", &[32]),
        ("scale_shift_table", &[2, 32]),
        ("time_embed.emb.timestep_embedder.linear_1.weight", &[32, 256]),
        ("time_embed.emb.timestep_embedder.linear_1.bias", &[32]),
        ("time_embed.emb.timestep_embedder.linear_2.weight", &[32, 32]),
        ("time_embed.emb.timestep_embedder.linear_2.bias", &[32]),
        ("time_embed.linear.weight", &[192, 32]),
        ("time_embed.linear.bias", &[192]),
        ("caption_projection.linear_1.weight", &[32, 32]),
        ("caption_projection.linear_1.bias", &[32]),
        ("caption_projection.linear_2.weight", &[32, 32]),
        ("caption_projection.linear_2.bias", &[32]),
        ("transformer_blocks.0.scale_shift_table", &[6, 32]),
        ("transformer_blocks.0.ff.net.0.proj.weight", &[128, 32]),
        ("transformer_blocks.0.ff.net.0.proj.bias", &[128]),
        ("transformer_blocks.0.ff.net.2.weight", &[32, 128]),
        ("transformer_blocks.0.ff.net.2.bias", &[32]),
        ("proj_out.weight", &[4, 32]),
        ("proj_out.bias", &[4]),
    ]);
    for attention in ["attn1", "attn2"] {
        let key = |name: &str| format!("transformer_blocks.0.{attention}.{name}");
        for norm in ["norm_q.weight", "norm_k.weight"] {
            transformer.push((key(norm), vec![32]));
        }
        for name in ["to_q", "to_k", "to_v", "to_out.0"] {
            transformer.push((key(&format!("{name}.weight")), vec![32, 32]));
            transformer.push((key(&format!("{name}.bias")), vec![32]));
        }
    }
    save(&folder.join("transformer/diffusion_pytorch_model.safetensors"), &transformer);
    let block = |name: &str| format!("encoder.block.0.layer.{name}.weight");
    let mut text = named(&[("shared.weight", &[120, 32]), ("encoder.final_layer_norm.weight", &[32])]);
    text.extend(["q", "k", "v", "o"].map(|name| (block(&format!("0.SelfAttention.{name}")), vec![32, 32])));
    text.push((block("0.SelfAttention.relative_attention_bias"), vec![32, 4]));
    text.extend(
        ["wi_0", "wi_1", "wo"].map(|name| (block(&format!("1.DenseReluDense.{name}")), vec![32, 32])),
    );
    text.extend(["0.layer_norm", "1.layer_norm"].map(|name| (block(name), vec![32])));
    save(&folder.join("text_encoder/model.safetensors"), &text);
    let mut vae = named(&[("latents_mean", &[4]), ("latents_std", &[4])]);
    let mut conv = |name: &str, out: usize, into: usize| {
        vae.push((format!("{name}.conv.weight"), vec![out, into, 3, 3, 3]));
        vae.push((format!("{name}.conv.bias"), vec![out]));
    };
    conv("decoder.conv_in", 4, 4);
    conv("decoder.conv_out", 12, 4);
    conv("decoder.up_blocks.0.upsamplers.0.conv", 32, 4);
    for resnet in ["decoder.mid_block.resnets.0", "decoder.up_blocks.0.resnets.0"] {
        conv(&format!("{resnet}.conv1"), 4, 4);
        conv(&format!("{resnet}.conv2"), 4, 4);
    }
    save(&folder.join("vae/diffusion_pytorch_model.safetensors"), &vae);
    fs::create_dir_all(folder.join("tokenizer")).unwrap();
    fs::write(folder.join("tokenizer/spiece.model"), spiece()).unwrap();
}

/// A SentencePiece model of a few pieces.
fn spiece() -> Vec<u8> {
    fn message(field: u8, content: &[u8]) -> Vec<u8> {
        [&[field << 3 | 2, content.len() as u8], content].concat()
    }
    let piece = |text: &str, score: f32, kind: u8| {
        let score = [&[2 << 3 | 5], score.to_le_bytes().as_slice()].concat();
        message(1, &[message(1, text.as_bytes()), score, vec![3 << 3, kind]].concat())
    };
    let mut bytes = [piece("<pad>", 0.0, 3), piece("</s>", 0.0, 3), piece("<unk>", 0.0, 2)].concat();
    for (i, text) in ["▁", "▁a", "▁red", "▁fox", ",", "▁run", "ning", "r", "e", "d", "n"].iter().enumerate()
    {
        bytes.extend(piece(text, -(i as f32) - 1.0, 1));
    }
    bytes.extend(message(2, &[3 << 3, 1]));
    bytes
}

/// The tiny model as single files: the original layout, GGUF files, a LoRA.
struct Files {
    folder: PathBuf,
    model: PathBuf,
    transformer: PathBuf,
    text: PathBuf,
    lora: PathBuf,
}

fn files(root: &Path) -> Files {
    let folder = root.join("model");
    tiny(&folder);
    let path = |name: &str| root.join(name);
    let quiet: &dyn Fn(usize, usize) -> sora::Result<()> = &|_, _| Ok(());
    for (part, name, format) in [
        ("transformer", "transformer.gguf", Format::Q8_0),
        ("text_encoder", "t5.gguf", Format::Q8_0),
        ("transformer", "fp8.safetensors", Format::Fp8),
    ] {
        portable::open(&folder.join(part)).unwrap().write(format, &path(name), quiet).unwrap();
    }
    let mut all: HashMap<String, Tensor> = HashMap::new();
    let load = |part: &str| {
        let file = folder.join(part).join("diffusion_pytorch_model.safetensors");
        candle_core::safetensors::load(file, &Device::Cpu).unwrap()
    };
    all.extend(
        load("transformer").into_iter().map(|(key, value)| (format!("model.diffusion_model.{key}"), value)),
    );
    all.extend(load("vae").into_iter().map(|(key, value)| (format!("vae.{key}"), value)));
    let config =
        serde_json::json!({ "transformer": { "num_attention_heads": 2 }, "vae": { "scaling_factor": 1.0 } });
    let metadata = HashMap::from([("config".to_owned(), config.to_string())]);
    fs::write(path("single.safetensors"), safetensors::serialize(all, Some(metadata)).unwrap()).unwrap();
    save(
        &path("lora.safetensors"),
        &[
            ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight".into(), vec![2, 32]),
            ("transformer.transformer_blocks.0.attn1.to_q.lora_B.weight".into(), vec![32, 2]),
            ("transformer.transformer_blocks.0.attn1.to_q.alpha".into(), vec![]),
        ],
    );
    Files {
        model: path("single.safetensors"),
        transformer: path("transformer.gguf"),
        text: path("t5.gguf"),
        lora: path("lora.safetensors"),
        folder,
    }
}

#[test]
fn a_thousand_damaged_files() {
    let root = tempfile::tempdir().unwrap();
    let files = files(root.path());
    // Panics are what is looked for: each is reported once, by the assertion.
    std::panic::set_hook(Box::new(|_| {}));
    let folder = files.folder.clone();
    let whole = move || open(&ModelSource::Folder(folder.clone()));
    let of_files = |model: &PathBuf| {
        let parts = Parts {
            text_encoder: Some(files.text.clone()),
            vae: Some(files.folder.join("vae")),
            ..Parts::default()
        };
        ModelSource::File(model.clone()).with(parts)
    };
    let (transformer, single) = (of_files(&files.transformer), of_files(&files.model));
    let by_gguf = || open(&transformer);
    let by_file = || open(&single);
    let by_lora = || {
        let model = Weights::open(&files.folder.join("transformer"), "diffusion_pytorch_model", None)?;
        Lora::open(&files.lora)?.apply(&model, 1.0, str::to_owned).map(drop)
    };
    let part = |name: &str| files.folder.join(name);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut refused = Vec::new();
        let mut run = |file: &Path, share: usize, open: &dyn Fn() -> sora::Result<()>| {
            let seed = 0x9e37_79b9 + refused.len() as u64;
            refused.push((share, damage(file, root.path(), seed, share, open)));
        };
        run(&part("transformer/diffusion_pytorch_model.safetensors"), 120, &whole);
        run(&part("vae/diffusion_pytorch_model.safetensors"), 80, &whole);
        run(&files.model, 120, &by_file);
        run(&files.transformer, 160, &by_gguf);
        run(&files.text, 160, &by_gguf);
        run(&files.lora, 60, &by_lora);
        run(&part("tokenizer/spiece.model"), 100, &whole);
        for name in ["transformer", "text_encoder", "vae"] {
            run(&part(&format!("{name}/config.json")), 50, &whole);
        }
        run(&part("model_index.json"), 20, &whole);
        run(&part("scheduler/scheduler_config.json"), 30, &whole);
        refused
    }));
    drop(std::panic::take_hook());
    let refused = result.unwrap_or_else(|payload| std::panic::resume_unwind(payload));
    assert_eq!(refused.iter().map(|(share, _)| share).sum::<usize>(), MUTATIONS);
    let all: usize = refused.iter().map(|(_, refused)| refused).sum();
    assert!(all > MUTATIONS / 2, "only {all} were refused: {refused:?}");
}
