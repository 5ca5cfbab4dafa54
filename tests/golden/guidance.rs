//! Spatio-temporal guidance, and guidance that changes on the way.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sora::{
    device::Placement,
    event::Silent,
    models::{
        api::{
            ClipContext, Denoiser, Geometry, Guidance, LatentGrid, Pass, ScheduleSpec, SigmaSource, Skip,
            SkipMode, TextStates, Timestep,
        },
        ltx::{
            denoiser::{LtxDenoiser, PositionRule},
            transformer::{LtxTransformer, TransformerConfig},
        },
    },
    pipeline::{
        denoise::{Plan, denoise},
        guidance::GuidancePlan,
        noise::Noise,
        sigmas::Schedule,
    },
    weights::Weights,
};

use crate::support::{Fixture, Tolerance};

pub const EXACT: Tolerance = Tolerance { max_abs: 3e-5, cosine: 0.999_999_9 };
pub const GRID: LatentGrid = LatentGrid { frames: 2, height: 3, width: 4 };
pub const GEOMETRY: Geometry = Geometry { spatial: 32, temporal: 8, patch: 1, patch_t: 1, channels: 6 };

pub fn denoiser(fixture: &Fixture) -> LtxDenoiser {
    assert_eq!(fixture.json("grid"), serde_json::json!([2, 3, 4]));
    let config = fixture.json("config").to_string();
    let config = TransformerConfig::parse(&config, Path::new("config.json")).unwrap();
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let loader = Weights::from_tensors("fixture", fixture.weights()).loader(&place);
    let transformer = LtxTransformer::new(&config, &loader).unwrap();
    LtxDenoiser::new(transformer, GEOMETRY, PositionRule::LtxPipeline)
}

pub fn clip(fixture: &Fixture, texts: &[&str]) -> ClipContext {
    let text = |name: &&str| TextStates {
        states: fixture.tensor(&format!("in.{name}")).clone(),
        mask: fixture.tensor("in.mask").clone(),
        cut: String::new(),
    };
    let fps = fixture.json("fps").as_f64().unwrap();
    ClipContext {
        grid: GRID,
        fps,
        texts: texts.iter().map(text).collect(),
        before: Vec::new(),
        origin: (0, 0),
    }
}

#[test]
fn blocks_are_skipped_as_the_reference_skips_them() {
    let fixture = Fixture::open("guidance_skipping");
    let mut denoiser = denoiser(&fixture);
    denoiser.begin(&clip(&fixture, &["positive"])).unwrap();
    let skips: Vec<(SkipMode, Vec<usize>)> = serde_json::from_value(fixture.json("skips")).unwrap();
    let (tokens, time) = (fixture.tensor("in.tokens"), Timestep::Shared(612.5));
    for (number, (mode, blocks)) in skips.into_iter().enumerate() {
        let skip = Skip { blocks, mode };
        let velocity = denoiser.perturbed(tokens, &time, 0, &skip).unwrap();
        EXACT.check(&format!("{skip:?}"), &velocity, fixture.tensor(&format!("out.skipped.{number}")));
    }
}

#[test]
fn guidance_changes_on_the_way() {
    let fixture = Fixture::open("guidance_skipping");
    let mut denoiser = denoiser(&fixture);
    let guidance: Guidance = serde_json::from_value(fixture.json("guidance")).unwrap();
    let steps = serde_json::from_value(fixture.json("steps")).unwrap();
    let spec = ScheduleSpec {
        config: fixture.json("scheduler"),
        path: "scheduler_config.json".into(),
        source: SigmaSource::Linear,
    };
    let schedule = Schedule::of_pass(&spec, &Pass { steps, ..Pass::default() }, 24).unwrap();
    let guidance = GuidancePlan::new(&guidance, &schedule, 3).unwrap();
    let latents: Tensor = denoiser.unpack(fixture.tensor("in.tokens"), GRID).unwrap();
    let texts = clip(&fixture, &["negative", "positive"]);
    let plan = Plan { schedule: &schedule, guidance: &guidance, start: 0, held: None, cache: None };
    let mut rng = Noise::new(0);
    let done = denoise(&mut denoiser, &texts, &latents, &plan, &mut rng, &Silent, &mut |_| Ok(())).unwrap();
    let expected = denoiser.unpack(fixture.tensor("out.tokens"), GRID).unwrap();
    EXACT.check("six steps", &done.latents, &expected);
}
