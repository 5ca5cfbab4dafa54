//! The one denoise loop.

use std::{ops::ControlFlow, time::Instant};

use candle_core::Tensor;

use super::{
    guidance::{GuidancePlan, StepGuidance},
    held::Held,
    noise::{Drawn, Noise},
    sigmas::Schedule,
    solver::Span,
};
use crate::{
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    models::api::{CallCount, ClipContext, Denoiser, LatentGrid, Timestep},
};

/// What the loop follows.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The noise levels.
    pub schedule: &'a Schedule,
    /// How each step is guided; where any has a negative branch, the clip's texts are (negative, positive).
    pub guidance: &'a GuidancePlan,
    /// The step to begin with: 0, or as many as are done already.
    pub start: usize,
    /// Tokens that are held, on the model's device; the clip's context says where those before its own are.
    pub held: Option<&'a Held>,
    /// Threshold of the step cache; nothing means that every step is full.
    pub cache: Option<f64>,
}

/// What the loop leaves.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// `[1, C, F, H, W]`, f32: as the denoiser leaves them, normalised.
    pub latents: Tensor,
    /// `[1, E, D]`, f32: the tokens beside the clip's, where there are any.
    pub beside: Option<Tensor>,
    /// Steps of the schedule that are done, those before `start` included.
    pub finished_steps: usize,
    /// Whether the reporter asked to stop: the latents are those after `finished_steps`. With a step cache these are
    /// the steps before the last one that was wholly computed, so that who goes on from there gets the same.
    pub cancelled: bool,
    /// What had been drawn from the seed by then.
    pub drawn: Drawn,
}

/// A place in the loop that can be gone on from without anything else.
struct Point {
    done: usize,
    /// `[1, E + L, D]`, f32.
    tokens: Tensor,
    drawn: Drawn,
}

/// A look at the loop right after a step.
pub struct Step<'a> {
    /// Steps that are done now.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    model: &'a dyn Denoiser,
    grid: LatentGrid,
    /// Tokens before the clip's own.
    beside: usize,
    saved: &'a Point,
    span: &'a Span,
    before: &'a Tensor,
    velocity: &'a Tensor,
}

impl Step<'_> {
    /// Steps that are done in what can be saved: those that are done now, or with a step cache those before the last
    /// step that was wholly computed.
    #[must_use]
    pub fn saved(&self) -> usize {
        self.saved.done
    }

    /// What had been drawn from the seed after [`Step::saved`] steps.
    #[must_use]
    pub fn drawn(&self) -> Drawn {
        self.saved.drawn.clone()
    }

    /// `[1, E, D]`, f32: the tokens beside the clip's after [`Step::saved`] steps, where there are any.
    pub fn beside(&self) -> Result<Option<Tensor>> {
        let tokens = &self.saved.tokens;
        Ok(if self.beside > 0 { Some(tokens.narrow(1, 0, self.beside)?) } else { None })
    }

    /// The latents after [`Step::saved`] steps, `[1, C, F, H, W]`, f32: enough to go on from later.
    pub fn latents(&self) -> Result<Tensor> {
        unpack(self.model, &self.saved.tokens, self.beside, self.grid)
    }

    /// What the clip would become if this step's velocity held to the end, `[1, C, F, H, W]`, f32.
    pub fn estimate(&self) -> Result<Tensor> {
        unpack(self.model, &self.span.clean(self.before, self.velocity)?, self.beside, self.grid)
    }
}

/// Called after each step: for early looks and for saving what is done.
pub type StepHook<'a> = dyn FnMut(&Step<'_>) -> Result<()> + 'a;

