//! What a job asks for: a clip, or a film.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    app::{
        check::{Checked, check_on},
        clip::Clip,
        fingerprint,
        generate::{GenerateRequest, Job, weights},
        loaded::Loaded,
        outputs::Outputs,
        recipe::{FilmRecipe, RecipeFile, Stamp, slug},
        storyboard::{FilmMade, Storyboard, StoryboardRequest},
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
    /// A film of several shots, which are kept beside it.
    Film(Box<StoryboardRequest>),
}

impl JobRequest {
    /// What is written, and how.
    #[must_use]
    pub fn outputs(&self) -> &Outputs {
        match self {
            Self::Clip(clip) => &clip.outputs,
            Self::Film(film) => &film.outputs,
        }
    }

    /// The same, to be changed.
    pub fn outputs_mut(&mut self) -> &mut Outputs {
        match self {
            Self::Clip(clip) => &mut clip.outputs,
            Self::Film(film) => &mut film.outputs,
        }
    }

    /// The videos that are asked for.
    #[must_use]
    pub fn clips(&self) -> usize {
        match self {
            Self::Clip(clip) => clip.clips,
            Self::Film(_) => 1,
        }
    }

    /// Whether one seed is what all of it begins with; the shots of a film have their own.
    #[must_use]
    pub fn is_seeded(&self) -> bool {
        !matches!(self, Self::Film(_))
    }

    /// The seed that is asked for.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        match self {
            Self::Clip(clip) => clip.seed,
            Self::Film(_) => None,
        }
    }

    /// One video with this seed.
    pub fn one(&mut self, seed: Option<u64>) {
        if let Self::Clip(clip) = self {
            clip.seed = seed;
            clip.clips = clip.clips.min(1);
        }
    }

    /// What its output is called after.
    #[must_use]
    pub fn slug(&self) -> String {
        match self {
            Self::Clip(clip) => slug(&clip.prompt),
            Self::Film(film) => slug(&film.film.file_stem().unwrap_or_default().to_string_lossy()),
        }
    }

    /// Jobs with the same one run on the same weights in the same way.
    pub fn weights(&self) -> Result<String> {
        Ok(match self {
            Self::Clip(clip) => clip.weights(),
            Self::Film(film) => {
                weights(&film.read()?.1, &[], film.device, film.dtype, /* conditioned */ true)
            }
        })
    }

    /// The model, opened from its headers.
    pub fn open(&self) -> Result<Box<dyn Checkpoint>> {
        match self {
            Self::Clip(clip) => clip.open(),
            Self::Film(film) => registry::open_conditioned(&film.read()?.1),
        }
    }

    /// What tells its model from others.
    pub fn fingerprint(&self) -> Result<String> {
        match self {
            Self::Clip(clip) => fingerprint::model(clip),
            Self::Film(film) => {
                let of_model = GenerateRequest { model: film.read()?.1, ..GenerateRequest::default() };
                fingerprint::model(&of_model)
            }
        }
    }

    /// The files that it reads, but for the model's.
    pub fn inputs(&self) -> Result<Vec<PathBuf>> {
        Ok(match self {
            Self::Clip(clip) => clip.inputs(),
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

    /// Checks what its model has to say, and nothing that is written.
    pub fn check_on(&self, model: &Loaded) -> Result<Checked> {
        match self {
            Self::Clip(clip) => check_on(clip, model),
            Self::Film(film) => Storyboard::plan_on(film, &Silent, Box::new(model.clone()))?.checked(),
        }
    }

    /// Makes it. Before work begins `shots` hears the steps of a film's shots, and whether each is there already.
    pub(super) fn make(
        &self,
        reporter: &dyn Reporter,
        model: Loaded,
        shots: &dyn Fn(&[(usize, bool)]),
    ) -> Result<Product> {
        match self {
            Self::Clip(clip) => {
                let mut job = Job::prepare_on(clip, reporter, Box::new(model))?;
                let made = job.next_clip()?.expect("a request for one clip gives one");
                Ok(Product::Clip(Box::new(made)))
            }
            Self::Film(film) => {
                let storyboard = Storyboard::prepare_on(film, reporter, Box::new(model))?;
                let steps: Vec<_> =
                    storyboard.shots().iter().map(|shot| (shot.steps(), shot.ready)).collect();
                shots(&steps);
                let made = storyboard.render()?;
                let whole = std::path::absolute(&film.film).map_err(Error::file("find", &film.film))?;
                let recipe = FilmRecipe { film: Some(whole), ..storyboard.recipes() };
                Ok(Product::Film { made: Box::new(made), recipe: Box::new(recipe) })
            }
        }
    }
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
        let json = match (self, request) {
            (Self::Clip(clip), JobRequest::Clip(request)) => {
                let model = request.model.absolute()?;
                let (model_path, parts) = (model.file().map(Into::into), model.parts());
                let recipe = clip.recipe.clone();
                serde_json::to_vec_pretty(&RecipeFile { recipe, model_path, parts, stamp })
            }
            (Self::Film { recipe, .. }, _) => {
                serde_json::to_vec_pretty(&FilmRecipe { stamp, ..(**recipe).clone() })
            }
            (Self::Clip(_), JobRequest::Film(_)) => unreachable!("a film is made of a film's request"),
        };
        let mut json = json.expect("a recipe has string keys and finite numbers only");
        json.push(b'\n');
        Ok(json)
    }
}
