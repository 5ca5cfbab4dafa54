//! The sound of clips, carried over into a video as it is.

use std::path::{Path, PathBuf};

use ffmpeg_next::{
    Error as FfmpegError, Packet, Rational, codec, encoder, format, media, util::mathematics::Rescale as _,
};

use super::{
    ffmpeg_error, file_url,
    options::Muxer,
    pending::Pending,
    start_ffmpeg,
    target::{Format, Target},
};
use crate::error::Result;

/// A stretch of a video that has the sound of a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Sound {
    /// The clip; one without sound is silent.
    pub clip: PathBuf,
    /// The second of the video at which the clip begins.
    pub start: f64,
    /// Seconds of the clip that are shown.
    pub length: f64,
}

/// What became of the sound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SoundOutcome {
    /// The clips have none.
    Silent,
    /// It is in the video.
    Kept,
    /// It was left out, all or in part, for this reason.
    LeftOut(String),
}

/// Puts the sound of clips into the video at `target`, packet by packet, without encoding it anew. Where that can't
/// be done the video stays as it is.
pub fn add_sound(target: &Target, sounds: &[Sound]) -> Result<SoundOutcome> {
    start_ffmpeg();
    let mut tracks = Vec::new();
    let mut left_out = None;
    for sound in sounds {
        let Some(track) = Track::read(sound)? else { continue };
        match tracks.first() {
            Some(first) if !track.fits(first) => {
                left_out = Some(format!("the sound of {} is stored in another way", sound.clip.display()));
            }
            _ => tracks.push(track),
        }
    }
    let Some(first) = tracks.first() else { return Ok(SoundOutcome::Silent) };
    let holds = matches!(target.format(), Format::Mp4 | Format::Mov | Format::Mkv | Format::Webm);
    let Some(muxer) = Muxer::of(target.format()).filter(|_| holds) else {
        return Ok(SoundOutcome::LeftOut(format!("{} has no sound", target.format().name())));
    };
    let pending = Pending::create(target.path())?;
    match mux(target.path(), &pending, &muxer, first, &tracks) {
        Ok(()) => {
            pending.commit()?;
            Ok(left_out.map_or(SoundOutcome::Kept, SoundOutcome::LeftOut))
        }
        Err(Failure::Refused) => {
            let why = format!("{} can't hold {:?} sound", target.format().name(), first.parameters.id());
            Ok(SoundOutcome::LeftOut(why))
        }
        Err(Failure::Broken(error)) => Err(ffmpeg_error("write", target.path())(error)),
    }
}

/// The packets of a clip's sound, moved to their place in the video.
struct Track {
    parameters: codec::Parameters,
    time_base: Rational,
    packets: Vec<Packet>,
}

