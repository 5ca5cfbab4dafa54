//! Reading clips: any video file that FFmpeg decodes, as RGB frames.

use std::path::{Path, PathBuf};

use ffmpeg_next::{
    Error as FfmpegError, Packet, Rational, codec, decoder, error::EAGAIN, format, frame, media, packet,
};

use super::{MAX_SIDE, colour::ToRgb, ffmpeg_error, file_url, planes::planes_of, start_ffmpeg};
use crate::{
    error::{Error, Result},
    video::{Frame, Original, Planes},
};

/// Opens a video file; the frames come out one by one, upright and with square pixels.
///
/// ```no_run
/// # fn main() -> sora::Result<()> {
/// let clip = sora::media::read_clip("clip.mp4".as_ref())?;
/// println!("{}x{} at {} fps", clip.width(), clip.height(), clip.fps());
/// for frame in clip {
///     let frame = frame?;
/// }
/// # Ok(())
/// # }
/// ```
pub fn read_clip(path: &Path) -> Result<Clip> {
    Clip::open(path)
}

/// The text of a video's `comment` tag, which holds the recipe of our own videos; nothing if it has none.
pub fn read_comment(path: &Path) -> Result<Option<String>> {
    let clip = Clip::open(path)?;
    let tags = clip.input.metadata();
    let found = tags.iter().find(|(key, _)| key.eq_ignore_ascii_case("comment"));
    Ok(found.map(|(_, value)| value.to_owned()))
}

/// A clip that is being decoded; an iterator of frames.
pub struct Clip {
    path: PathBuf,
    input: format::context::Input,
    stream: usize,
    decoder: decoder::Video,
    converter: ToRgb,
    turn: Turn,
    /// Whether frames come with what the file stores.
    stored: bool,
    width: usize,
    height: usize,
    fps: f64,
    /// Seconds of a timestamp's unit.
    tick: f64,
    ended: End,
}

/// How far reading has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Packets are to come.
    No,
    /// No more packets; the decoder gives what it holds.
    OfFile,
    /// Nothing more comes, by the end or an error.
    OfClip,
}

