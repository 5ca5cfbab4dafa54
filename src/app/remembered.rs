//! A checkpoint whose text encoder's answers are kept on disk: the same prompt needs no text encoder again.

use std::{collections::HashMap, fs, io::Write, path::PathBuf, sync::Arc, time::SystemTime};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

use crate::{
    app::clip::device_name,
    error::{Error, Result},
    models::api::{
        Activations, Checkpoint, Conditioning, Denoiser, KeptBytes, LatentStatistics, ModelInfo, Placement,
        ScheduleSpec, TextEncoder, TextStates, Tiling, VideoDecoder, VideoEncoder, WeightBytes, Work,
    },
    video::VideoSpec,
};

/// Changes whenever the same prompt may give other numbers, or is kept in another form.
const VERSION: u32 = 1;
/// The key of the metadata that holds what was cut off a prompt.
const CUT: &str = "cut";

/// Where encoded prompts are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptCache {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes that it may hold; what was used longest ago goes first.
    pub most_bytes: u64,
    /// Text encoders with fewer bytes of weights are quick enough to be asked each time.
    pub from_weight_bytes: u64,
}

impl PromptCache {
    /// A cache that holds up to 256 MiB, for text encoders of 64 MiB and more.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), most_bytes: 256 << 20, from_weight_bytes: 64 << 20 }
    }

    /// The same checkpoint, which asks this cache first.
    ///
    /// A prompt is known by all that its states depend on: text encoder, tokenizer, length, number type and device.
    /// States come back bit by bit as they were.
    pub fn wrap(&self, checkpoint: Box<dyn Checkpoint>) -> Box<dyn Checkpoint> {
        if checkpoint.info().weight_bytes.text < self.from_weight_bytes {
            return checkpoint;
        }
        Box::new(Remembered { checkpoint: Arc::from(checkpoint), cache: self.clone() })
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.safetensors"))
    }

    /// States that were kept under a key. A file that can't be read is no answer.
    fn get(&self, key: &str, place: &Placement) -> Option<TextStates> {
        let path = self.file(key);
        let bytes = fs::read(&path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let cut = header.metadata().as_ref()?.get(CUT)?.clone();
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let tensor = |name: &str, dtype: DType| {
            let view = file.tensor(name).ok()?;
            (view.dtype() == stored(dtype)?).then_some(())?;
            Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)
                .ok()?
                .to_device(&place.device)
                .ok()
        };
        let states = tensor("states", place.dtype)?;
        let mask = tensor("mask", DType::F32)?;
        let (b, l, _) = states.dims3().ok()?;
        if mask.dims() != [b, l] {
            return None;
        }
        // A sign that it is still used; a disk that doesn't keep it forgets it sooner.
        let _ = fs::File::options()
            .append(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Some(TextStates { states, mask, cut })
    }

    /// Keeps states under a key.
    fn put(&self, key: &str, text: &TextStates) -> Result<()> {
        let states = bytes_of(&text.states)?;
        let mask = bytes_of(&text.mask)?;
        let path = self.file(key);
        let Some((states_type, mask_type)) = stored(text.states.dtype()).zip(stored(text.mask.dtype()))
        else {
            return Ok(());
        };
        let broken = |e: safetensors::SafeTensorError| Error::damaged(&path, e.to_string());
        let views = [
            ("states", TensorView::new(states_type, text.states.dims().to_vec(), &states).map_err(broken)?),
            ("mask", TensorView::new(mask_type, text.mask.dims().to_vec(), &mask).map_err(broken)?),
        ];
        let metadata = HashMap::from([(CUT.to_owned(), text.cut.clone())]);
        let file = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
        fs::create_dir_all(&self.folder).map_err(Error::file("write into", &self.folder))?;
        let mut temporary =
            tempfile::NamedTempFile::new_in(&self.folder).map_err(Error::file("write into", &self.folder))?;
        temporary.write_all(&file).map_err(Error::file("write", &path))?;
        temporary.persist(&path).map_err(|e| Error::file("write", &path)(e.error))?;
        self.shrink();
        Ok(())
    }

    /// Lets go of what was used longest ago until the rest fits.
    fn shrink(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let metadata = entry.metadata().ok()?;
                let ours = entry.path().extension().is_some_and(|ending| ending == "safetensors");
                ours.then_some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= self.most_bytes {
                return;
            }
            // Another process may have been quicker.
            let _ = fs::remove_file(path);
            total -= bytes;
        }
    }
}

fn stored(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// The bytes of a tensor's values, in order.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(match flat.dtype() {
        DType::F32 => flat.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => flat.to_vec1::<half::f16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => flat.to_vec1::<half::bf16>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        other => return Err(candle_core::Error::UnsupportedDTypeForOp(other, "keep").into()),
    })
}

struct Remembered {
    checkpoint: Arc<dyn Checkpoint>,
    cache: PromptCache,
}

/// A text encoder that is loaded when a prompt isn't known yet.
struct Reader {
    checkpoint: Arc<dyn Checkpoint>,
    cache: PromptCache,
    place: Placement,
    /// All that states depend on beside the prompt and its length; nothing if that can't be told.
    identity: Option<String>,
    encoder: Option<Box<dyn TextEncoder>>,
}

