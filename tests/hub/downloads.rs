//! What is fetched, and how it survives a bad connection.

use std::fs;

use sora::{
    Error, ErrorKind,
    event::{Event, Phase, Silent},
    hub::{Hub, HubConfig, RepoId, Wanted},
};

use crate::{
    Ear, WEIGHTS, World, model, read, repo,
    server::{COMMIT, Fault, REPO, sha256},
};

fn weights() -> [Wanted; 1] {
    [Wanted::named(WEIGHTS)]
}

#[test]
fn a_model_folder_is_fetched_once_and_then_found_offline() {
    let world = World::new();
    let hub = world.hub();
    let wanted = hub.model_folder(&repo()).unwrap();
    let paths: Vec<&str> = wanted.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["tokenizer/spiece.model", "transformer/config.json", WEIGHTS, "model_index.json"]);
    assert!(hub.cached_folder(&repo()).is_none());
    let ear = Ear::default();
    let fetched = hub.fetch(&repo(), &wanted, &ear).unwrap();
    assert_eq!(fetched.commit, COMMIT);
    for path in paths {
        assert_eq!(read(&fetched.folder, path), model()[path], "{path}");
    }
    // As the Python library lays its cache out.
    assert!(fetched.folder.ends_with(format!("hub/models--acme--tiny-video/snapshots/{COMMIT}")));
    let link = fs::read_link(fetched.folder.join(WEIGHTS)).unwrap();
    assert_eq!(link.to_string_lossy(), format!("../../../blobs/{}", sha256(&model()[WEIGHTS])));
    let told = fs::read(world.cache().join("models--acme--tiny-video/refs/main")).unwrap();
    assert_eq!(told, COMMIT.as_bytes());
    assert!(world.all_files().iter().all(|name| !name.contains("incomplete") && !name.ends_with(".bin")));

    let events = ear.heard();
    let total: u64 = wanted.iter().map(|file| model()[&file.path].len() as u64).sum();
    assert!(
        events
            .iter()
            .any(|e| matches!(e, Event::Started { phase: Phase::Download, total: t } if *t == total))
    );
    assert!(events.iter().any(|e| matches!(e, Event::Progress { done, .. } if *done == total)));
    assert!(matches!(events.last(), Some(Event::Finished { phase: Phase::Download, .. })));

    let before = world.server.asked().len();
    let offline = world.offline();
    assert_eq!(offline.cached_folder(&repo()), Some(fetched.clone()));
    assert_eq!(offline.cached(&repo(), &wanted), Some(fetched.clone()));
    let by_commit = RepoId::new(REPO, COMMIT).unwrap();
    assert_eq!(offline.cached_folder(&by_commit), Some(fetched.clone()));
    assert_eq!(world.server.asked().len(), before, "nothing was asked");
    hub.fetch(&repo(), &wanted, &Silent).unwrap();
    assert_eq!(world.server.stored(WEIGHTS).len(), 1, "the weights came once");
}

#[test]
fn offline_says_what_is_missing() {
    let world = World::new();
    let error = world.offline().fetch(&repo(), &weights(), &Silent).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Hub);
    assert!(error.to_string().contains("it isn't in the cache, and nothing may be downloaded"), "{error}");
    assert!(error.hint().unwrap().contains("--offline"));
    assert!(world.server.asked().is_empty());
    assert!(world.offline().listing(&repo()).is_err());
}

#[test]
fn a_download_that_is_cut_goes_on() {
    let world = World::new();
    world.server.fail(WEIGHTS, &[Fault::Cut(70_000), Fault::Busy, Fault::Cut(1000)]);
    let fetched = world.hub().fetch(&repo(), &weights(), &Silent).unwrap();
    assert_eq!(read(&fetched.folder, WEIGHTS), model()[WEIGHTS]);
    let ranges: Vec<Option<String>> = world.server.stored(WEIGHTS).into_iter().map(|a| a.range).collect();
    let from = |byte: usize| Some(format!("bytes={byte}-"));
    assert_eq!(ranges, [None, from(70_000), from(70_000), from(71_000)]);
}

#[test]
fn what_an_earlier_run_left_is_gone_on_with() {
    let world = World::new();
    let content = &model()[WEIGHTS];
    let blobs = world.cache().join("models--acme--tiny-video/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.incomplete", sha256(content))), &content[..123_456]).unwrap();
    let fetched = world.hub().fetch(&repo(), &weights(), &Silent).unwrap();
    assert_eq!(read(&fetched.folder, WEIGHTS), *content);
    let asked = world.server.stored(WEIGHTS);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].range.as_deref(), Some("bytes=123456-"));
}

