//! Flags on pictures and clips as prompts.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sora::{
    Error,
    app::{
        region::MotionRegion,
        visual::{InitVideo, Keyframe, Visual},
        weave::{Direction, Pattern},
    },
    media::Fit,
};

/// Pictures and clips as prompts.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Pictures and clips")]
pub struct VisualArgs {
    /// Begin with this picture
    ///
    /// Its shape is the video's unless a size is given.
    #[arg(long, value_name = "PICTURE")]
    init_image: Option<PathBuf>,

    /// How much of --init-image is held fast (0..1)
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 1.0,
        requires = "init_image",
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    init_image_strength: f64,

    /// Hold a picture or clip at a frame
    ///
    /// May be repeated. A frame below 0 counts from the end: -1 is the last one, and a clip ends there. `24:cat.png`,
    /// `-1:end.mp4`, `40:dog.png:0.5`.
    #[arg(long, value_name = "FRAME:FILE[:SHARE]", allow_hyphen_values = true)]
    keyframe: Vec<Keyframe>,

    /// Start from this clip
    #[arg(long, value_name = "CLIP")]
    init_video: Option<PathBuf>,

    /// How much of --init-video may change (0..1) [default: 0.6]
    #[arg(
        long,
        value_name = "SHARE",
        requires = "init_video",
        conflicts_with_all = ["extend", "looped"],
        allow_negative_numbers = true,
        hide_short_help = true
    )]
    strength: Option<f64>,

    /// Go on with --init-video: forward, backward or both
    ///
    /// Its frames stay as they are; --duration says how much is new, in each direction.
    #[arg(
        long,
        value_name = "WHERE",
        value_enum,
        hide_possible_values = true,
        requires = "init_video",
        conflicts_with = "looped"
    )]
    extend: Option<Extend>,

    /// Leave the clip out, and write what is new
    #[arg(long, requires = "extend", hide_short_help = true)]
    only_new: bool,

    /// Make the end flow into the start
    ///
    /// Frames that lead from the one to the other are added.
    #[arg(long = "loop")]
    looped: bool,

    #[command(flatten)]
    pub weaving: WeavingArgs,

    /// What is done with pictures of another shape: crop, pad or stretch
    #[arg(long, value_name = "HOW", default_value_t, hide_short_help = true)]
    fit: Fit,

    /// Take pictures as they are, without the H.264 compression that keeps them from freezing
    #[arg(long, hide_short_help = true)]
    no_compress_init: bool,

    /// Let only a part of --init-image move: what is white in this picture
    ///
    /// The rest stays as it is, in the model's own cells (`sora info` tells their size).
    #[arg(long, value_name = "MASK", requires = "init_image", conflicts_with_all = ["extend", "looped"], hide_short_help = true)]
    motion_region: Option<PathBuf>,

    /// Put back what the autoencoder loses of pictures that are held, where the video still shows them
    ///
    /// The detail fades out in time and where something moves. The built-in model does so by itself, since its
    /// autoencoder is small; published models give what their pipelines give.
    #[arg(long, overrides_with = "no_keep_detail", hide_short_help = true)]
    keep_detail: bool,

    /// Leave held pictures as the autoencoder gives them
    #[arg(long, hide_short_help = true)]
    no_keep_detail: bool,

    /// Noise on what is held fast [default: the pipeline's own]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true, hide_short_help = true)]
    condition_noise: Option<f64>,
}

/// How clips go on.
#[derive(Debug, Clone, Args)]
pub struct WeavingArgs {
    /// Frames of a clip that the model sees to go on with it [default: 25, or less in short renders]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub context: Option<usize>,

    /// Frames of one render, context included; longer stretches take several [default: the model's own length]
    ///
    /// A long clip's finished renders are kept beside the output: the same command goes on after it was stopped.
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub window: Option<usize>,
}

/// Where a clip is extended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Extend {
    /// Beyond its end
    Forward,
    /// Before its start
    Backward,
    /// Both ways
    Both,
}

/// How the flags want a clip to go on.
#[derive(Debug, Clone)]
pub enum Going {
    /// It doesn't.
    Not,
    /// The clip that is to be made goes on to its own start.
    Looped,
    /// A clip that is there.
    On(Pattern),
}

impl VisualArgs {
    /// Whether and how a clip goes on.
    pub fn going(&self) -> Result<Going, Error> {
        let direction = self.extend.map(|extend| match extend {
            Extend::Forward => Direction::Forward,
            Extend::Backward => Direction::Backward,
            Extend::Both => Direction::Both,
        });
        let going = match (&self.init_video, direction) {
            (Some(clip), Some(direction)) => {
                Going::On(Pattern::Extend { clip: clip.clone(), direction, only_new: self.only_new })
            }
            (Some(clip), None) if self.looped => Going::On(Pattern::Loop { clip: clip.clone() }),
            _ if self.looped => Going::Looped,
            _ => Going::Not,
        };
        if matches!(going, Going::Not) && self.weaving.context.is_some() {
            return Err(Error::invalid("context", "only clips that go on have one")
                .with_hint("add --extend or --loop"));
        }
        Ok(going)
    }

    /// What the library calls this.
    pub fn lower(self) -> Visual {
        let first = self.init_image.map(|path| Keyframe {
            path,
            frame: 0,
            strength: self.init_image_strength,
            sha256: None,
        });
        let goes_on = self.extend.is_some() || self.looped;
        let strength = self.strength.unwrap_or(0.6);
        Visual {
            keyframes: first.into_iter().chain(self.keyframe).collect(),
            video: self.init_video.filter(|_| !goes_on).map(|path| InitVideo {
                path,
                strength,
                sha256: None,
            }),
            fit: self.fit,
            compress: !self.no_compress_init,
            noise_scale: self.condition_noise,
            region: self.motion_region.map(|path| MotionRegion { path, sha256: None }),
            detail: match (self.keep_detail, self.no_keep_detail) {
                (false, false) => None,
                (keep, _) => Some(keep),
            },
        }
    }
}
