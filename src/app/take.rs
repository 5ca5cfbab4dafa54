//! Clips longer than a model's window: made window by window, each kept on the disk when it is done.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Instant,
};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::{
    app::{
        direction::Part,
        latents::{self, Origin},
        recipe::Recipe,
        wording::listed,
    },
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    models::api::{Conditioning, Defaults, Geometry, TextStates},
    pipeline::{
        conditions::{Condition, Conditions, Content},
        denoise::StepHook,
        render::{RenderRequest, Renderer},
        windows::{Palette, Window, Windows},
    },
    video::VideoSpec,
};

/// What a user may say about windows; what is `None` is the model's own choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TakeOptions {
    /// Frames of a window.
    pub window: Option<usize>,
    /// Frames that a window shares with the one before.
    pub overlap: Option<usize>,
    /// How much of the first window's colours later ones are brought back to, 0..1.
    pub match_colour: Option<f64>,
    /// What each window is told, as a recipe has it.
    pub prompts: Vec<String>,
    /// Where finished windows are, and are kept; beside the output if nobody says.
    pub kept: Option<PathBuf>,
}

/// How a long clip was cut, as its recipe has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Take {
    /// Frames of a window.
    pub window: usize,
    /// Frames that a window shares with the one before.
    pub overlap: usize,
    /// How much of the first window's colours later ones were brought back to.
    pub match_colour: f64,
    /// What each window was told, where it isn't the same for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
}

/// What a take is made of, once everything is settled.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub settings: Take,
    /// All windows, in order.
    pub windows: Vec<Window>,
    /// Latent frames of another clip that this one goes on from.
    pub there: usize,
}

/// Where the windows that are done are kept.
pub(super) struct Kept<'a> {
    pub path: &'a Path,
    /// What the latents are saved with; the number of windows is filled in.
    pub origin: &'a Origin,
}

impl TakeOptions {
    /// The way a recipe's clip was cut, or that it was not, with finished windows in a file.
    pub(super) fn of(recipe: &Recipe, kept: Option<&Path>) -> Self {
        let Some(take) = &recipe.take else {
            return Self { window: Some(recipe.spec.frames), ..Self::default() };
        };
        Self {
            window: Some(take.window),
            overlap: Some(take.overlap),
            match_colour: Some(take.match_colour),
            prompts: take.prompts.clone(),
            kept: kept.map(Path::to_owned),
        }
    }

    /// Puts finished windows where the user has them.
    pub(super) fn keep_in(&self, windows: &mut PathBuf) {
        if let Some(kept) = &self.kept {
            kept.clone_into(windows);
        }
    }

    /// Cuts a clip of `spec`, which may go on from another that has `before` latent frames.
    ///
    /// `prompt` gives the words for a window, which adds a part of the clip.
    pub(super) fn plan(
        &self,
        spec: &VideoSpec,
        geometry: &Geometry,
        defaults: &Defaults,
        rule: Conditioning,
        before: usize,
        prompt: impl Fn(usize, Part) -> Result<String>,
    ) -> Result<Plan> {
        let or = |value: usize, otherwise: usize| if value == 0 { otherwise } else { value };
        let window = self.window.unwrap_or_else(|| or(defaults.window, defaults.frames));
        let mut overlap = self.overlap.unwrap_or_else(|| or(defaults.overlap, window.div_ceil(3)));
        if rule == Conditioning::FirstFrame {
            // Such a model holds one frame, and one is what it gets.
            overlap = 1;
        }
        let match_colour = self.match_colour.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&match_colour) {
            let what = format!("share of colours to match {match_colour}");
            return Err(Error::invalid(what, "expected a number from 0 to 1"));
        }
        for (name, frames) in [("window", window), ("overlap", overlap)] {
            if frames == 0 {
                return Err(Error::invalid(format!("{name} of 0 frames"), "expected at least 1"));
            }
        }
        let windows = Windows::new(spec, window, overlap, geometry)?;
        let there = before.min(windows.overlap);
        let windows = windows.after(there).list();
        let time = |frame: usize| frame.saturating_sub(pixels(there, geometry)) as f64 / spec.fps;
        let whole = spec.frames as f64 / spec.fps;
        let told = windows.iter().map(|window| {
            let (from, until) = window.added(geometry);
            prompt(window.index, Part { from: time(from), until: time(until), whole })
        });
        let mut prompts = told.collect::<Result<Vec<_>>>()?;
        if prompts.iter().all(|other| *other == prompts[0]) {
            prompts.clear();
        }
        Ok(Plan { settings: Take { window, overlap, match_colour, prompts }, windows, there })
    }

    /// Whether a clip is too long for one window.
    pub(super) fn is_needed(&self, spec: &VideoSpec, defaults: &Defaults) -> bool {
        let own = if defaults.window == 0 { defaults.frames } else { defaults.window };
        spec.frames > self.window.unwrap_or(own)
    }
}

