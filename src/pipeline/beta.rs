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
            (1e-09, 1.85588246249141e-15),
            (0.0001, 3.998377158137721e-07),
            (0.01, 0.0008612388215429059),
            (0.1, 0.03958440558878085),
            (0.25, 0.17568037865269498),
            (0.3333333333333333, 0.2754132907776234),
            (0.5, 0.5000000000000001),
            (0.6, 0.6372990092467856),
            (0.75, 0.824319621347305),
            (0.9, 0.9604155944112192),
            (0.99, 0.9991387611784571),
            (0.999, 0.9999814412614826),
            (1.0, 1.0),
        ] {
            let actual = quantile(p);
            assert!((actual - expected).abs() <= 1e-14 * expected, "{p}: {actual:e}, expected {expected:e}");
        }
    }
}