/// Takes latents `[1, C, F, H, W]`, f32, on the model's device, from the start of step `plan.start` to the end.
///
/// One event a step; a reporter that answers `Break` gets the current step finished and the latents back.
/// Its `global` part is drawn from by stochastic schedules, its `clip` part for what is held, once a step each.
pub fn denoise(
    model: &mut dyn Denoiser,
    clip: &ClipContext,
    latents: &Tensor,
    plan: &Plan<'_>,
    noise: &mut Noise,
    reporter: &dyn Reporter,
    hook: &mut StepHook<'_>,
) -> Result<Denoised> {
    let branches = if plan.guidance.has_negative() { 2 } else { 1 };
    if clip.texts.len() != branches {
        let found = clip.texts.len();
        return Err(Error::invalid(format!("{found} encoded prompts"), format!("expected {branches}")));
    }
    model.begin(clip)?;
    begin_cache(model, plan.cache)?;
    let beside = plan.held.map_or(0, Held::beside);
    let mut tokens = model.pack(latents)?;
    if let Some(held) = plan.held {
        tokens = held.join(tokens)?;
    }
    let total = plan.schedule.steps();
    let progress =
        |done: usize| Event::Progress { phase: Phase::Denoise, done: done as u64, total: total as u64 };
    let clock = Instant::now();
    let mut finished_steps = plan.start;
    let mut saved = Point { done: plan.start, tokens: tokens.clone(), drawn: noise.drawn() };
    let mut go_on = reporter.emit(&Event::Started { phase: Phase::Denoise, total: total as u64 });
    if go_on.is_continue() && plan.start > 0 {
        go_on = reporter.emit(&progress(plan.start));
    }
    while finished_steps < total && go_on.is_continue() {
        let step = finished_steps;
        let time = plan.schedule.timesteps[step];
        let begun = Point { done: step, tokens: tokens.clone(), drawn: noise.drawn() };
        let timestep = match plan.held {
            Some(held) => held.times(time)?,
            None => Timestep::Shared(time),
        };
        if let Some(held) = plan.held {
            tokens = held.renoise(&tokens, time, &mut noise.clip)?;
        }
        let cache = model.step_cache().filter(|_| plan.cache.is_some());
        cache.into_iter().for_each(|cache| cache.turn_to_step(step));
        let velocity = guided(model, &tokens, &timestep, plan.guidance.at(step), branches - 1)?;
        let span = plan.schedule.span(step, &timestep)?;
        let mut after = if plan.schedule.stochastic {
            let fresh = match plan.held {
                Some(held) => held.fresh(model, &tokens, clip.grid, &mut noise.global)?,
                None => noise.global.randn(tokens.dims())?,
            };
            span.renoise(&tokens, &velocity, &fresh.to_device(tokens.device())?)?
        } else {
            span.advance(&tokens, &velocity)?
        };
        if let Some(held) = plan.held {
            after = held.keep(&tokens, &after, time)?;
        }
        finished_steps += 1;
        // What the cache holds can't be saved: with it a step is gone on from that fills it anew.
        match model.step_cache().filter(|_| plan.cache.is_some() && finished_steps < total) {
            None => saved = Point { done: finished_steps, tokens: after.clone(), drawn: noise.drawn() },
            Some(cache) if cache.is_of_this_step() => saved = begun,
            Some(_) => {}
        }
        hook(&Step {
            done: finished_steps,
            total,
            model,
            grid: clip.grid,
            beside,
            saved: &saved,
            span: &span,
            before: &tokens,
            velocity: &velocity,
        })?;
        tokens = after;
        go_on = reporter.emit(&progress(finished_steps));
    }
    end_cache(model, plan.cache, reporter);
    let cancelled = go_on == ControlFlow::Break(());
    if !cancelled {
        // Nothing is left that an answer could stop.
        let _ = reporter.emit(&Event::Finished { phase: Phase::Denoise, elapsed: clock.elapsed() });
    }
    let Point { done: finished_steps, tokens, drawn } = saved;
    let latents = unpack(model, &tokens, beside, clip.grid)?;
    let beside = if beside > 0 { Some(tokens.narrow(1, 0, beside)?) } else { None };
    Ok(Denoised { latents, beside, finished_steps, cancelled, drawn })
}

/// Empties the model's step cache, and sets its threshold.
fn begin_cache(model: &mut dyn Denoiser, threshold: Option<f64>) -> Result<()> {
    match (model.step_cache(), threshold) {
        (Some(cache), _) => cache.begin(threshold),
        (None, None) => {}
        (None, Some(threshold)) => {
            let what = format!("step cache {threshold}");
            return Err(Error::invalid(what, "this model can't work with one").with_hint("leave out --cache"));
        }
    }
    Ok(())
}

