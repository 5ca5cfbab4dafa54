//! The program from outside: what it prints where, its exit codes, what it leaves on the disk.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/bad_models.rs"]
mod bad_models;
#[path = "cli/batch.rs"]
mod batch;
#[path = "cli/batch_chaos.rs"]
mod batch_chaos;
#[path = "cli/batch_films.rs"]
mod batch_films;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/films.rs"]
mod films;
#[path = "cli/formats.rs"]
mod formats;
#[path = "cli/going_on.rs"]
mod going_on;
#[path = "cli/interrupted.rs"]
mod interrupted;
#[path = "cli/kernels.rs"]
mod kernels;
#[path = "cli/limits.rs"]
mod limits;
#[path = "cli/originals.rs"]
mod originals;
#[path = "cli/output.rs"]
mod output;
#[path = "cli/passes.rs"]
mod passes;
#[path = "cli/planned.rs"]
mod planned;
#[path = "cli/takes.rs"]
mod takes;
#[path = "cli/texts.rs"]
mod texts;
#[path = "cli/visual.rs"]
mod visual;
