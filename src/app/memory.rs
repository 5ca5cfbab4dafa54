//! How much memory a clip needs and how much this process may still have.

use std::{fs, path::Path};

use candle_core::DType;

use crate::{
    app::{budget::MemoryLimit, check::Checked, loaded::Keep},
    error::{Error, Result},
    models::api::{Activations, Checkpoint, Geometry, KeptBytes, Placement, Tiling, WeightBytes},
    video::VideoSpec,
};

const MIB: u64 = 1 << 20;

/// What the program itself has: code, threads, a few frames. As measured on small clips.
const OWN: u64 = 56 * MIB;

/// The catalog's name of a text encoder that takes little memory.
const SMALL_TEXT_ENCODER: &str = "t5-xxl-q4";

/// Small tiles that every decoder of this program can work in.
const SMALL_TILES: Tiling =
    Tiling { denoise: None, spatial: Some((256, 192)), temporal: Some((16, 8)), context: 0 };

/// Refuses a clip that can't be held in memory, by an estimate from shapes alone, and says what could.
///
/// `encodes` says whether pictures or clips go through the encoder, too. Only the CPU's memory is reckoned with: a
/// GPU says for itself when it is full.
pub fn check(
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
    encodes: bool,
) -> Result<()> {
    match available() {
        Some(have) if place.device.is_cpu() => check_against(have, checkpoint, spec, place, tiling, encodes),
        _ => Ok(()),
    }
}

/// Refuses a clip whose decode can't be held in memory, see [`check`]: for long clips, of which no stage but this
/// one sees the whole.
pub fn check_decode(
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> Result<()> {
    let need = decode_need(checkpoint, spec, place, tiling);
    match available() {
        Some(have) if place.device.is_cpu() && need > have => Err(Error::OutOfMemory {
            what: Stage::Decode.name().to_owned(),
            need_mib: need.div_ceil(MIB),
            have_mib: have / MIB,
            hint: hint(&decode_ways(have, checkpoint, spec, place, tiling)),
        }),
        _ => Ok(()),
    }
}

fn decode_need(checkpoint: &dyn Checkpoint, spec: &VideoSpec, place: &Placement, tiling: &Tiling) -> u64 {
    let needs = needs(checkpoint, spec, place, tiling, false);
    needs.iter().filter(|need| need.stage == Stage::Decode).map(Need::sum).max().unwrap_or_default()
}

/// Flags with which a decode would fit into `have` bytes, each by itself.
pub(super) fn decode_ways(
    have: u64,
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> Vec<String> {
    let holds = |spec: &VideoSpec, place: &Placement, tiling: &Tiling| {
        decode_need(checkpoint, spec, place, tiling) <= have
    };
    flags(&holds, &checkpoint.info().geometry, spec, place, tiling)
}

fn check_against(
    have: u64,
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
    encodes: bool,
) -> Result<()> {
    let (stage, need) = hungriest(&needs(checkpoint, spec, place, tiling, encodes));
    if need <= have {
        return Ok(());
    }
    Err(Error::OutOfMemory {
        what: stage.name().to_owned(),
        need_mib: need.div_ceil(MIB),
        have_mib: have / MIB,
        hint: hint(&ways(have, checkpoint, spec, place, tiling, encodes)),
    })
}

/// A sentence on flags that would help.
pub(super) fn hint(ways: &[String]) -> String {
    match ways.is_empty() {
        true => "the model itself is too large for this machine; use a smaller one".to_owned(),
        false => format!("this would fit: {}", ways.join(", or ")),
    }
}

/// Flags with which a clip would fit into `have` bytes, each by itself.
pub(super) fn ways(
    have: u64,
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
    encodes: bool,
) -> Vec<String> {
    let holds = |spec: &VideoSpec, place: &Placement, tiling: &Tiling| {
        hungriest(&needs(checkpoint, spec, place, tiling, encodes)).1 <= have
    };
    let mut ways = flags(&holds, &checkpoint.info().geometry, spec, place, tiling);
    let needs = needs(checkpoint, spec, place, tiling, encodes);
    let too_large = |need: &Need| need.sum() > have;
    // The text encoder alone is too large: its small form has about a third of its 16-bit one.
    let small = checkpoint.info().weight_bytes.text / 3 + needs[0].working + needs[0].own;
    if too_large(&needs[0]) && !needs[1..].iter().any(too_large) && small <= have {
        ways.push(format!(
            "--text-encoder with the file that `sora models pull {SMALL_TEXT_ENCODER}` prints"
        ));
    }
    ways
}

/// Flags with which `holds` holds, each by itself.
fn flags(
    holds: &dyn Fn(&VideoSpec, &Placement, &Tiling) -> bool,
    geometry: &Geometry,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> Vec<String> {
    let fits = |spec: &VideoSpec| holds(spec, place, tiling);
    let mut ways = Vec::new();
    if holds(spec, place, &Tiling { denoise: tiling.denoise, ..SMALL_TILES }) {
        ways.push("--vae-tile 256:192 --vae-tile-frames 16:8".to_owned());
    }
    let half = Placement { dtype: DType::BF16, ..place.clone() };
    if place.dtype == DType::F32 && holds(spec, &half, tiling) {
        ways.push("--dtype bf16".to_owned());
    }
    let unit_t = geometry.temporal * geometry.patch_t;
    let shorter =
        (1..=spec.frames / unit_t).map(|cut| VideoSpec { frames: spec.frames - cut * unit_t, ..*spec });
    ways.extend(shorter.filter(|s| s.frames > 0).find(fits).map(|s| format!("--frames {}", s.frames)));
    let unit = geometry.spatial * geometry.patch;
    let smaller = (1..20).rev().map(|twentieths| {
        let side = |pixels: usize| (pixels * twentieths / 20 / unit).max(1) * unit;
        VideoSpec { width: side(spec.width), height: side(spec.height), ..*spec }
    });
    ways.extend(smaller.into_iter().find(fits).map(|s| format!("--size {}x{}", s.width, s.height)));
    ways
}

/// A part of a render that is in memory by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Text,
    Encode,
    Denoise,
    Decode,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "reading the prompt",
            Self::Encode => "encoding pictures",
            Self::Denoise => "denoising",
            Self::Decode => "decoding",
        }
    }
}

