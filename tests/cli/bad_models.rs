//! Broken model folders: the file, what is wrong with it, code 3, nothing written.

use std::{fs, path::Path};

use predicates::str::contains;
use serde_json::{Value, json};

use crate::bench::{Bench, SMALL, copy_of_mini, edit};

const TRANSFORMER: &str = "model/transformer/diffusion_pytorch_model.safetensors";
const VAE: &str = "model/vae/diffusion_pytorch_model.safetensors";

/// Generates with a copy of the embedded model that `harm` was done to.
fn refused(harm: impl FnOnce(&Bench), code: i32) -> String {
    let bench = Bench::new();
    copy_of_mini(&bench.path("model"));
    harm(&bench);
    let args = [["gen", "a red fox", "--model", "model", "-o", "out.mp4"].as_slice(), &SMALL].concat();
    let before = bench.names();
    let output = bench.sora(&args).assert().code(code).get_output().clone();
    assert!(output.stdout.is_empty(), "nothing on stdout");
    let kept = |name: &String| name != "out.mp4.latents.safetensors";
    assert!(bench.names().iter().filter(|name| kept(name)).eq(before.iter()), "{:?}", bench.names());
    String::from_utf8(output.stderr).expect("stderr is text")
}

/// Overwrites all values of the tensors whose names start with `prefix` by one byte.
fn fill(path: &Path, prefix: &str, byte: u8) {
    let mut file = fs::read(path).expect("the file is there");
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("the header is JSON");
    let tensors = header.as_object().expect("an object").iter().filter(|(name, _)| name.starts_with(prefix));
    let mut found = 0;
    for (_, tensor) in tensors {
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().expect("an offset") as usize + 8 + length;
        file[offset(0)..offset(1)].fill(byte);
        found += 1;
    }
    assert!(found > 0, "no tensor `{prefix}…`");
    fs::write(path, file).expect("a file can be written");
}

#[test]
fn no_folder_or_not_a_model() {
    let bench = Bench::new();
    let stderr = bench.refused(&["gen", "fox", "--model", "nowhere", "-o", "out.mp4"], 2);
    assert!(stderr.contains("nowhere") && stderr.contains("hint: "), "{stderr}");
    fs::create_dir(bench.path("empty")).expect("a folder can be made");
    let stderr = bench.refused(&["gen", "fox", "--model", "empty", "-o", "out.mp4"], 3);
    assert!(stderr.contains("model_index.json is missing"), "{stderr}");
    bench.refused(&["info", "empty"], 3);
}

#[test]
fn another_pipeline() {
    let harm = |bench: &Bench| {
        edit(&bench.path("model/model_index.json"), |json| {
            json["_class_name"] = json!("StableDiffusionPipeline")
        });
    };
    let stderr = refused(harm, 3);
    assert!(stderr.contains("`StableDiffusionPipeline`") && stderr.contains("LTXPipeline"), "{stderr}");
}

#[test]
fn a_missing_file() {
    for file in [TRANSFORMER, VAE, "model/vae/config.json", "model/scheduler/scheduler_config.json"] {
        let stderr = refused(|bench| fs::remove_file(bench.path(file)).expect("the file is there"), 3);
        assert!(stderr.contains(file.rsplit('/').next().expect("a name")), "{file}: {stderr}");
    }
}

#[test]
fn a_truncated_file() {
    for keep in [0, 5, 1000, 100_000] {
        let cut = |bench: &Bench| {
            let file =
                fs::OpenOptions::new().write(true).open(bench.path(TRANSFORMER)).expect("the file is there");
            file.set_len(keep).expect("a file can be cut");
        };
        let stderr = refused(cut, 3);
        assert!(stderr.contains("diffusion_pytorch_model.safetensors is damaged"), "{keep}: {stderr}");
        assert!(stderr.contains("hint: "), "{stderr}");
    }
    let stderr = refused(|bench| fs::write(bench.path("model/vae/config.json"), "{").expect("written"), 3);
    assert!(stderr.contains("config.json is damaged"), "{stderr}");
}

#[test]
fn weights_of_another_shape() {
    let stderr = refused(
        |bench| {
            edit(&bench.path("model/text_encoder/config.json"), |json| {
                json["d_ff"] = json!(json["d_ff"].as_u64().expect("a number") + 8);
            });
        },
        3,
    );
    assert!(stderr.contains("has shape") && stderr.contains("expected"), "{stderr}");
    let stderr = refused(
        |bench| {
            edit(&bench.path("model/transformer/config.json"), |json| {
                json["num_layers"] = json!(json["num_layers"].as_u64().expect("a number") + 1);
            });
        },
        3,
    );
    assert!(stderr.contains("is missing"), "{stderr}");
}

#[test]
fn weights_that_hold_nan() {
    let stderr = refused(|bench| fill(&bench.path(TRANSFORMER), "proj_out.bias", 0xff), 3);
    assert!(stderr.contains("`proj_out.bias`") && stderr.contains("not finite"), "{stderr}");
}

#[test]
fn a_model_that_paints_one_colour_is_never_a_silent_success() {
    let bench = Bench::new();
    copy_of_mini(&bench.path("model"));
    fill(&bench.path(VAE), "decoder.conv_out", 0);
    let assert = bench.generate(&["--model", "model", "-o", "out.mp4", "--json"]).assert().code(6);
    let assert = assert.stderr(contains("error: the output is all one colour"));
    let clip: Value = serde_json::from_slice(&assert.get_output().stdout).expect("a JSON object");
    assert_eq!(clip["health"]["verdict"], "one-colour");
    assert!(bench.path("out.mp4").is_file(), "the file is there to be looked at");
}
