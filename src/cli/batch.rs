//! `sora batch`: many jobs from one file, by any number of workers.

mod keys;
mod orders;
mod submit;

use std::{
    io::{Read, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use sora::{
    Error,
    app::{
        batch::{
            Batch, Place,
            estimate::Estimate,
            file::FileFormat,
            plan::{NAMES, Plan, Source, plan},
            request::Product,
            shard::Shard,
            watch::Watch,
            work::{Next, Orders, Work},
        },
        journal::{Counts, Journal, State, Worker, free_bytes},
        speed::Speed,
    },
    event::{Event, Reporter},
};

use super::{
    compute, interrupt,
    message::{Failure, Head, line},
    outcome, progress,
    reporting::{ProgressStyle, ReportArgs},
    storyboard,
    table::size,
};
use keys::{Defaults, GenOptions};

const EXAMPLES: &str = "\
Examples:
  sora batch prompts.txt --steps 8
  sora batch jobs.toml --check
  sora batch status jobs.toml
  sora batch submit jobs.toml --slurm --partition gpu --gres gpu:1 --tasks 8";

const FILES: &str = r#"
Job files:
  Every option of `sora gen` is a key. A list stands for a job each, and several lists for all their
  combinations. Keys of your own fill in {places} of prompts and names. Names may have {n:04} (the
  job's number, here with four digits), {slug} (words of the prompt), {seed}, {take}, {file} and any
  key.

  jobs.toml      steps = 8                              keys of the head are defaults
                 output = "{n:04}-{slug}-{seed}.mp4"
                 [[job]]
                 prompt = "a fox, {paint}"
                 paint = ["oil", "ink"]
                 seed = [1, 2, 3]
  jobs.jsonl     {"prompt": "a fox", "seed": [1, 2]}    the first line may be {"defaults": {...}}
  jobs.csv       prompt,seed                            the first line has the keys
  prompts.txt    a fox                                  a prompt a line

  Clips go on as with `sora gen`: init_video = "wave.mp4" with extend = "both", or loop = true.

  storyboard = "film.toml" in a job makes that film, as `sora storyboard` does: shots stay in a
  folder beside it, and only those that have changed are rendered again. What the film file says are
  no keys of such a job, and defaults that are meant for clips don't touch it.

  What is done and unchanged is skipped, what was cut off goes on from its saved latents. Any number
  of processes may work on one batch. All paths are as for `sora gen` in the current folder, outputs
  lie in --folder.

Events of --progress json, one object a line on stderr:
  {"event":"batch","done":N,"failed":N,"running":N,"total":N}
  {"event":"job","job":N,"output":PATH,"state":STATE[,"error":TEXT]}
      STATE: started, done, failed (maybe to be tried again), lost (another worker has it), stopped
  {"event":"started","phase":PHASE,"total":N}
      PHASE: load, encode-prompt, encode-video, denoise, upsample, decode
  {"event":"progress","phase":PHASE,"done":N,"total":N}
  {"event":"finished","phase":PHASE,"elapsed":SECONDS}
  {"event":"saved","path":PATH,"step":N}                latents to go on from
  {"event":"written","path":PATH}  {"event":"preview","path":PATH,"step":N}
  {"event":"warning","message":TEXT}  {"event":"note","message":TEXT}
  {"event":"error","message":TEXT,"causes":[TEXT],"hint":TEXT,"exit_code":N}"#;

/// Latents are saved each time so many steps are done.
const EVERY: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4);

/// Make many videos from a file of jobs
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n{FILES}\n\nExit codes:\n{}", super::exit::table()),
)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Status(orders::StatusArgs),
    /// Try jobs again that failed or were cancelled
    Retry(orders::NumbersArgs),
    /// Take jobs back that aren't done, and job arrays on a cluster with them
    Cancel(orders::NumbersArgs),
    Clean(orders::CleanArgs),
    Submit(Box<submit::Args>),
}

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Job file: .toml, .jsonl, .csv or .txt; `-` reads it from stdin
    #[arg(required_unless_present = "watch")]
    jobs: Option<PathBuf>,

    /// Folder of the outputs and of the journal [default: the job file's name without its ending]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,

    /// How the job file is written: toml, jsonl, csv or txt [default: by its ending]
    #[arg(long, value_name = "FORMAT", hide_short_help = true)]
    format: Option<FileFormat>,

    /// Validate everything, print the plan with time and disk, and do nothing
    #[arg(long)]
    check: bool,

    /// List the jobs and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Try a job that failed so many times more
    #[arg(long, value_name = "N", default_value_t = 1)]
    retries: usize,

    /// Take job files as they are dropped into a folder, until Ctrl-C
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["jobs", "check", "dry_run"])]
    watch: Option<PathBuf>,

    /// Do a fixed share, where workers can't see each other's claims (NFS): 1/8 … 8/8
    ///
    /// `auto` takes the share from Slurm's array, `auto/N` from Kubernetes' JOB_COMPLETION_INDEX.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,

    /// A name that no other process has at the same time: who had it before is dead
    ///
    /// `auto` takes Slurm's or Kubernetes' name for it.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    task: Option<String>,

    /// Seconds until a worker that isn't heard of loses its job
    #[arg(long, value_name = "SECONDS", default_value_t = 60, hide_short_help = true,
          value_parser = clap::value_parser!(u64).range(1..))]
    lease: u64,

    /// Leave when all that is left is with other workers
    #[arg(long, hide_short_help = true)]
    no_wait: bool,

    /// CPU threads [default: one per physical core]
    #[arg(long, value_name = "N", hide_short_help = true)]
    threads: Option<NonZeroUsize>,

    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    defaults: Defaults,
}

