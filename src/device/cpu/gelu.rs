//! GELU in its tanh form (Hendrycks & Gimpel 2016), as in GPT-2, and the exponential it needs, in
//! plain arithmetic so that loops over it vectorize.

use crate::simd::{CHUNK, dispatch};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// out = gelu(kept), then kept = gelu'(kept) in place.
pub fn recompute(out: &mut [f32], kept: &mut [f32]) {
    assert_eq!(out.len(), kept.len());
    out.par_chunks_mut(CHUNK).zip(kept.par_chunks_mut(CHUNK)).for_each(|(out, kept)| {
        dispatch(
            #[inline(always)]
            |_| {
                for (out, kept) in out.iter_mut().zip(kept) {
                    (*out, *kept) = gelu_and_gradient(*kept);
                }
            },
        );
    });
}

/// 0.5 x (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + e^-2u): one exponential,
/// and no cancellation for negative x.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x / (1.0 + exp(minus_two_u(x)))
}

/// gelu(x), and d gelu(x) / dx = s + x s (1 - s) d(2 u)/dx with s = 1 / (1 + e^-2u). The two share
/// the exponential.
#[inline(always)]
pub fn gelu_and_gradient(x: f32) -> (f32, f32) {
    let e = exp(minus_two_u(x));
    let value = x / (1.0 + e);
    // Beyond 10 the gradient is 0 or 1 to within 1e-34, but computing it would multiply infinity by
    // zero. e^-2u is 8.35e37 at -10.
    let x = if x > 10.0 { 10.0 } else { x };
    let x = if x < -10.0 { -10.0 } else { x };
    let e = if e > 8.5e37 { 8.5e37 } else { e };
    // 1 - s equals e s, which does not cancel.
    let s = 1.0 / (1.0 + e);
    let slope = 2.0 * SQRT_2_OVER_PI + (6.0 * SQRT_2_OVER_PI * CUBIC) * (x * x);
    (value, s + x * slope * (e * s) * s)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn minus_two_u(x: f32) -> f32 {
    x * (-2.0 * SQRT_2_OVER_PI - (2.0 * SQRT_2_OVER_PI * CUBIC) * (x * x))
}

/// e^x with a relative error of at most 1e-7; results below the smallest normal number are zero.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// ln of the smallest normal number, and the least x for which e^x exceeds the largest.
    const RANGE: (f32, f32) = (-87.336_54, 88.722_84);
    let Reduced { n, expm1_r } = reduce(x);
    // 2^n by adding n to the exponent; 2^128 itself is not an f32.
    let y = f32::from_bits((1.0 + expm1_r).to_bits().wrapping_add((n as u32) << 23));
    if x < RANGE.0 {
        0.0
    } else if x < RANGE.1 {
        y
    } else {
        // Infinity, or NaN for NaN.
        x + f32::INFINITY
    }
}

/// e^x = 2^n (1 + expm1_r)
struct Reduced {
    n: i32,
    expm1_r: f32,
}

