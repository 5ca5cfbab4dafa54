//! An object a line.

use serde_json::Value as Json;

use super::{Block, Entry, JobFile, Mistake, Spot, Value};
use crate::error::Error;

const DEFAULTS: &str = "defaults";

pub(super) fn parse(text: &str) -> Result<JobFile, Mistake> {
    let mut file = JobFile::default();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let spot = Spot { line: index + 1, column: 1 };
        match serde_json::from_str::<Json>(line) {
            Ok(Json::Object(object)) if object.len() == 1 && object.contains_key(DEFAULTS) => {
                let Json::Object(defaults) = &object[DEFAULTS] else {
                    return Err(Mistake::new(
                        spot,
                        Some(DEFAULTS),
                        Error::invalid("value", "expected an object"),
                    ));
                };
                file.head.extend(entries(line, spot, defaults)?);
            }
            Ok(Json::Object(object)) => {
                let block = entries(line, spot, &object).map(|entries| Block { spot, entries });
                file.blocks.push(block);
            }
            Ok(_) => file.blocks.push(Err(Mistake::new(
                spot,
                None,
                Error::invalid("line", "expected a JSON object"),
            ))),
            Err(error) => {
                let spot = Spot { column: error.column().max(1), ..spot };
                // The text ends in a place within the line, which is no line of the file.
                let why = error.to_string();
                let why = why.split(" at line ").next().unwrap_or_default().to_owned();
                file.blocks.push(Err(Mistake::new(spot, None, Error::invalid("JSON", why))));
            }
        }
    }
    Ok(file)
}

fn entries(line: &str, spot: Spot, object: &serde_json::Map<String, Json>) -> Result<Vec<Entry>, Mistake> {
    let entry = |(key, value): (&String, &Json)| {
        // Good enough for a message: the first place where the key stands in quotes.
        let byte = line.find(&format!("\"{key}\"")).unwrap_or(0);
        let spot = Spot { column: line[..byte].chars().count() + 1, ..spot };
        match scalar_or_list(value) {
            Some(value) => Ok(Some(Entry { key: key.clone(), spot, value })),
            // As if the key weren't there.
            None if value.is_null() => Ok(None),
            None => {
                let why = "expected a text, a number, true, false or a list";
                Err(Mistake::new(spot, Some(key), Error::invalid("value", why)))
            }
        }
    };
    object.iter().map(entry).filter_map(Result::transpose).collect()
}

fn scalar_or_list(value: &Json) -> Option<Value> {
    Some(match value {
        Json::Bool(on) => Value::Bool(*on),
        Json::Number(number) => Value::Text(number.to_string()),
        Json::String(text) => Value::Text(text.clone()),
        Json::Array(values) => Value::List(values.iter().map(scalar_or_list).collect::<Option<_>>()?),
        Json::Null | Json::Object(_) => return None,
    })
}
