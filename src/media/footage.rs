//! What a video can be prompted with: one picture, a clip, or a folder of pictures as a clip.

use std::{
    fs, io,
    io::Read as _,
    path::{Path, PathBuf},
};

use image::{ImageFormat, ImageReader};
use sha2::{Digest as _, Sha256};

use super::{Clip, read_clip, read_image};
use crate::{
    error::{Error, Result},
    video::{Frame, Original},
};

/// A picture or clip that was opened.
pub struct Footage {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Picture(Frame),
    Clip(Box<Clip>),
    /// Pictures in the order of their names, and the size of the first.
    Folder {
        files: Vec<PathBuf>,
        width: usize,
        height: usize,
    },
}

impl Footage {
    /// Opens a picture, a clip (animated GIFs among them) or a folder of pictures, told by content.
    pub fn open(path: &Path) -> Result<Self> {
        let kind = if path.is_dir() {
            folder(path)?
        } else if is_picture(path)? {
            Kind::Picture(read_image(path)?)
        } else {
            Kind::Clip(Box::new(read_clip(path)?))
        };
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The picture, if it is a single one.
    #[must_use]
    pub fn picture(&self) -> Option<&Frame> {
        match &self.kind {
            Kind::Picture(frame) => Some(frame),
            _ => None,
        }
    }

    /// Width and height of the frames in pixels, upright.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        match &self.kind {
            Kind::Picture(frame) => (frame.width, frame.height),
            Kind::Clip(clip) => (clip.width(), clip.height()),
            Kind::Folder { width, height, .. } => (*width, *height),
        }
    }

    /// Frames a second, where the file says so.
    #[must_use]
    pub fn fps(&self) -> Option<f64> {
        match &self.kind {
            Kind::Clip(clip) => Some(clip.fps()).filter(|fps| *fps > 0.0),
            _ => None,
        }
    }

    /// All frames, at `fps` frames a second: each instant shows the frame that is up then, so that a clip of that
    /// rate comes out as it is. Frames of a folder, which has no rate, come one by one.
    pub fn frames(self, fps: f64) -> FrameStream {
        let source = match self.kind {
            Kind::Picture(frame) => Source::List(vec![frame].into_iter()),
            Kind::Clip(clip) => Source::Clip(clip),
            Kind::Folder { files, width, height } => Source::Files(files.into_iter(), (width, height)),
        };
        FrameStream::new(source, fps)
    }
}

/// Frames of a [`Footage`] at one rate.
pub struct FrameStream {
    source: Source,
    fps: f64,
    /// The second at which the clip begins.
    first: Option<f64>,
    /// Frames that were read, and frames that were given.
    read: usize,
    given: usize,
    current: Option<Original>,
    /// The frame after the current one, and the first place at which it is up.
    next: Option<(usize, Original)>,
    /// How many frames there are in all, once the last one was read.
    end: Option<usize>,
    /// How many there are if the frame that was read last is the last one.
    so_far: usize,
    ended: bool,
}

enum Source {
    List(std::vec::IntoIter<Frame>),
    Clip(Box<Clip>),
    Files(std::vec::IntoIter<PathBuf>, (usize, usize)),
}

/// Share of a frame's time by which files may be off: containers round to milliseconds.
const SLACK: f64 = 0.25;

impl FrameStream {
    fn new(source: Source, fps: f64) -> Self {
        let (first, current, next, end) = (None, None, None, None);
        Self { source, fps, first, read: 0, given: 0, current, next, end, so_far: 0, ended: false }
    }

    /// The same frames with what the file stores of them.
    pub fn originals(mut self) -> impl Iterator<Item = Result<Original>> {
        if let Source::Clip(clip) = &mut self.source {
            clip.keep_planes();
        }
        std::iter::from_fn(move || self.next_original())
    }

