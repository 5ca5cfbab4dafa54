//! Animated GIF with one palette for the whole clip.
//!
//! The palette is known only at the end, so frames wait in a nameless file on the disk.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
};

use ffmpeg_next::{format::Pixel, frame};

use super::{
    encode::Encoding,
    options::Settings,
    palette::{COLOURS, Census, Palette},
    pending::{Pending, folder_of, follow, into_error},
    still::comment_text,
    target::Target,
};
use crate::{
    error::{Error, Result},
    video::{Frame, FrameSink},
};

pub(super) struct GifSink {
    target: Target,
    width: usize,
    height: usize,
    // Opened at once, so that what can't be opened is known before the first frame.
    encoding: Encoding,
    spool: BufWriter<File>,
    census: Census,
    frames: usize,
    comments: Vec<String>,
}

impl GifSink {
    pub fn open(
        target: &Target,
        width: usize,
        height: usize,
        settings: &Settings,
        metadata: &[(String, String)],
    ) -> Result<Self> {
        let encoding = Encoding::open(target, width, height, settings)?;
        let folder = folder_of(&follow(target.path()));
        let spool = tempfile::tempfile_in(&folder).map_err(|e| into_error(&folder, e))?;
        Ok(Self {
            target: target.clone(),
            width,
            height,
            encoding,
            spool: BufWriter::new(spool),
            census: Census::new(),
            frames: 0,
            comments: metadata.iter().map(comment_text).collect(),
        })
    }
}

impl FrameSink for GifSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        self.census.count(&frame.rgb);
        self.spool.write_all(&frame.rgb).map_err(Error::file("write", self.target.path()))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        let Self { target, width, height, mut encoding, spool, census, frames, comments } = *self;
        let path = target.path();
        let mut spool = spool.into_inner().map_err(|e| Error::file("write", path)(e.into_error()))?;
        spool.seek(SeekFrom::Start(0)).map_err(Error::file("write", path))?;
        let mut spool = BufReader::new(spool);
        let mut palette = census.palette();
        let mut rgb = vec![0; width * height * 3];
        for _ in 0..frames {
            spool.read_exact(&mut rgb).map_err(Error::file("write", path))?;
            encoding.send(indexed(&rgb, width, height, &mut palette))?;
        }
        let mut pending = encoding.finish()?;
        append_comments(&mut pending, &comments).map_err(Error::file("write", path))?;
        pending.commit()
    }
}

/// A frame of palette indices with the palette itself.
fn indexed(rgb: &[u8], width: usize, height: usize, palette: &mut Palette) -> frame::Video {
    let mut frame = frame::Video::new(Pixel::PAL8, width as u32, height as u32);
    let stride = frame.stride(0);
    let rows = frame.data_mut(0).chunks_exact_mut(stride);
    for (y, (row, pixels)) in rows.zip(rgb.chunks_exact(width * 3)).enumerate() {
        for (x, (index, pixel)) in row.iter_mut().zip(pixels.as_chunks::<3>().0).enumerate() {
            *index = palette.index(*pixel, x, y);
        }
    }
    let mut entries = [0xff00_0000_u32; 256];
    for (entry, [r, g, b]) in entries.iter_mut().zip(palette.colours()) {
        *entry |= u32::from(*r) << 16 | u32::from(*g) << 8 | u32::from(*b);
    }
    // The encoder puts this one where a pixel stays as it was.
    entries[COLOURS] = 0;
    // SAFETY: a PAL8 frame that has its buffers has 256 entries of four bytes in its second plane.
    unsafe {
        let plane = (*frame.as_mut_ptr()).data[1];
        std::ptr::copy_nonoverlapping(entries.as_ptr().cast::<u8>(), plane, 1024);
    }
    frame
}

/// Puts comment blocks before the file's last byte, the trailer.
fn append_comments(pending: &mut Pending, comments: &[String]) -> std::io::Result<()> {
    const TRAILER: u8 = 0x3b;
    let mut last = [0];
    pending.seek(SeekFrom::End(-1))?;
    pending.read_exact(&mut last)?;
    if last != [TRAILER] || comments.is_empty() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    for comment in comments {
        bytes.extend([0x21, 0xfe]);
        for block in comment.as_bytes().chunks(255) {
            bytes.push(block.len() as u8);
            bytes.extend(block);
        }
        bytes.push(0);
    }
    bytes.push(TRAILER);
    pending.seek(SeekFrom::End(-1))?;
    pending.write_all(&bytes)
}
