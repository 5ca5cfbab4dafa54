//! Which strings of a text are tokens of their own: transformers gathers them from up to four files.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::tokenizer::Vocabulary;

/// The names under which a configuration lists single tokens, in the order in which they get ids.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// T5 was trained with a hundred sentinels.
const EXTRA_IDS: usize = 100;
/// More than this is a damaged configuration.
const MAX_EXTRA_IDS: u64 = 100_000;

/// `tokenizer_config.json`, and what the older files add to it.
pub(super) struct Config {
    json: Map<String, Value>,
    /// By id.
    decoder: BTreeMap<u64, AddedToken>,
}

/// `<extra_id_N>`.
pub(super) fn sentinel(number: usize) -> String {
    format!("<extra_id_{number}>")
}

impl Config {
    pub fn new(json: Value) -> Result<Self, String> {
        let json = match json {
            Value::Object(json) => json,
            Value::Null => Map::new(),
            _ => return Err("it is not a JSON object".into()),
        };
        let mut decoder = BTreeMap::new();
        if let Some(list) = json.get("added_tokens_decoder") {
            for (id, token) in list.as_object().ok_or("`added_tokens_decoder` is not an object")? {
                let id = id.parse().map_err(|_| format!("`{id}` is not the id of a token"))?;
                decoder.insert(id, described(token, /* special */ false)?);
            }
        }
        if json.get("extra_ids").is_some_and(|n| n.as_u64().is_none_or(|n| n > MAX_EXTRA_IDS)) {
            return Err(format!("`extra_ids` is {} (expected up to {MAX_EXTRA_IDS})", json["extra_ids"]));
        }
        Ok(Self { json, decoder })
    }

    /// Whether this file lists the added tokens itself; the older files are only read if it doesn't.
    pub fn lists_added_tokens(&self) -> bool {
        self.json.contains_key("added_tokens_decoder")
    }

    /// `special_tokens_map.json`.
    pub fn merge_special_tokens(&mut self, map: Value) -> Result<(), String> {
        let Value::Object(map) = map else { return Err("it is not a JSON object".into()) };
        self.json.extend(map);
        Ok(())
    }

    /// `added_tokens.json`: strings and their ids.
    pub fn merge_added_tokens(&mut self, list: &Value) -> Result<(), String> {
        let special: Vec<String> = NAMED
            .iter()
            .filter_map(|name| self.named(name))
            .chain(self.extra().into_iter().flatten())
            .map(|token| token.content)
            .collect();
        for (content, id) in list.as_object().ok_or("it is not a JSON object")? {
            let id = id.as_u64().ok_or_else(|| format!("the id of `{content}` is {id}"))?;
            let token = AddedToken::from(content.clone(), special.contains(content));
            self.decoder.insert(id, token);
        }
        Ok(())
    }

    /// The `added_tokens` of a `tokenizer.json`.
    pub fn merge_tokenizer_json(&mut self, json: &Value) -> Result<(), String> {
        for token in json["added_tokens"].as_array().ok_or("it has no `added_tokens`")? {
            let id = token["id"].as_u64().ok_or("an added token has no id")?;
            self.decoder.insert(id, described(token, /* special */ false)?);
        }
        Ok(())
    }

    /// The key and value of a side that isn't the right one.
    pub fn check_sides(&self) -> Result<(), (&'static str, String)> {
        for key in ["padding_side", "truncation_side"] {
            if let Some(side) = self.json.get(key).filter(|side| *side != "right") {
                return Err((key, side.to_string()));
            }
        }
        Ok(())
    }

    /// How many sentinels follow the pieces of a `spiece.model`.
    pub fn extra_ids(&self) -> usize {
        self.json.get("extra_ids").and_then(Value::as_u64).map_or(EXTRA_IDS, |n| n as usize)
    }

    /// Whether text that is shown again loses the spaces before punctuation.
    pub fn clean_up(&self) -> bool {
        self.json.get("clean_up_tokenization_spaces").and_then(Value::as_bool).unwrap_or(false)
    }

    /// The end token.
    pub fn eos(&self) -> String {
        self.named("eos_token").map_or_else(|| "</s>".into(), |token| token.content)
    }

    /// The padding token.
    pub fn pad(&self) -> String {
        self.named("pad_token").map_or_else(|| "<pad>".into(), |token| token.content)
    }

    /// All added tokens, in the order in which those without an id in the vocabulary get one.
    pub fn tokens(&self, vocabulary: &Vocabulary) -> Result<Vec<AddedToken>, String> {
        let mut tokens: Vec<AddedToken> = self.decoder.values().cloned().collect();
        let named = NAMED.iter().filter_map(|name| {
            self.named(name).or_else(|| match *name {
                "eos_token" | "unk_token" | "pad_token" => {
                    let name = name.strip_suffix("_token").expect("all of them end so");
                    let content = if name == "eos" { "</s>".into() } else { format!("<{name}>") };
                    Some(AddedToken::from(content, true))
                }
                _ => None,
            })
        });
        let extra = match self.extra() {
            Some(extra) => extra,
            None => self.default_extra(vocabulary)?,
        };
        let mut known: HashSet<String> = tokens.iter().map(|token| token.content.clone()).collect();
        for token in named.chain(extra) {
            if known.insert(token.content.clone()) {
                tokens.push(token);
            }
        }
        Ok(tokens)
    }

    /// Control pieces and sentinels, for a folder that lists nothing.
    fn default_extra(&self, vocabulary: &Vocabulary) -> Result<Vec<AddedToken>, String> {
        let mut extra = vocabulary.added.clone();
        let sentinels = extra.iter().filter(|token| token.content.contains("<extra_id_")).count();
        if sentinels == 0 {
            extra.extend((0..self.extra_ids()).map(|i| AddedToken::from(sentinel(i), true)));
        } else if self.extra_ids() > 0 && self.extra_ids() != sentinels {
            return Err(format!("it has {sentinels} sentinels (expected {})", self.extra_ids()));
        }
        Ok(extra)
    }

    fn named(&self, name: &str) -> Option<AddedToken> {
        token(self.json.get(name)?)
    }

    /// `None` if the configuration doesn't say.
    fn extra(&self) -> Option<Vec<AddedToken>> {
        let filled =
            |value: &&Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
        let list = self
            .json
            .get("extra_special_tokens")
            .filter(filled)
            .or_else(|| self.json.get("additional_special_tokens"))
            .or_else(|| self.json.get("extra_special_tokens"))?;
        match list {
            Value::Array(list) => Some(list.iter().filter_map(token).collect()),
            Value::Object(list) => Some(list.values().filter_map(token).collect()),
            _ => None,
        }
    }
}

/// A token that is given by its text or described.
fn token(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(content) => Some(AddedToken::from(content.clone(), true)),
        value => described(value, /* special */ true).ok(),
    }
}

/// A token with its flags; `special` holds where it doesn't say.
fn described(value: &Value, special: bool) -> Result<AddedToken, String> {
    let content = value["content"].as_str().ok_or_else(|| format!("{value} is not a token"))?;
    let flag = |name: &str| value[name].as_bool();
    let special = flag("special").unwrap_or(special);
    Ok(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
