use candle_core::{DType, Device, Tensor};
use serde_json::json;

use crate::{
    event::{Reporter, Silent},
    models::api::{Conditioning, DecodeOptions, Pass, Placement},
    pipeline::{
        conditions::{Condition, Conditions, Content, Source, Still},
        fake::{Fake, Recorder},
        noise::Drawn,
        pan::Pan,
        render::{Denoised, RenderRequest, Renderer},
    },
    video::VideoSpec,
};

/// Three latent frames of 4 × 4 cells; without guidance the clip becomes 4 wherever nothing is held.
fn request(conditions: Conditions) -> RenderRequest {
    RenderRequest {
        prompt: "four".into(),
        negative_prompt: String::new(),
        spec: VideoSpec { width: 32, height: 32, frames: 9, fps: 8.0 },
        pass: Pass { steps: 4, ..Pass::default() },
        seed: 11,
        max_sequence_length: 16,
        decode: DecodeOptions::default(),
        conditions,
        pan: Pan::default(),
        latents: None,
        beside: None,
        refine: false,
        start: 0,
        drawn: Drawn::default(),
    }
}

fn pixels(frames: usize, value: f32) -> Content {
    Content::Pixels(Tensor::full(value, (1, 3, frames, 32, 32), &Device::Cpu).expect("pixels"))
}

fn held(frames: usize, frame: usize, strength: f64) -> Conditions {
    let condition = Condition { content: pixels(frames, 0.5), frame, strength };
    Conditions { list: vec![condition], ..Conditions::default() }
}

fn denoise(fake: &Fake, reporter: &dyn Reporter, request: &RenderRequest) -> Denoised {
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let renderer = Renderer { checkpoint: fake, place, reporter };
    renderer.check(request).expect("a good request");
    let texts = renderer.encode(request).expect("text states");
    renderer.denoise(request, texts, &mut |_| Ok(())).expect("latents")
}

/// One value of each latent frame.
fn frames(done: &Denoised) -> Vec<f32> {
    let channel = done.latents.get(0).and_then(|x| x.get(0)).and_then(|x| x.flatten_from(1));
    let cells: Vec<Vec<f32>> = channel.and_then(|x| x.to_vec2()).expect("a channel");
    cells.into_iter().map(|frame| frame[5]).collect()
}

fn near(actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len());
    assert!(actual.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{actual:?}, not {expected:?}");
}

fn fake(conditioning: Conditioning) -> Fake {
    Fake::new(json!({})).conditioned(conditioning)
}

#[test]
fn what_is_held_in_place_stays() {
    let fake = fake(Conditioning::InPlace);
    near(&frames(&denoise(&fake, &Silent, &request(held(1, 0, 1.0)))), &[0.5, 4.0, 4.0]);
    near(&frames(&denoise(&fake, &Silent, &request(held(1, 6, 1.0)))), &[4.0, 4.0, 0.5]);
    // Of a clip in the middle, the first frame alone is no whole latent frame.
    near(&frames(&denoise(&fake, &Silent, &request(held(5, 4, 1.0)))), &[4.0, 4.0, 0.5]);
    near(&frames(&denoise(&fake, &Silent, &request(held(5, 0, 1.0)))), &[0.5, 0.5, 4.0]);
    // Held by half, it goes on to the data from half the noise.
    near(&frames(&denoise(&fake, &Silent, &request(held(1, 0, 0.5)))), &[4.0, 4.0, 4.0]);
}

#[test]
fn what_stands_beside_leaves_the_clip_alone() {
    let done = denoise(&fake(Conditioning::Beside), &Silent, &request(held(1, 6, 1.0)));
    near(&frames(&done), &[4.0, 4.0, 4.0]);
    assert_eq!(done.beside.map(|tokens| tokens.dims().to_vec()), Some(vec![1, 16, 2]));
    assert_eq!(done.drawn.clip.iter().map(|run| run.1).collect::<Vec<_>>(), [1, 2, 4], "{:?}", done.drawn);
}

