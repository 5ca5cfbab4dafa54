//! The video codecs: where each fits, which encoder does it, what can be asked of it.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use super::target::Format;
use crate::error::{Error, Result};

/// A way to compress video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// H.264, plays everywhere.
    H264,
    /// H.265.
    Hevc,
    /// VP9, the usual one in WebM.
    Vp9,
    /// AV1.
    Av1,
    /// FFV1: lossless, for archives.
    Ffv1,
    /// Apple ProRes, for editing.
    Prores,
    /// Motion JPEG.
    Mjpeg,
}

/// What one codec allows.
pub(super) struct Rules {
    /// The containers it is written into.
    pub formats: &'static [Format],
    /// The pixel formats, the first by default.
    pub pixels: &'static [&'static str],
    /// The range of the constant rate factor and its default; `None` where there is none.
    pub crf: Option<(RangeInclusive<u8>, u8)>,
    /// The encoders of FFmpeg, the first that is there is used.
    pub encoders: &'static [Encoder],
}

/// One of FFmpeg's encoders.
pub(super) struct Encoder {
    pub name: &'static str,
    /// The presets from fast to slow or slow to fast, as the encoder names them.
    pub presets: &'static [&'static str],
    pub default_preset: &'static str,
    /// A fixed number, whatever the machine: the bytes of most encoders depend on it.
    pub threads: usize,
    /// Settings that never change.
    pub fixed: &'static [(&'static str, &'static str)],
    /// What the encoder calls its preset.
    pub preset_key: &'static str,
}

impl Encoder {
    /// Settings that depend on the processor, so that the bytes don't.
    pub fn levelling(&self) -> Option<(&'static str, &'static str)> {
        // x264 (seen in 164.3095) reads memory it never wrote in its AVX-512 code for macroblock
        // trees, at widths such as 96, 112 and 176: the same frames give other bytes at each run.
        #[cfg(target_arch = "x86_64")]
        if self.name == "libx264" && std::arch::is_x86_feature_detected!("avx512f") {
            return Some(("x264-params", "asm=AVX2"));
        }
        None
    }
}

const X26X_PRESETS: &[&str] = &[
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
];
const SPEEDS: &[&str] = &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13"];
const YUV: &[&str] = &["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"];

static H264: Rules = Rules {
    formats: &[Format::Mp4, Format::Mov, Format::Mkv],
    pixels: YUV,
    crf: Some((0..=51, 18)),
    encoders: &[Encoder {
        name: "libx264",
        presets: X26X_PRESETS,
        default_preset: "medium",
        threads: 4,
        fixed: &[],
        preset_key: "preset",
    }],
};
static HEVC: Rules = Rules {
    formats: &[Format::Mp4, Format::Mov, Format::Mkv],
    pixels: YUV,
    crf: Some((0..=51, 20)),
    encoders: &[Encoder {
        name: "libx265",
        presets: X26X_PRESETS,
        default_preset: "medium",
        threads: 2,
        // `info` would write the processor's abilities into the stream.
        fixed: &[("x265-params", "log-level=none:info=0:pools=4:frame-threads=2")],
        preset_key: "preset",
    }],
};
static VP9: Rules = Rules {
    formats: &[Format::Webm, Format::Mp4, Format::Mkv],
    pixels: YUV,
    crf: Some((0..=63, 24)),
    encoders: &[Encoder {
        name: "libvpx-vp9",
        presets: SPEEDS.split_at(9).0,
        default_preset: "2",
        threads: 4,
        fixed: &[("b", "0"), ("deadline", "good"), ("row-mt", "1")],
        preset_key: "cpu-used",
    }],
};
static AV1: Rules = Rules {
    formats: &[Format::Webm, Format::Mp4, Format::Mkv],
    pixels: YUV,
    crf: Some((0..=63, 24)),
    encoders: &[
        Encoder {
            name: "libaom-av1",
            presets: SPEEDS.split_at(9).0,
            default_preset: "6",
            threads: 4,
            fixed: &[("b", "0"), ("row-mt", "1")],
            preset_key: "cpu-used",
        },
        Encoder {
            name: "libsvtav1",
            presets: SPEEDS,
            default_preset: "6",
            threads: 4,
            fixed: &[("svtav1-params", "lp=4")],
            preset_key: "preset",
        },
    ],
};
static FFV1: Rules = Rules {
    formats: &[Format::Mkv],
    // RGB first: the frames are RGB, and only so is lossless lossless.
    pixels: &["bgr0", "yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"],
    crf: None,
    encoders: &[Encoder {
        name: "ffv1",
        presets: &[],
        default_preset: "",
        threads: 1,
        fixed: &[("level", "3"), ("slices", "4"), ("slicecrc", "1"), ("g", "1")],
        preset_key: "",
    }],
};
static PRORES: Rules = Rules {
    formats: &[Format::Mov, Format::Mkv],
    pixels: &["yuv422p10le", "yuv444p10le"],
    crf: None,
    encoders: &[Encoder {
        name: "prores_ks",
        presets: &["proxy", "lt", "standard", "hq", "4444", "4444xq"],
        default_preset: "",
        threads: 1,
        fixed: &[("vendor", "apl0")],
        preset_key: "profile",
    }],
};
static MJPEG: Rules = Rules {
    formats: &[Format::Mov, Format::Mkv],
    pixels: &["yuv420p", "yuv422p", "yuv444p"],
    crf: None,
    encoders: &[Encoder {
        name: "mjpeg",
        presets: &[],
        default_preset: "",
        threads: 1,
        fixed: &[("flags", "+qscale"), ("global_quality", "236"), ("huffman", "optimal")],
        preset_key: "",
    }],
};

impl Codec {
    /// All, in the order in which a container's default is looked for.
    pub const ALL: [Self; 7] =
        [Self::H264, Self::Hevc, Self::Vp9, Self::Av1, Self::Ffv1, Self::Prores, Self::Mjpeg];

    /// The name that options and messages use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::Hevc => "hevc",
            Self::Vp9 => "vp9",
            Self::Av1 => "av1",
            Self::Ffv1 => "ffv1",
            Self::Prores => "prores",
            Self::Mjpeg => "mjpeg",
        }
    }

    /// The name of the encoder that this machine's FFmpeg does it with, if it has one.
    #[must_use]
    pub fn encoder_name(self) -> Option<&'static str> {
        super::start_ffmpeg();
        self.encoder().map(|(encoder, _)| encoder.name)
    }

    pub(super) fn rules(self) -> &'static Rules {
        match self {
            Self::H264 => &H264,
            Self::Hevc => &HEVC,
            Self::Vp9 => &VP9,
            Self::Av1 => &AV1,
            Self::Ffv1 => &FFV1,
            Self::Prores => &PRORES,
            Self::Mjpeg => &MJPEG,
        }
    }

    /// The codecs that a container takes, its default first; none for what is no container.
    pub(super) fn fitting(format: Format) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |codec| codec.rules().formats.contains(&format))
    }

    /// The encoder this FFmpeg does it with.
    pub(super) fn encoder(self) -> Option<(&'static Encoder, ffmpeg_next::Codec)> {
        let found = |e: &'static Encoder| Some((e, ffmpeg_next::encoder::find_by_name(e.name)?));
        self.rules().encoders.iter().find_map(found)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.to_ascii_lowercase();
        let name = match lower.as_str() {
            "avc" | "x264" => "h264",
            "h265" | "x265" => "hevc",
            other => other,
        };
        Self::ALL.into_iter().find(|codec| codec.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|codec| codec.name()).collect();
            Error::invalid(format!("codec `{text}`"), format!("expected one of {}", known.join(", ")))
        })
    }
}
