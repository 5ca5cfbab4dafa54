//! What the large stages of a published model take on this machine, on the weights and inputs that
//! `benches/pytorch.py` writes: one JSON line, and the result beside the inputs.
//!
//! ```sh
//! cargo run --release --example stages -- FOLDER transformer bf16 256 3   # f32|bf16, tokens, repetitions
//! cargo run --release --example stages -- FOLDER vae-0.9.5 f32 256x256x25 3
//! cargo run --release --example stages -- FOLDER linear bf16 1120x2048x8192 3   # tokens, numbers in and out
//! cargo run --release --example stages -- FOLDER vae-0.9.5 f32 256x256x97 0     # memory alone
//! ```

use std::{collections::HashMap, path::Path, time::Instant};

use candle_core::{DType, Device, Tensor};
use sora::{
    device::Placement,
    models::{
        api::{DecodeNoise, DecodeOptions, VideoDecoder},
        ltx::{
            transformer::{LtxTransformer, TransformerConfig},
            vae::{Config, LtxVideoDecoder},
        },
    },
    nn::Linear,
    weights::Weights,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, stage, dtype, size, times] = words.as_slice() else {
        return Err("expected: FOLDER transformer|linear|vae-0.9.0|vae-0.9.5 f32|bf16 SIZE TIMES".into());
    };
    let folder = Path::new(folder);
    let place = Placement {
        device: Device::Cpu,
        dtype: match dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            other => return Err(format!("dtype `{other}`: expected f32 or bf16").into()),
        },
    };
    let input = folder.join(format!("input-{stage}-{size}.safetensors"));
    let input = candle_core::safetensors::load(input, &Device::Cpu)?;
    let weights = Weights::open(&folder.join(stage), "diffusion_pytorch_model", None)?;
    let config = folder.join(stage).join("config.json");
    let text = std::fs::read_to_string(&config);
    let loader = weights.loader(&place);
    let take = |key: &str| input.get(key).cloned().ok_or(format!("no input `{key}`"));
    let times: usize = times.parse()?;
    let (seconds, made) = if stage == "linear" {
        let sizes: Vec<usize> = size.split('x').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [_, d_in, d_out] = sizes[..] else { return Err("expected TOKENSxINxOUT".into()) };
        let linear = Linear::new(d_in, d_out, /* bias */ true, &loader)?;
        let x = take("x")?.to_dtype(place.dtype)?;
        measure(times, || Ok(linear.forward(&x)?))?
    } else if stage == "transformer" {
        let model = LtxTransformer::new(&TransformerConfig::parse(&text?, &config)?, &loader)?;
        let rotary = model.positions(&take("coordinates")?)?;
        let tokens = take("tokens")?;
        let count = tokens.dim(1)?;
        let (states, mask, time) = (take("states")?, take("mask")?, take("timestep")?);
        measure(times, || {
            // The reference projects the text in every step; here that is once a clip, but the same work is timed.
            let text = model.text(&states, &mask)?;
            let time = model.times(&time, count)?;
            Ok(model.forward(&tokens, &text, &time, &rotary)?)
        })?
    } else {
        let mut decoder = LtxVideoDecoder::new(&Config::from_json(&text?, &config)?, &loader)?;
        let latents = take("latents")?;
        // The noise of a decoder with a timestep has no share here, and the timestep is 0.
        let options = DecodeOptions { noise_scale: Some(0.0), ..DecodeOptions::default() };
        measure(times, || {
            let mut frames = Vec::new();
            decoder.decode(&latents, &mut Silence, &options, &mut |video| {
                // Without repetitions, memory alone is measured, as a render takes it, which keeps no frame.
                if times > 0 || frames.is_empty() {
                    frames.push(video.clone());
                }
                Ok(())
            })?;
            Ok(Tensor::cat(&frames, 1)?)
        })?
    };
    let out = folder.join(format!("sora-{stage}-{size}-{dtype}.safetensors"));
    let made = HashMap::from([("made", made.to_dtype(DType::F32)?.contiguous()?)]);
    candle_core::safetensors::save(&made, out)?;
    println!("{}", serde_json::json!({ "seconds": seconds, "peak_mib": peak_mib() }));
    Ok(())
}

/// The seconds of each time after a first one that doesn't count, and what was made.
fn measure(times: usize, mut run: impl FnMut() -> Result<Tensor>) -> Result<(Vec<f64>, Tensor)> {
    let mut made = run()?;
    let mut seconds = Vec::new();
    for _ in 0..times {
        let clock = Instant::now();
        made = run()?;
        seconds.push(clock.elapsed().as_secs_f64());
    }
    Ok((seconds, made))
}

/// The most memory that this process has held, as Linux tells it.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

struct Silence;

impl DecodeNoise for Silence {
    fn latents(&mut self, shape: &[usize]) -> sora::Result<Tensor> {
        Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
    }

    fn layer(&mut self, shape: &[usize]) -> sora::Result<Tensor> {
        Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
    }
}
