//! From a target and options to the sink that frames are pushed into.

use std::path::PathBuf;

use super::{
    MAX_SIDE,
    encode::VideoSink,
    folder::FolderSink,
    gif::GifSink,
    options::{EncodeOptions, animation_settings, check_common, frame_rate, video_settings},
    still::StillSink,
    target::{Format, Target},
    y4m::Y4mSink,
};
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink, Original},
};

/// Opens `target` for frames of `width × height`, after checking that the options fit it.
///
/// Frames are encoded as they come and memory doesn't grow with their number. The target appears
/// when [`FrameSink::finish`] has returned, and not before.
pub fn open_sink(
    target: &Target,
    width: usize,
    height: usize,
    options: &EncodeOptions,
) -> Result<Box<dyn FrameSink>> {
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        let why = format!("expected 1 to {MAX_SIDE} pixels each way");
        return Err(Error::invalid(format!("size {width}x{height}"), why));
    }
    super::start_ffmpeg();
    let format = target.format();
    check_common(format, options)?;
    let metadata = &options.metadata;
    let inner: Box<dyn FrameSink> = match format {
        Format::Mp4 | Format::Mov | Format::Mkv | Format::Webm => {
            let settings = video_settings(format, width, height, options)?;
            Box::new(VideoSink::open(target, width, height, &settings)?)
        }
        Format::Webp => {
            Box::new(VideoSink::open(target, width, height, &animation_settings(format, options)?)?)
        }
        Format::Gif => {
            let settings = animation_settings(format, options)?;
            Box::new(GifSink::open(target, width, height, &settings, metadata)?)
        }
        Format::Png | Format::Jpeg => Box::new(StillSink::open(target, metadata)?),
        Format::Frames => Box::new(FolderSink::open(target, metadata)?),
        Format::Y4m | Format::Stdout => {
            let rate = frame_rate(options.fps)?;
            Box::new(Y4mSink::open(target, width, height, rate, options.like.as_ref())?)
        }
    };
    Ok(Box::new(Checked { inner, width, height, frames: 0 }))
}

/// Lets only frames of the promised size through, and at least one.
struct Checked {
    inner: Box<dyn FrameSink>,
    width: usize,
    height: usize,
    frames: usize,
}

impl Checked {
    fn check(&self, frame: &Frame) -> Result<()> {
        let (width, height) = (self.width, self.height);
        if (frame.width, frame.height, frame.rgb.len()) == (width, height, width * height * 3) {
            return Ok(());
        }
        let Frame { width: w, height: h, rgb } = frame;
        Err(Error::invalid(
            format!("frame {} of {w}x{h} with {} bytes", self.frames, rgb.len()),
            format!("expected {width}x{height} with {}", width * height * 3),
        ))
    }
}

impl FrameSink for Checked {
    fn push(&mut self, frame: Frame) -> Result<()> {
        self.check(&frame)?;
        self.inner.push(frame)?;
        self.frames += 1;
        Ok(())
    }

    fn push_original(&mut self, original: Original) -> Result<()> {
        self.check(&original.frame)?;
        if let Some(planes) = &original.planes {
            let (width, height) = (planes.width, planes.height);
            if (width, height) != (self.width, self.height) || !planes.is_whole() {
                let what = format!("planes of frame {}, {width}x{height}", self.frames);
                return Err(Error::invalid(what, format!("expected all of {}x{}", self.width, self.height)));
            }
        }
        self.inner.push_original(original)?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        if self.frames == 0 {
            return Err(Error::invalid("clip", "it has no frames (expected at least 1)"));
        }
        self.inner.finish()
    }
}

/// Pushes every frame into several sinks.
pub struct TeeSink(Vec<Box<dyn FrameSink>>);

impl TeeSink {
    /// The first sink is the one whose path [`FrameSink::finish`] returns.
    #[must_use]
    pub fn new(sinks: Vec<Box<dyn FrameSink>>) -> Self {
        Self(sinks)
    }
}

impl FrameSink for TeeSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if let Some((last, others)) = self.0.split_last_mut() {
            for sink in others {
                sink.push(frame.clone())?;
            }
            last.push(frame)?;
        }
        Ok(())
    }

    fn push_original(&mut self, original: Original) -> Result<()> {
        if let Some((last, others)) = self.0.split_last_mut() {
            for sink in others {
                sink.push_original(original.clone())?;
            }
            last.push_original(original)?;
        }
        Ok(())
    }

    /// Finishes all, also after one that fails; the first failure is returned.
    fn finish(self: Box<Self>) -> Result<PathBuf> {
        let mut results: Vec<_> = self.0.into_iter().map(FrameSink::finish).collect();
        match results.iter().position(Result::is_err) {
            Some(failed) => results.swap_remove(failed),
            None => results.into_iter().next().unwrap_or_else(|| Ok(PathBuf::new())),
        }
    }
}
