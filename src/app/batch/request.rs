//! What a job asks for: a clip, one that goes on, or a film.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    app::{
        budget::MemoryLimit,
        check::{Checked, check_on},
        clip::Clip,
        fingerprint,
        generate::{GenerateRequest, Job, Stopped, weights},
        loaded::Loaded,
        outputs::Outputs,
        recipe::{FilmRecipe, RecipeFile, Stamp, slug},
        storyboard::{FilmMade, PlannedShot, Storyboard, StoryboardRequest},
        weave::{Looks, WeaveRequest, check_loop, check_weave, looped_on, weave_on},
    },
    error::{Error, Result},
    event::{Phase, Reporter, Silent},
    models::{api::Checkpoint, registry},
};

/// What a job asks for.
#[derive(Debug, Clone)]
pub enum JobRequest {
    /// A clip.
    Clip(Box<GenerateRequest>),
    /// A clip that is there, and how it goes on.
    Weave(Box<WeaveRequest>),
    /// A clip that is made and closed to a loop.
    Loop {
        /// The clip.
        clip: Box<GenerateRequest>,
        /// Frames that the model sees at each end to close it.
        context: Option<usize>,
        /// The most frames of one render.
        window: Option<usize>,
    },
    /// A film of several shots, which are kept beside it.
    Film(Box<StoryboardRequest>),
}

/// Whoever asks for the same on the same model shares its weights.
const CONDITIONED: bool = true;

impl JobRequest {
    /// All but films are made of a prompt.
    fn base(&self) -> Option<&GenerateRequest> {
        match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => Some(clip),
            Self::Weave(weave) => Some(&weave.base),
            Self::Film(_) => None,
        }
    }

    /// What is written, and how.
    #[must_use]
    pub fn outputs(&self) -> &Outputs {
        match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => &clip.outputs,
            Self::Weave(weave) => &weave.base.outputs,
            Self::Film(film) => &film.outputs,
        }
    }

    /// The same, to be changed.
    pub fn outputs_mut(&mut self) -> &mut Outputs {
        match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => &mut clip.outputs,
            Self::Weave(weave) => &mut weave.base.outputs,
            Self::Film(film) => &mut film.outputs,
        }
    }

    /// The videos that are asked for.
    #[must_use]
    pub fn clips(&self) -> usize {
        self.base().map_or(1, |base| base.clips)
    }

    /// Whether one seed is what all of it begins with; the shots of a film have their own.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        self.base().is_some()
    }

    /// The seed that is asked for.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.base().and_then(|base| base.seed)
    }

    /// The most memory that it may take.
    #[must_use]
    pub fn max_memory(&self) -> Option<MemoryLimit> {
        match self {
            Self::Film(film) => film.max_memory,
            _ => self.base().and_then(|base| base.max_memory),
        }
    }

    /// One video with this seed.
    pub fn one(&mut self, seed: Option<u64>) {
        match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => {
                (clip.seed, clip.clips) = (seed, clip.clips.min(1));
            }
            Self::Weave(weave) => (weave.base.seed, weave.base.clips) = (seed, weave.base.clips.min(1)),
            Self::Film(_) => {}
        }
    }

    /// What its output is called after.
    #[must_use]
    pub fn slug(&self) -> String {
        match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => slug(&clip.prompt),
            Self::Weave(weave) => slug(&weave.base.prompt),
            Self::Film(film) => slug(&film.film.file_stem().unwrap_or_default().to_string_lossy()),
        }
    }

    /// Jobs with the same one run on the same weights in the same way.
    pub fn weights(&self) -> Result<String> {
        Ok(match self {
            Self::Clip(clip) => clip.weights(),
            Self::Loop { clip: base, .. } => weights(&base.model, &[], base.device, base.dtype, CONDITIONED),
            Self::Weave(weave) => {
                weights(&weave.base.model, &[], weave.base.device, weave.base.dtype, CONDITIONED)
            }
            Self::Film(film) => weights(&film.read()?.1, &[], film.device, film.dtype, CONDITIONED),
        })
    }

    /// The model, opened from its headers.
    pub fn open(&self) -> Result<Box<dyn Checkpoint>> {
        match self {
            Self::Clip(clip) => clip.open(),
            Self::Loop { clip, .. } => registry::open_conditioned(&clip.model),
            Self::Weave(weave) => registry::open_conditioned(&weave.base.model),
            Self::Film(film) => registry::open_conditioned(&film.read()?.1),
        }
    }

    /// What tells its model from others.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => fingerprint::model(clip),
            Self::Weave(weave) => fingerprint::model(&weave.base),
            Self::Film(film) => {
                let of_model = GenerateRequest { model: film.read()?.1, ..GenerateRequest::default() };
                fingerprint::model(&of_model)
            }
        }
    }

    /// The files that it reads, but for the model's.
    pub fn inputs(&self) -> Result<Vec<PathBuf>> {
        Ok(match self {
            Self::Clip(clip) | Self::Loop { clip, .. } => clip.inputs(),
            Self::Weave(weave) => {
                let clips = weave.pattern.clips().into_iter().cloned();
                clips.chain(weave.base.inputs()).collect()
            }
            Self::Film(film) => {
                let (read, _) = film.read()?;
                let pictures = read.shots.iter().flat_map(|shot| &shot.references);
                let mut files: Vec<PathBuf> = pictures.map(|picture| picture.path.clone()).collect();
                files.sort();
                files.dedup();
                [vec![film.film.clone()], files].concat()
            }
        })
    }

    /// Checks what its model has to say, and nothing that is written. Clips that were looked at are in `looks`.
    pub fn check_on(&self, model: &Loaded, looks: &mut Looks) -> Result<Checked> {
        match self {
            Self::Clip(clip) => check_on(clip, model),
            Self::Weave(weave) => check_weave(weave, model, looks),
            Self::Loop { clip, context, window } => {
                check_loop(clip, *context, *window, (plain(clip, model)?.as_ref(), model))
            }
            Self::Film(film) => Storyboard::plan_on(film, &Silent, Box::new(model.clone()))?.checked(),
        }
    }

    /// Makes it. Before work begins `begun` hears how many steps were done before.
    pub(super) fn make(
        &self,
        reporter: &dyn Reporter,
        model: Loaded,
        begun: &dyn Fn(usize),
    ) -> Result<Product> {
        match self {
            Self::Clip(clip) => {
                begun(clip.stopped.as_ref().map_or(0, Stopped::steps_before));
                let mut job = Job::prepare_on(clip, reporter, Box::new(model))?;
                let made = job.next_clip()?.expect("a request for one clip gives one");
                Ok(Product::Clip(Box::new(made)))
            }
            Self::Weave(weave) => {
                let made = weave_on(weave, reporter, Box::new(model))?;
                Ok(Product::Clip(Box::new(made)))
            }
            Self::Loop { clip, context, window } => {
                let models = (plain(clip, &model)?, Box::new(model) as Box<dyn Checkpoint>);
                let made = looped_on(clip, *context, *window, reporter, models)?;
                Ok(Product::Clip(Box::new(made)))
            }
            Self::Film(film) => {
                let storyboard = Storyboard::prepare_on(film, reporter, Box::new(model))?;
                begun(storyboard.shots().iter().filter(|shot| shot.ready).map(PlannedShot::steps).sum());
                let made = storyboard.render()?;
                let whole = std::path::absolute(&film.film).map_err(Error::file("find", &film.film))?;
                let recipe = FilmRecipe { film: Some(whole), ..storyboard.recipes() };
                Ok(Product::Film { made: Box::new(made), recipe: Box::new(recipe) })
            }
        }
    }
}

