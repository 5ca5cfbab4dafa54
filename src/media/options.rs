//! What can be asked of an output, and the check that it fits the target.

use ffmpeg_next::{Dictionary, Rational, codec::Flags, format::Pixel};

use super::{
    codec::{Codec, Encoder},
    colour::Colour,
    target::Format,
};
use crate::{
    error::{Error, Result},
    video::Layout,
};

/// How frames are to be written. What is `None` is chosen by the target.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodeOptions {
    /// Frames a second; 23.976, 29.97 and the like mean 24000/1001, 30000/1001.
    pub fps: f64,
    /// The codec of a video container.
    pub codec: Option<Codec>,
    /// Constant rate factor: less is better and larger.
    pub crf: Option<u8>,
    /// The encoder's effort, by its own names.
    pub preset: Option<String>,
    /// FFmpeg's name of the pixel format.
    pub pix_fmt: Option<String>,
    /// Tags written into the file, by key; `comment` is the one that survives most tools. PNG, JPEG
    /// and GIF carry them as text; WebP and y4m have no place for them.
    pub metadata: Vec<(String, String)>,
    /// How often a GIF or WebP plays; 0 is forever.
    pub loop_count: u16,
    /// How a clip that passes through is stored: what isn't asked for otherwise is stored in the same way.
    pub like: Option<Layout>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self {
            fps: 24.0,
            codec: None,
            crf: None,
            preset: None,
            pix_fmt: None,
            metadata: Vec::new(),
            loop_count: 0,
            like: None,
        }
    }
}

/// A container of FFmpeg.
#[derive(Debug, Clone, Copy)]
pub(super) struct Muxer {
    pub name: &'static str,
    pub fixed: &'static [(&'static str, &'static str)],
}

impl Muxer {
    pub fn of(format: Format) -> Option<Self> {
        let movflags = &[("movflags", "+faststart+use_metadata_tags")];
        Some(match format {
            Format::Mp4 => Self { name: "mp4", fixed: movflags },
            Format::Mov => Self { name: "mov", fixed: movflags },
            Format::Mkv => Self { name: "matroska", fixed: &[] },
            Format::Webm => Self { name: "webm", fixed: &[] },
            Format::Gif => Self { name: "gif", fixed: &[] },
            Format::Webp => Self { name: "webp", fixed: &[] },
            _ => return None,
        })
    }
}

/// Everything an FFmpeg encoder and its container are opened with.
pub(super) struct Settings {
    pub encoder: ffmpeg_next::Codec,
    pub pixel: Pixel,
    pub colour: Colour,
    pub rate: Rational,
    pub threads: usize,
    /// Settings of the encoder.
    pub encoding: Vec<(&'static str, String)>,
    pub muxer: Muxer,
    /// Settings of the container that aren't its fixed ones.
    pub muxing: Vec<(&'static str, String)>,
    /// The tag Apple's players want in place of FFmpeg's.
    pub tag: Option<[u8; 4]>,
    pub metadata: Vec<(String, String)>,
}

impl Settings {
    pub fn encoding(&self) -> Dictionary<'static> {
        self.encoding.iter().map(|(key, value)| (*key, value.as_str())).collect()
    }

    pub fn muxing(&self) -> Dictionary<'static> {
        let fixed = self.muxer.fixed.iter().copied().chain([("fflags", "+bitexact")]);
        fixed.chain(self.muxing.iter().map(|(key, value)| (*key, value.as_str()))).collect()
    }

    /// Same frames, same bytes.
    pub fn flags(&self, container: ffmpeg_next::format::Flags) -> Flags {
        if container.contains(ffmpeg_next::format::Flags::GLOBAL_HEADER) {
            Flags::BITEXACT | Flags::GLOBAL_HEADER
        } else {
            Flags::BITEXACT
        }
    }
}