impl Track {
    fn read(sound: &Sound) -> Result<Option<Self>> {
        let path = &sound.clip;
        if path.is_dir() {
            return Ok(None);
        }
        let failed = |error| ffmpeg_error("read", path)(error);
        let mut input = format::input(&file_url(path)?).map_err(failed)?;
        let Some(stream) = input.streams().best(media::Type::Audio) else { return Ok(None) };
        let (index, time_base, parameters) = (stream.index(), stream.time_base(), stream.parameters());
        let tick = f64::from(time_base);
        // Picture and sound of a clip may begin at different times, which count from where its pictures begin.
        let zero = input.streams().best(media::Type::Video).map_or(0.0, |video| {
            let start = video.start_time();
            if start == ffmpeg_next::ffi::AV_NOPTS_VALUE {
                0.0
            } else {
                start as f64 * f64::from(video.time_base())
            }
        });
        let shift = ((sound.start - zero) / tick).round() as i64;
        let mut packets = Vec::new();
        loop {
            let mut packet = Packet::empty();
            match packet.read(&mut input) {
                Ok(()) if packet.stream() != index => {}
                Ok(()) => {
                    let at = packet.pts().or(packet.dts()).unwrap_or_default();
                    if (at as f64 * tick - zero) < sound.length {
                        packet.set_pts(packet.pts().map(|t| t + shift));
                        packet.set_dts(packet.dts().map(|t| t + shift));
                        packets.push(packet);
                    }
                }
                Err(FfmpegError::Eof) => break,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok((!packets.is_empty()).then_some(Self { parameters, time_base, packets }))
    }

    /// Whether one decoder can go from the other track to this one.
    fn fits(&self, other: &Self) -> bool {
        self.parameters.id() == other.parameters.id()
            && described(&self.parameters) == described(&other.parameters)
    }
}

/// What a decoder has to know beside the codec.
fn described(parameters: &codec::Parameters) -> (i32, i32, Vec<u8>) {
    // SAFETY: the parameters live through the block; `extradata` has `extradata_size` bytes, or is null with none.
    unsafe {
        let raw = &*parameters.as_ptr();
        let extra = match usize::try_from(raw.extradata_size) {
            Ok(size) if size > 0 && !raw.extradata.is_null() => {
                std::slice::from_raw_parts(raw.extradata, size).to_vec()
            }
            _ => Vec::new(),
        };
        (raw.sample_rate, raw.format, extra)
    }
}

enum Failure {
    /// The container doesn't take this sound.
    Refused,
    Broken(FfmpegError),
}

impl From<FfmpegError> for Failure {
    fn from(error: FfmpegError) -> Self {
        Self::Broken(error)
    }
}

fn mux(
    video: &Path,
    pending: &Pending,
    muxer: &Muxer,
    first: &Track,
    tracks: &[Track],
) -> Result<(), Failure> {
    let name = |path: &Path| file_url(path).map_err(|_| Failure::Broken(FfmpegError::InvalidData));
    let mut input = format::input(&name(video)?)?;
    let Some(pictures) = input.streams().best(media::Type::Video) else {
        return Err(Failure::Broken(FfmpegError::StreamNotFound));
    };
    let (index, picture_base) = (pictures.index(), pictures.time_base());
    let (rate, picture_parameters) = (pictures.avg_frame_rate(), pictures.parameters());
    let mut output = format::output_as(&name(pending.path())?, muxer.name)?;
    {
        let mut stream = output.add_stream(encoder::find(codec::Id::None))?;
        stream.set_parameters(picture_parameters);
        stream.set_time_base(picture_base);
        stream.set_avg_frame_rate(rate);
    }
    {
        let mut stream = output.add_stream(encoder::find(codec::Id::None))?;
        stream.set_parameters(first.parameters.clone());
        stream.set_time_base(first.time_base);
        // SAFETY: the stream and its parameters live as long as `output`, which is borrowed. A tag of another
        // container means nothing here.
        unsafe { (*(*stream.as_mut_ptr()).codecpar).codec_tag = 0 };
    }
    output.set_metadata(input.metadata().to_owned());
    let options = muxer.fixed.iter().copied().chain([("fflags", "+bitexact")]).collect();
    output.write_header_with(options).map(drop).map_err(|_| Failure::Refused)?;
    let bases = [0, 1].map(|i| output.stream(i).expect("two streams were added").time_base());

    let mut sound =
        tracks.iter().flat_map(|track| track.packets.iter().map(|packet| (track.time_base, packet)));
    let mut next = sound.next();
    let mut last = i64::MIN;
    let mut write_sound =
        |until: Option<f64>, output: &mut format::context::Output| -> Result<(), FfmpegError> {
            while let Some((base, packet)) = next {
                let at = packet.dts().or(packet.pts()).unwrap_or_default();
                if until.is_some_and(|until| at as f64 * f64::from(base) > until) {
                    return Ok(());
                }
                let mut packet = packet.clone();
                packet.rescale_ts(base, bases[1]);
                packet.set_stream(1);
                packet.set_position(-1);
                // Where one clip's sound reaches into the next one's, the later packets give way.
                let at = packet.dts().or(packet.pts()).unwrap_or_default();
                if at > last {
                    last = at;
                    packet.write_interleaved(output)?;
                }
                next = sound.next();
            }
            Ok(())
        };
    loop {
        let mut packet = Packet::empty();
        match packet.read(&mut input) {
            Ok(()) if packet.stream() != index => {}
            Ok(()) => {
                let at = packet.dts().or(packet.pts()).unwrap_or_default();
                write_sound(Some(at as f64 * f64::from(picture_base)), &mut output)?;
                if packet.duration() == 0 {
                    packet.set_duration(1.rescale(rate.invert(), picture_base));
                }
                packet.rescale_ts(picture_base, bases[0]);
                packet.set_stream(0);
                packet.set_position(-1);
                packet.write_interleaved(&mut output)?;
            }
            Err(FfmpegError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    write_sound(None, &mut output)?;
    output.write_trailer()?;
    Ok(())
}
