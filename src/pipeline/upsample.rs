//! Between two passes: larger latents that keep the look of the ones before.

use candle_core::{DType, Tensor};

use super::guidance::at_least;
use crate::{
    error::Result,
    models::api::{LatentStatistics, LatentUpsampler, Upsample},
};

/// Enlarges latents `[1, C, F, H, W]`, f32, normalised as the denoiser sees them.
pub fn upsample(
    model: &mut dyn LatentUpsampler,
    latents: &Tensor,
    statistics: &LatentStatistics,
    how: &Upsample,
) -> Result<Tensor> {
    let before = statistics.denormalise(latents)?;
    let mut after = model.upsample(&before)?.to_dtype(DType::F32)?;
    if how.adain > 0.0 {
        after = adain(&after, &before, how.adain)?;
    }
    if how.tone_map > 0.0 {
        after = tone_map(&after, how.tone_map)?;
    }
    statistics.normalise(&after)
}

/// Refuses shares that are none.
pub fn check(how: &Upsample) -> Result<()> {
    at_least("AdaIN factor", how.adain, Some(1.0))?;
    at_least("tone mapping", how.tone_map, Some(1.0))
}

/// Brings each channel of `latents` `share` of the way to the mean and the spread that it has in `reference`.
fn adain(latents: &Tensor, reference: &Tensor, share: f64) -> Result<Tensor> {
    let (_, c, ..) = latents.dims5()?;
    let (own, wanted) = (moments(latents)?, moments(reference)?);
    let column = |values: Vec<f32>| Tensor::from_vec(values, (1, c, 1, 1, 1), latents.device());
    let part = |moments: &[Moments], pick: fn(&Moments) -> f32| column(moments.iter().map(pick).collect());
    let normed = latents
        .broadcast_sub(&part(&own, |m| m.mean)?)?
        .broadcast_div(&part(&own, |m| m.deviation)?)?
        .broadcast_mul(&part(&wanted, |m| m.deviation)?)?
        .broadcast_add(&part(&wanted, |m| m.mean)?)?;
    Ok((latents + ((normed - latents)? * share)?)?)
}

struct Moments {
    mean: f32,
    deviation: f32,
}

/// Of each channel, over n − 1, summed in f64.
fn moments(latents: &Tensor) -> Result<Vec<Moments>> {
    let channels = latents.squeeze(0)?.flatten_from(1)?.to_vec2::<f32>()?;
    let of = |values: Vec<f32>| {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
        Moments { mean: mean as f32, deviation: (squares / (n - 1.0)).sqrt() as f32 }
    };
    Ok(channels.into_iter().map(of).collect())
}

/// Presses strong values together, by a sigmoid of their size.
fn tone_map(latents: &Tensor, share: f64) -> Result<Tensor> {
    let strength = share * 0.75;
    let strong = candle_nn::ops::sigmoid(&((latents.abs()? - 1.0)? * (4.0 * strength))?)?;
    let kept = strong.affine(-0.8 * strength, 1.0)?;
    Ok((latents * kept)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn latents(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap().reshape((1, 2, 1, 1, ())).unwrap()
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn adain_takes_over_mean_and_spread() {
        let (x, reference) = (latents(&[1.0, 3.0, 0.0, 1.0]), latents(&[10.0, 20.0, -1.0, 1.0]));
        let whole = flat(&adain(&x, &reference, 1.0).unwrap());
        assert!(whole.iter().zip([10.0, 20.0, -1.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{whole:?}");
        let half = flat(&adain(&x, &reference, 0.5).unwrap());
        assert!(half.iter().zip([5.5, 11.5, -0.5, 1.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{half:?}");
    }

    #[test]
    fn tone_mapping_leaves_weak_values_and_signs() {
        let x = latents(&[0.0, 0.1, -5.0, 5.0]);
        let y = flat(&tone_map(&x, 1.0).unwrap());
        assert_eq!(y[0], 0.0);
        assert!((y[1] - 0.1).abs() < 0.01 && y[3] > 1.9 && y[3] < 2.1 && y[2] == -y[3], "{y:?}");
    }
}
