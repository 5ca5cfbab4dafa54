//! A limit on memory, and the tiles in which a decode stays under it.
//!
//! Of what a render holds, tiles of the decoder and the encoder are what can be had smaller without another picture,
//! so they are what is varied. They are cut finer step by step, and each step keeps what the ones before have cut:
//! the first that fits is taken, so that a lower limit never gives larger tiles.

use std::{fmt, iter, str::FromStr};

use serde::Serialize;

use crate::{
    app::memory::{self, Stage},
    error::{Error, Result},
    models::api::{Checkpoint, Placement, Tiling},
    video::{Size, VideoSpec},
};

const MIB: u64 = 1 << 20;

/// Latent cells read around tiles that nobody has chosen. Half as many were seen to change a pixel by 2 of 255.
pub(super) const CONTEXT: usize = 4;

/// What a forecast may be wrong by: a limit is held by what is forecast and this share of it.
const MARGIN: u64 = 8;

/// The most memory that a render may take.
///
/// ```
/// use sora::app::budget::MemoryLimit;
/// let limit: MemoryLimit = "1.5GiB".parse()?;
/// assert_eq!(limit.bytes(), 3 << 29);
/// # Ok::<(), sora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryLimit(u64);

impl MemoryLimit {
    /// The limit in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// What may be forecast of a render that keeps to it.
    #[must_use]
    pub fn room(self) -> u64 {
        self.0 / (MARGIN + 1) * MARGIN
    }

    /// The least limit that leaves this much room, in whole MiB.
    fn least_mib(room: u64) -> u64 {
        (room / MARGIN + 1).saturating_mul(MARGIN + 1).div_ceil(MIB)
    }
}

impl FromStr for MemoryLimit {
    type Err = Error;

    /// Bytes, or a number with a unit as coreutils reads them: K, M, G and T, with or without `iB`, are powers of
    /// 1024; kB, MB, GB and TB are powers of 1000.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            let why = "expected a size above 0, e.g. 4GiB, 800MiB, 6G or a number of bytes";
            Error::invalid(format!("amount of memory `{text}`"), why)
        };
        let text = text.trim();
        let (number, unit) =
            text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
        let unit = unit.to_ascii_lowercase();
        let (base, power) = match unit.as_bytes() {
            [] | b"b" => (1024u64, 0),
            [prefix] | [prefix, b'i', b'b'] => (1024, power(*prefix).ok_or_else(refuse)?),
            [prefix, b'b'] => (1000, power(*prefix).ok_or_else(refuse)?),
            _ => return Err(refuse()),
        };
        let unit = base.pow(power);
        let number = number.trim_end();
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(unit),
            Err(_) if number.starts_with(|c: char| c.is_ascii_digit()) => {
                let bytes = number.parse::<f64>().map_err(|_| refuse())? * unit as f64;
                (bytes.is_finite() && bytes < u64::MAX as f64).then_some(bytes as u64)
            }
            Err(_) => None,
        };
        bytes.filter(|bytes| *bytes > 0).map(Self).ok_or_else(refuse)
    }
}

/// The power of its base that a prefix means.
fn power(prefix: u8) -> Option<u32> {
    b"kmgt".iter().zip(1..).find(|(known, _)| **known == prefix).map(|(_, power)| power)
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(MIB) {
            write!(f, "{} MiB", self.0 / MIB)
        } else {
            write!(f, "{} bytes", self.0)
        }
    }
}

/// What may be chosen of how a decode is cut; the rest is the user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Free {
    pub spatial: bool,
    pub temporal: bool,
    pub context: bool,
}

impl Free {
    /// What a user has left open.
    pub fn beside(asked: &Tiling, context: Option<usize>) -> Self {
        let (spatial, temporal) = (asked.spatial.is_none(), asked.temporal.is_none());
        Self { spatial, temporal, context: context.is_none() && (spatial || temporal) }
    }
}

/// Work that is to be done in memory, but for how it is cut.
#[derive(Clone, Copy)]
pub(super) struct Holding<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    /// What the model has in hand at a time: the clip, or its longest window.
    pub at_once: VideoSpec,
    /// What is decoded.
    pub whole: VideoSpec,
    /// The size of frames that are written.
    pub size: Size,
    pub place: &'a Placement,
    /// Whether pictures or clips go through the encoder.
    pub encodes: bool,
    /// Whether the latents are there already.
    pub decodes_only: bool,
}

/// How work is cut to keep to a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fit {
    pub tiling: Tiling,
    /// The hungriest stage in these tiles, and what it needs.
    stage: Stage,
    bytes: u64,
    limit: MemoryLimit,
}

impl Fit {
    pub fn fits(&self) -> bool {
        self.bytes <= self.limit.room()
    }

