//! What a person wants to know of a batch, and wants done to it.

use std::fs;

use serde::Serialize;

use super::{Place, slurm};
use crate::{
    app::journal::{Counts, Journal, Row, State},
    error::{Error, Result},
};

/// A batch as it stands.
#[derive(Debug, Serialize)]
pub struct Survey {
    /// How many jobs stand where.
    #[serde(flatten)]
    pub counts: Counts,
    /// All jobs.
    pub jobs: Vec<Row>,
    /// What the cluster says of the job arrays that were submitted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub arrays: Vec<slurm::ArrayState>,
}

/// What was cleaned up.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// Files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

fn journals(place: &Place) -> Result<Vec<Journal>> {
    let paths = place.journals()?;
    if paths.is_empty() {
        // Says what is missing.
        return Journal::existing(&place.journal(None)).map(|journal| vec![journal]);
    }
    paths.iter().map(|path| Journal::existing(path)).collect()
}

/// Looks at a batch, the shares of all its workers together.
pub fn survey(place: &Place) -> Result<Survey> {
    let mut survey = Survey { counts: Counts::default(), jobs: Vec::new(), arrays: Vec::new() };
    for journal in journals(place)? {
        let counts = journal.counts()?;
        let sum = &mut survey.counts;
        sum.total += counts.total;
        sum.pending += counts.pending;
        sum.running += counts.running;
        sum.done += counts.done;
        sum.failed += counts.failed;
        sum.cancelled += counts.cancelled;
        sum.suspect += counts.suspect;
        survey.jobs.extend(journal.rows()?);
        for id in journal.submissions()? {
            survey.arrays.push(slurm::state(&id));
        }
    }
    survey.jobs.sort_by(|a, b| (&a.source, a.n).cmp(&(&b.source, b.n)));
    Ok(survey)
}

/// Takes jobs back: all that aren't done, or those with these numbers. With all of them, job arrays on a cluster are
/// cancelled, too. Gives how many jobs.
pub fn cancel(place: &Place, numbers: &[usize]) -> Result<usize> {
    let mut cancelled = 0;
    for mut journal in journals(place)? {
        cancelled += journal.cancel(numbers)?;
        if numbers.is_empty() {
            journal.submissions()?.iter().try_for_each(|id| slurm::cancel(id))?;
        }
    }
    Ok(cancelled)
}

/// Makes jobs that failed or were taken back pending again: all, or those with these numbers. Gives how many.
pub fn retry(place: &Place, numbers: &[usize]) -> Result<usize> {
    journals(place)?.iter_mut().map(|journal| journal.retry(numbers)).sum()
}

/// Removes what no job that is still to be done needs: half-made clips, saved latents, journals set aside. With
/// `all`, the whole own place of the batch goes, journal and all; outputs and their recipes stay.
pub fn clean(place: &Place, all: bool) -> Result<Cleaned> {
    let mut needed = Vec::new();
    for journal in journals(place)? {
        for row in journal.rows()? {
            match row.state {
                State::Running => {
                    return Err(Error::invalid("time to clean up", format!("job {} is running", row.n))
                        .with_hint("wait for it, or take it back with `sora batch cancel`"));
                }
                State::Pending | State::Failed => {
                    needed.extend(place.kept(&row.hash));
                }
                State::Done | State::Cancelled => {}
            }
        }
    }
    let mut cleaned = Cleaned::default();
    let own = place.own();
    let mut folders = vec![own.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(Error::file("read", &folder))? {
            let path = entry.map_err(Error::file("read", &folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let journal = folder == own && !name.contains(".damaged-");
            if !all && (journal || needed.contains(&path)) {
                continue;
            }
            cleaned.files += 1;
            cleaned.bytes += fs::metadata(&path).map_or(0, |found| found.len());
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
    }
    if all {
        fs::remove_dir_all(&own).map_err(Error::file("remove", &own))?;
    }
    Ok(cleaned)
}
