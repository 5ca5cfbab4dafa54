//! The step cache: what the reference's hook gives, and what it must never change.

use candle_core::Tensor;
use sora::{
    Result,
    event::{Event, Reporter},
    models::api::{
        CallCount, Denoiser, Guidance, Pass, PerStep, ScheduleSpec, SigmaSource, Skip, SkipMode, Stg,
        Timestep,
    },
    pipeline::{
        denoise::{Denoised, Plan, denoise},
        guidance::GuidancePlan,
        noise::Noise,
        sigmas::Schedule,
        tiled::Tiled,
    },
};

use crate::{
    guidance::{EXACT, GEOMETRY, GRID, clip, denoiser},
    support::Fixture,
};

const STEPS: usize = 24;

/// Hears what the cache has left out, and stops after so many steps.
#[derive(Default)]
struct Ear {
    stop_at: Option<u64>,
    heard: std::sync::Mutex<Option<(u64, u64)>>,
}

impl Reporter for Ear {
    fn emit(&self, event: &Event) -> std::ops::ControlFlow<()> {
        match event {
            Event::Cached { skipped, calls } => *self.heard.lock().unwrap() = Some((*skipped, *calls)),
            Event::Progress { done, .. } if self.stop_at == Some(*done) => {
                return std::ops::ControlFlow::Break(());
            }
            _ => {}
        }
        std::ops::ControlFlow::Continue(())
    }
}

/// A run under two prompts, from `start` on; what came of it, and what the cache has left out of how many calls.
fn run(
    model: &mut dyn Denoiser,
    guidance: &Guidance,
    cache: Option<f64>,
    from: Option<&Denoised>,
    stop_at: Option<u64>,
) -> Result<(Denoised, Option<(u64, u64)>)> {
    let fixture = Fixture::open("guidance_skipping");
    let spec = ScheduleSpec {
        config: serde_json::json!({ "shift": 2.0 }),
        path: "scheduler_config.json".into(),
        source: SigmaSource::Linear,
    };
    let schedule = Schedule::of_pass(&spec, &Pass { steps: STEPS, ..Pass::default() }, 24)?;
    let guidance = GuidancePlan::new(guidance, &schedule, 3)?;
    let (latents, start) = match from {
        Some(from) => (from.latents.clone(), from.finished_steps),
        None => (model.unpack(fixture.tensor("in.tokens"), GRID)?, 0),
    };
    let texts = clip(&fixture, &["negative", "positive"]);
    let plan = Plan { schedule: &schedule, guidance: &guidance, start, held: None, cache };
    let ear = Ear { stop_at, ..Ear::default() };
    let done = denoise(model, &texts, &latents, &plan, &mut Noise::new(0), &ear, &mut |_| Ok(()))?;
    let heard = *ear.heard.lock().unwrap();
    Ok((done, heard))
}

fn guidance() -> Guidance {
    Guidance { scale: PerStep::All(3.0), ..Guidance::default() }
}

/// With a branch that leaves a block out, and steps that have none of the negative one.
fn three_branches() -> Guidance {
    let stg = Stg { scale: PerStep::All(1.0), blocks: PerStep::All(vec![1]), ..Stg::default() };
    let scale = (0..STEPS).map(|step| if step % 5 == 4 { 1.0 } else { 3.0 }).collect();
    Guidance { scale: PerStep::Each(scale), stg, ..Guidance::default() }
}

fn model() -> sora::models::ltx::denoiser::LtxDenoiser {
    denoiser(&Fixture::open("guidance_skipping"))
}

fn tiled() -> Tiled<'static> {
    Tiled::new(Box::new(model()), "64x64:32".parse().unwrap(), GEOMETRY)
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn it_gives_what_the_references_hook_gives() {
    let fixture = Fixture::open("step_cache");
    assert_eq!(fixture.json("steps"), serde_json::json!(STEPS));
    let thresholds: Vec<f64> = serde_json::from_value(fixture.json("thresholds")).unwrap();
    let skipped: Vec<u64> = serde_json::from_value(fixture.json("skipped")).unwrap();
    for (number, (threshold, skipped)) in thresholds.into_iter().zip(skipped).enumerate() {
        let mut model = model();
        let (done, heard) = run(&mut model, &guidance(), Some(threshold), None, None).unwrap();
        assert_eq!(heard, Some((skipped, 2 * STEPS as u64)), "at {threshold}");
        let expected = model.unpack(fixture.tensor(&format!("out.tokens.{number}")), GRID).unwrap();
        EXACT.check(&format!("at {threshold}"), &done.latents, &expected);
    }
}

