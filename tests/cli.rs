//! The program from outside: what it prints where, its exit codes, what it leaves on the disk.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/bad_models.rs"]
mod bad_models;
#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/interrupted.rs"]
mod interrupted;
#[path = "cli/output.rs"]
mod output;
#[path = "cli/texts.rs"]
mod texts;
