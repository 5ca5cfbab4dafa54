//! A checkpoint whose stages stay in memory between clips, and what its text encoder said of each prompt.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::Tensor;

use crate::{
    error::Result,
    models::api::{
        Activations, Checkpoint, ClipContext, Conditioning, DecodeNoise, DecodeOptions, Denoiser, KeptBytes,
        LatentGrid, LatentStatistics, ModelInfo, Placement, Posterior, ScheduleSpec, Skip, StepCache,
        TextEncoder, TextStates, Tiling, Timestep, VideoDecoder, VideoEncoder, WeightBytes, Work,
    },
    video::VideoSpec,
};

/// Bytes of encoded prompts that are kept at most.
const MOST_TEXT: usize = 256 << 20;

/// Which stages stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The text encoder. If it doesn't stay, prompts that were announced are encoded all at once.
    pub text: bool,
    /// The denoiser.
    pub denoiser: bool,
    /// The video decoder and encoder.
    pub video: bool,
}

impl Keep {
    /// All of them.
    pub const ALL: Self = Self { text: true, denoiser: true, video: true };
    /// None of them.
    pub const NONE: Self = Self { text: false, denoiser: false, video: false };

    /// The share of these weights that stays.
    #[must_use]
    pub fn of(self, weights: WeightBytes) -> WeightBytes {
        let share = |kept: bool, bytes: u64| if kept { bytes } else { 0 };
        WeightBytes {
            text: share(self.text, weights.text),
            denoiser: share(self.denoiser, weights.denoiser),
            video: share(self.video, weights.video),
        }
    }
}

/// A checkpoint that loads each stage once, for one device and number type. Clones share what is loaded.
///
/// ```
/// use sora::{app::loaded::{Keep, Loaded}, models::{registry, source::ModelSource}};
/// let loaded = Loaded::new(registry::open(&ModelSource::Embedded)?, Keep::ALL);
/// assert_eq!(loaded.texts(), 0);
/// # Ok::<(), sora::Error>(())
/// ```
#[derive(Clone)]
pub struct Loaded(Arc<Shared>);

struct Shared {
    checkpoint: Box<dyn Checkpoint>,
    keep: Keep,
    text: Home<dyn TextEncoder>,
    denoiser: Home<dyn Denoiser>,
    decoder: Home<dyn VideoDecoder>,
    encoder: Home<dyn VideoEncoder>,
    prompts: Mutex<Prompts>,
}

/// A prompt and the number of tokens that it is padded or cut to.
type Prompt = (String, usize);

#[derive(Default)]
struct Prompts {
    known: HashMap<Prompt, TextStates>,
    bytes: usize,
    expected: VecDeque<Prompt>,
}

impl Loaded {
    /// Nothing is loaded before it is needed.
    #[must_use]
    pub fn new(checkpoint: Box<dyn Checkpoint>, keep: Keep) -> Self {
        Self(Arc::new(Shared {
            checkpoint,
            keep,
            text: Home::default(),
            denoiser: Home::default(),
            decoder: Home::default(),
            encoder: Home::default(),
            prompts: Mutex::default(),
        }))
    }

    /// The same checkpoint with nothing loaded yet, and other stages to keep.
    #[must_use]
    pub fn keeping(self, keep: Keep) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(alone) => Self::new(alone.checkpoint, keep),
            Err(shared) => Self::new(Box::new(Self(shared)), keep),
        }
    }

    /// Announces prompts, each with the tokens it is padded or cut to: a text encoder that doesn't stay in memory
    /// encodes them together with the next prompt.
    pub fn expect(&self, prompts: impl IntoIterator<Item = (String, usize)>) {
        lock(&self.0.prompts).expected = prompts.into_iter().collect();
    }

    /// How many prompts are kept encoded.
    #[must_use]
    pub fn texts(&self) -> usize {
        lock(&self.0.prompts).known.len()
    }
}

impl Checkpoint for Loaded {
    fn info(&self) -> &ModelInfo {
        self.0.checkpoint.info()
    }

    fn schedule(&self) -> &ScheduleSpec {
        self.0.checkpoint.schedule()
    }

    fn text_identity(&self) -> Result<Option<String>> {
        self.0.checkpoint.text_identity()
    }

    fn conditioning(&self) -> Conditioning {
        self.0.checkpoint.conditioning()
    }

    fn text_encoder(&self, place: &Placement) -> Result<Box<dyn TextEncoder>> {
        Ok(Box::new(Reader { shared: Arc::clone(&self.0), place: place.clone(), encoder: None }))
    }

