//! Looks at everything a render needs on this machine, and says what to do about what is wrong.

use std::{num::NonZeroUsize, path::Path, time::Instant};

use serde::Serialize;

use crate::{
    app::{clip::device_name, memory},
    device::{self, DTypeChoice, DeviceChoice, isa::Isa},
    error::{Error, Result},
    event::Silent,
    hub::{Hub, free_bytes},
    media::{Codec, ffmpeg_version},
    models::{
        api::{Checkpoint, DecodeOptions, Pass, Placement},
        registry,
        source::ModelSource,
    },
    pipeline::{
        conditions::Conditions,
        noise::Drawn,
        pan::Pan,
        render::{RenderRequest, Renderer},
    },
    video::{Frames, VideoSpec},
};

const MIB: u64 = 1 << 20;
/// With less, only the embedded model runs.
const LITTLE_MEMORY: u64 = 1 << 30;
/// With less, no published model can be fetched.
const LITTLE_DISK: u64 = 4 << 30;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As it should be.
    Fine,
    /// Something is missing that some renders need.
    Warning,
    /// Nothing can be made like that.
    Broken,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn fine(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Fine, found: found.into(), fix: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn broken(name: &'static str, error: &Error) -> Self {
        let mut found = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            found = format!("{found}: {cause}");
            source = cause.source();
        }
        let fix = error.hint().or_else(|| Some("reinstall the program, and report this if it stays".into()));
        Self { name, state: State::Broken, found, fix }
    }
}

/// Looks at everything. It takes a second or two; nothing is downloaded and nothing is left on the disk.
#[must_use]
pub fn examine(hub: &Hub) -> Vec<Check> {
    let mut checks = vec![program(), processor(), memory_check()];
    checks.push(gpu());
    checks.push(Check::fine("ffmpeg", ffmpeg_version()));
    checks.push(encoders());
    checks.push(cache(hub));
    checks.push(disk(hub.cache().root()));
    checks.push(hub_check(hub));
    checks.push(embedded());
    checks
}

/// An error if something is broken.
pub fn verdict(checks: &[Check]) -> Result<()> {
    let broken: Vec<&str> =
        checks.iter().filter(|check| check.state == State::Broken).map(|check| check.name).collect();
    match broken.is_empty() {
        true => Ok(()),
        false => Err(Error::Unfit { broken: broken.join(", ") }),
    }
}

fn program() -> Check {
    let features = [
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
    ];
    let built: Vec<&str> = features.into_iter().filter_map(|(name, on)| on.then_some(name)).collect();
    let built = if built.is_empty() { "no GPU".to_owned() } else { built.join(", ") };
    let (version, os, arch) = (env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    Check::fine("program", format!("sora {version} for {os} on {arch}, built with {built}"))
}

fn processor() -> Check {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut simd = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        for (name, there) in [
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
            ("AVX-512", std::arch::is_x86_feature_detected!("avx512f")),
        ] {
            simd.extend(there.then_some(name));
        }
        if simd.is_empty() {
            let fix = "use a processor with AVX2 or a GPU";
            return Check::warning("processor", format!("{threads} threads, without AVX2: very slow"), fix);
        }
    }
    #[cfg(target_arch = "aarch64")]
    simd.push("NEON");
    let text = format!("{threads} threads, {}; kernels for {}", simd.join(", "), Isa::chosen().name());
    Check::fine("processor", text)
}

fn memory_check() -> Check {
    match memory::available() {
        None => Check::fine("memory", "this system doesn't say how much is free"),
        Some(bytes) if bytes < LITTLE_MEMORY => Check::warning(
            "memory",
            format!("{} MiB free", bytes / MIB),
            "close other programs; small sizes (--size, --frames) and --vae-tile need least",
        ),
        Some(bytes) => Check::fine("memory", format!("{} MiB free", bytes / MIB)),
    }
}

fn gpu() -> Check {
    match DeviceChoice::Auto.open() {
        Err(error) => Check::broken("device", &error),
        Ok(found) => {
            let place = Placement { dtype: DTypeChoice::Auto.resolve(&found), device: found };
            let name = format!("{} in {}", device_name(&place), place.dtype.as_str());
            if !cfg!(feature = "cuda") && device::has_nvidia_driver() {
                let fix = "build with `--features cuda` to use the NVIDIA card of this machine";
                return Check::warning("device", name, fix);
            }
            Check::fine("device", name)
        }
    }
}

fn encoders() -> Check {
    let (there, missing): (Vec<Codec>, Vec<Codec>) =
        Codec::ALL.into_iter().partition(|codec| codec.encoder_name().is_some());
    let list = |codecs: &[Codec]| codecs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if there.is_empty() {
        let fix = "install FFmpeg's libraries with their encoders, or write .gif, .png or .y4m".into();
        let found = "this FFmpeg can encode no video".into();
        return Check { name: "encoders", state: State::Broken, found, fix: Some(fix) };
    }
    match missing.is_empty() {
        true => Check::fine("encoders", list(&there)),
        false => Check::warning(
            "encoders",
            format!("{}, but not {}", list(&there), list(&missing)),
            "install a full build of FFmpeg for these, or use the others with --codec",
        ),
    }
}

