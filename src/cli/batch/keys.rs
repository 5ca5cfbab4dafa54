//! The options of `gen` as keys of a job file and as defaults on the command line of `batch`.

use std::{
    collections::HashMap,
    ffi::OsString,
    sync::{Mutex, PoisonError},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, FromArgMatches,
    builder::ValueParser,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};
use sora::{
    Error,
    app::{
        batch::{
            file::{Entry, Mistake, Spot, Value},
            options::{Arity, Options, STORYBOARD, Setting, Settings},
            request::JobRequest,
        },
        locate::locate,
        weave::WeaveRequest,
    },
    event::Silent,
    models::source::{ModelSource, Parts},
};

use crate::cli::{
    generate,
    hub::HubArgs,
    storyboard,
    visual::{Going, WeavingArgs},
};

/// Options that belong to a run of the program and not to a clip.
const NO_KEYS: [&str; 11] = [
    "resume",
    "threads",
    "progress",
    "json",
    "quiet",
    "verbose",
    "help",
    "version",
    "keep_loaded",
    // Of a film: it is checked with all jobs, and its file has a key of its own.
    "check",
    "film",
];

/// `gen` as clap knows it.
fn command() -> Command {
    built::<generate::Args>("gen")
}

fn built<A: clap::Args>(name: &'static str) -> Command {
    let mut command = A::augment_args(Command::new(name)).disable_help_flag(true);
    command.build();
    command
}

fn is_key(arg: &Arg) -> bool {
    !NO_KEYS.contains(&arg.get_id().as_str())
}

/// How a job file names an option: as the command line does; the prompt has no dashes there.
fn name_of(arg: &Arg) -> String {
    arg.get_long().map_or_else(|| arg.get_id().to_string(), str::to_owned)
}

fn arity_of(arg: &Arg) -> Arity {
    let values = arg.get_num_args().unwrap_or_default();
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse | ArgAction::Count => Arity::Flag,
        ArgAction::Append => Arity::Many,
        _ if arg.get_value_delimiter().is_some() || values.max_values() > 1 => Arity::Many,
        _ if values.min_values() == 0 => Arity::Maybe,
        _ => Arity::One,
    }
}

/// Knows the options of `gen` from its own command line.
pub struct GenOptions {
    command: Command,
    /// `storyboard`, for jobs that make a film.
    film: Command,
    /// Models that were found, by name: a batch asks for the same ones again and again.
    models: Mutex<HashMap<String, ModelSource>>,
}

impl GenOptions {
    pub fn new() -> Self {
        let film = built::<storyboard::Args>(STORYBOARD);
        Self { command: command(), film, models: Mutex::default() }
    }

    fn locate(&self, name: &str, own: &Parts, hub: &HubArgs) -> Result<ModelSource, Error> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        // What the user has an own one of isn't looked for.
        let key = format!("{name} {:?} {:?}", own.text_encoder.is_some(), own.tokenizer.is_some());
        if let Some(found) = models.get(&key) {
            return Ok(found.clone());
        }
        let found = locate(name, own, &hub.open(), &Silent)?;
        models.insert(key, found.clone());
        Ok(found)
    }

    fn lower_film(&self, settings: &Settings) -> Result<JobRequest, Mistake> {
        let parsed = self
            .film
            .clone()
            .try_get_matches_from(self.words(settings))
            .and_then(|matches| storyboard::Args::from_arg_matches(&matches));
        let args = parsed.map_err(|error| mistake(&error))?;
        let locate = |name| self.locate(name, &Parts::default(), args.hub());
        let model = args.model().map(locate).transpose();
        let model = model.map_err(|error| Mistake::new(Spot::default(), Some("model"), error))?;
        Ok(JobRequest::Film(Box::new(storyboard::lower(args, model))))
    }

    fn arg(&self, key: &str) -> Option<&Arg> {
        let key = key.replace('_', "-");
        self.command.get_arguments().filter(|arg| is_key(arg)).find(|arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            name_of(arg) == key || aliases.contains(&key.as_str())
        })
    }

    /// The command line that asks for these options.
    fn words(&self, settings: &Settings) -> Vec<OsString> {
        let mut words = vec!["sora".to_owned()];
        let mut prompt = None;
        for (name, setting) in settings {
            let arg = self.arg(name);
            match setting {
                Setting::Present(on) => words.extend(on.then(|| format!("--{name}"))),
                Setting::One(text) if name == STORYBOARD || arg.is_some_and(Arg::is_positional) => {
                    prompt = Some(text.clone());
                }
                Setting::One(text) => words.push(format!("--{name}={text}")),
                Setting::Many(texts) => match arg.and_then(Arg::get_value_delimiter) {
                    Some(delimiter) => {
                        words.push(format!("--{name}={}", texts.join(delimiter.to_string().as_str())));
                    }
                    None if arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Append)) => {
                        words.extend(texts.iter().map(|text| format!("--{name}={text}")));
                    }
                    None => {
                        words.push(format!("--{name}"));
                        words.extend(texts.iter().cloned());
                    }
                },
            }
        }
        if let Some(prompt) = prompt {
            words.extend(["--".to_owned(), prompt]);
        }
        words.into_iter().map(OsString::from).collect()
    }
}

