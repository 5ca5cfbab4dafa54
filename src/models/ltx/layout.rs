//! Where the parts of a model lie, whichever way they were published, and what each of them is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{keys, transformer::TransformerConfig, vae};
use crate::{
    error::{Error, Result},
    models::{
        source::ModelSource,
        t5::{self, TokenizerPlace},
    },
    weights::{Audit, Lora, Weights},
};

/// What weights are called in a folder of a component.
pub(super) const MODEL: &str = "diffusion_pytorch_model";

/// One part of a model: where its weights are.
#[derive(Debug, Clone)]
pub(super) enum Part {
    /// A component of a folder in the published layout, or of the embedded model.
    Component { source: ModelSource, name: &'static str, stem: &'static str },
    /// A folder of its own.
    Folder { folder: PathBuf, stem: &'static str },
    /// A file, with or without other parts.
    File(PathBuf),
}

/// A model whose parts were found and fit together.
#[derive(Debug)]
pub struct LtxParts {
    pub(super) class: String,
    pub(super) text_part: Part,
    /// Nothing means the embedded model's.
    pub(super) tokenizer: Option<TokenizerPlace>,
    pub(super) transformer_part: Part,
    pub(super) vae_part: Part,
    pub(super) text: t5::Config,
    pub(super) transformer: TransformerConfig,
    pub(super) vae: vae::Config,
    pub(super) schedule: Value,
    pub(super) schedule_path: PathBuf,
    /// Whether it takes the few steps of its training alone, as far as its header says so.
    pub(super) distilled: Option<bool>,
}

impl Part {
    fn open(&self) -> Result<Weights> {
        match self {
            Self::Component { source, name, stem } => source.weights(name, stem),
            Self::Folder { folder, stem } => Weights::open_any_variant(folder, stem),
            Self::File(path) => Weights::open_files(std::slice::from_ref(path)),
        }
    }

    /// The tensors of a transformer, under the names of the published class.
    pub(super) fn transformer(&self) -> Result<Weights> {
        keys::transformer_weights(&self.open()?)
    }

    /// The tensors of a video autoencoder, likewise.
    pub(super) fn vae(&self) -> Result<Weights> {
        keys::vae_weights(&self.open()?)
    }

    /// The tensors of a text encoder, likewise.
    pub(super) fn text(&self) -> Result<Weights> {
        t5::encoder_weights(&self.open()?)
    }

    /// The `config.json` beside the weights, and where it lies.
    fn config(&self) -> Result<Option<(Vec<u8>, PathBuf)>> {
        let (source, relative) = match self {
            Self::Component { source, name, .. } => (source.clone(), format!("{name}/config.json")),
            Self::Folder { folder, .. } => (ModelSource::Folder(folder.clone()), "config.json".into()),
            Self::File(_) => return Ok(None),
        };
        let bytes = source.read(&relative, "it says what the weights are")?;
        Ok(Some((bytes.into_owned(), source.path(&relative))))
    }
}

impl LtxParts {
    /// The pipeline class whose arithmetic is followed.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }

    /// Finds the parts of a model in the published layout.
    pub(super) fn of_folder(source: &ModelSource, class: &str) -> Result<Self> {
        let base = source.base();
        let component = |name, stem| Part::Component { source: base.clone(), name, stem };
        let given = source.parts();
        let file = "transformer/config.json";
        let transformer = TransformerConfig::parse(
            &source.text(file, "the transformer's dimensions")?,
            &source.path(file),
        )?;
        let (vae_part, vae) = match &given.vae {
            Some(path) => vae_at(path)?,
            None => described_vae(component("vae", MODEL))?,
        };
        let (text_part, text) = match &given.text_encoder {
            Some(path) => text_at(path)?,
            None => described_text(component("text_encoder", "model"))?,
        };
        let beside = given.text_encoder.as_deref().map(TokenizerPlace::of_encoder).transpose()?.flatten();
        let tokenizer = match (&given.tokenizer, base) {
            (Some(path), _) => Some(TokenizerPlace::given(path)?),
            (None, ModelSource::Folder(folder)) => {
                Some(beside.unwrap_or_else(|| TokenizerPlace::Folder(folder.join("tokenizer"))))
            }
            _ => beside,
        };
        let schedule_path = source.path("scheduler/scheduler_config.json");
        let schedule =
            source.json("scheduler/scheduler_config.json", "it says how noise levels are spaced")?;
        let parts = Self {
            class: class.into(),
            text_part,
            tokenizer,
            transformer_part: component("transformer", MODEL),
            vae_part,
            text,
            transformer,
            vae,
            schedule,
            schedule_path,
            distilled: None,
        };
        parts.audit()?;
        Ok(parts)
    }