/// The exact rate that `fps` means.
pub(super) fn frame_rate(fps: f64) -> Result<Rational> {
    if !(0.01..=1000.0).contains(&fps) {
        return Err(Error::invalid(format!("frame rate {fps}"), "expected 0.01 to 1000 frames a second")
            .with_hint("e.g. --fps 24"));
    }
    let whole = fps.round();
    if (fps - whole).abs() < 1e-6 && whole >= 1.0 {
        return Ok(Rational(whole as i32, 1));
    }
    for ntsc in [24, 30, 48, 60, 72, 90, 120, 240] {
        if (fps - f64::from(ntsc) / 1.001).abs() < 0.005 {
            return Ok(Rational(ntsc * 1000, 1001));
        }
    }
    // The simplest fraction that is as near as anybody can type.
    let (mut num, mut den) = ((0_i64, 1_i64), (1_i64, 0_i64));
    let mut rest = fps;
    loop {
        let digit = rest.floor();
        num = (num.1, digit as i64 * num.1 + num.0);
        den = (den.1, digit as i64 * den.1 + den.0);
        let near = (num.1 as f64 / den.1 as f64 - fps).abs() <= fps * 1e-7;
        if near || rest - digit < 1e-9 {
            // The error is below 1/den², so the search ends with both far inside an i32.
            return Ok(Rational(num.1 as i32, den.1 as i32));
        }
        rest = 1.0 / (rest - digit);
    }
}

/// What every output checks: options that mean nothing for it are refused, not ignored.
pub(super) fn check_common(format: Format, options: &EncodeOptions) -> Result<()> {
    let container = Codec::fitting(format).next().is_some();
    let asked = [
        ("codec", options.codec.map(|c| c.to_string())),
        ("crf", options.crf.map(|c| c.to_string())),
        ("preset", options.preset.clone()),
        ("pixel format", options.pix_fmt.clone()),
    ];
    if let Some((what, Some(value))) = asked.into_iter().find(|(_, value)| value.is_some() && !container) {
        let why = format!("{} has only one way to be written", format.name());
        return Err(Error::invalid(format!("{what} `{value}`"), why)
            .with_hint("leave it out, or write a .mp4, .mov, .mkv or .webm"));
    }
    if options.loop_count != 0 && !matches!(format, Format::Gif | Format::Webp) {
        let why = format!("{} doesn't say how often it plays", format.name());
        return Err(Error::invalid(format!("loop count {}", options.loop_count), why)
            .with_hint("leave it out, or write a .gif or .webp"));
    }
    if format == Format::Gif && options.fps > 50.0 {
        let why = "players show a gif at no more than 50 frames a second";
        return Err(Error::invalid(format!("frame rate {}", options.fps), why)
            .with_hint("pass --fps 50 or less, or write a .mp4 or .webp"));
    }
    for (key, value) in &options.metadata {
        let plain = (1..80).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
        if !plain || value.contains('\0') {
            let why = "expected a key of 1 to 79 ASCII letters and a value without NUL";
            return Err(Error::invalid(format!("metadata `{}`", key.escape_debug()), why));
        }
        // A segment's length is two bytes that count themselves.
        if format == Format::Jpeg && key.len() + value.len() > 65_000 {
            let what = format!("metadata `{key}` of {} bytes", value.len());
            return Err(Error::invalid(what, "a jpeg takes at most 65000").with_hint("write a .png"));
        }
    }
    Ok(())
}