/// What a stage needs, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    pub stage: Stage,
    /// Its weights, and others that stay in memory.
    pub weights: u64,
    /// The most that it holds beside them.
    pub working: u64,
    /// What the program itself has then.
    pub own: u64,
}

impl Need {
    pub fn sum(&self) -> u64 {
        self.weights.saturating_add(self.working).saturating_add(self.own)
    }
}

/// What each stage needs, in order. Stages are loaded one after another, never together unless they are kept.
pub(super) fn needs(
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
    encodes: bool,
) -> Vec<Need> {
    let weights = checkpoint.resident(place);
    let kept = checkpoint.kept();
    let kept = KeptBytes { wanted: share(kept.wanted, weights), loaded: share(kept.loaded, weights) };
    let mut needs = stages(weights, kept, checkpoint.activations(spec, place, tiling), encoder_bytes(spec));
    needs.retain(|need| encodes || need.stage != Stage::Encode);
    needs
}

/// The part of some weights that another reckoning of theirs has anything of.
fn share(of: WeightBytes, weights: WeightBytes) -> WeightBytes {
    let share = |some: u64, all: u64| if some > 0 { all } else { 0 };
    WeightBytes {
        text: share(of.text, weights.text),
        denoiser: share(of.denoiser, weights.denoiser),
        video: share(of.video, weights.video),
    }
}

