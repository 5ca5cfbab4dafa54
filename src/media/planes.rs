//! Pictures as files store them, carried from one file into another without a way through RGB.
//!
//! Where layout, matrix and range are those of the output, every sample stays what it is. Another matrix or range is
//! brought about in luma and chroma: chroma stays at its own resolution, since grey is grey under every matrix, and
//! luma changes by a share of chroma. Another number of bits or of chroma samples is swscale's work.

use std::{borrow::Cow, io, slice};

use ffmpeg_next::{
    Error as FfmpegError, color,
    ffi::{AVColorPrimaries, AVColorSpace, AVColorTransferCharacteristic},
    format::Pixel,
    frame,
    software::scaling,
};

use super::colour::{Colour, converter};
use crate::video::{Chroma, Layout, Planes};

/// Pixel formats that are luma and chroma in planes; those with a `J` mean a full range, which frames say, too.
const FORMATS: [(Pixel, u8, Chroma); 12] = [
    (Pixel::YUV420P, 8, Chroma::Quarter),
    (Pixel::YUV422P, 8, Chroma::Half),
    (Pixel::YUV444P, 8, Chroma::Full),
    (Pixel::YUVJ420P, 8, Chroma::Quarter),
    (Pixel::YUVJ422P, 8, Chroma::Half),
    (Pixel::YUVJ444P, 8, Chroma::Full),
    (Pixel::YUV420P10LE, 10, Chroma::Quarter),
    (Pixel::YUV422P10LE, 10, Chroma::Half),
    (Pixel::YUV444P10LE, 10, Chroma::Full),
    (Pixel::YUV420P12LE, 12, Chroma::Quarter),
    (Pixel::YUV422P12LE, 12, Chroma::Half),
    (Pixel::YUV444P12LE, 12, Chroma::Full),
];

/// Matrices that are known here: shares of red and blue in luma.
const MATRICES: [(color::Space, f32, f32); 6] = [
    (color::Space::BT709, 0.2126, 0.0722),
    (color::Space::FCC, 0.3, 0.11),
    (color::Space::BT470BG, 0.299, 0.114),
    (color::Space::SMPTE170M, 0.299, 0.114),
    (color::Space::SMPTE240M, 0.212, 0.087),
    (color::Space::BT2020NCL, 0.2627, 0.0593),
];

const PRIMARIES: [color::Primaries; 9] = [
    color::Primaries::BT709,
    color::Primaries::BT470M,
    color::Primaries::BT470BG,
    color::Primaries::SMPTE170M,
    color::Primaries::SMPTE240M,
    color::Primaries::Film,
    color::Primaries::BT2020,
    color::Primaries::SMPTE431,
    color::Primaries::SMPTE432,
];

const TRANSFERS: [color::TransferCharacteristic; 11] = [
    color::TransferCharacteristic::BT709,
    color::TransferCharacteristic::GAMMA22,
    color::TransferCharacteristic::GAMMA28,
    color::TransferCharacteristic::SMPTE170M,
    color::TransferCharacteristic::SMPTE240M,
    color::TransferCharacteristic::Linear,
    color::TransferCharacteristic::IEC61966_2_1,
    color::TransferCharacteristic::BT2020_10,
    color::TransferCharacteristic::BT2020_12,
    color::TransferCharacteristic::SMPTE2084,
    color::TransferCharacteristic::ARIB_STD_B67,
];

impl From<&Layout> for Colour {
    fn from(layout: &Layout) -> Self {
        let matrix = MATRICES.iter().find(|(space, ..)| code_of(*space) == layout.matrix);
        let primaries = PRIMARIES.into_iter().find(|p| AVColorPrimaries::from(*p) as u8 == layout.primaries);
        let transfer =
            TRANSFERS.into_iter().find(|t| AVColorTransferCharacteristic::from(*t) as u8 == layout.transfer);
        Self {
            space: matrix.map_or(Self::BT709.space, |(space, ..)| *space),
            range: if layout.full_range { color::Range::JPEG } else { color::Range::MPEG },
            primaries: primaries.unwrap_or(color::Primaries::Unspecified),
            transfer: transfer.unwrap_or(color::TransferCharacteristic::Unspecified),
        }
    }
}

fn code_of(space: color::Space) -> u8 {
    AVColorSpace::from(space) as u8
}

