//! Text → ids, as transformers' T5 tokenizer gives them for the same folder.
//!
//! Whichever file the vocabulary comes from, that tokenizer is always put together alike: the
//! precompiled normaliser, a split at white space, `▁` before each word, unigram pieces, `</s>` at the
//! end. So `tokenizer.json` is a source of vocabulary, normaliser map and added tokens only.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokenizers::{
    AddedToken,
    models::unigram::Unigram,
    normalizers::Precompiled,
    pre_tokenizers::{
        metaspace::{Metaspace, PrependScheme},
        sequence::Sequence,
        whitespace::WhitespaceSplit,
    },
};

use super::{
    added::{self, Config},
    spiece,
};
use crate::{
    error::{Error, Result},
    weights::{Field, Weights},
};

/// The files that a tokenizer's folder may hold.
const FILES: [&str; 5] = [
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
/// The largest published vocabularies have a few megabytes.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The id of the unknown piece in every T5 vocabulary.
const UNK_ID: usize = 2;

// Keys of a GGUF file.
const GGUF_TOKENS: &str = "tokenizer.ggml.tokens";
const GGUF_SCORES: &str = "tokenizer.ggml.scores";
const GGUF_TYPES: &str = "tokenizer.ggml.token_type";
const GGUF_CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
// Types of tokens there.
const NORMAL: f64 = 1.0;
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNUSED: f64 = 5.0;

/// A prompt as ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Ids {
    /// Exactly as many as asked for: the text, `</s>`, padding.
    pub ids: Vec<u32>,
    /// 1 for the text and its `</s>`, 0 for padding.
    pub mask: Vec<f32>,
    /// The text that did not fit; empty if all did.
    pub cut: String,
}

/// A T5 tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    eos: u32,
    pad: u32,
    clean_up: bool,
    path: PathBuf,
    /// Of the pieces, by id.
    scores: Vec<f64>,
    charsmap: Vec<u8>,
    /// Tokens that stand for no text.
    specials: HashSet<String>,
}

/// Vocabulary and normaliser map, from either file.
pub(super) struct Vocabulary {
    pieces: Vec<(String, f64)>,
    charsmap: Vec<u8>,
    /// Pieces that are matched in the text before anything else.
    pub(super) added: Vec<AddedToken>,
    /// Whether it comes from a `spiece.model`, to which the sentinels have yet to be appended.
    pub(super) bare: bool,
}

