use serde_json::json;

use super::*;
use crate::{
    event::Silent,
    models::api::{Guidance, PerStep, Upsample, UpsamplerInfo},
    pipeline::fake::{Fake, Recorder, Repeat},
    video::Frames,
};

fn guided(scale: f64) -> Pass {
    let guidance = Guidance { scale: PerStep::All(scale), ..Guidance::default() };
    Pass { steps: 3, guidance, ..Pass::default() }
}

fn request() -> RenderRequest {
    RenderRequest {
        prompt: "four".into(),
        negative_prompt: "no".into(),
        spec: VideoSpec { width: 32, height: 48, frames: 5, fps: 8.0 },
        pass: guided(3.0),
        seed: 11,
        max_sequence_length: 16,
        decode: DecodeOptions { timestep: 0.5, ..DecodeOptions::default() },
        conditions: Conditions::default(),
        pan: Pan::default(),
        latents: None,
        beside: None,
        refine: false,
        start: 0,
        drawn: Drawn::default(),
    }
}

fn renderer<'a>(fake: &'a Fake, reporter: &'a dyn Reporter) -> Renderer<'a> {
    Renderer { checkpoint: fake, place: Placement { device: Device::Cpu, dtype: DType::F32 }, reporter }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().expect("flat").to_vec1().expect("f32")
}

/// The whole way; gives the latents and the frames.
fn render(renderer: &Renderer<'_>, request: &RenderRequest) -> Result<(Denoised, Vec<Vec<u8>>)> {
    renderer.check(request)?;
    let texts = renderer.encode(request)?;
    let done = renderer.denoise(request, texts, &mut |_| Ok(()))?;
    let mut sink = Frames::default();
    renderer.decode(&done.latents, &request.spec, request.seed, &done.drawn, &request.decode, &mut sink)?;
    Ok((done, sink.0.into_iter().map(|frame| frame.rgb).collect()))
}

fn refusal(change: impl FnOnce(&mut RenderRequest)) -> (String, Option<String>) {
    let fake = Fake::new(json!({}));
    let mut request = request();
    change(&mut request);
    let error = renderer(&fake, &Silent).check(&request).expect_err("refused");
    assert_eq!(error.kind(), crate::ErrorKind::Usage);
    (error.to_string(), error.hint())
}

