//! What a person asks of a batch while it runs, or afterwards.

use std::{io::Write, path::PathBuf};

use sora::app::{
    batch::{
        Place,
        survey::{self, Survey},
    },
    journal::{State, Worker},
};

/// Which batch.
#[derive(Debug, clap::Args)]
pub struct WhichArgs {
    /// The job file, or the batch's folder
    batch: PathBuf,

    /// The batch's folder, if the job file was given another than its own
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

impl WhichArgs {
    fn place(&self) -> Place {
        Place::new(super::folder_of(&self.batch, self.folder.as_deref()))
    }
}

/// Say how far a batch is
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sora batch status jobs.toml")]
pub struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// Print a JSON object with all jobs
    #[arg(long)]
    json: bool,

    /// List all jobs, not only those that run or failed
    #[arg(short, long)]
    all: bool,
}

/// Jobs of a batch
#[derive(Debug, clap::Args)]
pub struct NumbersArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// Numbers of jobs [default: all that this can be done to]
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    jobs: Vec<usize>,
}

/// Remove half-made clips and saved latents that no job needs any more
#[derive(Debug, clap::Args)]
pub struct CleanArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// Remove the journal, too; outputs and their recipes stay
    #[arg(long)]
    all: bool,
}

pub fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let survey = survey::survey(&args.which.place())?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&survey)?)?;
    } else {
        out.write_all(text(&survey, args.all).as_bytes())?;
    }
    Ok(())
}

fn text(survey: &Survey, all: bool) -> String {
    let counts = &survey.counts;
    let mut text = format!("{} of {} jobs are done", counts.done, counts.total);
    let others = [
        (counts.running, "running"),
        (counts.pending, "pending"),
        (counts.failed, "failed"),
        (counts.cancelled, "cancelled"),
        (counts.suspect, "done, but no picture of anything"),
    ];
    for (count, what) in others.iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!(", {count} {what}"));
    }
    text.push('\n');
    for array in &survey.arrays {
        let tasks: Vec<String> =
            array.tasks.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let told = match &array.silent {
            Some(why) => why.clone(),
            None if tasks.is_empty() => "has left the queue".to_owned(),
            None => tasks.join(", "),
        };
        text.push_str(&format!("Slurm array {}: {told}\n", array.id));
    }
    for job in &survey.jobs {
        let told = job.state != State::Done && job.state != State::Pending || job.error.is_some();
        if !all && !told {
            continue;
        }
        text.push_str(&format!("{:>5}  {:<9} {}", job.n, job.state.name(), job.output.display()));
        if job.state == State::Running {
            let worker = job.worker.as_deref().map(Worker::short).unwrap_or_default();
            text.push_str(&format!("  step {}/{}, {worker}", job.steps_done, job.steps));
        }
        text.push('\n');
        if let Some(error) = &job.error {
            text.push_str(&format!("       {error}\n"));
        }
    }
    text
}

/// Try jobs again that failed or were cancelled
pub fn retry(args: &NumbersArgs) -> anyhow::Result<()> {
    let count = survey::retry(&args.which.place(), &args.jobs)?;
    eprintln!("{count} jobs are pending again; run `sora batch` as before");
    Ok(())
}

pub fn cancel(args: &NumbersArgs) -> anyhow::Result<()> {
    let count = survey::cancel(&args.which.place(), &args.jobs)?;
    eprintln!("{count} jobs are cancelled; `sora batch retry` brings them back");
    Ok(())
}

pub fn clean(args: &CleanArgs) -> anyhow::Result<()> {
    let cleaned = survey::clean(&args.which.place(), args.all)?;
    eprintln!("{} files removed, {:.1} MiB", cleaned.files, cleaned.bytes as f64 / f64::from(1 << 20));
    Ok(())
}
