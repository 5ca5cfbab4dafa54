//! `sora gen`: from a prompt to a video.

use std::{io::Read, num::NonZeroUsize, path::PathBuf};

use sora::{
    Error,
    app::{
        direction::{Camera, Directing},
        generate::{GenerateRequest, Job},
        locate::locate,
        outputs::Preview,
        recipe::RecipeFile,
        shape::{Aspect, LengthChoice, SizeChoice},
    },
    device::DTypeChoice,
    models::source::ModelSource,
    video::Size,
};

use super::{
    compute::ComputeArgs, decoding::DecodingArgs, hub::HubArgs, output::OutputArgs, progress,
    reporting::ReportArgs,
};

const EXAMPLES: &str = "\
Examples:
  sora gen \"pirate ships in coffee\" -o out.mp4
  sora gen \"a cat runs through snow\" -o cat.webm --aspect 16:9 --duration 3s --seed 7
  echo \"a red fox\" | sora gen - -o - | ffplay -";

const MORE_EXAMPLES: &str = "\
  sora gen \"a monster dances\" -o take.mp4 --num-videos 4 --contact-sheet sheet.png
  sora gen \"a lighthouse at night\" --model ./ltx-video --size 704x480 --frames 97 --dtype bf16
  sora gen --resume out.mp4.latents.safetensors -o out.mp4
  sora gen --recipe out.mp4 -o again.mp4";

/// Make a video from words
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "sora gen [OPTIONS] <PROMPT>",
    after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n{MORE_EXAMPLES}\n\nExit codes:\n{}", super::exit::table()),
)]
pub struct Args {
    /// What to show; `-` reads it from stdin
    #[arg(required_unless_present_any = ["resume", "recipe"])]
    prompt: Option<String>,

    /// Model: a path, OWNER/NAME of the hub or a known name [default: the one that is built in]
    ///
    /// A folder or file; OWNER/NAME[@REVISION] or OWNER/NAME/FILE of the hub, which is downloaded if it isn't in the
    /// cache; or a name from `sora models list`. What lies at a path of that name always wins.
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// What to keep away from
    #[arg(short, long, value_name = "TEXT")]
    negative_prompt: Option<String>,

    #[command(flatten)]
    direction: DirectionArgs,
    #[command(flatten)]
    video: VideoArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    latents: LatentsArgs,
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
}

/// Words that a model was trained on, or phrases for those that say nothing of it.
#[derive(Debug, clap::Args)]
struct DirectionArgs {
    /// What the camera does, e.g. "slow zoom in" or "pan left until 3s then static"
    ///
    /// static, pan left|right, tilt up|down, zoom in|out, dolly in|out, truck left|right, crane up|down, orbit, follow,
    /// shake; or what the model was trained on. In long clips a move is said to the windows that it falls into.
    #[arg(long, value_name = "MOVES")]
    camera: Option<Camera>,

    /// How it looks, e.g. "black and white", animation, 3d, photo or sketch
    #[arg(long, value_name = "STYLE")]
    style: Option<String>,
}

/// Size and length.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Video")]
struct VideoArgs {
    /// Width and height in pixels, e.g. 768x512
    #[arg(short, long, value_name = "WxH")]
    size: Option<Size>,

    /// Width in pixels
    #[arg(long, value_name = "PX", conflicts_with = "size", hide_short_help = true)]
    width: Option<usize>,

    /// Height in pixels
    #[arg(long, value_name = "PX", conflicts_with = "size", hide_short_help = true)]
    height: Option<usize>,

    /// Nearest valid size of this shape, e.g. 16:9
    ///
    /// It has about as many pixels as the model's own size.
    #[arg(short, long, value_name = "W:H", conflicts_with_all = ["size", "width", "height"])]
    aspect: Option<Aspect>,

    /// Number of frames
    ///
    /// [default: the model's own; 1 if the output is a still picture]
    #[arg(short, long, value_name = "N")]
    frames: Option<usize>,

    /// Nearest valid number of frames, e.g. 5s or 500ms
    #[arg(short, long, value_name = "TIME", value_parser = seconds, conflicts_with = "frames")]
    duration: Option<f64>,

    /// Frames a second
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    fps: Option<f64>,
}

/// How the noise becomes a clip.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Denoising steps: more is slower and finer
    #[arg(long, value_name = "N")]
    steps: Option<usize>,

    /// How strongly the prompt pulls; up to 1 is not at all
    #[arg(short, long, value_name = "SCALE", allow_negative_numbers = true)]
    guidance: Option<f64>,

    /// Take back over-exposure by strong guidance (0..1)
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    guidance_rescale: f64,

    /// The same seed gives the same video [default: drawn]
    ///
    /// A seed that was drawn is printed and kept in the file.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// Videos to make
    ///
    /// They have the seeds SEED, SEED+1, … and numbered names: out-1.mp4, out-2.mp4, …
    #[arg(long, value_name = "N", default_value_t = 1)]
    num_videos: usize,

    /// Timesteps by hand (1000..0), as distilled models want them; they count instead of --steps
    #[arg(
        long,
        value_name = "T,T,…",
        value_delimiter = ',',
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    timesteps: Option<Vec<f32>>,

    /// Tokens that the prompt is padded or cut to [default: the model's own]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_sequence_length: Option<usize>,
}

/// Latents on disk, and early looks.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Latents")]
struct LatentsArgs {
    /// Show a small approximation while denoising [default: <output>.preview.gif]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    preview: Option<String>,

