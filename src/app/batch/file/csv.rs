//! Comma-separated values: the first line has the keys; an empty field leaves its key out.

use csv_core::{ReadRecordResult, ReaderBuilder};

use super::{Block, Entry, JobFile, Mistake, Spot, Value};
use crate::error::Error;

pub(super) fn parse(text: &str) -> Result<JobFile, Mistake> {
    let mut file = JobFile::default();
    let mut keys: Option<Vec<String>> = None;
    for (spot, fields) in records(text) {
        let Some(keys) = &keys else {
            let named: Vec<String> = fields.into_iter().map(|field| field.trim().to_owned()).collect();
            if let Some(column) = named.iter().position(String::is_empty) {
                let why = format!("column {} has no name", column + 1);
                return Err(Mistake::new(spot, None, Error::invalid("head of keys", why)));
            }
            keys = Some(named);
            continue;
        };
        if fields.len() != keys.len() {
            let why = format!("expected {}, as many as there are keys", keys.len());
            let error = Error::invalid(format!("line of {} fields", fields.len()), why)
                .with_hint("put a field with a comma in it in quotes");
            file.blocks.push(Err(Mistake::new(spot, None, error)));
            continue;
        }
        let entry = |(key, field): (&String, String)| {
            let value = match field.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                _ => Value::Text(field),
            };
            Entry { key: key.clone(), spot, value }
        };
        let filled = keys.iter().zip(fields).filter(|(_, field)| !field.is_empty());
        file.blocks.push(Ok(Block { spot, entries: filled.map(entry).collect() }));
    }
    Ok(file)
}

/// The records and the lines that they start on; lines without anything are none.
fn records(text: &str) -> Vec<(Spot, Vec<String>)> {
    let mut reader = ReaderBuilder::new().build();
    // A last line without its end would come in two pieces.
    let text = format!("{}\n", text.trim_end_matches(['\n', '\r']));
    let mut input = text.as_bytes();
    let mut found = Vec::new();
    // No field is longer than the text, and none is without a separator behind it.
    let (mut output, mut ends) = (vec![0; text.len() + 1], vec![0; text.len() + 2]);
    loop {
        let blank =
            input.iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).filter(|byte| **byte == b'\n');
        let line = reader.line() as usize + blank.count();
        let (result, read, _, count) = reader.read_record(input, &mut output, &mut ends);
        input = &input[read..];
        match result {
            ReadRecordResult::Record => {
                let mut from = 0;
                let fields = ends[..count].iter().map(|&end| {
                    let field = String::from_utf8_lossy(&output[from..end]).into_owned();
                    from = end;
                    field
                });
                found.push((Spot { line, column: 1 }, fields.collect()));
            }
            // An empty input tells the reader that nothing more comes.
            ReadRecordResult::InputEmpty => {}
            ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull | ReadRecordResult::End => {
                return found;
            }
        }
    }
}
