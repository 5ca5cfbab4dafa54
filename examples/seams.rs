//! How well pictures and clips are kept as prompts, in figures: `cargo run --release --example seams [MODEL]`.
//!
//! Makes pictures and two clips that no model has seen, animates the pictures with and without the detail that the
//! autoencoder loses of them, extends a clip both ways, joins the two and closes one to a loop, all with the built-in
//! model unless a folder is named. Prints how near the first frame is to the picture and how much it moves, how well
//! original frames come through H.264 at crf 12, and how wide each seam is beside the clip's own median step.

#[path = "seams/pictures.rs"]
mod pictures;

use std::path::{Path, PathBuf};

use sora::{
    Result,
    app::{
        generate::{GenerateRequest, Job},
        outputs::Outputs,
        seam::{Steps, step},
        shape::{LengthChoice, SizeChoice},
        visual::{Keyframe, Visual},
        weave::{Direction, Pattern, WeaveRequest, weave},
    },
    device::{DTypeChoice, DeviceChoice},
    event::Silent,
    media::{Clip, EncodeOptions, Target, open_sink, read_clip},
    models::{
        api::{DecodeOptions, Placement, Tiling},
        registry,
        source::ModelSource,
    },
    pipeline::{noise::Drawn, render::Renderer},
    video::{Frame, Frames, VideoSpec},
};

fn main() -> Result<()> {
    let model = std::env::args().nth(1).map_or(ModelSource::Embedded, |path| ModelSource::at(path.into()));
    let bench = Bench::new(model)?;
    bench.animate()?;
    bench.extend(Direction::Forward)?;
    bench.extend(Direction::Backward)?;
    bench.join()?;
    bench.close()
}

