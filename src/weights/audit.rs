//! Headers held against what a model needs, before any weight is read.

use std::collections::BTreeMap;

use super::files::Weights;
use crate::error::{Error, Result};

/// A check of one set of weights: expects tensors one by one and remembers them.
///
/// A model walks through the tensors of its configuration; the first that is missing or of another shape ends the walk,
/// so that a configuration which asks for a billion layers costs nothing.
pub struct Audit<'a> {
    weights: Option<&'a Weights>,
    expected: BTreeMap<String, Vec<usize>>,
}

impl<'a> Audit<'a> {
    /// Nothing is expected yet.
    #[must_use]
    pub fn new(weights: &'a Weights) -> Self {
        Self { weights: Some(weights), expected: BTreeMap::new() }
    }

    /// Takes everything as it is expected, for who wants to know what that is.
    #[must_use]
    pub fn listing() -> Self {
        Self { weights: None, expected: BTreeMap::new() }
    }

    /// There must be a tensor `key` of this shape, and of a format that can be read.
    pub fn expect(&mut self, key: String, shape: &[usize]) -> Result<()> {
        if let Some(weights) = self.weights {
            check(weights, &key, shape)?;
        }
        self.expected.insert(key, shape.to_vec());
        Ok(())
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.weights.is_some_and(|weights| weights.contains(key))
    }

    /// What was expected: keys and shapes.
    #[must_use]
    pub fn listed(self) -> BTreeMap<String, Vec<usize>> {
        self.expected
    }

    /// Keys below `prefix` that were not expected are an error, except those that end in one of `ignore`, or begin
    /// with one that itself ends in a dot.
    pub fn finish(self, prefix: &str, ignore: &[&str]) -> Result<()> {
        let Some(weights) = self.weights else { return Ok(()) };
        let ignored = |key: &str| {
            ignore.iter().any(|part| key.ends_with(part) || part.ends_with('.') && key.starts_with(part))
        };
        let unused = weights.keys().filter(|key| key.starts_with(prefix));
        let mut unused = unused.filter(|key| !self.expected.contains_key(*key) && !ignored(key));
        match unused.next() {
            None => Ok(()),
            Some(first) => Err(Error::UnusedTensors {
                file: weights.first_file(),
                first: first.to_owned(),
                count: 1 + unused.count(),
            }),
        }
    }
}

fn check(weights: &Weights, key: &str, shape: &[usize]) -> Result<()> {
    let Some(stored) = weights.stored(key) else {
        let file = weights.first_file();
        return Err(Error::MissingTensor { file, key: key.to_owned(), expected: shape.to_vec() });
    };
    let (file, name) = (stored.source.path.clone(), stored.name(key));
    if stored.entry.shape != shape {
        let (found, expected) = (stored.entry.shape.clone(), shape.to_vec());
        return Err(Error::MisshapenTensor { file, key: name, found, expected });
    }
    if stored.entry.encoding.block_bytes().is_none() {
        return Err(Error::TensorDtype { file, key: name, found: stored.entry.encoding.to_string() });
    }
    Ok(())
}
