//! GELU, tanh form (Hendrycks & Gimpel 2016): the one GPT-2 uses. And the elementary functions under it, in plain
//! arithmetic, so that loops over them vectorise.

use crate::device::cpu::simd::{CHUNK, dispatch};
use rayon::prelude::*;
use std::f32::consts::LOG2_E;

/// out = gelu(inp)
pub fn forward(out: &mut [f32], inp: &[f32]) {
    assert_eq!(out.len(), inp.len());
    out.par_chunks_mut(CHUNK).zip(inp.par_chunks(CHUNK)).for_each(|(out, inp)| {
        dispatch(
            #[inline(always)]
            |_| out.iter_mut().zip(inp).for_each(|(out, &x)| *out = gelu(x)),
        );
    });
}

/// 0.5 x (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + e^-2u): one exponential, and no cancellation
/// for negative x.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x / (1.0 + exp(minus_two_u(x)))
}

/// d gelu(x) / dx = s + x s (1 - s) d(2 u)/dx, with s = 1 / (1 + e^-2u)
#[inline(always)]
pub fn gelu_grad(x: f32) -> f32 {
    let argument = minus_two_u(x);
    // 1 - s is e s. The bound keeps that from being infinity times zero, where s is 1e-35 and the result nothing.
    let e = exp(if argument > 80.0 { 80.0 } else { argument });
    let s = 1.0 / (1.0 + e);
    let slope = 2.0 * SQRT_2_OVER_PI + (6.0 * SQRT_2_OVER_PI * CUBIC) * (x * x);
    s + x * slope * (e * s) * s
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

#[inline(always)]
fn minus_two_u(x: f32) -> f32 {
    x * (-2.0 * SQRT_2_OVER_PI - (2.0 * SQRT_2_OVER_PI * CUBIC) * (x * x))
}

/// e^x within 1e-7 of the true value, relatively; results below the smallest normal number are zero.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// ln of the largest and of the smallest normal number.
    const RANGE: (f32, f32) = (-87.336_54, 88.722_84);
    let Reduced { n, expm1_r } = reduce(x);
    // 2^n by adding n to the exponent; 2^128 itself is no f32.
    let y = f32::from_bits((1.0 + expm1_r).to_bits().wrapping_add((n as u32) << 23));
    if x < RANGE.0 {
        0.0
    } else if x <= RANGE.1 {
        y
    } else {
        // Infinity, or NaN for NaN.
        x + f32::INFINITY
    }
}

/// tanh(x) within 2e-7 of the true value, relatively.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // From |2 x| = 20 on, tanh rounds to 1.
    let doubled = 2.0 * x;
    let doubled = if doubled > 20.0 { 20.0 } else { doubled };
    let doubled = if doubled < -20.0 { -20.0 } else { doubled };
    // tanh(x) = (e^2x - 1) / (e^2x + 1), with e^2x - 1 = 2^n (e^r - 1) + (2^n - 1), where nothing cancels.
    let Reduced { n, expm1_r } = reduce(doubled);
    let power = f32::from_bits((127_i32.wrapping_add(n) as u32) << 23);
    let expm1 = power * expm1_r + (power - 1.0);
    expm1 / (expm1 + 2.0)
}

/// e^x = 2^n (1 + expm1_r)
struct Reduced {
    n: i32,
    expm1_r: f32,
}

/// Cody & Waite 1980: x = n ln 2 + r, |r| <= ln 2 / 2, with ln 2 in two parts, the first so short that its product with
/// n is exact. Then a polynomial in r. If x is NaN or far out of range, n is nonsense, and expm1_r may be NaN.
#[inline(always)]
fn reduce(x: f32) -> Reduced {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves no bits for the fraction: the sum holds the rounded value, as its lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * LOG2_E + ROUND;
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let rounded = rounded - ROUND;
    let r = (x - rounded * LN2_HIGH) - rounded * LN2_LOW;
    // (e^r - 1 - r) / r^2, interpolated at the Chebyshev nodes: within 1.1e-8 of e^r in the whole.
    let q = 0.001_392_621_3;
    let q = q * r + 0.008_363_203;
    let q = q * r + 0.041_666_556;
    let q = q * r + 0.166_665_76;
    let q = q * r + 0.5;
    Reduced { n, expm1_r: q * (r * r) + r }
}