fn cache(hub: &Hub) -> Check {
    let root = hub.cache().root();
    let there = root.ancestors().find(|folder| folder.exists()).unwrap_or(root);
    if let Err(error) = tempfile::tempfile_in(there) {
        let found = format!("{} can't be written: {error}", root.display());
        return Check::warning("cache", found, "set HF_HUB_CACHE to a folder of your own");
    }
    match hub.cache().list() {
        Err(error) => Check::warning("cache", error.to_string(), "set HF_HUB_CACHE to a folder of your own"),
        Ok(cached) => {
            let total: u64 = cached.iter().map(|repo| repo.bytes).sum();
            let found = format!("{} in {}, {} MiB", models(cached.len()), root.display(), total / MIB);
            let unfinished: Vec<&str> =
                cached.iter().filter(|repo| repo.unfinished_bytes > 0).map(|repo| repo.id.as_str()).collect();
            match unfinished.first() {
                None => Check::fine("cache", found),
                Some(first) => Check::warning(
                    "cache",
                    format!("{found}; unfinished: {}", unfinished.join(", ")),
                    format!(
                        "`sora models pull {first}` goes on with it, `sora models rm {first}` deletes it"
                    ),
                ),
            }
        }
    }
}

fn models(count: usize) -> String {
    if count == 1 { "1 model".into() } else { format!("{count} models") }
}

fn disk(root: &Path) -> Check {
    match free_bytes(root) {
        None => Check::fine("disk", "this system doesn't say how much is free"),
        Some(bytes) if bytes < LITTLE_DISK => Check::warning(
            "disk",
            format!("{} MiB free for models", bytes / MIB),
            "delete models with `sora models rm`, or set HF_HUB_CACHE to another disk",
        ),
        Some(bytes) => Check::fine("disk", format!("{} MiB free for models", bytes / MIB)),
    }
}

fn hub_check(hub: &Hub) -> Check {
    let config = hub.config();
    let token = if config.token.is_some() { "a token" } else { "no token" };
    let offline = if config.offline { ", offline: only what is cached is used" } else { "" };
    Check::fine("hub", format!("{}, {token}{offline}", config.endpoint))
}

/// One step of the embedded model, from prompt to picture.
fn embedded() -> Check {
    let clock = Instant::now();
    match render_once() {
        Ok((width, height)) => {
            let seconds = clock.elapsed().as_secs_f64();
            Check::fine("embedded model", format!("one step at {width}x{height} in {seconds:.1} s"))
        }
        Err(error) => Check::broken("embedded model", &error),
    }
}

fn render_once() -> Result<(usize, usize)> {
    let checkpoint = registry::open(&ModelSource::Embedded)?;
    let device = DeviceChoice::Auto.open()?;
    let place = Placement { dtype: DTypeChoice::Auto.resolve(&device), device };
    let info = checkpoint.info();
    let unit = |side: usize| info.geometry.sides_around(side.min(64)).1;
    let spec = VideoSpec {
        width: unit(info.defaults.width),
        height: unit(info.defaults.height),
        frames: info.geometry.frames_around(1).1,
        fps: info.defaults.fps,
    };
    let request = request(checkpoint.as_ref(), spec);
    let renderer = Renderer { checkpoint: checkpoint.as_ref(), place, reporter: &Silent };
    renderer.check(&request)?;
    let texts = renderer.encode(&request)?;
    let denoised = renderer.denoise(&request, texts, &mut |_| Ok(()))?;
    let mut frames = Frames::default();
    renderer.decode(&denoised.latents, &spec, request.seed, &denoised.drawn, &request.decode, &mut frames)?;
    Ok((spec.width, spec.height))
}

fn request(checkpoint: &dyn Checkpoint, spec: VideoSpec) -> RenderRequest {
    let defaults = &checkpoint.info().defaults;
    RenderRequest {
        prompt: "a red heart in the sky".into(),
        negative_prompt: defaults.negative_prompt.clone(),
        spec,
        pass: Pass::default(),
        seed: 1,
        max_sequence_length: defaults.max_sequence_length,
        decode: DecodeOptions::default(),
        conditions: Conditions::default(),
        pan: Pan::default(),
        latents: None,
        beside: None,
        refine: false,
        start: 0,
        drawn: Drawn::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, hub::HubConfig};

    #[test]
    fn what_is_broken_is_an_error() {
        let fine = Check::fine("a", "all well");
        let warning = Check::warning("b", "hm", "do this");
        verdict(&[fine.clone(), warning]).unwrap();
        let broken = Check::broken("c", &Error::invalid("x", "y").with_hint("z"));
        assert_eq!(broken.fix.as_deref(), Some("z"));
        let error = verdict(&[fine, broken]).unwrap_err();
        assert_eq!((error.kind(), error.to_string().contains('c')), (ErrorKind::Resources, true));
    }

    #[test]
    fn a_cache_that_cant_be_listed_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let check = cache(&Hub::new(HubConfig::new(file.join("hub"))));
        assert_eq!(check.state, State::Warning, "{check:?}");
        assert!(check.fix.unwrap().contains("HF_HUB_CACHE"));
    }
}