impl Tokenizer {
    /// Opens a folder with a `tokenizer.json` or, without one, a `spiece.model`.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for name in FILES {
            let path = folder.join(name);
            match fs::metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::file("read", path)(error)),
                Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                    return Err(Error::damaged(path, format!("{} bytes are too many", metadata.len())));
                }
                Ok(_) => files.push((name, fs::read(&path).map_err(Error::file("read", &path))?)),
            }
        }
        let files: Vec<_> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        Self::from_files(folder, &files)
    }

    /// Opens a tokenizer that is one file: a `spiece.model` or a `tokenizer.json`, as its content says.
    pub fn open_file(path: &Path) -> Result<Self> {
        let size = fs::metadata(path).map_err(Error::file("read", path))?.len();
        if size > MAX_FILE_BYTES {
            return Err(Error::damaged(path, format!("{size} bytes are too many")));
        }
        let bytes = fs::read(path).map_err(Error::file("read", path))?;
        let json = bytes.trim_ascii_start().starts_with(b"{");
        let name = if json { "tokenizer.json" } else { "spiece.model" };
        Self::from_named(&|_| path.to_owned(), &[(name, &bytes)])
    }

    /// Makes a tokenizer of the metadata of a GGUF file.
    pub fn from_gguf(weights: &Weights) -> Result<Self> {
        let path = weights.first_file();
        let vocabulary = Vocabulary::from_gguf(weights).map_err(|why| Error::damaged(&path, why))?;
        let config = Config::new(Value::Null).map_err(|why| Error::damaged(&path, why))?;
        Self::build(path, &config, vocabulary)
    }

    /// Whether the metadata of a file holds a tokenizer.
    #[must_use]
    pub fn is_in(weights: &Weights) -> bool {
        weights.gguf_value(GGUF_TOKENS).is_some()
    }

    /// What a GGUF file says of this tokenizer, for a model of `rows` tokens.
    #[must_use]
    pub fn to_gguf(&self, rows: usize) -> Vec<(String, Field)> {
        let (mut texts, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..rows as u32 {
            let Some(text) = self.inner.id_to_token(id) else {
                texts.push(format!("[PAD{id}]"));
                scores.push(-1000.0);
                types.push(UNUSED as i32);
                continue;
            };
            let special = self.specials.contains(&text);
            types.push(match id as usize {
                UNK_ID => UNKNOWN as i32,
                _ if special && text.starts_with("<extra_id_") => USER_DEFINED as i32,
                _ if special => CONTROL as i32,
                _ => NORMAL as i32,
            });
            texts.push(text);
            scores.push(self.scores.get(id as usize).copied().unwrap_or(0.0) as f32);
        }
        let mut fields = vec![
            ("tokenizer.ggml.model".to_owned(), Field::Text("t5".into())),
            ("tokenizer.ggml.pre".to_owned(), Field::Text("default".into())),
            (GGUF_TOKENS.to_owned(), Field::Texts(texts)),
            (GGUF_SCORES.to_owned(), Field::F32s(scores)),
            (GGUF_TYPES.to_owned(), Field::I32s(types)),
            ("tokenizer.ggml.add_space_prefix".to_owned(), Field::Bool(true)),
            ("tokenizer.ggml.remove_extra_whitespaces".to_owned(), Field::Bool(true)),
            ("tokenizer.ggml.eos_token_id".to_owned(), Field::U32(self.eos)),
            ("tokenizer.ggml.unknown_token_id".to_owned(), Field::U32(UNK_ID as u32)),
            ("tokenizer.ggml.padding_token_id".to_owned(), Field::U32(self.pad)),
            ("tokenizer.ggml.add_bos_token".to_owned(), Field::Bool(false)),
            ("tokenizer.ggml.add_eos_token".to_owned(), Field::Bool(true)),
        ];
        if !self.charsmap.is_empty() {
            fields.push((GGUF_CHARSMAP.to_owned(), Field::Bytes(self.charsmap.clone())));
        }
        fields
    }

    /// Makes a tokenizer of the files of a folder: pairs of name and content. `folder` is only for
    /// error messages.
    pub fn from_files(folder: &Path, files: &[(&str, &[u8])]) -> Result<Self> {
        Self::from_named(&|name| folder.join(name), files)
    }

    /// As [`Tokenizer::from_files`]; `place` says where a file of that name lies.
    fn from_named(place: &dyn Fn(&str) -> PathBuf, files: &[(&str, &[u8])]) -> Result<Self> {
        let file = |wanted: &str| files.iter().find(|(name, _)| *name == wanted).map(|(_, bytes)| *bytes);
        let json = |name: &str| -> Result<Option<Value>> {
            file(name)
                .map(serde_json::from_slice)
                .transpose()
                .map_err(|e| Error::damaged(place(name), e.to_string()))
        };
        let damaged = |name: &'static str| move |why: String| Error::damaged(place(name), why);

        let mut config = Config::new(json("tokenizer_config.json")?.unwrap_or_default())
            .map_err(damaged("tokenizer_config.json"))?;
        let tokenizer_json = json("tokenizer.json")?;
        if !config.lists_added_tokens() {
            if let Some(map) = json("special_tokens_map.json")? {
                config.merge_special_tokens(map).map_err(damaged("special_tokens_map.json"))?;
            }
            if let Some(list) = json("added_tokens.json")? {
                config.merge_added_tokens(&list).map_err(damaged("added_tokens.json"))?;
            }
            if let Some(json) = &tokenizer_json {
                config.merge_tokenizer_json(json).map_err(damaged("tokenizer.json"))?;
            }
        }
        config.check_sides().map_err(|(key, found)| Error::Config {
            path: place("tokenizer_config.json"),
            key: key.into(),
            found,
            expected: "\"right\"".into(),
        })?;

        let (name, vocabulary) = match (&tokenizer_json, file("spiece.model")) {
            (Some(json), _) => ("tokenizer.json", Vocabulary::from_json(json)),
            (None, Some(bytes)) => ("spiece.model", Vocabulary::from_spiece(bytes)),
            (None, None) => {
                let path = place("spiece.model");
                return Err(Error::MissingFile { path, what: "the tokenizer's vocabulary" });
            }
        };
        let vocabulary = vocabulary.map_err(|why| Error::damaged(place(name), why))?;
        Self::build(place(name), &config, vocabulary)
    }

    fn build(path: PathBuf, config: &Config, mut vocabulary: Vocabulary) -> Result<Self> {
        let refuse = |error: tokenizers::Error| Error::damaged(&path, error.to_string());
        let added = config.tokens(&vocabulary).map_err(|why| Error::damaged(&path, why))?;
        if vocabulary.bare {
            vocabulary.pieces.extend((0..config.extra_ids()).rev().map(|i| (added::sentinel(i), 0.0)));
        }
        let scores = vocabulary.pieces.iter().map(|(_, score)| *score).collect();
        let specials =
            added.iter().filter(|token| token.special).map(|token| token.content.clone()).collect();
        let model =
            Unigram::from(vocabulary.pieces, Some(UNK_ID), /* byte_fallback */ false).map_err(refuse)?;
        let mut inner = tokenizers::Tokenizer::new(model);
        if !vocabulary.charsmap.is_empty() {
            let map = Precompiled::from(&vocabulary.charsmap).map_err(|e| refuse(Box::new(e)))?;
            inner.with_normalizer(Some(map)).map_err(refuse)?;
        }
        let metaspace = Metaspace::new('▁', PrependScheme::Always, /* split */ true);
        inner.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), metaspace.clone().into()])));
        inner.with_decoder(Some(metaspace));
        inner.add_tokens(added).map_err(refuse)?;
        let id = |content: String| {
            inner.token_to_id(&content).ok_or_else(|| Error::damaged(&path, format!("it has no `{content}`")))
        };
        let (eos, pad) = (id(config.eos())?, id(config.pad())?);
        let clean_up = config.clean_up();
        let charsmap = vocabulary.charsmap;
        Ok(Self { eos, pad, clean_up, inner, path, scores, charsmap, specials })
    }

    /// Turns text into exactly `max_length` ids: cut or padded on the right, `</s>` always kept.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Ids> {
        if max_length == 0 {
            return Err(Error::invalid("prompt length 0", "expected room for the end token at least"));
        }
        let refuse =
            |error: tokenizers::Error| Error::Tokenizer { path: self.path.clone(), why: error.to_string() };
        let mut ids = self.inner.encode_fast(text, false).map_err(refuse)?.get_ids().to_vec();
        let removed = ids.split_off(ids.len().min(max_length - 1));
        let cut = match removed.as_slice() {
            [] => String::new(),
            removed => {
                self.tidy(self.inner.decode(removed, /* skip_special_tokens */ false).map_err(refuse)?)
            }
        };
        ids.push(self.eos);
        let mut mask = vec![1.0; ids.len()];
        ids.resize(max_length, self.pad);
        mask.resize(max_length, 0.0);
        Ok(Ids { ids, mask, cut })
    }

    /// Refuses ids that an embedding of `rows` rows doesn't have.
    pub(super) fn check_bound(&self, ids: &[u32], rows: usize) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= rows) {
            None => Ok(()),
            Some(id) => Err(Error::Tokenizer {
                path: self.path.clone(),
                why: format!("it gives the id {id}, but the text encoder has {rows} tokens only"),
            }),
        }
    }

    /// Takes out the spaces before punctuation, if the folder asks for it.
    fn tidy(&self, text: String) -> String {
        const PAIRS: [(&str, &str); 10] = [
            (" .", "."),
            (" ?", "?"),
            (" !", "!"),
            (" ,", ","),
            (" ' ", "'"),
            (" n't", "n't"),
            (" 'm", "'m"),
            (" 's", "'s"),
            (" 've", "'ve"),
            (" 're", "'re"),
        ];
        if !self.clean_up {
            return text;
        }
        PAIRS.iter().fold(text, |text, (from, to)| text.replace(from, to))
    }
}

