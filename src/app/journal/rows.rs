//! Jobs as rows: what a job file wants, what a reader sees, what a person orders.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use rusqlite::{OptionalExtension, named_params};
use serde::Serialize;

use super::{Journal, now};
use crate::error::Result;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nobody works on it yet, or any more.
    Pending,
    /// A worker has claimed it.
    Running,
    /// Its output is there.
    Done,
    /// It failed as often as it may.
    Failed,
    /// Somebody took it back.
    Cancelled,
}

impl State {
    /// As the journal and people write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(name: &str) -> Self {
        let all = [Self::Pending, Self::Running, Self::Done, Self::Failed];
        // The table allows these five.
        all.into_iter().find(|state| state.name() == name).unwrap_or(Self::Cancelled)
    }
}

/// A job as a job file wants it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The line that it starts on.
    pub line: usize,
    /// Its number in its file, from 1.
    pub n: usize,
    /// Its output, relative to the batch's folder.
    pub output: String,
    /// All that a worker needs, as JSON.
    pub spec: String,
    /// Hash of all that determines the output.
    pub hash: String,
    /// Jobs with the same one share the weights.
    pub model: String,
    /// Denoising steps.
    pub steps: usize,
    /// Pixels of all its frames.
    pub pixels: usize,
}

/// A job as it stands in the journal.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its number in its file, from 1.
    pub n: usize,
    /// The job file.
    pub source: String,
    /// The line that it starts on.
    pub line: usize,
    /// Its output, relative to the batch's folder.
    pub output: PathBuf,
    /// Hash of all that determines the output.
    pub hash: String,
    /// Jobs with the same one share the weights.
    pub model: String,
    /// Where it stands.
    pub state: State,
    /// Times that it failed.
    pub failures: usize,
    /// Times that a worker took it.
    pub claims: usize,
    /// Who works on it.
    pub worker: Option<String>,
    /// Steps that are done.
    pub steps_done: usize,
    /// Steps in all.
    pub steps: usize,
    /// Pixels of all its frames.
    pub pixels: usize,
    /// Seconds spent in each phase of the run that finished it.
    pub seconds: Option<serde_json::Value>,
    /// Why it failed last, or what is wrong with its output.
    pub error: Option<String>,
    /// SHA-256 of the output.
    pub output_sha256: Option<String>,
    /// Bytes of the output.
    pub output_bytes: Option<u64>,
}

/// How many jobs stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All of them, but those taken back.
    pub total: usize,
    /// Nobody works on them.
    pub pending: usize,
    /// A worker has them.
    pub running: usize,
    /// Their output is there.
    pub done: usize,
    /// They failed as often as they may.
    pub failed: usize,
    /// Somebody took them back.
    pub cancelled: usize,
    /// Done, but their output is no picture of anything.
    pub suspect: usize,
}

/// What the journal says of an output that a file wants.
struct Known {
    id: i64,
    source: String,
    hash: String,
    state: State,
    output_bytes: Option<u64>,
}

impl Journal {
    /// Takes in the jobs of a file. Those that are done and unchanged stay done, as long as `there` finds an output of
    /// that many bytes; of a job that the journal doesn't know, `found` says hash and bytes if it was done before all
    /// the same. Jobs of this file that it doesn't want any more, and that aren't done, are forgotten.
    ///
    /// Gives the jobs, by their place in `wanted`, whose output belongs to another file's jobs.
    pub fn take_in(
        &mut self,
        source: &str,
        wanted: &[Wanted],
        there: &dyn Fn(&str, u64) -> bool,
        found: &dyn Fn(&Wanted) -> Option<(String, u64)>,
    ) -> Result<Vec<(usize, String)>> {
        // Looking at files takes a while: not within the transaction.
        let known: HashSet<String> =
            self.rows()?.into_iter().map(|row| row.output.to_string_lossy().into_owned()).collect();
        let new = wanted.iter().filter(|job| !known.contains(&job.output));
        let found: HashMap<&str, _> =
            new.filter_map(|job| Some((job.output.as_str(), found(job)?))).collect();
        self.alone(|tx| {
            let mut foreign = Vec::new();
            let mut look = tx.prepare(
                "SELECT id, source, hash, state, output_bytes FROM jobs WHERE output = ?1",
            )?;
            let mut insert = tx.prepare(
                "INSERT INTO jobs (source, line, n, output, spec, hash, model, steps, pixels, state, \
                 output_sha256, output_bytes) VALUES (:source, :line, :n, :output, :spec, :hash, :model, \
                 :steps, :pixels, :state, :sha256, :bytes)",
            )?;
            let mut renew = tx.prepare(
                "UPDATE jobs SET source = :source, line = :line, n = :n, spec = :spec, hash = :hash, \
                 model = :model, steps = :steps, pixels = :pixels, state = 'pending', failures = 0, deaths = 0, steps_done = 0, \
                 error = NULL, worker = NULL, claims = claims + 1 WHERE id = :id",
            )?;
            let mut move_line = tx.prepare("UPDATE jobs SET line = ?1, n = ?2 WHERE id = ?3")?;
            for (index, job) in wanted.iter().enumerate() {
                let known = look.query_row([&job.output], |row| {
                    Ok(Known {
                        id: row.get(0)?,
                        source: row.get(1)?,
                        hash: row.get(2)?,
                        state: State::parse(&row.get::<_, String>(3)?),
                        output_bytes: row.get::<_, Option<i64>>(4)?.map(|bytes| bytes as u64),
                    })
                });
                let Some(known) = known.optional()? else {
                    let done = found.get(job.output.as_str());
                    insert.execute(named_params! {
                        ":source": source, ":line": job.line as i64, ":n": job.n as i64, ":output": job.output,
                        ":spec": job.spec, ":hash": job.hash, ":model": job.model, ":steps": job.steps as i64,
                        ":pixels": job.pixels as i64,
                        ":state": if done.is_some() { "done" } else { "pending" },
                        ":sha256": done.map(|done| &done.0), ":bytes": done.map(|done| done.1 as i64),
                    })?;
                    continue;
                };
                let whole = |bytes| there(&job.output, bytes);
                let same = known.hash == job.hash;
                if same && (known.state != State::Done || known.output_bytes.is_some_and(whole)) {
                    move_line.execute((job.line as i64, job.n as i64, known.id))?;
                } else if same || known.source == source {
                    renew.execute(named_params! {
                        ":source": source, ":line": job.line as i64, ":n": job.n as i64, ":spec": job.spec,
                        ":hash": job.hash, ":model": job.model, ":steps": job.steps as i64, ":id": known.id,
                        ":pixels": job.pixels as i64,
                    })?;
                } else {
                    foreign.push((index, known.source));
                }
            }
            let outputs = serde_json::to_string(&wanted.iter().map(|job| &job.output).collect::<Vec<_>>())
                .expect("names are JSON");
            tx.execute(
                "DELETE FROM jobs WHERE source = ?1 AND state IN ('pending', 'failed', 'cancelled') \
                 AND output NOT IN (SELECT value FROM json_each(?2))",
                (source, outputs),
            )?;
            Ok(foreign)
        })
    }

