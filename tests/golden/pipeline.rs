//! Noise, sigmas and steps against torch and the reference's scheduler.

use sora::pipeline::noise::TorchRng;

use crate::support::Fixture;

/// Bits, as integers that lie as far apart as the floats have floats between them.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| (x + 0.0).to_bits()).collect()
}

#[test]
fn noise_is_torchs_bit_for_bit() {
    let fixture = Fixture::open("noise");
    let seeds: Vec<u64> = serde_json::from_value::<Vec<String>>(fixture.json("seeds"))
        .expect("seeds")
        .iter()
        .map(|seed| seed.parse().expect("a seed"))
        .collect();
    let draws: Vec<usize> = serde_json::from_value(fixture.json("draws")).expect("draws");
    let expected = |name: String| fixture.tensor(&name).to_vec1::<f32>().expect("f32");
    for (i, &seed) in seeds.iter().enumerate() {
        let draw =
            |size: usize| TorchRng::new(seed).randn(&[size]).expect("noise").to_vec1::<f32>().expect("f32");
        for size in (1..=40).chain([100, 1000]) {
            assert_eq!(
                bits(&draw(size)),
                bits(&expected(format!("out.{i}.{size}"))),
                "seed {seed}, {size} values"
            );
        }
        let long = draw(100_003);
        let tail = expected(format!("out.{i}.100003.tail"));
        assert_eq!(bits(&long[long.len() - tail.len()..]), bits(&tail), "seed {seed}, a long draw");
        let mut rng = TorchRng::new(seed);
        let row: Vec<f32> = draws
            .iter()
            .flat_map(|&size| rng.randn(&[size]).expect("noise").to_vec1::<f32>().expect("f32"))
            .collect();
        assert_eq!(bits(&row), bits(&expected(format!("out.{i}.row"))), "seed {seed}, draws in a row");
    }
}