#[test]
fn a_stopped_render_with_conditions_goes_on_to_the_same_latents() {
    let whole_clip = Conditions {
        list: vec![
            Condition { content: pixels(1, -0.25), frame: 0, strength: 1.0 },
            Condition { content: pixels(1, 0.75), frame: 6, strength: 0.4 },
        ],
        source: Some(Source { content: pixels(9, 0.5), strength: 0.8 }),
        still: None,
        noise_scale: Some(0.3),
    };
    for config in [json!({}), json!({ "stochastic_sampling": true })] {
        let fake = Fake::new(config);
        let asked = request(whole_clip.clone());
        let whole = denoise(&fake, &Silent, &asked);
        assert_eq!(whole.finished_steps, 4);
        let recorder = Recorder { stop_at: Some(2), ..Recorder::default() };
        let stopped = denoise(&fake, &recorder, &asked);
        assert_eq!((stopped.finished_steps, stopped.cancelled), (2, true));
        let rest = RenderRequest {
            latents: Some(stopped.latents),
            beside: stopped.beside,
            start: stopped.finished_steps,
            drawn: stopped.drawn,
            ..asked
        };
        let done = denoise(&fake, &Silent, &rest);
        assert_eq!(frames(&done), frames(&whole));
        assert_eq!(done.drawn, whole.drawn);
    }
}

#[test]
fn a_clip_to_start_from_takes_fewer_steps() {
    let fake = fake(Conditioning::InPlace);
    let asked = |strength| {
        request(Conditions {
            source: Some(Source { content: pixels(9, 0.5), strength }),
            ..Conditions::default()
        })
    };
    let recorder = Recorder::default();
    let half = denoise(&fake, &recorder, &asked(0.5));
    near(&frames(&half), &[4.0, 4.0, 4.0]);
    let steps =
        recorder.script().iter().filter(|line| line.starts_with("denoise ") && line.ends_with("/4")).count();
    assert_eq!(steps, 4, "started, caught up, two steps: {:?}", recorder.script());
    near(&frames(&denoise(&fake, &Silent, &asked(0.0))), &[0.5, 0.5, 0.5]);
}

#[test]
fn a_first_frame_stays_and_the_solver_draws_for_the_others() {
    for stochastic in [false, true] {
        let config = json!({ "stochastic_sampling": stochastic });
        let fake = Fake::new(config).conditioned(Conditioning::FirstFrame);
        let done = denoise(&fake, &Silent, &request(held(1, 0, 1.0)));
        let latents = frames(&done);
        near(&latents[1..], &[4.0, 4.0]);
        assert!((latents[0] - 0.5).abs() < 0.5 && latents[0] != 0.5, "drawn around 0.5: {latents:?}");
        let drawn = done.drawn.global.iter().map(|run| (run.0, run.1)).collect::<Vec<_>>();
        assert_eq!(drawn, if stochastic { vec![(2 * 2 * 16, 4)] } else { vec![] });
    }
}

#[test]
fn only_a_part_moves() {
    for rule in [Conditioning::FirstFrame, Conditioning::Beside, Conditioning::InPlace] {
        let fake = Fake::new(json!({})).conditioned(rule);
        // The right half of four columns may move.
        let cells: Vec<bool> = (0..16).map(|cell| cell % 4 < 2).collect();
        let still = Still { picture: pixels(1, 0.5), cells };
        let conditions = Conditions { still: Some(still.clone()), noise_scale: Some(0.0), ..held(1, 0, 1.0) };
        let done = denoise(&fake, &Silent, &request(conditions));
        let channel = done.latents.get(0).and_then(|x| x.get(0)).and_then(|x| x.flatten_from(1));
        let values: Vec<Vec<f32>> = channel.and_then(|x| x.to_vec2()).expect("a channel");
        assert!(values[0].iter().all(|v| (v - 0.5).abs() < 0.5), "the first frame is held wholly");
        for frame in &values[1..] {
            for (cell, value) in frame.iter().enumerate() {
                let expected = if still.cells[cell] { 0.5 } else { 4.0 };
                assert!((value - expected).abs() < 1e-4, "{rule:?}, cell {cell}: {value}, not {expected}");
            }
        }
    }
    let nothing = Still { picture: pixels(1, 0.5), cells: vec![true; 16] };
    let request = request(Conditions { still: Some(nothing), ..Conditions::default() });
    let fake = Fake::new(json!({}));
    let place = Placement { device: Device::Cpu, dtype: DType::F32 };
    let told = Renderer { checkpoint: &fake, place, reporter: &Silent }.check(&request).expect_err("refused");
    assert_eq!(told.to_string(), "invalid part that moves: no cell of 8x8 pixels would move");
}
