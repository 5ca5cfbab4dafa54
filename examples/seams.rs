//! How well pictures and clips are kept as prompts, in figures: `cargo run --release --example seams [MODEL]`.
//!
//! Draws a picture and two clips that no model has seen, animates the picture, extends a clip both ways, joins the
//! two and closes one to a loop, all with the built-in model unless a folder is named. Prints how near the first
//! frame is to the picture and how much it moves, how well original frames come through H.264 at crf 12, and how wide
//! each seam is beside the clip's own median step.

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
        let frames: Vec<Frame> = (0..count).map(|i| draw(width, height, i as f64, scene)).collect();
        let path = self.path(name);
        write(&path, &frames, self.spec.fps)?;
        let shown = read(&path)?;
        Ok((path, shown))
    }

    fn animate(&self) -> Result<()> {
        let (width, height) = (self.spec.width, self.spec.height);
        let picture = draw(width, height, 3.0, 0.0);
        let path = self.path("picture.png");
        let mut sink =
            open_sink(&Target::parse(&path.to_string_lossy())?, width, height, &EncodeOptions::default())?;
        sink.push(picture.clone())?;
        sink.finish()?;
        let keyframe = Keyframe { path, frame: 0, strength: 1.0, sha256: None };
        let request = GenerateRequest {
            visual: Visual { keyframes: vec![keyframe], ..Visual::default() },
            size: SizeChoice::Sides { width: Some(width), height: Some(height) },
            ..self.request("a sailboat on the sea at sunset", "animated.mp4")
        };
        Job::prepare(&request, &Silent)?.next_clip()?;
        let made = read(&self.path("animated.mp4"))?;
        let still = self.round_trip(&picture)?;
        let last = made.len() - 1;
        println!("animate: frame 0 {:.1} dB (aim: 24 or more)", psnr(&made[..1], &[picture]));
        println!(
            "         first to last frame {:.2} levels; the autoencoder's own for a still {:.2} (aim: more than that)",
            step(&made[0], &made[last]),
            step(&still[0], &still[last])
        );
        Ok(())
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

/// A boat on waves under a low sun. `time` moves the boat and the waves, `scene` the hour of the day.
fn draw(width: usize, height: usize, time: f64, scene: f64) -> Frame {
    let mut rgb = Vec::with_capacity(width * height * 3);
    for row in 0..height {
        for column in 0..width {
            let (x, y) = (column as f64 / width as f64, row as f64 / height as f64);
            rgb.extend(colour(x, y, time, scene).map(|v| v.clamp(0.0, 255.0) as u8));
        }
    }
    Frame { width, height, rgb }
}

fn colour(x: f64, y: f64, time: f64, scene: f64) -> [f64; 3] {
    let boat = 0.25 + 0.012 * time;
    let swell = 0.6 + 0.02 * (9.0 * x + 0.35 * time).sin();
    let hull = (x - boat).abs() < 0.13 - 0.6 * (y - swell).abs() && (y - swell + 0.01).abs() < 0.05;
    let sail = x > boat - 0.01 && x < boat + 0.16 * (y - 0.22) / 0.33 && (0.22..0.55).contains(&y);
    if hull {
        return [120.0, 62.0, 40.0];
    }
    if sail {
        return [240.0, 232.0 - 30.0 * scene, 214.0 - 40.0 * scene];
    }
    if y > swell {
        let glint = 18.0 * (40.0 * (y - swell) + 14.0 * x - 0.6 * time).sin();
        return [30.0 + glint + 30.0 * scene, 84.0 + glint, 150.0 + glint - 25.0 * scene];
    }
    let sun = 190.0 * (-90.0 * ((x - 0.72).powi(2) + (y - 0.38).powi(2))).exp();
    [
        120.0 + 80.0 * y + sun + 20.0 * scene,
        130.0 + 40.0 * y + 0.7 * sun,
        205.0 - 90.0 * y + 0.3 * sun - 30.0 * scene,
    ]
}
