//! A film as its file describes it: `film.toml`, read and checked as far as that takes no model.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::sections::{At, Place, Section, Source, seconds};
use crate::{
    app::{
        direction::Camera,
        recipe::slug,
        shape::Upscale,
        wording::{listed, nearest},
    },
    error::{Complaint, Error},
    media,
    video::Size,
};

/// The longest shot: beyond it a number was meant otherwise.
const LONGEST: f64 = 3600.0;

/// How long a dissolve takes if nobody says.
const DISSOLVE: f64 = 0.5;

/// How a shot comes in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Transition {
    /// At once.
    Cut,
    /// Through the one before it, for this many seconds.
    Dissolve(f64),
    /// As the same take: it goes on from the last frames of the shot before.
    Continue,
}

/// A picture that a shot is to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// The picture.
    pub path: PathBuf,
    /// Seconds into the shot.
    pub at: f64,
    /// How much of it is held, 0..1.
    pub strength: f64,
}

/// One shot, with what its characters bring to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// Its name, also of its files.
    pub name: String,
    /// What it shows: characters by their descriptions.
    pub prompt: String,
    /// Seconds.
    pub duration: f64,
    /// How it comes in.
    pub transition: Transition,
    /// What the camera does.
    pub camera: Option<Camera>,
    /// How it looks.
    pub style: Option<String>,
    /// The seed of its noise.
    pub seed: u64,
    /// What it is to keep away from.
    pub negative_prompt: Option<String>,
    /// Pictures it is to hold.
    pub references: Vec<Reference>,
    /// Names of the characters in it.
    pub cast: Vec<String>,
    /// Where it stands in the file.
    pub(super) places: Places,
}

/// Where the parts of a shot stand in the file.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Places {
    pub prompt: Place,
    pub duration: Place,
    pub transition: Place,
    pub camera: Place,
    pub style: Place,
}

/// What holds for the whole film.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Settings {
    /// The model: a folder or a file; nothing means the embedded one.
    pub model: Option<PathBuf>,
    /// Size in pixels.
    pub size: Option<Size>,
    /// The size that the frames are brought to.
    pub upscale: Option<Upscale>,
    /// Frames a second.
    pub fps: Option<f64>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Classifier-free guidance scale.
    pub guidance: Option<f64>,
}

/// A film.
#[derive(Debug, Clone, PartialEq)]
pub struct Film {
    /// What holds for all shots.
    pub settings: Settings,
    /// The shots, in order; at least one.
    pub shots: Vec<Shot>,
}

struct Character {
    name: String,
    description: String,
    seed: Option<u64>,
    references: Vec<Reference>,
}

impl Film {
    /// Reads the text of a film file; paths in it are meant from `folder` on.
    ///
    /// # Errors
    /// All that is wrong with it, each with its line and column.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Complaint>> {
        let source = Source::new(text);
        let film = match DeTable::parse(text) {
            Ok(table) => {
                let place = table.span();
                Some(Reader { source: &source, folder }.film(Section::new(&source, table.get_ref(), place)))
            }
            Err(error) => {
                source.complain(&error.span().unwrap_or_default(), error.message());
                None
            }
        };
        let complaints = source.complaints();
        film.filter(|_| complaints.is_empty()).ok_or(complaints)
    }
}

/// What every table is read with.
struct Reader<'a> {
    source: &'a Source<'a>,
    folder: &'a Path,
}

/// What shots take over unless they say otherwise.
struct Shared {
    seed: u64,
    style: Option<At<String>>,
    camera: Option<At<Camera>>,
    negative_prompt: Option<String>,
    duration: Option<At<f64>>,
    characters: Vec<Character>,
}

impl<'a> Reader<'a> {
    fn film(&self, root: Section<'a>) -> Film {
        let (settings, shared) = self.settings(&root);
        let mut shots: Vec<Shot> = Vec::new();
        for (index, section) in root.sections("shots").into_iter().enumerate() {
            let place = section.place.clone();
            let shot = self.shot(index, section, &shared);
            if shots.iter().any(|other| other.name == shot.name) {
                self.source.complain(&place, format!("two shots are named `{}`", shot.name));
            }
            shots.push(shot);
        }
        if shots.is_empty() {
            self.source.complain(&root.place, "the film has no shots (expected at least one `[[shots]]`)");
        }
        root.finish();
        self.check_transitions(&shots);
        Film { settings, shots }
    }

    fn settings(&self, root: &Section<'a>) -> (Settings, Shared) {
        let mut settings = Settings::default();
        let mut shared = Shared {
            seed: 0,
            style: None,
            camera: None,
            negative_prompt: None,
            duration: None,
            characters: Vec::new(),
        };
        if let Some(film) = root.section("film") {
            settings = Settings {
                model: film.text("model").map(|text| self.folder.join(text.value)),
                size: film.parsed("size", |text| text.parse().map_err(told)).map(|size| size.value),
                upscale: film.parsed("upscale", |text| text.parse().map_err(told)).map(|size| size.value),
                fps: film.number("fps").map(|fps| fps.value),
                steps: film.count("steps").map(|steps| steps.value as usize),
                guidance: film.number("guidance").map(|guidance| guidance.value),
            };
            shared.seed = film.count("seed").map_or(0, |seed| seed.value);
            shared.style = film.text("style");
            shared.camera = film.parsed("camera", |text| text.parse().map_err(told));
            shared.negative_prompt = film.text("negative_prompt").map(|text| text.value);
            shared.duration = self.duration(&film);
            film.finish();
        }
        for (name, section) in root.named("characters") {
            shared.characters.push(self.character(name, section));
        }
        (settings, shared)
    }

