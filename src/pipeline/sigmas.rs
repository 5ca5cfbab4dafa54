//! The noise levels of a render: `FlowMatchEulerDiscreteScheduler` with everything its configuration can say.

use std::path::Path;

use serde::Deserialize;

use super::beta;
use crate::{
    error::{Error, Result},
    models::api::{Pass, ScheduleSpec, SigmaSource},
};

/// The one scheduler that is followed here.
const CLASS: &str = "FlowMatchEulerDiscreteScheduler";

/// `scheduler_config.json`, with the class's own defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Timesteps are sigmas times this.
    pub num_train_timesteps: usize,
    /// Constant shift towards noise; not used with `use_dynamic_shifting`.
    pub shift: f64,
    /// Shift by the number of latent cells instead.
    pub use_dynamic_shifting: bool,
    /// The dynamic shift (mu) at `base_image_seq_len` cells.
    pub base_shift: f64,
    /// The dynamic shift (mu) at `max_image_seq_len` cells.
    pub max_shift: f64,
    /// See `base_shift`.
    pub base_image_seq_len: usize,
    /// See `max_shift`.
    pub max_image_seq_len: usize,
    /// Run from 0 to 1 instead.
    pub invert_sigmas: bool,
    /// Stretch the schedule so that its last sigma is this one; 0 is as good as none.
    pub shift_terminal: Option<f64>,
    /// Respace as Karras et al. do.
    pub use_karras_sigmas: bool,
    /// Respace evenly in the logarithm.
    pub use_exponential_sigmas: bool,
    /// Respace by the quantiles of a beta distribution.
    pub use_beta_sigmas: bool,
    /// How mu shifts.
    pub time_shift_type: TimeShift,
    /// Renoise the estimate of the clip at each step instead of moving along the velocity.
    pub stochastic_sampling: bool,
    /// Not an argument of the class, but heard by its respacings.
    pub sigma_min: Option<f64>,
    /// Not an argument of the class, but heard by its respacings.
    pub sigma_max: Option<f64>,
}

/// How mu enters the dynamic shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// As its exponential.
    #[default]
    Exponential,
    /// As it is.
    Linear,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            invert_sigmas: false,
            shift_terminal: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            time_shift_type: TimeShift::Exponential,
            stochastic_sampling: false,
            sigma_min: None,
            sigma_max: None,
        }
    }
}

/// What a schedule is made from.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// Sigmas, which are shifted; timesteps follow from them.
    Sigmas(&'a [f32]),
    /// Timesteps, which are kept as they are; sigmas follow from them and are shifted.
    Timesteps(&'a [f32]),
}

/// The noise levels of one render.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// n + 1 noise levels: where each step starts, and where the last one ends.
    pub sigmas: Vec<f32>,
    /// What the denoiser is told at each of the n steps.
    pub timesteps: Vec<f32>,
    /// Whether the solver draws noise at each step.
    pub stochastic: bool,
    /// How a step finds the two noise levels it runs between.
    pub levels: Levels,
}

/// How a step finds the two noise levels that it runs between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Levels {
    /// By its number: `sigmas[i]` and `sigmas[i + 1]`.
    ByStep,
    /// From the timestep of each token over this (the training timesteps) to the next lower sigma.
    ByTime(f32),
}

