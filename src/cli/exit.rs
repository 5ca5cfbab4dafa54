//! Exit codes: the only place that names them.

use sora::{Error, ErrorKind};

/// How the program ends, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Usage = 2,
    Model = 3,
    Io = 4,
    Resources = 5,
    BadOutput = 6,
    Hub = 7,
    Partial = 8,
    Internal = 70,
    Cancelled = 130,
}

/// What `--help` and the man page say about each code.
pub const TABLE: [(Exit, &str); 10] = [
    (Exit::Ok, "done"),
    (Exit::Usage, "the command line asks for something that can't be"),
    (Exit::Model, "a model's files are missing, damaged or of another kind"),
    (Exit::Io, "reading or writing a file failed (permissions, full disk, no such folder)"),
    (Exit::Resources, "no such device, or too little memory"),
    (
        Exit::BadOutput,
        "the video was written, but it is no picture of anything (NaN, one colour, frozen noise)",
    ),
    (Exit::Hub, "a model couldn't be downloaded: no connection, no such model, no leave, wrong bytes"),
    (Exit::Partial, "some jobs of a batch failed, the others are done"),
    (Exit::Internal, "a defect of this program"),
    (Exit::Cancelled, "stopped by Ctrl-C"),
];

/// [`TABLE`] as indented lines.
pub fn table() -> String {
    TABLE.iter().map(|(exit, what)| format!("  {:>3}  {what}\n", *exit as u8)).collect()
}

impl From<ErrorKind> for Exit {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Usage => Self::Usage,
            ErrorKind::Model => Self::Model,
            ErrorKind::Io => Self::Io,
            ErrorKind::Resources => Self::Resources,
            ErrorKind::BadOutput => Self::BadOutput,
            ErrorKind::Hub => Self::Hub,
            ErrorKind::Partial => Self::Partial,
            ErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Internal,
        }
    }
}

impl From<&anyhow::Error> for Exit {
    fn from(error: &anyhow::Error) -> Self {
        if let Some(error) = error.downcast_ref::<Error>() {
            error.kind().into()
        } else if error.is::<std::io::Error>() {
            Self::Io
        } else {
            Self::Internal
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}
