//! The transformer of LTX-Video and the denoiser around it.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sora::{
    device::Placement,
    models::{
        api::{ClipContext, Denoiser, Geometry, LatentGrid, TextStates, Timestep, TokenBlock},
        ltx::{
            denoiser::{LtxDenoiser, PositionRule},
            transformer::{LtxTransformer, Positions, TransformerConfig},
        },
    },
    weights::Weights,
};

use crate::support::{Fixture, Tolerance};

const EXACT: Tolerance = Tolerance { max_abs: 1e-5, cosine: 0.999_999_9 };

fn load(fixture: &Fixture, dtype: DType) -> LtxTransformer {
    let config =
        TransformerConfig::parse(&fixture.json("config").to_string(), Path::new("config.json")).unwrap();
    let place = Placement { device: Device::Cpu, dtype };
    let loader = Weights::from_tensors("fixture", fixture.weights()).loader(&place);
    let transformer = LtxTransformer::new(&config, &loader).unwrap();
    loader.finish(&[]).unwrap();
    transformer
}

fn numbers<const N: usize>(fixture: &Fixture, name: &str) -> [usize; N] {
    serde_json::from_value::<Vec<usize>>(fixture.json(name)).unwrap().try_into().unwrap()
}

fn grid(fixture: &Fixture) -> LatentGrid {
    let [frames, height, width] = numbers(fixture, "grid");
    LatentGrid { frames, height, width }
}

fn geometry(fixture: &Fixture) -> Geometry {
    let [temporal, spatial] = numbers(fixture, "ratios");
    Geometry { spatial, temporal, patch: 1, patch_t: 1, channels: 8 }
}

fn fps(fixture: &Fixture) -> f64 {
    fixture.json("fps").as_f64().unwrap()
}

/// Runs a fixture with a grid through the denoiser, as a pipeline does.
fn denoise(fixture: &Fixture, dtype: DType) -> Tensor {
    let mut denoiser = LtxDenoiser::new(load(fixture, dtype), geometry(fixture), PositionRule::LtxPipeline);
    let text = TextStates {
        states: fixture.tensor("in.text").to_dtype(dtype).unwrap(),
        mask: fixture.tensor("in.mask").clone(),
        cut: String::new(),
    };
    let clip = ClipContext {
        grid: grid(fixture),
        fps: fps(fixture),
        before: Vec::new(),
        origin: (0, 0),
        texts: vec![text],
    };
    denoiser.begin(&clip).unwrap();
    let time = fixture.tensor("in.time").to_vec1::<f32>().unwrap()[0];
    denoiser.velocity(fixture.tensor("in.tokens"), &Timestep::Shared(time), 0).unwrap()
}

#[test]
fn a_grid_and_a_padded_text() {
    let fixture = Fixture::open("transformer_grid");
    let expected = fixture.tensor("out.velocity");
    EXACT.check("f32", &denoise(&fixture, DType::F32), expected);
    let bf16 = denoise(&fixture, DType::BF16);
    assert_eq!(bf16.dtype(), DType::F32);
    Tolerance::BF16.check("bf16", &bf16, expected);
}

#[test]
fn norms_with_weights_and_a_width_that_six_does_not_divide() {
    let fixture = Fixture::open("transformer_affine");
    let expected = fixture.tensor("out.velocity");
    EXACT.check("f32", &denoise(&fixture, DType::F32), expected);
    Tolerance::BF16.check("bf16", &denoise(&fixture, DType::BF16), expected);
}

#[test]
fn coordinates_and_times_of_each_token() {
    let fixture = Fixture::open("transformer_coordinates");
    for (dtype, tolerance) in [(DType::F32, EXACT), (DType::BF16, Tolerance::BF16)] {
        let transformer = load(&fixture, dtype);
        let tokens = fixture.tensor("in.tokens");
        let text = transformer.text(fixture.tensor("in.text"), fixture.tensor("in.mask")).unwrap();
        let rotary = transformer.positions(fixture.tensor("in.coords")).unwrap();
        let times = transformer.times(fixture.tensor("in.time"), 30).unwrap();
        assert_eq!(times.distinct(), 3);
        let velocity = transformer.forward(tokens, &text, &times, &rotary).unwrap();
        tolerance.check(&format!("{dtype:?}"), &velocity, fixture.tensor("out.velocity"));
    }
}

