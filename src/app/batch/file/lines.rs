//! A prompt a line.

use super::{Block, Entry, JobFile, Spot, Value};

pub(super) fn parse(text: &str) -> JobFile {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let prompts = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let block = |(line, prompt): (usize, &str)| {
        let spot = Spot { line, column: 1 };
        let entry = Entry { key: "prompt".into(), spot, value: Value::Text(prompt.into()) };
        Ok(Block { spot, entries: vec![entry] })
    };
    JobFile { head: Vec::new(), blocks: prompts.map(block).collect() }
}
