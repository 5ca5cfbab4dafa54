//! Everything that touches FFmpeg or picture files: sinks for frames, readers for clips.
//!
//! [`Target::parse`] says what a file name means, [`open_sink`] checks the options against it and
//! gives the sink that frames are pushed into. Every sink writes beside its target and renames when
//! whole; dropped unfinished, it leaves nothing.
//!
//! ```
//! use sora::{media::{EncodeOptions, Target, open_sink}, video::Frame};
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("grey.mp4");
//! # let path = path.to_str().unwrap();
//! let target = Target::parse(path)?;
//! let mut sink = open_sink(&target, 64, 64, &EncodeOptions { fps: 8.0, ..Default::default() })?;
//! for _ in 0..8 {
//!     sink.push(Frame { width: 64, height: 64, rgb: vec![128; 64 * 64 * 3] })?;
//! }
//! sink.finish()?;
//! # Ok::<(), sora::Error>(())
//! ```

mod codec;
mod colour;
mod encode;
mod fit;
mod folder;
mod footage;
mod gif;
mod options;
mod palette;
mod pending;
mod picture;
mod planes;
mod read;
mod resize;
mod sheet;
mod sink;
mod sound;
mod still;
mod target;
mod upscale;
mod y4m;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Once,
};

use crate::error::{Error, Result};

pub use codec::Codec;
pub use fit::{Fit, compressed};
pub use footage::{Footage, FrameStream, content_hash};
pub use options::EncodeOptions;
pub use picture::read_image;
pub use read::{Clip, read_clip, read_comment};
pub use resize::{cover, resize};
pub use sheet::SheetBuilder;
pub use sink::{TeeSink, open_sink};
pub use sound::{Sound, SoundOutcome, add_sound};
pub use target::{Format, Target};
pub use upscale::UpscaleSink;

/// The largest width or height of a picture or clip that is read.
pub const MAX_SIDE: usize = 16_384;

/// Readies FFmpeg once a process and silences its log: what goes wrong is told by [`Error`].
fn start_ffmpeg() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Only fills tables of texts; it has no way to fail.
        let _ = ffmpeg_next::init();
        ffmpeg_next::log::set_level(ffmpeg_next::log::Level::Quiet);
    });
}

/// Name and version of FFmpeg's codecs, as they are linked.
#[must_use]
pub fn ffmpeg_version() -> String {
    start_ffmpeg();
    let version = ffmpeg_next::codec::version();
    format!("libavcodec {}.{}.{}", version >> 16, version >> 8 & 0xff, version & 0xff)
}

/// The name FFmpeg opens a local file by; without the prefix, `a:b.mp4` would name a protocol.
fn file_url(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(name) if !name.contains('\0') => Ok(format!("file:{name}")),
        _ => Err(Error::invalid(format!("file name `{}`", path.display()), "expected valid UTF-8")),
    }
}

/// What FFmpeg said while `action` was going on; a number of the system becomes a file error.
fn ffmpeg_error(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(ffmpeg_next::Error) -> Error {
    let path = path.into();
    move |source| match source {
        ffmpeg_next::Error::Other { errno } if errno != ffmpeg_next::ffi::EINVAL => {
            Error::File { action, path, source: io::Error::from_raw_os_error(errno) }
        }
        source => Error::Ffmpeg { action, path, source },
    }
}