#[test]
fn refuses_before_anything_is_loaded() {
    let told = |change: fn(&mut RenderRequest)| refusal(change).0;
    assert_eq!(told(|r| r.prompt = " \n".into()), "invalid prompt: it is empty");
    assert_eq!(
        refusal(|r| r.spec.frames = 6),
        ("invalid frame count 6: expected 4k+1".into(), Some("pass --frames 5 or --frames 9".into()))
    );
    assert_eq!(told(|r| r.pass.steps = 0), "invalid step count 0: expected at least 1");
    assert_eq!(told(|r| r.pass = guided(-1.0)), "invalid guidance -1: expected a number from 0 on");
    assert_eq!(told(|r| r.pass = guided(f64::NAN)), "invalid guidance NaN: expected a number from 0 on");
    assert_eq!(
        told(|r| r.pass.guidance.rescale = 1.5),
        "invalid guidance rescale 1.5: expected a number from 0 to 1"
    );
    assert_eq!(told(|r| r.spec.fps = 0.0), "invalid frame rate 0: expected a number above 0");
    assert_eq!(told(|r| r.max_sequence_length = 0), "invalid prompt length 0: expected at least 1 token");
    assert!(told(|r| r.pass.timesteps = Some(vec![1.0, 2.0])).contains("less than the one before"));
    assert!(told(|r| r.decode.timestep = 2.0).contains("decode timestep"));
    assert!(told(|r| r.decode.tiling.spatial = Some((64, 65))).contains("stride"));
    assert!(told(|r| r.start = 1).contains("only saved latents"));
    let latents = |shape: &[usize]| Some(Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros"));
    let wrong = refusal(|r| r.latents = latents(&[1, 2, 2, 4, 4])).0;
    assert_eq!(
        wrong,
        "invalid latents of shape [1, 2, 2, 4, 4]: expected [1, 2, 2, 6, 4] for 5 frames of 32x48"
    );
    let finished = refusal(|r| (r.latents, r.start) = (latents(&[1, 2, 2, 6, 4]), 4)).0;
    assert!(finished.contains("at most the 3 steps"), "{finished}");
    let fake = Fake::new(json!({}));
    renderer(&fake, &Silent).check(&request()).expect("a good request");
    assert_eq!(fake.most_alive.into_inner(), 0);
}

#[test]
fn what_is_denoised_already_needs_no_denoiser() {
    let fake = Fake::new(json!({}));
    let latents = Tensor::ones(&[1, 2, 2, 6, 4], DType::F32, &Device::Cpu).expect("ones");
    let request = RenderRequest { latents: Some(latents.clone()), start: 3, ..request() };
    let done = renderer(&fake, &Silent).denoise(&request, Vec::new(), &mut |_| Ok(())).expect("the latents");
    assert_eq!((done.finished_steps, done.steps, done.cancelled), (3, 3, false));
    assert_eq!(values(&done.latents), values(&latents));
    assert_eq!(fake.most_alive.into_inner(), 0);
}

#[test]
fn goes_the_whole_way_one_stage_at_a_time() {
    let fake = Fake::new(json!({}));
    let recorder = Recorder::default();
    let (done, frames) = render(&renderer(&fake, &recorder), &request()).expect("a clip");
    // "no" has 2 letters and "four" has 4: 2 + 3 · (4 − 2).
    assert!(values(&done.latents).iter().all(|v| (v - 8.0).abs() < 1e-4));
    assert_eq!((done.finished_steps, done.steps, done.cancelled), (3, 3, false));
    assert_eq!(done.drawn, Drawn::initial_noise(&[1, 2, 2, 6, 4]));
    assert_eq!(frames.len(), 5);
    assert!(frames.iter().all(|rgb| rgb.len() == 32 * 48 * 3));
    assert_eq!(fake.most_alive.load(std::sync::atomic::Ordering::SeqCst), 1);
    let load = ["load 0/1", "load 1/1", "load done"];
    let mut script: Vec<&str> = Vec::new();
    script.extend(load);
    script.extend(["encodeprompt 0/2", "encodeprompt 1/2", "encodeprompt 2/2", "encodeprompt done"]);
    script.extend(load);
    script.extend(["denoise 0/3", "denoise 1/3", "denoise 2/3", "denoise 3/3", "denoise done"]);
    script.extend(load);
    script.extend([
        "decode 0/5",
        "decode 1/5",
        "decode 2/5",
        "decode 3/5",
        "decode 4/5",
        "decode 5/5",
        "decode done",
    ]);
    assert_eq!(recorder.script(), script);
}

#[test]
fn says_what_was_cut_off() {
    let fake = Fake::new(json!({}));
    let recorder = Recorder::default();
    let long = RenderRequest { prompt: "0123456789abcdefghij".into(), pass: guided(1.0), ..request() };
    let texts = renderer(&fake, &recorder).encode(&long).expect("text states");
    assert_eq!(texts.len(), 1);
    let told = "the prompt is longer than 16 tokens, this part is not heard: `ghij`";
    assert!(recorder.script().iter().any(|line| line == told), "{:?}", recorder.script());
}

#[test]
fn a_stopped_render_goes_on_to_the_same_frames() {
    for config in [json!({}), json!({ "stochastic_sampling": true })] {
        let fake = Fake::new(config);
        let (whole, expected) = render(&renderer(&fake, &Silent), &request()).expect("a clip");
        let recorder = Recorder { stop_at: Some(1), ..Recorder::default() };
        let stopping = renderer(&fake, &recorder);
        let texts = stopping.encode(&request()).expect("text states");
        let stopped = stopping.denoise(&request(), texts, &mut |_| Ok(())).expect("a stop");
        assert_eq!((stopped.finished_steps, stopped.cancelled), (1, true));
        let rest = RenderRequest {
            latents: Some(stopped.latents),
            beside: stopped.beside,
            start: stopped.finished_steps,
            drawn: stopped.drawn,
            ..request()
        };
        let (done, frames) = render(&renderer(&fake, &Silent), &rest).expect("the rest");
        assert_eq!(values(&done.latents), values(&whole.latents));
        assert_eq!(done.drawn, whole.drawn);
        assert!(frames == expected);
    }
}

#[test]
fn given_latents_are_used_and_draw_nothing() {
    let fake = Fake::new(json!({}));
    let latents = Tensor::zeros((1, 2, 2, 6, 4), DType::F32, &Device::Cpu).expect("zeros");
    let given = RenderRequest { latents: Some(latents), ..request() };
    let renderer = renderer(&fake, &Silent);
    let texts = renderer.encode(&given).expect("text states");
    let mut first = None;
    let mut hook = |step: &super::super::denoise::Step<'_>| {
        first.get_or_insert(values(&step.latents()?));
        Ok(())
    };
    let done = renderer.denoise(&given, texts, &mut hook).expect("latents");
    assert_eq!(done.drawn, Drawn::default());
    let first = first.expect("a step");
    assert!(first.iter().all(|v| *v == first[0]), "all tokens began alike");
}

