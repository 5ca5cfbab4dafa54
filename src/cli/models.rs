//! `sora models`: what models there are, and keeping them.

use std::{fmt::Write as _, io::Write};

use serde::Serialize;
use sora::{Error, app::models};

use super::{
    hub::HubArgs,
    progress,
    reporting::{ProgressStyle, ReportArgs},
    table::{size, table},
};

const EXAMPLES: &str = "\
Examples:
  sora models list
  sora models pull Lightricks/LTX-Video
  sora models info ltxv-2b-0.9.8-distilled
  sora models path Lightricks/LTX-Video@main";

/// List, fetch, check and delete models
///
/// They lie in the cache that all programs of the hub share. A name is OWNER/NAME[@REVISION], one file of it as
/// OWNER/NAME/FILE, or a name from `sora models list`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show what is cached and what is known by name
    List(Common),
    /// Fetch a model, or what is new of it
    Pull(One),
    /// Delete a model from the cache
    Rm(One),
    /// Say what a model is, from its headers alone
    Info(One),
    /// Hash a model's files again and compare
    Verify {
        #[command(flatten)]
        one: One,
        /// Delete what is wrong, so that the next use fetches it anew
        #[arg(long)]
        repair: bool,
    },
    /// Print where a model lies
    Path(One),
}

#[derive(Debug, clap::Args)]
struct One {
    /// The model
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    hub: HubArgs,

    /// Print JSON on stdout
    #[arg(long)]
    json: bool,

    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,

    /// How progress is shown on stderr
    #[arg(long, value_name = "STYLE", value_enum, default_value_t, hide_short_help = true)]
    progress: ProgressStyle,
}

impl Common {
    fn report(&self) -> ReportArgs {
        ReportArgs { progress: self.progress, json: self.json, quiet: self.quiet, verbose: false }
    }
}

impl Args {
    fn common(&self) -> &Common {
        match &self.action {
            Action::List(common) => common,
            Action::Pull(one) | Action::Rm(one) | Action::Info(one) | Action::Path(one) => &one.common,
            Action::Verify { one, .. } => &one.common,
        }
    }

    pub fn speaks_json(&self) -> bool {
        self.common().progress == ProgressStyle::Json
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    super::interrupt::watch()?;
    let common = args.common();
    let hub = common.hub.open();
    let reporter = progress::reporter(&common.report());
    let reporter = reporter.as_ref();
    match &args.action {
        Action::List(_) => {
            let list = models::list(&hub)?;
            show(common, &list, || list_text(&list))
        }
        Action::Pull(one) => {
            let pulled = models::pull(&one.name, &hub, reporter)?;
            show(common, &pulled, || lines(pulled.iter().map(|part| part.path.display().to_string())))
        }
        Action::Rm(one) => {
            let freed = models::remove(&one.name, &hub)?;
            show(common, &serde_json::json!({ "freed_bytes": freed }), || format!("freed {}\n", size(freed)))
        }
        Action::Info(one) => {
            let facts = models::facts(&one.name, &hub)?;
            show(common, &facts, || facts_text(&facts))
        }
        Action::Verify { one, repair } => {
            let verified = models::verify(&one.name, &hub, *repair, reporter)?;
            let files = || verified.iter().flat_map(|repo| &repo.files);
            let state = |wrong: &Option<String>| if wrong.is_some() { "wrong" } else { "right" };
            show(common, &verified, || lines(files().map(|f| format!("{}  {}", state(&f.wrong), f.path))))?;
            match files().filter(|file| file.wrong.is_some()).count() {
                0 => Ok(()),
                wrong => {
                    let hint = match repair {
                        true => format!("`sora models pull {}` fetches them anew", one.name),
                        false => "--repair takes them out of the cache".to_owned(),
                    };
                    Err(Error::Hub {
                        what: one.name.clone(),
                        why: format!("{wrong} of its files are wrong"),
                        hint,
                    })?
                }
            }
        }
        Action::Path(one) => {
            let paths = models::paths(&one.name, &hub)?;
            show(common, &paths, || lines(paths.iter().map(|path| path.display().to_string())))
        }
    }
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

/// Prints data on stdout, as JSON or for people.
fn show(common: &Common, data: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    let text = if common.json { serde_json::to_string_pretty(data)? + "\n" } else { text() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn list_text(list: &models::ModelList) -> String {
    let mut text = format!("In the cache ({}):\n", list.cache.display());
    if list.cached.is_empty() {
        text.push_str("  nothing yet\n");
    }
    let cached: Vec<[String; 3]> = list
        .cached
        .iter()
        .map(|repo| {
            let unfinished = match repo.unfinished_bytes {
                0 => String::new(),
                bytes => format!("{} of it unfinished", size(bytes)),
            };
            [format!("  {}", repo.id), size(repo.bytes), unfinished]
        })
        .collect();
    text.push_str(&table(&cached));
    text.push_str("\nKnown by name:\n");
    let known: Vec<[String; 4]> = list
        .known
        .iter()
        .map(|row| {
            let here = if row.cached { "here" } else { "" };
            let bytes = row.bytes.map(size).unwrap_or_default();
            [format!("  {}", row.name), bytes, here.into(), row.about.clone()]
        })
        .collect();
    text.push_str(&table(&known));
    text
}

fn facts_text(facts: &models::ModelFacts) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        writeln!(text, "{name:<13} {value}").expect("a string can be written");
    };
    if let Some(known) = &facts.catalog {
        row("about", &known.about);
        row("licence", &format!("{} ({})", known.licence, known.licence_url));
    }
    if let Some(licence) = &facts.licence {
        row("licence", licence);
    }
    let missing = match facts.missing_bytes {
        0 => "nothing, it is all here".to_owned(),
        bytes => size(bytes),
    };
    row("to download", &missing);
    text + &super::info::table(&facts.headers)
}