    fn next_original(&mut self) -> Option<Result<Original>> {
        if self.ended {
            return None;
        }
        let original = self.advance().transpose();
        self.ended = !matches!(original, Some(Ok(_)));
        original
    }

    /// The next frame of the source and the first place at which it is up.
    fn read(&mut self) -> Result<Option<(usize, Original)>> {
        let index = self.read;
        self.read += 1;
        let frame = match &mut self.source {
            Source::List(frames) => match frames.next() {
                Some(frame) => frame,
                None => return Ok(None),
            },
            Source::Files(files, size) => {
                let Some(path) = files.next() else { return Ok(None) };
                let frame = read_image(&path)?;
                if (frame.width, frame.height) != *size {
                    let what = format!("picture `{}` of {}x{}", path.display(), frame.width, frame.height);
                    return Err(Error::invalid(what, format!("the first is {}x{}", size.0, size.1)));
                }
                frame
            }
            Source::Clip(clip) => {
                let own = clip.fps();
                let Some((time, frame)) = clip.next_timed().transpose()? else { return Ok(None) };
                // A file without times is taken at its rate, and without a rate frame by frame.
                let time = time.or((own > 0.0).then_some(index as f64 / own));
                let Some(time) = time else {
                    self.so_far = index + 1;
                    return Ok(Some((index, frame)));
                };
                let since = time - *self.first.get_or_insert(time);
                let length = if own > 0.0 { own.recip() } else { self.fps.recip() };
                let place = |seconds: f64| (seconds * self.fps - SLACK).ceil().max(0.0) as usize;
                self.so_far = place(since + length).max(1);
                return Ok(Some((place(since), frame)));
            }
        };
        self.so_far = index + 1;
        Ok(Some((index, Original { frame, planes: None })))
    }

    /// Reads the frame after the current one, or finds that there is none.
    fn look_ahead(&mut self) -> Result<()> {
        self.next = self.read()?;
        if self.next.is_none() {
            self.end = Some(self.so_far);
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Original>> {
        if self.current.is_none() {
            let Some((_, frame)) = self.read()? else { return Ok(None) };
            self.current = Some(frame);
            self.look_ahead()?;
        }
        while self.next.as_ref().is_some_and(|(place, _)| *place <= self.given) {
            self.current = self.next.take().map(|(_, frame)| frame);
            self.look_ahead()?;
        }
        if self.end.is_some_and(|end| self.given >= end) {
            return Ok(None);
        }
        self.given += 1;
        Ok(self.current.clone())
    }
}

impl Iterator for FrameStream {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_original()?.map(|original| original.frame))
    }
}

fn is_picture(path: &Path) -> Result<bool> {
    let reader = fs::File::open(path)
        .and_then(|file| ImageReader::new(io::BufReader::new(file)).with_guessed_format())
        .map_err(Error::file("read", path))?;
    Ok(reader.format().is_some_and(|format| format != ImageFormat::Gif))
}

fn folder(path: &Path) -> Result<Kind> {
    let mut files = files_of(path)?;
    files.retain(|file| is_picture(file).unwrap_or(false));
    let Some(first) = files.first() else {
        return Err(Error::invalid(format!("folder `{}`", path.display()), "there is no picture in it"));
    };
    let Frame { width, height, .. } = read_image(first)?;
    Ok(Kind::Folder { files, width, height })
}

/// The files of a folder in the order of their names, hidden ones left out.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).map_err(Error::file("read", path))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::file("read", path))?.path();
        let hidden = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if file.is_file() && !hidden {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The SHA-256 of a file's bytes, or of all files of a folder in the order of their names, in hexadecimal.
pub fn content_hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let files = if path.is_dir() { files_of(path)? } else { vec![path.to_owned()] };
    let mut buffer = vec![0; 1 << 16];
    for file in files {
        let mut reader = fs::File::open(&file).map_err(Error::file("read", &file))?;
        loop {
            match reader.read(&mut buffer).map_err(Error::file("read", &file))? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
