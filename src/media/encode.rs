//! Frames through an FFmpeg encoder into a container, one by one.

use std::path::PathBuf;

use ffmpeg_next::{Error as FfmpegError, Packet, Rational, codec, encoder, format, frame, threading};

use super::{
    colour::FromRgb, ffmpeg_error, file_url, options::Settings, pending::Pending, planes::Carrier,
    start_ffmpeg, target::Target,
};
use crate::{
    error::Result,
    video::{Frame, FrameSink, Original},
};

/// No codec decodes a frame more frames ahead of its time than this.
const MAX_REORDER: i64 = 64;

/// An open encoder and the container it writes into.
pub(super) struct Encoding {
    // Before `pending`: the file is closed before it is removed.
    output: format::context::Output,
    encoder: encoder::Video,
    time_base: Rational,
    stream_time_base: Rational,
    frames: i64,
    pending: Pending,
}

impl Encoding {
    pub fn open(target: &Target, width: usize, height: usize, settings: &Settings) -> Result<Self> {
        start_ffmpeg();
        let path = target.path();
        let pending = Pending::create(path)?;
        let url = file_url(pending.path())?;
        let mut output = format::output_as(&url, settings.muxer.name).map_err(ffmpeg_error("write", path))?;
        let time_base = settings.rate.invert();
        let encoder = open_encoder(width, height, settings, output.format().flags())
            .map_err(ffmpeg_error("open the encoder for", path))?;
        let header = |output: &mut format::context::Output| -> Result<(), FfmpegError> {
            let mut stream = output.add_stream(settings.encoder)?;
            stream.set_time_base(time_base);
            stream.set_avg_frame_rate(settings.rate);
            stream.set_parameters(&encoder);
            if let Some(tag) = settings.tag {
                // SAFETY: the stream and its parameters live as long as `output`, which is borrowed.
                unsafe { (*(*stream.as_mut_ptr()).codecpar).codec_tag = u32::from_le_bytes(tag) };
            }
            output.set_metadata(settings.metadata.iter().cloned().collect());
            output.write_header_with(settings.muxing()).map(drop)
        };
        header(&mut output).map_err(ffmpeg_error("write", path))?;
        let stream_time_base = output.stream(0).expect("one stream was added").time_base();
        Ok(Self { output, encoder, time_base, stream_time_base, frames: 0, pending })
    }

    /// Encodes the next frame and writes what packets that gives.
    pub fn send(&mut self, mut frame: frame::Video) -> Result<()> {
        frame.set_pts(Some(self.frames));
        self.frames += 1;
        let sent = self.encoder.send_frame(&frame).and_then(|()| self.write_packets());
        sent.map_err(ffmpeg_error("write", self.pending.target()))
    }

    /// Writes what the encoder still holds, closes the container and hands the whole file over.
    pub fn finish(mut self) -> Result<Pending> {
        let ended = (|| {
            self.encoder.send_eof()?;
            self.write_packets()?;
            self.output.write_trailer()
        })();
        ended.map_err(ffmpeg_error("write", self.pending.target()))?;
        Ok(self.pending)
    }

    fn write_packets(&mut self) -> Result<(), FfmpegError> {
        loop {
            let mut packet = Packet::empty();
            match self.encoder.receive_packet(&mut packet) {
                Ok(()) => {}
                Err(FfmpegError::Eof | FfmpegError::Other { errno: ffmpeg_next::error::EAGAIN }) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            // x265 (seen in 3.5) gives clips shorter than its delay a decoding time it never set.
            // So short, nothing is reordered, and each frame is decoded when it is shown.
            let plausible =
                |dts: i64| packet.pts().is_none_or(|pts| (pts - MAX_REORDER..=pts).contains(&dts));
            if !packet.dts().is_some_and(plausible) {
                packet.set_dts(packet.pts());
            }
            // Without it the last frame would have no length in some containers.
            packet.set_duration(1);
            packet.rescale_ts(self.time_base, self.stream_time_base);
            packet.set_stream(0);
            packet.write_interleaved(&mut self.output)?;
        }
    }
}

fn open_encoder(
    width: usize,
    height: usize,
    settings: &Settings,
    container: format::Flags,
) -> Result<encoder::Video, FfmpegError> {
    let mut encoder = codec::Context::new_with_codec(settings.encoder).encoder().video()?;
    encoder.set_width(u32::try_from(width).map_err(|_| FfmpegError::InvalidData)?);
    encoder.set_height(u32::try_from(height).map_err(|_| FfmpegError::InvalidData)?);
    encoder.set_aspect_ratio(Rational(1, 1));
    encoder.set_format(settings.pixel);
    encoder.set_time_base(settings.rate.invert());
    encoder.set_frame_rate(Some(settings.rate));
    encoder.set_colorspace(settings.colour.space);
    encoder.set_color_range(settings.colour.range);
    encoder.set_color_primaries(settings.colour.primaries);
    encoder.set_color_transfer_characteristic(settings.colour.transfer);
    encoder.set_flags(settings.flags(container));
    encoder.set_threading(threading::Config::count(settings.threads));
    encoder.open_with(settings.encoding())
}

/// A video file, or an animated WebP.
pub(super) struct VideoSink {
    encoding: Encoding,
    converter: FromRgb,
    /// For what is luma and chroma already.
    carrier: Option<Carrier>,
}

impl VideoSink {
    pub fn open(target: &Target, width: usize, height: usize, settings: &Settings) -> Result<Self> {
        let encoding = Encoding::open(target, width, height, settings)?;
        let (wide, high) = (encoding.encoder.width(), encoding.encoder.height());
        let converter = FromRgb::new(wide, high, settings.pixel, settings.colour)
            .map_err(ffmpeg_error("convert colours for", target.path()))?;
        Ok(Self { encoding, converter, carrier: Carrier::new(settings.pixel, settings.colour) })
    }
}

impl FrameSink for VideoSink {
    fn push(&mut self, frame: Frame) -> Result<()> {
        let converted = self.converter.convert(&frame);
        let action = "convert colours for";
        self.encoding.send(converted.map_err(ffmpeg_error(action, self.encoding.pending.target()))?)
    }

    fn push_original(&mut self, Original { frame, planes }: Original) -> Result<()> {
        match (&mut self.carrier, planes) {
            (Some(carrier), Some(planes)) => {
                let carried = carrier.carry(&planes);
                let action = "convert colours for";
                self.encoding.send(carried.map_err(ffmpeg_error(action, self.encoding.pending.target()))?)
            }
            _ => self.push(frame),
        }
    }

    fn finish(self: Box<Self>) -> Result<PathBuf> {
        self.encoding.finish()?.commit()
    }
}
