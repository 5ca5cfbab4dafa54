//! What the camera does and how it looks, as words of the prompt.
//!
//! A model that was trained on such words says so in the `direction` table of its `sora.json`, and takes no others;
//! for the rest there is a general table. Both phrase; only where a model was trained on noise that goes with a pan, a
//! camera moves by more than words.

use std::{collections::BTreeMap, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Serialize};

use crate::{
    app::wording::{listed, nearest},
    error::{Error, Result},
    models::api::Direction,
    pipeline::pan::{Pan, Sweep},
};

/// A word of the general table.
#[derive(Debug, Deserialize)]
struct Entry {
    phrase: String,
    #[serde(default)]
    also: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct General {
    camera: BTreeMap<String, Entry>,
    style: BTreeMap<String, Entry>,
    pace: BTreeMap<String, String>,
}

static GENERAL: LazyLock<General> = LazyLock::new(|| {
    toml::from_str(include_str!("direction.toml")).expect("direction.toml is checked by a test")
});

/// Camera moves, one after another: `static`, `slow zoom in`, `pan left until 3s then zoom in`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Camera {
    text: String,
    moves: Vec<Move>,
}

/// One move of a camera, in seconds of the clip.
#[derive(Debug, Clone, PartialEq)]
struct Move {
    word: String,
    pace: Option<&'static str>,
    from: Option<f64>,
    until: Option<f64>,
}

/// A part of a clip, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub until: f64,
    /// How long the whole clip is.
    pub whole: f64,
}

impl TryFrom<String> for Camera {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Camera> for String {
    fn from(camera: Camera) -> Self {
        camera.text
    }
}

impl FromStr for Camera {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.to_lowercase();
        let parts = lower.split(',').flat_map(|part| part.split(" then "));
        let parts = parts.map(|part| part.trim().trim_start_matches("then ").trim());
        let moves = parts.map(Move::parse).collect::<Option<Vec<_>>>().ok_or_else(|| {
            let why = "expected moves such as `slow zoom in` or `pan left from 1s to 3s`";
            Error::invalid(format!("camera `{text}`"), why).with_hint("separate moves by `then`")
        })?;
        Ok(Self { text: text.trim().to_owned(), moves })
    }
}

impl Camera {
    /// When each move begins and ends. Moves that don't say share what is left between those that do.
    fn spans(&self, whole: f64) -> Vec<(f64, f64)> {
        let count = self.moves.len();
        let known = |i: usize| match i {
            0 => Some(self.moves[0].from.unwrap_or(0.0)),
            i if i == count => Some(self.moves[i - 1].until.unwrap_or(whole)),
            i => self.moves[i].from.or(self.moves[i - 1].until),
        };
        let border = |i: usize| {
            let before = (0..=i).rev().find_map(|i| Some((i, known(i)?))).unwrap_or((0, 0.0));
            let after = (i..=count).find_map(|i| Some((i, known(i)?))).unwrap_or((count, whole));
            match after.0 - before.0 {
                0 => before.1,
                gap => before.1 + (after.1 - before.1) * (i - before.0) as f64 / gap as f64,
            }
        };
        let span = |(i, step): (usize, &Move)| {
            (step.from.unwrap_or_else(|| border(i)), step.until.unwrap_or_else(|| border(i + 1)))
        };
        self.moves.iter().enumerate().map(span).collect()
    }
}

impl Move {
    fn parse(text: &str) -> Option<Self> {
        let (text, from, until) = timing(text)?;
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        let pace = match first {
            "slow" | "slowly" | "gentle" | "gently" | "subtle" => Some("slow"),
            "fast" | "quick" | "quickly" | "strong" | "rapid" => Some("fast"),
            _ => None,
        };
        let word = if pace.is_some() { rest.trim() } else { text };
        (!word.is_empty() && word != "then").then(|| Self { word: word.to_owned(), pace, from, until })
    }
}

/// Takes `from A to B`, `from A`, `until B` or `A-B` off the end of a move.
fn timing(text: &str) -> Option<(&str, Option<f64>, Option<f64>)> {
    let span = |from: f64, until: f64| (from < until).then_some((Some(from), Some(until)));
    if let Some((word, times)) = text.rsplit_once(" from ") {
        let (from, until) = match times.split_once(" to ") {
            Some((from, until)) => span(seconds(from)?, seconds(until)?)?,
            None => (Some(seconds(times)?), None),
        };
        return Some((word.trim(), from, until));
    }
    if let Some((word, until)) = text.rsplit_once(" until ") {
        return Some((word.trim(), None, Some(seconds(until).filter(|time| *time > 0.0)?)));
    }
    if let Some((word, times)) = text.rsplit_once(' ')
        && let Some((from, until)) = times.split_once('-')
        && let (Some(from), Some(until)) = (seconds(from), seconds(until))
    {
        let (from, until) = span(from, until)?;
        return Some((word.trim(), from, until));
    }
    Some((text, None, None))
}