    fn character(&self, name: At<String>, section: Section<'a>) -> Character {
        let plain = name.value.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        if !plain {
            let why = format!("character `{}` (expected a name of letters, digits, `_` and `-`)", name.value);
            self.source.complain(&name.place, why);
        }
        let description = section.text("description");
        if description.as_ref().is_none_or(|text| text.value.trim().is_empty()) {
            let why = format!("character `{}` has no `description`", name.value);
            self.source.complain(&section.place, why);
        }
        let character = Character {
            name: name.value,
            description: description.map(|text| text.value.trim().to_owned()).unwrap_or_default(),
            seed: section.count("seed").map(|seed| seed.value),
            references: self.references(&section),
        };
        section.finish();
        character
    }

    fn shot(&self, index: usize, section: Section<'a>, shared: &Shared) -> Shot {
        let name = match section.text("name") {
            Some(name) => slug(&name.value),
            None => format!("shot-{:02}", index + 1),
        };
        let prompt = section.text("prompt").unwrap_or_else(|| {
            self.source.complain(&section.place, "the shot has no `prompt`");
            At { value: String::new(), place: section.place.clone() }
        });
        if prompt.value.trim().is_empty() && prompt.place != section.place {
            self.source.complain(&prompt.place, "the prompt is empty");
        }
        let (said, cast) = self.cast(&prompt, &shared.characters);
        let duration = self.duration(&section).or_else(|| shared.duration.clone());
        let duration = duration.unwrap_or_else(|| {
            self.source.complain(&section.place, "the shot has no `duration`, and `[film]` has none for all");
            At { value: 1.0, place: section.place.clone() }
        });
        let transition = section
            .parsed("transition", transition)
            .unwrap_or(At { value: Transition::Cut, place: section.place.clone() });
        let camera =
            section.parsed("camera", |text| text.parse().map_err(told)).or_else(|| shared.camera.clone());
        let style = section.text("style").or_else(|| shared.style.clone());
        let mut references = self.references(&section);
        // A shot that goes on from the one before has its looks from there.
        if references.is_empty() && transition.value != Transition::Continue {
            references = cast.iter().flat_map(|character| character.references.clone()).collect();
        }
        if transition.value == Transition::Continue && references.iter().any(|picture| picture.at == 0.0) {
            let why =
                "a shot that continues begins with the last frames of the one before, not with a picture";
            self.source.complain(&transition.place, why);
        }
        for (i, picture) in references.iter().enumerate() {
            if picture.at >= duration.value {
                let why = format!("`{}` is to be held at {} s", picture.path.display(), picture.at);
                self.source.complain(&duration.place, format!("the shot ends before {why}"));
            }
            if references[..i].iter().any(|other| other.at == picture.at) {
                let why = format!("two pictures are to be held at {} s: give them `at`", picture.at);
                self.source.complain(&section.place, why);
            }
        }
        let seeds = cast.iter().find_map(|character| character.seed);
        let shot = Shot {
            name,
            prompt: said,
            duration: duration.value,
            transition: transition.value,
            seed: section.count("seed").map(|seed| seed.value).or(seeds).unwrap_or(shared.seed),
            negative_prompt: section
                .text("negative_prompt")
                .map(|text| text.value)
                .or_else(|| shared.negative_prompt.clone()),
            references,
            cast: cast.iter().map(|character| character.name.clone()).collect(),
            places: Places {
                prompt: prompt.place,
                duration: duration.place,
                transition: transition.place,
                camera: camera.as_ref().map_or(section.place.clone(), |camera| camera.place.clone()),
                style: style.as_ref().map_or(section.place.clone(), |style| style.place.clone()),
            },
            camera: camera.map(|camera| camera.value),
            style: style.map(|style| style.value),
        };
        section.finish();
        shot
    }

    fn duration(&self, section: &Section<'a>) -> Option<At<f64>> {
        let duration = section.time("duration")?;
        if duration.value > 0.0 && duration.value <= LONGEST {
            return Some(duration);
        }
        let why =
            format!("a shot can't last {} s (expected more than 0 and at most an hour)", duration.value);
        self.source.complain(&duration.place, why);
        None
    }