impl Options for GenOptions {
    fn find(&self, key: &str) -> Option<(String, Arity)> {
        if key == STORYBOARD {
            return Some((STORYBOARD.to_owned(), Arity::One));
        }
        self.arg(key).map(|arg| (name_of(arg), arity_of(arg)))
    }

    fn names(&self) -> Vec<String> {
        let of_gen = self.command.get_arguments().filter(|arg| is_key(arg)).map(name_of);
        of_gen.chain([STORYBOARD.to_owned()]).collect()
    }

    fn names_for_films(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.film.get_arguments().filter(|arg| is_key(arg)).map(name_of).collect();
        names.sort();
        names
    }

    fn lower(&self, settings: &Settings) -> Result<JobRequest, Mistake> {
        if settings.contains_key(STORYBOARD) {
            return self.lower_film(settings);
        }
        let parsed = self
            .command
            .clone()
            .try_get_matches_from(self.words(settings))
            .and_then(|matches| generate::Args::from_arg_matches(&matches));
        let args = parsed.map_err(|error| mistake(&error))?;
        let about = |error: Error| Mistake::new(Spot::default(), None, error);
        let about_context = |error: Error| Mistake::new(Spot::default(), Some("context"), error);
        let going = args.going().map_err(about_context)?;
        let WeavingArgs { context, window } = args.weaving().clone();
        let base = generate::lower(args, &|name, own, hub| self.locate(name, own, hub)).map_err(about)?;
        Ok(match going {
            Going::Not => JobRequest::Clip(Box::new(base)),
            Going::Looped => JobRequest::Loop { clip: Box::new(base), context, window },
            Going::On(pattern) => {
                let weave = WeaveRequest { base, pattern, context, window, made: None };
                JobRequest::Weave(Box::new(weave))
            }
        })
    }
}

/// What clap complains of, without what it says of the command line.
fn mistake(error: &clap::Error) -> Mistake {
    let text = error.render().to_string();
    let text = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    let why = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(name)) => Some(name.clone()),
        Some(ContextValue::Strings(names)) => names.first().cloned(),
        _ => None,
    };
    let key = named.map(|name| {
        let end = name.find([' ', '=', '[']).unwrap_or(name.len());
        name[..end].trim_matches(['-', '<', '>']).to_lowercase()
    });
    Mistake::new(Spot::default(), key.as_deref(), Error::invalid("option", why))
}

/// Defaults for all jobs, given as `gen`'s options on the command line.
#[derive(Debug, Clone)]
pub struct Defaults(pub Vec<Entry>);

impl Defaults {
    /// The words that ask for the same.
    pub fn words(&self) -> Vec<String> {
        let word = |entry: &Entry| match &entry.value {
            Value::Bool(_) => vec![format!("--{}", entry.key)],
            Value::Text(text) => vec![format!("--{}={text}", entry.key)],
            Value::List(values) => {
                let texts = values.iter().filter_map(|value| match value {
                    Value::Text(text) => Some(format!("--{}={text}", entry.key)),
                    _ => None,
                });
                texts.collect()
            }
        };
        self.0.iter().flat_map(word).collect()
    }
}

impl clap::Args for Defaults {
    fn augment_args(batch: Command) -> Command {
        let mut batch = batch.next_help_heading("Defaults for all jobs: the options of `sora gen`");
        for arg in command().get_arguments().filter(|arg| is_key(arg)) {
            let Some(long) = arg.get_long() else { continue };
            if batch.get_arguments().any(|own| own.get_long() == Some(long)) {
                continue;
            }
            let mut copy = Arg::new(arg.get_id().clone()).long(long.to_owned()).hide_short_help(true);
            if let Some(help) = arg.get_help() {
                copy = copy.help(help.clone());
            }
            if let Some(names) = arg.get_value_names() {
                copy = copy.value_names(names.to_vec());
            }
            copy = match arity_of(arg) {
                Arity::Flag => copy.action(ArgAction::SetTrue),
                Arity::Maybe => copy
                    .action(ArgAction::Append)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("")
                    .value_parser(ValueParser::string()),
                Arity::One | Arity::Many => copy
                    .action(ArgAction::Append)
                    .num_args(1)
                    .allow_negative_numbers(true)
                    .value_parser(ValueParser::string()),
            };
            batch = batch.arg(copy);
        }
        batch
    }