#[test]
fn a_server_that_knows_no_ranges_is_heard_from_the_beginning() {
    let world = World::new();
    world.server.behave().no_ranges = true;
    world.server.fail(WEIGHTS, &[Fault::Cut(70_000)]);
    let fetched = world.hub().fetch(&repo(), &weights(), &Silent).unwrap();
    assert_eq!(read(&fetched.folder, WEIGHTS), model()[WEIGHTS]);
}

#[test]
fn a_wrong_byte_is_caught_and_fetched_again() {
    let world = World::new();
    for path in [WEIGHTS, "transformer/config.json"] {
        world.server.fail(path, &[Fault::Flip]);
        let ear = Ear::default();
        let fetched = world.hub().fetch(&repo(), &[Wanted::named(path)], &ear).unwrap();
        assert_eq!(read(&fetched.folder, path), model()[path], "{path}");
        let warned = |e: &Event| matches!(e, Event::Warning { message } if message.contains("wrong bytes"));
        assert_eq!(ear.heard().iter().filter(|event| warned(event)).count(), 1, "{path}");
    }
}

#[test]
fn bytes_that_stay_wrong_never_enter_the_cache() {
    let world = World::new();
    world.server.fail(WEIGHTS, &[Fault::Flip; 9]);
    let error = world.hub().fetch(&repo(), &weights(), &Silent).unwrap_err();
    assert!(matches!(error, Error::WrongBytes { .. }), "{error}");
    assert!(error.to_string().contains(&sha256(&model()[WEIGHTS])), "{error}");
    assert_eq!(world.server.stored(WEIGHTS).len(), 3);
    assert!(world.all_files().iter().all(|name| name.ends_with(".lock")), "{:?}", world.all_files());
}

#[test]
fn the_catalogs_hash_counts_whatever_the_hub_says() {
    let world = World::new();
    let wanted = |sha256: String| [Wanted { sha256: Some(sha256), ..Wanted::named(WEIGHTS) }];
    let error = world.hub().fetch(&repo(), &wanted("0".repeat(64)), &Silent).unwrap_err();
    assert!(matches!(error, Error::WrongBytes { .. }), "{error}");
    world.hub().fetch(&repo(), &wanted(sha256(&model()[WEIGHTS])), &Silent).unwrap();
}

