//! Uncompressed video for pipes: `YUV4MPEG2` with full chroma.
//!
//! The format has no field for the matrix, so it is the one players assume for the size
//! ([`Colour::untagged`]); the range is limited and said.

use std::{
    io::{self, BufWriter, Stdout, Write},
    path::PathBuf,
};

use ffmpeg_next::{Rational, format::Pixel};

use super::{
    colour::{Colour, FromRgb},
    ffmpeg_error,
    pending::Pending,
    target::{Format, Target},
};
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink},
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
}

impl Y4mSink {
    pub fn open(target: &Target, width: usize, height: usize, rate: Rational) -> Result<Self> {
        super::start_ffmpeg();
        let path = target.path();
        let colour = Colour::untagged(width, height);
        let converter = FromRgb::new(width as u32, height as u32, Pixel::YUV444P, colour)
            .map_err(ffmpeg_error("convert colours for", path))?;
        let mut output = match target.format() {
            Format::Stdout => Output::Stdout(BufWriter::new(io::stdout())),
            _ => Output::File(BufWriter::new(Pending::create(path)?)),
        };
        let Rational(num, den) = rate;
        writeln!(output, "YUV4MPEG2 W{width} H{height} F{num}:{den} Ip A1:1 C444 XCOLORRANGE=LIMITED")
            .map_err(Error::file("write", path))?;
        Ok(Self { target: path.to_owned(), output, converter })
    }
}

impl FrameSink for Y4mSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let planes =
            self.converter.convert(&frame).map_err(ffmpeg_error("convert colours for", &self.target))?;
        let write = |output: &mut Output| -> io::Result<()> {
            output.write_all(b"FRAME\n")?;
            for plane in 0..3 {
                for row in planes.data(plane).chunks_exact(planes.stride(plane)).take(frame.height) {
                    output.write_all(&row[..frame.width])?;
                }
            }
            Ok(())
        };
        write(&mut self.output).map_err(Error::file("write", &self.target))
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