    /// All jobs, in the order of their files.
    pub fn rows(&self) -> Result<Vec<Row>> {
        let read = || -> rusqlite::Result<Vec<Row>> {
            let mut query = self.connection.prepare(
                "SELECT n, source, line, output, hash, state, failures, claims, worker, steps_done, steps, \
                 seconds, error, output_sha256, output_bytes, pixels, model FROM jobs ORDER BY source, n",
            )?;
            query
                .query_map([], |row| {
                    let count = |index: usize| row.get::<_, i64>(index).map(|count| count as usize);
                    Ok(Row {
                        n: count(0)?,
                        source: row.get(1)?,
                        line: count(2)?,
                        output: row.get::<_, String>(3)?.into(),
                        hash: row.get(4)?,
                        state: State::parse(&row.get::<_, String>(5)?),
                        failures: count(6)?,
                        claims: count(7)?,
                        worker: row.get(8)?,
                        steps_done: count(9)?,
                        steps: count(10)?,
                        seconds: row
                            .get::<_, Option<String>>(11)?
                            .and_then(|json| serde_json::from_str(&json).ok()),
                        error: row.get(12)?,
                        output_sha256: row.get(13)?,
                        output_bytes: row.get::<_, Option<i64>>(14)?.map(|bytes| bytes as u64),
                        pixels: count(15)?,
                        model: row.get(16)?,
                    })
                })?
                .collect()
        };
        read().map_err(|source| self.explain(source))
    }

    /// How many jobs stand where.
    pub fn counts(&self) -> Result<Counts> {
        let read = || -> rusqlite::Result<Counts> {
            let mut query =
                self.connection.prepare("SELECT state, count(*), count(error) FROM jobs GROUP BY state")?;
            let mut rows = query.query([])?;
            let mut counts = Counts::default();
            while let Some(row) = rows.next()? {
                let many = row.get::<_, i64>(1)? as usize;
                match State::parse(&row.get::<_, String>(0)?) {
                    State::Pending => counts.pending = many,
                    State::Running => counts.running = many,
                    State::Failed => counts.failed = many,
                    State::Cancelled => counts.cancelled = many,
                    State::Done => {
                        counts.done = many;
                        counts.suspect = row.get::<_, i64>(2)? as usize;
                    }
                }
            }
            counts.total = counts.pending + counts.running + counts.done + counts.failed;
            Ok(counts)
        };
        read().map_err(|source| self.explain(source))
    }

    /// Takes jobs back: all that aren't done, or those with these numbers. Their workers notice and stop. Gives how
    /// many.
    pub fn cancel(&mut self, numbers: &[usize]) -> Result<usize> {
        self.order(
            numbers,
            "state = 'cancelled', worker = NULL, finished = :now",
            "'pending', 'running', 'failed'",
        )
    }

    /// Makes jobs that failed or were taken back pending again: all, or those with these numbers. Gives how many.
    pub fn retry(&mut self, numbers: &[usize]) -> Result<usize> {
        let change = "state = 'pending', failures = 0, deaths = 0, error = NULL, finished = :now";
        self.order(numbers, change, "'failed', 'cancelled'")
    }

    fn order(&mut self, numbers: &[usize], change: &str, states: &str) -> Result<usize> {
        let list = serde_json::to_string(numbers).expect("numbers are JSON");
        self.alone(|tx| {
            tx.execute(
                &format!(
                    "UPDATE jobs SET {change} WHERE state IN ({states}) \
                     AND (:list = '[]' OR n IN (SELECT value FROM json_each(:list)))"
                ),
                named_params! { ":list": list, ":now": now() },
            )
        })
    }
}
