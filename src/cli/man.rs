//! `sora man`: manual pages, from the same source as `--help`.

use std::io::Write;

use clap::CommandFactory;
use sora::Error;

/// Print the manual page, of all or of one command
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sora man gen | man -l -")]
pub struct Args {
    /// The command, e.g. gen
    command: Option<String>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut root = super::Cli::command();
    root.build();
    let command = match &args.command {
        None => root,
        Some(name) => {
            let known: Vec<_> = root.get_subcommands().map(|c| c.get_name().to_owned()).collect();
            let expected = format!("expected one of {}", known.join(", "));
            let found = root.find_subcommand(name).cloned();
            found.ok_or_else(|| Error::invalid(format!("command `{name}`"), expected))?
        }
    };
    // A manual leaves nothing out.
    let command = command.mut_args(|arg| arg.hide_short_help(false));
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    std::io::stdout().write_all(&page)?;
    Ok(())
}
