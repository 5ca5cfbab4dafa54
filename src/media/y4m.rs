//! Uncompressed video for pipes: `YUV4MPEG2` with full chroma, or that of a clip that passes through.
//!
//! The format has no field for the matrix, so it is the one players assume for the size
//! ([`Colour::untagged`]); the range is said.

use std::{
    io::{self, BufWriter, Stdout, Write},
    path::PathBuf,
};

use ffmpeg_next::{Rational, color, format::Pixel, frame};

use super::{
    colour::{Colour, FromRgb},
    ffmpeg_error,
    pending::Pending,
    planes::{Carrier, layout_of, write_rows},
    target::{Format, Target},
};
use crate::{
    error::{Error, Result},
    video::{Chroma, Frame, FrameSink, Layout, Original},
};

enum Output {
    File(BufWriter<Pending>),
    Stdout(BufWriter<Stdout>),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Stdout(stdout) => stdout.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            Self::Stdout(stdout) => stdout.flush(),
        }
    }
}

pub(super) struct Y4mSink {
    target: PathBuf,
    output: Output,
    converter: FromRgb,
    carrier: Carrier,
    layout: Layout,
    size: (usize, usize),
}

impl Y4mSink {
    pub fn open(
        target: &Target,
        width: usize,
        height: usize,
        rate: Rational,
        like: Option<&Layout>,
    ) -> Result<Self> {
        super::start_ffmpeg();
        let path = target.path();
        let mut colour = Colour::untagged(width, height);
        if like.is_some_and(|like| like.full_range) {
            colour.range = color::Range::JPEG;
        }
        let pixel = like.and_then(|like| like.pix_fmt().parse().ok()).unwrap_or(Pixel::YUV444P);
        let converter = FromRgb::new(width as u32, height as u32, pixel, colour)
            .map_err(ffmpeg_error("convert colours for", path))?;
        let carrier = Carrier::new(pixel, colour).expect("a pixel format with planes");
        let layout = layout_of(pixel, &colour).expect("a pixel format with planes");
        let mut output = match target.format() {
            Format::Stdout => Output::Stdout(BufWriter::new(io::stdout())),
            _ => Output::File(BufWriter::new(Pending::create(path)?)),
        };
        let Rational(num, den) = rate;
        let (chroma, range) = (chroma_of(&layout), if layout.full_range { "FULL" } else { "LIMITED" });
        writeln!(output, "YUV4MPEG2 W{width} H{height} F{num}:{den} Ip A1:1 C{chroma} XCOLORRANGE={range}")
            .map_err(Error::file("write", path))?;
        Ok(Self { target: path.to_owned(), output, converter, carrier, layout, size: (width, height) })
    }

    fn write(&mut self, planes: &frame::Video) -> Result<()> {
        let written = self
            .output
            .write_all(b"FRAME\n")
            .and_then(|()| write_rows(planes, &self.layout, self.size, &mut self.output));
        written.map_err(Error::file("write", &self.target))
    }
}

/// The format's own name for how chroma is stored.
fn chroma_of(layout: &Layout) -> String {
    let chroma = match layout.chroma {
        Chroma::Full => "444",
        Chroma::Half => "422",
        Chroma::Quarter if layout.bits > 8 => "420",
        Chroma::Quarter => "420mpeg2",
    };
    if layout.bits > 8 { format!("{chroma}p{}", layout.bits) } else { chroma.into() }
}

impl FrameSink for Y4mSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let planes = self.converter.convert(&frame);
        self.write(&planes.map_err(ffmpeg_error("convert colours for", &self.target))?)
    }

    fn push_original(&mut self, Original { frame, planes }: Original) -> Result<()> {
        let Some(planes) = planes else { return self.push(frame) };
        let carried = self.carrier.carry(&planes);
        self.write(&carried.map_err(ffmpeg_error("convert colours for", &self.target))?)
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        match self.output {
            Output::File(file) => {
                let pending =
                    file.into_inner().map_err(|e| Error::file("write", &self.target)(e.into_error()))?;
                pending.commit()
            }
            Output::Stdout(mut stdout) => {
                stdout.flush().map_err(Error::file("write", &self.target))?;
                Ok(self.target)
            }
        }
    }
}
