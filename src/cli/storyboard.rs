//! `sora storyboard`: a film of several shots.

use std::{io::Write, path::PathBuf};

use sora::{
    Error,
    app::{
        decode::DecodeChoice,
        storyboard::{FilmMade, Storyboard, StoryboardRequest},
    },
    models::source::{ModelSource, Parts},
};

use super::{
    compute::ComputeArgs,
    decoding::{DecodingArgs, TileArgs},
    hub::HubArgs,
    output::OutputArgs,
    reporting::ReportArgs,
    start::start,
    windows::WindowArgs,
};

const FILM: &str = "\
A film file:
  [film]
  size = \"128x128\"
  duration = \"2s\"

  [characters.fox]
  description = \"a red fox with a blue scarf\"
  seed = 11

  [[shots]]
  prompt = \"{fox} runs through snow\"
  camera = \"pan left\"

  [[shots]]
  prompt = \"{fox} sleeps in the forest\"
  transition = \"dissolve 0.5s\"

Examples:
  sora storyboard film.toml --check
  sora storyboard film.toml -o film.mp4 --upscale 1920x1080";

/// Make a film from a file of shots
///
/// Each shot is kept beside the film, and only those that have changed are rendered again.
#[derive(Debug, clap::Args)]
#[command(after_help = FILM)]
pub struct Args {
    /// The film file, in TOML; docs/storyboards.md says what it may hold
    film: PathBuf,

    /// Check the file and show the plan; nothing is rendered
    #[arg(long)]
    check: bool,

    /// Model, as `sora gen` takes it [default: the film file's, else the one that is built in]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// Frames that are made in one go; longer shots are made window by window [default: the model's own]
    #[arg(long, value_name = "N", hide_short_help = true)]
    window: Option<usize>,

    #[command(flatten)]
    windows: WindowArgs,
    #[command(flatten)]
    tile: TileArgs,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    report: ReportArgs,
}

impl Args {
    pub fn report(&self) -> &ReportArgs {
        &self.report
    }

    pub fn hub(&self) -> &HubArgs {
        &self.hub
    }

    /// The model that is asked for, by its name.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let (report, check) = (args.report.clone(), args.check);
    let own = Parts::default();
    let (reporter, model) = start(&args.compute, &report, &args.hub, &own, args.model())?;
    let request = lower(args, model);
    let storyboard = Storyboard::prepare(&request, reporter.as_ref())?;
    let mut out = std::io::stdout().lock();
    if check {
        let plan = match report.json {
            true => format!("{}\n", serde_json::to_string(storyboard.shots())?),
            false => table(&storyboard),
        };
        out.write_all(plan.as_bytes())?;
        return Ok(());
    }
    let film = storyboard.render()?;
    print(&film, &report, &mut out)?;
    Ok(film.verdict()?)
}

/// What the library is asked for, with the model that the name stands for.
pub fn lower(args: Args, model: Option<ModelSource>) -> StoryboardRequest {
    let mut decode = DecodeChoice::default();
    args.decoding.apply(&mut decode);
    args.tile.apply(&mut decode);
    StoryboardRequest {
        film: args.film,
        model,
        upscale: args.decoding.upscale,
        decode,
        take: args.windows.lower(args.window),
        max_memory: args.compute.max_memory,
        device: args.compute.device,
        dtype: args.compute.dtype,
        outputs: args.output.lower(),
        shots: None,
    }
}

fn table(storyboard: &Storyboard<'_>) -> String {
    let spec = storyboard.spec();
    let mut text = String::new();
    for shot in storyboard.shots() {
        let state = if shot.ready { "ready" } else { "to render" };
        let windows = if shot.windows == 1 { String::new() } else { format!(", {} windows", shot.windows) };
        text += &format!(
            "{:>7.2} s  {:<24} {:<18} {} frames{windows}, seed {}, {state}\n           {}\n",
            shot.begins, shot.name, shot.transition, shot.frames, shot.seed, shot.prompt
        );
    }
    let (frames, seconds) = (spec.frames, spec.frames as f64 / spec.fps);
    text + &format!("{seconds:>7.2} s  {frames} frames of {} at {} fps\n", spec.size(), spec.fps)
}

/// Prints a film's path, or all about it in JSON.
pub fn print(film: &FilmMade, report: &ReportArgs, out: &mut impl Write) -> Result<(), Error> {
    let text = match report.json {
        true => serde_json::to_string(film).expect("a film has string keys and finite numbers only"),
        false if film.path.as_os_str() == "-" => return Ok(()),
        false => film.path.to_string_lossy().into_owned(),
    };
    writeln!(out, "{text}").map_err(Error::file("write", "stdout"))
}