#[test]
fn a_second_pass_goes_on_from_enlarged_latents() {
    let fake = Fake::new(json!({}));
    let recorder = Recorder::default();
    let renderer = renderer(&fake, &recorder);
    let small = RenderRequest { spec: VideoSpec { width: 16, height: 24, frames: 5, fps: 8.0 }, ..request() };
    let texts = renderer.encode(&small).expect("text states");
    let first = renderer.denoise(&small, texts.clone(), &mut |_| Ok(())).expect("a first pass");
    let info = UpsamplerInfo { name: "repeat".into(), space: 2, time: 1, channels: 2, weight_bytes: 0 };
    // Two steps of three are left, and guidance is off: the clip becomes 4, as the prompt says.
    let upsample = Upsample { adain: 0.0, tone_map: 0.0 };
    let pass = Pass { skip_first: 1, upsample, ..guided(1.0) };
    let large = renderer.upsample(&first.latents, &Repeat(info), &pass).expect("larger latents");
    assert_eq!(large.dims(), [1, 2, 2, 6, 4]);
    assert!(values(&large).iter().all(|v| (v - 8.0).abs() < 1e-3), "one tone stays that tone");
    let second = RenderRequest { pass, latents: Some(large), refine: true, ..request() };
    renderer.check(&second).expect("a good request");
    let mut begins = None;
    let mut hook = |step: &super::super::denoise::Step<'_>| {
        begins.get_or_insert((step.done, step.total));
        Ok(())
    };
    let done = renderer.denoise(&second, texts, &mut hook).expect("a second pass");
    assert!(values(&done.latents).iter().all(|v| (v - 4.0).abs() < 1e-4));
    assert_eq!((done.drawn, begins), (Drawn::initial_noise(&[1, 2, 2, 6, 4]), Some((1, 2))));
    assert!(recorder.script().iter().any(|line| line == "upsample done"));
}

#[test]
fn what_is_refined_must_be_there() {
    assert!(refusal(|r| r.refine = true).0.contains("there are no latents of it"));
}

#[test]
fn stops_while_loading_and_decoding() {
    for phase in [Phase::EncodePrompt, Phase::Decode] {
        let fake = Fake::new(json!({}));
        let recorder = Recorder { stop_in: Some(phase), ..Recorder::default() };
        let error = render(&renderer(&fake, &recorder), &request()).expect_err("stopped");
        assert_eq!(error.kind(), crate::ErrorKind::Cancelled);
    }
}
