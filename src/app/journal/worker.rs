//! Who works on a job, as the journal names it, and whether that process still lives.

use std::fs;

/// A process that claims jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Boot and process space of its machine; empty where the system doesn't say.
    machine: String,
    pid: u32,
    /// When it started, in the system's own count: numbers of processes come again.
    started: String,
    /// A name that a cluster gives to one process at a time, such as a task of a job array.
    task: String,
}

impl Worker {
    /// This process. Whoever else has the same `task` is an earlier run of it, which the cluster has ended.
    #[must_use]
    pub fn this(task: Option<&str>) -> Self {
        let pid = std::process::id();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let space = fs::read_link("/proc/self/ns/pid").map(|link| link.to_string_lossy().into_owned());
        let machine = match (boot.trim(), space) {
            ("", _) | (_, Err(_)) => String::new(),
            (boot, Ok(space)) => format!("{boot}/{space}"),
        };
        let clean = |text: &str| text.replace(char::is_whitespace, "_");
        Self {
            machine,
            pid,
            started: start_of(pid).unwrap_or_default(),
            task: task.map(clean).unwrap_or_default(),
        }
    }

    /// A worker of another machine, for tests.
    #[cfg(test)]
    pub(super) fn elsewhere(name: &str) -> Self {
        Self { machine: name.into(), pid: 1, started: "1".into(), task: String::new() }
    }

    /// One word for the journal.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}|{}|{}|{}", self.machine, self.pid, self.started, self.task)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('|');
        let mut next = || parts.next().map(str::to_owned);
        Some(Self { machine: next()?, pid: next()?.parse().ok()?, started: next()?, task: next()? })
    }

    /// For people: the process number, and the cluster's name for it.
    #[must_use]
    pub fn short(name: &str) -> String {
        match Self::parse(name) {
            Some(Self { pid, task, .. }) if task.is_empty() => format!("process {pid}"),
            Some(Self { pid, task, .. }) => format!("{task}, process {pid}"),
            None => name.to_owned(),
        }
    }

    /// Whether the worker of that name is known to be dead. Of workers on other machines nothing is known.
    #[must_use]
    pub fn knows_dead(&self, name: &str) -> bool {
        let Some(other) = Self::parse(name) else { return false };
        if other == *self {
            return false;
        }
        if !other.task.is_empty() && other.task == self.task {
            return true;
        }
        let here = !other.machine.is_empty() && other.machine == self.machine;
        here && start_of(other.pid).is_none_or(|started| started != other.started)
    }
}

/// When a process of this machine started; nothing if there is none of that number, or only what is left of one.
fn start_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything; 19 fields lie between the state and the start.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18).map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let this = Worker::this(Some("slurm 7_3"));
        assert_eq!(Worker::parse(&this.name()), Some(this.clone()));
        assert!(Worker::short(&this.name()).starts_with("slurm_7_3, process "));
        assert!(!this.knows_dead(&this.name()));
        assert!(!this.knows_dead("nonsense"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_dead_are_known() {
        let this = Worker::this(None);
        assert!(!this.started.is_empty() && !this.machine.is_empty());
        assert!(this.knows_dead(&Worker { started: "1".into(), ..this.clone() }.name()));
        let elsewhere = Worker { machine: "other".into(), started: "1".into(), ..this.clone() };
        assert!(!this.knows_dead(&elsewhere.name()));
        let (first, again) = (Worker { task: "a_1".into(), ..elsewhere }, Worker::this(Some("a_1")));
        assert!(again.knows_dead(&first.name()));
    }
}
