//! The walls of the design as a test: who imports whom, where families are named, how long files are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

const LONGEST_FILE: usize = 700;

/// Modules that every other one may import.
const GROUND: [&str; 4] = ["device", "error", "event", "video"];

/// A module of the library and what it may import beside [`GROUND`].
const ARROWS: [(&str, &[&str]); 12] = [
    ("device", &[]),
    ("error", &[]),
    ("event", &[]),
    ("video", &[]),
    ("weights", &[]),
    ("nn", &["weights"]),
    ("models", &["nn", "weights"]),
    ("media", &[]),
    ("hub", &[]),
    ("pipeline", &["models::api", "models::registry"]),
    (
        "app",
        &[
            "hub",
            "media",
            "models::api",
            "models::catalog",
            "models::portable",
            "models::registry",
            "models::source",
            "pipeline",
        ],
    ),
    ("lib", &[]),
];

/// A foreign crate and the only places under `src/` that may name it.
const FOREIGN: [(&str, &[&str]); 11] = [
    ("anyhow", &["cli/"]),
    ("clap", &["cli/"]),
    ("csv_core", &["app/batch/"]),
    ("ctrlc", &["cli/"]),
    ("indicatif", &["cli/progress.rs"]),
    ("ffmpeg_next", &["media/", "error.rs"]),
    ("image", &["media/"]),
    ("hf_hub", &["hub/"]),
    ("rusqlite", &["app/journal/"]),
    ("ureq", &["hub/"]),
    ("tokenizers", &["models/"]),
];

const FAMILIES: [&str; 4] = ["ltx", "t5", "umt5", "wan"];

struct Source {
    /// Relative to the package, `/` between folders.
    path: String,
    lines: usize,
    /// The text without comments and without what stands in quotes.
    code: String,
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("a folder can be listed").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(read(root, &path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn read(root: &Path, path: &PathBuf) -> Source {
    let text = fs::read_to_string(path).expect("a source file is text");
    let relative = path.strip_prefix(root).expect("the file lies in the package");
    Source {
        path: relative.to_string_lossy().replace('\\', "/"),
        lines: text.lines().count(),
        code: code_of(&text),
    }
}

/// Blanks comments, strings and character literals; line breaks stay.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = quoted(rest).unwrap_or(0);
        if length > 0 {
            code.extend(rest[..length].chars().filter(|c| *c == '\n'));
            code.push(' ');
            rest = &rest[length..];
        } else {
            // A whole word at a time, so that the `r` of `for"` starts no raw string.
            let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let length = word.max(first.len_utf8());
            code.push_str(&rest[..length]);
            rest = &rest[length..];
        }
    }
    code
}

/// The length of the comment or literal that `text` starts with.
fn quoted(text: &str) -> Option<usize> {
    let until =
        |from: usize, end: &str| text[from..].find(end).map_or(text.len(), |at| from + at + end.len());
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(until(2, "*/"));
    }
    let body = text.trim_start_matches(['b', 'c']);
    let prefix = text.len() - body.len();
    if prefix <= 1 && body.starts_with('r') {
        let hashes = body[1..].len() - body[1..].trim_start_matches('#').len();
        if body[1 + hashes..].starts_with('"') {
            return Some(until(prefix + 2 + hashes, &format!("\"{}", "#".repeat(hashes))));
        }
    }
    if prefix <= 1 && body.starts_with('"') {
        let mut escaped = false;
        let end = body[1..].find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        return Some(end.map_or(text.len(), |at| prefix + 1 + at + 1));
    }
    if let Some(inner) = text.strip_prefix('\'') {
        let mut inner = inner.chars();
        let first = inner.next()?;
        if first == '\\' {
            return Some(until(3, "'"));
        }
        return (inner.next() == Some('\'')).then(|| 2 + first.len_utf8());
    }
    None
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// Every `module` or `module::inner` that the code names through `crate::`.
fn imports(code: &str) -> Vec<String> {
    code.match_indices("crate::")
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$'))
        .flat_map(|(at, head)| heads(&code[at + head.len()..], 2))
        .collect()
}

/// The first `depth` names of each path in `a::b::c` or `{a::b, c::{d, e}}`.
fn heads(text: &str, depth: usize) -> Vec<String> {
    let text = text.trim_start();
    if depth == 0 {
        return vec![String::new()];
    }
    if let Some(group) = text.strip_prefix('{') {
        return members(group).into_iter().flat_map(|member| heads(member, depth)).collect();
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match rest.strip_prefix("::") {
        Some(rest) if depth > 1 => {
            heads(rest, depth - 1).into_iter().map(|inner| format!("{name}::{inner}")).collect()
        }
        _ => vec![name.to_owned()],
    }
}

/// What stands between the commas of a group, up to its closing brace.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.push(&group[from..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|member| !member.trim().is_empty());
    found
}

fn module_of(path: &str) -> &str {
    let inner = path.strip_prefix("src/").expect("a path under src");
    inner.split('/').next().expect("a path has a head").trim_end_matches(".rs")
}

/// Whether the whole file is unit tests.
fn is_test(source: &Source) -> bool {
    source.path.ends_with("tests.rs") || source.path.contains("/tests/")
}

fn is_cli(source: &Source) -> bool {
    matches!(module_of(&source.path), "cli" | "main")
}

/// The code before the unit tests, which stand last in a file.
fn without_tests(code: &str) -> &str {
    code.split("#[cfg(test)]").next().expect("split gives at least one part")
}

fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn imports_point_down() {
    let mut complaints = Vec::new();
    for source in sources("src").iter().filter(|source| !is_cli(source)) {
        let module = module_of(&source.path);
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            complaints.push(format!("{}: module `{module}` stands on no floor of the design", source.path));
            continue;
        };
        for import in imports(&source.code) {
            let head = import.split("::").next().expect("split gives at least one part");
            // `crate::Error` and `crate::Result` are the crate's own names for the ground floor.
            let ground = GROUND.contains(&head) || head.starts_with(char::is_uppercase);
            let fine = ground || head == module || allowed.iter().any(|a| *a == head || *a == import);
            if !fine {
                complaints.push(format!("{}: `{module}` may not import `{import}`", source.path));
            }
        }
        if !is_test(source) && source.code.contains("super::super") {
            complaints.push(format!("{}: write `crate::…` instead of `super::super`", source.path));
        }
    }
    assert_none(complaints);
}