fn seconds(text: &str) -> Option<f64> {
    let number: f64 = text.trim().trim_end_matches(['s', ' ']).parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number)
}

/// What a user asks of camera and style.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directing {
    /// What the camera does.
    pub camera: Option<Camera>,
    /// How it looks.
    pub style: Option<String>,
    /// How the picture goes sideways besides what the camera says, as a recipe has it.
    pub pan: Pan,
}

impl Directing {
    /// The prompt for a part of a clip: with the style, and with the move that fills most of that time.
    pub fn prompt(&self, prompt: &str, own: &Direction, model: &str, part: Part) -> Result<String> {
        if prompt.trim().is_empty() {
            return Ok(String::new());
        }
        let style = self.style.as_deref().map(|style| style_phrase(style, own, model)).transpose()?;
        let mut camera: Option<(f64, String)> = None;
        for (step, (from, until)) in self.camera.iter().flat_map(|c| c.moves.iter().zip(c.spans(part.whole)))
        {
            // Every word is looked up, so that a wrong one is told whatever the part.
            let phrase = camera_phrase(step, own, model)?;
            let time = until.min(part.until) - from.max(part.from);
            if time > camera.as_ref().map_or(0.0, |(most, _)| *most) {
                camera = Some((time, phrase));
            }
        }
        let parts = [Some(prompt.trim().to_owned()), style, camera.map(|(_, phrase)| phrase)];
        Ok(parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", "))
    }

    /// How a clip of `whole` seconds goes sideways, where the model knows more of a move than a word.
    #[must_use]
    pub fn pan(&self, own: &Direction, whole: f64) -> Pan {
        let Some(camera) = &self.camera else { return self.pan.clone() };
        let sweep = |(step, (from, until)): (&Move, (f64, f64))| {
            let speed = *names(&step.word, &GENERAL.camera).iter().find_map(|name| own.pan.get(name))?;
            Some(Sweep { from, until, speed })
        };
        Pan::new(camera.moves.iter().zip(camera.spans(whole)).filter_map(sweep).collect())
    }

    /// Whether the words change within a clip.
    #[must_use]
    pub fn is_timed(&self) -> bool {
        let times = |step: &Move| step.from.is_some() || step.until.is_some();
        self.camera.as_ref().is_some_and(|camera| camera.moves.len() > 1 || camera.moves.iter().any(times))
    }
}

fn camera_phrase(step: &Move, own: &Direction, model: &str) -> Result<String> {
    let phrase = phrase("camera", &step.word, &GENERAL.camera, &own.camera, model)?;
    let Some(pace) = step.pace else { return Ok(phrase) };
    let known = if own.camera.is_empty() { &GENERAL.pace } else { &own.pace };
    match known.get(pace) {
        Some(pattern) => Ok(pattern.replace("{}", &phrase)),
        None => Err(Error::invalid(
            format!("camera `{pace} {}`", step.word),
            format!("`{model}` was trained on one pace alone"),
        )
        .with_hint(format!("pass --camera \"{}\"", step.word))),
    }
}

fn style_phrase(style: &str, own: &Direction, model: &str) -> Result<String> {
    phrase("style", &style.trim().to_lowercase(), &GENERAL.style, &own.style, model)
}

/// What a word may be called: as it was said, and the general table's name for it.
fn names(word: &str, general: &BTreeMap<String, Entry>) -> Vec<String> {
    let word = word.split_whitespace().collect::<Vec<_>>().join(" ");
    let alias = general.iter().find(|(_, entry)| entry.also.contains(&word)).map(|(name, _)| name.clone());
    [Some(word), alias].into_iter().flatten().collect()
}

