//! The one denoise loop.

use std::{ops::ControlFlow, time::Instant};

use candle_core::Tensor;

use super::{guidance::Guidance, noise::TorchRng, sigmas::Schedule, solver::Span};
use crate::{
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    models::api::{ClipContext, Denoiser, LatentGrid, Timestep},
};

/// What the loop follows.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The noise levels.
    pub schedule: &'a Schedule,
    /// How strongly the prompt pulls; with it on, the clip's texts are (negative, positive).
    pub guidance: Guidance,
    /// The step to begin with: 0, or as many as are done already.
    pub start: usize,
}

/// What the loop leaves.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// `[1, C, F, H, W]`, f32: as the denoiser leaves them, normalised.
    pub latents: Tensor,
    /// Steps of the schedule that are done, those before `start` included.
    pub finished_steps: usize,
    /// Whether the reporter asked to stop: the latents are those after `finished_steps`.
    pub cancelled: bool,
}

/// A look at the loop right after a step.
pub struct Step<'a> {
    /// Steps that are done now.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// Draws that this run's steps have taken from the global generator.
    pub draws: usize,
    model: &'a dyn Denoiser,
    grid: LatentGrid,
    span: &'a Span,
    before: &'a Tensor,
    velocity: &'a Tensor,
    after: &'a Tensor,
}

impl Step<'_> {
    /// The latents now, `[1, C, F, H, W]`, f32: enough to go on from later.
    pub fn latents(&self) -> Result<Tensor> {
        self.model.unpack(self.after, self.grid)
    }

    /// What the clip would become if this step's velocity held to the end, `[1, C, F, H, W]`, f32.
    pub fn estimate(&self) -> Result<Tensor> {
        self.model.unpack(&self.span.clean(self.before, self.velocity)?, self.grid)
    }
}

/// Called after each step: for early looks and for saving what is done.
pub type StepHook<'a> = dyn FnMut(&Step<'_>) -> Result<()> + 'a;