impl Vocabulary {
    fn from_spiece(bytes: &[u8]) -> Result<Self, String> {
        let model = spiece::parse(bytes)?;
        let added = model.pieces.iter().filter(|piece| piece.added);
        let added = added.map(|piece| AddedToken::from(piece.text.clone(), true)).collect();
        let pieces = model.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score))).collect();
        Ok(Self { pieces, charsmap: model.charsmap, added, bare: true })
    }

    fn from_gguf(weights: &Weights) -> Result<Self, String> {
        if let Some(kind) = weights.gguf_text("tokenizer.ggml.model").filter(|kind| *kind != "t5") {
            return Err(format!("its tokenizer is of the kind {kind} (expected t5)"));
        }
        let list =
            |what: Option<Vec<f64>>, name: &str| what.ok_or_else(|| format!("it has no list `{name}`"));
        let texts =
            weights.gguf_texts(GGUF_TOKENS).ok_or_else(|| format!("it has no list `{GGUF_TOKENS}`"))?;
        let scores = list(weights.gguf_numbers(GGUF_SCORES), GGUF_SCORES)?;
        let types = list(weights.gguf_numbers(GGUF_TYPES), GGUF_TYPES)?;
        if scores.len() != texts.len() || types.len() != texts.len() {
            let (a, b, c) = (texts.len(), scores.len(), types.len());
            return Err(format!("it has {a} tokens, {b} scores and {c} types of tokens"));
        }
        // The end is filled up to the size of the embedding.
        let used = types.iter().rposition(|kind| *kind != UNUSED).map_or(0, |last| last + 1);
        let (mut pieces, mut added) = (Vec::with_capacity(used), Vec::new());
        for (id, ((text, score), kind)) in texts.iter().zip(scores).zip(types).take(used).enumerate() {
            spiece::check_piece(text, score, id)?;
            if kind == CONTROL || kind == USER_DEFINED {
                added.push(AddedToken::from((*text).to_owned(), true));
            }
            pieces.push(((*text).to_owned(), score));
        }
        if pieces.is_empty() {
            return Err("it has no pieces".into());
        }
        let charsmap = weights.gguf_bytes(GGUF_CHARSMAP).unwrap_or_default().to_vec();
        spiece::check_charsmap(&charsmap)?;
        // Programs that make such files from a `spiece.model` may leave the sentinels out.
        let bare = !added.iter().any(|token| token.content.starts_with("<extra_id_"));
        Ok(Self { pieces, charsmap, added, bare })
    }

    fn from_json(json: &Value) -> Result<Self, String> {
        if json["model"]["type"].as_str().is_some_and(|kind| kind != "Unigram") {
            return Err(format!("its model is {} (expected \"Unigram\")", json["model"]["type"]));
        }
        let list = json["model"]["vocab"].as_array().ok_or("it has no unigram vocabulary")?;
        let mut pieces = Vec::with_capacity(list.len());
        for (id, entry) in list.iter().enumerate() {
            let (Some(text), Some(score)) = (entry[0].as_str(), entry[1].as_f64()) else {
                return Err(format!("piece {id} is not a pair of text and score"));
            };
            spiece::check_piece(text, score, id)?;
            pieces.push((text.to_owned(), as_trained(score)));
        }
        let normaliser = &json["normalizer"];
        let charsmap = match normaliser["normalizers"].as_array() {
            Some(several) => several.iter().find_map(precompiled),
            None => precompiled(normaliser),
        };
        let charsmap = charsmap.transpose()?.unwrap_or_default();
        spiece::check_charsmap(&charsmap)?;
        Ok(Self { pieces, charsmap, added: Vec::new(), bare: false })
    }
}

/// SentencePiece trains f32 scores. The JSON reader may be off in the last of 53 bits, which could turn
/// a tie between two ways to cut a word.
fn as_trained(score: f64) -> f64 {
    let trained = f64::from(score as f32);
    if (trained - score).abs() <= 4.0 * f64::EPSILON * score.abs() { trained } else { score }
}

/// The map of a `Precompiled` normaliser.
fn precompiled(normaliser: &Value) -> Option<Result<Vec<u8>, String>> {
    if normaliser["type"] != "Precompiled" {
        return None;
    }
    let text = normaliser["precompiled_charsmap"].as_str()?;
    Some(from_base64(text).ok_or_else(|| "its normaliser map is not base64".to_owned()))
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut word = 0u32;
        for digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            word = word << 6 | u32::from(value);
        }
        let missing = 4 - group.len();
        let [_, whole @ ..] = (word << (6 * missing)).to_be_bytes();
        bytes.extend(whole.get(..3usize.checked_sub(missing).filter(|n| *n > 0)?)?);
    }
    Some(bytes)
}
