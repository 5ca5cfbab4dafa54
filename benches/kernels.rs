//! The kernels that a render spends its time in, at the sizes of the embedded model.
//!
//! ```sh
//! cargo bench --bench kernels
//! ```

use candle_core::{Device, Result, Tensor};
use criterion::{Criterion, criterion_main};
use sora::nn::{
    activation::gelu_tanh,
    attention::attention,
    conv3d::{Conv3d, ConvShape},
};

fn noise(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu)
}

fn kernels(c: &mut Criterion) -> Result<()> {
    let (q, k, v) = (noise(&[1, 8, 320, 32])?, noise(&[1, 8, 320, 32])?, noise(&[1, 8, 320, 32])?);
    c.bench_function("attention 8 × 320 × 32", |b| {
        b.iter(|| attention(&q, &k, &v, None, 32f64.powf(-0.5)))
    });
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