impl Args {
    /// Whether stderr is a stream of JSON objects.
    pub fn speaks_json(&self) -> bool {
        self.verb.is_none() && self.run.report.progress == ProgressStyle::Json
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        None => args.run.run(),
        Some(Verb::Status(args)) => orders::status(&args),
        Some(Verb::Retry(args)) => orders::retry(&args),
        Some(Verb::Cancel(args)) => orders::cancel(&args),
        Some(Verb::Clean(args)) => orders::clean(&args),
        Some(Verb::Submit(args)) => submit::run(*args),
    }
}

/// The folder of a batch that is named by its job file, or by itself.
pub fn folder_of(jobs: &Path, folder: Option<&Path>) -> PathBuf {
    match folder {
        Some(folder) => folder.to_owned(),
        None if jobs == Path::new("-") => "batch".into(),
        None if jobs.is_dir() => jobs.to_owned(),
        None => jobs.with_extension(""),
    }
}

impl RunArgs {
    fn folder(&self) -> PathBuf {
        match (&self.jobs, &self.watch) {
            (Some(jobs), _) => folder_of(jobs, self.folder.as_deref()),
            (None, watched) => {
                let default = || watched.as_deref().unwrap_or(Path::new(".")).join("videos");
                self.folder.clone().unwrap_or_else(default)
            }
        }
    }

