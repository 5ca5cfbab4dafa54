//! Where models come from: flags, and the environment that programs of the hub share.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use clap::Args;
use sora::{
    app::remembered::PromptCache,
    hub::{ENDPOINT, Hub, HubConfig, Token},
};

/// Where models come from.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Models")]
pub struct HubArgs {
    /// Use models that are here already; download nothing
    ///
    /// HF_HUB_OFFLINE=1 says the same. HF_HOME or HF_HUB_CACHE say where models are kept, HF_ENDPOINT where they come
    /// from, HF_TOKEN who asks.
    #[arg(long, hide_short_help = true)]
    pub offline: bool,
}

impl HubArgs {
    /// The hub and cache that flags and environment name.
    pub fn open(&self) -> Hub {
        let home = home();
        Hub::new(HubConfig {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()),
            token: token(&home),
            offline: self.offline || ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().any(is_on),
            ..HubConfig::new(cache(&home))
        })
    }
}

/// Where encoded prompts are kept.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Models")]
pub struct PromptArgs {
    /// Folder for encoded prompts [default: the user's cache, for models with a large text encoder]
    ///
    /// A prompt that was encoded once needs no text encoder again. SORA_CACHE says where the user's cache is.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub prompt_cache: Option<PathBuf>,

    /// Encode prompts anew, and keep nothing of them
    #[arg(long, hide_short_help = true, conflicts_with = "prompt_cache")]
    pub no_prompt_cache: bool,
}

impl PromptArgs {
    /// What the flags ask for.
    pub fn cache(self) -> Option<PromptCache> {
        match self.prompt_cache {
            _ if self.no_prompt_cache => None,
            Some(folder) => Some(PromptCache { from_weight_bytes: 0, ..PromptCache::new(folder) }),
            None => {
                let own = folder("SORA_CACHE").unwrap_or_else(|| caches().join("sora"));
                Some(PromptCache::new(own.join("prompts")))
            }
        }
    }
}

/// A variable that says something.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn folder(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn is_on(name: &str) -> bool {
    set(name).is_some_and(|value| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str()))
}

/// Where caches of all programs lie.
fn caches() -> PathBuf {
    folder("XDG_CACHE_HOME")
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .unwrap_or_else(|| env::temp_dir().join("cache"))
}

/// `HF_HOME`, or its default.
fn home() -> PathBuf {
    folder("HF_HOME").unwrap_or_else(|| caches().join("huggingface"))
}

fn cache(home: &Path) -> PathBuf {
    folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"))
}

fn token(home: &Path) -> Option<Token> {
    let given = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
    let file = || fs::read_to_string(folder("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
    given.or_else(file).and_then(|text| Token::new(&text))
}