/// Takes latents `[1, C, F, H, W]`, f32, on the model's device, from the start of step `plan.start` to the end.
///
/// One event a step; a reporter that answers `Break` gets the current step finished and the latents back.
/// `noise` is drawn from by stochastic schedules only, once a step.
pub fn denoise(
    model: &mut dyn Denoiser,
    clip: &ClipContext,
    latents: &Tensor,
    plan: &Plan<'_>,
    noise: &mut TorchRng,
    reporter: &dyn Reporter,
    hook: &mut StepHook<'_>,
) -> Result<Denoised> {
    let branches = if plan.guidance.is_on() { 2 } else { 1 };
    if clip.texts.len() != branches {
        let found = clip.texts.len();
        return Err(Error::invalid(format!("{found} encoded prompts"), format!("expected {branches}")));
    }
    model.begin(clip)?;
    let mut tokens = model.pack(latents)?;
    let total = plan.schedule.steps();
    let progress =
        |done: usize| Event::Progress { phase: Phase::Denoise, done: done as u64, total: total as u64 };
    let clock = Instant::now();
    let mut finished_steps = plan.start;
    let mut go_on = reporter.emit(&Event::Started { phase: Phase::Denoise, total: total as u64 });
    if go_on.is_continue() && plan.start > 0 {
        go_on = reporter.emit(&progress(plan.start));
    }
    while finished_steps < total && go_on.is_continue() {
        let step = finished_steps;
        let timestep = Timestep::Shared(plan.schedule.timesteps[step]);
        let mut velocity = model.velocity(&tokens, &timestep, 0)?;
        if plan.guidance.is_on() {
            velocity = plan.guidance.join(&velocity, &model.velocity(&tokens, &timestep, 1)?)?;
        }
        let span = plan.schedule.span(step, &timestep)?;
        let after = if plan.schedule.stochastic {
            let fresh = noise.randn(tokens.dims())?.to_device(tokens.device())?;
            span.renoise(&tokens, &velocity, &fresh)?
        } else {
            span.advance(&tokens, &velocity)?
        };
        finished_steps += 1;
        hook(&Step {
            done: finished_steps,
            total,
            draws: if plan.schedule.stochastic { finished_steps - plan.start } else { 0 },
            model,
            grid: clip.grid,
            span: &span,
            before: &tokens,
            velocity: &velocity,
            after: &after,
        })?;
        tokens = after;
        go_on = reporter.emit(&progress(finished_steps));
    }
    let cancelled = go_on == ControlFlow::Break(());
    if !cancelled {
        // Nothing is left that an answer could stop.
        let _ = reporter.emit(&Event::Finished { phase: Phase::Denoise, elapsed: clock.elapsed() });
    }
    Ok(Denoised { latents: model.unpack(&tokens, clip.grid)?, finished_steps, cancelled })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;
    use crate::{
        event::Silent,
        models::api::{ScheduleSpec, SigmaSource, TextStates},
        pipeline::fake::{Recorder, Towards},
    };

    const GRID: LatentGrid = LatentGrid { frames: 2, height: 3, width: 2 };

    fn schedule(config: serde_json::Value, steps: usize) -> Schedule {
        let spec = ScheduleSpec { config, path: "scheduler_config.json".into(), source: SigmaSource::Linear };
        Schedule::new(&spec, steps, None, 12).expect("a schedule")
    }

    fn clip(targets: &[f32]) -> ClipContext {
        let text = |&target: &f32| {
            let states = Tensor::full(target, (1, 1, 1), &Device::Cpu).expect("states");
            TextStates { mask: states.squeeze(2).expect("a mask"), states, cut: String::new() }
        };
        ClipContext { grid: GRID, fps: 8.0, texts: targets.iter().map(text).collect() }
    }

    fn start() -> Tensor {
        TorchRng::new(3).randn(&[1, 2, 2, 3, 2]).expect("noise")
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().expect("flat").to_vec1().expect("f32")
    }

    fn all_near(x: &Tensor, expected: f32) {
        assert_eq!(x.dims(), [1, 2, 2, 3, 2]);
        assert!(values(x).iter().all(|v| (v - expected).abs() < 1e-4), "{x}, expected {expected}");
    }

    /// Runs and gives what came of it, and the model with the record of its calls.
    fn run(schedule: &Schedule, scale: f64, targets: &[f32]) -> (Denoised, Towards) {
        let mut model = Towards::new();
        let plan = Plan { schedule, guidance: Guidance { scale, rescale: 0.0 }, start: 0 };
        let mut rng = TorchRng::new(9);
        let mut hook = |_: &Step<'_>| Ok(());
        let done = denoise(&mut model, &clip(targets), &start(), &plan, &mut rng, &Silent, &mut hook);
        (done.expect("a run"), model)
    }

    #[test]
    fn ends_at_the_data_and_asks_for_each_branch() {
        let schedule = schedule(json!({ "shift": 2.0 }), 3);
        let (alone, model) = run(&schedule, 1.0, &[7.0]);
        all_near(&alone.latents, 7.0);
        assert_eq!((alone.finished_steps, alone.cancelled), (3, false));
        assert_eq!(model.calls, schedule.timesteps.iter().map(|&t| (t, 0)).collect::<Vec<_>>());
        // −1 under the negative prompt, 2 under the prompt, three times the way from the one to the other.
        let (guided, model) = run(&schedule, 3.0, &[-1.0, 2.0]);
        all_near(&guided.latents, 8.0);
        assert_eq!(model.calls.iter().map(|call| call.1).collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_stochastic_run_ends_at_the_data() {
        let (done, _) = run(&schedule(json!({ "stochastic_sampling": true }), 4), 1.0, &[5.0]);
        all_near(&done.latents, 5.0);
    }

    #[test]
    fn refuses_the_wrong_number_of_texts() {
        let schedule = schedule(json!({}), 2);
        let plan = Plan { schedule: &schedule, guidance: Guidance { scale: 3.0, rescale: 0.0 }, start: 0 };
        let (mut model, mut rng) = (Towards::new(), TorchRng::new(0));
        let error = denoise(&mut model, &clip(&[1.0]), &start(), &plan, &mut rng, &Silent, &mut |_| Ok(()));
        assert_eq!(error.expect_err("refused").to_string(), "invalid 1 encoded prompts: expected 2");
    }

    #[test]
    fn stopped_and_gone_on_is_the_whole_run() {
        for config in [json!({ "shift": 3.0 }), json!({ "stochastic_sampling": true })] {
            let schedule = schedule(config, 5);
            let guidance = Guidance { scale: 2.0, rescale: 0.5 };
            let texts = clip(&[1.0, 4.0]);
            let go = |rng: &mut TorchRng, start: usize, latents: &Tensor, stop_at: Option<u64>| {
                let recorder = Recorder { stop_at, ..Recorder::default() };
                let plan = Plan { schedule: &schedule, guidance, start };
                let mut seen = Vec::new();
                let mut hook = |step: &Step<'_>| {
                    seen.push((step.done, values(&step.latents()?)));
                    Ok(())
                };
                let done = denoise(&mut Towards::new(), &texts, latents, &plan, rng, &recorder, &mut hook);
                (done.expect("a run"), seen, recorder.script())
            };
            let mut rng = TorchRng::new(9);
            let (first, seen_first, script) = go(&mut rng, 0, &start(), Some(2));
            assert_eq!((first.finished_steps, first.cancelled), (2, true));
            assert_eq!(script, ["denoise 0/5", "denoise 1/5", "denoise 2/5"]);
            let (second, seen_second, script) = go(&mut rng, 2, &first.latents, None);
            assert_eq!((second.finished_steps, second.cancelled), (5, false));
            assert_eq!(
                script,
                ["denoise 0/5", "denoise 2/5", "denoise 3/5", "denoise 4/5", "denoise 5/5", "denoise done"]
            );
            let (whole, seen, _) = go(&mut TorchRng::new(9), 0, &start(), None);
            assert_eq!(values(&whole.latents), values(&second.latents));
            assert_eq!(seen, [seen_first, seen_second].concat());
        }
    }

    #[test]
    fn the_estimate_is_the_data_all_along() {
        let schedule = schedule(json!({}), 4);
        let plan = Plan { schedule: &schedule, guidance: Guidance { scale: 1.0, rescale: 0.0 }, start: 0 };
        let mut steps = 0;
        let mut hook = |step: &Step<'_>| {
            all_near(&step.estimate()?, 6.0);
            steps += 1;
            assert_eq!((step.done, step.total), (steps, 4));
            Ok(())
        };
        let (mut model, mut rng) = (Towards::new(), TorchRng::new(0));
        denoise(&mut model, &clip(&[6.0]), &start(), &plan, &mut rng, &Silent, &mut hook).expect("a run");
        assert_eq!(steps, 4);
    }
}