/// What each stage needs of a clip where nothing is kept in memory for other clips.
pub(super) fn needs_alone(
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> Vec<Need> {
    let activations = checkpoint.activations(spec, place, tiling);
    stages(checkpoint.resident(place), KeptBytes::default(), activations, encoder_bytes(spec))
}

/// What a video encoder holds of the frames that it has been given: measured on H.264 at its usual settings, from
/// 24 to 1,200 frames of 1280×720.
pub(super) fn encoder_bytes(spec: &VideoSpec) -> u64 {
    const AHEAD: usize = 43;
    (spec.width * spec.height * spec.frames.min(AHEAD)) as u64 * 9 / 2
}

/// The hungriest stage, and its bytes.
fn hungriest(needs: &[Need]) -> (Stage, u64) {
    let need = needs.iter().max_by_key(|need| need.sum()).expect("a render has stages");
    (need.stage, need.sum())
}

fn stages(weights: WeightBytes, kept: KeptBytes, activations: Activations, encoder: u64) -> Vec<Need> {
    let KeptBytes { wanted, loaded } = kept;
    let yet_to_load = (wanted.text + wanted.denoiser + wanted.video)
        .saturating_sub(loaded.text + loaded.denoiser + loaded.video);
    let need = |stage, weights: u64, kept: u64, working, own| Need {
        stage,
        weights: weights.saturating_sub(kept).saturating_add(yet_to_load),
        working,
        own,
    };
    vec![
        need(Stage::Text, weights.text, wanted.text, activations.text, OWN),
        need(Stage::Encode, weights.video, wanted.video, activations.encode, OWN),
        need(Stage::Denoise, weights.denoiser, wanted.denoiser, activations.denoise, OWN),
        need(Stage::Decode, weights.video, wanted.video, activations.decode, OWN + encoder),
    ]
}

/// The stages that this machine can keep in memory through many clips up to this one's size, and under a limit. The
/// denoiser comes first, since each clip needs it; the text encoder last, since what it says of a prompt can be kept
/// instead.
#[must_use]
pub fn keep(checkpoint: &dyn Checkpoint, clip: &Checked, limit: Option<MemoryLimit>) -> Keep {
    let Checked { spec, at_once, tiling, place, .. } = clip;
    if !place.device.is_cpu() {
        // A GPU isn't asked what it has; the text encoder is what fills it.
        return Keep { text: false, ..Keep::ALL };
    }
    let have = available().into_iter().chain(limit.map(MemoryLimit::room)).min();
    let Some(have) = have else { return Keep::ALL };
    let weights = checkpoint.resident(place);
    let decode = checkpoint.activations(spec, place, tiling).decode;
    let activations = Activations { encode: 0, decode, ..checkpoint.activations(at_once, place, tiling) };
    let fits = |keep: &Keep| {
        let kept = KeptBytes { wanted: keep.of(weights), loaded: WeightBytes::default() };
        hungriest(&stages(weights, kept, activations, encoder_bytes(spec))).1 <= have
    };
    let ways = [Keep::ALL, Keep { text: false, ..Keep::ALL }, Keep { denoiser: true, ..Keep::NONE }];
    ways.into_iter().find(fits).unwrap_or(Keep::NONE)
}

/// Bytes that can be had without swapping: the least of what is free, what the control group leaves and what
/// the address-space limit leaves. Nothing where the system doesn't say.
#[must_use]
pub fn available() -> Option<u64> {
    [free(), control_group(), address_space()].into_iter().flatten().min()
}

fn free() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:").map(|kib| kib * 1024)
}

/// The names under which one version of the kernel's control groups tells about memory.
struct Groups {
    /// What a line of `/proc/self/cgroup` has before the group's path.
    line: &'static str,
    root: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Cached file pages are counted as used but given back when something else wants the room.
    cached: &'static str,
}

const GROUPS: [Groups; 2] = [
    Groups {
        line: "0::/",
        root: "/sys/fs/cgroup",
        limit: "memory.max",
        used: "memory.current",
        cached: "inactive_file ",
    },
    Groups {
        line: ":memory:/",
        root: "/sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cached: "total_inactive_file ",
    },
];

fn control_group() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    GROUPS.iter().filter_map(|groups| groups.leave(&own)).min()
}

impl Groups {
    /// What the group of this process and all above it leave.
    fn leave(&self, own: &str) -> Option<u64> {
        let path = own.lines().find_map(|line| line.split_once(self.line))?.1;
        let group = Path::new(self.root).join(path);
        let folders = group.ancestors().take_while(|folder| folder.starts_with(self.root));
        folders.filter_map(|folder| self.leaves(folder)).min()
    }

    fn leaves(&self, folder: &Path) -> Option<u64> {
        let number = |name| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, used) = (number(self.limit)?, number(self.used)?);
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached = field(&stat, self.cached).unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(cached)))
    }
}

fn address_space() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = field(&limits, "Max address space")?;
    let used = field(&fs::read_to_string("/proc/self/status").ok()?, "VmSize:")? * 1024;
    Some(limit.saturating_sub(used))
}

/// The number after `name` at the head of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_counts_until_it_is_loaded() {
        let weights = WeightBytes { text: 60, denoiser: 20, video: 10 };
        let activations = Activations { text: 0, denoise: 5, decode: 40, encode: 0 };
        let need = |wanted, loaded| {
            let (stage, bytes) = hungriest(&stages(weights, KeptBytes { wanted, loaded }, activations, 0));
            let stage = stage.name();
            (stage, bytes - OWN)
        };
        let none = WeightBytes::default();
        assert_eq!(need(none, none), ("reading the prompt", 60));
        assert_eq!(need(weights, none), ("decoding", 130));
        assert_eq!(need(weights, weights), ("decoding", 40));
        let small = Keep { text: false, ..Keep::ALL }.of(weights);
        assert_eq!(need(small, none), ("reading the prompt", 90));
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "MemTotal: 10 kB\nMemAvailable:    7 kB\nMax address space  unlimited  unlimited\n";
        assert_eq!(field(text, "MemAvailable:"), Some(7));
        assert_eq!(field(text, "Max address space"), None);
        assert_eq!(field(text, "Swap:"), None);
    }
}
