//! Slurm, the engine of GPU clusters: a batch as a job array.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Serialize;

use crate::{
    app::outputs::shell_word,
    error::{Error, Result},
};

/// A job array to be submitted.
#[derive(Debug, Clone, Default)]
pub struct Array {
    /// Name in the queue.
    pub name: String,
    /// Number of tasks.
    pub tasks: usize,
    /// How many may run at a time.
    pub limit: Option<usize>,
    /// Where the tasks' output goes.
    pub logs: PathBuf,
    /// Further options of `sbatch`, e.g. `--partition=gpu`.
    pub options: Vec<String>,
    /// What each task runs.
    pub command: Vec<String>,
}

impl Array {
    /// The script for `sbatch`.
    #[must_use]
    pub fn script(&self) -> String {
        let limit = self.limit.map(|limit| format!("%{limit}")).unwrap_or_default();
        let mut options = vec![
            format!("--job-name={}", self.name),
            format!("--array=1-{}{limit}", self.tasks),
            format!("--output={}", self.logs.join("slurm-%A_%a.log").display()),
            // What a task that was cut off has written stays.
            "--open-mode=append".to_owned(),
            "--requeue".to_owned(),
            // Time to finish the step and save, before the time is up.
            "--signal=B:TERM@120".to_owned(),
        ];
        options.extend(self.options.iter().cloned());
        let options: String = options.iter().map(|option| format!("#SBATCH {option}\n")).collect();
        let command: Vec<String> = self.command.iter().map(|word| shell_word(word)).collect();
        // In the shell's place, so that Slurm's signals reach the program.
        format!("#!/bin/sh\n{options}exec {}\n", command.join(" "))
    }
}

/// Hands a script to Slurm; gives the array's number.
pub fn submit(script: &Path) -> Result<String> {
    let told = run("sbatch", &["--parsable", &script.to_string_lossy()])?;
    // `number` or `number;cluster`
    Ok(told.trim().split(';').next().unwrap_or_default().to_owned())
}

/// A job array as Slurm sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArrayState {
    /// Its number.
    pub id: String,
    /// How many of its tasks stand where, by Slurm's words for it; none when it has left the queue.
    pub tasks: BTreeMap<String, usize>,
    /// Why Slurm doesn't answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent: Option<String>,
}

/// Asks Slurm for an array's tasks.
#[must_use]
pub fn state(id: &str) -> ArrayState {
    let (told, silent) = match run("squeue", &["--noheader", "--array", "--format=%T", "--jobs", id]) {
        Ok(told) => (told, None),
        Err(error) if forgotten(&error) => (String::new(), None),
        Err(error) => (String::new(), Some(error.to_string())),
    };
    let mut tasks = BTreeMap::new();
    for state in told.lines().map(str::trim).filter(|state| !state.is_empty()) {
        *tasks.entry(state.to_lowercase()).or_default() += 1;
    }
    ArrayState { id: id.to_owned(), tasks, silent }
}

/// Takes an array back.
pub fn cancel(id: &str) -> Result<()> {
    match run("scancel", &[id]) {
        Err(error) if forgotten(&error) => Ok(()),
        told => told.map(drop),
    }
}

/// Slurm doesn't know arrays any more that ended a while ago.
fn forgotten(error: &Error) -> bool {
    matches!(error, Error::Command { why, .. } if why.contains("Invalid job id"))
}

fn run(program: &'static str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|source| Error::Command { program, why: source.to_string() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Command { program, why: if why.is_empty() { output.status.to_string() } else { why } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_options_and_one_command() {
        let array = Array {
            name: "sora-jobs".into(),
            tasks: 8,
            limit: Some(4),
            logs: "out/.sora".into(),
            options: vec!["--partition=gpu".into()],
            command: ["sora", "batch", "my jobs.toml"].map(str::to_owned).into(),
        };
        assert_eq!(
            array.script(),
            "#!/bin/sh\n#SBATCH --job-name=sora-jobs\n#SBATCH --array=1-8%4\n\
             #SBATCH --output=out/.sora/slurm-%A_%a.log\n#SBATCH --open-mode=append\n#SBATCH --requeue\n\
             #SBATCH --signal=B:TERM@120\n#SBATCH --partition=gpu\nexec sora batch 'my jobs.toml'\n"
        );
    }
}
