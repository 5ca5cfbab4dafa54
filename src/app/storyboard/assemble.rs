//! The shots that have changed are rendered; then all of them are decoded into one film, and each into its own file.

use std::{collections::BTreeMap, collections::VecDeque, fs, path::PathBuf};

use candle_core::Tensor;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::plan::{PlannedShot, Storyboard};
use crate::{
    app::{
        clip,
        fingerprint::hex,
        latents::{self, Origin},
        recipe::{FilmRecipe, Recipe, Stamp},
        take::{Kept, Made},
    },
    error::{Error, Result},
    event::{Event, Phase, Reporter},
    media::{EncodeOptions, SheetBuilder, Target, TeeSink},
    models::api::DecodeOptions,
    pipeline::{health::Verdict, noise::Drawn},
    video::{Frame, FrameSink, VideoSpec},
};

/// A shot of a finished film.
#[derive(Debug, Clone, Serialize)]
pub struct ShotMade {
    /// Its name.
    pub name: String,
    /// Its own video.
    pub path: PathBuf,
    /// Its latents.
    pub latents: PathBuf,
    /// Whether it was rendered now.
    pub rendered: bool,
    /// Its frames.
    pub frames: usize,
}

/// A finished film.
#[derive(Debug, Clone, Serialize)]
pub struct FilmMade {
    /// The film; `-` for standard output.
    pub path: PathBuf,
    /// Its frames.
    pub frames: usize,
    /// Its length in seconds.
    pub seconds: f64,
    /// Its shots, in order.
    pub shots: Vec<ShotMade>,
    /// Seconds spent in each phase.
    pub spent: BTreeMap<Phase, f64>,
    /// What the frames look like to a machine: the worst of the shots.
    pub verdict: Verdict,
}

impl FilmMade {
    /// [`Error::BadOutput`] if the frames of a shot can't be a video of anything. The film is there all the same.
    pub fn verdict(&self) -> Result<()> {
        self.verdict.error().map_or(Ok(()), Err)
    }
}

/// Which shot files are up to date: name, and a hash of all that the file is made from.
type Written = BTreeMap<String, String>;