/// How far a take has come.
pub(super) enum Made {
    /// All of it: `[1, C, F, H, W]`, without what it goes on from.
    Whole(Tensor),
    /// The reporter asked to stop. This many windows are done, and kept.
    Stopped(usize),
}

impl Plan {
    /// What a window is asked for; `carried` holds its first latent frames.
    fn request(
        &self,
        window: &Window,
        whole: &RenderRequest,
        geometry: &Geometry,
        carried: Option<Tensor>,
    ) -> RenderRequest {
        let spec = window.spec(&whole.spec, geometry);
        let there = pixels(self.there, geometry);
        let first = window.start * geometry.temporal;
        // A condition belongs to the window that adds the frame it falls on.
        let (from, until) = window.added(geometry);
        let mut list: Vec<Condition> = carried
            .map(|latents| Condition { content: Content::Latents(latents), frame: 0, strength: 1.0 })
            .into_iter()
            .collect();
        let own = whole.conditions.list.iter().filter(|c| (from..until).contains(&(c.frame + there)));
        list.extend(own.map(|c| Condition { frame: c.frame + there - first, ..c.clone() }));
        let prompts = &self.settings.prompts;
        RenderRequest {
            prompt: prompts.get(window.index).unwrap_or(&whole.prompt).clone(),
            spec,
            seed: window.seed(whole.seed),
            pan: whole.pan.after((first as f64 - there as f64) / whole.spec.fps),
            conditions: Conditions { list, ..whole.conditions.clone() },
            ..whole.clone()
        }
    }

    /// Refuses what can't be rendered, before any weight is read.
    pub fn check(&self, renderer: &Renderer<'_>, whole: &RenderRequest) -> Result<()> {
        let geometry = renderer.checkpoint.info().geometry;
        geometry.check(&whole.spec)?;
        if whole.latents.is_some() || whole.conditions.source.is_some() {
            let why = format!("it would be made in {} windows", self.windows.len());
            return Err(Error::invalid("clip to start from", why)
                .with_hint("ask for a shorter one, or for one window with --window"));
        }
        for window in &self.windows {
            let carried = match window.carried {
                0 => None,
                frames => {
                    let [_, c, _, h, w] = geometry.latent_shape(&whole.spec);
                    let device = &candle_core::Device::Cpu;
                    Some(Tensor::zeros((1, c, frames, h, w), candle_core::DType::F32, device)?)
                }
            };
            renderer.check(&self.request(window, whole, &geometry, carried))?;
        }
        Ok(())
    }

    /// The longest window, as a clip: what denoising needs memory for.
    pub fn window_spec(&self, whole: &VideoSpec, geometry: &Geometry) -> VideoSpec {
        let specs = self.windows.iter().map(|window| window.spec(whole, geometry));
        specs.max_by_key(|spec| spec.frames).unwrap_or(*whole)
    }

    /// Makes the windows that are still to be made; each is kept before the next one begins.
    ///
    /// `before` is the clip that this one goes on from; `hook` sees every step of every window.
    pub fn render(
        &self,
        renderer: &Renderer<'_>,
        whole: &RenderRequest,
        before: Option<&Tensor>,
        kept: &Kept<'_>,
        hook: &mut StepHook<'_>,
    ) -> Result<Made> {
        let geometry = renderer.checkpoint.info().geometry;
        let tail = |latents: &Tensor| latents.narrow(2, latents.dim(2)? - self.there, self.there);
        let mut there = before.map(tail).transpose()?;
        let mut done = 0;
        if let Some(latents) = kept.load()? {
            there = Some(join(there, latents)?);
            let frames = there.as_ref().map_or(0, |latents| latents.dims()[2]);
            done = self.windows.iter().take_while(|window| window.start + window.length <= frames).count();
            let message = format!(
                "going on after window {done} of {} from {}",
                self.windows.len(),
                kept.path.display()
            );
            let _ = renderer.reporter.emit(&Event::Note { message });
        }
        let steps = Windowed::new(renderer.reporter, self.windows.len());
        let windowed =
            Renderer { checkpoint: renderer.checkpoint, place: renderer.place.clone(), reporter: &steps };
        let texts = self.texts(renderer, whole, done)?;
        let whole = &self.with_still(&windowed, whole, &geometry)?;
        for window in &self.windows[done..] {
            let carried = match (&there, window.carried) {
                (Some(latents), frames @ 1..) => Some(latents.narrow(2, window.start, frames)?),
                _ => None,
            };
            let request = self.request(window, whole, &geometry, carried);
            let states = texts.get(&request.prompt).cloned().unwrap_or_default();
            steps.begin(window.index);
            let made = windowed.denoise(&request, states, hook)?;
            if made.cancelled {
                return Ok(Made::Stopped(window.index));
            }
            // The first window is the measure of the others.
            let latents = match &there {
                Some(there) if window.index > 0 => {
                    let palette = Palette::of(&there.narrow(2, 0, self.windows[0].length)?)?;
                    palette.match_window(&made.latents, window.carried, self.settings.match_colour)?
                }
                _ => made.latents,
            };
            let new = latents.narrow(2, window.carried, window.length - window.carried)?;
            let all = join(there, new)?;
            kept.save(&self.own(&all)?, window.index + 1)?;
            there = Some(all);
        }
        steps.end();
        let all = there.ok_or_else(|| Error::invalid("clip", "it has no windows"))?;
        Ok(Made::Whole(self.own(&all)?))
    }