    fn plan(&self, path: &Path, names: &str) -> anyhow::Result<Plan> {
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(Error::file("read", "stdin"))?;
            text
        } else {
            std::fs::read_to_string(path).map_err(Error::file("read", path))?
        };
        let source = Source { path, text: &text, format: self.format, defaults: &self.defaults.0, names };
        Ok(plan(&source, &GenOptions::new())?)
    }

    fn run(&self) -> anyhow::Result<()> {
        compute::start(self.threads)?;
        interrupt::watch()?;
        let (shard, task) = match &self.shard {
            None => (None, None),
            Some(text) => share(text, &|name| std::env::var(name).ok())?,
        };
        let task = match self.task.as_deref() {
            None => task,
            Some("auto") => task_name(&|name| std::env::var(name).ok()),
            Some(name) => Some(name.to_owned()),
        };
        let place = Place::new(self.folder());
        if let Some(watched) = &self.watch {
            return self.watch(watched, place, shard, task.as_deref());
        }
        let jobs = self.jobs.as_deref().unwrap_or(Path::new("-"));
        let plan = self.plan(jobs, NAMES)?.share(shard);
        if self.check || self.dry_run {
            return self.show(&plan, &place, shard);
        }
        let reporter = progress::reporter(&self.report);
        let (mut batch, damaged) = Batch::open(place, shard)?;
        warn_of_damage(damaged.as_deref(), &batch, reporter.as_ref());
        let mistakes = batch.take_in(plan)?.mistakes;
        self.complain(&mistakes);
        let (options, orders) = (GenOptions::new(), self.orders(task.as_deref()));
        let mut work = Work::new(&mut batch, &options, &orders, reporter.as_ref());
        let counts = work.run(!self.no_wait, &mut |product| self.print(product))?;
        verdict(counts, mistakes.len())
    }

    fn watch(
        &self,
        folder: &Path,
        place: Place,
        shard: Option<Shard>,
        task: Option<&str>,
    ) -> anyhow::Result<()> {
        let mut watch = Watch::new(folder)?;
        let reporter = progress::reporter(&self.report);
        let (mut batch, damaged) = Batch::open(place, shard)?;
        warn_of_damage(damaged.as_deref(), &batch, reporter.as_ref());
        let (options, orders) = (GenOptions::new(), self.orders(task));
        let mut work = Work::new(&mut batch, &options, &orders, reporter.as_ref());
        loop {
            for path in watch.look()? {
                // One bad file is no reason to stop watching.
                match self.plan(&path, &format!("{{file}}-{NAMES}")) {
                    Ok(plan) => self.complain(&work.batch().take_in(plan)?.mistakes),
                    Err(error) => {
                        Failure::from(&error).print(self.report.progress == ProgressStyle::Json);
                    }
                }
            }
            let next = work.next(&mut |product| self.print(product))?;
            if next != Next::Worked {
                work.pause(Duration::from_secs(1))?;
            }
        }
    }

    fn orders(&self, task: Option<&str>) -> Orders {
        Orders {
            retries: self.retries,
            lease: Duration::from_secs(self.lease),
            checkpoint_every: EVERY,
            worker: Worker::this(task),
        }
    }

    /// Prints what is done on stdout.
    fn print(&self, product: &Product) -> Result<(), Error> {
        progress::aside(|| match product {
            Product::Film { made, .. } => {
                storyboard::print(made, &self.report, &mut std::io::stdout().lock())
            }
            Product::Clip(clip) => {
                outcome::print(clip, &self.report).map_err(|error| match error.downcast::<std::io::Error>() {
                    Ok(source) => Error::file("write", "stdout")(source),
                    Err(error) => Error::Defect { what: error.to_string() },
                })
            }
        })
    }

    /// Prints mistakes; the jobs without one go on.
    fn complain(&self, mistakes: &[Error]) {
        for mistake in mistakes {
            progress::aside(|| Failure::from(mistake).print(self.report.progress == ProgressStyle::Json));
        }
    }

    /// `--check` and `--dry-run`.
    fn show(&self, plan: &Plan, place: &Place, shard: Option<Shard>) -> anyhow::Result<()> {
        if !plan.mistakes.is_empty() {
            self.complain(&plan.mistakes);
            let mistakes = plan.mistakes.len();
            return Err(Error::BadJobs { mistakes, total: plan.jobs.len() + mistakes }.into());
        }
        let path = place.journal(shard);
        let rows = if path.is_file() { Journal::existing(&path)?.rows()? } else { Vec::new() };
        let done = |output: &str, hash: &str| {
            let same = |row: &&sora::app::journal::Row| row.output.as_os_str() == output && row.hash == hash;
            rows.iter().find(same).is_some_and(|row| row.state == State::Done)
        };
        let mut out = std::io::stdout().lock();
        for job in plan.jobs.iter().filter(|_| self.dry_run) {
            let state = if done(&job.output, &job.hash) { "done" } else { "pending" };
            if self.report.json {
                let object = serde_json::json!({
                    "job": job.n, "line": job.spot.line, "output": place.output(&job.output), "state": state,
                    "seed": job.spec.seed, "settings": job.spec.settings, "hash": job.hash,
                });
                writeln!(out, "{object}")?;
            } else {
                writeln!(out, "{:>5}  {state:<8} {}", job.n, place.output(&job.output).display())?;
            }
        }
        if self.check {
            let left: Vec<_> = plan.jobs.iter().filter(|job| !done(&job.output, &job.hash)).collect();
            let estimate = Estimate::of(&plan.jobs, &left, &rows, &mut Speed::measure)?;
            // The folder is made when the batch begins.
            let there = place.folder.ancestors().find(|folder| folder.exists());
            let free = free_bytes(there.unwrap_or(Path::new(".")));
            if self.report.json {
                let object = serde_json::json!({
                    "jobs": plan.jobs.len(), "done": plan.jobs.len() - left.len(),
                    "models": estimate.models, "steps": estimate.steps, "seconds": estimate.seconds,
                    "measured": estimate.measured, "bytes": estimate.bytes, "free": free,
                });
                writeln!(out, "{object}")?;
            } else {
                out.write_all(table(plan, left.len(), &estimate, free).as_bytes())?;
            }
            if free.is_some_and(|free| free < estimate.bytes) {
                eprintln!("{}", line(Head::Warning, "the disk hasn't the room for all outputs"));
            }
        }
        Ok(())
    }
}