/// Checks the options against a video container and fills in what wasn't said.
pub(super) fn video_settings(
    format: Format,
    width: usize,
    height: usize,
    options: &EncodeOptions,
) -> Result<Settings> {
    let muxer = Muxer::of(format).expect("called for containers only");
    let codec = match options.codec {
        Some(codec) => codec,
        None => Codec::fitting(format).next().expect("every container has a codec"),
    };
    if !Codec::fitting(format).any(|fitting| fitting == codec) {
        let containers: Vec<_> = codec.rules().formats.iter().map(|f| format!(".{}", f.name())).collect();
        let fitting: Vec<_> = Codec::fitting(format).map(Codec::name).collect();
        let why = format!("{} takes {}", format.name(), fitting.join(", "));
        return Err(Error::invalid(format!("codec `{codec}` in {}", format.name()), why)
            .with_hint(format!("choose one of those, or write {codec} into {}", containers.join(", "))));
    }
    let Some((encoder, ffmpeg)) = codec.encoder() else {
        return Err(no_encoder(format, codec));
    };
    let fixed = encoder.fixed.iter().copied().chain(encoder.levelling());
    let mut encoding: Vec<_> = fixed.map(|(key, value)| (key, value.to_owned())).collect();
    encoding.extend(crf(codec, options.crf)?.map(|crf| ("crf", crf.to_string())));
    encoding.extend(preset(codec, encoder, options.preset.as_deref())?.map(|p| (encoder.preset_key, p)));
    let pixel =
        pixel_format(codec, ffmpeg, (width, height), options.pix_fmt.as_deref(), options.like.as_ref())?;
    let like = options.like.as_ref().map(Colour::from);
    let colour = match (codec, pixel) {
        (Codec::Mjpeg, _) => Colour::JPEG,
        (_, Pixel::BGRZ) => Colour::RGB,
        // It has no place for the range.
        (Codec::Prores, _) => Colour { range: Colour::BT709.range, ..like.unwrap_or(Colour::BT709) },
        _ => like.unwrap_or(Colour::BT709),
    };
    let apple = matches!(format, Format::Mp4 | Format::Mov);
    Ok(Settings {
        encoder: ffmpeg,
        pixel,
        colour,
        rate: frame_rate(options.fps)?,
        threads: encoder.threads,
        encoding,
        muxer,
        muxing: Vec::new(),
        tag: (apple && codec == Codec::Hevc).then_some(*b"hvc1"),
        metadata: options.metadata.clone(),
    })
}

/// How an animated picture is encoded.
pub(super) fn animation_settings(format: Format, options: &EncodeOptions) -> Result<Settings> {
    let plays = options.loop_count;
    let (name, pixel, encoding, plays) = match format {
        // The muxer counts repetitions after the first time, and takes −1 for none.
        Format::Gif => ("gif", Pixel::PAL8, vec![], if plays == 0 { 0 } else { i32::from(plays) - 1 }),
        _ => ("libwebp_anim", Pixel::BGRA, vec![("quality", "90".to_owned())], i32::from(plays)),
    };
    let plays = if format == Format::Gif && options.loop_count == 1 { -1 } else { plays };
    let encoder = ffmpeg_next::encoder::find_by_name(name).ok_or_else(|| {
        Error::invalid(
            format!("output format {}", format.name()),
            format!("the FFmpeg this program runs with has no {name} encoder"),
        )
        .with_hint(format!("install an FFmpeg built with {name}, or write a .mp4"))
    })?;
    Ok(Settings {
        encoder,
        pixel,
        colour: Colour::RGB,
        rate: frame_rate(options.fps)?,
        threads: 1,
        encoding,
        muxer: Muxer::of(format).expect("gif and webp are muxers"),
        muxing: vec![("loop", plays.to_string())],
        tag: None,
        metadata: Vec::new(),
    })
}

fn no_encoder(format: Format, codec: Codec) -> Error {
    let names: Vec<_> = codec.rules().encoders.iter().map(|e| e.name).collect();
    let names = names.join(" or ");
    let there: Vec<_> =
        Codec::fitting(format).filter(|c| c.encoder().is_some()).map(|c| format!("--codec {c}")).collect();
    let otherwise = if there.is_empty() { "another output format".to_owned() } else { there.join(", ") };
    let why = format!("the FFmpeg this program runs with has no {names} encoder");
    Error::invalid(format!("codec `{codec}`"), why)
        .with_hint(format!("install an FFmpeg built with {names}, or choose {otherwise}"))
}

fn crf(codec: Codec, asked: Option<u8>) -> Result<Option<u8>> {
    match (&codec.rules().crf, asked) {
        (None, None) => Ok(None),
        (None, Some(crf)) => Err(Error::invalid(format!("crf {crf}"), format!("{codec} has no rate factor"))
            .with_hint("leave --crf out")),
        (Some((_, default)), None) => Ok(Some(*default)),
        (Some((range, _)), Some(crf)) if range.contains(&crf) => Ok(Some(crf)),
        (Some((range, default)), Some(crf)) => Err(Error::invalid(
            format!("crf {crf}"),
            format!("expected {} to {} for {codec}", range.start(), range.end()),
        )
        .with_hint(format!("less is better and larger; the default is {default}"))),
    }
}

