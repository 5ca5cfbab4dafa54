//! Between packed RGB and what codecs store, with the matrix and range said and not guessed.

use ffmpeg_next::{
    Error as FfmpegError, color,
    ffi::{sws_getCoefficients, sws_setColorspaceDetails},
    format::Pixel,
    frame,
    software::scaling,
};

use crate::video::Frame;

/// What stored samples mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Colour {
    pub space: color::Space,
    pub range: color::Range,
    pub primaries: color::Primaries,
    pub transfer: color::TransferCharacteristic,
}

impl Colour {
    /// What video files carry.
    pub const BT709: Self = Self {
        space: color::Space::BT709,
        range: color::Range::MPEG,
        primaries: color::Primaries::BT709,
        transfer: color::TransferCharacteristic::BT709,
    };
    /// What JPEG pictures mean, alone or in a row.
    pub const JPEG: Self = Self { space: color::Space::BT470BG, range: color::Range::JPEG, ..Self::BT709 };
    /// Red, green and blue as they are.
    pub const RGB: Self = Self { space: color::Space::RGB, range: color::Range::JPEG, ..Self::BT709 };

    /// What players take for granted where a file doesn't say: BT.601 up to the size of a DVD,
    /// BT.709 above.
    pub fn untagged(width: usize, height: usize) -> Self {
        let large = width >= 1280 || height > 576;
        let space = if large { color::Space::BT709 } else { color::Space::SMPTE170M };
        Self { space, ..Self::BT709 }
    }

    /// What a decoded frame holds.
    pub fn of(frame: &frame::Video) -> Self {
        let untagged = Self::untagged(frame.width() as usize, frame.height() as usize);
        let space = match frame.color_space() {
            color::Space::Unspecified | color::Space::Reserved => untagged.space,
            space => space,
        };
        let full = [Pixel::YUVJ420P, Pixel::YUVJ411P, Pixel::YUVJ422P, Pixel::YUVJ440P, Pixel::YUVJ444P];
        let range = match frame.color_range() {
            _ if full.contains(&frame.format()) => color::Range::JPEG,
            color::Range::Unspecified => untagged.range,
            range => range,
        };
        let (primaries, transfer) = (frame.color_primaries(), frame.color_transfer_characteristic());
        Self { space, range, primaries, transfer }
    }

    /// Says it of a frame.
    pub fn tag(&self, frame: &mut frame::Video) {
        frame.set_color_space(self.space);
        frame.set_color_range(self.range);
        frame.set_color_primaries(self.primaries);
        frame.set_color_transfer_characteristic(self.transfer);
    }
}

/// Bicubic with every switch on that trades speed for right colours and equal results on any CPU.
fn flags() -> scaling::Flags {
    scaling::Flags::BICUBIC
        | scaling::Flags::ACCURATE_RND
        | scaling::Flags::FULL_CHR_H_INT
        | scaling::Flags::FULL_CHR_H_INP
        | scaling::Flags::BITEXACT
}

/// A converter between RGB24 and `colour`, or two layouts of `colour`; swscale uses the tables on whichever side is
/// YUV.
pub(super) fn converter(
    from: scaling::context::Definition,
    to: scaling::context::Definition,
    colour: Colour,
) -> Result<scaling::Context, FfmpegError> {
    let mut context =
        scaling::Context::get(from.format, from.width, from.height, to.format, to.width, to.height, flags())?;
    let full = |format: Pixel| match format {
        Pixel::RGB24 => true,
        _ => colour.range == color::Range::JPEG,
    };
    let space: ffmpeg_next::ffi::AVColorSpace = colour.space.into();
    // SAFETY: the context lives through the call; the table is one of FFmpeg's own constants, which
    // it gives for any number. Between RGB layouts the call is refused, and needless.
    unsafe {
        let table = sws_getCoefficients(space as i32);
        sws_setColorspaceDetails(
            context.as_mut_ptr(),
            table,
            i32::from(full(from.format)),
            table,
            i32::from(full(to.format)),
            /* brightness */ 0,
            /* contrast */ 1 << 16,
            /* saturation */ 1 << 16,
        );
    }
    Ok(context)
}

/// Turns frames into what an encoder takes.
pub(super) struct FromRgb {
    context: scaling::Context,
    packed: frame::Video,
    colour: Colour,
}

impl FromRgb {
    pub fn new(width: u32, height: u32, pixel: Pixel, colour: Colour) -> Result<Self, FfmpegError> {
        let from = scaling::context::Definition { format: Pixel::RGB24, width, height };
        let context = converter(from, scaling::context::Definition { format: pixel, ..from }, colour)?;
        Ok(Self { context, packed: frame::Video::new(Pixel::RGB24, width, height), colour })
    }

    /// A new frame each time: encoders keep those they look ahead at.
    pub fn convert(&mut self, frame: &Frame) -> Result<frame::Video, FfmpegError> {
        let stride = self.packed.stride(0);
        let rows = self.packed.data_mut(0).chunks_exact_mut(stride);
        for (row, pixels) in rows.zip(frame.rgb.chunks_exact(frame.width * 3)) {
            row[..pixels.len()].copy_from_slice(pixels);
        }
        let mut out = frame::Video::empty();
        self.context.run(&self.packed, &mut out)?;
        self.colour.tag(&mut out);
        Ok(out)
    }
}

/// Turns decoded frames into packed RGB of one size.
pub(super) struct ToRgb {
    width: u32,
    height: u32,
    context: Option<(scaling::Context, Colour)>,
    packed: frame::Video,
}

impl ToRgb {
    /// Frames come out `width × height`, whatever size goes in.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height, context: None, packed: frame::Video::empty() }
    }

    pub fn convert(&mut self, frame: &frame::Video) -> Result<Frame, FfmpegError> {
        let colour = Colour::of(frame);
        let from = scaling::context::Definition {
            format: frame.format(),
            width: frame.width(),
            height: frame.height(),
        };
        let fits = |known: &(scaling::Context, Colour)| *known.0.input() == from && known.1 == colour;
        let (context, _) = match self.context.take().filter(fits) {
            Some(known) => self.context.insert(known),
            None => {
                let to = scaling::context::Definition {
                    format: Pixel::RGB24,
                    width: self.width,
                    height: self.height,
                };
                self.context.insert((converter(from, to, colour)?, colour))
            }
        };
        context.run(frame, &mut self.packed)?;
        let (width, height) = (self.width as usize, self.height as usize);
        let mut rgb = Vec::with_capacity(width * height * 3);
        for row in self.packed.data(0).chunks_exact(self.packed.stride(0)) {
            rgb.extend_from_slice(&row[..width * 3]);
        }
        Ok(Frame { width, height, rgb })
    }
}