#[test]
fn a_tiny_threshold_changes_nothing_and_a_huge_one_leaves_the_first_step() {
    for guidance in [guidance(), three_branches()] {
        let (plain, heard) = run(&mut model(), &guidance, None, None, None).unwrap();
        assert_eq!(heard, None, "nothing is said of a cache that is off");
        let (tiny, heard) = run(&mut model(), &guidance, Some(1e-9), None, None).unwrap();
        assert_eq!(values(&tiny.latents), values(&plain.latents));
        assert_eq!(heard.unwrap().0, 0);
        let (huge, heard) = run(&mut model(), &guidance, Some(1e9), None, None).unwrap();
        assert_ne!(values(&huge.latents), values(&plain.latents));
        let (skipped, calls) = heard.unwrap();
        let branches = 2 + u64::from(guidance.stg.blocks != PerStep::All(Vec::new()));
        assert_eq!(calls - skipped, branches, "each branch is computed once");
    }
    let (plain, _) = run(&mut tiled(), &guidance(), None, None, None).unwrap();
    let (tiny, heard) = run(&mut tiled(), &guidance(), Some(1e-9), None, None).unwrap();
    assert_eq!(values(&tiny.latents), values(&plain.latents));
    // Three columns of two cells, and two rows: each tile has a cache of its own.
    let (_, huge) = run(&mut tiled(), &guidance(), Some(1e9), None, None).unwrap();
    let tiles = heard.unwrap().1 / (2 * STEPS as u64);
    assert_eq!((tiles, huge), (6, Some((6 * 2 * (STEPS as u64 - 1), 6 * 2 * STEPS as u64))));
}

#[test]
fn branches_know_nothing_of_each_other() {
    let fixture = Fixture::open("guidance_skipping");
    let skip = Skip { blocks: vec![1], mode: SkipMode::AttentionSkip };
    // Two steps that are near to each other, then far ones.
    let times = [900.0, 898.0, 700.0, 698.0, 500.0, 498.0, 300.0, 298.0];
    let asked: Vec<(Tensor, Timestep)> = times
        .iter()
        .map(|&time| {
            let tokens = (fixture.tensor("in.tokens") * f64::from(time / 900.0)).unwrap();
            (tokens, Timestep::Shared(time))
        })
        .collect();
    // Every branch alone, then all in turns.
    let ask = |model: &mut dyn Denoiser, branch: usize, step: usize| {
        let (tokens, time) = &asked[step];
        match branch {
            2 => model.perturbed(tokens, time, 1, &skip).unwrap(),
            _ => model.velocity(tokens, time, branch).unwrap(),
        }
    };
    let begun = || {
        let mut model = model();
        model.begin(&clip(&fixture, &["negative", "positive"])).unwrap();
        model.step_cache().unwrap().begin(Some(0.2));
        model
    };
    let (mut alone, mut skipped) = (vec![Vec::new(); 3], 0);
    for (branch, said) in alone.iter_mut().enumerate() {
        let mut model = begun();
        said.extend((0..8).map(|step| values(&ask(&mut model, branch, step))));
        skipped += model.step_cache().unwrap().count().skipped;
    }
    let (mut together, mut model) = (vec![Vec::new(); 3], begun());
    for step in 0..8 {
        for (branch, said) in together.iter_mut().enumerate() {
            said.push(values(&ask(&mut model, branch, step)));
        }
    }
    assert_eq!(together, alone);
    assert_eq!(model.step_cache().unwrap().count(), CallCount { skipped, all: 24 });
    assert!((1..21).contains(&skipped), "{skipped} of 24 calls say nothing");
}

#[test]
fn a_stopped_run_that_goes_on_is_the_whole_run() {
    for guidance in [guidance(), three_branches()] {
        for threshold in [0.1, 0.3, 0.6] {
            let (whole, _) = run(&mut model(), &guidance, Some(threshold), None, None).unwrap();
            let mut model = model();
            for stop_at in 1..STEPS as u64 {
                let (first, _) = run(&mut model, &guidance, Some(threshold), None, Some(stop_at)).unwrap();
                assert!(first.cancelled && (first.finished_steps as u64) < stop_at);
                let (rest, _) = run(&mut model, &guidance, Some(threshold), Some(&first), None).unwrap();
                assert_eq!(values(&rest.latents), values(&whole.latents), "{threshold}, step {stop_at}");
            }
        }
    }
}

#[test]
fn threads_change_nothing() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (done, heard) = run(&mut model(), &three_branches(), Some(0.3), None, None).unwrap();
            (values(&done.latents), heard)
        })
    };
    assert_eq!(run(1), run(2));
}