impl Clip {
    fn open(path: &Path) -> Result<Self> {
        start_ffmpeg();
        let invalid = |why: String| Error::invalid(format!("clip `{}`", path.display()), why);
        let size = std::fs::metadata(path).map_err(Error::file("read", path))?;
        if size.is_dir() {
            return Err(invalid("it is a folder (expected a video file)".into()));
        }
        // A playlist may not lead away from this machine.
        let local = [("protocol_whitelist", "file")].into_iter().collect();
        let input =
            format::input_with_dictionary(&file_url(path)?, local).map_err(|source| match source {
                FfmpegError::InvalidData => invalid(
                    "FFmpeg finds no video in it: another kind of file, or its head or tail is missing"
                        .into(),
                ),
                source => ffmpeg_error("read", path)(source),
            })?;
        let best = input.streams().best(media::Type::Video);
        let cover = format::stream::Disposition::ATTACHED_PIC;
        let Some(stream) = best.filter(|stream| !stream.disposition().contains(cover)) else {
            return Err(invalid("it has no video stream".into()));
        };
        let decoder = codec::Context::from_parameters(stream.parameters())
            .and_then(|context| context.decoder().video())
            .map_err(|source| match source {
                FfmpegError::DecoderNotFound => {
                    invalid(format!("this FFmpeg has no decoder for {:?}", stream.parameters().id()))
                }
                source => ffmpeg_error("decode", path)(source),
            })?;
        let (width, height) = (decoder.width() as usize, decoder.height() as usize);
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return Err(invalid(format!("it is {width}x{height} (expected 1 to {MAX_SIDE} each way)")));
        }
        let width = square(width, decoder.aspect_ratio());
        let turn = Turn::of(&stream);
        let rate = [stream.avg_frame_rate(), stream.rate()].into_iter().find(|rate| rate.0 > 0 && rate.1 > 0);
        let fps = rate.map_or(0.0, f64::from);
        let tick = f64::from(stream.time_base());
        let stream = stream.index();
        let converter = ToRgb::new(width as u32, height as u32);
        let (width, height) = if turn.swaps() { (height, width) } else { (width, height) };
        Ok(Self {
            path: path.to_owned(),
            input,
            stream,
            decoder,
            converter,
            turn,
            stored: false,
            width,
            height,
            fps,
            tick,
            ended: End::No,
        })
    }

    /// Width of the frames in pixels, upright.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height of the frames in pixels, upright.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// Frames a second on average; 0 where the file doesn't say.
    #[must_use]
    pub fn fps(&self) -> f64 {
        self.fps
    }

    /// Gives what the file stores, too, with each frame that comes.
    pub(super) fn keep_planes(&mut self) {
        self.stored = true;
    }

    fn damaged(&self, why: &str) -> Error {
        Error::damaged(&self.path, why)
    }

    fn explain(&self, source: FfmpegError) -> Error {
        match source {
            FfmpegError::InvalidData => self.damaged("it holds data that can't be decoded"),
            source => ffmpeg_error("decode", &self.path)(source),
        }
    }

    /// The next frame, and the second at which the file shows it, where it says so.
    pub(super) fn next_timed(&mut self) -> Option<Result<(Option<f64>, Original)>> {
        if self.ended == End::OfClip {
            return None;
        }
        let frame = self.decode().transpose();
        if !matches!(frame, Some(Ok(_))) {
            self.ended = End::OfClip;
        }
        frame
    }

    fn decode(&mut self) -> Result<Option<(Option<f64>, Original)>> {
        loop {
            let mut decoded = frame::Video::empty();
            match self.decoder.receive_frame(&mut decoded) {
                Ok(()) if decoded.is_corrupt() || decoded.has_decode_errors() => {
                    return Err(self.damaged("a frame is broken"));
                }
                Ok(()) => {
                    let frame = self.converter.convert(&decoded).map_err(|e| self.explain(e))?;
                    let time = decoded.timestamp().map(|ticks| ticks as f64 * self.tick);
                    let planes = if self.stored { planes_of(&decoded) } else { None };
                    let planes = planes.and_then(|planes| self.turn.planes(planes));
                    return Ok(Some((time, Original { frame: self.turn.apply(frame), planes })));
                }
                Err(FfmpegError::Eof) => return Ok(None),
                Err(FfmpegError::Other { errno: EAGAIN }) => self.feed()?,
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// Gives the decoder the next packet of the stream, or the end.
    fn feed(&mut self) -> Result<()> {
        while self.ended == End::No {
            let mut packet = Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() != self.stream => {}
                Ok(()) if packet.flags().contains(packet::Flags::CORRUPT) => {
                    return Err(self.damaged("it is cut off or a part of it is broken"));
                }
                Ok(()) => return self.decoder.send_packet(&packet).map_err(|e| self.explain(e)),
                Err(FfmpegError::Eof) => {
                    self.ended = End::OfFile;
                    self.decoder.send_eof().map_err(|e| self.explain(e))?;
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
        Ok(())
    }
}

impl Iterator for Clip {
    type Item = Result<Frame>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_timed()?.map(|(_, original)| original.frame))
    }
}

/// The width with square pixels.
fn square(width: usize, pixel: Rational) -> usize {
    if pixel.0 <= 0 || pixel.1 <= 0 {
        return width;
    }
    ((width as f64 * f64::from(pixel)).round() as usize).clamp(1, MAX_SIDE)
}

/// What the file says is to be done to its frames: a mirror image first, then a turn clockwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    mirrored: bool,
    quarters: u8,
}

impl Turn {
    fn of(stream: &format::stream::Stream<'_>) -> Self {
        let matrix = stream.side_data().find(|data| data.kind() == packet::side_data::Type::DisplayMatrix);
        let Some(matrix) = matrix.map(|data| {
            data.data().as_chunks::<4>().0.iter().map(|b| i32::from_ne_bytes(*b)).collect::<Vec<_>>()
        }) else {
            return Self { mirrored: false, quarters: 0 };
        };
        Self::from_matrix(&matrix)
    }

    /// A 3×3 matrix, row by row, that maps stored to shown places: (x, y) goes to
    /// (a·x + c·y, b·x + d·y) with `a b _ c d` as its first five entries, y pointing down.
    fn from_matrix(matrix: &[i32]) -> Self {
        let &[a, b, _, c, d, ..] = matrix else { return Self { mirrored: false, quarters: 0 } };
        let (a, b, c, d) = (f64::from(a), f64::from(b), f64::from(c), f64::from(d));
        let mirrored = a * d - b * c < 0.0;
        // Where the x axis goes, after a mirror image has turned it round.
        let (x, y) = if mirrored { (-a, -b) } else { (a, b) };
        let quarters = (y.atan2(x) / std::f64::consts::FRAC_PI_2).round() as i32;
        Self { mirrored, quarters: quarters.rem_euclid(4) as u8 }
    }

    fn swaps(self) -> bool {
        self.quarters % 2 == 1
    }

    fn is_none(self) -> bool {
        self == Self { mirrored: false, quarters: 0 }
    }

    fn apply(self, frame: Frame) -> Frame {
        if self.is_none() {
            return frame;
        }
        let rgb = self.turned(&frame.rgb, (frame.width, frame.height), 3);
        let (width, height) = self.turned_size((frame.width, frame.height));
        Frame { width, height, rgb }
    }

    /// The same for planes; nothing where chroma would have to be made anew, since it lies otherwise afterwards.
    fn planes(self, planes: Planes) -> Option<Planes> {
        if self.is_none() {
            return Some(planes);
        }
        let Planes { width, height, layout, samples } = planes;
        let (across, down) = layout.chroma.step();
        if self.swaps() && across != down || !width.is_multiple_of(across) || !height.is_multiple_of(down) {
            return None;
        }
        let sizes = layout.planes(width, height);
        let samples = [0, 1, 2].map(|i| self.turned(&samples[i], sizes[i], layout.bytes()));
        let (width, height) = self.turned_size((width, height));
        Some(Planes { width, height, layout, samples })
    }

    fn turned_size(self, (w, h): (usize, usize)) -> (usize, usize) {
        if self.swaps() { (h, w) } else { (w, h) }
    }

    /// Rows of `w` items of `unit` bytes, turned.
    fn turned(self, items: &[u8], (w, h): (usize, usize), unit: usize) -> Vec<u8> {
        let (width, height) = self.turned_size((w, h));
        let mut turned = Vec::with_capacity(items.len());
        for y in 0..height {
            for x in 0..width {
                let (u, v) = match self.quarters {
                    0 => (x, y),
                    1 => (y, h - 1 - x),
                    2 => (w - 1 - x, h - 1 - y),
                    _ => (w - 1 - y, x),
                };
                let u = if self.mirrored { w - 1 - u } else { u };
                let start = (v * w + u) * unit;
                turned.extend_from_slice(&items[start..start + unit]);
            }
        }
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 × 2 pixels numbered from 0, one byte each in red.
    fn numbered() -> Frame {
        Frame { width: 3, height: 2, rgb: (0..6).flat_map(|i| [i, 0, 0]).collect() }
    }

    fn reds(frame: &Frame) -> Vec<u8> {
        frame.rgb.iter().step_by(3).copied().collect()
    }

    #[test]
    fn matrices_turn_as_the_eye_expects() {
        const ONE: i32 = 1 << 16;
        let cases = [
            ([ONE, 0, 0, 0, ONE], vec![0, 1, 2, 3, 4, 5]),
            // x goes down: a quarter clockwise.
            ([0, ONE, 0, -ONE, 0], vec![3, 0, 4, 1, 5, 2]),
            ([-ONE, 0, 0, 0, -ONE], vec![5, 4, 3, 2, 1, 0]),
            ([0, -ONE, 0, ONE, 0], vec![2, 5, 1, 4, 0, 3]),
            ([-ONE, 0, 0, 0, ONE], vec![2, 1, 0, 5, 4, 3]),
            ([ONE, 0, 0, 0, -ONE], vec![3, 4, 5, 0, 1, 2]),
            // Mirrored along the main diagonal: rows become columns.
            ([0, ONE, 0, ONE, 0], vec![0, 3, 1, 4, 2, 5]),
        ];
        for (matrix, expected) in cases {
            assert_eq!(reds(&Turn::from_matrix(&matrix).apply(numbered())), expected, "{matrix:?}");
        }
    }
}
