//! `sora batch submit`: a batch as a job array on a cluster.

use std::{io::Write, num::NonZeroUsize, path::Path};

use sora::{
    Error,
    app::{
        batch::{
            Batch, Place,
            plan::NAMES,
            slurm::{self, Array},
        },
        journal::{FileSystem, file_system},
    },
};

use super::RunArgs;
use crate::cli::message::{Head, line};

/// Hand a batch to a cluster as a job array
///
/// Each task works on the batch until nothing is left. They share the journal in the batch's folder; where that
/// folder's file system may not lock across machines (NFS), each gets a fixed share.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  sora batch submit jobs.toml --slurm --partition gpu --gres gpu:1 --tasks 8",
    mut_arg("watch", |watch| watch.hide(true)),
)]
pub struct Args {
    /// Use Slurm, the one cluster engine that is known so far
    #[arg(long)]
    slurm: bool,

    /// Number of tasks
    #[arg(long, value_name = "N", default_value = "8")]
    tasks: NonZeroUsize,

    /// Tasks that may run at a time
    #[arg(long, value_name = "N")]
    array_limit: Option<NonZeroUsize>,

    /// Slurm's partition
    #[arg(long, value_name = "NAME")]
    partition: Option<String>,

    /// What each task needs, e.g. gpu:1
    #[arg(long, value_name = "LIST")]
    gres: Option<String>,

    /// Time limit of a task, e.g. 04:00:00
    #[arg(long, value_name = "TIME")]
    time: Option<String>,

    /// Further options of sbatch, e.g. --sbatch=--account=film
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    sbatch: Vec<String>,

    /// Print the script and submit nothing
    #[arg(long)]
    print: bool,

    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if !args.slurm {
        return Err(Error::invalid("cluster", "expected --slurm").into());
    }
    let Some(jobs) = args.run.jobs.clone().filter(|jobs| jobs != Path::new("-")) else {
        return Err(Error::invalid("job file", "expected one that every task can read").into());
    };
    if args.run.check || args.run.dry_run {
        return args.run.run();
    }
    // Mistakes are found now, and not by every task.
    let plan = args.run.plan(&jobs, NAMES)?;
    if !plan.mistakes.is_empty() {
        args.run.complain(&plan.mistakes);
        let mistakes = plan.mistakes.len();
        return Err(Error::BadJobs { mistakes, total: plan.jobs.len() + mistakes }.into());
    }
    let place = Place::new(std::path::absolute(args.run.folder())?);
    let split = args.run.shard.is_some() || file_system(&place.folder) == FileSystem::Unsure;
    let array = array(&args, &jobs, &place, split)?;
    if args.print {
        std::io::stdout().write_all(array.script().as_bytes())?;
        return Ok(());
    }
    let (mut batch, _) = Batch::open(place, None)?;
    if !split {
        // So that `status` and `cancel` know the jobs before a task does.
        let mistakes = batch.take_in(plan)?.mistakes;
        if !mistakes.is_empty() {
            args.run.complain(&mistakes);
            let mistakes = mistakes.len();
            return Err(Error::BadJobs { mistakes, total: mistakes }.into());
        }
    }
    let script = batch.place().own().join("slurm.sh");
    std::fs::write(&script, array.script()).map_err(Error::file("write", &script))?;
    let id = slurm::submit(&script)?;
    batch.journal().submitted(&id, args.tasks.get())?;
    if split {
        eprintln!(
            "{}",
            line(Head::Note, "each task has a fixed share: this file system may not lock across machines")
        );
    }
    writeln!(std::io::stdout(), "{id}")?;
    Ok(())
}

fn array(args: &Args, jobs: &Path, place: &Place, split: bool) -> anyhow::Result<Array> {
    let text = |path: &Path| -> anyhow::Result<String> {
        let name = path.to_str().ok_or_else(|| {
            Error::invalid(format!("file name `{}`", path.display()), "expected valid UTF-8")
        })?;
        Ok(name.to_owned())
    };
    let run = &args.run;
    let mut command =
        vec![text(&std::env::current_exe()?)?, "batch".into(), text(&std::path::absolute(jobs)?)?];
    let mut flag = |name: &str, value: String| command.extend([name.to_owned(), value]);
    flag("--folder", text(&place.folder)?);
    flag("--retries", run.retries.to_string());
    flag("--lease", run.lease.to_string());
    flag("--progress", "plain".into());
    if let Some(format) = run.format {
        flag("--format", format.to_string());
    }
    if let Some(threads) = run.threads {
        flag("--threads", threads.to_string());
    }
    // A task that is run again takes over what its earlier run had.
    flag("--task", "auto".into());
    if split {
        flag("--shard", "auto".into());
    }
    command.push("--no-wait".into());
    command.extend(run.defaults.words());
    let mut options = Vec::new();
    for (name, value) in [("partition", &args.partition), ("gres", &args.gres), ("time", &args.time)] {
        options.extend(value.iter().map(|value| format!("--{name}={value}")));
    }
    options.extend(args.sbatch.iter().cloned());
    let stem = jobs.file_stem().unwrap_or_default().to_string_lossy();
    Ok(Array {
        name: format!("sora-{stem}"),
        tasks: args.tasks.get(),
        limit: args.array_limit.map(NonZeroUsize::get),
        logs: place.own(),
        options,
        command,
    })
}
