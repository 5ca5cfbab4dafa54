use std::thread;

use super::*;
use crate::event::Phase;

const LEASE: Duration = Duration::from_secs(60);

fn start() -> (tempfile::TempDir, Journal) {
    let folder = tempfile::tempdir().expect("a folder");
    let (journal, damaged) = Journal::open(&folder.path().join("journal.sqlite")).expect("a journal");
    assert_eq!(damaged, None);
    (folder, journal)
}

fn wanted(n: usize, hash: &str) -> Wanted {
    Wanted {
        line: n,
        n,
        output: format!("{n}.mp4"),
        spec: "{}".into(),
        hash: hash.into(),
        model: if n.is_multiple_of(2) { "even" } else { "odd" }.into(),
        steps: 8,
        pixels: 100,
    }
}

fn fill(journal: &mut Journal, count: usize) {
    let jobs: Vec<_> = (1..=count).map(|n| wanted(n, "h")).collect();
    let foreign = journal.take_in("jobs", &jobs, &|_, _| true, &|_| None).expect("taken in");
    assert!(foreign.is_empty());
}

fn ending() -> Ending {
    let seconds = [(Phase::Denoise, 1.5)].into();
    Ending { sha256: "s".into(), bytes: 9, seconds, complaint: None }
}

fn another() -> Worker {
    // Of another machine, as far as anybody knows.
    Worker::elsewhere("other")
}

#[test]
fn a_job_goes_from_pending_to_done() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 3);
    let this = Worker::this(None);
    let claim = journal.claim(&this, "even", 1, LEASE).expect("a journal").expect("a job");
    assert_eq!((claim.n, claim.taken_over), (2, false), "the model that is loaded comes first");
    assert!(journal.renew(&claim, 4, LEASE).expect("a journal"));
    let mut published = false;
    let mut publish = || {
        published = true;
        Ok(())
    };
    assert!(journal.finish(&claim, &ending(), &mut publish).expect("a journal"));
    assert!(published);
    let counts = journal.counts().expect("a journal");
    assert_eq!((counts.done, counts.pending, counts.total), (1, 2, 3));
    let row = journal.rows().expect("a journal").remove(1);
    assert_eq!((row.state, row.output_bytes, row.claims), (State::Done, Some(9), 1));
    assert_eq!(row.seconds, Some(serde_json::json!({ "denoise": 1.5 })));
    assert!(!journal.renew(&claim, 8, LEASE).expect("a journal"));
}

#[test]
fn many_threads_do_each_job_once() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 40);
    let path = journal.path().to_owned();
    let workers: Vec<_> = (0..4)
        .map(|index| {
            let path = path.clone();
            thread::spawn(move || {
                let mut journal = Journal::existing(&path).expect("a journal");
                let worker = Worker::elsewhere(&index.to_string());
                let mut done = Vec::new();
                while let Some(claim) = journal.claim(&worker, "", 0, LEASE).expect("a journal") {
                    assert!(journal.finish(&claim, &ending(), || Ok(())).expect("a journal"));
                    done.push(claim.n);
                }
                done
            })
        })
        .collect();
    let mut done: Vec<usize> =
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect();
    done.sort_unstable();
    assert_eq!(done, (1..=40).collect::<Vec<_>>());
}

#[test]
fn a_lost_claim_changes_nothing() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 1);
    let (slow, quick) = (another(), Worker::this(None));
    let old = journal.claim(&slow, "", 0, Duration::ZERO).expect("a journal").expect("a job");
    thread::sleep(Duration::from_millis(5));
    let new = journal.claim(&quick, "", 0, LEASE).expect("a journal").expect("taken over");
    assert!(new.taken_over && new.name() != old.name());
    assert!(journal.claim(&slow, "", 0, LEASE).expect("a journal").is_none());
    assert!(!journal.renew(&old, 5, LEASE).expect("a journal"));
    assert!(!journal.fail(&old, "no", 0).expect("a journal"));
    journal.release(&old).expect("a journal");
    assert!(!journal.finish(&old, &ending(), || panic!("published")).expect("a journal"));
    assert!(journal.finish(&new, &ending(), || Ok(())).expect("a journal"));
}