impl Storyboard<'_> {
    /// Makes the film.
    pub fn render(&self) -> Result<FilmMade> {
        fs::create_dir_all(&self.folder).map_err(Error::file("make", &self.folder))?;
        let mut made: Vec<(Tensor, bool)> = Vec::new();
        for index in 0..self.shots.len() {
            let before = made.last().map(|(latents, _)| latents);
            let shot = &self.shots[index];
            let (latents, rendered) = match shot.ready {
                true => (latents::load(&shot.latents)?.tensor, false),
                false => (self.render_shot(index, before)?, true),
            };
            made.push((latents, rendered));
        }
        let (path, verdict) = self.assemble(&made)?;
        let shots = self.shots.iter().zip(&made).map(|(shot, (_, rendered))| ShotMade {
            name: shot.name.clone(),
            path: shot.video.clone(),
            latents: shot.latents.clone(),
            rendered: *rendered,
            frames: shot.frames,
        });
        Ok(FilmMade {
            path,
            frames: self.spec.frames,
            seconds: self.spec.frames as f64 / self.spec.fps,
            shots: shots.collect(),
            spent: self.tally.seconds(),
            verdict,
        })
    }

    fn render_shot(&self, index: usize, before: Option<&Tensor>) -> Result<Tensor> {
        let shot = &self.shots[index];
        let message = format!("shot {} of {}: {}", index + 1, self.shots.len(), shot.name);
        let _ = self.tally.emit(&Event::Note { message });
        let origin = Origin {
            model: self.source.absolute()?,
            recipe: self.recipe(shot),
            upsamplers: Vec::new(),
            pass: 0,
            drawn: drawn(&shot.render.spec, self),
            steps_done: None,
            windows_done: None,
            passages: Vec::new(),
            content: Some(shot.content.clone()),
        };
        let path = shot.latents.with_extension("windows.safetensors");
        // What was begun as another shot is of no use to this one.
        if path.exists() && latents::load(&path)?.origin.and_then(|o| o.content) != origin.content {
            fs::remove_file(&path).map_err(Error::file("remove", &path))?;
        }
        let kept = Kept { path: &path, origin: &origin };
        let before = before.filter(|_| shot.continues);
        match shot.plan.render(&self.renderer(), &shot.render, before, &kept, &mut |_| Ok(()))? {
            Made::Whole(latents) => {
                latents::save(&shot.latents, &latents, None, &origin)?;
                let _ = fs::remove_file(&path);
                Ok(latents)
            }
            // The same command goes on from there.
            Made::Stopped(_) => Err(Error::Cancelled { saved: Some(self.folder.clone()) }),
        }
    }

    /// Decodes every run of shots that go on from one another, and joins the runs.
    fn assemble(&self, made: &[(Tensor, bool)]) -> Result<(PathBuf, Verdict)> {
        let outputs = &self.request.outputs;
        let film = Recipe { spec: self.spec, ..self.recipe(&self.shots[0]) };
        let options = EncodeOptions { fps: self.spec.fps, ..outputs.encode.clone() };
        let options = EncodeOptions { metadata: vec![("comment".into(), self.comment())], ..options };
        let mut sinks = vec![clip::open_video(&self.files.target, &film, &options)?];
        if let Some(sheet) = &self.files.contact_sheet {
            let sheet = SheetBuilder::new(sheet, self.spec.frames)?;
            sinks.push(Box::new(sheet.with_metadata(options.metadata.clone())));
        }
        let mut joint = Joint { sink: Box::new(TeeSink::new(sinks)), held: VecDeque::new() };
        let mut written = self.read_written();
        let mut verdict = Verdict::Fine;
        let mut first = 0;
        while first < self.shots.len() {
            let more = self.shots[first + 1..].iter().take_while(|shot| shot.continues).count();
            let shots = &self.shots[first..=first + more];
            let frames: usize = shots.iter().map(|shot| shot.frames).sum();
            let parts: Vec<Tensor> =
                made[first..=first + more].iter().map(|(latents, _)| latents.clone()).collect();
            let latents = Tensor::cat(&parts, 2)?;
            let spec = VideoSpec { frames, ..self.spec };
            let ending = self.shots.get(first + more + 1).map_or(0, |next| next.dissolve);
            let mut run = Run {
                shots: shots
                    .iter()
                    .zip(&made[first..])
                    .map(|(shot, (_, rendered))| (shot, *rendered))
                    .collect(),
                storyboard: self,
                written: &mut written,
                joint: &mut joint,
                shot: 0,
                sink: None,
                in_shot: 0,
                seen: 0,
                frames,
                dissolve: shots[0].dissolve,
                ending,
            };
            let render = &shots[0].render;
            let decode: &DecodeOptions = &render.decode;
            let drawn = drawn(&spec, self);
            let health = self.renderer().decode(&latents, &spec, render.seed, &drawn, decode, &mut run)?;
            run.close()?;
            if let Some(complaint) = health.verdict.complaint() {
                let message = format!("shot {} is {complaint}", shots[0].name);
                let _ = self.tally.emit(&Event::Warning { message });
                verdict = health.verdict;
            }
            first += more + 1;
        }
        let path = joint.sink.finish()?;
        let _ = self.tally.emit(&Event::Written { path: path.clone() });
        Ok((path, verdict))
    }

    /// What stands in the film's `comment` tag: the recipes of its shots.
    fn comment(&self) -> String {
        serde_json::to_string(&self.recipes()).expect("recipes have string keys and finite numbers only")
    }

    /// The recipes of its shots.
    pub(in crate::app) fn recipes(&self) -> FilmRecipe {
        FilmRecipe {
            sora: env!("CARGO_PKG_VERSION").into(),
            film: None,
            shots: self.shots.iter().map(|shot| self.recipe(shot)).collect(),
            stamp: Stamp::default(),
        }
    }

    fn list(&self) -> PathBuf {
        self.folder.join("shots.json")
    }

    /// The list of shot files; one that can't be read means that all are written anew.
    fn read_written(&self) -> Written {
        let text = fs::read_to_string(self.list()).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    fn write_written(&self, written: &Written) -> Result<()> {
        let text = serde_json::to_string_pretty(written).expect("a list of texts");
        latents::write_whole(&self.list(), text.as_bytes())
    }

    /// A hash of all that a shot's own file is made from.
    fn file_hash(&self, shot: &PlannedShot) -> String {
        let how = format!("{} {:?} {:?}", shot.content, self.request.outputs.encode, self.upscale);
        hex(&Sha256::digest(format!("{how} {:?}", shot.render.decode)))
    }
}

