//! From a block of keys to jobs: defaults, lists that stand for a job each, places in prompts.

use super::{
    file::{Block, Entry, Mistake, Spot, Value},
    options::{Arity, Options, STORYBOARD, Setting, Settings, nearest},
    template::{self, Values},
};
use crate::error::Error;

/// The output's name is a template, too.
pub const OUTPUT: &str = "output";

/// One job of a block.
#[derive(Debug, Clone)]
pub struct Combination {
    /// Options of `gen`, without the output.
    pub settings: Settings,
    /// The output's template, if one is given.
    pub output: Option<String>,
    /// What a name may be made of: options and keys of the user's own.
    pub values: Values,
}

/// A key with all the values that it goes through.
struct Axis {
    entry: Entry,
    /// The option it means; nothing for a key of the user's own.
    option: Option<(String, Arity)>,
    values: Vec<Setting>,
}

/// The place of a key in a block or in the defaults.
#[must_use]
pub fn spot_of(block: &Block, defaults: &[Entry], key: &str) -> Option<Spot> {
    let same = |entry: &&Entry| entry.key.replace('_', "-") == key.replace('_', "-");
    block.entries.iter().find(same).or_else(|| defaults.iter().find(same)).map(|entry| entry.spot)
}

/// All jobs of a block. The last key of the file changes fastest.
pub fn expand(block: &Block, defaults: &[Entry], options: &dyn Options) -> Result<Vec<Combination>, Mistake> {
    let mut axes: Vec<Axis> = Vec::new();
    let film = is_film(block, defaults);
    let of_film;
    let defaults = if film {
        check_film(block, options)?;
        of_film = for_films(block, defaults, options);
        &of_film
    } else {
        defaults
    };
    for entry in defaults.iter().chain(&block.entries) {
        let axis = axis(entry, options)?;
        let name =
            |axis: &Axis| axis.option.as_ref().map_or(axis.entry.key.clone(), |option| option.0.clone());
        match axes.iter_mut().find(|other| name(other) == name(&axis)) {
            // A job's own value counts, and it is in its own place.
            Some(other) => *other = axis,
            None => axes.push(axis),
        }
    }
    check_own(&axes, options)?;
    let mut jobs = vec![Vec::new()];
    for axis in &axes {
        jobs = jobs
            .into_iter()
            .flat_map(|job: Vec<(&Axis, &Setting)>| {
                axis.values.iter().map(move |value| [job.clone(), vec![(axis, value)]].concat())
            })
            .collect();
    }
    Ok(jobs.iter().map(|job| combination(job)).collect())
}

/// Whether a block makes a film.
#[must_use]
pub fn is_film(block: &Block, defaults: &[Entry]) -> bool {
    spot_of(block, defaults, STORYBOARD).is_some()
}

/// Refuses keys of a film's own block that its film file decides.
fn check_film(block: &Block, options: &dyn Options) -> Result<(), Mistake> {
    let known = options.names_for_films();
    for entry in &block.entries {
        let Some((name, _)) = options.find(&entry.key) else { continue };
        if name != STORYBOARD && !known.contains(&name) {
            let error =
                Error::invalid("option", "a job with `storyboard` makes what its film file says").with_hint(
                    format!("say it in the film file; beside `storyboard` stand {}", known.join(", ")),
                );
            return Err(Mistake::new(entry.spot, Some(&entry.key), error));
        }
    }
    Ok(())
}

