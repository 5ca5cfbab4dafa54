//! A fixed share of a batch, for workers that can't see each other's claims.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// Share `index` of `count`, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// As part of a file's name: `1-of-8`.
    pub(super) fn file_word(self) -> String {
        self.to_string().replace('/', "-of-")
    }

    /// Share `index` of `count`, from 1.
    pub fn new(index: usize, count: usize) -> Result<Self> {
        if (1..=count).contains(&index) {
            return Ok(Self { index, count });
        }
        Err(Error::invalid(format!("share {index} of {count}"), "expected I/N with I from 1 to N, e.g. 1/8"))
    }

    /// Whether job `n` belongs to it.
    #[must_use]
    pub fn has(self, n: usize) -> bool {
        n % self.count == self.index % self.count
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        let (index, count) = numbers.ok_or_else(|| {
            Error::invalid(format!("share `{text}`"), "expected I/N with I from 1 to N, e.g. 1/8")
        })?;
        Self::new(index, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_has_one_share() -> Result<()> {
        for n in 1..50 {
            let owners = (1..=7).filter(|index| Shard::new(*index, 7).is_ok_and(|shard| shard.has(n)));
            assert_eq!(owners.count(), 1, "job {n}");
        }
        assert_eq!("3/8".parse::<Shard>()?, Shard { index: 3, count: 8 });
        for text in ["0/8", "9/8", "3", "a/b", "1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        Ok(())
    }
}