    fn augment_args_for_update(batch: Command) -> Command {
        Self::augment_args(batch)
    }
}

impl FromArgMatches for Defaults {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut entries = Vec::new();
        for arg in command().get_arguments().filter(|arg| is_key(arg) && arg.get_long().is_some()) {
            let id = arg.get_id().as_str();
            let ours = matches.try_contains_id(id).unwrap_or(false);
            if !ours || matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let arity = arity_of(arg);
            let value = if arity == Arity::Flag {
                Value::Bool(true)
            } else {
                let Ok(Some(texts)) = matches.try_get_many::<String>(id) else { continue };
                let mut texts: Vec<Value> = texts.map(|text| Value::Text(text.clone())).collect();
                match (arity, texts.pop()) {
                    (Arity::Maybe, Some(Value::Text(text))) if text.is_empty() => Value::Bool(true),
                    (Arity::Many, Some(last)) => Value::List([texts, vec![last]].concat()),
                    // As on `gen`'s own command line, the last one counts.
                    (_, Some(last)) => last,
                    (_, None) => continue,
                }
            };
            entries.push(Entry { key: name_of(arg), spot: Spot::default(), value });
        }
        Ok(Self(entries))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Setting {
        Setting::One(text.into())
    }

    fn settings(pairs: &[(&str, Setting)]) -> Settings {
        pairs.iter().map(|(name, setting)| ((*name).to_owned(), setting.clone())).collect()
    }

    #[test]
    fn every_option_of_gen_is_a_key() {
        let options = GenOptions::new();
        let names = options.names();
        for arg in command().get_arguments().filter(|arg| is_key(arg)) {
            assert!(names.contains(&name_of(arg)) && options.find(&name_of(arg)).is_some(), "{arg:?}");
        }
        assert_eq!(options.find("negative_prompt"), Some(("negative-prompt".into(), Arity::One)));
        assert_eq!(options.find("timesteps").map(|found| found.1), Some(Arity::Many));
        assert_eq!(options.find("preview").map(|found| found.1), Some(Arity::Maybe));
        assert_eq!(options.find("resume"), None);
    }

    #[test]
    fn settings_become_a_request() {
        let options = GenOptions::new();
        let timesteps = Setting::Many(vec!["900,1".into()]);
        let asked = settings(&[("prompt", one("- a fox --")), ("fps", one("2.5")), ("timesteps", timesteps)]);
        let JobRequest::Clip(request) = options.lower(&asked).expect("a request") else { panic!("no clip") };
        assert_eq!((request.prompt.as_str(), request.fps), ("- a fox --", Some(2.5)));
        assert_eq!(request.sampling.timesteps, [vec![900.0, 1.0]]);
    }

    #[test]
    fn a_film_takes_the_options_of_its_own_command() {
        let options = GenOptions::new();
        let names = options.names_for_films();
        for name in ["model", "upscale", "output", "codec", "window", "device"] {
            assert!(names.contains(&name.to_owned()), "{name} is not in {names:?}");
        }
        for name in &names {
            assert!(options.find(name).is_some(), "`gen` has no {name}: its kind of value isn't known");
        }
        assert!(
            !names.iter().any(|name| ["prompt", "seed", "film", "check", "threads"].contains(&name.as_str()))
        );
        let asked = settings(&[("storyboard", one("a.toml")), ("crf", one("9"))]);
        let JobRequest::Film(film) = options.lower(&asked).expect("a request") else { panic!("no film") };
        assert_eq!((film.film.to_string_lossy().as_ref(), film.outputs.encode.crf), ("a.toml", Some(9)));
        let mistake = options.lower(&settings(&[("storyboard", one("a.toml")), ("crf", one("x"))]));
        assert_eq!(mistake.expect_err("refused").key.as_deref(), Some("crf"));
    }

    #[test]
    fn mistakes_name_their_key() {
        let refused = |asked: &[(&str, Setting)]| {
            let mistake = GenOptions::new().lower(&settings(asked)).expect_err("refused");
            (mistake.key.unwrap_or_default(), mistake.error.to_string())
        };
        let (key, text) = refused(&[("prompt", one("a")), ("steps", one("many"))]);
        assert_eq!(key, "steps");
        assert!(text.starts_with("invalid option: invalid value 'many' for '--steps <N>'"), "{text}");
        assert_eq!(refused(&[("steps", one("2"))]).0, "prompt");
        assert_eq!(refused(&[("prompt", one("a")), ("size", one("64x64")), ("width", one("64"))]).0, "size");
    }
}
