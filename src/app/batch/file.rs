//! Job files: what stands in them, and where. Nothing here knows what a key means.

mod csv;
mod json;
mod lines;
mod toml;

use std::{fmt, path::Path, str::FromStr};

use crate::error::{Error, Result};

/// How a job file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Defaults in the head, then a `[[job]]` each.
    Toml,
    /// An object a line; the first may be `{"defaults": {…}}`.
    JsonLines,
    /// A head of keys, then a job a line.
    Csv,
    /// A prompt a line; empty lines and those that start with `#` are none.
    Prompts,
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Toml => "toml",
            Self::JsonLines => "jsonl",
            Self::Csv => "csv",
            Self::Prompts => "txt",
        })
    }
}

impl FromStr for FileFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "toml" => Self::Toml,
            "jsonl" | "ndjson" | "json" => Self::JsonLines,
            "csv" => Self::Csv,
            "txt" => Self::Prompts,
            _ => {
                return Err(Error::invalid(
                    format!("job file format `{text}`"),
                    "expected toml, jsonl, csv or txt",
                ));
            }
        })
    }
}

impl FileFormat {
    /// By a file's ending; by what it holds if it has none, as what comes from a pipe.
    pub fn of(path: &Path, text: &str) -> Result<Self> {
        match path.extension() {
            Some(ending) => ending.to_string_lossy().parse().map_err(|_| Error::UnknownEnding {
                path: path.to_owned(),
                ending: format!(".{}", ending.to_string_lossy()),
                expected: ".toml, .jsonl, .csv or .txt for a job file".into(),
            }),
            None if text.trim_start().starts_with('{') => Ok(Self::JsonLines),
            None => Ok(Self::Prompts),
        }
    }
}

/// A place in a job file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spot {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Spot {
    /// The place of a byte of a text.
    fn of(text: &str, byte: usize) -> Self {
        let before = &text[..byte.min(text.len())];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

/// What stands behind a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A text, or a number as it is written.
    Text(String),
    /// Several.
    List(Vec<Value>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub spot: Spot,
    /// Its value.
    pub value: Value,
}

/// What describes one job, or the many jobs of a matrix.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Block {
    /// Where it starts.
    pub spot: Spot,
    /// Its keys, in the order of the file.
    pub entries: Vec<Entry>,
}

/// What is wrong in one place of a job file.
#[derive(Debug)]
pub struct Mistake {
    /// Where.
    pub spot: Spot,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// What is wrong.
    pub error: Box<Error>,
}

impl Mistake {
    /// A mistake about a key or about none.
    pub fn new(spot: Spot, key: Option<&str>, error: Error) -> Self {
        Self { spot, key: key.map(str::to_owned), error: Box::new(error) }
    }

    /// The error that names the file, too.
    #[must_use]
    pub fn within(self, path: &Path) -> Error {
        let Self { spot, key, error } = self;
        Error::Job { path: path.to_owned(), line: spot.line, column: spot.column, key, source: error }
    }
}

/// A job file, taken apart.
#[derive(Debug, Default)]
pub struct JobFile {
    /// Defaults for all jobs.
    pub head: Vec<Entry>,
    /// The jobs, in order; one that can't be read leaves the others as they are.
    pub blocks: Vec<Result<Block, Mistake>>,
}

impl JobFile {
    /// Takes a text apart. An error means that not even the jobs can be told from each other.
    pub fn parse(path: &Path, text: &str, format: FileFormat) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        match format {
            FileFormat::Toml => toml::parse(text),
            FileFormat::JsonLines => json::parse(text),
            FileFormat::Csv => csv::parse(text),
            FileFormat::Prompts => Ok(lines::parse(text)),
        }
        .map_err(|mistake| mistake.within(path))
    }
}

#[cfg(test)]
mod tests;