    /// What there is to say of tiles that differ from those before.
    pub fn note(&self, before: &Tiling) -> Option<String> {
        (self.tiling != *before)
            .then(|| format!("decoding in {}, to stay under {}", describe(&self.tiling), self.limit))
    }
}

/// That a limit is too low.
#[derive(Debug, Clone, Serialize)]
pub struct Excess {
    /// The stage that needs most.
    pub stage: &'static str,
    /// The least limit that would do.
    pub least_mib: u64,
    #[serde(skip)]
    limit: MemoryLimit,
    #[serde(skip)]
    hint: String,
}

impl Excess {
    /// The same as an error.
    #[must_use]
    pub fn error(&self) -> Error {
        let Self { stage, least_mib, limit, hint } = self.clone();
        Error::OverLimit { what: stage.to_owned(), least_mib, limit: limit.to_string(), hint }
    }
}

/// A decode's tiles in words.
#[must_use]
pub fn describe(tiling: &Tiling) -> String {
    let part = |what: &str, unit: &str, cut: Option<(usize, usize)>| {
        cut.map(|(length, step)| format!("{what} of {length} {unit} every {step}"))
    };
    let parts = [part("tiles", "pixels", tiling.spatial), part("runs", "frames", tiling.temporal)];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return "one piece".to_owned();
    }
    format!("{}, {} latent cells read around each", parts.join(" and "), tiling.context)
}

