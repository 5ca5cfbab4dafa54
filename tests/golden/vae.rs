//! The video autoencoder of every generation against the reference, and against itself.

use std::path::Path;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use sora::{
    Error, Result,
    device::Placement,
    models::{
        api::{
            DecodeNoise, DecodeOptions, LatentGrid, Posterior, Tiling, VideoDecoder as _, VideoEncoder as _,
        },
        ltx::vae::{Config, Decoder, LtxVideoDecoder, LtxVideoEncoder, decode_bytes},
    },
    weights::Weights,
};

use crate::support::{Fixture, Tolerance};

/// Hands out what the reference drew, in its order.
struct Drawn {
    latents: Tensor,
    layers: std::vec::IntoIter<Tensor>,
}

impl Drawn {
    fn new(fixture: &Fixture) -> Self {
        let count = fixture.json("drawn").as_u64().expect("a number");
        let layers: Vec<Tensor> =
            (0..count).map(|i| fixture.tensor(&format!("in.drawn.{i}")).clone()).collect();
        Self { latents: fixture.tensor("in.noise").clone(), layers: layers.into_iter() }
    }
}

impl DecodeNoise for Drawn {
    fn latents(&mut self, shape: &[usize]) -> Result<Tensor> {
        assert_eq!(self.latents.dims(), shape);
        Ok(self.latents.clone())
    }

    fn layer(&mut self, shape: &[usize]) -> Result<Tensor> {
        let noise = self.layers.next().expect("no more noise than the reference draws");
        assert_eq!(noise.dims(), shape);
        Ok(noise)
    }
}

fn config(fixture: &Fixture) -> Config {
    Config::from_json(&fixture.json("config").to_string(), Path::new("vae/config.json")).expect("a config")
}

fn weights(fixture: &Fixture) -> Weights {
    Weights::from_tensors("vae", fixture.weights())
}

fn place(dtype: DType) -> Placement {
    Placement { device: Device::Cpu, dtype }
}

fn encode(fixture: &Fixture, dtype: DType, tiling: &Tiling) -> Result<Tensor> {
    Ok(posterior(fixture, dtype, tiling)?.mean)
}

fn posterior(fixture: &Fixture, dtype: DType, tiling: &Tiling) -> Result<Posterior> {
    let loader = weights(fixture).loader(&place(dtype));
    let mut encoder = LtxVideoEncoder::new(&config(fixture), &loader)?;
    encoder.encode(fixture.tensor("in.video"), tiling)
}

/// Decodes and joins what was emitted: `[1, 3, F, H, W]`.
fn decode(fixture: &Fixture, dtype: DType, tiling: Tiling) -> Result<Tensor> {
    let loader = weights(fixture).loader(&place(dtype));
    let mut decoder = LtxVideoDecoder::new(&config(fixture), &loader)?;
    let given = fixture.json("options");
    let options = DecodeOptions {
        timestep: given["timestep"].as_f64().unwrap_or(0.0),
        noise_scale: given["noise_scale"].as_f64(),
        tiling,
    };
    let mut noise = Drawn::new(fixture);
    let mut parts = Vec::new();
    decoder.decode(fixture.tensor("in.latents"), &mut noise, &options, &mut |frames| {
        assert!((1..=8).contains(&frames.dim(1)?), "a few frames at a time");
        parts.push(frames.clone());
        Ok(())
    })?;
    assert_eq!(noise.layers.len(), 0, "all noise is drawn");
    Ok(Tensor::cat(&parts, 1)?.unsqueeze(0)?)
}

fn check(name: &str) {
    let fixture = Fixture::open(name);
    for (dtype, tolerance) in [(DType::F32, Tolerance::F32), (DType::BF16, Tolerance::BF16)] {
        let latents = posterior(&fixture, dtype, &Tiling::default()).expect("latents");
        tolerance.check(&format!("{name}, latents, {dtype:?}"), &latents.mean, fixture.tensor("out.latents"));
        let sampled = latents.sample(fixture.tensor("in.noise")).expect("a sample");
        tolerance.check(&format!("{name}, sample, {dtype:?}"), &sampled, fixture.tensor("out.sample"));
        let video = decode(&fixture, dtype, Tiling::default()).expect("a video");
        tolerance.check(&format!("{name}, video, {dtype:?}"), &video, fixture.tensor("out.video"));
    }
}