/// What is stored in a pixel format; nothing if that isn't luma and chroma in planes, or by a matrix nobody knows.
pub(super) fn layout_of(pixel: Pixel, colour: &Colour) -> Option<Layout> {
    let (_, bits, chroma) = FORMATS.into_iter().find(|(known, ..)| *known == pixel)?;
    MATRICES.iter().find(|(space, ..)| *space == colour.space)?;
    Some(Layout {
        bits,
        chroma,
        matrix: code_of(colour.space),
        full_range: colour.range == color::Range::JPEG,
        primaries: AVColorPrimaries::from(colour.primaries) as u8,
        transfer: AVColorTransferCharacteristic::from(colour.transfer) as u8,
    })
}

/// The rows of a plane, each of `bytes`.
fn rows(frame: &frame::Video, plane: usize, bytes: usize, rows: usize) -> impl Iterator<Item = &[u8]> {
    (0..rows).map(move |y| {
        // SAFETY: the callers ask for no more rows, and bytes in each, than a plane of this format and size has;
        // the frame owns them and is borrowed. Strides may be negative.
        unsafe {
            let raw = &*frame.as_ptr();
            let start = raw.data[plane].offset(y as isize * raw.linesize[plane] as isize);
            slice::from_raw_parts(start, bytes)
        }
    })
}

/// Writes the samples of a frame of this layout, plane by plane.
pub(super) fn write_rows(
    frame: &frame::Video,
    layout: &Layout,
    (width, height): (usize, usize),
    output: &mut dyn io::Write,
) -> io::Result<()> {
    for (plane, (w, h)) in layout.planes(width, height).into_iter().enumerate() {
        for row in rows(frame, plane, w * layout.bytes(), h) {
            output.write_all(row)?;
        }
    }
    Ok(())
}

/// What a decoded frame stores.
pub(super) fn planes_of(frame: &frame::Video) -> Option<Planes> {
    let layout = layout_of(frame.format(), &Colour::of(frame))?;
    let (width, height) = (frame.width() as usize, frame.height() as usize);
    let sizes = layout.planes(width, height);
    let samples = [0, 1, 2].map(|plane| {
        let (w, h) = sizes[plane];
        rows(frame, plane, w * layout.bytes(), h).flatten().copied().collect()
    });
    Some(Planes { width, height, layout, samples })
}

/// Brings planes into the way an output stores them.
pub(super) struct Carrier {
    pixel: Pixel,
    colour: Colour,
    layout: Layout,
    scaler: Option<scaling::Context>,
}

impl Carrier {
    /// For an output of this pixel format; nothing if it has no planes of luma and chroma.
    pub fn new(pixel: Pixel, colour: Colour) -> Option<Self> {
        Some(Self { pixel, colour, layout: layout_of(pixel, &colour)?, scaler: None })
    }

    /// The picture as the output stores it.
    pub fn carry(&mut self, planes: &Planes) -> Result<frame::Video, FfmpegError> {
        let planes = recoloured(planes, &self.layout);
        let from = planes.layout;
        let pixel: Pixel = from.pix_fmt().parse().map_err(|_| FfmpegError::InvalidData)?;
        let mut frame = frame::Video::new(pixel, planes.width as u32, planes.height as u32);
        for (plane, (w, _)) in from.planes(planes.width, planes.height).into_iter().enumerate() {
            let stride = frame.stride(plane);
            let rows = planes.samples[plane].chunks_exact(w * from.bytes());
            for (row, samples) in frame.data_mut(plane).chunks_mut(stride).zip(rows) {
                row[..samples.len()].copy_from_slice(samples);
            }
        }
        if (from.bits, from.chroma) != (self.layout.bits, self.layout.chroma) {
            let (width, height) = (frame.width(), frame.height());
            let from = scaling::context::Definition { format: pixel, width, height };
            let scaler = match self.scaler.take().filter(|known| *known.input() == from) {
                Some(known) => self.scaler.insert(known),
                None => {
                    let to = scaling::context::Definition { format: self.pixel, ..from };
                    self.scaler.insert(converter(from, to, self.colour)?)
                }
            };
            let mut scaled = frame::Video::empty();
            scaler.run(&frame, &mut scaled)?;
            frame = scaled;
        }
        self.colour.tag(&mut frame);
        Ok(frame)
    }
}

