//! The journal of a batch: one SQLite database that says of each job what it is, who works on it and how it ended.
//!
//! Several processes share one journal. A worker *claims* a job for a while (its lease) and renews the claim while it
//! works; a claim that isn't renewed, or whose worker is known to be dead, can be taken over. Whatever a worker writes
//! about a job it writes under its claim's number, so that one that was stopped for too long changes nothing.

mod claims;
mod files;
mod rows;
mod worker;

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use crate::error::{Error, Result};

pub use claims::{Claim, Ending};
pub use files::{FileSystem, file_system, free_bytes};
pub use rows::{Counts, Row, State, Wanted};
pub use worker::Worker;

/// The format of the tables; a journal of another one is refused.
const VERSION: i64 = 1;

const TABLES: &str = "
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    line INTEGER NOT NULL,
    n INTEGER NOT NULL,
    output TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL,
    hash TEXT NOT NULL,
    model TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed', 'cancelled')),
    failures INTEGER NOT NULL DEFAULT 0,
    claims INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    lease INTEGER,
    steps_done INTEGER NOT NULL DEFAULT 0,
    steps INTEGER NOT NULL,
    pixels INTEGER NOT NULL,
    started INTEGER,
    finished INTEGER,
    seconds TEXT,
    error TEXT,
    output_sha256 TEXT,
    output_bytes INTEGER
);
CREATE INDEX jobs_by_state ON jobs (state, n);
CREATE TABLE submissions (id TEXT PRIMARY KEY, tasks INTEGER NOT NULL, at INTEGER NOT NULL);
";

/// An open journal. Each thread opens its own.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    connection: Connection,
    identity: Option<(u64, u64)>,
}

impl Journal {
    /// Opens a journal, or starts one.
    ///
    /// A journal that is damaged is moved aside, and a new one is started: the second value is where the old one is
    /// now. What the batch has made says for itself that it is done.
    pub fn open(path: &Path) -> Result<(Self, Option<PathBuf>)> {
        match Self::start(path) {
            Err(error) if is_damage(&error) => {
                let aside = path.with_extension(format!("damaged-{}", now()));
                // Another process may have been faster; then its new journal is what is opened below.
                if Self::start(path).is_err_and(|error| is_damage(&error)) {
                    std::fs::rename(path, &aside).map_err(Error::file("rename", path))?;
                    for suffix in ["-wal", "-shm"] {
                        let mut log = path.as_os_str().to_owned();
                        log.push(suffix);
                        // There may be none.
                        let _ = std::fs::remove_file(log);
                    }
                }
                Ok((Self::start(path)?, Some(aside)))
            }
            journal => Ok((journal?, None)),
        }
    }

    /// Opens a journal that must be there.
    pub fn existing(path: &Path) -> Result<Self> {
        if !path.is_file() {
            let what = format!("batch folder `{}`", path.ancestors().nth(2).unwrap_or(path).display());
            return Err(Error::invalid(what, "no batch has run there")
                .with_hint("give the job file or the folder that `sora batch` was given"));
        }
        Self::start(path)
    }

    fn start(path: &Path) -> Result<Self> {
        let open = || -> rusqlite::Result<Connection> {
            let mut connection = Connection::open(path)?;
            connection.busy_timeout(Duration::from_secs(60))?;
            // The log of writes lies in shared memory, which machines don't share.
            let mode = if file_system(path) == FileSystem::Local { "WAL" } else { "DELETE" };
            connection.pragma_update(None, "journal_mode", mode)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            let check: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if check != "ok" {
                return Err(damage());
            }
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            let empty: bool = tx.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
            if empty {
                tx.execute_batch(TABLES)?;
                tx.pragma_update(None, "user_version", VERSION)?;
            } else if version != VERSION {
                return Err(rusqlite::Error::InvalidParameterName(format!(
                    "it is of format {version} (expected {VERSION})"
                )));
            }
            tx.commit()?;
            Ok(connection)
        };
        let connection = open().map_err(|source| explain(path, source))?;
        Ok(Self { path: path.to_owned(), connection, identity: identity(path) })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another connection, for another thread.
    pub fn again(&self) -> Result<Self> {
        Self::existing(&self.path)
    }

    /// Refuses to go on when the file has been removed or replaced: what is written would be lost.
    pub fn check_there(&self) -> Result<()> {
        if identity(&self.path) == self.identity {
            return Ok(());
        }
        let gone = std::io::Error::new(std::io::ErrorKind::NotFound, "it was removed while the batch ran");
        Err(Error::File { action: "write", path: self.path.clone(), source: gone })
    }

    fn explain(&self, source: rusqlite::Error) -> Error {
        explain(&self.path, source)
    }

    /// Does `work` alone: no other process reads or writes in between.
    fn alone<T>(&mut self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let path = &self.path;
        let run = |connection: &mut Connection| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&tx)?;
            tx.commit()?;
            Ok(value)
        };
        run(&mut self.connection).map_err(|source| explain(path, source))
    }

    /// Notes a job array that was handed to a cluster.
    pub fn submitted(&mut self, id: &str, tasks: usize) -> Result<()> {
        self.alone(|tx| {
            tx.execute("INSERT OR REPLACE INTO submissions VALUES (?1, ?2, ?3)", (id, tasks as i64, now()))?;
            Ok(())
        })
    }

    /// The job arrays that were handed to a cluster, the last one first.
    pub fn submissions(&self) -> Result<Vec<String>> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut query = self.connection.prepare("SELECT id FROM submissions ORDER BY at DESC")?;
            query.query_map([], |row| row.get(0))?.collect()
        };
        read().map_err(|source| self.explain(source))
    }
}

fn explain(path: &Path, source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::File {
            action: "write",
            path: path.to_owned(),
            source: std::io::ErrorKind::StorageFull.into(),
        },
        _ => Error::Journal { path: path.to_owned(), source: Box::new(source) },
    }
}

fn damage() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, None)
}

fn is_damage(error: &Error) -> bool {
    let Error::Journal { source, .. } = error else { return false };
    let code = source.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Milliseconds since 1970.
#[must_use]
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// What tells a file from another that has its name.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    #[cfg(unix)]
    return Some((std::os::unix::fs::MetadataExt::dev(&meta), std::os::unix::fs::MetadataExt::ino(&meta)));
    #[cfg(not(unix))]
    Some((0, u64::from(meta.is_file())))
}

#[cfg(test)]
mod tests;
