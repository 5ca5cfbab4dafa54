//! Text for people on stderr: errors with their causes and the way out, warnings, panics.

use std::io::{IsTerminal, Write};

use sora::Error;

use crate::cli::exit::Exit;

/// Whether stderr wants colours: it is a terminal and `NO_COLOR` isn't set.
pub fn coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A word at the head of a line.
#[derive(Clone, Copy)]
pub enum Head {
    Error,
    Warning,
    Hint,
    Note,
}

/// `warning: text`, its head coloured where that is wanted.
pub fn line(head: Head, text: &str) -> String {
    let (name, colour) = match head {
        Head::Error => ("error", "\x1b[1;31m"),
        Head::Warning => ("warning", "\x1b[1;33m"),
        Head::Hint => ("hint", "\x1b[1;36m"),
        Head::Note => ("note", "\x1b[1m"),
    };
    if coloured() { format!("{colour}{name}:\x1b[0m {text}") } else { format!("{name}: {text}") }
}

/// An error, taken apart for printing.
pub struct Failure {
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    exit: Exit,
}

impl From<&anyhow::Error> for Failure {
    fn from(error: &anyhow::Error) -> Self {
        let message = error.to_string();
        let mut causes: Vec<String> = Vec::new();
        for cause in error.chain().skip(1).map(|cause| cause.to_string()) {
            // Some errors quote their source already.
            let known = causes.last().unwrap_or(&message).ends_with(&cause);
            if !known {
                causes.push(cause);
            }
        }
        let hint = error.chain().find_map(|e| e.downcast_ref::<Error>().and_then(Error::hint));
        Self { message, causes, hint, exit: error.into() }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let mut causes: Vec<String> = Vec::new();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !causes.last().unwrap_or(&error.to_string()).ends_with(&text) {
                causes.push(text);
            }
            source = cause.source();
        }
        Self { message: error.to_string(), causes, hint: error.hint(), exit: error.kind().into() }
    }
}

impl Failure {
    /// Prints it for a person, or as one JSON object when stderr is a stream of those.
    pub fn print(&self, json: bool) -> Exit {
        let mut err = std::io::stderr().lock();
        // Nobody is left to tell if stderr is closed.
        let _ = if json { self.print_json(&mut err) } else { self.print_text(&mut err) };
        self.exit
    }

    fn print_text(&self, err: &mut impl Write) -> std::io::Result<()> {
        writeln!(err, "{}", line(Head::Error, &self.message))?;
        for cause in &self.causes {
            writeln!(err, "  because: {cause}")?;
        }
        self.hint.iter().try_for_each(|hint| writeln!(err, "{}", line(Head::Hint, hint)))
    }

    fn print_json(&self, err: &mut impl Write) -> std::io::Result<()> {
        let object = serde_json::json!({
            "event": "error",
            "message": self.message,
            "causes": self.causes,
            "hint": self.hint,
            "exit_code": self.exit as u8,
        });
        writeln!(err, "{object}")
    }
}

/// Says of a panic what a user can do with it. The exit code is given where the panic is caught.
pub fn announce_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let what = payload.downcast_ref::<&str>().copied();
        let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        eprintln!("{}", line(Head::Error, &format!("sora has a defect: {what} ({place})")));
        let issues = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");
        let version = env!("CARGO_PKG_VERSION");
        eprintln!(
            "{}",
            line(
                Head::Hint,
                &format!("please report it with your command line and version {version}: {issues}")
            )
        );
    }));
}
