//! Reading a picture file.

use std::{fs::File, io::BufReader, path::Path};

use image::{DynamicImage, ImageDecoder as _, ImageError, ImageReader, Limits, metadata::Orientation};

use super::MAX_SIDE;
use crate::{
    error::{Error, Result},
    video::Frame,
};

/// Bytes a decoder may ask for: a picture of the largest size with 16 bits a channel.
const MEMORY: u64 = 3 << 30;

/// Reads a PNG, JPEG, WebP, GIF, BMP, TIFF or PNM, told by its content and not by its name, turned
/// upright as its EXIF says. Transparency is dropped; of an animation, this is the first frame.
pub fn read_image(path: &Path) -> Result<Frame> {
    let invalid = |why: String| Error::invalid(format!("picture `{}`", path.display()), why);
    let mut reader = File::open(path)
        .and_then(|file| ImageReader::new(BufReader::new(file)).with_guessed_format())
        .map_err(Error::file("read", path))?;
    if reader.format().is_none() {
        let hint = "expected a png, jpeg, webp, gif, bmp, tiff or pnm; FFmpeg converts most others";
        return Err(invalid("its content is of no kind that is known here".into()).with_hint(hint));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MEMORY);
    reader.limits(limits);
    let explain = |error: ImageError| match error {
        ImageError::IoError(source) if source.kind() != std::io::ErrorKind::UnexpectedEof => {
            Error::File { action: "read", path: path.to_owned(), source }
        }
        ImageError::Limits(_) => invalid("it needs too much memory".into()),
        ImageError::Unsupported(error) => invalid(error.to_string()),
        error => Error::damaged(path, error.to_string()),
    };
    let mut decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    if width as usize > MAX_SIDE || height as usize > MAX_SIDE {
        return Err(invalid(format!("it is {width}x{height} (expected at most {MAX_SIDE} each way)"))
            .with_hint("scale it down first"));
    }
    // A picture whose EXIF can't be read is shown as it is stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(explain)?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgb8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Frame { width, height, rgb: picture.into_raw() })
}
