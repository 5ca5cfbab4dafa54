//! What conditions make of a render's tokens, against the reference's own preparation.

use candle_core::{DType, Device, Tensor};
use sora::{
    Result,
    models::api::{
        ClipContext, Conditioning, Denoiser, Geometry, LatentGrid, Posterior, Skip, Timestep, TokenBlock,
    },
    models::ltx::denoiser::PositionRule,
    pipeline::{
        conditions::{Condition, Conditions, Content},
        held::{Given, start},
        noise::TorchRng,
        pan::Pan,
    },
    video::VideoSpec,
};

use crate::support::{Fixture, Tolerance};

const GEOMETRY: Geometry = Geometry { spatial: 32, temporal: 8, patch: 1, patch_t: 1, channels: 4 };

/// A model that lays tokens out and does nothing else.
struct Layout;

impl Denoiser for Layout {
    fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
    }

    fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor> {
        let (b, _, c) = tokens.dims3()?;
        Ok(tokens.transpose(1, 2)?.reshape((b, c, grid.frames, grid.height, grid.width))?)
    }

    fn begin(&mut self, _: &ClipContext) -> Result<()> {
        Ok(())
    }

    fn velocity(&mut self, tokens: &Tensor, _: &Timestep, _: usize) -> Result<Tensor> {
        Ok(tokens.zeros_like()?)
    }

    fn perturbed(&mut self, tokens: &Tensor, _: &Timestep, _: usize, _: &Skip) -> Result<Tensor> {
        Ok(tokens.zeros_like()?)
    }
}

#[test]
fn conditions_become_the_references_tokens() {
    let fixture = Fixture::open("conditions");
    let asked: Vec<(usize, usize, f64)> = serde_json::from_value(fixture.json("asked")).expect("conditions");
    let [width, height]: [usize; 2] = serde_json::from_value(fixture.json("size")).expect("a size");
    let frames = serde_json::from_value(fixture.json("frames")).expect("a number");
    let spec = VideoSpec { width, height, frames, fps: 24.0 };
    let list = asked.iter().enumerate().map(|(i, &(_, frame, strength))| {
        let part = |name: &str| fixture.tensor(&format!("in.{i}.{name}")).clone();
        let content = Content::Encoded(Posterior { mean: part("mean"), std: part("std") });
        Condition { content, frame, strength }
    });
    let conditions = Conditions { list: list.collect(), ..Conditions::default() };
    let mut rng = TorchRng::new(serde_json::from_value(fixture.json("seed")).expect("a seed"));
    let given = Given { conditions: &conditions, latents: None, clean: None, pan: &Pan::default() };
    let made = start(given, Conditioning::Beside, &GEOMETRY, &spec, 1.0, &Layout, &mut rng).expect("a start");
    let held = made.held.expect("something is held");
    let exact = Tolerance { max_abs: 1e-6, cosine: 0.999_999_9 };
    exact.check("tokens", held.initial(), fixture.tensor("out.tokens"));
    assert_eq!(fixture.json("beside"), held.beside());

    let grid = GEOMETRY.grid(&spec);
    let blocks = made.before.iter().copied().chain([TokenBlock { grid, frame: 0 }]);
    let rule = PositionRule::LtxConditionPipeline;
    let coords =
        blocks.map(|block| rule.coordinates(block, (0, 0), &GEOMETRY, /* fps */ 1.0).expect("coordinates"));
    let coords = Tensor::cat(&coords.collect::<Vec<_>>(), 1).expect("all tokens");
    exact.check("coordinates", &coords, &fixture.tensor("out.coords").get(0).expect("one clip"));

    let times: Vec<f32> = serde_json::from_value(fixture.json("times")).expect("times");
    let mut current = fixture.tensor("in.current").clone();
    for (i, &time) in times.iter().enumerate() {
        let expected = |name: &str| fixture.tensor(&format!("out.{i}.{name}"));
        let Timestep::PerToken(of_each) = held.times(time).expect("times") else {
            panic!("each token has its own time")
        };
        exact.check(&format!("times at {time}"), &of_each, expected("times"));
        let noised = held.renoise(&current, time, &mut rng).expect("tokens");
        exact.check(&format!("noised at {time}"), &noised, expected("noised"));
        let stepped = (&noised + 1.0).expect("tokens");
        current = held.keep(&noised, &stepped, time).expect("tokens");
        exact.check(&format!("kept at {time}"), &current, expected("kept"));
    }
}

#[test]
fn a_first_frame_is_drawn_before_the_noise() {
    let mean = Tensor::zeros((1, 4, 1, 2, 3), DType::F32, &Device::Cpu).expect("zeros");
    let std = mean.ones_like().expect("ones");
    let content = Content::Encoded(Posterior { mean, std });
    let conditions =
        Conditions { list: vec![Condition { content, frame: 0, strength: 1.0 }], ..Conditions::default() };
    let spec = VideoSpec { width: 96, height: 64, frames: 17, fps: 24.0 };
    let given = Given { conditions: &conditions, latents: None, clean: None, pan: &Pan::default() };
    let (mut rng, mut plain) = (TorchRng::new(5), TorchRng::new(5));
    let made = start(given, Conditioning::FirstFrame, &GEOMETRY, &spec, 1.0, &Layout, &mut rng);
    let latents = made.expect("a start").latents;
    let first = plain.randn(&[1, 4, 1, 2, 3]).expect("noise");
    let rest = plain.randn(&[1, 4, 3, 2, 3]).expect("noise");
    let exact = Tolerance { max_abs: 0.0, cosine: 0.999_999_9 };
    exact.check("first frame", &latents.narrow(2, 0, 1).expect("a frame"), &first);
    let part = |x: &Tensor| x.narrow(2, 1, 2).expect("frames");
    exact.check("the rest", &part(&latents), &part(&rest));
}