    /// The clip with what stays in it encoded, once for all windows.
    fn with_still(
        &self,
        renderer: &Renderer<'_>,
        whole: &RenderRequest,
        geometry: &Geometry,
    ) -> Result<RenderRequest> {
        let still = Conditions { still: whole.conditions.still.clone(), ..Conditions::default() };
        let spec = self.window_spec(&whole.spec, geometry);
        let encoded =
            renderer.encode_conditions(&RenderRequest { spec, conditions: still, ..whole.clone() })?;
        let conditions = Conditions { still: encoded.still, ..whole.conditions.clone() };
        Ok(RenderRequest { conditions, ..whole.clone() })
    }

    /// The latents without those of the clip that this one goes on from.
    fn own(&self, all: &Tensor) -> Result<Tensor> {
        Ok(all.narrow(2, self.there, all.dim(2)? - self.there)?.contiguous()?)
    }

    /// The text states of every prompt that is still to be heard.
    fn texts(
        &self,
        renderer: &Renderer<'_>,
        whole: &RenderRequest,
        done: usize,
    ) -> Result<BTreeMap<String, Vec<TextStates>>> {
        let mut texts = BTreeMap::new();
        for window in &self.windows[done..] {
            let prompt = self.settings.prompts.get(window.index).unwrap_or(&whole.prompt);
            if !texts.contains_key(prompt) {
                let states = renderer.encode(&RenderRequest { prompt: prompt.clone(), ..whole.clone() })?;
                texts.insert(prompt.clone(), states);
            }
        }
        Ok(texts)
    }
}

/// Frames that `latent` frames from the start of a clip become.
fn pixels(latent: usize, geometry: &Geometry) -> usize {
    (latent * geometry.temporal + 1).saturating_sub(geometry.temporal)
}

/// Latents one after another.
fn join(before: Option<Tensor>, after: Tensor) -> Result<Tensor> {
    match before {
        Some(before) => Ok(Tensor::cat(&[before, after], 2)?),
        None => Ok(after),
    }
}

impl Kept<'_> {
    /// The latents of the windows that are done, if there are any.
    fn load(&self) -> Result<Option<Tensor>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let file = latents::load(self.path)?;
        check_same(self.path, file.origin.as_ref().map(|origin| &origin.recipe), &self.origin.recipe)?;
        Ok(Some(file.tensor))
    }

    fn save(&self, latents: &Tensor, windows: usize) -> Result<()> {
        let origin = Origin { windows_done: Some(windows), ..self.origin.clone() };
        latents::save(self.path, latents, None, &origin)
    }
}

/// Refuses what is kept in `path` unless it was made by the same recipe.
pub(super) fn check_same(path: &Path, found: Option<&Recipe>, recipe: &Recipe) -> Result<()> {
    let differ = found.map(|found| differing(found, recipe));
    let why = match differ.as_deref() {
        Some([]) => return Ok(()),
        Some(keys) => {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            format!("they differ in {}", listed(&keys))
        }
        None => "it doesn't say which".into(),
    };
    Err(another(path, why))
}