impl Schedule {
    /// Number of steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The schedule of a checkpoint for `steps` steps, or for explicit `timesteps`, on a clip of `cells` latent cells.
    pub fn new(spec: &ScheduleSpec, steps: usize, timesteps: Option<&[f32]>, cells: usize) -> Result<Self> {
        let config = Config::read(&spec.config, &spec.path)?;
        if let Some(timesteps) = timesteps {
            check_falling("timesteps", timesteps, config.num_train_timesteps as f32)?;
        } else if steps == 0 {
            return Err(Error::invalid("step count 0", "expected at least 1"));
        }
        let mut schedule = match spec.source {
            SigmaSource::Linear => {
                let mu = config.mu(cells);
                match timesteps {
                    Some(timesteps) => config.schedule(Given::Timesteps(timesteps), mu),
                    None => config.schedule(Given::Sigmas(&linear(steps)), mu),
                }
            }
            SigmaSource::LinearQuadratic | SigmaSource::Shifted(_) => {
                if config.use_dynamic_shifting {
                    return Err(Error::Config {
                        path: spec.path.clone(),
                        key: "use_dynamic_shifting".into(),
                        found: "true".into(),
                        expected: "false: this pipeline has a schedule of its own".into(),
                    });
                }
                let own = match (timesteps, spec.source) {
                    (Some(timesteps), _) => timesteps.to_vec(),
                    (None, SigmaSource::Shifted(shift)) => shifted(steps, shift),
                    (None, _) => linear_quadratic(steps),
                };
                config.schedule(Given::Timesteps(&own), 0.0)
            }
        };
        if spec.source.steps_by_time() {
            schedule.levels = Levels::ByTime(config.num_train_timesteps as f32);
        }
        if schedule.sigmas.iter().any(|sigma| !sigma.is_finite()) {
            let what = format!("schedule of {} steps", schedule.steps());
            return Err(Error::invalid(
                what,
                "the checkpoint's scheduler gives noise levels that are not finite",
            )
            .with_hint("pass another number of --steps"));
        }
        Ok(schedule)
    }
}

impl Schedule {
    /// The schedule of a pass: the checkpoint's own or one by hand, less the steps that the pass leaves out.
    pub fn of_pass(spec: &ScheduleSpec, pass: &Pass, cells: usize) -> Result<Self> {
        let mut schedule = match &pass.sigmas {
            Some(sigmas) => Self::by_hand(spec, sigmas)?,
            None => Self::new(spec, pass.steps, pass.timesteps.as_deref(), cells)?,
        };
        schedule.cut(pass.skip_first, pass.skip_last)?;
        schedule.stochastic = pass.stochastic.unwrap_or(schedule.stochastic);
        Ok(schedule)
    }

    /// Noise levels exactly as they are given, without any of the scheduler's shifts, and 0 after them.
    fn by_hand(spec: &ScheduleSpec, sigmas: &[f32]) -> Result<Self> {
        let config = Config::read(&spec.config, &spec.path)?;
        check_falling("sigmas", sigmas, 1.0)?;
        let scale = config.num_train_timesteps as f32;
        let levels = if spec.source.steps_by_time() { Levels::ByTime(scale) } else { Levels::ByStep };
        Ok(Self {
            sigmas: sigmas.iter().copied().chain([0.0]).collect(),
            timesteps: sigmas.iter().map(|sigma| sigma * scale).collect(),
            stochastic: config.stochastic_sampling,
            levels,
        })
    }

    /// Leaves out the first and the last steps; the one that is last then goes where the whole schedule ended.
    fn cut(&mut self, first: usize, last: usize) -> Result<()> {
        let steps = self.steps();
        if first + last >= steps {
            let what = format!("{} of {steps} steps left out", first + last);
            return Err(Error::invalid(what, "expected at least one to stay"));
        }
        self.sigmas.drain(steps - last..steps);
        self.timesteps.truncate(steps - last);
        self.sigmas.drain(..first);
        self.timesteps.drain(..first);
        Ok(())
    }
}

impl Config {
    /// Reads the configuration at `path`; keys that the scheduler doesn't know are ignored, as the class does.
    pub fn read(json: &serde_json::Value, path: &Path) -> Result<Self> {
        let refuse = |key: &str, found: String, expected: String| Error::Config {
            path: path.to_owned(),
            key: key.into(),
            found,
            expected,
        };
        let entries = json.as_object().ok_or_else(|| Error::damaged(path, "it is no JSON object"))?;
        if let Some(class) = entries.get("_class_name").filter(|class| class.as_str() != Some(CLASS)) {
            return Err(refuse("_class_name", class.to_string(), CLASS.into()));
        }
        for (key, value) in entries {
            let alone = serde_json::json!({ key: value });
            if let Err(error) = serde_json::from_value::<Self>(alone) {
                return Err(refuse(key, value.to_string(), error.to_string()));
            }
        }
        let config: Self =
            serde_json::from_value(json.clone()).map_err(|error| Error::damaged(path, error.to_string()))?;
        if config.num_train_timesteps == 0 {
            return Err(refuse("num_train_timesteps", "0".into(), "at least 1".into()));
        }
        let spacings = [config.use_karras_sigmas, config.use_exponential_sigmas, config.use_beta_sigmas];
        if spacings.into_iter().filter(|on| *on).count() > 1 {
            let key = if config.use_beta_sigmas { "use_beta_sigmas" } else { "use_exponential_sigmas" };
            return Err(refuse(key, "true".into(), "one of karras, exponential and beta at most".into()));
        }
        Ok(config)
    }