    fn denoiser(&self, place: &Placement) -> Result<Box<dyn Denoiser>> {
        let load = || self.0.checkpoint.denoiser(place);
        Ok(Box::new(self.0.denoiser.lend(self.0.keep.denoiser, place, load)?))
    }

    fn video_decoder(&self, place: &Placement) -> Result<Box<dyn VideoDecoder>> {
        let load = || self.0.checkpoint.video_decoder(place);
        Ok(Box::new(self.0.decoder.lend(self.0.keep.video, place, load)?))
    }

    fn video_encoder(&self, place: &Placement) -> Result<Box<dyn VideoEncoder>> {
        let load = || self.0.checkpoint.video_encoder(place);
        Ok(Box::new(self.0.encoder.lend(self.0.keep.video, place, load)?))
    }

    fn latent_statistics(&self) -> Result<LatentStatistics> {
        self.0.checkpoint.latent_statistics()
    }

    fn latent_rgb(&self) -> Result<Option<(Tensor, Tensor)>> {
        self.0.checkpoint.latent_rgb()
    }

    fn activations(&self, spec: &VideoSpec, place: &Placement, tiling: &Tiling) -> Activations {
        self.0.checkpoint.activations(spec, place, tiling)
    }

    fn resident(&self, place: &Placement) -> WeightBytes {
        self.0.checkpoint.resident(place)
    }

    fn work(&self, spec: &VideoSpec, text_tokens: usize, tiling: &Tiling) -> Work {
        self.0.checkpoint.work(spec, text_tokens, tiling)
    }

    fn kept(&self) -> KeptBytes {
        let weights = self.info().weight_bytes;
        let loaded = Keep {
            text: self.0.text.is_full(),
            denoiser: self.0.denoiser.is_full(),
            video: self.0.decoder.is_full() || self.0.encoder.is_full(),
        };
        KeptBytes { wanted: self.0.keep.of(weights), loaded: loaded.of(weights) }
    }
}

/// Where a stage stays while nobody works with it.
struct Home<T: ?Sized>(Arc<Mutex<Option<Resident<T>>>>);

struct Resident<T: ?Sized> {
    place: Placement,
    stage: Box<T>,
}

impl<T: ?Sized> Default for Home<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: ?Sized> Home<T> {
    fn is_full(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// The stage that is here, if it is for this place, else a new one. It comes back here if it is to be kept.
    fn lend(&self, keep: bool, place: &Placement, load: impl FnOnce() -> Result<Box<T>>) -> Result<Lent<T>> {
        let here = lock(&self.0).take_if(|resident| {
            resident.place.dtype == place.dtype && resident.place.device.same_device(&place.device)
        });
        let resident = match here {
            Some(resident) => resident,
            None => Resident { place: place.clone(), stage: load()? },
        };
        Ok(Lent { resident: Some(resident), home: keep.then(|| Arc::clone(&self.0)) })
    }
}

/// A stage at work.
struct Lent<T: ?Sized> {
    /// Always there until it is dropped.
    resident: Option<Resident<T>>,
    home: Option<Arc<Mutex<Option<Resident<T>>>>>,
}

impl<T: ?Sized> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.resident.as_ref().expect("it leaves in `drop` only").stage
    }
}

impl<T: ?Sized> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.resident.as_mut().expect("it leaves in `drop` only").stage
    }
}

impl<T: ?Sized> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            *lock(home) = self.resident.take();
        }
    }
}

impl Denoiser for Lent<dyn Denoiser> {
    fn pack(&self, latents: &Tensor) -> Result<Tensor> {
        (**self).pack(latents)
    }

    fn unpack(&self, tokens: &Tensor, grid: LatentGrid) -> Result<Tensor> {
        (**self).unpack(tokens, grid)
    }

    fn begin(&mut self, clip: &ClipContext) -> Result<()> {
        (**self).begin(clip)
    }

    fn velocity(&mut self, tokens: &Tensor, timestep: &Timestep, branch: usize) -> Result<Tensor> {
        (**self).velocity(tokens, timestep, branch)
    }

    fn perturbed(
        &mut self,
        tokens: &Tensor,
        timestep: &Timestep,
        branch: usize,
        skip: &Skip,
    ) -> Result<Tensor> {
        (**self).perturbed(tokens, timestep, branch, skip)
    }

    fn step_cache(&mut self) -> Option<&mut StepCache> {
        (**self).step_cache()
    }
}