    /// Finds the parts of a model whose transformer is the file at `path`.
    pub(super) fn of_file(source: &ModelSource, path: &Path) -> Result<Self> {
        let given = source.parts();
        let file = Weights::open_files(&[path.to_owned()])?;
        let original = original_config(&file, path)?;
        let transformer_part = Part::File(path.to_owned());
        let transformer =
            TransformerConfig::infer(&transformer_part.transformer()?, original.get("transformer"), path)?;
        let (vae_part, vae) = match &given.vae {
            Some(path) => vae_at(path)?,
            None if keys::has_vae(&file) => vae_at(path)?,
            None => {
                let hint = "pass --vae PATH: the `vae` folder of an LTX-Video model, or a safetensors file that holds \
                            its video autoencoder";
                return Err(missing(path, "video autoencoder", hint));
            }
        };
        let (text_part, text) = match &given.text_encoder {
            Some(path) => text_at(path)?,
            None if t5::has_encoder(&file) => text_at(path)?,
            None => {
                let hint = "pass --text-encoder PATH: a T5 v1.1 XXL encoder, as a folder, a safetensors file or a GGUF \
                            file, or an LTX-Video folder that holds one";
                return Err(missing(path, "text encoder", hint));
            }
        };
        let encoder = given.text_encoder.as_deref().unwrap_or(path);
        let tokenizer = match &given.tokenizer {
            Some(path) => TokenizerPlace::given(path)?,
            None => {
                let found = TokenizerPlace::of_encoder(encoder)?.or_else(|| TokenizerPlace::beside(path));
                found.ok_or_else(|| {
                    let hint = "pass --tokenizer PATH: a folder with the `spiece.model` or the `tokenizer.json` of \
                                T5, or one of these files";
                    missing(encoder, "tokenizer", hint)
                })?
            }
        };
        let since_095 = vae.is_095();
        // The schedulers of the published folders.
        let schedule = match since_095 {
            true => json!({}),
            false => json!({
                "use_dynamic_shifting": true, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
                "max_image_seq_len": 4096, "shift_terminal": 0.1,
            }),
        };
        let class = if since_095 { "LTXConditionPipeline" } else { "LTXPipeline" };
        let parts = Self {
            class: class.into(),
            text_part,
            tokenizer: Some(tokenizer),
            transformer_part,
            vae_part,
            text,
            transformer,
            vae,
            schedule,
            schedule_path: path.to_owned(),
            distilled: original.is_object().then(|| !original["allowed_inference_steps"].is_null()),
        };
        parts.audit()?;
        Ok(parts)
    }

    /// Holds all headers against the configurations, so that no stage comes to grief after another's hours of work.
    fn audit(&self) -> Result<()> {
        let weights = self.transformer_part.transformer()?;
        let mut audit = Audit::new(&weights);
        self.transformer.expect(&mut audit)?;
        audit.finish("", &[])?;
        let weights = self.text_part.text()?;
        let mut audit = Audit::new(&weights);
        self.text.expect(&mut audit)?;
        audit.finish("", &t5::IGNORED)?;
        let weights = self.vae_part.vae()?;
        let mut audit = Audit::new(&weights);
        self.vae.expect_decoder(&mut audit)?;
        audit.finish("decoder.", &[])?;
        if weights.keys().any(|key| key.starts_with("encoder.")) {
            let mut audit = Audit::new(&weights);
            self.vae.expect_encoder(&mut audit)?;
            audit.finish("encoder.", &[])?;
        }
        Ok(())
    }

    /// The transformer with its LoRAs.
    pub(super) fn transformer_weights(&self, source: &ModelSource) -> Result<Weights> {
        source.parts().loras.iter().try_fold(self.transformer_part.transformer()?, |weights, lora| {
            let rename = |layer: &str| keys::transformer(layer).unwrap_or_else(|| layer.to_owned());
            Lora::open(&lora.path)?.apply(&weights, lora.scale, rename)
        })
    }
}

fn missing(path: &Path, what: &'static str, hint: &str) -> Error {
    Error::MissingPart { path: path.into(), what, hint: hint.into() }
}

/// The configuration that the original release keeps in a file's metadata; empty if there is none.
pub(super) fn original_config(weights: &Weights, path: &Path) -> Result<Value> {
    match weights.metadata("config") {
        None => Ok(Value::Null),
        Some(text) => serde_json::from_str(text)
            .map_err(|e| Error::damaged(path, format!("its metadata `config` is no JSON: {e}"))),
    }
}

/// A folder's own component, or the folder itself where that is one.
fn component_folder(path: &Path, name: &str) -> PathBuf {
    let inner = path.join(name);
    if inner.join("config.json").is_file() { inner } else { path.to_owned() }
}

fn must_exist(path: &Path, what: &'static str) -> Result<()> {
    if path.exists() { Ok(()) } else { Err(Error::MissingFile { path: path.into(), what }) }
}

fn vae_at(path: &Path) -> Result<(Part, vae::Config)> {
    must_exist(path, "the video autoencoder")?;
    if path.is_dir() {
        return described_vae(Part::Folder { folder: component_folder(path, "vae"), stem: MODEL });
    }
    let part = Part::File(path.to_owned());
    let weights = part.vae()?;
    if !weights.contains("decoder.conv_in.conv.weight") {
        return Err(missing(path, "video autoencoder of LTX-Video", "pass --vae with another file"));
    }
    let original = original_config(&weights, path)?;
    // A file with an autoencoder alone may describe it without a name for it.
    let own = original.get("vae").or(original.get("latent_channels").map(|_| &original));
    let config = vae::Config::infer(&weights, own, path)?;
    Ok((part, config))
}

fn described_vae(part: Part) -> Result<(Part, vae::Config)> {
    let (bytes, path) = part.config()?.expect("components and folders have one or are refused");
    let text = String::from_utf8(bytes).map_err(|_| Error::damaged(&path, "not UTF-8"))?;
    let config = vae::Config::from_json(&text, &path)?;
    Ok((part, config))
}

fn text_at(path: &Path) -> Result<(Part, t5::Config)> {
    must_exist(path, "the text encoder")?;
    if path.is_dir() {
        return described_text(Part::Folder {
            folder: component_folder(path, "text_encoder"),
            stem: "model",
        });
    }
    let part = Part::File(path.to_owned());
    if !t5::has_encoder(&part.open()?) {
        return Err(missing(path, "T5 encoder", "pass --text-encoder with another file"));
    }
    let config = t5::Config::infer(&part.text()?, path)?;
    Ok((part, config))
}

fn described_text(part: Part) -> Result<(Part, t5::Config)> {
    let (bytes, path) = part.config()?.expect("components and folders have one or are refused");
    let config = t5::Config::parse(&path, &bytes)?;
    Ok((part, config))
}