fn drawn(spec: &VideoSpec, storyboard: &Storyboard<'_>) -> Drawn {
    Drawn::initial_noise(&storyboard.checkpoint.info().geometry.latent_shape(spec))
}

/// The film's sink, and the frames that are held back for a dissolve.
struct Joint {
    sink: Box<dyn FrameSink>,
    held: VecDeque<Frame>,
}

/// Sends the frames of a run of shots to their own files and to the film.
struct Run<'a, 'b> {
    storyboard: &'a Storyboard<'b>,
    /// The shots, and whether they were rendered now.
    shots: Vec<(&'a PlannedShot, bool)>,
    written: &'a mut Written,
    joint: &'a mut Joint,
    /// The shot that the next frame belongs to, and how many of its frames have been seen.
    shot: usize,
    in_shot: usize,
    sink: Option<Box<dyn FrameSink>>,
    /// Frames of the run, those seen and all.
    seen: usize,
    frames: usize,
    /// Frames that are mixed with those held back, and frames to hold back at the end.
    dissolve: usize,
    ending: usize,
}

impl Run<'_, '_> {
    /// Opens the file of the shot that begins, unless it is up to date.
    fn open(&mut self) -> Result<()> {
        let (shot, rendered) = self.shots[self.shot];
        let storyboard = self.storyboard;
        let hash = storyboard.file_hash(shot);
        let current = self.written.get(&shot.name) == Some(&hash) && shot.video.exists();
        if current && !rendered {
            return Ok(());
        }
        if self.written.remove(&shot.name).is_some() {
            storyboard.write_written(self.written)?;
        }
        let recipe = storyboard.recipe(shot);
        let target = Target::parse(&shot.video.to_string_lossy())?;
        let metadata = vec![("comment".to_owned(), recipe.to_json())];
        let encode = &storyboard.request.outputs.encode;
        let options = EncodeOptions { fps: recipe.spec.fps, metadata, ..encode.clone() };
        self.sink = Some(clip::open_video(&target, &recipe, &options)?);
        Ok(())
    }

    /// Closes the file of the shot that ends.
    fn close(&mut self) -> Result<()> {
        let Some(sink) = self.sink.take() else { return Ok(()) };
        let (shot, _) = self.shots[self.shot];
        let path = sink.finish()?;
        let _ = self.storyboard.tally.emit(&Event::Written { path });
        self.written.insert(shot.name.clone(), self.storyboard.file_hash(shot));
        self.storyboard.write_written(self.written)
    }
}

impl FrameSink for Run<'_, '_> {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if self.in_shot == self.shots[self.shot].0.frames {
            self.close()?;
            (self.shot, self.in_shot) = (self.shot + 1, 0);
        }
        if self.in_shot == 0 {
            self.open()?;
        }
        if let Some(sink) = &mut self.sink {
            sink.push(frame.clone())?;
        }
        let before = if self.seen < self.dissolve { self.joint.held.pop_front() } else { None };
        let frame = match before {
            Some(before) => mix(&before, &frame, (self.seen + 1) as f64 / (self.dissolve + 1) as f64),
            None => frame,
        };
        self.in_shot += 1;
        self.seen += 1;
        if self.seen + self.ending > self.frames {
            self.joint.held.push_back(frame);
            return Ok(());
        }
        self.joint.sink.push(frame)
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        Ok(PathBuf::new())
    }
}

/// `share` of `b`, the rest of `a`.
fn mix(a: &Frame, b: &Frame, share: f64) -> Frame {
    let weight = (share * 65536.0) as u32;
    let mixed = a
        .rgb
        .iter()
        .zip(&b.rgb)
        .map(|(&a, &b)| ((u32::from(a) * (65536 - weight) + u32::from(b) * weight + 32768) >> 16) as u8);
    Frame { rgb: mixed.collect(), ..*b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_goes_from_one_to_the_other() {
        let frame = |value: u8| Frame { width: 1, height: 1, rgb: vec![value; 3] };
        let at = |share| mix(&frame(10), &frame(250), share).rgb[0];
        assert_eq!((at(0.0), at(0.5), at(1.0)), (10, 130, 250));
    }
}