/// Says what the step cache has left out, and empties it.
fn end_cache(model: &mut dyn Denoiser, threshold: Option<f64>, reporter: &dyn Reporter) {
    let Some(cache) = model.step_cache().filter(|_| threshold.is_some()) else { return };
    let CallCount { skipped, all } = cache.count();
    cache.begin(None);
    // The step that may stop the loop has had its answer.
    let _ = reporter.emit(&Event::Cached { skipped: skipped as u64, calls: all as u64 });
}

/// The latents of the clip, whose tokens come after `beside` others.
fn unpack(model: &dyn Denoiser, tokens: &Tensor, beside: usize, grid: LatentGrid) -> Result<Tensor> {
    model.unpack(&tokens.narrow(1, beside, tokens.dim(1)? - beside)?, grid)
}

/// The velocity of all branches of a step; `positive` is the number of the prompt's own.
fn guided(
    model: &mut dyn Denoiser,
    tokens: &Tensor,
    timestep: &Timestep,
    guidance: &StepGuidance,
    positive: usize,
) -> Result<Tensor> {
    let negative = match guidance.has_negative() {
        true => Some(model.velocity(tokens, timestep, 0)?),
        false => None,
    };
    let velocity = model.velocity(tokens, timestep, positive)?;
    let perturbed = match guidance.has_perturbed() {
        true if guidance.skip.blocks.is_empty() => Some(velocity.clone()),
        true => Some(model.perturbed(tokens, timestep, positive, &guidance.skip)?),
        false => None,
    };
    guidance.join(velocity, negative.as_ref(), perturbed.as_ref())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;

    use super::*;
    use crate::{
        event::Silent,
        models::api::{Guidance, PerStep, ScheduleSpec, SigmaSource, TextStates},
        pipeline::fake::{Recorder, Towards},
    };

    const GRID: LatentGrid = LatentGrid { frames: 2, height: 3, width: 2 };

    fn schedule(config: serde_json::Value, steps: usize) -> Schedule {
        let spec = ScheduleSpec { config, path: "scheduler_config.json".into(), source: SigmaSource::Linear };
        Schedule::new(&spec, steps, None, 12).expect("a schedule")
    }

    fn guide(scale: f64, rescale: f64, schedule: &Schedule) -> GuidancePlan {
        let guidance = Guidance { scale: PerStep::All(scale), rescale, ..Guidance::default() };
        GuidancePlan::new(&guidance, schedule, 3).expect("a plan")
    }

    fn clip(targets: &[f32]) -> ClipContext {
        let text = |&target: &f32| {
            let states = Tensor::full(target, (1, 1, 1), &Device::Cpu).expect("states");
            TextStates { mask: states.squeeze(2).expect("a mask"), states, cut: String::new() }
        };
        ClipContext {
            grid: GRID,
            fps: 8.0,
            texts: targets.iter().map(text).collect(),
            before: Vec::new(),
            origin: (0, 0),
        }
    }

    fn start() -> Tensor {
        Noise::new(3).clip.randn(&[1, 2, 2, 3, 2]).expect("noise")
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
        let plan =
            Plan { schedule, guidance: &guide(scale, 0.0, schedule), start: 0, held: None, cache: None };
        let mut rng = Noise::new(9);
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
    fn each_step_has_the_branches_that_its_guidance_asks_for() {
        let schedule = schedule(json!({}), 3);
        let guidance: Guidance = serde_json::from_value(json!({
            "scale": [1, 3, 1], "stg": { "scale": [0, 0, 0.5], "blocks": [0, 2] },
        }))
        .expect("a guidance");
        let guidance = GuidancePlan::new(&guidance, &schedule, 3).expect("a plan");
        let plan = Plan { schedule: &schedule, guidance: &guidance, start: 0, held: None, cache: None };
        let (mut model, mut rng) = (Towards::new(), Noise::new(0));
        let texts = clip(&[-1.0, 2.0]);
        let done = denoise(&mut model, &texts, &start(), &plan, &mut rng, &Silent, &mut |_| Ok(()));
        // The last step is half as far again from what lies two below the data.
        all_near(&done.expect("a run").latents, 2.0 + 0.5 * 2.0);
        assert_eq!(model.calls.iter().map(|call| call.1).collect::<Vec<_>>(), [1, 0, 1, 1, 1]);
    }

    #[test]
    fn a_model_without_a_step_cache_says_so() {
        let schedule = schedule(json!({}), 2);
        let guidance = guide(1.0, 0.0, &schedule);
        let plan = Plan { schedule: &schedule, guidance: &guidance, start: 0, held: None, cache: Some(0.05) };
        let (mut model, mut rng) = (Towards::new(), Noise::new(0));
        let error = denoise(&mut model, &clip(&[1.0]), &start(), &plan, &mut rng, &Silent, &mut |_| Ok(()));
        let error = error.expect_err("refused").to_string();
        assert_eq!(error, "invalid step cache 0.05: this model can't work with one");
        assert!(model.calls.is_empty());
    }

    #[test]
    fn a_stochastic_run_ends_at_the_data() {
        let (done, _) = run(&schedule(json!({ "stochastic_sampling": true }), 4), 1.0, &[5.0]);
        all_near(&done.latents, 5.0);
    }

    #[test]
    fn refuses_the_wrong_number_of_texts() {
        let schedule = schedule(json!({}), 2);
        let plan = Plan {
            schedule: &schedule,
            guidance: &guide(3.0, 0.0, &schedule),
            start: 0,
            held: None,
            cache: None,
        };
        let (mut model, mut rng) = (Towards::new(), Noise::new(0));
        let error = denoise(&mut model, &clip(&[1.0]), &start(), &plan, &mut rng, &Silent, &mut |_| Ok(()));
        assert_eq!(error.expect_err("refused").to_string(), "invalid 1 encoded prompts: expected 2");
    }

    #[test]
    fn stopped_and_gone_on_is_the_whole_run() {
        for config in [json!({ "shift": 3.0 }), json!({ "stochastic_sampling": true })] {
            let schedule = schedule(config, 5);
            let guidance = guide(2.0, 0.5, &schedule);
            let texts = clip(&[1.0, 4.0]);
            let go = |rng: &mut Noise, start: usize, latents: &Tensor, stop_at: Option<u64>| {
                let recorder = Recorder { stop_at, ..Recorder::default() };
                let plan = Plan { schedule: &schedule, guidance: &guidance, start, held: None, cache: None };
                let mut seen = Vec::new();
                let mut hook = |step: &Step<'_>| {
                    seen.push((step.done, values(&step.latents()?)));
                    Ok(())
                };
                let done = denoise(&mut Towards::new(), &texts, latents, &plan, rng, &recorder, &mut hook);
                (done.expect("a run"), seen, recorder.script())
            };
            let mut rng = Noise::new(9);
            let (first, seen_first, script) = go(&mut rng, 0, &start(), Some(2));
            assert_eq!((first.finished_steps, first.cancelled), (2, true));
            assert_eq!(script, ["denoise 0/5", "denoise 1/5", "denoise 2/5"]);
            let (second, seen_second, script) = go(&mut rng, 2, &first.latents, None);
            assert_eq!((second.finished_steps, second.cancelled), (5, false));
            assert_eq!(
                script,
                ["denoise 0/5", "denoise 2/5", "denoise 3/5", "denoise 4/5", "denoise 5/5", "denoise done"]
            );
            let (whole, seen, _) = go(&mut Noise::new(9), 0, &start(), None);
            assert_eq!(values(&whole.latents), values(&second.latents));
            assert_eq!(seen, [seen_first, seen_second].concat());
        }
    }

    #[test]
    fn the_estimate_is_the_data_all_along() {
        let schedule = schedule(json!({}), 4);
        let plan = Plan {
            schedule: &schedule,
            guidance: &guide(1.0, 0.0, &schedule),
            start: 0,
            held: None,
            cache: None,
        };
        let mut steps = 0;
        let mut hook = |step: &Step<'_>| {
            all_near(&step.estimate()?, 6.0);
            steps += 1;
            assert_eq!((step.done, step.total), (steps, 4));
            Ok(())
        };
        let (mut model, mut rng) = (Towards::new(), Noise::new(0));
        denoise(&mut model, &clip(&[6.0]), &start(), &plan, &mut rng, &Silent, &mut hook).expect("a run");
        assert_eq!(steps, 4);
    }
}
