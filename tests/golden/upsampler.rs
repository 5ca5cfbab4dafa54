//! The latent upsamplers, and what happens between two passes.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use sora::{
    device::Placement,
    models::{
        api::{LatentStatistics, LatentUpsampler, Upsample},
        ltx::upsampler::{Upsampler, UpsamplerConfig},
    },
    pipeline::upsample::upsample,
    weights::Weights,
};

use crate::support::{Fixture, Tolerance};

const EXACT: Tolerance = Tolerance { max_abs: 2e-5, cosine: 0.999_999_9 };

fn load(fixture: &Fixture, dtype: DType) -> Upsampler {
    let config = fixture.json("config").to_string();
    let config = UpsamplerConfig::parse(&config, Path::new("config.json")).unwrap();
    let loader =
        Weights::from_tensors("fixture", fixture.weights()).loader(&Placement { device: Device::Cpu, dtype });
    let network = Upsampler::new(&config, &loader).unwrap();
    loader.finish(&[]).unwrap();
    network
}

#[test]
fn every_kind_of_network() {
    for name in ["upsampler_spatial", "upsampler_temporal", "upsampler_both", "upsampler_frames"] {
        let fixture = Fixture::open(name);
        let expected = fixture.tensor("out.latents").squeeze(0).unwrap();
        let latents = fixture.tensor("in.latents").squeeze(0).unwrap();
        EXACT.check(name, &load(&fixture, DType::F32).forward(&latents).unwrap(), &expected);
        let bf16 = load(&fixture, DType::BF16).forward(&latents).unwrap();
        Tolerance::BF16.check(&format!("{name} with 16-bit weights"), &bf16, &expected);
    }
}

struct Network(Upsampler);

impl LatentUpsampler for Network {
    fn upsample(&mut self, latents: &Tensor) -> sora::Result<Tensor> {
        Ok(self.0.forward(&latents.squeeze(0)?)?.unsqueeze(0)?)
    }
}

#[test]
fn between_two_passes() {
    let fixture = Fixture::open("upsampler_spatial");
    let factor = fixture.json("factor").as_f64().unwrap();
    let statistics = LatentStatistics {
        mean: fixture.tensor("in.mean").clone(),
        std: fixture.tensor("in.std").clone(),
        factor,
    };
    let mut network = Network(load(&fixture, DType::F32));
    let runs = fixture.json("runs");
    for (name, factors) in runs.as_object().unwrap() {
        let how = Upsample { adain: factors[0].as_f64().unwrap(), tone_map: factors[1].as_f64().unwrap() };
        let made = upsample(&mut network, fixture.tensor("in.latents"), &statistics, &how).unwrap();
        EXACT.check(name, &made, fixture.tensor(&format!("out.between.{name}")));
    }
}