/// The model as a request opens it: `conditioned`, whose stages stay loaded, if that is the same.
fn plain(request: &GenerateRequest, conditioned: &Loaded) -> Result<Box<dyn Checkpoint>> {
    let own = request.open()?;
    Ok(if own.info().pipeline == conditioned.info().pipeline { Box::new(conditioned.clone()) } else { own })
}

/// What has come of a job.
#[derive(Debug, Clone)]
pub enum Product {
    /// A clip.
    Clip(Box<Clip>),
    /// A film.
    Film {
        /// The film.
        made: Box<FilmMade>,
        /// What it was made from.
        recipe: Box<FilmRecipe>,
    },
}

impl Product {
    /// Seconds spent in each phase.
    #[must_use]
    pub fn seconds(&self) -> &BTreeMap<Phase, f64> {
        match self {
            Self::Clip(clip) => &clip.seconds,
            Self::Film { made, .. } => &made.spent,
        }
    }

    /// An error if the frames can't be a video of anything.
    pub fn verdict(&self) -> Result<()> {
        match self {
            Self::Clip(clip) => clip.verdict(),
            Self::Film { made, .. } => made.verdict(),
        }
    }

    /// Renames it in whatever it says of itself: it was `made` under another name than the `output`'s.
    pub(super) fn rename(&mut self, made: &str, output: &str) {
        if let Self::Clip(clip) = self {
            for warning in &mut clip.recipe.warnings {
                *warning = warning.replace(made, output);
            }
        }
    }

    /// Says where it lies.
    pub(super) fn put_at(&mut self, place: PathBuf) {
        match self {
            Self::Clip(clip) => clip.path = place,
            Self::Film { made, .. } => made.path = place,
        }
    }

    /// The recipe that lies beside it, as JSON.
    pub(super) fn recipe(&self, request: &JobRequest, stamp: Stamp) -> Result<Vec<u8>> {
        let json = match (self, request.base()) {
            (Self::Clip(clip), Some(base)) => {
                let model = base.model.absolute()?;
                let (model_path, parts) = (model.file().map(Into::into), model.parts());
                let recipe = clip.recipe.clone();
                serde_json::to_vec_pretty(&RecipeFile { recipe, model_path, parts, stamp })
            }
            (Self::Film { recipe, .. }, _) => {
                serde_json::to_vec_pretty(&FilmRecipe { stamp, ..(**recipe).clone() })
            }
            (Self::Clip(_), None) => unreachable!("only films are made without a prompt"),
        };
        let mut json = json.expect("a recipe has string keys and finite numbers only");
        json.push(b'\n');
        Ok(json)
    }
}
