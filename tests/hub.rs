//! Downloads from a hub that runs in this process: what goes wrong on the way, and what never may.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "hub/commands.rs"]
mod commands;
#[path = "hub/downloads.rs"]
mod downloads;
#[path = "hub/hostile.rs"]
mod hostile;
#[path = "hub/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

use sora::{
    event::{Event, Reporter},
    hub::{Hub, HubConfig, Patience, RepoId, Token},
};
use tempfile::TempDir;

use server::{FakeHub, REPO};

/// A hub with a model folder, and an empty cache.
struct World {
    server: FakeHub,
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self { server: FakeHub::new(model()), folder: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("hf/hub")
    }

    fn config(&self) -> HubConfig {
        let patience = Patience { answer: Duration::from_secs(5), retry: Duration::from_millis(5), tries: 3 };
        HubConfig { endpoint: self.server.endpoint(), patience, ..HubConfig::new(self.cache()) }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.config())
    }

    fn offline(&self) -> Hub {
        Hub::new(HubConfig { offline: true, ..self.config() })
    }

    fn with_token(&self, token: &str) -> Hub {
        Hub::new(HubConfig { token: Token::new(token), ..self.config() })
    }

    /// Everything below the folder that holds the cache.
    fn all_files(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else {
                    let inside = path.strip_prefix(self.folder.path()).unwrap();
                    found.push(inside.to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }
}

fn repo() -> RepoId {
    RepoId::new(REPO, "main").unwrap()
}

/// The large file of [`model`].
const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

/// A model folder as far as a hub can tell, with files beside it that no model needs.
fn model() -> BTreeMap<String, Vec<u8>> {
    let index =
        r#"{"_class_name": "P", "transformer": ["diffusers", "T"], "tokenizer": ["transformers", "S"]}"#;
    let header = br#"{"w":{"dtype":"F32","shape":[50000],"data_offsets":[0,200000]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend((0..200_000u32).map(|i| (i * 7 + i / 256) as u8));
    let files: [(&str, &[u8]); 7] = [
        ("README.md", b"# Tiny"),
        ("model_index.json", index.as_bytes()),
        ("tokenizer/spiece.model", b"pieces"),
        ("transformer/config.json", b"{\"layers\": 2}"),
        (WEIGHTS, &weights),
        ("transformer/diffusion_pytorch_model.bin", b"pickled"),
        ("other.safetensors", b"of another model"),
    ];
    files.into_iter().map(|(path, bytes)| (path.to_owned(), bytes.to_vec())).collect()
}

/// Keeps what was told.
#[derive(Default)]
struct Ear {
    events: Mutex<Vec<Event>>,
    /// Asks to stop at the first progress.
    stops: bool,
}

impl Ear {
    fn heard(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

impl Reporter for Ear {
    fn emit(&self, event: &Event) -> ControlFlow<()> {
        self.events.lock().unwrap().push(event.clone());
        match event {
            Event::Progress { .. } if self.stops => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

fn read(folder: &Path, path: &str) -> Vec<u8> {
    fs::read(folder.join(path)).unwrap()
}