/// The codes of one layout as numbers: luma 0..1, chroma around 0, and back.
struct Codes {
    black: f32,
    luma: f32,
    grey: f32,
    chroma: f32,
    most: f32,
    bytes: usize,
}

impl Codes {
    fn of(layout: &Layout) -> Self {
        let unit = f32::from(1u16 << (layout.bits - 8));
        let most = f32::from(1u16 << layout.bits.min(15)) - 1.0;
        let (black, luma, chroma) =
            if layout.full_range { (0.0, most, most) } else { (16.0 * unit, 219.0 * unit, 224.0 * unit) };
        Self { black, luma, grey: 128.0 * unit, chroma, most, bytes: layout.bytes() }
    }

    fn read(&self, samples: &[u8], zero: f32, one: f32) -> Vec<f32> {
        let number = |bytes: &[u8]| match *bytes {
            [low, high] => f32::from(u16::from_le_bytes([low, high])),
            [byte] => f32::from(byte),
            _ => 0.0,
        };
        samples.chunks_exact(self.bytes).map(|bytes| (number(bytes) - zero) / one).collect()
    }

    fn write(&self, values: &[f32], zero: f32, one: f32) -> Vec<u8> {
        let code = |value: f32| (value * one + zero).round().clamp(0.0, self.most) as u16;
        values.iter().flat_map(|&value| code(value).to_le_bytes().into_iter().take(self.bytes)).collect()
    }
}

/// The same picture by another matrix or range, with as many bits and chroma samples.
fn recoloured<'a>(planes: &'a Planes, to: &Layout) -> Cow<'a, Planes> {
    let from = planes.layout;
    let shares = |matrix: u8| MATRICES.iter().find(|(space, ..)| code_of(*space) == matrix);
    let (Some(&(_, r, b)), Some(&(_, to_r, to_b))) = (shares(from.matrix), shares(to.matrix)) else {
        return Cow::Borrowed(planes);
    };
    let same = (r, b) == (to_r, to_b);
    if same && from.full_range == to.full_range {
        return Cow::Borrowed(planes);
    }
    let layout = Layout {
        matrix: to.matrix,
        full_range: to.full_range,
        primaries: to.primaries,
        transfer: to.transfer,
        ..from
    };
    let (old, new) = (Codes::of(&from), Codes::of(&layout));
    let mut luma = old.read(&planes.samples[0], old.black, old.luma);
    let mut blue = old.read(&planes.samples[1], old.grey, old.chroma);
    let mut red = old.read(&planes.samples[2], old.grey, old.chroma);
    if !same {
        let (red_scale, blue_scale) = (2.0 * (1.0 - r), 2.0 * (1.0 - b));
        let (green, to_green) = (1.0 - r - b, 1.0 - to_r - to_b);
        // What luma gains by each chroma.
        let by_red = red_scale * (to_r - to_green * r / green);
        let by_blue = blue_scale * (to_b - to_green * b / green);
        let mut gains = Vec::with_capacity(blue.len());
        for (blue, red) in blue.iter_mut().zip(&mut red) {
            let gain = by_red * *red + by_blue * *blue;
            *blue = (blue_scale * *blue - gain) / (2.0 * (1.0 - to_b));
            *red = (red_scale * *red - gain) / (2.0 * (1.0 - to_r));
            gains.push(gain);
        }
        spread(&gains, &mut luma, (planes.width, planes.height), from.chroma);
    }
    let samples = [
        new.write(&luma, new.black, new.luma),
        new.write(&blue, new.grey, new.chroma),
        new.write(&red, new.grey, new.chroma),
    ];
    Cow::Owned(Planes { layout, samples, ..*planes })
}