/// Refuses a clip in `path` whose latents are decoded in another way than the recipe says.
pub(super) fn check_same_frames(path: &Path, found: &Recipe, recipe: &Recipe) -> Result<()> {
    let way = |recipe: &Recipe| {
        let detail = recipe.visual.as_ref().and_then(|visual| visual.detail);
        (recipe.decode_timestep.to_bits(), recipe.decode_noise_scale, recipe.tiling, recipe.upscale, detail)
    };
    if way(found) == way(recipe) {
        return Ok(());
    }
    Err(another(path, "they differ in how they are decoded".into()))
}

fn another(path: &Path, why: String) -> Error {
    let what = format!("output: `{}` holds the windows of another render", path.display());
    Error::invalid(what, why).with_hint("remove that file to start anew, or write to another output")
}

/// The seed of windows that are kept in `path`, if they are of this recipe but for the seed.
pub(super) fn kept_seed(path: &Path, recipe: &Recipe) -> Result<Option<u64>> {
    if !path.exists() {
        return Ok(None);
    }
    let found = latents::load(path)?.origin.map(|origin| origin.recipe);
    Ok(found
        .filter(|found| differing(found, &Recipe { seed: found.seed, ..recipe.clone() }).is_empty())
        .map(|r| r.seed))
}

/// What recipes may differ in and still have the same latents.
const AFTERWARDS: [&str; 7] =
    ["warnings", "tiling", "upscale", "decode_timestep", "decode_noise_scale", "device", "sora"];

/// What of a recipe makes its latents.
pub(super) fn latents_recipe(recipe: &Recipe) -> serde_json::Value {
    let mut value = serde_json::to_value(recipe).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|key, _| !AFTERWARDS.contains(&key.as_str()));
        if let Some(visual) = fields.get_mut("visual").and_then(serde_json::Value::as_object_mut) {
            visual.remove("detail");
        }
    }
    value
}

/// The keys in which two recipes differ that make other latents.
fn differing(a: &Recipe, b: &Recipe) -> Vec<String> {
    let (a, b) = (latents_recipe(a), latents_recipe(b));
    let keys = |value: &serde_json::Value| {
        value.as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect::<BTreeSet<_>>()
    };
    keys(&a).union(&keys(&b)).filter(|key| a.get(key) != b.get(key)).cloned().collect()
}

/// Sums the steps of all windows up to one phase.
struct Windowed<'a> {
    next: &'a dyn Reporter,
    windows: u64,
    at: Mutex<At>,
}

struct At {
    window: u64,
    started: Option<Instant>,
    /// What the step cache has left out, and of how many calls.
    cached: Option<(u64, u64)>,
}

impl<'a> Windowed<'a> {
    fn new(next: &'a dyn Reporter, windows: usize) -> Self {
        Self { next, windows: windows as u64, at: Mutex::new(At { window: 0, started: None, cached: None }) }
    }

    fn at(&self) -> std::sync::MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn begin(&self, window: usize) {
        self.at().window = window as u64;
    }

    fn end(&self) {
        if let Some((skipped, calls)) = self.at().cached {
            let _ = self.next.emit(&Event::Cached { skipped, calls });
        }
        if let Some(started) = self.at().started {
            let _ = self.next.emit(&Event::Finished { phase: Phase::Denoise, elapsed: started.elapsed() });
        }
    }
}

impl Reporter for Windowed<'_> {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        let mut at = self.at();
        match *event {
            Event::Started { phase: Phase::Denoise, total } => {
                let all = total * self.windows;
                if at.started.is_none() {
                    at.started = Some(Instant::now());
                    let started = self.next.emit(&Event::Started { phase: Phase::Denoise, total: all });
                    if started.is_break() || at.window == 0 {
                        return started;
                    }
                }
                let done = total * at.window;
                self.next.emit(&Event::Progress { phase: Phase::Denoise, done, total: all })
            }
            Event::Progress { phase: Phase::Denoise, done, total } => {
                let (done, total) = (total * at.window + done, total * self.windows);
                self.next.emit(&Event::Progress { phase: Phase::Denoise, done, total })
            }
            Event::Finished { phase: Phase::Denoise, .. } => ControlFlow::Continue(()),
            Event::Cached { skipped, calls } => {
                let sum = at.cached.get_or_insert_default();
                (sum.0, sum.1) = (sum.0 + skipped, sum.1 + calls);
                ControlFlow::Continue(())
            }
            // Every window loads the denoiser: the first one is news.
            Event::Started { phase: Phase::Load, .. }
            | Event::Progress { phase: Phase::Load, .. }
            | Event::Finished { phase: Phase::Load, .. }
                if at.started.is_some() =>
            {
                ControlFlow::Continue(())
            }
            _ => self.next.emit(event),
        }
    }
}