impl Holding<'_> {
    /// Cuts a decode so that the work keeps to a limit; where nothing does, so that it takes the least.
    pub fn fit(&self, limit: MemoryLimit, tiling: Tiling, free: Free) -> Fit {
        let fit = |tiling: Tiling| {
            let (stage, bytes) = self.peak(&tiling);
            Fit { tiling, stage, bytes, limit }
        };
        let mut last = fit(tiling);
        if last.fits() {
            return last;
        }
        for tiling in self.ever_finer(tiling, free) {
            last = fit(tiling);
            if last.fits() {
                break;
            }
        }
        last
    }

    /// Sets how passes are decoded so that they keep to a limit, or says what would. What was chosen is returned in
    /// words.
    pub fn keep_to<'t>(
        &self,
        limit: Option<MemoryLimit>,
        free: Free,
        tilings: impl IntoIterator<Item = &'t mut Tiling>,
    ) -> Result<Option<String>> {
        let mut tilings: Vec<_> = tilings.into_iter().collect();
        let (Some(limit), Some(last)) = (limit, tilings.last()) else { return Ok(None) };
        let before = **last;
        let fit = self.fit(limit, before, free);
        if let Some(excess) = self.excess(&fit) {
            return Err(excess.error());
        }
        if fit.tiling != before {
            for tiling in &mut tilings {
                **tiling = fit.tiling;
            }
        }
        Ok(fit.note(&before))
    }

    /// What is said where the work can't be held, or not beside what a checkpoint keeps for other clips.
    pub fn excess(&self, fit: &Fit) -> Option<Excess> {
        let Fit { limit, tiling, .. } = fit;
        let on_cpu = self.place.device.is_cpu();
        let kept = || memory::needs(self.checkpoint, &self.at_once, self.place, tiling, self.encodes);
        let beside_kept = kept().into_iter().map(|need| (need.stage, need.sum()));
        let beside_kept = beside_kept.filter(|(stage, _)| !self.decodes_only || *stage == Stage::Decode);
        let worst = beside_kept.max_by_key(|(_, bytes)| *bytes).filter(|_| on_cpu && fit.fits());
        let (stage, bytes) = worst.unwrap_or((fit.stage, fit.bytes));
        if bytes <= limit.room() {
            return None;
        }
        let least_mib = MemoryLimit::least_mib(bytes);
        let ways =
            memory::ways(limit.room(), self.checkpoint, &self.at_once, self.place, tiling, self.encodes);
        let ways: Vec<_> = ways.into_iter().filter(|way| !way.starts_with("--vae-tile")).collect();
        let mut hint = format!("pass --max-memory {least_mib}MiB");
        if !ways.is_empty() && on_cpu && !self.decodes_only {
            hint = format!("{hint}; {}", memory::hint(&ways));
        }
        Some(Excess { stage: stage.name(), least_mib, limit: *limit, hint })
    }

    /// What each stage takes: of the memory that it computes in.
    fn stages(&self, tiling: &Tiling) -> impl Iterator<Item = (Stage, u64)> {
        let needs = |spec: &VideoSpec| memory::needs_alone(self.checkpoint, spec, self.place, tiling);
        let (on_cpu, encodes, decodes_only) = (self.place.device.is_cpu(), self.encodes, self.decodes_only);
        let VideoSpec { frames, fps, .. } = self.whole;
        let written = VideoSpec { width: self.size.width, height: self.size.height, frames, fps };
        let larger = memory::encoder_bytes(&written).saturating_sub(memory::encoder_bytes(&self.whole));
        needs(&self.at_once)
            .into_iter()
            .zip(needs(&self.whole))
            .map(move |(need, whole)| match need.stage {
                Stage::Decode => (whole, larger),
                _ => (need, 0),
            })
            .filter(move |(need, _)| encodes || need.stage != Stage::Encode)
            .filter(move |(need, _)| !decodes_only || need.stage == Stage::Decode)
            .map(move |(need, larger)| {
                let own = if on_cpu { need.own.saturating_add(larger) } else { 0 };
                (need.stage, need.weights.saturating_add(need.working).saturating_add(own))
            })
    }

    /// The hungriest stage, and what it takes.
    fn peak(&self, tiling: &Tiling) -> (Stage, u64) {
        self.stages(tiling).max_by_key(|(_, bytes)| *bytes).unwrap_or((Stage::Decode, 0))
    }

    /// What the stages take that tiles make smaller.
    fn cut_bytes(&self, tiling: &Tiling) -> u64 {
        let cut = self.stages(tiling).filter(|(stage, _)| matches!(stage, Stage::Decode | Stage::Encode));
        cut.map(|(_, bytes)| bytes).max().unwrap_or_default()
    }

    /// Tilings that each take less than the one before, and are larger than it nowhere.
    fn ever_finer(&self, first: Tiling, free: Free) -> impl Iterator<Item = Tiling> {
        let uncut = first.spatial.is_none() && first.temporal.is_none();
        let context = if uncut && free.context { first.context.max(CONTEXT) } else { first.context };
        let begin = Tiling { context, ..first };
        let mut bytes = self.cut_bytes(&first);
        iter::successors(Some(begin), move |tiling| {
            let next = self.finer(tiling, free, bytes)?;
            bytes = self.cut_bytes(&next);
            Some(next)
        })
        .skip(1)
    }

    /// The next finer tiling: shorter runs or smaller tiles, whichever saves more for what it costs in time; less
    /// around them where tiles would be small beside that.
    fn finer(&self, tiling: &Tiling, free: Free, bytes: u64) -> Option<Tiling> {
        let geometry = self.checkpoint.info().geometry;
        let grid = geometry.grid(&self.whole);
        let saves = |next: &Tiling| self.cut_bytes(next) < bytes;
        let mut context = tiling.context;
        loop {
            let tiling = Tiling { context, ..*tiling };
            let side =
                tiling.spatial.map_or(grid.height.max(grid.width), |(side, _)| side / geometry.spatial);
            let run = tiling.temporal.map_or(grid.frames, |(run, _)| run / geometry.temporal);
            let sides = || shorter(side, (2 * context).max(2)).filter(|_| free.spatial);
            let runs = || shorter(run, context.max(1)).filter(|_| free.temporal);
            let narrow = |side| Tiling { spatial: Some(cut(side, geometry.spatial)), ..tiling };
            let short = |run| Tiling { temporal: Some(cut(run, geometry.temporal)), ..tiling };
            let spatial = sides().map(narrow).find(saves);
            let temporal = runs().map(short).find(saves);
            let next = spatial.into_iter().chain(temporal).max_by(|a, b| {
                let (a, b) = (self.thrift(&tiling, bytes, a), self.thrift(&tiling, bytes, b));
                a.total_cmp(&b)
            });
            // Tiles alone hold all pictures of a clip, and runs alone don't save what passes through the layers.
            let both = || {
                sides().flat_map(|side| {
                    runs().map(move |run| Tiling { temporal: short(run).temporal, ..narrow(side) })
                })
            };
            let next = next.or_else(|| both().find(saves));
            if next.is_some() || !free.context || context <= 1 {
                return next;
            }
            context /= 2;
            let less = Tiling { context, ..tiling };
            if saves(&less) {
                return Some(less);
            }
        }
    }

    /// Bytes saved for each operation more.
    fn thrift(&self, before: &Tiling, bytes: u64, after: &Tiling) -> f64 {
        let work = |tiling: &Tiling| self.checkpoint.work(&self.whole, 0, tiling).decode;
        bytes.saturating_sub(self.cut_bytes(after)) as f64 / (work(after) - work(before)).max(1.0)
    }
}

/// Lengths below `length`, down to the least that is worth it.
fn shorter(length: usize, least: usize) -> impl Iterator<Item = usize> {
    iter::successors(Some(length), |length| length.checked_sub((length / 4).max(1)))
        .skip(1)
        .take_while(move |length| *length >= least)
}

/// A tile of so many latent cells or frames, and its stride: tiles share one, unless that is much of them.
fn cut(length: usize, ratio: usize) -> (usize, usize) {
    (length * ratio, (length - usize::from(length >= 4)) * ratio)
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
