use super::*;

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    // The least PNG there is: one grey pixel.
    let frame = crate::video::Frame { width: 1, height: 1, rgb: vec![9, 9, 9] };
    let target = media::Target::parse(folder.path().join("fox.png").to_str().unwrap()).unwrap();
    let mut sink = media::open_sink(&target, 1, 1, &media::EncodeOptions::default()).unwrap();
    crate::video::FrameSink::push(&mut *sink, frame).unwrap();
    sink.finish().unwrap();
    folder
}

const FILM: &str = r#"
[film]
size = "64x64"
style = "black and white"
seed = 3
duration = 1.5

[characters.fox]
description = "a red fox with a blue scarf"
seed = 11
reference = "fox.png"

[[shots]]
name = "The Start!"
prompt = "{fox} runs through snow"
camera = "slow pan left"

[[shots]]
prompt = "the empty wood"
duration = "2s"
transition = "dissolve 0.25s"
style = "3d"

[[shots]]
prompt = "{ fox } sleeps, {fox} dreams"
transition = "continue"
seed = 5
"#;

#[test]
fn characters_and_settings_reach_their_shots() {
    let folder = folder();
    let film = Film::parse(FILM, folder.path()).unwrap();
    assert_eq!(film.settings.size, Some(Size { width: 64, height: 64 }));
    let [first, second, third] = &film.shots[..] else { panic!("three shots") };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("the-start", "shot-02"));
    assert_eq!(first.prompt, "a red fox with a blue scarf runs through snow");
    assert_eq!((first.seed, second.seed, third.seed), (11, 3, 5));
    assert_eq!((first.duration, second.duration), (1.5, 2.0));
    assert_eq!(first.references.len(), 1);
    assert!(second.references.is_empty() && third.references.is_empty());
    assert_eq!((first.style.as_deref(), second.style.as_deref()), (Some("black and white"), Some("3d")));
    assert_eq!(second.transition, Transition::Dissolve(0.25));
    assert_eq!(third.transition, Transition::Continue);
    assert_eq!(third.cast, ["fox"]);
    assert!(third.prompt.ends_with("a red fox with a blue scarf dreams"));
}

/// The complaints about the film with one text changed into another.
fn told(from: &str, to: &str) -> Vec<String> {
    let folder = folder();
    assert!(FILM.contains(from), "{from}");
    let complaints = Film::parse(&FILM.replace(from, to), folder.path()).expect_err("something is wrong");
    complaints.iter().map(ToString::to_string).collect()
}

#[test]
fn slips_name_their_place_and_the_nearest_key() {
    assert_eq!(told("camera =", "camra ="), ["16:1: unknown key `camra`: did you mean `camera`?"]);
    assert_eq!(
        told("[characters.fox]", "[charaters.fox]")[0],
        "8:2: unknown key `charaters`: did you mean `characters`?"
    );
    assert_eq!(told("{fox} runs", "{fx} runs"), ["15:10: no character is named `fx`: did you mean `{fox}`?"]);
    assert_eq!(told("\"fox.png\"", "\"fux.png\""), ["11:13: there is no picture `fux.png`"]);
    assert_eq!(
        told("dissolve 0.25s", "disolve"),
        ["21:14: unknown transition `disolve`: did you mean `dissolve`?"]
    );
    assert!(told("slow pan left", "pan left from 3s to 1s")[0].starts_with("16:10: invalid camera"));
    assert!(told("seed = 3", "seed = -3")[0].starts_with("5:8: `seed` is no whole number"));
    assert!(told("\"64x64\"", "64")[0].starts_with("3:8: `size`: expected a text in quotes, found integer"));
    assert!(told("seed = 3", "seed = ")[0].starts_with("5:"));
}

#[test]
fn times_that_cant_be_are_told() {
    assert!(told("duration = 1.5", "duration = 0")[0].starts_with("6:12: a shot can't last 0 s"));
    assert!(told("\"2s\"", "\"3h\"")[0].contains("`duration` is no time"));
    assert!(told("\"2s\"", "9999")[0].contains("at most an hour"));
    assert!(told("dissolve 0.25s", "dissolve 5s")[0].contains("one of the two lasts 1.5 s"));
    assert!(
        told("camera = \"slow pan left\"", "transition = \"continue\"")[0].contains("nothing to come from")
    );
    assert!(told("duration = 1.5\n", "\n")[0].contains("has no `duration`"));
    let held = "camera = \"static\"\nreference = { path = \"fox.png\", at = \"4s\" }";
    assert!(told("camera = \"slow pan left\"", held)[0].contains("ends before"));
}

#[test]
fn nothing_is_not_a_film() {
    let told = Film::parse("", Path::new(".")).unwrap_err();
    assert!(told[0].text.contains("no shots"), "{told:?}");
}
