//! How much memory a clip needs and how much this process may still have.

use std::{fs, path::Path};

use crate::{
    app::loaded::Keep,
    error::{Error, Result},
    models::api::{Activations, Checkpoint, KeptBytes, Placement, Tiling, WeightBytes},
    video::VideoSpec,
};

const MIB: u64 = 1 << 20;

/// What the program itself needs: code, FFmpeg's encoder, a few frames.
const OWN: u64 = 64 * MIB;

/// Small tiles that every decoder of this program can work in.
const SMALL_TILES: Tiling = Tiling { spatial: Some((256, 192)), temporal: Some((16, 8)), context: 0 };

/// Refuses a clip that can't be held in memory, by an estimate from shapes alone, and says what could.
///
/// Only the CPU's memory is reckoned with: a GPU says for itself when it is full.
pub fn check(
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> Result<()> {
    match available() {
        Some(have) if place.device.is_cpu() => check_against(have, checkpoint, spec, place, tiling),
        _ => Ok(()),
    }
}

fn check_against(
    have: u64,
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> Result<()> {
    let peak = |spec: &VideoSpec, tiling: &Tiling| peak(checkpoint, spec, place, tiling);
    let (stage, need) = peak(spec, tiling);
    if need <= have {
        return Ok(());
    }
    let fits = |spec: &VideoSpec| peak(spec, tiling).1 <= have;
    let geometry = checkpoint.info().geometry;
    let mut ways = Vec::new();
    if peak(spec, &SMALL_TILES).1 <= have {
        ways.push("--vae-tile 256:192 --vae-tile-frames 16:8".to_owned());
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
    let hint = if ways.is_empty() {
        "the model itself is too large for this machine; use a smaller one".to_owned()
    } else {
        format!("this would fit: {}", ways.join(", or "))
    };
    Err(Error::OutOfMemory {
        what: stage.to_owned(),
        need_mib: need.div_ceil(MIB),
        have_mib: have / MIB,
        hint,
    })
}

/// The hungriest stage, and its bytes. Stages are loaded one after another, never together unless they are kept.
fn peak(
    checkpoint: &dyn Checkpoint,
    spec: &VideoSpec,
    place: &Placement,
    tiling: &Tiling,
) -> (&'static str, u64) {
    let weights = checkpoint.info().weight_bytes;
    stages(weights, checkpoint.kept(), checkpoint.activations(spec, place, tiling))
}

fn stages(weights: WeightBytes, kept: KeptBytes, activations: Activations) -> (&'static str, u64) {
    let KeptBytes { wanted, loaded } = kept;
    let yet_to_load = (wanted.text + wanted.denoiser + wanted.video)
        .saturating_sub(loaded.text + loaded.denoiser + loaded.video);
    let stages = [
        ("reading the prompt", weights.text.saturating_sub(wanted.text)),
        ("denoising", weights.denoiser.saturating_sub(wanted.denoiser).saturating_add(activations.denoise)),
        ("decoding", weights.video.saturating_sub(wanted.video).saturating_add(activations.decode)),
    ];
    let (stage, bytes) = stages.into_iter().max_by_key(|(_, bytes)| *bytes).expect("there are three stages");
    (stage, bytes.saturating_add(yet_to_load).saturating_add(OWN))
}

/// The stages that this machine can keep in memory through many clips up to this one's size. The denoiser comes
/// first, since each clip needs it; the text encoder last, since what it says of a prompt can be kept instead.
#[must_use]
pub fn keep(checkpoint: &dyn Checkpoint, spec: &VideoSpec, place: &Placement, tiling: &Tiling) -> Keep {
    if !place.device.is_cpu() {
        // A GPU isn't asked what it has; the text encoder is what fills it.
        return Keep { text: false, ..Keep::ALL };
    }
    let Some(have) = available() else { return Keep::ALL };
    let weights = checkpoint.info().weight_bytes;
    let activations = checkpoint.activations(spec, place, tiling);
    let fits = |keep: &Keep| {
        let kept = KeptBytes { wanted: keep.of(weights), loaded: WeightBytes::default() };
        stages(weights, kept, activations).1 <= have
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
        let activations = Activations { denoise: 5, decode: 40 };
        let need = |wanted, loaded| {
            let (stage, bytes) = stages(weights, KeptBytes { wanted, loaded }, activations);
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
