//! Claims: who works on which job, for how long, and how it ended.

use std::{collections::BTreeMap, time::Duration};

use rusqlite::{OptionalExtension, Transaction, named_params};

use super::{Journal, Worker, now};
use crate::{error::Result, event::Phase};

/// Times that a job may take its worker down without a step of progress, before it counts as failed.
const MOST_DEATHS: i64 = 5;

/// A job that this process works on.
#[derive(Debug, Clone)]
pub struct Claim {
    id: i64,
    /// How many claims this job has seen, this one included: what tells it from a later worker's.
    number: i64,
    worker: String,
    /// The job's number in its file, from 1.
    pub n: usize,
    /// Its output, relative to the batch's folder.
    pub output: String,
    /// All that a worker needs, as JSON.
    pub spec: String,
    /// Hash of all that determines the output.
    pub hash: String,
    /// Jobs with the same one share the weights.
    pub model: String,
    /// Whether it was taken over from a worker that is gone.
    pub taken_over: bool,
}

impl Claim {
    /// A name for this claim's own files.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.id, self.number)
    }
}

/// A job that is done.
#[derive(Debug, Clone)]
pub struct Ending {
    /// SHA-256 of the output.
    pub sha256: String,
    /// Its bytes.
    pub bytes: u64,
    /// Seconds spent in each phase.
    pub seconds: BTreeMap<Phase, f64>,
    /// What is wrong with the pictures.
    pub complaint: Option<String>,
}

impl Journal {
    /// Claims a job: one that was cut off, else the next pending one, those of `model` first. Nothing if there is none
    /// that isn't somebody else's.
    pub fn claim(
        &mut self,
        worker: &Worker,
        model: &str,
        retries: usize,
        lease: Duration,
    ) -> Result<Option<Claim>> {
        let name = worker.name();
        self.alone(|tx| {
            bury(tx, worker)?;
            let mut query = tx.prepare(
                "SELECT id, claims + 1, n, output, spec, hash, model, worker IS NOT NULL FROM jobs \
                 WHERE state = 'pending' AND failures <= :retries \
                 ORDER BY model != :model, failures, worker IS NULL, steps_done = 0, n, id LIMIT 1",
            )?;
            let claim = query
                .query_row(named_params! { ":retries": retries as i64, ":model": model }, |row| {
                    Ok(Claim {
                        id: row.get(0)?,
                        number: row.get(1)?,
                        worker: name.clone(),
                        n: row.get::<_, i64>(2)? as usize,
                        output: row.get(3)?,
                        spec: row.get(4)?,
                        hash: row.get(5)?,
                        model: row.get(6)?,
                        taken_over: row.get(7)?,
                    })
                })
                .optional()?;
            if let Some(claim) = &claim {
                tx.execute(
                    "UPDATE jobs SET state = 'running', claims = :number, worker = :worker, lease = :lease, \
                     started = :now, finished = NULL WHERE id = :id",
                    named_params! {
                        ":id": claim.id, ":number": claim.number, ":worker": name,
                        ":lease": now() + lease.as_millis() as i64, ":now": now(),
                    },
                )?;
            }
            Ok(claim)
        })
    }

