//! Noise, sigmas and steps against torch and the reference's scheduler.

use sora::{
    models::api::{ScheduleSpec, SigmaSource, Skip, SkipMode, Timestep},
    pipeline::{guidance::StepGuidance, noise::TorchRng, sigmas::Schedule},
};

use crate::support::{Fixture, Tolerance};

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

fn numbers(fixture: &Fixture, name: &str) -> Vec<f32> {
    fixture.tensor(name).to_vec1().expect("f32")
}

#[derive(serde::Deserialize)]
struct Case {
    config: serde_json::Value,
    source: String,
    steps: usize,
    cells: usize,
    timesteps: Option<Vec<f32>>,
}

fn spec(config: serde_json::Value, source: SigmaSource) -> ScheduleSpec {
    ScheduleSpec { config, path: "scheduler_config.json".into(), source }
}

#[test]
fn schedules_are_the_references() {
    let fixture = Fixture::open("sigmas");
    let cases: Vec<Case> = serde_json::from_value(fixture.json("cases")).expect("cases");
    for (i, case) in cases.into_iter().enumerate() {
        let Case { config, source, steps, cells, timesteps } = case;
        let what = format!("{source}, {steps} steps, {cells} cells, timesteps {timesteps:?}, {config}");
        let source = if source == "Linear" { SigmaSource::Linear } else { SigmaSource::LinearQuadratic };
        let schedule =
            Schedule::new(&spec(config, source), steps, timesteps.as_deref(), cells).expect("a schedule");
        for (name, actual) in [("sigmas", &schedule.sigmas), ("timesteps", &schedule.timesteps)] {
            let expected = numbers(&fixture, &format!("out.{i}.{name}"));
            assert_eq!(actual.len(), expected.len(), "{what}: {name}");
            for (a, b) in actual.iter().zip(&expected) {
                let apart = f64::from((a - b).abs()) / f64::from(b.abs()).max(f64::MIN_POSITIVE);
                assert!(apart <= 1e-6, "{what}: {name} {actual:?}, expected {expected:?}");
            }
        }
    }
}

/// Runs all steps of the fixture's velocities and compares every sample.
fn run(fixture: &Fixture, name: &str, schedule: &Schedule, times: impl Fn(f32) -> Timestep) {
    let tight = Tolerance { max_abs: 1e-6, cosine: 0.999_999_9 };
    let mut sample = fixture.tensor("in.start").clone();
    let velocities = fixture.tensor("in.velocities");
    let mut rng = TorchRng::new(serde_json::from_value(fixture.json("seed")).expect("a seed"));
    for step in 0..schedule.steps() {
        let velocity = velocities.narrow(0, step, 1).expect("a velocity");
        let span = schedule.span(step, &times(schedule.timesteps[step])).expect("a span");
        sample = if schedule.stochastic {
            let noise = rng.randn(sample.dims()).expect("noise");
            span.renoise(&sample, &velocity, &noise).expect("a step")
        } else {
            span.advance(&sample, &velocity).expect("a step")
        };
        tight.check(&format!("{name}, step {step}"), &sample, fixture.tensor(&format!("out.{name}.{step}")));
    }
}

#[test]
fn steps_are_the_schedulers() {
    let fixture = Fixture::open("solver");
    let steps = serde_json::from_value(fixture.json("steps")).expect("steps");
    let mut config = fixture.json("config");
    let plain =
        Schedule::new(&spec(config.clone(), SigmaSource::Linear), steps, None, 6).expect("a schedule");
    run(&fixture, "plain", &plain, Timestep::Shared);

    let given: Vec<f32> = serde_json::from_value(fixture.json("timesteps")).expect("timesteps");
    let own = spec(config.clone(), SigmaSource::LinearQuadratic);
    let own = Schedule::new(&own, 0, Some(&given), 6).expect("a schedule");
    run(&fixture, "time", &own, Timestep::Shared);
    let held = fixture.tensor("in.held");
    run(&fixture, "token", &own, |t| Timestep::PerToken(held.minimum(f64::from(t)).expect("times")));

    config["stochastic_sampling"] = true.into();
    let stochastic = Schedule::new(&spec(config, SigmaSource::Linear), steps, None, 6).expect("a schedule");
    run(&fixture, "stochastic", &stochastic, Timestep::Shared);
}

#[test]
fn guidance_is_the_pipelines() {
    let fixture = Fixture::open("solver");
    let velocities = fixture.tensor("in.velocities");
    let (a, b) = (velocities.narrow(0, 0, 1).expect("one"), velocities.narrow(0, 1, 1).expect("one"));
    for (scale, rescale) in [(3.0, 0.0), (7.5, 0.7), (1.5, 1.0)] {
        let step = StepGuidance {
            scale,
            rescale,
            star: false,
            stg: 0.0,
            stg_rescale: 0.0,
            skip: Skip { blocks: Vec::new(), mode: SkipMode::default() },
        };
        let guided = step.join(b.clone(), Some(&a), None).expect("guided");
        let name = format!("out.guided.{scale:?}.{rescale:?}");
        Tolerance { max_abs: 3e-6, cosine: 0.999_999_9 }.check(&name, &guided, fixture.tensor(&name));
    }
}