#[test]
fn foreign_crates_stay_where_they_belong() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let inner = source.path.trim_start_matches("src/");
        for (name, places) in FOREIGN {
            let path = format!("{name}::");
            let named = source.code.match_indices(&path).any(|(at, _)| {
                !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            });
            if named && !places.iter().any(|place| inner.starts_with(place)) {
                complaints.push(format!("{}: `{name}` belongs in {}", source.path, places.join(", ")));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn families_are_named_in_models_only() {
    let mut complaints = Vec::new();
    for source in sources("src").iter().filter(|source| module_of(&source.path) != "models") {
        for word in words(&source.code) {
            let lower = word.to_lowercase();
            let named = lower.contains("ltx") || lower.split('_').any(|part| FAMILIES.contains(&part));
            if named || word.starts_with("Wan") && word[3..].starts_with(char::is_uppercase) {
                complaints.push(format!("{}: `{word}`", source.path));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn files_are_short() {
    let folders = ["src", "tests", "benches", "examples"];
    let long = folders.iter().flat_map(|folder| sources(folder)).filter(|source| source.lines > LONGEST_FILE);
    assert_none(long.map(|source| format!("{}: {} lines", source.path, source.lines)).collect());
}

#[test]
fn only_the_command_line_prints_and_exits() {
    let forbidden =
        ["println!", "eprintln!", "print!", "eprint!", "dbg!", "process::exit", "env::var", "env::set_var"];
    let mut complaints = Vec::new();
    for source in sources("src").iter().filter(|source| !is_cli(source)) {
        let found = forbidden.iter().filter(|what| without_tests(&source.code).contains(*what));
        complaints.extend(found.map(|what| format!("{}: `{what}`", source.path)));
    }
    assert_none(complaints);
}

#[test]
fn nothing_panics_on_purpose() {
    let forbidden = [".unwrap()", "panic!", "todo!", "unimplemented!", "#[allow(dead_code)]"];
    let mut complaints = Vec::new();
    for source in sources("src").iter().filter(|source| !is_test(source)) {
        let found = forbidden.iter().filter(|what| without_tests(&source.code).contains(*what));
        complaints.extend(found.map(|what| format!("{}: `{what}`", source.path)));
    }
    assert_none(complaints);
}

#[test]
fn the_reader_of_sources_reads_right() {
    let text = r##"use crate::{a::{b, c::d}, e}; // crate::f
        let x = "crate::g \" crate::h"; let y = r#"crate::"i"#; let z = '"'; fn k<'a>() { crate::j::l::m() }"##;
    assert_eq!(imports(&code_of(text)), ["a::b", "a::c", "e", "j::l"]);
    let app = sources("src").into_iter().find(|source| source.path == "src/models/api.rs");
    assert!(imports(&app.expect("the file of the traits").code).contains(&"error::Error".to_owned()));
}
