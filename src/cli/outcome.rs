//! A finished clip on stdout: its path, or all about it in JSON.

use std::io::Write;

use sora::app::clip::Clip;

use super::reporting::ReportArgs;

/// Prints data on stdout and, if wanted, more for people on stderr.
pub fn print(clip: &Clip, report: &ReportArgs) -> anyhow::Result<()> {
    if report.verbose {
        eprintln!("{}", serde_json::to_string_pretty(&clip.recipe)?);
        for (phase, seconds) in &clip.seconds {
            eprintln!("{:>18} {seconds:.2} s", super::progress::name(*phase));
        }
        if let Some(mib) = peak_memory() {
            eprintln!("{:>18} {mib} MiB", "most memory");
        }
    }
    let mut out = std::io::stdout().lock();
    if report.json {
        writeln!(out, "{}", serde_json::to_string(clip)?)?;
    } else if clip.path.as_os_str() != "-" {
        out.write_all(clip.path.as_os_str().as_encoded_bytes())?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(peak.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}
