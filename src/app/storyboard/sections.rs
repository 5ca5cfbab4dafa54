//! A TOML file read table by table, where every complaint knows its line and column.

use std::{cell::RefCell, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    app::wording::{listed, nearest},
    error::Complaint,
};

/// Where something stands in the file, in bytes.
pub(super) type Place = Range<usize>;

/// The text of a file and what is wrong with it so far.
pub(super) struct Source<'a> {
    text: &'a str,
    complaints: RefCell<Vec<Complaint>>,
}

impl<'a> Source<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, complaints: RefCell::default() }
    }

    pub fn complain(&self, place: &Place, text: impl Into<String>) {
        let mut start = place.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &self.text[..start];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.complaints.borrow_mut().push(Complaint { line, column, text: text.into() });
    }

    /// All complaints, from the top of the file on.
    pub fn complaints(self) -> Vec<Complaint> {
        let mut complaints = self.complaints.into_inner();
        complaints.sort_by_key(|complaint| (complaint.line, complaint.column));
        complaints.dedup();
        complaints
    }
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct At<T> {
    pub value: T,
    pub place: Place,
}

/// A table that is being read: keys are asked for one by one, and what nobody asked for is a mistake.
pub(super) struct Section<'a> {
    source: &'a Source<'a>,
    table: &'a DeTable<'a>,
    /// Where the table stands.
    pub place: Place,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub fn new(source: &'a Source<'a>, table: &'a DeTable<'a>, place: Place) -> Self {
        Self { source, table, place, known: RefCell::default() }
    }

    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = value.get_ref().type_str();
        self.source.complain(&value.span(), format!("`{key}`: expected {expected}, found {found}"));
    }

    /// A text.
    pub fn text(&self, key: &'static str) -> Option<At<String>> {
        let value = self.get(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some(At { value: text.to_owned(), place: value.span() }),
            None => {
                self.wrong(key, value, "a text in quotes");
                None
            }
        }
    }

    /// A text that something is made of; what can't be made is a complaint with the reason.
    pub fn parsed<T>(&self, key: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> Option<At<T>> {
        let At { value, place } = self.text(key)?;
        match parse(&value) {
            Ok(value) => Some(At { value, place }),
            Err(why) => {
                self.source.complain(&place, why);
                None
            }
        }
    }

    /// A number.
    pub fn number(&self, key: &'static str) -> Option<At<f64>> {
        let value = self.get(key)?;
        let text = match value.get_ref() {
            DeValue::Integer(number) => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => {
                self.wrong(key, value, "a number");
                return None;
            }
        };
        match text.replace('_', "").parse::<f64>() {
            Ok(number) => Some(At { value: number, place: value.span() }),
            Err(_) => {
                self.source.complain(&value.span(), format!("`{key}` = {text} is no number"));
                None
            }
        }
    }

    /// A whole number from 0 on.
    pub fn count(&self, key: &'static str) -> Option<At<u64>> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().replace('_', "").parse::<u64>().ok(),
            _ => None,
        };
        if number.is_none() {
            self.source.complain(&value.span(), format!("`{key}` is no whole number from 0 on"));
        }
        number.map(|number| At { value: number, place: value.span() })
    }

    /// A time: a number of seconds, or a text such as `2.5s` or `500ms`.
    pub fn time(&self, key: &'static str) -> Option<At<f64>> {
        let value = self.get(key)?;
        let seconds = match value.get_ref() {
            DeValue::String(text) => seconds(text),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        };
        match seconds.filter(|time| time.is_finite()) {
            Some(time) => Some(At { value: time, place: value.span() }),
            None => {
                self.source.complain(&value.span(), format!("`{key}` is no time (expected e.g. \"2.5s\")"));
                None
            }
        }
    }

    /// A list whose members are read by `each`; one member may stand alone.
    pub fn list<T>(&self, key: &'static str, each: impl Fn(&'a Spanned<DeValue<'a>>) -> Option<T>) -> Vec<T> {
        match self.get(key) {
            None => Vec::new(),
            Some(value) => match value.get_ref() {
                DeValue::Array(members) => members.iter().filter_map(each).collect(),
                _ => each(value).into_iter().collect(),
            },
        }
    }

    /// The tables of `[[key]]`.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        self.list(key, |value| self.section_of(key, value))
    }

    /// The table of `[key]`.
    pub fn section(&self, key: &'static str) -> Option<Section<'a>> {
        self.section_of(key, self.get(key)?)
    }

    /// The tables in `[key.NAME]`, with their names.
    pub fn named(&self, key: &'static str) -> Vec<(At<String>, Section<'a>)> {
        let Some(section) = self.section(key) else { return Vec::new() };
        let entries = section.table.iter().filter_map(|(name, value)| {
            let at = At { value: name.get_ref().to_string(), place: name.span() };
            Some((at, self.section_of("an entry", value)?))
        });
        entries.collect()
    }

    fn section_of(&self, key: &'static str, value: &'a Spanned<DeValue<'a>>) -> Option<Section<'a>> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(self.source, table, value.span())),
            _ => {
                self.wrong(key, value, "a table");
                None
            }
        }
    }

    /// Complains of every key that nobody asked for.
    pub fn finish(self) {
        let known = self.known.into_inner();
        for (name, _) in self.table {
            let word = name.get_ref().as_ref();
            if !known.contains(&word) {
                let near = match nearest(word, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("expected {}", listed(&known)),
                };
                self.source.complain(&name.span(), format!("unknown key `{word}`: {near}"));
            }
        }
    }
}

/// `2`, `2s`, `500ms` or `1m` in seconds.
pub(super) fn seconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let factor = match &text[at..] {
        "" | "s" | "sec" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        _ => return None,
    };
    Some(text[..at].trim().parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_lines_and_columns() {
        let source = Source::new("a = 1\nbé = 2\n");
        source.complain(&(10..11), "later");
        source.complain(&(0..1), "first");
        source.complain(&(999..999), "end");
        let told: Vec<String> = source.complaints().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["1:1: first", "2:4: later", "3:1: end"]);
    }

    #[test]
    fn times() {
        assert_eq!(seconds("2.5s"), Some(2.5));
        assert_eq!(seconds(" 500 ms"), Some(0.5));
        assert_eq!(seconds("1m"), Some(60.0));
        assert_eq!(seconds("3"), Some(3.0));
        assert_eq!(seconds("soon"), None);
    }
}