/// The defaults that mean something to a film; the others are meant for clips.
fn for_films(block: &Block, defaults: &[Entry], options: &dyn Options) -> Vec<Entry> {
    let known = options.names_for_films();
    let all = || defaults.iter().chain(&block.entries);
    let names = |entry: &Entry| match &entry.value {
        Value::Text(text) => template::names(text).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let places: Vec<String> = all().filter(|entry| entry.key == OUTPUT).flat_map(names).collect();
    let concerns = |entry: &&Entry| match options.find(&entry.key) {
        Some((name, _)) => name == STORYBOARD || known.contains(&name),
        None => places.contains(&entry.key),
    };
    defaults.iter().filter(concerns).cloned().collect()
}

fn axis(entry: &Entry, options: &dyn Options) -> Result<Axis, Mistake> {
    let option = options.find(&entry.key);
    let arity = option.as_ref().map_or(Arity::One, |option| option.1);
    let wrong = |what: &str| {
        Mistake::new(entry.spot, Some(&entry.key), Error::invalid("value", format!("expected {what}")))
    };
    let one = |value: &Value| -> Result<Setting, Mistake> {
        match (arity, value) {
            (Arity::Flag | Arity::Maybe, Value::Bool(on)) => Ok(Setting::Present(*on)),
            (Arity::Flag, _) => Err(wrong("true or false")),
            (Arity::Many, Value::List(values)) => {
                let texts = values.iter().map(|value| match value {
                    Value::Text(text) => Ok(text.clone()),
                    _ => Err(wrong("a list of texts or numbers")),
                });
                Ok(Setting::Many(texts.collect::<Result<_, _>>()?))
            }
            (Arity::Many, Value::Text(text)) => Ok(Setting::Many(vec![text.clone()])),
            (_, Value::Text(text)) => Ok(Setting::One(text.clone())),
            (_, Value::Bool(on)) => Ok(Setting::One(on.to_string())),
            (_, Value::List(_)) => Err(wrong("one value, or a list of values for a job each")),
        }
    };
    let nested = |values: &[Value]| values.iter().any(|value| matches!(value, Value::List(_)));
    let values = match &entry.value {
        Value::List(values) if values.is_empty() => return Err(wrong("at least one value")),
        Value::List(values) if arity != Arity::Many || nested(values) => {
            values.iter().map(one).collect::<Result<_, _>>()?
        }
        value => vec![one(value)?],
    };
    Ok(Axis { entry: entry.clone(), option, values })
}

/// A key of the user's own must stand in some place of a text, or it is a mistyped option.
fn check_own(axes: &[Axis], options: &dyn Options) -> Result<(), Mistake> {
    let texts: Vec<&str> = axes.iter().flat_map(|axis| &axis.values).flat_map(texts).collect();
    for axis in axes.iter().filter(|axis| axis.option.is_none()) {
        let key = &axis.entry.key;
        if texts.iter().any(|text| template::names(text).any(|name| name == key)) {
            continue;
        }
        let why = format!("`sora gen` has no such option, and no `{{{key}}}` stands in a prompt or name");
        let error = Error::invalid("name", why);
        let error = match nearest(key, &options.names()) {
            Some(name) => error.with_hint(format!("did you mean `{name}`?")),
            None => error,
        };
        return Err(Mistake::new(axis.entry.spot, Some(key), error));
    }
    Ok(())
}

fn texts(setting: &Setting) -> Vec<&str> {
    match setting {
        Setting::Present(_) => Vec::new(),
        Setting::One(text) => vec![text],
        Setting::Many(texts) => texts.iter().map(String::as_str).collect(),
    }
}

fn combination(job: &[(&Axis, &Setting)]) -> Combination {
    let mut values: Values = job
        .iter()
        .map(|(axis, setting)| {
            let name = axis.option.as_ref().map_or(&axis.entry.key, |option| &option.0);
            let text = match setting {
                Setting::Present(on) => on.to_string(),
                setting => texts(setting).join(","),
            };
            (name.replace('-', "_"), text)
        })
        .collect();
    for (axis, _) in job.iter().filter(|(axis, _)| axis.option.is_none()) {
        let value = values.remove(&axis.entry.key.replace('-', "_")).unwrap_or_default();
        values.insert(axis.entry.key.clone(), value);
    }
    let own: Values = job
        .iter()
        .filter(|(axis, _)| axis.option.is_none())
        .map(|(axis, _)| (axis.entry.key.clone(), values[&axis.entry.key].clone()))
        .collect();
    let fill = |text: &String| template::fill_known(text, &own);
    let mut settings = Settings::new();
    let mut output = None;
    for (axis, setting) in job {
        let Some((name, _)) = &axis.option else { continue };
        match setting {
            Setting::One(text) if name == OUTPUT => output = Some(text.clone()),
            Setting::Present(false) => {}
            Setting::Present(true) => drop(settings.insert(name.clone(), Setting::Present(true))),
            Setting::One(text) => drop(settings.insert(name.clone(), Setting::One(fill(text)))),
            Setting::Many(texts) => {
                let texts = texts.iter().map(fill).collect();
                settings.insert(name.clone(), Setting::Many(texts));
            }
        }
    }
    // What a prompt became is what a name is made of.
    for (name, setting) in &settings {
        if let Setting::One(text) = setting {
            values.insert(name.replace('-', "_"), text.clone());
        }
    }
    Combination { settings, output, values }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::batch::request::JobRequest;

    /// Three options, one of each kind, and a film.
    struct Three;

    impl Options for Three {
        fn find(&self, key: &str) -> Option<(String, Arity)> {
            let arity = match key {
                "prompt" | "seed" | "output" | STORYBOARD => Arity::One,
                "timesteps" => Arity::Many,
                "preview" => Arity::Maybe,
                _ => return None,
            };
            Some((key.into(), arity))
        }

        fn names(&self) -> Vec<String> {
            ["prompt", "seed", "output", "timesteps", "preview"].map(str::to_owned).into()
        }

        fn names_for_films(&self) -> Vec<String> {
            vec!["output".into()]
        }

        fn lower(&self, _: &Settings) -> Result<JobRequest, Mistake> {
            Ok(JobRequest::Clip(Box::default()))
        }
    }

    fn entry(key: &str, value: Value) -> Entry {
        Entry { key: key.into(), spot: Spot { line: 3, column: 1 }, value }
    }

    fn list(values: &[&str]) -> Value {
        Value::List(values.iter().map(|text| Value::Text((*text).into())).collect())
    }

    fn jobs(head: Vec<Entry>, entries: Vec<Entry>) -> Result<Vec<Combination>, Mistake> {
        expand(&Block { entries, ..Block::default() }, &head, &Three)
    }

    #[test]
    fn lists_stand_for_a_job_each() {
        let entries = vec![
            entry("prompt", list(&["a {style} fox", "a dog"])),
            entry("style", list(&["red", "blue"])),
            entry("timesteps", list(&["900", "500"])),
        ];
        let jobs = jobs(vec![entry("seed", Value::Text("1".into()))], entries).expect("four jobs");
        let prompts: Vec<_> = jobs.iter().map(|job| job.values["prompt"].as_str()).collect();
        assert_eq!(prompts, ["a red fox", "a blue fox", "a dog", "a dog"]);
        assert_eq!(jobs[0].settings["timesteps"], Setting::Many(vec!["900".into(), "500".into()]));
        assert_eq!(jobs[3].settings["seed"], Setting::One("1".into()));
        assert!(!jobs[0].settings.contains_key("style"));
        assert_eq!(jobs[1].values["style"], "blue");
    }

    #[test]
    fn own_values_count_and_lists_of_lists_are_axes() {
        let pairs = Value::List(vec![list(&["900"]), list(&["800", "1"])]);
        let entries = vec![
            entry("prompt", Value::Text("a".into())),
            entry("seed", Value::Text("5".into())),
            entry("timesteps", pairs),
            entry("preview", Value::Bool(false)),
        ];
        let jobs = jobs(vec![entry("seed", list(&["1", "2"]))], entries).expect("two jobs");
        assert_eq!(jobs.len(), 2);
        assert_eq!(jobs[1].settings["timesteps"], Setting::Many(vec!["800".into(), "1".into()]));
        assert_eq!(jobs[1].settings["seed"], Setting::One("5".into()));
        assert!(!jobs[0].settings.contains_key("preview"));
    }

    #[test]
    fn a_film_takes_what_concerns_it() {
        let head = || vec![entry("seed", list(&["1", "2"])), entry("ink", Value::Text("oil".into()))];
        let film = |more: Vec<Entry>| {
            let film = vec![entry(STORYBOARD, list(&["a.toml", "b.toml"]))];
            jobs(head(), [film, more].concat())
        };
        let films = film(vec![entry("output", Value::Text("{n}-{ink}.mp4".into()))]).expect("two films");
        assert_eq!((films.len(), films[1].values["ink"].as_str()), (2, "oil"));
        let one = |text: &str| Setting::One(text.into());
        assert_eq!(films[1].settings, Settings::from([(STORYBOARD.to_owned(), one("b.toml"))]));
        assert_eq!(film(vec![]).expect("two films").len(), 2);
        let refused = film(vec![entry("prompt", Value::Text("a fox".into()))]).expect_err("refused");
        assert_eq!(refused.key.as_deref(), Some("prompt"));
    }

    #[test]
    fn a_key_of_no_use_is_a_mistake() {
        let mistake =
            jobs(vec![], vec![entry("prompt", Value::Text("a".into())), entry("sed", list(&["1"]))])
                .expect_err("refused");
        assert_eq!((mistake.key.as_deref(), mistake.spot.line), (Some("sed"), 3));
        assert_eq!(mistake.error.hint().as_deref(), Some("did you mean `seed`?"));
        assert!(jobs(vec![], vec![entry("seed", Value::List(vec![]))]).is_err());
    }
}
