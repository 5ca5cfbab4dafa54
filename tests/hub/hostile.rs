//! A hub that means harm: nothing it says leads out of the cache.

use std::fs;

use sora::{
    Error,
    event::Silent,
    hub::{HubConfig, Wanted},
};

use crate::{
    WEIGHTS, World, repo,
    server::{COMMIT, sha256},
};

/// Names that lead out of a folder, on one system or another.
const NAMES: [&str; 9] = [
    "../evil.json",
    "transformer/../../../../evil.json",
    "/tmp/evil.json",
    "..\\evil.json",
    "transformer\\..\\..\\evil.json",
    "C:evil.json",
    "transformer/./evil.json",
    "transformer//evil.json",
    "transformer/evil\n.json",
];

#[test]
fn hostile_file_names_are_not_even_listed() {
    let world = World::new();
    world.server.behave().listed = NAMES.into_iter().map(str::to_owned).collect();
    let listing = world.hub().listing(&repo()).unwrap();
    assert!(listing.files.iter().all(|file| !file.path.contains("evil")), "{listing:?}");
    let wanted = world.hub().model_folder(&repo()).unwrap();
    assert!(wanted.iter().all(|file| !file.path.contains("evil")));
}

#[test]
fn hostile_file_names_are_never_fetched() {
    let world = World::new();
    for name in NAMES {
        let error = world.hub().fetch(&repo(), &[Wanted::named(name)], &Silent).unwrap_err();
        assert!(error.to_string().contains("out of the cache"), "{name:?}: {error}");
        assert!(world.hub().shadow(&repo(), &[Wanted::named(name)]).is_err());
    }
    assert!(world.server.asked().is_empty());
    assert!(world.all_files().is_empty());
}

#[test]
fn files_that_run_code_are_never_fetched() {
    let world = World::new();
    for name in ["transformer/diffusion_pytorch_model.bin", "run.py", "model.ckpt"] {
        let error = world.hub().fetch(&repo(), &[Wanted::named(name)], &Silent).unwrap_err();
        assert!(error.to_string().contains("only safetensors"), "{name}: {error}");
    }
    assert!(world.server.asked().is_empty());
}

#[test]
fn hostile_hashes_and_commits_become_no_paths() {
    for etag in ["../../../../evil", "/etc/evil", "a/b", "", ".."] {
        let world = World::new();
        world.server.behave().etag = Some(etag.into());
        let error = world.hub().fetch(&repo(), &[Wanted::named(WEIGHTS)], &Silent).unwrap_err();
        assert!(matches!(error, Error::Hub { .. }), "{etag}: {error}");
        assert!(world.all_files().is_empty(), "{etag}: {:?}", world.all_files());
    }
    for commit in ["../../../../evil", "main", "0123", &"Z".repeat(40)] {
        let world = World::new();
        world.server.behave().commit = Some(commit.into());
        let error = world.hub().fetch(&repo(), &[Wanted::named(WEIGHTS)], &Silent).unwrap_err();
        assert!(error.to_string().contains("names no commit"), "{commit}: {error}");
        assert!(world.hub().listing(&repo()).is_err());
        assert!(world.all_files().is_empty(), "{commit}: {:?}", world.all_files());
    }
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_lead_nobody_out_of_it() {
    let world = World::new();
    let outside = world.folder.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    let snapshot = world.cache().join("models--acme--tiny-video/snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    std::os::unix::fs::symlink(&outside, snapshot.join("transformer")).unwrap();
    let error = world.hub().fetch(&repo(), &[Wanted::named(WEIGHTS)], &Silent).unwrap_err();
    assert!(error.to_string().contains("out of the cache"), "{error}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn redirects_stay_with_the_web() {
    let world = World::new();
    for (store, why) in
        [("file:///etc", "sends on to"), ("ftp://127.0.0.1", "sends on to"), ("", "sends on and on")]
    {
        // An empty store is the hub itself, which sends on again for ever.
        let own = format!("{}/acme/tiny-video/resolve/main/{WEIGHTS}#", world.server.endpoint());
        world.server.behave().store = Some(if store.is_empty() { own } else { store.into() });
        let error = world.hub().fetch(&repo(), &[Wanted::named(WEIGHTS)], &Silent).unwrap_err();
        assert!(error.to_string().contains(why), "{store}: {error}");
    }
    assert!(world.all_files().iter().all(|name| !name.contains("snapshots")), "{:?}", world.all_files());
}

#[test]
fn more_bytes_than_promised_dont_fill_the_disk() {
    let world = World::new();
    // The hash is right, the size isn't.
    let lie = [Wanted { size: Some(10), sha256: Some(sha256(b"x")), ..Wanted::named(WEIGHTS) }];
    let error = world.hub().fetch(&repo(), &lie, &Silent).unwrap_err();
    assert!(error.to_string().contains("expected 10"), "{error}");
    assert!(world.all_files().is_empty());
}

#[test]
fn an_endpoint_that_is_no_address_is_refused() {
    let world = World::new();
    let hub = sora::hub::Hub::new(HubConfig { endpoint: "not an address".into(), ..world.config() });
    assert!(hub.listing(&repo()).is_err());
}
