//! Single pictures: PNG and JPEG, with their tags.

use std::{io::Write as _, path::PathBuf};

use image::{
    ExtendedColorType, ImageEncoder as _, ImageError,
    codecs::{
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType, PngEncoder},
    },
};

use super::{
    pending::Pending,
    target::{Format, Target},
};
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink},
};

const JPEG_QUALITY: u8 = 95;

/// Exactly one picture.
pub(super) struct StillSink {
    format: Format,
    metadata: Vec<(String, String)>,
    pending: Pending,
    written: bool,
}

impl StillSink {
    pub fn open(target: &Target, metadata: &[(String, String)]) -> Result<Self> {
        let pending = Pending::create(target.path())?;
        Ok(Self { format: target.format(), metadata: metadata.to_vec(), pending, written: false })
    }
}

impl FrameSink for StillSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if self.written {
            let what = format!("second frame for {}", self.pending.target().display());
            return Err(Error::invalid(what, format!("a {} holds exactly one", self.format.name()))
                .with_hint("pass --frames 1, or write a video or a folder of frames"));
        }
        let bytes = match self.format {
            Format::Jpeg => jpeg(&frame, &self.metadata),
            _ => png(&frame, &self.metadata, CompressionType::Default),
        };
        let target = self.pending.target().to_owned();
        let bytes = bytes.map_err(|e| cannot_encode(&target, e))?;
        self.pending.write_all(&bytes).map_err(Error::file("write", target))?;
        self.written = true;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        self.pending.commit()
    }
}

/// The encoders write into memory here, so what they refuse is the picture: its size, in practice.
pub(super) fn cannot_encode(path: &std::path::Path, error: ImageError) -> Error {
    Error::invalid(format!("picture for {}", path.display()), error.to_string())
}

/// One line of text for formats that keep no keys.
pub(super) fn comment_text((key, value): &(String, String)) -> String {
    if key == "comment" { value.clone() } else { format!("{key}={value}") }
}

/// A whole PNG file; the tags stand in `iTXt` chunks.
pub(super) fn png(
    frame: &Frame,
    metadata: &[(String, String)],
    compression: CompressionType,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, compression, FilterType::Adaptive).write_image(
        &frame.rgb,
        frame.width as u32,
        frame.height as u32,
        ExtendedColorType::Rgb8,
    )?;
    let mut chunks = Vec::new();
    for (key, value) in metadata {
        // Keyword, then: not compressed, no method, no language, no translation.
        let data = [b"iTXt", key.as_bytes(), &[0, 0, 0, 0, 0], value.as_bytes()].concat();
        chunks.extend((data.len() as u32 - 4).to_be_bytes());
        chunks.extend_from_slice(&data);
        chunks.extend(crc32(&data).to_be_bytes());
    }
    // After the signature and the header chunk, whose length never changes.
    bytes.splice(33..33, chunks);
    Ok(bytes)
}

/// A whole JPEG file; the tags stand in comment segments.
fn jpeg(frame: &Frame, metadata: &[(String, String)]) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).write_image(
        &frame.rgb,
        frame.width as u32,
        frame.height as u32,
        ExtendedColorType::Rgb8,
    )?;
    let mut segments = Vec::new();
    for comment in metadata.iter().map(comment_text) {
        segments.extend([0xff, 0xfe]);
        segments.extend((comment.len() as u16 + 2).to_be_bytes());
        segments.extend_from_slice(comment.as_bytes());
    }
    // After the start marker and the JFIF segment, which has to be the first.
    let jfif = match bytes[2..6] {
        [0xff, 0xe0, high, low] => 2 + usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    };
    bytes.splice(2 + jfif..2 + jfif, segments);
    Ok(bytes)
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
