//! The options of `gen` as keys of a job file. Which there are, and what they mean, the caller knows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{file::Mistake, request::JobRequest};

/// How many values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// None: it is there or not.
    Flag,
    /// One or none.
    Maybe,
    /// One: a list stands for a job each.
    One,
    /// Any number: a list is the value, a list of lists stands for a job each.
    Many,
}

/// The value of an option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// Present, without a value.
    Present(bool),
    /// One value.
    One(String),
    /// Several values.
    Many(Vec<String>),
}

/// What one job asks for, by option.
pub type Settings = BTreeMap<String, Setting>;

/// The key of a film file: the job makes that film.
pub const STORYBOARD: &str = "storyboard";

/// Knows the options of `gen`, and which of them mean something to a film.
pub trait Options: Sync {
    /// The name of the option that a key means, and how many values it takes; nothing if there is none.
    fn find(&self, key: &str) -> Option<(String, Arity)>;
    /// All names.
    fn names(&self) -> Vec<String>;
    /// Names of those that may stand beside [`STORYBOARD`].
    fn names_for_films(&self) -> Vec<String>;
    /// What is asked for with these options. The place of a mistake doesn't matter, its key does.
    fn lower(&self, settings: &Settings) -> Result<JobRequest, Mistake>;
}

/// The name nearest to a mistyped one, if one is near.
#[must_use]
pub fn nearest(typed: &str, names: &[String]) -> Option<String> {
    let ranked = names.iter().map(|name| (distance(typed, name), name));
    let (distance, name) = ranked.min_by_key(|(distance, _)| *distance)?;
    (distance <= typed.chars().count() / 3 + 1).then(|| name.clone())
}

/// Letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["steps", "seed", "negative-prompt"].map(str::to_owned);
        assert_eq!(nearest("stpes", &names).as_deref(), Some("steps"));
        assert_eq!(nearest("negativ_prompt", &names).as_deref(), Some("negative-prompt"));
        assert_eq!(nearest("banana", &names), None);
        assert_eq!(distance("", "abc"), 3);
    }
}
