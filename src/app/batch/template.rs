//! Names and prompts with places to fill in: `{n:04}-{slug}-{seed}.mp4`.

use std::{borrow::Cow, collections::BTreeMap};

use crate::error::{Error, Result};

/// What can be filled in, by name.
pub type Values = BTreeMap<String, String>;

/// One piece of a template.
enum Piece<'a> {
    Text(Cow<'a, str>),
    /// A name, and the digits that a number is filled up to.
    Place {
        name: &'a str,
        digits: usize,
        whole: &'a str,
    },
}

/// Fills in a name; an unknown place is an error. Values are written as `spell` has them.
pub fn fill(template: &str, values: &Values, spell: impl Fn(&str) -> String) -> Result<String> {
    let mut text = String::new();
    for piece in pieces(template) {
        match piece {
            Piece::Text(piece) => text.push_str(&piece),
            Piece::Place { name, digits, .. } => {
                let value = values.get(name).ok_or_else(|| {
                    let known: Vec<_> = values.keys().map(|name| format!("{{{name}}}")).collect();
                    Error::invalid(
                        format!("place `{{{name}}}`"),
                        format!("expected one of {}; `{{{{` is a brace", known.join(" ")),
                    )
                })?;
                let value = spell(value);
                let digits = if value.bytes().all(|byte| byte.is_ascii_digit()) { digits } else { 0 };
                text.push_str(&format!("{value:0>digits$}"));
            }
        }
    }
    Ok(text)
}

/// Fills in what is known, and leaves all else as it is: a prompt may have braces of its own.
#[must_use]
pub fn fill_known(template: &str, values: &Values) -> String {
    let mut text = String::new();
    for piece in pieces(template) {
        match piece {
            Piece::Place { name, whole, .. } => text.push_str(values.get(name).map_or(whole, |value| value)),
            // Nothing but places is touched, doubled braces neither.
            Piece::Text(Cow::Owned(brace)) => text.push_str(&brace.repeat(2)),
            Piece::Text(piece) => text.push_str(&piece),
        }
    }
    text
}

/// The names of a template's places.
pub fn names(template: &str) -> impl Iterator<Item = &str> {
    pieces(template).into_iter().filter_map(|piece| match piece {
        Piece::Place { name, .. } => Some(name),
        Piece::Text(_) => None,
    })
}

fn pieces(template: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        if at > 0 {
            pieces.push(Piece::Text(Cow::Borrowed(&rest[..at])));
        }
        rest = &rest[at..];
        let brace = &rest[..1];
        if rest[1..].starts_with(brace) {
            pieces.push(Piece::Text(Cow::Owned(brace.to_owned())));
            rest = &rest[2..];
        } else if let Some((place, length)) = place(rest) {
            pieces.push(place);
            rest = &rest[length..];
        } else {
            pieces.push(Piece::Text(Cow::Borrowed(brace)));
            rest = &rest[1..];
        }
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(Cow::Borrowed(rest)));
    }
    pieces
}

/// The place that a text starts with, and its length.
fn place(text: &str) -> Option<(Piece<'_>, usize)> {
    let end = text.find('}')?;
    let inner = text[..end].strip_prefix('{')?;
    let (name, format) = inner.split_once(':').unwrap_or((inner, "0"));
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let digits = format.parse().ok().filter(|digits| *digits <= 20)?;
    let whole = &text[..=end];
    (!name.is_empty() && name.chars().all(plain)).then_some((Piece::Place { name, digits, whole }, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        [("n", "7"), ("style", "oil/paint"), ("seed", "12345")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into()
    }

    #[test]
    fn names_are_filled_in() {
        let fill = |template: &str| fill(template, &values(), |value| value.replace('/', "-"));
        assert_eq!(fill("{n:04}-{style}-{seed:03}.mp4").expect("known"), "0007-oil-paint-12345.mp4");
        assert_eq!(fill("{{n}} {style:05}").expect("known"), "{n} oil-paint");
        assert_eq!(fill("a { b }").expect("no places"), "a { b }");
        let error = fill("{sed}").expect_err("unknown").to_string();
        assert_eq!(error, "invalid place `{sed}`: expected one of {n} {seed} {style}; `{{` is a brace");
    }

    #[test]
    fn prompts_keep_their_own_braces() {
        assert_eq!(
            fill_known("a fox, {style}, {x|y} {{n}} {other}", &values()),
            "a fox, oil/paint, {x|y} {{n}} {other}"
        );
        assert_eq!(names("{a}-{{b}}-{c:02}").collect::<Vec<_>>(), ["a", "c"]);
    }
}