/// What all figures are taken with.
struct Bench {
    model: ModelSource,
    spec: VideoSpec,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(model: ModelSource) -> Result<Self> {
        let defaults = registry::open(&model)?.info().defaults.clone();
        let (width, height) = (defaults.width, defaults.height);
        let spec = VideoSpec { width, height, frames: defaults.frames, fps: defaults.fps };
        println!("{width}x{height}, {} frames at {} a second", spec.frames, spec.fps);
        let folder = tempfile::tempdir().map_err(sora::Error::file("write into", std::env::temp_dir()))?;
        Ok(Self { model, spec, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn request(&self, prompt: &str, name: &str) -> GenerateRequest {
        let outputs = Outputs {
            target: Some(self.path(name).to_string_lossy().into_owned()),
            encode: EncodeOptions { crf: Some(12), ..EncodeOptions::default() },
            ..Outputs::default()
        };
        GenerateRequest {
            model: self.model.clone(),
            prompt: prompt.into(),
            seed: Some(7),
            outputs,
            ..GenerateRequest::default()
        }
    }

    /// A clip of `count` drawn frames as cameras store them, and what it shows; `scene` tells one from another.
    fn clip(&self, name: &str, count: usize, scene: f64) -> Result<(PathBuf, Vec<Frame>)> {
        let (width, height) = (self.spec.width, self.spec.height);
        let frames: Vec<Frame> = (0..count).map(|i| pictures::boat(width, height, i as f64, scene)).collect();
        let path = self.path(name);
        write(&path, &frames, self.spec.fps)?;
        let shown = read(&path)?;
        Ok((path, shown))
    }

    /// Animates pictures of several kinds, with and without the detail that the autoencoder loses of them.
    fn animate(&self) -> Result<()> {
        println!("animate: first frame (aim: 24 dB or more), and how it moves, in levels of 255");
        println!(
            "  picture        frame 0, dB      step 0-1 / median step    first to last (aim: more than still)"
        );
        println!("                 plain  detail         plain  detail             plain  detail  still");
        let mut least = f64::INFINITY;
        for (name, picture) in pictures::all(self.spec.width, self.spec.height)? {
            let path = self.path("picture.png");
            let target = Target::parse(&path.to_string_lossy())?;
            let options = EncodeOptions::default();
            let mut sink = open_sink(&target, self.spec.width, self.spec.height, &options)?;
            sink.push(picture.clone())?;
            sink.finish()?;
            let [plain, detail] = [false, true]
                .map(|detail| self.animated(&path, name, detail).map(|made| Moves::of(&made, &picture)));
            let (plain, detail) = (plain?, detail?);
            let still = self.round_trip(&picture)?;
            let still = step(&still[0], &still[still.len() - 1]);
            least = least.min(detail.first);
            println!(
                "  {name:14} {:5.1}  {:6.1}         {:5.2}  {:6.2}             {:5.1}  {:6.1}  {still:5.1}",
                plain.first, detail.first, plain.step, detail.step, plain.all, detail.all
            );
        }
        println!("  the worst first frame with detail: {least:.1} dB");
        Ok(())
    }

    fn animated(&self, picture: &Path, prompt: &str, detail: bool) -> Result<Vec<Frame>> {
        let keyframe = Keyframe { path: picture.to_owned(), frame: 0, strength: 1.0, sha256: None };
        let (width, height) = (self.spec.width, self.spec.height);
        let request = GenerateRequest {
            visual: Visual { keyframes: vec![keyframe], detail: Some(detail), ..Visual::default() },
            size: SizeChoice::Sides { width: Some(width), height: Some(height) },
            ..self.request(prompt, "animated.mp4")
        };
        Job::prepare(&request, &Silent)?.next_clip()?;
        read(&self.path("animated.mp4"))
    }

    /// What the autoencoder makes of a clip that stands still.
    fn round_trip(&self, picture: &Frame) -> Result<Vec<Frame>> {
        let checkpoint = registry::open(&self.model)?;
        let device = DeviceChoice::Auto.open()?;
        let place = Placement { dtype: DTypeChoice::Auto.resolve(&device), device };
        let frames = vec![picture.clone(); self.spec.frames];
        let pixels = sora::app::visual::pixels(&frames)?;
        let latents = checkpoint.video_encoder(&place)?.encode(&pixels, &Tiling::default())?.mean;
        let mut sink = Frames::default();
        let options = DecodeOptions::default();
        let renderer = Renderer { checkpoint: checkpoint.as_ref(), place, reporter: &Silent };
        renderer.decode(&latents, &self.spec, 7, &Drawn::default(), &options, &mut sink)?;
        Ok(sink.0)
    }

    fn weave(&self, name: &str, pattern: Pattern) -> Result<Vec<Frame>> {
        let base = GenerateRequest {
            length: LengthChoice::Default,
            ..self.request("a sailboat on the sea at sunset", name)
        };
        weave(&WeaveRequest { base, pattern, context: None, window: None, made: None }, &Silent)?;
        read(&self.path(name))
    }

    fn extend(&self, direction: Direction) -> Result<()> {
        let (clip, originals) = self.clip("clip.mp4", 2 * self.spec.frames, 0.0)?;
        let made = self.weave("extended.mp4", Pattern::Extend { clip, direction, only_new: false })?;
        let new = made.len() - originals.len();
        let (name, start, seam) = match direction {
            Direction::Backward => ("backward", new, new),
            _ => ("forward", 0, originals.len()),
        };
        let kept = &made[start..start + originals.len()];
        println!(
            "extend {name}: {new} new frames, originals {:.1} dB (aim: 40 or more)",
            psnr(kept, &originals)
        );
        told("seam", step(&made[seam - 1], &made[seam]), &originals);
        Ok(())
    }

    fn join(&self) -> Result<()> {
        let (first, a) = self.clip("first.mp4", self.spec.frames, 0.0)?;
        let (last, b) = self.clip("last.mp4", self.spec.frames, 2.0)?;
        let made = self.weave("joined.mp4", Pattern::Join { first, last })?;
        let after = made.len() - b.len();
        let kept = psnr(&made[..a.len()], &a).min(psnr(&made[after..], &b));
        println!("join: {} new frames, originals {kept:.1} dB (aim: 40 or more)", after - a.len());
        told("first seam", step(&made[a.len() - 1], &made[a.len()]), &a);
        told("second seam", step(&made[after - 1], &made[after]), &b);
        Ok(())
    }

    fn close(&self) -> Result<()> {
        let (clip, originals) = self.clip("clip.mp4", self.spec.frames, 0.0)?;
        let made = self.weave("loop.mp4", Pattern::Loop { clip })?;
        let count = originals.len();
        println!("loop: {} new frames", made.len() - count);
        told("seam", step(&made[count - 1], &made[count]), &originals);
        told("wrap-around", step(&made[made.len() - 1], &made[0]), &originals);
        Ok(())
    }
}

/// How a clip begins and moves.
struct Moves {
    /// The first frame beside the picture, in dB.
    first: f64,
    /// The step from the first frame to the second, in median steps.
    step: f64,
    /// From the first frame to the last one.
    all: f64,
}

impl Moves {
    fn of(made: &[Frame], picture: &Frame) -> Self {
        let mut steps = Steps::default();
        made.iter().for_each(|frame| steps.see(frame));
        Self {
            first: psnr(&made[..1], std::slice::from_ref(picture)),
            step: step(&made[0], &made[1]) / steps.median(),
            all: step(&made[0], &made[made.len() - 1]),
        }
    }
}

fn told(what: &str, seam: f64, originals: &[Frame]) {
    let mut steps = Steps::default();
    originals.iter().for_each(|frame| steps.see(frame));
    let own = steps.median();
    println!("  {what}: {seam:.2} levels, {:.2} times the clip's median step (aim: 1.5 at most)", seam / own);
}

fn read(path: &Path) -> Result<Vec<Frame>> {
    read_clip(path).and_then(Clip::collect)
}

fn write(path: &Path, frames: &[Frame], fps: f64) -> Result<()> {
    let target = Target::parse(&path.to_string_lossy())?;
    let options = EncodeOptions { fps, crf: Some(12), ..EncodeOptions::default() };
    let mut sink = open_sink(&target, frames[0].width, frames[0].height, &options)?;
    for frame in frames {
        sink.push(frame.clone())?;
    }
    sink.finish()?;
    Ok(())
}

fn psnr(a: &[Frame], b: &[Frame]) -> f64 {
    let values = a.iter().zip(b).flat_map(|(a, b)| a.rgb.iter().zip(&b.rgb));
    let (mut error, mut count) = (0.0, 0.0);
    for (a, b) in values {
        error += (f64::from(*a) - f64::from(*b)).powi(2);
        count += 1.0;
    }
    10.0 * (255.0 * 255.0 * count / f64::max(error, 1e-9)).log10()
}
