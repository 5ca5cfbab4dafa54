//! The kernels that a render spends its time in, at the sizes of the embedded model.
//!
//! ```sh
//! cargo bench --bench kernels
//! ```

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use criterion::{Criterion, criterion_main};
use sora::nn::{
    Linear,
    activation::gelu_tanh,
    attention::attention,
    conv3d::{Conv3d, ConvShape},
};
use sora::{
    device::Placement,
    weights::{Format, Save, Weights},
};

fn noise(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

fn kernels(c: &mut Criterion) -> Result<()> {
    let (q, k, v) = (noise(&[1, 8, 320, 32])?, noise(&[1, 8, 320, 32])?, noise(&[1, 8, 320, 32])?);
    c.bench_function("attention 8 × 320 × 32", |b| {
        b.iter(|| attention(&q, &k, &v, None, 32f64.powf(-0.5)))
    });
    for (tokens, into, out) in [(320, 256, 1024), (256, 2048, 8192), (1120, 2048, 2048), (1120, 8192, 2048)] {
        let name = format!("linear, bf16, {tokens} × {into} → {out}");
        let tensors = HashMap::from([("weight".to_owned(), noise(&[out, into])?)]);
        let weights = Weights::from_tensors("bench", tensors);
        let loader = weights.loader(&Placement { device: Device::Cpu, dtype: DType::BF16 });
        let linear = Linear::new(into, out, false, &loader).expect("a weight of this shape");
        let x = noise(&[tokens, into])?;
        let half = x.to_dtype(DType::BF16)?;
        c.bench_function(&name, |b| b.iter(|| linear.forward(&half)));
        let plain = noise(&[out, into])?;
        c.bench_function(&format!("candle's matmul, f32, {tokens} × {into} → {out}"), |b| {
            b.iter(|| x.matmul(&plain.t()?))
        });
    }
    let (q, k, v) = (noise(&[1, 32, 1120, 64])?, noise(&[1, 32, 1120, 64])?, noise(&[1, 32, 1120, 64])?);
    c.bench_function("attention 32 × 1120 × 64", |b| b.iter(|| attention(&q, &k, &v, None, 0.125)));
    let folder = tempfile::tempdir()?;
    for format in [Format::Q8_0, Format::Q4K] {
        let path = folder.path().join(format!("{format}.gguf"));
        let tensors = HashMap::from([("weight".to_owned(), noise(&[2048, 2048])?)]);
        let weights = Weights::from_tensors("bench", tensors);
        Save { architecture: "bench", format, ..Save::new(&weights) }.write(&path).expect("a file");
        let weights = Weights::open_files(&[path]).expect("the file");
        let loader = weights.loader(&Placement { device: Device::Cpu, dtype: DType::F32 });
        let linear = Linear::new(2048, 2048, false, &loader).expect("a weight of this shape");
        for tokens in [256, 1120] {
            let x = noise(&[tokens, 2048])?;
            let name = format!("linear, {format}, {tokens} × 2048 → 2048");
            c.bench_function(&name, |b| b.iter(|| linear.forward(&x)));
        }
    }
    let x = noise(&[320, 1024])?;
    c.bench_function("gelu 320 × 1024", |b| b.iter(|| gelu_tanh(&x)));
    let (weight, bias) = (noise(&[256, 64, 3, 3, 3])?, noise(&[256])?);
    let conv =
        Conv3d::new(&weight, &bias, ConvShape::cube(3, 1, /* causal */ false)).expect("a valid kernel");
    let clip = noise(&[9, 16, 16, 64])?;
    c.bench_function("conv3d 64 → 256, 9 × 16 × 16", |b| b.iter(|| conv.forward(&clip)));
    Ok(())
}

fn bench(c: &mut Criterion) {
    kernels(c).expect("tensors of fixed shapes");
}

mod group {
    use super::bench;
    criterion::criterion_group!(benches, bench);
}

criterion_main!(group::benches);
