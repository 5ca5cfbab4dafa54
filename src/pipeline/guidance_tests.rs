use candle_core::Device;
use serde_json::json;

use super::*;
use crate::models::api::{ScheduleSpec, SigmaSource, SkipMode};

fn schedule(timesteps: &[f32]) -> Schedule {
    let spec =
        ScheduleSpec { config: json!({}), path: "scheduler_config.json".into(), source: SigmaSource::Linear };
    Schedule::new(&spec, 0, Some(timesteps), 8).expect("a schedule")
}

fn guidance(value: serde_json::Value) -> Guidance {
    serde_json::from_value(value).expect("a guidance")
}

fn column(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap().reshape((1, values.len(), 1)).unwrap()
}

#[test]
fn a_step_takes_the_first_level_that_it_has_reached() {
    let levels = guidance(json!({
        "scale": [1, 6, 8], "levels": [1.0, 0.9, 0.5],
        "stg": { "scale": [0, 4, 2], "rescale": [0, 0.5, 0], "blocks": [[], [11, 25], [2]] },
    }));
    let schedule = schedule(&[1000.0, 950.0, 900.0, 700.0, 500.0, 100.0]);
    let plan = GuidancePlan::new(&levels, &schedule, 28).expect("a plan");
    let scales: Vec<f64> = (0..6).map(|step| plan.at(step).scale).collect();
    // 950 lies above 900, whose entry it takes all the same: 0.9 is the first level not above it.
    assert_eq!(scales, [1.0, 6.0, 6.0, 8.0, 8.0, 8.0]);
    let second = plan.at(1);
    assert_eq!((second.stg, second.stg_rescale), (4.0, 0.5));
    assert_eq!(second.skip, Skip { blocks: vec![11, 25], mode: SkipMode::AttentionValues });
    assert!(plan.has_negative() && !plan.at(0).has_negative() && !plan.at(0).has_perturbed());
}

#[test]
fn without_levels_a_list_has_one_entry_for_each_step() {
    let schedule = schedule(&[1000.0, 500.0]);
    let plan = GuidancePlan::new(&guidance(json!({ "scale": [3, 1] })), &schedule, 28).expect("a plan");
    assert_eq!((plan.at(0).scale, plan.at(1).scale), (3.0, 1.0));
    let told = |value| GuidancePlan::new(&guidance(value), &schedule, 28).expect_err("refused").to_string();
    assert_eq!(
        told(json!({ "scale": [3, 1, 1] })),
        "invalid guidance list of 3: expected one entry for each of the 2 steps"
    );
    assert_eq!(
        told(json!({ "levels": [1.0], "stg": { "scale": [1, 2] } })),
        "invalid STG scale list of 2: expected one entry for each of the 1 guidance levels"
    );
    assert_eq!(
        told(json!({ "stg": { "scale": 1, "blocks": [28] } })),
        "invalid STG block 28: the model has blocks 0 to 27"
    );
    let second = json!({ "scale": 3, "interval": [0.5, 1], "stg": { "scale": 1, "blocks": [0] } });
    let plan = GuidancePlan::new(&guidance(second), &schedule, 28).expect("a plan");
    assert_eq!((plan.at(0).scale, plan.at(0).stg, plan.at(1).scale, plan.at(1).stg), (1.0, 0.0, 3.0, 1.0));
    assert!(told(json!({ "interval": [0.5, 0.5] })).contains("guidance interval 0.5:0.5"));
    assert!(told(json!({ "scale": -1 })).contains("expected a number from 0 on"));
    assert!(told(json!({ "stg": { "rescale": 2 } })).contains("from 0 to 1"));
    // Blocks that no step skips don't matter.
    GuidancePlan::new(&guidance(json!({ "stg": { "blocks": [42] } })), &schedule, 28).expect("a plan");
}

#[test]
fn branches_are_joined_as_the_formulas_say() {
    let step = StepGuidance {
        scale: 3.0,
        rescale: 0.0,
        star: true,
        stg: 2.0,
        stg_rescale: 0.0,
        skip: Skip { blocks: vec![0], mode: SkipMode::default() },
    };
    let (positive, negative, perturbed) = (column(&[1.0, 2.0]), column(&[2.0, 0.0]), column(&[0.0, 2.5]));
    let joined = step.join(positive.clone(), Some(&negative), Some(&perturbed)).unwrap();
    // The projection of (1, 2) on (2, 0) is half of it: (1, 0), from which it goes three times the way to (1, 2).
    let joined = joined.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let expected = [1.0 + 2.0 * 1.0, 6.0 + 2.0 * -0.5];
    assert!(joined.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{joined:?}");
    let alone = step.join(positive.clone(), None, None).unwrap();
    assert_eq!(alone.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, 2.0]);
    // All of the spread is taken back.
    let whole = StepGuidance { star: false, stg_rescale: 1.0, ..step };
    let joined = whole.join(positive.clone(), None, Some(&perturbed)).unwrap();
    assert!((deviation(&joined).unwrap() - deviation(&positive).unwrap()).abs() < 1e-6);
}
