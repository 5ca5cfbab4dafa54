//! Listens to a render on its way to the user: warnings for the recipe, seconds per phase.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, MutexGuard},
};

use crate::event::{Event, Phase, Reporter};

/// A reporter that keeps what a recipe needs and passes every event on.
pub struct Tally<'a> {
    next: &'a dyn Reporter,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    warnings: Vec<String>,
    /// How many of them hold for every clip of the job.
    shared: usize,
    seconds: BTreeMap<Phase, f64>,
}

impl<'a> Tally<'a> {
    /// Listens in front of `next`.
    pub fn new(next: &'a dyn Reporter) -> Self {
        Self { next, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All warnings so far.
    pub fn warnings(&self) -> Vec<String> {
        self.kept().warnings.clone()
    }

    /// Seconds spent in each phase that has ended.
    pub fn seconds(&self) -> BTreeMap<Phase, f64> {
        self.kept().seconds.clone()
    }

    /// The warnings so far hold for every clip of the job.
    pub fn share_warnings(&self) {
        let mut kept = self.kept();
        kept.shared = kept.warnings.len();
    }

    /// Forgets what was said of one clip, for the next one of the job.
    pub fn restart(&self) {
        let mut kept = self.kept();
        let shared = kept.shared;
        kept.warnings.truncate(shared);
        kept.seconds.clear();
    }
}

impl Reporter for Tally<'_> {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Warning { message } => self.kept().warnings.push(message.clone()),
            Event::Finished { phase, elapsed } => {
                *self.kept().seconds.entry(*phase).or_default() += elapsed.as_secs_f64();
            }
            _ => {}
        }
        self.next.emit(event)
    }
}