#[test]
fn failures_are_tried_again_and_then_left() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 2);
    let this = Worker::this(None);
    let order: Vec<usize> = std::iter::from_fn(|| {
        let claim = journal.claim(&this, "", 1, LEASE).expect("a journal")?;
        assert!(journal.fail(&claim, "no disk", 1).expect("a journal"));
        Some(claim.n)
    })
    .collect();
    assert_eq!(order, [1, 2, 1, 2]);
    assert_eq!(journal.counts().expect("a journal").failed, 2);
    assert_eq!(journal.rows().expect("a journal")[0].error.as_deref(), Some("no disk"));
    assert_eq!(journal.retry(&[2]).expect("a journal"), 1);
    assert_eq!(journal.claim(&this, "", 1, LEASE).expect("a journal").map(|claim| claim.n), Some(2));
    assert_eq!(journal.cancel(&[]).expect("a journal"), 2);
    assert_eq!(journal.counts().expect("a journal").cancelled, 2);
}

#[test]
fn a_job_that_kills_its_workers_is_left() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 1);
    let claims = std::iter::from_fn(|| {
        thread::sleep(Duration::from_millis(2));
        journal.claim(&another(), "", 9, Duration::ZERO).expect("a journal")
    });
    assert_eq!(claims.take(20).count(), 5);
    let row = journal.rows().expect("a journal").remove(0);
    assert_eq!(row.state, State::Failed);
    assert!(row.error.is_some_and(|error| error.contains("died 5 times")));
}

#[test]
fn what_cannot_be_published_is_not_done() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 1);
    let claim = journal.claim(&another(), "", 0, LEASE).expect("a journal").expect("a job");
    let full = || Err(Error::invalid("disk", "full"));
    assert!(journal.finish(&claim, &ending(), full).is_err());
    assert_eq!(journal.counts().expect("a journal").running, 1);
}

#[test]
fn files_change_and_what_is_done_stays() {
    let (_folder, mut journal) = start();
    fill(&mut journal, 3);
    let this = another();
    for _ in 0..2 {
        let claim = journal.claim(&this, "odd", 0, LEASE).expect("a journal").expect("a job");
        assert!(journal.finish(&claim, &ending(), || Ok(())).expect("a journal"));
    }
    let states = |journal: &Journal| -> Vec<(String, State)> {
        let rows = journal.rows().expect("a journal");
        rows.into_iter().map(|row| (row.output.to_string_lossy().into_owned(), row.state)).collect()
    };
    // 1 changed, 2 went, 3 is as it was, 4 is new but was made before.
    let jobs = [wanted(1, "other"), wanted(3, "h"), wanted(4, "h")];
    let made = |job: &Wanted| (job.n == 4).then(|| ("s".to_owned(), 9));
    journal.take_in("jobs", &jobs, &|_, bytes| bytes == 9, &made).expect("taken in");
    let named = |name: &str, state| (name.to_owned(), state);
    assert_eq!(
        states(&journal),
        [named("1.mp4", State::Pending), named("3.mp4", State::Done), named("4.mp4", State::Done)]
    );
    // An output that isn't there any more is made again.
    journal.take_in("jobs", &jobs, &|output, _| output != "3.mp4", &|_| None).expect("taken in");
    assert_eq!(states(&journal)[1], named("3.mp4", State::Pending));
    // Another file may not have these outputs, unless it wants the same.
    let foreign = journal.take_in("others", &[wanted(3, "h"), wanted(4, "x")], &|_, _| true, &|_| None);
    assert_eq!(foreign.expect("taken in"), [(1, "jobs".to_owned())]);
}

#[test]
fn a_damaged_journal_is_set_aside() {
    let (folder, journal) = start();
    let path = journal.path().to_owned();
    drop(journal);
    let garbage = "no database ".repeat(1000);
    std::fs::write(&path, &garbage).expect("a file");
    let (mut journal, aside) = Journal::open(&path).expect("a new journal");
    assert_eq!(std::fs::read_to_string(aside.expect("set aside")).expect("there"), garbage);
    fill(&mut journal, 1);
    std::fs::remove_file(&path).expect("removed");
    assert!(journal.check_there().is_err());
    assert!(Journal::existing(&folder.path().join("nothing.sqlite")).is_err());
}