/// Adds values at chroma's places to luma: chroma lies at the left pixel of those that share it, and halfway down.
fn spread(values: &[f32], luma: &mut [f32], (width, height): (usize, usize), chroma: Chroma) {
    let (across, down) = chroma.step();
    let (columns, rows) = (width.div_ceil(across), height.div_ceil(down));
    for (y, row) in luma.chunks_exact_mut(width).enumerate() {
        let at = ((y as f32 + 0.5) / down as f32 - 0.5).max(0.0);
        let (top, share) = (at as usize, at.fract());
        let bottom = (top + 1).min(rows - 1);
        for (x, value) in row.iter_mut().enumerate() {
            let (left, part) = (x / across, (x % across) as f32 / across as f32);
            let right = (left + 1).min(columns - 1);
            let line = |row: usize| {
                let (a, b) = (values[row * columns + left], values[row * columns + right]);
                a + part * (b - a)
            };
            *value += line(top) + share * (line(bottom) - line(top));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(matrix: color::Space, full: bool, bits: u8, chroma: Chroma) -> Layout {
        Layout { bits, chroma, matrix: code_of(matrix), full_range: full, primaries: 1, transfer: 1 }
    }

    fn solid(layout: Layout, codes: [u16; 3]) -> Planes {
        let sizes = layout.planes(6, 4);
        let samples = [0, 1, 2].map(|i| {
            let bytes: Vec<u8> = codes[i].to_le_bytes().into_iter().take(layout.bytes()).collect();
            bytes.repeat(sizes[i].0 * sizes[i].1)
        });
        Planes { width: 6, height: 4, layout, samples }
    }

    #[test]
    fn another_matrix_keeps_the_colours() {
        let old = layout(color::Space::SMPTE170M, false, 8, Chroma::Quarter);
        let new = layout(color::Space::BT709, false, 8, Chroma::Quarter);
        // Pure red, green and blue, and a grey, by both recommendations.
        let known = [
            ([81, 90, 240], [63, 102, 240]),
            ([145, 54, 34], [173, 42, 26]),
            ([41, 240, 110], [32, 240, 118]),
            ([126, 128, 128], [126, 128, 128]),
        ];
        for (there, here) in known {
            for (from, to, codes, expected) in [(old, new, there, here), (new, old, here, there)] {
                let made = recoloured(&solid(from, codes), &to).into_owned();
                assert_eq!(made.layout, to);
                for (plane, code) in made.samples.iter().zip(expected) {
                    let off = |byte: &u8| u16::from(*byte).abs_diff(code);
                    assert!(plane.iter().all(|byte| off(byte) <= 1), "{codes:?}: {:?}", made.samples);
                }
            }
        }
    }

    #[test]
    fn another_range_goes_there_and_back() {
        for bits in [8, 10] {
            let studio = layout(color::Space::BT709, false, bits, Chroma::Half);
            let full = Layout { full_range: true, ..studio };
            let unit = 1 << (bits - 8);
            let white = recoloured(&solid(studio, [235 * unit, 128 * unit, 16 * unit]), &full).into_owned();
            let most = (256 * unit - 1).to_le_bytes();
            assert_eq!(white.samples[0][..full.bytes()], most[..full.bytes()]);
            let back = recoloured(&white, &studio).into_owned();
            assert_eq!(back, solid(studio, [235 * unit, 128 * unit, 16 * unit]));
        }
        let same = solid(layout(color::Space::BT470BG, false, 8, Chroma::Full), [1, 255, 3]);
        let tagged = layout(color::Space::SMPTE170M, false, 8, Chroma::Full);
        assert_eq!(recoloured(&same, &tagged).samples, same.samples, "two names of one matrix");
    }

    #[test]
    fn planes_are_what_the_encoder_gets() {
        crate::media::start_ffmpeg();
        let layout = layout(color::Space::BT2020NCL, true, 10, Chroma::Quarter);
        let noise = |count: usize| (0..count).flat_map(|i| ((i * 37 % 1024) as u16).to_le_bytes()).collect();
        let planes = Planes { width: 7, height: 5, layout, samples: [noise(35), noise(12), noise(12)] };
        assert!(planes.is_whole());
        let colour = Colour::from(&layout);
        let mut carrier = Carrier::new(Pixel::YUV420P10LE, colour).expect("planes");
        let frame = carrier.carry(&planes).expect("a frame");
        assert_eq!(planes_of(&frame).expect("planes"), planes);
        // Eight bits are four times coarser.
        let mut carrier = Carrier::new(Pixel::YUV420P, colour).expect("planes");
        let coarse = planes_of(&carrier.carry(&planes).expect("a frame")).expect("planes");
        for (i, byte) in coarse.samples[0].iter().enumerate() {
            // A code more or less is the dither's.
            assert!((i32::from(*byte) * 4 - (i * 37 % 1024) as i32).abs() <= 9, "{i}");
        }
        assert!(Carrier::new(Pixel::BGRZ, Colour::RGB).is_none());
    }
}
