//! `sora gen`: from a prompt to a video.

use std::{io::Read, num::NonZeroUsize, path::PathBuf};

use sora::{
    Error,
    app::{
        check::check_on,
        direction::{Camera, Directing},
        generate::{GenerateRequest, Job},
        loaded::{Keep, Loaded},
        locate::{locate, recipe_of},
        memory,
        outputs::{Outputs, Preview},
        recipe::RecipeFile,
        shape::{Aspect, LengthChoice, SizeChoice},
        weave::{WeaveRequest, looped, weave},
    },
    device::DTypeChoice,
    event::Reporter,
    models::source::{ModelSource, Parts},
    video::Size,
};

use super::{
    compute::ComputeArgs,
    decoding::{DecodingArgs, TileArgs},
    hub::{HubArgs, PromptArgs},
    model::PartArgs,
    output::OutputArgs,
    progress,
    reporting::ReportArgs,
    sampling::SamplingArgs,
    visual::{Going, VisualArgs, WeavingArgs},
    windows::WindowArgs,
};

const EXAMPLES: &str = "\
Examples:
  sora gen \"pirate ships in coffee\" -o out.mp4
  sora gen \"a cat runs through snow\" -o cat.webm --aspect 16:9 --duration 3s --seed 7
  echo \"a red fox\" | sora gen - -o - | ffplay -";

const MORE_EXAMPLES: &str = "\
  sora gen \"a monster dances\" -o take.mp4 --num-videos 4 --contact-sheet sheet.png
  sora gen \"a lighthouse at night\" --model ./ltx-video --size 704x480 --frames 97 --dtype bf16
  sora gen \"the waves roll in\" --init-image beach.jpg -o beach.mp4
  sora gen \"she turns round\" --keyframe 0:a.png --keyframe -1:b.png -o turn.mp4
  sora gen \"the wave breaks\" --init-video wave.mp4 --extend both --duration 3s -o long.mp4
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

    /// Model: a path or a name [default: the one that is built in]
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
    visual: VisualArgs,
    #[command(flatten)]
    video: VideoArgs,
    #[command(flatten)]
    clips: ClipsArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    tile: TileArgs,
    #[command(flatten)]
    decoding: DecodingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    latents: LatentsArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Keep all stages in memory between videos
    ///
    /// By default each stage leaves memory when its work is done, and only one is there at a time. Under --max-memory
    /// those stay that it has room for.
    #[arg(long, hide_short_help = true, help_heading = "Compute")]
    keep_loaded: bool,
    #[command(flatten)]
    parts: PartArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    report: ReportArgs,
}

impl Args {
    pub fn report(&self) -> &ReportArgs {
        &self.report
    }

    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    pub fn hub(&self) -> &HubArgs {
        &self.hub
    }

    pub fn start_threads(&self) -> anyhow::Result<()> {
        self.compute.start_threads()
    }

    /// Whether and how a clip goes on.
    pub fn going(&self) -> Result<Going, Error> {
        self.visual.going()
    }

    /// How clips go on.
    pub fn weaving(&self) -> &WeavingArgs {
        &self.visual.weaving
    }
}

/// Words that a model was trained on, or phrases for those that say nothing of it.
#[derive(Debug, clap::Args)]
struct DirectionArgs {
    /// What the camera does, e.g. "slow zoom in"
    ///
    /// Or "pan left until 3s then static", with the moves
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

    #[command(flatten)]
    windows: WindowArgs,
}

/// Seeds and numbers.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct ClipsArgs {
    /// The same seed gives the same video [default: drawn]
    ///
    /// A seed that was drawn is printed and kept in the file.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// Videos to make
    ///
    /// They have the seeds SEED, SEED+1, … and numbered names: out-1.mp4, out-2.mp4, …
    #[arg(long, value_name = "N", default_value_t = 1, hide_short_help = true)]
    num_videos: usize,

    /// Tokens that the prompt is padded or cut to [default: the model's own]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_sequence_length: Option<usize>,
}

/// Latents on disk, and early looks.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Latents")]
struct LatentsArgs {
    #[command(flatten)]
    saving: SavingArgs,

    /// Start from these latents instead of the seed's noise
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    latents: Option<PathBuf>,

    /// Make a video again: the .json file beside it, or a video that sora wrote
    #[arg(long, value_name = "FILE", conflicts_with_all = DECIDED, hide_short_help = true)]
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

/// What a render leaves on its way.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Latents")]
pub struct SavingArgs {
    /// Show a small approximation while denoising [default: <output>.preview.gif]
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        hide_short_help = true
    )]
    preview: Option<String>,

    /// Keep the final latents for `sora decode`
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    save_latents: Option<PathBuf>,

    /// Save the latents each time N steps are done, beside the video, for --resume after a crash
    #[arg(long, value_name = "N", hide_short_help = true)]
    checkpoint_every: Option<NonZeroUsize>,
}

impl SavingArgs {
    /// Puts what is wanted among the outputs.
    pub fn apply(self, outputs: &mut Outputs) {
        outputs.save_latents = self.save_latents;
        outputs.checkpoint_every = self.checkpoint_every;
        outputs.preview = match self.preview {
            None => Preview::Off,
            Some(file) if file.is_empty() => Preview::Beside,
            Some(file) => Preview::At(file.into()),
        };
    }
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
    "seed",
    "num_videos",
    "max_sequence_length",
    "latents",
    "window",
    "overlap",
    "match_colour",
    "init_image",
    "keyframe",
    "init_video",
    "fit",
    "no_compress_init",
    "keep_detail",
    "no_keep_detail",
    "condition_noise",
    "looped",
    "SamplingArgs",
];