    /// Puts descriptions in the place of `{name}`, and tells who is in the shot.
    fn cast<'c>(&self, prompt: &At<String>, characters: &'c [Character]) -> (String, Vec<&'c Character>) {
        let (mut told, mut cast) = (String::new(), Vec::<&Character>::new());
        let mut rest = prompt.value.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            told.push_str(before);
            let Some((name, after)) = after.split_once('}') else {
                self.source.complain(&prompt.place, "a `{` without its `}`");
                break;
            };
            match characters.iter().find(|character| character.name == name.trim()) {
                Some(character) => {
                    told.push_str(&character.description);
                    if !cast.iter().any(|other| other.name == character.name) {
                        cast.push(character);
                    }
                }
                None => {
                    let known: Vec<&str> = characters.iter().map(|c| c.name.as_str()).collect();
                    let way = match nearest(name, known.iter().copied()) {
                        Some(near) => format!("did you mean `{{{near}}}`?"),
                        None if known.is_empty() => "define it in `[characters.NAME]`".to_owned(),
                        None => format!("expected {}", listed(&known)),
                    };
                    self.source.complain(&prompt.place, format!("no character is named `{name}`: {way}"));
                }
            }
            rest = after;
        }
        told.push_str(rest);
        (told.trim().to_owned(), cast)
    }

    /// Pictures to hold: `"mira.png"`, `{ path = "mira.png", at = "1s", strength = 0.8 }`, or a list of such.
    fn references(&self, section: &Section<'a>) -> Vec<Reference> {
        section.list("reference", |value| {
            let (path, at, strength) = match value.get_ref() {
                DeValue::String(path) => (At { value: path.to_string(), place: value.span() }, None, None),
                DeValue::Table(table) => {
                    let section = Section::new(self.source, table, value.span());
                    let path = section.text("path");
                    if path.is_none() {
                        self.source.complain(&value.span(), "a reference has no `path`");
                    }
                    let (at, strength) = (section.time("at"), section.number("strength"));
                    section.finish();
                    (path?, at, strength)
                }
                other => {
                    let why = format!("`reference`: expected a picture's name, found {}", other.type_str());
                    self.source.complain(&value.span(), why);
                    return None;
                }
            };
            let file = self.folder.join(&path.value);
            if let Err(error) = media::read_image(&file) {
                let why =
                    if file.exists() { told(error) } else { format!("there is no picture `{}`", path.value) };
                self.source.complain(&path.place, why);
            }
            if let Some(strength) =
                strength.as_ref().filter(|strength| !(0.0..=1.0).contains(&strength.value))
            {
                self.source.complain(&strength.place, "expected a strength from 0 to 1");
            }
            if let Some(at) = at.as_ref().filter(|at| at.value < 0.0) {
                self.source.complain(&at.place, "expected a time from 0 on");
            }
            let strength = strength.map_or(1.0, |strength| strength.value);
            Some(Reference { path: file, at: at.map_or(0.0, |at| at.value), strength })
        })
    }

    fn check_transitions(&self, shots: &[Shot]) {
        for (index, shot) in shots.iter().enumerate() {
            let place = &shot.places.transition;
            match shot.transition {
                Transition::Cut => {}
                _ if index == 0 => {
                    self.source.complain(place, "the first shot has nothing to come from (expected a cut)");
                }
                Transition::Continue => {}
                Transition::Dissolve(seconds) => {
                    let before = shots[index - 1].duration;
                    let shorter = before.min(shot.duration);
                    if seconds >= shorter {
                        let why = format!(
                            "a dissolve of {seconds} s needs longer shots: one of the two lasts {shorter} s"
                        );
                        self.source.complain(place, why);
                    }
                    // What dissolves in and out again has to be there for both.
                    let after = match shots.get(index + 1).map(|next| next.transition) {
                        Some(Transition::Dissolve(seconds)) => seconds,
                        _ => 0.0,
                    };
                    if seconds < shot.duration && after < shot.duration && seconds + after > shot.duration {
                        let why = "the shot is shorter than the dissolves at its two ends together";
                        self.source.complain(&shot.places.duration, why);
                    }
                }
            }
        }
    }
}

/// An error and its way out in one line.
fn told(error: Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error} ({hint})"),
        None => error.to_string(),
    }
}

fn transition(text: &str) -> Result<Transition, String> {
    let lower = text.trim().to_lowercase();
    let (word, time) = lower.split_once(' ').unwrap_or((&lower, ""));
    let kinds = ["cut", "dissolve", "continue"];
    match (word, time.trim()) {
        ("cut", "") => Ok(Transition::Cut),
        ("continue", "") => Ok(Transition::Continue),
        ("dissolve", "") => Ok(Transition::Dissolve(DISSOLVE)),
        ("dissolve", time) => match seconds(time).filter(|time| *time > 0.0 && time.is_finite()) {
            Some(time) => Ok(Transition::Dissolve(time)),
            None => Err(format!("`{time}` is no time for a dissolve (expected e.g. `dissolve 0.5s`)")),
        },
        (word, _) if kinds.contains(&word) => Err(format!("a `{word}` takes no time")),
        (word, _) => Err(match nearest(word, kinds) {
            Some(near) => format!("unknown transition `{word}`: did you mean `{near}`?"),
            None => format!("unknown transition `{word}`: expected {}", listed(&kinds)),
        }),
    }
}

#[cfg(test)]
#[path = "film_tests.rs"]
mod tests;