impl VideoDecoder for Lent<dyn VideoDecoder> {
    fn decode(
        &mut self,
        latents: &Tensor,
        noise: &mut dyn DecodeNoise,
        options: &DecodeOptions,
        emit: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        (**self).decode(latents, noise, options, emit)
    }
}

impl VideoEncoder for Lent<dyn VideoEncoder> {
    fn encode(&mut self, video: &Tensor, tiling: &Tiling) -> Result<Posterior> {
        (**self).encode(video, tiling)
    }
}

/// A text encoder that remembers, and that isn't loaded before a prompt comes that it doesn't know.
struct Reader {
    shared: Arc<Shared>,
    place: Placement,
    encoder: Option<Lent<dyn TextEncoder>>,
}

impl Reader {
    fn read(&mut self, prompt: &Prompt) -> Result<TextStates> {
        if let Some(known) = lock(&self.shared.prompts).known.get(prompt) {
            return Ok(known.clone());
        }
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            empty => {
                let Shared { checkpoint, keep, text, .. } = &*self.shared;
                empty.insert(text.lend(keep.text, &self.place, || checkpoint.text_encoder(&self.place))?)
            }
        };
        let states = encoder.encode(&prompt.0, prompt.1)?;
        let bytes = states.states.elem_count() * states.states.dtype().size_in_bytes();
        let mut prompts = lock(&self.shared.prompts);
        if prompts.bytes + bytes > MOST_TEXT {
            prompts.known.clear();
            prompts.bytes = 0;
        }
        prompts.bytes += bytes;
        prompts.known.insert(prompt.clone(), states.clone());
        Ok(states)
    }

    fn read_expected(&mut self) -> Result<()> {
        let expected = mem::take(&mut lock(&self.shared.prompts).expected);
        for prompt in &expected {
            // What doesn't fit any more would push out what was just read.
            let prompts = lock(&self.shared.prompts);
            let each = prompts.bytes / prompts.known.len().max(1);
            if prompts.bytes + each > MOST_TEXT {
                break;
            }
            drop(prompts);
            self.read(prompt)?;
        }
        Ok(())
    }
}

impl TextEncoder for Reader {
    fn encode(&mut self, prompt: &str, max_length: usize) -> Result<TextStates> {
        let states = self.read(&(prompt.to_owned(), max_length))?;
        if self.encoder.is_some() && !self.shared.keep.text {
            self.read_expected()?;
        }
        Ok(states)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use candle_core::{DType, Device};
    use serde_json::json;

    use super::*;
    use crate::pipeline::fake::Fake;

    const PLACE: Placement = Placement { device: Device::Cpu, dtype: DType::F32 };

    #[test]
    fn stages_stay_or_go() -> Result<()> {
        let fake = Fake::new(json!({}));
        let alive = fake.alive;
        let loaded = Loaded::new(Box::new(fake), Keep { denoiser: false, ..Keep::ALL });
        let alive = || alive.load(Ordering::SeqCst);
        drop(loaded.denoiser(&PLACE)?);
        assert_eq!(alive(), 0);
        drop(loaded.video_decoder(&PLACE)?);
        drop(loaded.video_decoder(&PLACE)?);
        assert_eq!(alive(), 1);
        let mut reader = loaded.text_encoder(&PLACE)?;
        assert_eq!(alive(), 1);
        reader.encode("a fox", 16)?;
        drop(reader);
        assert_eq!((alive(), loaded.texts()), (2, 1));
        drop(loaded);
        assert_eq!(alive(), 0);
        Ok(())
    }

    #[test]
    fn a_prompt_is_read_once() -> Result<()> {
        let fake = Fake::new(json!({}));
        let alive = fake.alive;
        let loaded = Loaded::new(Box::new(fake), Keep::NONE);
        loaded.expect(["a dog", "a cat"].map(|prompt| (prompt.to_owned(), 16)));
        let first = loaded.text_encoder(&PLACE)?.encode("a fox", 16)?;
        assert_eq!((alive.load(Ordering::SeqCst), loaded.texts()), (0, 3));
        let mut reader = loaded.text_encoder(&PLACE)?;
        let again = reader.encode("a fox", 16)?;
        reader.encode("a cat", 16)?;
        assert_eq!(alive.load(Ordering::SeqCst), 0, "the encoder was loaded for what is known");
        assert_eq!(first.states.to_string(), again.states.to_string());
        reader.encode("a fox", 8)?;
        assert_eq!(loaded.texts(), 4);
        Ok(())
    }
}
