//! The stages of a render with the embedded model, at the size of its default clip, and that clip as a whole.
//!
//! ```sh
//! cargo bench --bench clips
//! ```

use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, criterion_main};
use sora::{
    app::{
        generate::{GenerateRequest, Job},
        outputs::Outputs,
    },
    error::{Error, Result},
    event::Silent,
    models::{
        api::{Checkpoint, ClipContext, DecodeNoise, DecodeOptions, Placement, Tiling, Timestep},
        registry,
        source::ModelSource,
    },
    video::VideoSpec,
};

const PROMPT: &str = "pirate ships in coffee";

/// The embedded model's decoder asks for none.
struct NoNoise;

impl DecodeNoise for NoNoise {
    fn latents(&mut self, _: &[usize]) -> Result<Tensor> {
        Err(Error::invalid("the decoder", "it asks for noise"))
    }

    fn layer(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.latents(shape)
    }
}

fn stages(c: &mut Criterion, checkpoint: &dyn Checkpoint) -> Result<()> {
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let info = checkpoint.info();
    let defaults = &info.defaults;
    let length = defaults.max_sequence_length;
    let spec = VideoSpec {
        width: defaults.width,
        height: defaults.height,
        frames: defaults.frames,
        fps: defaults.fps,
    };

    c.bench_function("text encoder: load", |b| b.iter(|| checkpoint.text_encoder(&place).map(|_| ())));
    let mut text = checkpoint.text_encoder(&place)?;
    c.bench_function("text encoder: a prompt", |b| b.iter(|| text.encode(PROMPT, length)));

    c.bench_function("denoiser: load", |b| b.iter(|| checkpoint.denoiser(&place).map(|_| ())));
    let mut denoiser = checkpoint.denoiser(&place)?;
    denoiser.begin(&ClipContext {
        grid: info.geometry.grid(&spec),
        fps: spec.fps,
        texts: vec![text.encode(PROMPT, length)?],
        before: Vec::new(),
        origin: (0, 0),
    })?;
    let latents = Tensor::randn(0f32, 1.0, info.geometry.latent_shape(&spec).as_slice(), &Device::Cpu)?;
    let tokens = denoiser.pack(&latents)?;
    c.bench_function("denoiser: one call", |b| {
        b.iter(|| denoiser.velocity(&tokens, &Timestep::Shared(700.0), /* branch */ 0))
    });

    c.bench_function("video decoder: load", |b| b.iter(|| checkpoint.video_decoder(&place).map(|_| ())));
    let mut decoder = checkpoint.video_decoder(&place)?;
    let options = DecodeOptions { timestep: 0.0, noise_scale: None, tiling: Tiling::default() };
    c.bench_function("video decoder: the clip", |b| {
        b.iter(|| decoder.decode(&latents, &mut NoNoise, &options, &mut |_| Ok(())))
    });
    Ok(())
}

/// All of a render but the start of a process.
fn render() -> Result<()> {
    let folder = tempfile::tempdir().map_err(|error| Error::invalid("a folder", error.to_string()))?;
    let target = Some(folder.path().join("clip.mp4").to_string_lossy().into());
    let request = GenerateRequest {
        prompt: PROMPT.into(),
        seed: Some(1),
        outputs: Outputs { target, ..Outputs::default() },
        ..GenerateRequest::default()
    };
    let mut job = Job::prepare(&request, &Silent)?;
    while job.next_clip()?.is_some() {}
    Ok(())
}

fn bench(c: &mut Criterion) {
    let checkpoint = registry::open(&ModelSource::Embedded).expect("the embedded model");
    stages(c, checkpoint.as_ref()).expect("stages of the default clip");
    let mut few = c.benchmark_group("whole");
    few.sample_size(10);
    few.bench_function("the default clip, to MP4", |b| b.iter(|| render().expect("a clip")));
    few.finish();
}

mod group {
    use super::bench;
    criterion::criterion_group!(benches, bench);
}

criterion_main!(group::benches);
