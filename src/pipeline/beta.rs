//! The beta distribution that beta schedules are spaced by.

/// Both shape parameters: the schedule is symmetric.
const SHAPE: f64 = 0.6;

/// The quantile function of Beta(0.6, 0.6): which `x` has the share `p` (0..1) of the distribution below it.
#[must_use]
pub fn quantile(p: f64) -> f64 {
    if p > 0.5 { 1.0 - lower(1.0 - p) } else { lower(p) }
}

/// [`quantile`] of `p` up to ½, where the series converges fast.
///
/// Newton's method on x^0.6, in which the distribution function is nearly a line and convex: started above the
/// root it comes down to it.
fn lower(p: f64) -> f64 {
    let target = 2.0 * p * mass(0.5);
    let mut power = SHAPE * target;
    for _ in 0..32 {
        let x = power.powf(1.0 / SHAPE);
        let step = (mass(x) - target) * SHAPE * (1.0 - x).powf(1.0 - SHAPE);
        power -= step;
        if step.abs() <= f64::EPSILON * power {
            break;
        }
    }
    power.powf(1.0 / SHAPE)
}

/// The integral of t^−0.4 (1−t)^−0.4 over 0..x, by its power series.
fn mass(x: f64) -> f64 {
    let (mut sum, mut coefficient, mut n) = (1.0 / SHAPE, 1.0, 0.0);
    loop {
        n += 1.0;
        coefficient *= (n - SHAPE) / n * x;
        let term = coefficient / (SHAPE + n);
        sum += term;
        if term <= sum * f64::EPSILON / 4.0 {
            return sum * x.powf(SHAPE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_scipys() {
        // scipy.stats.beta.ppf(p, 0.6, 0.6)
        for (p, expected) in [
            (0.0, 0.0),
            (1e-9, 1.855_882_462_491_41e-15),
            (0.000_1, 3.998_377_158_137_721e-7),
            (0.01, 0.000_861_238_821_542_905_9),
            (0.1, 0.039_584_405_588_780_85),
            (0.25, 0.175_680_378_652_694_98),
            (0.333_333_333_333_333_3, 0.275_413_290_777_623_4),
            (0.5, 0.500_000_000_000_000_1),
            (0.6, 0.637_299_009_246_785_6),
            (0.75, 0.824_319_621_347_305),
            (0.9, 0.960_415_594_411_219_2),
            (0.99, 0.999_138_761_178_457_1),
            (0.999, 0.999_981_441_261_482_6),
            (1.0, 1.0),
        ] {
            let actual = quantile(p);
            assert!((actual - expected).abs() <= 1e-14 * expected, "{p}: {actual:e}, expected {expected:e}");
        }
    }
}