    /// The next pending jobs with these weights, as JSON.
    pub fn upcoming(&self, model: &str, most: usize) -> Result<Vec<String>> {
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut query = self.connection.prepare(
                "SELECT spec FROM jobs WHERE state = 'pending' AND model = ?1 ORDER BY failures, n LIMIT ?2",
            )?;
            query.query_map((model, most as i64), |row| row.get(0))?.collect()
        };
        read().map_err(|source| self.explain(source))
    }

    /// Renews a claim. False if the job isn't this claim's any more.
    pub fn renew(&mut self, claim: &Claim, steps_done: u64, lease: Duration) -> Result<bool> {
        self.alone(|tx| {
            let changed = tx.execute(
                "UPDATE jobs SET lease = :lease, deaths = CASE WHEN :steps > steps_done THEN 0 ELSE deaths END, \
                 steps_done = max(steps_done, :steps) \
                 WHERE id = :id AND claims = :number AND worker = :worker AND state = 'running'",
                named_params! {
                    ":id": claim.id, ":number": claim.number, ":worker": claim.worker,
                    ":lease": now() + lease.as_millis() as i64, ":steps": steps_done as i64,
                },
            )?;
            Ok(changed == 1)
        })
    }

    /// Whether a claim's job is done by now, whoever did it.
    pub fn is_done(&self, claim: &Claim) -> Result<bool> {
        let query = "SELECT state = 'done' AND hash = ?2 FROM jobs WHERE id = ?1";
        let done = self.connection.query_row(query, (claim.id, &claim.hash), |row| row.get(0)).optional();
        Ok(done.map_err(|source| self.explain(source))?.unwrap_or(false))
    }

    /// Gives a job back that was stopped on purpose. Nothing happens if it isn't this claim's any more.
    pub fn release(&mut self, claim: &Claim) -> Result<()> {
        self.settle(claim, "state = 'pending'", None).map(drop)
    }

    /// Notes a failure; the job may be tried `retries` times more. False if it isn't this claim's any more.
    pub fn fail(&mut self, claim: &Claim, error: &str, retries: usize) -> Result<bool> {
        let state = format!("CASE WHEN failures >= {retries} THEN 'failed' ELSE 'pending' END");
        self.settle(claim, &format!("failures = failures + 1, state = {state}"), Some(error))
    }

    fn settle(&mut self, claim: &Claim, change: &str, error: Option<&str>) -> Result<bool> {
        self.alone(|tx| {
            let changed = tx.execute(
                &format!(
                    "UPDATE jobs SET {change}, worker = NULL, finished = :now, error = coalesce(:error, error) \
                     WHERE id = :id AND claims = :number AND worker = :worker AND state = 'running'"
                ),
                named_params! {
                    ":id": claim.id, ":number": claim.number, ":worker": claim.worker, ":now": now(),
                    ":error": error,
                },
            )?;
            Ok(changed == 1)
        })
    }

    /// Puts a job's output in its place and notes that it is done, both or neither, while nobody else can claim it.
    /// False if it isn't this claim's any more; then `publish` isn't called.
    pub fn finish(
        &mut self,
        claim: &Claim,
        ending: &Ending,
        publish: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let seconds = serde_json::to_string(&ending.seconds).expect("names and numbers are JSON");
        let mut failure = None;
        let done = self.alone(|tx| {
            let changed = tx.execute(
                "UPDATE jobs SET state = 'done', finished = :now, seconds = :seconds, output_sha256 = :sha256, \
                 output_bytes = :bytes, error = :complaint, worker = NULL, steps_done = steps \
                 WHERE id = :id AND claims = :number AND worker = :worker AND state = 'running'",
                named_params! {
                    ":id": claim.id, ":number": claim.number, ":worker": claim.worker, ":now": now(),
                    ":seconds": seconds, ":sha256": ending.sha256, ":bytes": ending.bytes as i64,
                    ":complaint": ending.complaint,
                },
            )?;
            if changed == 1
                && let Err(error) = publish()
            {
                failure = Some(error);
                // Any error rolls the change back.
                return Err(rusqlite::Error::QueryReturnedNoRows);
            }
            Ok(changed == 1)
        });
        match failure {
            Some(error) => Err(error),
            None => done,
        }
    }
}

/// Makes the jobs of workers that are gone pending again.
fn bury(tx: &Transaction<'_>, worker: &Worker) -> rusqlite::Result<()> {
    let mut query = tx.prepare("SELECT id, worker, lease FROM jobs WHERE state = 'running'")?;
    let running = query.query_map([], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?, row.get::<_, Option<i64>>(2)?))
    })?;
    let mut gone = Vec::new();
    for row in running {
        let (id, name, lease) = row?;
        let dead = name.as_deref().is_none_or(|name| worker.knows_dead(name));
        if dead || lease.is_none_or(|lease| lease < now()) {
            gone.push(id);
        }
    }
    let mut bury = tx.prepare(
        "UPDATE jobs SET deaths = deaths + 1, \
         state = CASE WHEN deaths + 1 >= :most THEN 'failed' ELSE 'pending' END, \
         error = CASE WHEN deaths + 1 >= :most THEN :error ELSE error END WHERE id = :id",
    )?;
    let error = format!("its worker died {MOST_DEATHS} times in a row without a step of progress");
    for id in gone {
        bury.execute(named_params! { ":id": id, ":most": MOST_DEATHS, ":error": error })?;
    }
    Ok(())
}