    /// Keep the final latents for `sora decode`
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    save_latents: Option<PathBuf>,

    /// Start from these latents instead of the seed's noise
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    latents: Option<PathBuf>,

    /// Save the latents each time N steps are done, beside the video, for --resume after a crash
    #[arg(long, value_name = "N", hide_short_help = true)]
    checkpoint_every: Option<NonZeroUsize>,

    /// Make a video again: the .json file beside it, or a video that sora wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = DECIDED)]
    recipe: Option<PathBuf>,

    /// Go on with a render that Ctrl-C stopped
    #[arg(
        long,
        value_name = "FILE",
        hide_short_help = true,
        conflicts_with_all = DECIDED,
        conflicts_with = "recipe",
    )]
    resume: Option<PathBuf>,
}

/// What a saved render has decided.
const DECIDED: &[&str] = &[
    "prompt",
    "negative_prompt",
    "size",
    "width",
    "height",
    "aspect",
    "camera",
    "style",
    "frames",
    "duration",
    "fps",
    "steps",
    "guidance",
    "guidance_rescale",
    "seed",
    "num_videos",
    "timesteps",
    "max_sequence_length",
    "latents",
];

fn seconds(text: &str) -> Result<f64, Error> {
    let text = text.trim();
    let (number, unit) = match text.find(|c: char| c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" | "sec" => 1.0,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        _ => f64::NAN,
    };
    let seconds = number.trim().parse().map_or(f64::NAN, |n: f64| n * factor);
    if seconds.is_finite() && seconds > 0.0 {
        Ok(seconds)
    } else {
        Err(Error::invalid(format!("duration `{text}`"), "expected a time above 0, e.g. 5s, 2.5s or 500ms"))
    }
}

pub fn run(mut args: Args) -> anyhow::Result<()> {
    if args.prompt.as_deref() == Some("-") {
        args.prompt = Some(prompt_from_stdin()?);
    }
    args.compute.start_threads()?;
    super::interrupt::watch()?;
    let report = args.report.clone();
    let reporter = progress::reporter(&report);
    let model =
        args.model.take().map(|name| locate(&name, &args.hub.open(), reporter.as_ref())).transpose()?;
    let request = lower(args, model)?;
    let mut job = Job::prepare(&request, reporter.as_ref())?;
    let mut verdict = Ok(());
    while let Some(outcome) = job.next_clip()? {
        super::outcome::print(&outcome, &report)?;
        verdict = verdict.and(outcome.verdict());
    }
    Ok(verdict?)
}

fn prompt_from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Error::file("read", "stdin"))?;
    Ok(text.trim().to_owned())
}

fn lower(args: Args, model: Option<ModelSource>) -> Result<GenerateRequest, Error> {
    let Args {
        prompt,
        model: _,
        negative_prompt,
        direction,
        video,
        sampling,
        decoding,
        output,
        latents,
        compute,
        hub: _,
        report: _,
    } = args;
    let mut request = match (latents.resume, latents.recipe) {
        (Some(file), _) => GenerateRequest::resume(&file)?,
        (None, Some(file)) => {
            let mut recipe = RecipeFile::read(&file)?;
            // A model that is named now counts instead of the recipe's, which may lie elsewhere.
            if let Some(ModelSource::Folder(path)) = &model {
                recipe.model_path = Some(path.clone());
            }
            GenerateRequest::remake(recipe)?
        }
        (None, None) => GenerateRequest {
            prompt: prompt.unwrap_or_default(),
            directing: Directing { camera: direction.camera, style: direction.style },
            negative_prompt,
            size: video.size(),
            length: video.length(),
            fps: video.fps,
            steps: sampling.steps,
            timesteps: sampling.timesteps,
            guidance: sampling.guidance,
            guidance_rescale: sampling.guidance_rescale,
            max_sequence_length: sampling.max_sequence_length,
            seed: sampling.seed,
            clips: sampling.num_videos,
            initial_latents: latents.latents,
            ..GenerateRequest::default()
        },
    };
    if let Some(model) = model {
        request.model = model;
    }
    decoding.apply(&mut request.decode);
    request.upscale = decoding.upscale.or(request.upscale);
    request.device = compute.device;
    if compute.dtype != DTypeChoice::Auto {
        request.dtype = compute.dtype;
    }
    request.outputs = output.lower();
    request.outputs.save_latents = latents.save_latents;
    request.outputs.checkpoint_every = latents.checkpoint_every;
    request.outputs.preview = match latents.preview {
        None => Preview::Off,
        Some(file) if file.is_empty() => Preview::Beside,
        Some(file) => Preview::At(file.into()),
    };
    Ok(request)
}

impl VideoArgs {
    fn size(&self) -> SizeChoice {
        match (self.size, self.aspect) {
            (Some(Size { width, height }), _) => {
                SizeChoice::Sides { width: Some(width), height: Some(height) }
            }
            (None, Some(aspect)) => SizeChoice::Aspect(aspect),
            (None, None) => SizeChoice::Sides { width: self.width, height: self.height },
        }
    }

    fn length(&self) -> LengthChoice {
        match (self.frames, self.duration) {
            (Some(frames), _) => LengthChoice::Frames(frames),
            (None, Some(seconds)) => LengthChoice::Seconds(seconds),
            (None, None) => LengthChoice::Default,
        }
    }
}