/// The phrase of a word: the model's own where it has a table, else the general one.
fn phrase(
    what: &str,
    word: &str,
    general: &BTreeMap<String, Entry>,
    own: &BTreeMap<String, String>,
    model: &str,
) -> Result<String> {
    let names = names(word, general);
    let found = names.iter().find_map(|name| match own.is_empty() {
        true => general.get(name).map(|entry| entry.phrase.clone()),
        false => own.get(name).cloned(),
    });
    if let Some(found) = found {
        return Ok(found);
    }
    let known: Vec<&str> = match own.is_empty() {
        true => general.keys().map(String::as_str).collect(),
        false => own.keys().map(String::as_str).collect(),
    };
    let why = if own.is_empty() {
        format!("expected one of {}", listed(&known))
    } else {
        format!("`{model}` was trained on {}", listed(&known))
    };
    let hint = match nearest(&names[0], known.iter().copied()) {
        Some(near) => format!("pass --{what} \"{near}\""),
        None => format!("put other words into the prompt itself, or pass --{what} \"{}\"", known[0]),
    };
    Err(Error::invalid(format!("{what} `{}`", names[0]), why).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directed(camera: &str, style: &str, own: &Direction, from: f64, until: f64) -> Result<String> {
        let part = Part { from, until, whole: 9.0 };
        let camera = Some(camera).filter(|c| !c.is_empty()).map(str::parse).transpose()?;
        let style = Some(style.to_owned()).filter(|s| !s.is_empty());
        Directing { camera, style, ..Directing::default() }.prompt("a fox", own, "mini", part)
    }

    fn own() -> Direction {
        let table = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<BTreeMap<_, _>>()
        };
        Direction {
            camera: table(&[("pan left", "camera pans left"), ("static", "static camera")]),
            style: table(&[("black and white", "black and white")]),
            pan: BTreeMap::from([("pan left".to_owned(), 0.15)]),
            pace: BTreeMap::new(),
        }
    }

    #[test]
    fn words_become_phrases() {
        let none = Direction::default();
        let said = |camera: &str, style: &str| directed(camera, style, &none, 0.0, 4.0).unwrap();
        assert_eq!(said("", ""), "a fox");
        assert_eq!(said("Pan  Left", ""), "a fox, the camera pans left");
        assert_eq!(
            said("slow zoom in", "bw"),
            "a fox, black and white film, monochrome, the camera zooms in, slowly"
        );
        let own = |camera: &str, style: &str| directed(camera, style, &own(), 0.0, 4.0);
        assert_eq!(own("panning left", "monochrome").unwrap(), "a fox, black and white, camera pans left");
    }

    #[test]
    fn the_move_that_fills_most_of_the_time_is_said() {
        let none = Direction::default();
        let at = |from: f64, until: f64| {
            directed("pan left until 3s then zoom in from 4s to 6s, static", "", &none, from, until).unwrap()
        };
        assert!(at(0.0, 2.0).ends_with("pans left"));
        assert!(at(2.0, 4.0).ends_with("pans left"));
        assert_eq!(at(3.0, 4.0), "a fox");
        assert!(at(3.5, 5.5).ends_with("zooms in"));
        assert!(at(6.0, 9.0).ends_with("does not move"));
        let thirds =
            |from: f64| directed("pan left then zoom in then static", "", &none, from, from + 3.0).unwrap();
        assert!(thirds(0.0).ends_with("pans left") && thirds(3.0).ends_with("zooms in"));
        assert!(thirds(6.0).ends_with("does not move"));
        assert!(directed("orbit 1s-2s", "", &none, 0.0, 2.0).unwrap().contains("orbit"));
        let timed =
            |text: &str| Directing { camera: Some(text.parse().unwrap()), ..Directing::default() }.is_timed();
        assert!(timed("orbit 1s-2s") && timed("pan left then zoom in") && !timed("slow pan left"));
    }

    #[test]
    fn a_pan_moves_noise_where_the_model_knows_it() {
        let asked =
            |camera: &str| Directing { camera: Some(camera.parse().unwrap()), ..Directing::default() };
        let sweep = |from, until| Pan::new(vec![Sweep { from, until, speed: 0.15 }]);
        assert_eq!(asked("pan left").pan(&own(), 4.0), sweep(0.0, 4.0));
        assert_eq!(asked("static then panning left from 1s to 3s").pan(&own(), 4.0), sweep(1.0, 3.0));
        assert!(asked("static").pan(&own(), 4.0).is_still());
        assert!(asked("pan left").pan(&Direction::default(), 4.0).is_still());
        let again = Directing { pan: sweep(0.0, 4.0), ..Directing::default() };
        assert_eq!(again.pan(&Direction::default(), 4.0), sweep(0.0, 4.0), "a recipe's own is kept");
    }

    #[test]
    fn unknown_words_name_the_nearest() {
        let told = |camera: &str, style: &str, own: &Direction| {
            let error = directed(camera, style, own, 0.0, 1.0).unwrap_err();
            (error.to_string(), error.hint().unwrap_or_default())
        };
        let (_, hint) = told("pan lefft", "", &Direction::default());
        assert_eq!(hint, "pass --camera \"pan left\"");
        let (why, hint) = told("orbit", "", &own());
        assert_eq!(why, "invalid camera `orbit`: `mini` was trained on `pan left` and `static`");
        assert!(hint.starts_with("put other words into the prompt"), "{hint}");
        let (why, hint) = told("slow pan left", "", &own());
        assert!(why.contains("one pace") && hint.contains("--camera \"pan left\""), "{why}");
        assert_eq!(told("", "skech", &Direction::default()).1, "pass --style \"sketch\"");
        for nonsense in ["", "then", "slow", "pan left from 3s to 1s", "zoom in until never"] {
            assert!(nonsense.parse::<Camera>().is_err(), "{nonsense}");
        }
    }

    #[test]
    fn the_general_table_is_sound() {
        for (table, what) in [(&GENERAL.camera, "camera"), (&GENERAL.style, "style")] {
            let mut seen = std::collections::BTreeSet::new();
            for (word, entry) in table {
                assert!(!entry.phrase.is_empty());
                for name in entry.also.iter().chain([word]) {
                    assert!(seen.insert(name.clone()), "{what} `{name}` stands twice");
                    assert_eq!(*name, name.to_lowercase());
                }
            }
        }
        assert!(GENERAL.pace.values().all(|pattern| pattern.contains("{}")));
    }
}