fn table(plan: &Plan, left: usize, estimate: &Estimate, free: Option<u64>) -> String {
    let clock = progress::clock(Duration::from_secs_f64(estimate.seconds));
    let time = match estimate.measured {
        _ if left == 0 => "none".to_owned(),
        0 => format!("about {clock}, by this machine's speed"),
        1 => format!("about {clock}, by the job that is done"),
        done => format!("about {clock}, by the {done} jobs that are done"),
    };
    let rows = [
        ("jobs", plan.jobs.len().to_string()),
        ("to be done", left.to_string()),
        ("models", estimate.models.to_string()),
        ("steps", estimate.steps.to_string()),
        ("time", time),
        ("disk", format!("about {}, {} free", size(estimate.bytes), free.map_or("?".into(), size))),
    ];
    rows.iter().map(|(name, value)| format!("{name:<11} {value}\n")).collect()
}

fn warn_of_damage(damaged: Option<&Path>, batch: &Batch, reporter: &dyn Reporter) {
    if let Some(aside) = damaged {
        let message = format!(
            "the journal in {} was damaged and is now {}; outputs whose recipes lie beside them count as done",
            batch.place().own().display(),
            aside.display()
        );
        // Ctrl-C is heard a moment later.
        let _ = reporter.emit(&Event::Warning { message });
    }
}

/// How a batch has ended, for the exit code.
fn verdict(counts: Counts, mistakes: usize) -> anyhow::Result<()> {
    if mistakes > 0 {
        return Err(Error::BadJobs { mistakes, total: counts.total + mistakes }.into());
    }
    if counts.failed + counts.suspect > 0 {
        let Counts { failed, suspect, total, .. } = counts;
        return Err(Error::SomeFailed { failed, suspect, total }.into());
    }
    Ok(())
}

/// What a cluster calls this process: a name that one process has at a time.
fn task_name(variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    if let Some(task) = variable("SLURM_ARRAY_TASK_ID") {
        return Some(format!("slurm-{}_{task}", variable("SLURM_ARRAY_JOB_ID").unwrap_or_default()));
    }
    variable("JOB_COMPLETION_INDEX").map(|index| format!("completion-{index}"))
}

/// The share that the flag names, and the name that a cluster gives to whoever has it.
fn share(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(Option<Shard>, Option<String>), Error> {
    let Some(rest) = text.strip_prefix("auto") else { return Ok((Some(text.parse()?), None)) };
    let number = |name: &str| variable(name).and_then(|value| value.parse::<usize>().ok());
    let given = match rest.strip_prefix('/') {
        Some(count) => Some(count.parse().map_err(|_| {
            Error::invalid(format!("share `{text}`"), "expected auto/N with a number, e.g. auto/8")
        })?),
        None if rest.is_empty() => None,
        None => return Err(Error::invalid(format!("share `{text}`"), "expected I/N, auto or auto/N")),
    };
    if let Some(task) = number("SLURM_ARRAY_TASK_ID") {
        let first = number("SLURM_ARRAY_TASK_MIN").unwrap_or(1);
        let count = given.or_else(|| number("SLURM_ARRAY_TASK_COUNT")).ok_or_else(|| {
            Error::invalid("share `auto`", "Slurm doesn't say how many tasks there are")
                .with_hint("pass --shard auto/N")
        })?;
        return Ok((Some(Shard::new((task + 1).saturating_sub(first), count)?), task_name(variable)));
    }
    if let Some(index) = number("JOB_COMPLETION_INDEX") {
        let count = given.ok_or_else(|| {
            Error::invalid("share `auto`", "Kubernetes doesn't say how many completions there are")
                .with_hint("pass --shard auto/N with the Job's number of completions")
        })?;
        return Ok((Some(Shard::new(index + 1, count)?), task_name(variable)));
    }
    Err(Error::invalid("share `auto`", "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set")
        .with_hint("pass --shard I/N"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(text: &str, variables: &[(&str, &str)]) -> Result<(Option<Shard>, Option<String>), Error> {
        share(text, &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn clusters_say_which_share_it_is() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "7"),
            ("SLURM_ARRAY_TASK_MIN", "5"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            ("SLURM_ARRAY_JOB_ID", "12"),
        ];
        let (shard, task) = shared("auto", &slurm).expect("a share");
        assert_eq!((shard, task.as_deref()), (Some("3/4".parse().expect("a share")), Some("slurm-12_7")));
        let kubernetes = [("JOB_COMPLETION_INDEX", "0")];
        let (shard, task) = shared("auto/8", &kubernetes).expect("a share");
        assert_eq!((shard, task.as_deref()), (Some("1/8".parse().expect("a share")), Some("completion-0")));
        assert!(shared("auto", &kubernetes).is_err());
        assert!(shared("auto", &[]).is_err() && shared("autos", &slurm).is_err());
        assert_eq!(shared("2/3", &slurm).expect("a share").1, None);
    }
}