impl TextEncoder for Reader {
    fn encode(&mut self, prompt: &str, max_length: usize) -> Result<TextStates> {
        let key = self.identity.as_ref().map(|identity| {
            let parts = serde_json::json!([
                VERSION,
                identity,
                prompt,
                max_length,
                self.place.dtype.as_str(),
                device_name(&self.place)
            ]);
            hex(&Sha256::digest(parts.to_string()))
        });
        if let Some(known) = key.as_ref().and_then(|key| self.cache.get(key, &self.place)) {
            return Ok(known);
        }
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self.encoder.insert(self.checkpoint.text_encoder(&self.place)?),
        };
        let text = encoder.encode(prompt, max_length)?;
        if let Some(key) = key {
            // A cache that can't be written is no reason to lose the clip.
            let _ = self.cache.put(&key, &text);
        }
        Ok(text)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Checkpoint for Remembered {
    fn info(&self) -> &ModelInfo {
        self.checkpoint.info()
    }

    fn schedule(&self) -> &ScheduleSpec {
        self.checkpoint.schedule()
    }

    fn conditioning(&self) -> Conditioning {
        self.checkpoint.conditioning()
    }

    fn latent_statistics(&self) -> Result<LatentStatistics> {
        self.checkpoint.latent_statistics()
    }

    fn text_identity(&self) -> Result<Option<String>> {
        self.checkpoint.text_identity()
    }

    fn text_encoder(&self, place: &Placement) -> Result<Box<dyn TextEncoder>> {
        Ok(Box::new(Reader {
            identity: self.checkpoint.text_identity()?,
            checkpoint: Arc::clone(&self.checkpoint),
            cache: self.cache.clone(),
            place: place.clone(),
            encoder: None,
        }))
    }

    fn denoiser(&self, place: &Placement) -> Result<Box<dyn Denoiser>> {
        self.checkpoint.denoiser(place)
    }

    fn video_decoder(&self, place: &Placement) -> Result<Box<dyn VideoDecoder>> {
        self.checkpoint.video_decoder(place)
    }

    fn video_encoder(&self, place: &Placement) -> Result<Box<dyn VideoEncoder>> {
        self.checkpoint.video_encoder(place)
    }

    fn latent_rgb(&self) -> Result<Option<(Tensor, Tensor)>> {
        self.checkpoint.latent_rgb()
    }

    fn activations(&self, spec: &VideoSpec, place: &Placement, tiling: &Tiling) -> Activations {
        self.checkpoint.activations(spec, place, tiling)
    }

    fn kept(&self) -> KeptBytes {
        self.checkpoint.kept()
    }

    fn resident(&self, place: &Placement) -> WeightBytes {
        self.checkpoint.resident(place)
    }

    fn work(&self, spec: &VideoSpec, text_tokens: usize, tiling: &Tiling) -> Work {
        self.checkpoint.work(spec, text_tokens, tiling)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::pipeline::fake::Fake;

    fn place() -> Placement {
        Placement { device: Device::Cpu, dtype: DType::F32 }
    }

    fn kept(cache: &PromptCache) -> usize {
        fs::read_dir(&cache.folder).map_or(0, Iterator::count)
    }

    #[test]
    fn an_answer_that_is_known_loads_no_text_encoder() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PromptCache { from_weight_bytes: 0, ..PromptCache::new(folder.path().join("prompts")) };
        let mut answers = Vec::new();
        for loads in [1, 0] {
            let fake = Fake::new(serde_json::json!({}));
            let alive = fake.alive;
            let checkpoint = cache.wrap(Box::new(fake));
            let mut reader = checkpoint.text_encoder(&place()).unwrap();
            assert_eq!(alive.load(Ordering::SeqCst), 0, "it waits for a prompt");
            let text = reader.encode("a fox", 8).unwrap();
            assert_eq!(alive.load(Ordering::SeqCst), loads);
            answers.push((bytes_of(&text.states).unwrap(), bytes_of(&text.mask).unwrap(), text.cut));
        }
        assert_eq!(answers[0], answers[1]);
        let checkpoint = cache.wrap(Box::new(Fake::new(serde_json::json!({}))));
        let mut reader = checkpoint.text_encoder(&place()).unwrap();
        reader.encode("a fox", 9).unwrap();
        reader.encode("a wolf", 8).unwrap();
        assert_eq!(kept(&cache), 3, "prompt and length make the key");
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = PromptCache { from_weight_bytes: 0, ..PromptCache::new(folder.path()) };
        let text = TextStates {
            states: Tensor::zeros((1, 4, 8), DType::F32, &Device::Cpu).unwrap(),
            mask: Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap(),
            cut: String::new(),
        };
        for (age, key) in ["old", "older", "new"].into_iter().enumerate() {
            cache.put(key, &text).unwrap();
            let file = fs::File::options().append(true).open(cache.file(key)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64)).unwrap();
        }
        assert!(cache.get("old", &place()).is_some(), "reading it makes it young");
        cache.most_bytes = 2 * fs::metadata(cache.file("old")).unwrap().len();
        cache.shrink();
        assert!(!cache.file("older").exists() && cache.file("old").exists() && cache.file("new").exists());
    }

    #[test]
    fn quick_text_encoders_are_asked_each_time() {
        let cache = PromptCache::new("/nonexistent");
        let fake = Fake::new(serde_json::json!({}));
        let alive = fake.alive;
        let _encoder = cache.wrap(Box::new(fake)).text_encoder(&place()).unwrap();
        assert_eq!(alive.load(Ordering::SeqCst), 1);
    }
}