#[test]
fn a_download_that_is_stopped_keeps_what_it_has() {
    let world = World::new();
    world.server.behave().slow = true;
    let ear = Ear { stops: true, ..Ear::default() };
    let error = world.hub().fetch(&repo(), &weights(), &ear).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(world.hub().cached(&repo(), &weights()).is_none());
    let kept = world.all_files().into_iter().find(|name| name.ends_with(".incomplete")).unwrap();
    assert!(fs::metadata(world.folder.path().join(kept)).unwrap().len() > 0);
    world.server.behave().slow = false;
    let fetched = world.hub().fetch(&repo(), &weights(), &Silent).unwrap();
    assert_eq!(read(&fetched.folder, WEIGHTS), model()[WEIGHTS]);
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let world = World::new();
    world.server.behave().slow = true;
    let fetch = |_| world.hub().fetch(&repo(), &weights(), &Silent).unwrap();
    let both: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|i| scope.spawn(move || fetch(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(both[0], both[1]);
    assert_eq!(read(&both[0].folder, WEIGHTS), model()[WEIGHTS]);
    assert_eq!(world.server.stored(WEIGHTS).len(), 1);
}

#[test]
fn refusals_say_what_to_do() {
    let world = World::new();
    let refusal = |hub: Hub, repo: &str, revision: &str, path: &str| {
        let repo = RepoId::new(repo, revision).unwrap();
        let error = hub.fetch(&repo, &[Wanted::named(path)], &Silent).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Hub, "{error}");
        format!("{error}\n{}", error.hint().unwrap())
    };
    let told = refusal(world.hub(), REPO, "main", "no.json");
    assert!(told.contains("there is no file no.json at revision `main` (404)"), "{told}");
    let told = refusal(world.hub(), "acme/other", "main", "a.json");
    assert!(told.contains("there is no repository acme/other (404)") && told.contains("spelling"), "{told}");
    let error = world.hub().listing(&RepoId::new(REPO, "v9").unwrap()).unwrap_err().to_string();
    assert!(error.contains("there is no revision `v9`"), "{error}");

    world.server.behave().token = Some("hf_right".into());
    let told = refusal(world.hub(), REPO, "main", WEIGHTS);
    assert!(
        told.contains("(401)") && told.contains("HF_TOKEN") && told.contains("settings/tokens"),
        "{told}"
    );
    let told = refusal(world.with_token("hf_wrong"), REPO, "main", WEIGHTS);
    assert!(told.contains("refuses your token") && told.contains(REPO), "{told}");
    world.with_token("hf_right").fetch(&repo(), &weights(), &Silent).unwrap();
    let to_store: Vec<_> = world.server.asked().into_iter().filter(|asked| asked.at_store).collect();
    assert!(!to_store.is_empty() && to_store.iter().all(|asked| asked.authorization.is_none()));

    let config = HubConfig { endpoint: "http://127.0.0.1:1".into(), ..world.config() };
    let told = refusal(Hub::new(config), REPO, "main", WEIGHTS);
    assert!(told.contains("check the connection to http://127.0.0.1:1"), "{told}");
}

#[test]
fn headers_come_without_the_weights() {
    let world = World::new();
    let hub = world.hub();
    let wanted = hub.model_folder(&repo()).unwrap();
    let shadow = hub.shadow(&repo(), &wanted).unwrap();
    let content = &model()[WEIGHTS];
    let length = 8 + u64::from_le_bytes(content[..8].try_into().unwrap()) as usize;
    let copy = read(shadow.folder(), WEIGHTS);
    assert_eq!(copy.len(), content.len());
    assert_eq!(copy[..length], content[..length]);
    assert!(copy[length..].iter().all(|byte| *byte == 0));
    assert_eq!(read(shadow.folder(), "transformer/config.json"), model()["transformer/config.json"]);
    assert_eq!((shadow.bytes, shadow.missing_bytes), (shadow.bytes, shadow.bytes));
    let ranges: Vec<Option<String>> = world.server.stored(WEIGHTS).into_iter().map(|a| a.range).collect();
    assert_eq!(ranges, [Some("bytes=0-7".to_owned()), Some(format!("bytes=0-{}", length - 1))]);

    hub.fetch(&repo(), &wanted, &Silent).unwrap();
    let before = world.server.asked().len();
    let shadow = world.offline().shadow(&repo(), &wanted).unwrap();
    assert_eq!(read(shadow.folder(), WEIGHTS), *content);
    assert_eq!((shadow.missing_bytes, world.server.asked().len()), (0, before));
}

#[test]
fn damage_in_the_cache_is_found_and_repaired() {
    let world = World::new();
    let hub = world.hub();
    let wanted = hub.model_folder(&repo()).unwrap();
    let fetched = hub.fetch(&repo(), &wanted, &Silent).unwrap();
    let wrong = |repair| {
        let verified = hub.verify(&repo(), &|_| true, repair, &Silent).unwrap();
        verified.into_iter().filter(|file| file.wrong.is_some()).map(|file| file.path).collect::<Vec<_>>()
    };
    assert!(wrong(false).is_empty());
    for path in [WEIGHTS, "transformer/config.json"] {
        let mut bytes = read(&fetched.folder, path);
        bytes[5] ^= 1;
        fs::write(fetched.folder.join(path), bytes).unwrap();
    }
    assert_eq!(wrong(true), ["transformer/config.json", WEIGHTS]);
    assert!(hub.cached_folder(&repo()).is_none(), "half a model is none");
    hub.fetch(&repo(), &wanted, &Silent).unwrap();
    assert!(wrong(false).is_empty());
}

#[test]
fn the_cache_is_listed_and_cleared() {
    let world = World::new();
    let hub = world.hub();
    assert!(hub.cache().list().unwrap().is_empty());
    let wanted = hub.model_folder(&repo()).unwrap();
    hub.fetch(&repo(), &wanted, &Silent).unwrap();
    let listed = hub.cache().list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id.as_str(), listed[0].revisions.len()), (REPO, 1));
    assert_eq!(listed[0].revisions[0].refs, ["main"]);
    assert_eq!(listed[0].revisions[0].files.len(), wanted.len());
    assert_eq!(hub.cache().remove(&repo()).unwrap(), listed[0].bytes);
    assert_eq!(hub.cache().remove(&repo()).unwrap(), 0);
    assert!(hub.cache().list().unwrap().is_empty());
    hub.fetch(&repo(), &wanted, &Silent).unwrap();
    let weights = model()[WEIGHTS].len() as u64;
    assert_eq!(hub.cache().remove_files(&repo(), COMMIT, &|path| path == WEIGHTS).unwrap(), weights);
    assert!(hub.cached_folder(&repo()).is_none());
    assert_eq!(hub.cache().files(&repo(), COMMIT).unwrap().len(), wanted.len() - 1);
    assert_eq!(hub.cache().remove_files(&repo(), COMMIT, &|_| true).unwrap(), listed[0].bytes - weights);
    assert_eq!(hub.cache().commit(&repo()), None);
}
