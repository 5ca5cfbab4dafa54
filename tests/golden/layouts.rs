//! What a configuration says of a file, and what a file says of its configuration.

use std::{collections::BTreeMap, path::Path};

use sora::{
    models::{
        ltx::{transformer::TransformerConfig, vae},
        t5,
    },
    weights::{Audit, Weights},
};

use crate::support::Fixture;

const VAES: [&str; 5] = ["vae_090", "vae_091", "vae_095", "vae_patch8", "vae_tiled"];

fn shapes(fixture: &Fixture) -> BTreeMap<String, Vec<usize>> {
    fixture.weights().into_iter().map(|(key, value)| (key, value.dims().to_vec())).collect()
}

fn weights(fixture: &Fixture) -> Weights {
    Weights::from_tensors("fixture", fixture.weights())
}

#[test]
fn autoencoders_hold_what_their_configurations_say() {
    for name in VAES {
        let fixture = Fixture::open(name);
        let config = vae::Config::from_json(&fixture.json("config").to_string(), Path::new(name)).unwrap();
        let mut audit = Audit::listing();
        config.expect_decoder(&mut audit).unwrap();
        config.expect_encoder(&mut audit).unwrap();
        assert_eq!(audit.listed(), shapes(&fixture), "{name}");
    }
}

#[test]
fn autoencoders_are_told_from_their_tensors() {
    for name in VAES {
        let fixture = Fixture::open(name);
        let config = vae::Config::from_json(&fixture.json("config").to_string(), Path::new(name)).unwrap();
        let said = serde_json::json!({
            "causal_decoder": config.decoder_causal, "scaling_factor": config.scaling_factor
        });
        let found = vae::Config::infer(&weights(&fixture), Some(&said), Path::new(name)).unwrap();
        assert_eq!(found.up_blocks().unwrap(), config.up_blocks().unwrap(), "{name}");
        assert_eq!(found.down_blocks().unwrap(), config.down_blocks().unwrap(), "{name}");
        assert_eq!(found.decoder_layers(0).unwrap(), config.decoder_layers(0).unwrap(), "{name}");
        assert_eq!(found.injects_noise(0).unwrap(), config.injects_noise(0).unwrap(), "{name}");
        assert_eq!(found.layers_per_block.last(), config.layers_per_block.last(), "{name}");
        assert_eq!(
            (found.latent_channels, found.patch_size, found.timestep_conditioning, found.decoder_causal),
            (config.latent_channels, config.patch_size, config.timestep_conditioning, config.decoder_causal),
            "{name}"
        );
        assert_eq!(found.is_095(), config.is_095(), "{name}");
        let decoder =
            weights(&fixture).renamed(|key| (!key.starts_with("encoder.")).then(|| key.into())).unwrap();
        let found = vae::Config::infer(&decoder, Some(&said), Path::new(name)).unwrap();
        assert_eq!(found.up_blocks().unwrap(), config.up_blocks().unwrap(), "{name}");
    }
}

#[test]
fn transformers_hold_what_their_configurations_say() {
    for name in ["transformer_grid", "transformer_affine", "transformer_coordinates"] {
        let fixture = Fixture::open(name);
        let json = fixture.json("config");
        let config = TransformerConfig::parse(&json.to_string(), Path::new(name)).unwrap();
        let mut audit = Audit::listing();
        config.expect(&mut audit).unwrap();
        assert_eq!(audit.listed(), shapes(&fixture), "{name}");
        let found = TransformerConfig::infer(&weights(&fixture), Some(&json), Path::new(name)).unwrap();
        let patches = TransformerConfig { patch_size: 1, patch_size_t: 1, ..config };
        assert_eq!(
            found,
            TransformerConfig { out_channels: Some(patches.out_channels()), ..patches },
            "{name}"
        );
    }
}

#[test]
fn encoders_hold_what_their_configurations_say() {
    let fixture = Fixture::open("t5");
    let json = fixture.json("config").to_string();
    let config = t5::Config::parse(Path::new("t5"), json.as_bytes()).unwrap();
    let weights = weights(&fixture);
    let mut audit = Audit::new(&weights);
    config.expect(&mut audit).unwrap();
    audit.finish("", &t5::IGNORED).unwrap();
    let found = t5::Config::infer(&weights, Path::new("t5")).unwrap();
    let same = t5::Config {
        relative_attention_max_distance: config.relative_attention_max_distance,
        layer_norm_epsilon: config.layer_norm_epsilon,
        ..found
    };
    assert_eq!(same, config);
}