/// Cody & Waite 1980: x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two parts, the first short
/// enough for an exact product with n; then a polynomial in r. If x is NaN or far out of range, n
/// is meaningless, and expm1_r may be NaN.
#[inline(always)]
fn reduce(x: f32) -> Reduced {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves no bits for the fraction: the lowest bits of the sum are the rounded
    // value.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * LOG2_E + ROUND;
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let rounded = rounded - ROUND;
    let r = (x - rounded * LN2_HIGH) - rounded * LN2_LOW;
    // (e^r - 1 - r) / r^2, interpolated at the Chebyshev nodes; the error of the resulting e^r is
    // at most 1.1e-8.
    let q = 0.001_392_621_3;
    let q = q * r + 0.008_363_203;
    let q = q * r + 0.041_666_556;
    let q = q * r + 0.166_665_76;
    let q = q * r + 0.5;
    Reduced { n, expm1_r: q * (r * r) + r }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::testing::{
        assert_same_on_any_threads, central_differences, poisoned, random,
    };
    use crate::device::compare::{assert_close, assert_same_bits};

    /// Floats of both signs and every exponent, and many between -100 and 100.
    fn floats() -> impl Iterator<Item = f32> {
        let all = (0..=u32::MAX).step_by(9973).map(f32::from_bits).filter(|x| x.is_finite());
        all.chain((-1_000_000..=1_000_000).map(|i| i as f32 * 1e-4))
    }

    /// The worst relative error of `f` where the exact result is neither subnormal nor too large
    /// for f32.
    fn worst_error(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
        let normal = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
        let error = |x: f32| {
            let want = exact(f64::from(x));
            normal.contains(&want.abs()).then(|| ((f64::from(f(x)) - want) / want).abs())
        };
        floats()
            .filter_map(|x| error(x).map(|e| (if e.is_nan() { f64::INFINITY } else { e }, x)))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .unwrap()
    }

    #[test]
    fn exp_is_accurate() {
        let (error, at) = worst_error(exp, f64::exp);
        assert!(error <= 1e-7, "relative error {error:e} at {at:e}");
    }

    #[test]
    fn exp_of_extremes() {
        assert_eq!([0.0, -0.0, 1e-45].map(exp), [1.0; 3]);
        assert_eq!([88.73, 89.0, 1000.0, f32::MAX, f32::INFINITY].map(exp), [f32::INFINITY; 5]);
        assert_eq!([-87.34, -104.0, -1e30, f32::MIN, f32::NEG_INFINITY].map(exp), [0.0; 5]);
        assert!(exp(88.722_83).is_finite() && exp(-87.336).is_normal());
        let around = |x: f32| (x.to_bits() - 1000..x.to_bits() + 1000).map(f32::from_bits);
        assert!(around(-87.336_54).chain(around(88.722_84)).all(|x| !exp(x).is_nan()));
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
    }

    fn gelu_f64(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
    }

    #[test]
    fn gelu_and_its_derivative_are_accurate() {
        let inp: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 5e-3).collect();
        let (mut out, mut gradient) = (poisoned(inp.len()), inp.clone());
        recompute(&mut out, &mut gradient);
        let want: Vec<f64> = inp.iter().map(|&x| gelu_f64(f64::from(x))).collect();
        assert_close("gelu", &out, &want, 2e-7);
        let want: Vec<f64> = inp.iter().map(|&x| central_differences(&[x], |x| gelu_f64(x[0]))[0]).collect();
        assert_close("its gradient", &gradient, &want, 3e-7);
    }

    #[test]
    fn gelu_of_extremes() {
        let gradient = |x: f32| gelu_and_gradient(x).1;
        assert_eq!([10.0, 20.0, f32::MAX, f32::INFINITY].map(gradient), [1.0; 4]);
        assert!([-10.0, -10.001, -20.0, f32::MIN].iter().all(|&x| gradient(x).abs() < 1e-34));
        assert!(gradient(f32::NEG_INFINITY).abs() < 1e-34);
        // All floats from -10 to -10.1, near which e^-2u exceeds the largest number.
        let beyond = ((-10f32).to_bits()..=(-10.1f32).to_bits()).map(f32::from_bits);
        assert!(beyond.map(gelu_and_gradient).all(|both| both.0.abs() < 1e-35 && both.1.abs() < 1e-34));
        assert_eq!([-1e18, 20.0, f32::INFINITY].map(gelu), [-0.0, 20.0, f32::INFINITY]);
        assert!(gelu(f32::NAN).is_nan() && gradient(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_has_the_same_bits_with_and_without_its_gradient() {
        let (alone, with): (Vec<f32>, Vec<f32>) = floats().map(|x| (gelu(x), gelu_and_gradient(x).0)).unzip();
        assert_same_bits("gelu", &with, &alone);
    }

    #[test]
    fn vectorised_and_scalar_code_agree() {
        let inp = random(1, 1000);
        let (mut out, mut gradient) = (poisoned(1000), inp.clone());
        recompute(&mut out, &mut gradient);
        let scalar: Vec<(f32, f32)> = inp.iter().map(|&x| gelu_and_gradient(x)).collect();
        assert_same_bits("gelu", &out, &scalar.iter().map(|both| both.0).collect::<Vec<_>>());
        assert_same_bits("its gradient", &gradient, &scalar.iter().map(|both| both.1).collect::<Vec<_>>());
    }

    #[test]
    fn threads_do_not_matter() {
        let inp = random(1, 5 * CHUNK + 3);
        assert_same_on_any_threads("gelu", || {
            let (mut out, mut gradient) = (poisoned(inp.len()), inp.clone());
            recompute(&mut out, &mut gradient);
            [out, gradient].concat()
        });
    }
}