#[test]
fn generation_090() {
    check("vae_090");
}

#[test]
fn generation_091() {
    check("vae_091");
}

#[test]
fn generation_095() {
    check("vae_095");
}

#[test]
fn large_patches() {
    check("vae_patch8");
}

#[test]
fn tiles() {
    let fixture = Fixture::open("vae_tiled");
    let tiles: Tiling = serde_json::from_value(fixture.json("tiles")).expect("tiles");
    for (name, tiling) in [
        ("space", Tiling { temporal: None, ..tiles }),
        ("time", Tiling { spatial: None, ..tiles }),
        ("both", tiles),
    ] {
        let latents = encode(&fixture, DType::F32, &tiling).expect("latents");
        let expected = fixture.tensor(&format!("out.latents.{name}"));
        Tolerance::F32.check(&format!("latents tiled over {name}"), &latents, expected);
        let video = decode(&fixture, DType::F32, tiling).expect("a video");
        let expected = fixture.tensor(&format!("out.video.{name}"));
        Tolerance::F32.check(&format!("video tiled over {name}"), &video, expected);
    }
}

#[test]
fn threads_change_nothing() {
    for name in ["vae_090", "vae_095"] {
        let fixture = Fixture::open(name);
        let run = |threads| -> CandleResult<(Vec<f32>, Vec<f32>)> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                let latents = encode(&fixture, DType::F32, &Tiling::default()).expect("latents");
                let video = decode(&fixture, DType::F32, Tiling::default()).expect("a video");
                Ok((latents.flatten_all()?.to_vec1()?, video.flatten_all()?.to_vec1()?))
            })
        };
        assert!(run(1).expect("numbers") == run(2).expect("numbers"), "{name}");
    }
}

#[test]
fn tiles_with_enough_context_leave_no_trace() {
    let fixture = Fixture::open("vae_tiled");
    let whole = decode(&fixture, DType::F32, Tiling::default()).expect("a video");
    let tiles: Tiling = serde_json::from_value(fixture.json("tiles")).expect("tiles");
    let tiled = decode(&fixture, DType::F32, Tiling { context: 64, ..tiles }).expect("a video");
    Tolerance::F32.check("tiled", &tiled, &whole);
}

/// The same pictures of noise, in the same order, for any number of layers.
struct Counted(u32);

impl DecodeNoise for Counted {
    fn latents(&mut self, _: &[usize]) -> Result<Tensor> {
        unreachable!("only the pipeline asks for them")
    }