pub fn seconds(text: &str) -> Result<f64, Error> {
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
    let (report, keep_loaded) = (args.report.clone(), args.keep_loaded);
    let (going, WeavingArgs { context, window }) = (args.going()?, args.visual.weaving.clone());
    let reporter = progress::reporter(&report);
    let resumed = args.latents.resume.as_deref().map(WeaveRequest::resume).transpose()?.flatten();
    let request = lower(args, &|name, own, hub| locate(name, own, &hub.open(), reporter.as_ref()))?;
    let clip = match (going, resumed) {
        (_, Some(resumed)) => weave(&WeaveRequest { base: request, ..resumed }, reporter.as_ref())?,
        (Going::Not, None) => return generate(&request, reporter.as_ref(), &report, keep_loaded),
        (Going::Looped, None) => looped(&request, context, window, reporter.as_ref())?,
        (Going::On(pattern), None) => {
            let request = WeaveRequest { base: request, pattern, context, window, made: None };
            weave(&request, reporter.as_ref())?
        }
    };
    super::outcome::print(&clip, &report)?;
    Ok(clip.verdict()?)
}

fn generate(
    request: &GenerateRequest,
    reporter: &dyn Reporter,
    report: &ReportArgs,
    keep_loaded: bool,
) -> anyhow::Result<()> {
    let mut checkpoint = request.open()?;
    if keep_loaded {
        let keep = match request.max_memory {
            None => Keep::ALL,
            limit => memory::keep(checkpoint.as_ref(), &check_on(request, checkpoint.as_ref())?, limit),
        };
        checkpoint = Box::new(Loaded::new(checkpoint, keep));
    }
    let mut job = Job::prepare_on(request, reporter, checkpoint)?;
    if report.verbose {
        eprint!("{}", super::plan::text(&job.forecast()?));
    }
    let mut verdict = Ok(());
    while let Some(outcome) = job.next_clip()? {
        super::outcome::print(&outcome, report)?;
        verdict = verdict.and(outcome.verdict());
    }
    Ok(verdict?)
}

fn prompt_from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Error::file("read", "stdin"))?;
    Ok(text.trim().to_owned())
}

/// Finds a model by its name, without the parts that the user has own ones of.
pub type Locate<'a> = dyn Fn(&str, &Parts, &HubArgs) -> Result<ModelSource, Error> + 'a;

/// What the library is asked for; `locate` finds a model by its name. Whether a clip goes on, [`Args::going`] says.
pub fn lower(mut args: Args, locate: &Locate<'_>) -> Result<GenerateRequest, Error> {
    if args.sampling.recipe_name.is_none()
        && let Some(name) = args.model.as_deref().and_then(|name| recipe_of(name, &args.hub.open()))
    {
        args.sampling.recipe_name = Some(name.parse()?);
    }
    for path in args.sampling.upsampler.iter_mut().filter(|path| !path.exists()) {
        let found = locate(&path.to_string_lossy(), &Parts::default(), &args.hub)?;
        *path = found.file().map_or_else(|| path.clone(), Into::into);
    }
    let Args {
        prompt,
        model,
        mut parts,
        negative_prompt,
        direction,
        visual,
        video,
        clips,
        sampling,
        tile,
        decoding,
        output,
        latents,
        compute,
        prompts,
        keep_loaded: _,
        hub,
        report: _,
    } = args;
    let own = parts.clone().lower();
    let mut model = model.map(|name| locate(&name, &own, &hub)).transpose()?;
    let mut request = match (latents.resume, latents.recipe) {
        (Some(file), _) => match WeaveRequest::resume(&file)? {
            Some(weaving) => weaving.base,
            None => GenerateRequest::resume(&file)?,
        },
        (None, Some(file)) => {
            let mut recipe = RecipeFile::read(&file)?;
            // A model that is named now counts instead of the recipe's, which may lie elsewhere.
            if let Some(model) = model.take() {
                recipe.model_path = model.base().file().map(Into::into);
                recipe.parts = model.parts();
            }
            let own = ModelSource::Embedded.with(recipe.parts);
            recipe.parts = std::mem::take(&mut parts).onto(own).parts();
            GenerateRequest::remake(recipe)?
        }
        (None, None) => GenerateRequest {
            prompt: prompt.unwrap_or_default(),
            directing: Directing { camera: direction.camera, style: direction.style, ..Directing::default() },
            negative_prompt,
            size: video.size(),
            length: video.length(),
            fps: video.fps,
            take: video.windows.lower(visual.weaving.window),
            initial_latents: latents.latents,
            visual: visual.lower(),
            ..clips.request(sampling)
        },
    };
    if let Some(model) = model {
        request.model = model;
    }
    request.model = parts.onto(request.model);
    decoding.apply(&mut request.decode);
    tile.apply(&mut request.decode);
    request.upscale = decoding.upscale.or(request.upscale);
    request.device = compute.device;
    request.max_memory = compute.max_memory;
    request.prompt_cache = prompts.cache();
    if compute.dtype != DTypeChoice::Auto {
        request.dtype = compute.dtype;
    }
    request.outputs = output.lower();
    latents.saving.apply(&mut request.outputs);
    Ok(request)
}

impl ClipsArgs {
    /// A request that these flags and those on the sampling alone have been heard for.
    pub fn request(self, sampling: SamplingArgs) -> GenerateRequest {
        GenerateRequest {
            sampling: sampling.lower(),
            max_sequence_length: self.max_sequence_length,
            seed: self.seed,
            clips: self.num_videos,
            ..GenerateRequest::default()
        }
    }
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
