//! Ctrl-C: the first asks the work to stop cleanly, the second ends the program.

use std::{
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::cli::exit::Exit;

static ASKED: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C from the system.
#[expect(clippy::exit, reason = "the second Ctrl-C means at once")]
pub fn watch() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(Exit::Cancelled as i32);
        }
        if std::io::stderr().is_terminal() {
            eprintln!("\nfinishing this step and saving; press Ctrl-C again to stop at once");
        }
    })?;
    Ok(())
}

/// Whether Ctrl-C was pressed.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