    /// The dynamic shift of a clip of `cells` latent cells: a line through the two given points.
    #[must_use]
    pub fn mu(&self, cells: usize) -> f64 {
        let (from, to) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let slope = (self.max_shift - self.base_shift) / (to - from);
        cells as f64 * slope + (self.base_shift - slope * from)
    }

    /// `set_timesteps`: shift, stretch, respace, invert, end. `mu` is heard with `use_dynamic_shifting` only.
    #[must_use]
    pub fn schedule(&self, given: Given<'_>, mu: f64) -> Schedule {
        let scale = self.num_train_timesteps as f32;
        let mut sigmas: Vec<f32> = match given {
            Given::Sigmas(sigmas) => sigmas.to_vec(),
            Given::Timesteps(timesteps) => timesteps.iter().map(|t| t / scale).collect(),
        };
        self.shift(&mut sigmas, mu);
        self.stretch(&mut sigmas);
        self.respace(&mut sigmas);
        let mut timesteps = match given {
            Given::Timesteps(timesteps) => timesteps.to_vec(),
            Given::Sigmas(_) => sigmas.iter().map(|s| s * scale).collect(),
        };
        if self.invert_sigmas {
            for s in &mut sigmas {
                *s = 1.0 - *s;
            }
            timesteps = sigmas.iter().map(|s| s * scale).collect();
        }
        sigmas.push(if self.invert_sigmas { 1.0 } else { 0.0 });
        Schedule { sigmas, timesteps, stochastic: self.stochastic_sampling, levels: Levels::ByStep }
    }

    /// In f32, as the reference: its lists are f32 by then, and Python's floats don't widen them.
    fn shift(&self, sigmas: &mut [f32], mu: f64) {
        if self.use_dynamic_shifting {
            let mu = match self.time_shift_type {
                TimeShift::Exponential => mu.exp() as f32,
                TimeShift::Linear => mu as f32,
            };
            for s in sigmas {
                *s = mu / (mu + (1.0 / *s - 1.0));
            }
        } else {
            let (shift, less) = (self.shift as f32, (self.shift - 1.0) as f32);
            for s in sigmas {
                *s = shift * *s / (1.0 + less * *s);
            }
        }
    }

    fn stretch(&self, sigmas: &mut [f32]) {
        let (Some(&last), Some(terminal)) = (sigmas.last(), self.shift_terminal.filter(|t| *t != 0.0)) else {
            return;
        };
        let factor = (1.0 - last) / (1.0 - terminal) as f32;
        for s in sigmas {
            *s = 1.0 - (1.0 - *s) / factor;
        }
    }

    /// In f64: only the two ends of the f32 schedule enter.
    fn respace(&self, sigmas: &mut [f32]) {
        const RHO: f64 = 7.0;
        let (Some(&first), Some(&last)) = (sigmas.first(), sigmas.last()) else { return };
        let (high, low) = (self.sigma_max.unwrap_or(first.into()), self.sigma_min.unwrap_or(last.into()));
        let n = sigmas.len();
        let spaced: Vec<f64> = if self.use_karras_sigmas {
            let (high, low) = (high.powf(1.0 / RHO), low.powf(1.0 / RHO));
            linspace(0.0, 1.0, n).map(|at| (high + at * (low - high)).powf(RHO)).collect()
        } else if self.use_exponential_sigmas {
            linspace(high.ln(), low.ln(), n).map(f64::exp).collect()
        } else if self.use_beta_sigmas {
            linspace(0.0, 1.0, n).map(|at| low + beta::quantile(1.0 - at) * (high - low)).collect()
        } else {
            return;
        };
        sigmas.iter_mut().zip(spaced).for_each(|(s, new)| *s = new as f32);
    }
}