fn preset(codec: Codec, encoder: &Encoder, asked: Option<&str>) -> Result<Option<String>> {
    match asked {
        None if encoder.default_preset.is_empty() => Ok(None),
        None => Ok(Some(encoder.default_preset.to_owned())),
        Some(preset) if encoder.presets.contains(&preset) => Ok(Some(preset.to_owned())),
        Some(preset) if encoder.presets.is_empty() => {
            Err(Error::invalid(format!("preset `{preset}`"), format!("{codec} has no presets"))
                .with_hint("leave --preset out"))
        }
        Some(preset) => Err(Error::invalid(
            format!("preset `{preset}`"),
            format!("expected one of {} for {codec}", encoder.presets.join(", ")),
        )),
    }
}

fn pixel_format(
    codec: Codec,
    encoder: ffmpeg_next::Codec,
    (width, height): (usize, usize),
    asked: Option<&str>,
    like: Option<&Layout>,
) -> Result<Pixel> {
    let known = codec.rules().pixels;
    let takes = |pixel: Pixel| match encoder.video().ok().and_then(|video| video.formats()) {
        Some(mut formats) => formats.any(|format| format == pixel),
        None => true,
    };
    // FFmpeg knows ten-bit formats without the ending as those of this machine's byte order.
    let parsed = |name: &&str| name.parse::<Pixel>().ok().filter(|pixel| takes(*pixel));
    let like = like.map(Layout::pix_fmt);
    let name = match asked {
        None => {
            let like = known.iter().copied().find(|name| Some(*name) == like.as_deref());
            like.filter(|name| parsed(name).is_some()).or(Some(known[0]))
        }
        Some(asked) => {
            known.iter().copied().find(|name| *name == asked || name.strip_suffix("le") == Some(asked))
        }
    };
    let Some((name, pixel)) = name.and_then(|name| Some((name, parsed(&name)?))) else {
        let usable: Vec<_> = known.iter().copied().filter(|name| parsed(name).is_some()).collect();
        return Err(Error::invalid(
            format!("pixel format `{}`", asked.unwrap_or(known[0])),
            format!("expected one of {} for {codec}", usable.join(", ")),
        ));
    };
    if let Some(layout) = pixel.descriptor() {
        let (x, y) = (1 << layout.log2_chroma_w(), 1 << layout.log2_chroma_h());
        if !width.is_multiple_of(x) || !height.is_multiple_of(y) {
            let sides = if y > 1 { "an even width and height" } else { "an even width" };
            let even = (width.next_multiple_of(x), height.next_multiple_of(y));
            let full = known
                .iter()
                .find(|name| name.contains("444"))
                .map_or(String::new(), |name| format!(", or pass --pix-fmt {name}"));
            return Err(Error::invalid(format!("size {width}x{height}"), format!("{name} needs {sides}"))
                .with_hint(format!("choose {}x{}{full}", even.0, even.1)));
        }
    }
    Ok(pixel)
}

#[cfg(test)]
mod tests {
    use super::frame_rate;

    #[test]
    fn rates_are_exact() {
        let cases = [
            (8.0, (8, 1)),
            (25.0, (25, 1)),
            (23.976, (24_000, 1001)),
            (23.98, (24_000, 1001)),
            (24_000.0 / 1001.0, (24_000, 1001)),
            (29.97, (30_000, 1001)),
            (59.94, (60_000, 1001)),
            (12.5, (25, 2)),
            (0.5, (1, 2)),
            (25.0 / 3.0, (25, 3)),
            (8.333, (8333, 1000)),
            (0.01, (1, 100)),
            (1000.0, (1000, 1)),
        ];
        for (fps, (num, den)) in cases {
            let rate = frame_rate(fps).unwrap();
            assert_eq!((rate.0, rate.1), (num, den), "{fps}");
        }
        for fps in [0.0, -1.0, f64::NAN, f64::INFINITY, 1001.0] {
            assert!(frame_rate(fps).is_err(), "{fps}");
        }
        for i in 1..5000 {
            let fps = f64::from(i) * 0.031_7;
            let rate = frame_rate(fps).unwrap();
            let got = f64::from(rate.0) / f64::from(rate.1);
            assert!((got - fps).abs() < 0.005 + fps * 1e-6, "{fps} {got}");
        }
    }
}
