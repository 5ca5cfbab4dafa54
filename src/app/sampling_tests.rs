use super::*;
use crate::models::api::{Defaults, Direction, Geometry, WeightBytes};

fn info(published: Identified) -> ModelInfo {
    ModelInfo {
        name: "toy".into(),
        pipeline: "ToyPipeline".into(),
        geometry: Geometry { spatial: 32, temporal: 8, patch: 1, patch_t: 1, channels: 128 },
        defaults: Defaults {
            width: 64,
            height: 64,
            frames: 9,
            fps: 8.0,
            steps: 20,
            guidance: 3.0,
            max_sequence_length: 128,
            negative_prompt: String::new(),
            window: 0,
            overlap: 0,
            detail: false,
            direction: Direction::default(),
        },
        weight_bytes: WeightBytes::default(),
        blocks: 28,
        published,
        loras: Vec::new(),
    }
}

fn passes(choice: &SamplingChoice, published: Identified) -> Result<Vec<Pass>> {
    choice.passes(&choice.begin(&info(published))?)
}

fn upscaled(choice: SamplingChoice) -> SamplingChoice {
    SamplingChoice { upsamplers: vec!["up".into()], ..choice }
}

#[test]
fn a_model_begins_with_what_was_published_for_it() {
    let none = passes(&SamplingChoice::default(), Identified::Unknown).expect("passes");
    assert_eq!((none.len(), none[0].steps, &none[0].guidance.scale), (1, 20, &PerStep::All(3.0)));
    let known = Identified::Recipe("ltxv-2b-0.9.8-distilled");
    let single = passes(&SamplingChoice::default(), known).expect("passes");
    assert_eq!((single.len(), single[0].scheduled()), (1, 8));
    let two = passes(&upscaled(SamplingChoice::default()), known).expect("passes");
    assert_eq!(two.iter().map(Pass::scheduled).collect::<Vec<_>>(), [7, 3]);
    let plain = SamplingChoice { recipe: RecipeChoice::Plain, ..SamplingChoice::default() };
    assert_eq!(passes(&plain, known).expect("passes")[0].steps, 20);
    let named = SamplingChoice { recipe: "ltxv-13b-0.9.8-dev".parse().expect("a name"), ..plain };
    assert_eq!(passes(&named, Identified::Unknown).expect("passes")[0].guidance.levels.len(), 7);
    assert!("nothing".parse::<RecipeChoice>().is_err());
    let unclear = Identified::Unclear("ltxv-13b-dev", "ltxv-13b-distilled");
    let begun = SamplingChoice::default().begin(&info(unclear)).expect("a beginning");
    assert!(begun.warning.expect("a warning").contains("--recipe-name ltxv-13b-distilled"));
}

#[test]
fn flags_change_what_a_recipe_says() {
    let choice = SamplingChoice {
        steps: vec![6, 5],
        guidance: vec![PerStep::All(2.0)],
        stg_scale: vec![PerStep::All(0.0), PerStep::All(1.0)],
        stg_blocks: vec![PerStep::All(vec![3])],
        tone_map: Some(0.6),
        cache: Some(0.1),
        ..SamplingChoice::default()
    };
    let two = passes(&upscaled(choice), Identified::Unknown).expect("passes");
    assert_eq!(two.iter().map(|pass| (pass.steps, pass.skip_first)).collect::<Vec<_>>(), [(6, 0), (5, 3)]);
    assert!(two.iter().all(|pass| pass.guidance.scale == PerStep::All(2.0)), "the last one holds on");
    assert!(two.iter().all(|pass| pass.cache == Some(0.1)));
    assert_eq!(two[1].guidance.stg.scale, PerStep::All(1.0));
    assert_eq!((two[1].upsample.adain, two[1].upsample.tone_map), (1.0, 0.6));
    let by_hand = SamplingChoice {
        sigmas: vec![vec![1.0, 0.5]],
        strength: vec![1.0, 0.999],
        ..SamplingChoice::default()
    };
    let two = passes(&upscaled(by_hand), Identified::Unknown).expect("passes");
    assert_eq!((two[0].scheduled(), two[0].skip_first), (2, 0));
    assert_eq!((two[1].scheduled(), two[1].skip_first), (10, 1), "9 of 10 steps");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let told =
        |choice: SamplingChoice| passes(&choice, Identified::Unknown).expect_err("refused").to_string();
    let choice = SamplingChoice::default;
    assert!(told(SamplingChoice { steps: vec![3, 3], ..choice() }).contains("there are 1 passes"));
    let both = SamplingChoice { sigmas: vec![vec![1.0]], timesteps: vec![vec![1000.0]], ..choice() };
    assert!(told(both).contains("--sigmas with --timesteps"));
    assert!(told(SamplingChoice { strength: vec![0.0], ..choice() }).contains("denoise strength 0"));
    let stg = SamplingChoice { stg_scale: vec![PerStep::All(1.0)], ..choice() };
    assert!(told(stg).contains("which blocks"));
    let exact = SamplingChoice { exact: Some(vec![Pass::default(); 2]), ..choice() };
    assert!(told(exact).contains("0 upsamplers"));
}

#[test]
fn earlier_passes_are_smaller() {
    let last = VideoSpec { width: 192, height: 128, frames: 17, fps: 24.0 };
    let upsampler =
        |space, time| UpsamplerInfo { name: "up".into(), space, time, channels: 128, weight_bytes: 0 };
    let upsamplers = [upsampler(2, 1), upsampler(1, 2)];
    let specs = specs(last, &upsamplers);
    assert_eq!(specs[0], VideoSpec { width: 96, height: 64, frames: 9, fps: 12.0 });
    assert_eq!(specs[1], VideoSpec { width: 192, height: 128, frames: 9, fps: 12.0 });
    assert_eq!(specs[2], last);
    let geometry = coarser(info(Identified::Unknown).geometry, &upsamplers);
    geometry.check(&last).expect("it can be made smaller");
    let odd = VideoSpec { width: 96, ..last };
    let error = geometry.check(&odd).expect_err("refused");
    assert_eq!(error.to_string(), "invalid width 96: expected a multiple of 64");
    assert_eq!(
        geometry.check(&VideoSpec { frames: 25, ..last }).expect_err("refused").to_string(),
        "invalid frame count 25: expected 16k+1"
    );
}

#[test]
fn lists_are_read_from_flags() {
    let numbers = |text: &str| text.parse::<List<f64>>().map(|list| list.0);
    assert_eq!(numbers("3").expect("one"), PerStep::All(3.0));
    assert_eq!(numbers("1, 6,8").expect("three"), PerStep::Each(vec![1.0, 6.0, 8.0]));
    assert!(numbers("1,,2").is_err() && numbers("").is_err());
    let blocks = |text: &str| text.parse::<List<Vec<usize>>>().map(|list| list.0);
    assert_eq!(blocks("19").expect("one"), PerStep::All(vec![19]));
    assert_eq!(blocks("/11,25/28").expect("three"), PerStep::Each(vec![vec![], vec![11, 25], vec![28]]));
    assert!(blocks("a").is_err());
}