/// `numpy.linspace`: the last value is exactly `to`.
fn linspace(from: f64, to: f64, n: usize) -> impl Iterator<Item = f64> {
    let step = (to - from) / (n.max(2) - 1) as f64;
    (0..n).map(move |i| if i > 0 && i == n - 1 { to } else { from + i as f64 * step })
}

/// `1 … 1/n` in equal steps.
fn linear(n: usize) -> Vec<f32> {
    linspace(1.0, 1.0 / n as f64, n).map(|s| s as f32).collect()
}

/// Timesteps of equal steps of sigma from 1, shifted towards noise.
fn shifted(steps: usize, shift: f64) -> Vec<f32> {
    let level = |step: usize| 1.0 - step as f64 / steps as f64;
    (0..steps).map(level).map(|s| (1000.0 * shift * s / (1.0 + (shift - 1.0) * s)) as f32).collect()
}

/// Timesteps whose first half falls slowly and evenly, and whose second half falls faster and faster.
fn linear_quadratic(n: usize) -> Vec<f32> {
    /// Noise that the even half takes away.
    const THRESHOLD: f64 = 0.025;
    if n < 2 {
        return vec![1000.0; n];
    }
    let even = n / 2;
    let (count, slow) = (n as f64, even as f64);
    let fast = (n - even) as f64;
    let rest = slow - THRESHOLD * count;
    let quadratic = rest / (slow * (fast * fast));
    let linear = THRESHOLD / slow - 2.0 * rest / (fast * fast);
    let constant = quadratic * (slow * slow);
    (0..n)
        .map(|i| {
            let at = i as f64;
            let gone =
                if i < even { at * THRESHOLD / slow } else { quadratic * (at * at) + linear * at + constant };
            (1.0 - gone) as f32 * 1000.0
        })
        .collect()
}

