//! TOML: keys before the first `[[job]]` are defaults.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Block, Entry, JobFile, Mistake, Spot, Value};
use crate::error::Error;

/// The name of a job's table.
const JOB: &str = "job";

pub(super) fn parse(text: &str) -> Result<JobFile, Mistake> {
    let document = DeTable::parse(text).map_err(|error| {
        let spot = Spot::of(text, error.span().map_or(0, |span| span.start));
        Mistake::new(spot, None, Error::invalid("TOML", error.message().trim().replace('\n', ", ")))
    })?;
    let mut file = JobFile::default();
    for (key, value) in in_order(document.get_ref()) {
        if key.get_ref() != JOB {
            file.head.push(entry(text, key, value)?);
            continue;
        }
        let DeValue::Array(jobs) = value.get_ref() else {
            let spot = Spot::of(text, key.span().start);
            return Err(Mistake::new(
                spot,
                Some(JOB),
                Error::invalid("table", "expected `[[job]]`, in two brackets"),
            ));
        };
        file.blocks.extend(jobs.iter().map(|job| block(text, job)));
    }
    if file.blocks.is_empty() && !file.head.is_empty() {
        let spot = file.head[0].spot;
        file.blocks.push(Ok(Block { spot, entries: Vec::new() }));
    }
    Ok(file)
}

type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;

/// The table itself is sorted by name.
fn in_order<'t, 'a>(table: &'t DeTable<'a>) -> Vec<(&'t Key<'a>, &'t Spanned<DeValue<'a>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn block(text: &str, job: &Spanned<DeValue<'_>>) -> Result<Block, Mistake> {
    let spot = Spot::of(text, job.span().start);
    let DeValue::Table(table) = job.get_ref() else {
        return Err(Mistake::new(spot, Some(JOB), Error::invalid("job", "expected a table of keys")));
    };
    let entries = in_order(table).into_iter().map(|(key, value)| entry(text, key, value));
    Ok(Block { spot, entries: entries.collect::<Result<_, _>>()? })
}

fn entry(text: &str, key: &Key<'_>, value: &Spanned<DeValue<'_>>) -> Result<Entry, Mistake> {
    let spot = Spot::of(text, key.span().start);
    let key = key.get_ref().to_string();
    match scalar_or_list(value.get_ref()) {
        Some(value) => Ok(Entry { key, spot, value }),
        None => Err(Mistake::new(
            spot,
            Some(&key),
            Error::invalid("value", "expected a text, a number, true, false or a list"),
        )),
    }
}

fn scalar_or_list(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        // `1_000` is 1000 elsewhere.
        DeValue::Integer(number) if number.radix() == 10 => Value::Text(number.as_str().replace('_', "")),
        DeValue::Integer(number) => {
            Value::Text(i64::from_str_radix(number.as_str(), number.radix()).ok()?.to_string())
        }
        DeValue::Float(number) => Value::Text(number.as_str().replace('_', "")),
        DeValue::Boolean(on) => Value::Bool(*on),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(values) => {
            Value::List(values.iter().map(|value| scalar_or_list(value.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(_) => return None,
    })
}