#[test]
fn one_clip_of_a_batch_and_alone() {
    let fixture = Fixture::open("transformer_coordinates");
    let transformer = load(&fixture, DType::F32);
    let part = |name: &str| fixture.tensor(name).narrow(0, 1, 1).unwrap();
    let text = transformer.text(&part("in.text"), &part("in.mask")).unwrap();
    let rotary = transformer.positions(&part("in.coords").squeeze(0).unwrap()).unwrap();
    let times = transformer.times(&part("in.time"), 30).unwrap();
    let velocity = transformer.forward(&part("in.tokens"), &text, &times, &rotary).unwrap();
    EXACT.check("second clip", &velocity, &part("out.velocity"));
}

#[test]
fn threads_change_nothing() {
    let fixture = Fixture::open("transformer_grid");
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| denoise(&fixture, DType::F32).flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn padding_that_is_cut_has_no_weight() {
    let fixture = Fixture::open("transformer_grid");
    let transformer = load(&fixture, DType::F32);
    let rotary = transformer.positions(&coordinates(&fixture, PositionRule::LtxPipeline)).unwrap();
    let times = transformer.times(fixture.tensor("in.time"), 30).unwrap();
    let run = |mask: &Tensor, text: &Tensor| {
        let text = transformer.text(text, mask).unwrap();
        transformer.forward(fixture.tensor("in.tokens"), &text, &times, &rotary).unwrap()
    };
    let (mask, text) = (fixture.tensor("in.mask"), fixture.tensor("in.text"));
    // Padding in front can't be cut: the same text, the other way round, goes the long way.
    let order = Tensor::new(&[8u32, 7, 6, 5, 4, 3, 2, 1, 0], &Device::Cpu).unwrap();
    let turned = |t: &Tensor| t.index_select(&order, 1).unwrap();
    EXACT.check("padding in front", &run(&turned(mask), &turned(text)), &run(mask, text));
}

fn coordinates(fixture: &Fixture, rule: PositionRule) -> Tensor {
    rule.coordinates(TokenBlock { grid: grid(fixture), frame: 0 }, (0, 0), &geometry(fixture), fps(fixture))
        .unwrap()
}

#[test]
fn positions_at_the_published_width() {
    let fixture = Fixture::open("transformer_positions");
    let rotary = Positions::new(2048).table(fixture.tensor("in.coords"), &Device::Cpu).unwrap();
    // Turning (1, 0) gives (cos, sin) of each pair.
    let (cos, sin) = (fixture.tensor("out.cos"), fixture.tensor("out.sin"));
    let unit = Tensor::new(&[1f32, 0.0], &Device::Cpu).unwrap().broadcast_as((1, 4, 1024, 2)).unwrap();
    let turned = rotary.apply(&unit.reshape((1, 4, 2048)).unwrap()).unwrap();
    let pairs = |t: &Tensor| t.reshape((4, 1024, 2)).unwrap();
    let half = |t: &Tensor, i: usize| pairs(t).narrow(2, i, 1).unwrap();
    // Two of the reference's 341 frequencies are one unit in the last place off the true powers.
    let tolerance = Tolerance { max_abs: 3e-4, cosine: 0.999_999_9 };
    tolerance.check("cosines", &half(&turned, 0), &half(cos, 0));
    tolerance.check("sines", &half(&turned, 1), &half(sin, 0));
}

#[test]
fn both_rules_for_coordinates() {
    let fixture = Fixture::open("transformer_positions");
    let exact = Tolerance { max_abs: 0.0, cosine: 0.999_999_9 };
    let pixels = coordinates(&fixture, PositionRule::LtxConditionPipeline);
    exact.check("condition pipeline", &pixels, fixture.tensor("out.pixels"));
    let base = Tensor::new(&[[20f32], [2048.0], [2048.0]], &Device::Cpu).unwrap();
    let plain = coordinates(&fixture, PositionRule::LtxPipeline).broadcast_div(&base).unwrap();
    exact.check("plain pipeline", &plain, fixture.tensor("out.plain"));
}

#[test]
fn a_tile_keeps_its_place() {
    let geometry = Geometry { spatial: 32, temporal: 8, patch: 2, patch_t: 1, channels: 8 };
    let block = |height, width| TokenBlock { grid: LatentGrid { frames: 2, height, width }, frame: 0 };
    for rule in [PositionRule::LtxPipeline, PositionRule::LtxConditionPipeline] {
        let whole = rule.coordinates(block(4, 8), (0, 0), &geometry, /* fps */ 24.0).unwrap();
        let tile = rule.coordinates(block(2, 4), (2, 4), &geometry, /* fps */ 24.0).unwrap();
        // Two rows of four tokens a frame: the tile is the second half of the second.
        let at = Tensor::new(&[6u32, 7, 14, 15], &Device::Cpu).unwrap();
        let exact = Tolerance { max_abs: 0.0, cosine: 0.999_999_9 };
        exact.check(&format!("{rule:?}"), &tile, &whole.index_select(&at, 1).unwrap());
    }
}

#[test]
fn a_condition_brings_its_own_coordinates() {
    let fixture = Fixture::open("transformer_coordinates");
    let geometry = Geometry { spatial: 32, temporal: 8, patch: 1, patch_t: 1, channels: 8 };
    let block = |frames, frame| TokenBlock { grid: LatentGrid { frames, height: 2, width: 3 }, frame };
    let made = [block(1, 17), block(4, 0)].map(|block| {
        PositionRule::LtxConditionPipeline.coordinates(block, (0, 0), &geometry, /* fps */ 24.0).unwrap()
    });
    let exact = Tolerance { max_abs: 0.0, cosine: 0.999_999_9 };
    let expected = fixture.tensor("in.coords").get(0).unwrap();
    exact.check("a picture and the clip", &Tensor::cat(&made, 1).unwrap(), &expected);
}

#[test]
fn latents_as_tokens_and_back() {
    let fixture = Fixture::open("transformer_packing");
    let model = Fixture::open("transformer_grid");
    let latents = fixture.tensor("in.latents");
    let exact = Tolerance { max_abs: 0.0, cosine: 0.999_999_9 };
    for (patch, patch_t) in [(1, 1), (2, 1), (2, 2)] {
        let geometry = Geometry { spatial: 32, temporal: 8, patch, patch_t, channels: 3 };
        let denoiser = LtxDenoiser::new(load(&model, DType::F32), geometry, PositionRule::LtxPipeline);
        let tokens = denoiser.pack(latents).unwrap();
        exact.check("tokens", &tokens, fixture.tensor(&format!("out.tokens_{patch}_{patch_t}")));
        let grid = LatentGrid { frames: 4, height: 6, width: 8 };
        exact.check("latents", &denoiser.unpack(&tokens, grid).unwrap(), latents);
    }
}

#[test]
fn a_denoiser_is_asked_in_order() {
    let fixture = Fixture::open("transformer_grid");
    let mut denoiser =
        LtxDenoiser::new(load(&fixture, DType::F32), geometry(&fixture), PositionRule::LtxPipeline);
    let tokens = fixture.tensor("in.tokens");
    let error = denoiser.velocity(tokens, &Timestep::Shared(1.0), 0).unwrap_err().to_string();
    assert!(error.contains("before `begin`"), "{error}");
    denoiser
        .begin(&ClipContext {
            grid: grid(&fixture),
            fps: 25.0,
            before: Vec::new(),
            origin: (0, 0),
            texts: Vec::new(),
        })
        .unwrap();
    let error = denoiser.velocity(tokens, &Timestep::Shared(1.0), 0).unwrap_err().to_string();
    assert!(error.contains("text 0 was asked for, the clip has 0"), "{error}");
}