fn check_falling(what: &str, values: &[f32], most: f32) -> Result<()> {
    let refuse = |why: String| Err(Error::invalid(what, why));
    let (Some(first), Some(last)) = (values.first(), values.last()) else {
        return refuse("expected at least one".into());
    };
    if values.windows(2).any(|pair| pair[0].partial_cmp(&pair[1]) != Some(std::cmp::Ordering::Greater)) {
        return refuse("expected each to be less than the one before".into());
    }
    if !(*first <= most && *last >= 0.0) {
        return refuse(format!("expected numbers from {most} down to 0, found {first} to {last}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_schedule_has_equal_steps_before_the_shift() {
        let schedule =
            Schedule::new(&spec(serde_json::json!({}), SigmaSource::Shifted(3.0)), 4, None, 64).unwrap();
        let expected = [1.0, 0.9, 0.75, 0.5, 0.0];
        assert!(schedule.sigmas.iter().zip(expected).all(|(found, sigma)| (found - sigma).abs() < 1e-6));
        assert_eq!(schedule.timesteps, [1000.0, 900.0, 750.0, 500.0]);
        assert_eq!(schedule.levels, Levels::ByTime(1000.0));
    }

    fn spec(config: serde_json::Value, source: SigmaSource) -> ScheduleSpec {
        ScheduleSpec { config, path: "scheduler/scheduler_config.json".into(), source }
    }

    fn refusal(
        config: serde_json::Value,
        source: SigmaSource,
        steps: usize,
        timesteps: Option<&[f32]>,
    ) -> String {
        Schedule::new(&spec(config, source), steps, timesteps, 64).expect_err("refused").to_string()
    }

    #[test]
    fn says_what_is_wrong_with_a_configuration() {
        let told = |config| refusal(config, SigmaSource::Linear, 4, None);
        let file = "scheduler/scheduler_config.json";
        assert_eq!(
            told(serde_json::json!({ "_class_name": "DDIMScheduler" })),
            format!("{file}: `_class_name` is \"DDIMScheduler\" (expected {CLASS})")
        );
        assert!(
            told(serde_json::json!({ "shift": "3" }))
                .starts_with(&format!("{file}: `shift` is \"3\" (expected"))
        );
        assert!(told(serde_json::json!({ "time_shift_type": "cubic" })).contains("`exponential`"));
        assert!(
            told(serde_json::json!({ "use_karras_sigmas": true, "use_beta_sigmas": true })).contains("beta")
        );
        assert!(told(serde_json::json!({ "num_train_timesteps": 0 })).contains("at least 1"));
        assert!(told(serde_json::json!([])).contains("JSON object"));
        let dynamic = serde_json::json!({ "use_dynamic_shifting": true });
        assert!(refusal(dynamic, SigmaSource::LinearQuadratic, 4, None).contains("use_dynamic_shifting"));
    }

    #[test]
    fn says_what_is_wrong_with_a_request() {
        let plain = || serde_json::json!({ "unknown": 1 });
        let told = |timesteps: &[f32]| refusal(plain(), SigmaSource::Linear, 4, Some(timesteps));
        assert_eq!(
            refusal(plain(), SigmaSource::Linear, 0, None),
            "invalid step count 0: expected at least 1"
        );
        assert!(told(&[]).contains("at least one"));
        assert!(told(&[500.0, 500.0]).contains("less than the one before"));
        assert!(told(&[1000.0, f32::NAN]).contains("less than the one before"));
        assert!(told(&[f32::NAN]).contains("down to 0"));
        assert!(told(&[1001.0, 0.0]).contains("down to 0"));
        assert!(told(&[10.0, -1.0]).contains("down to 0"));
        let told = |sigmas: &[f32]| {
            let pass = Pass { sigmas: Some(sigmas.to_vec()), ..Pass::default() };
            Schedule::of_pass(&spec(plain(), SigmaSource::Linear), &pass, 64)
                .expect_err("refused")
                .to_string()
        };
        assert!(told(&[1.1, 0.5]).contains("numbers from 1 down to 0, found 1.1 to 0.5"));
        assert!(told(&[0.5, 0.6]).contains("less than the one before"));
        let stretched = serde_json::json!({ "shift_terminal": 0.1 });
        assert!(refusal(stretched, SigmaSource::Linear, 1, None).contains("not finite"));
    }

    #[test]
    fn sigmas_by_hand_are_not_shifted() {
        let config = serde_json::json!({ "shift": 3.0, "shift_terminal": 0.1, "stochastic_sampling": true });
        for source in [SigmaSource::Linear, SigmaSource::LinearQuadratic] {
            let pass = Pass { sigmas: Some(vec![1.0, 0.75, 0.5]), ..Pass::default() };
            let schedule = Schedule::of_pass(&spec(config.clone(), source), &pass, 64).expect("a schedule");
            assert_eq!(schedule.sigmas, [1.0, 0.75, 0.5, 0.0]);
            assert_eq!(schedule.timesteps, [1000.0, 750.0, 500.0]);
            assert!(schedule.stochastic);
            let plain = Pass { stochastic: Some(false), ..pass };
            assert!(!Schedule::of_pass(&spec(config.clone(), source), &plain, 64).expect("one").stochastic);
        }
    }

    #[test]
    fn what_is_left_out_shortens_either_end() {
        let of = |skip_first, skip_last| {
            let pass = Pass { steps: 4, skip_first, skip_last, ..Pass::default() };
            Schedule::of_pass(&spec(serde_json::json!({}), SigmaSource::Linear), &pass, 64)
        };
        assert_eq!(of(0, 0).expect("all").sigmas, [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(of(1, 0).expect("three").sigmas, [0.75, 0.5, 0.25, 0.0]);
        let middle = of(1, 2).expect("one");
        assert_eq!((middle.sigmas, middle.timesteps), (vec![0.75, 0.0], vec![750.0]));
        let error = of(2, 2).expect_err("none").to_string();
        assert_eq!(error, "invalid 4 of 4 steps left out: expected at least one to stay");
    }
}