    fn layer(&mut self, shape: &[usize]) -> Result<Tensor> {
        self.0 += 1;
        let count = shape.iter().product::<usize>() as u32;
        let values: Vec<f32> =
            (0..count).map(|i| ((i * 37 + self.0 * 101) % 19) as f32 / 9.0 - 1.0).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}

#[test]
fn pieces_change_no_bit() {
    for name in ["vae_090", "vae_091", "vae_095", "vae_patch8"] {
        let fixture = Fixture::open(name);
        for causal in [false, true] {
            let config = Config { decoder_causal: causal, ..config(&fixture) };
            let loader = weights(&fixture).loader(&place(DType::F32));
            let decoder = Decoder::new(&config, &loader.pp("decoder")).expect("a decoder");
            let count = config.latent_channels * 11 * 2 * 3;
            let latents =
                Tensor::from_iter((0..count).map(|i| (i * 7919 % 211) as f32 / 105.0 - 1.0), &Device::Cpu)
                    .and_then(|t| t.reshape((config.latent_channels, 11, 2, 3)))
                    .expect("latents");
            let run = |piece: usize| {
                let (mut noise, mut parts) = (Counted(0), Vec::new());
                let mut keep = |part: Tensor| {
                    parts.push(part);
                    Ok(())
                };
                decoder.in_pieces(&latents, piece, 0.05, &mut noise, &mut keep).expect("a video");
                let video = Tensor::cat(&parts, 1).expect("one video");
                (parts.len(), noise.0, video.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("numbers"))
            };
            let (one, drawn, whole) = run(1000);
            assert_eq!(one, 1);
            for piece in [1, 2, 3, 5] {
                let (parts, noise, video) = run(piece);
                assert!(parts > 1 && noise == drawn && video == whole, "{name}, {causal}, {piece}: {parts}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let fixture = Fixture::open("vae_tiled");
    for tiles in [(16, 0), (16, 24), (20, 16), (16, 12)] {
        let tiling = Tiling { spatial: Some(tiles), ..Tiling::default() };
        assert!(matches!(decode(&fixture, DType::F32, tiling), Err(Error::Invalid { .. })), "{tiles:?}");
    }
    let loader = weights(&fixture).loader(&place(DType::F32));
    let mut encoder = LtxVideoEncoder::new(&config(&fixture), &loader).expect("an encoder");
    for shape in [(1, 3, 12, 24, 40), (1, 3, 13, 25, 40), (2, 3, 13, 24, 40), (1, 1, 13, 24, 40)] {
        let video = Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a video");
        let refused = encoder.encode(&video, &Tiling::default());
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{shape:?}");
    }
}

#[test]
fn unknown_configurations_are_refused() {
    let given = Fixture::open("vae_091").json("config");
    for (key, value) in [
        ("down_block_types", serde_json::json!(["LTXVideoDownBlock3D", "Other", "LTXVideoDownBlock3D"])),
        ("down_block_types", serde_json::json!([])),
        ("patch_size_t", serde_json::json!(2)),
        ("patch_size", serde_json::json!(0)),
        ("upsample_factor", serde_json::json!([2, 3])),
        ("upsample_factor", serde_json::json!([1, 1])),
        ("decoder_block_out_channels", serde_json::json!([8, 12])),
        ("decoder_layers_per_block", serde_json::json!([1, 1])),
        ("scaling_factor", serde_json::json!(0.0)),
        ("in_channels", serde_json::json!(4)),
    ] {
        let mut config = given.clone();
        config[key] = value.clone();
        let refused = Config::from_json(&config.to_string(), Path::new("config.json"));
        assert!(matches!(&refused, Err(Error::Config { .. })), "{key} = {value}: {refused:?}");
    }
    let refused = Config::from_json("{\"patch_size\": \"large\"}", Path::new("config.json"));
    assert!(matches!(refused, Err(Error::Damaged { .. })));
    assert_eq!(Config::from_json("{}", Path::new("")).expect("defaults"), Config::default());
}

#[test]
fn compression_ratios_are_the_class_s() {
    let fallback = Config::default();
    assert_eq!((fallback.spatial(), fallback.temporal()), (32, 8));
    let config = config(&Fixture::open("vae_patch8"));
    assert_eq!((config.spatial(), config.temporal()), (16, 2));
}

#[test]
fn long_clips_take_no_more_memory_than_short_ones_but_for_their_latents() {
    let bytes = |frames: usize, tiling: &Tiling| {
        let grid = LatentGrid { frames, height: 22, width: 40 };
        decode_bytes(&Config::default(), grid, &place(DType::F32), tiling)
    };
    let (short, long) = (bytes(16, &Tiling::default()), bytes(160, &Tiling::default()));
    assert!(long - short < 3 * 144 * 22 * 40 * 128 * 4 + 1, "{short}, {long}");
    let spatial = Tiling { spatial: Some((256, 192)), ..Tiling::default() };
    let both = Tiling { temporal: Some((16, 8)), ..spatial };
    let (whole, tiled, both) = (bytes(16, &Tiling::default()), bytes(16, &spatial), bytes(16, &both));
    assert!(whole > tiled && tiled > 2 * both, "{whole}, {tiled}, {both}");
}
