//! The transform of Box & Muller (1958), rounded exactly as PyTorch rounds it on a CPU with AVX2 or
//! AVX-512: logarithm, sine and cosine are the single-precision polynomials of the Cephes library
//! (Moshier 1989), and every multiplication followed by an addition is fused. Plain `ln`, `sin` and
//! `cos` are as accurate, but every sixth number would differ in its last bits. Written out, the
//! transform also gives the same numbers on every machine.
// The constants are those of Cephes, digit for digit.
#![allow(clippy::excessive_precision)]

use crate::simd::dispatch;
use std::f32::consts::{FRAC_1_PI, FRAC_1_SQRT_2, TAU};

/// Turns the uniform draws of each run into normal numbers, eight draws in [0, 1) for radii and
/// eight for angles.
pub(super) fn box_muller(runs: &mut [[f32; 16]], mean: f32, std: f32) {
    // Without fused multiply-adds in hardware this takes many times as long.
    dispatch(
        #[inline(always)]
        |_| box_muller_all(runs, mean, std),
    );
}

#[inline(always)]
fn box_muller_all(runs: &mut [[f32; 16]], mean: f32, std: f32) {
    for run in runs {
        let [radii, angles] = bytemuck::cast_mut::<[f32; 16], [[f32; 8]; 2]>(run);
        for t in 0..8 {
            let radius = (-2.0 * ln(1.0 - radii[t])).sqrt();
            let (sin, cos) = sin_cos(TAU * angles[t]);
            radii[t] = (radius * cos).mul_add(std, mean);
            angles[t] = (radius * sin).mul_add(std, mean);
        }
    }
}

/// Evaluates the polynomial with these coefficients, the highest power first, at `x`.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for c in &coefficients[1..] {
        sum = sum.mul_add(x, *c);
    }
    sum
}

/// Computes the natural logarithm of a positive normal number.
#[inline(always)]
fn ln(x: f32) -> f32 {
    // x = 2^e (1 + m), with 1 + m from sqrt(1/2) to sqrt(2).
    let exponent = (x.to_bits() >> 23) as i32 - 126;
    let mantissa = f32::from_bits((x.to_bits() & 0x007f_ffff) | 0x3f00_0000);
    let small = mantissa < FRAC_1_SQRT_2;
    let e = (exponent - i32::from(small)) as f32;
    let m = if small { mantissa + mantissa } else { mantissa } - 1.0;
    let cubic = polynomial(
        m,
        [
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ],
    ) * m;
    // ln 2 is split in two: the first part has so few bits that its multiples by e are exact.
    let square = m * m;
    let tail = cubic.mul_add(square, e * -2.12194440e-4) - 0.5 * square;
    e.mul_add(0.693359375, m + tail)
}

/// Computes sine and cosine of `x` between 0 and some thousands.
#[inline(always)]
fn sin_cos(x: f32) -> (f32, f32) {
    // r is the distance to the nearest multiple of pi / 2. Splitting pi / 4 in three keeps the
    // difference accurate.
    let octant = ((x * (4.0 * FRAC_1_PI)) as i32).wrapping_add(1) & !1;
    let y = octant as f32;
    let r = y.mul_add(-0.78515625, x);
    let r = y.mul_add(-2.4187564849853515625e-4, r);
    let r = y.mul_add(-3.77489497744594108e-8, r);

    let square = r * r;
    let cos =
        polynomial(square, [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2]) * square;
    let cos = cos.mul_add(square, -0.5 * square) + 1.0;
    let sin = polynomial(square, [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1]) * square;
    let sin = sin.mul_add(r, r);
    // The two swap in every other quadrant, and each is negative in one half of the circle. Nothing
    // branches, not even for an overflow, so that the loop over numbers is vectorized.
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let octant = octant as u32 & 6;
    let (sin_sign, cos_sign) = ((octant & 4) << 29, ((octant + 2) & 4) << 29);
    (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_accurate_to_single_precision() {
        for i in 1..=20_000 {
            let u = i as f32 / 20_000.0;
            let expected = f64::from(u).ln();
            assert!((f64::from(ln(u)) - expected).abs() <= 1e-7 * expected.abs().max(1.0), "ln {u}");
            let (sin, cos) = sin_cos(TAU * u);
            let angle = f64::from(TAU * u);
            assert!((f64::from(sin) - angle.sin()).abs() <= 1e-7, "sin {angle}");
            assert!((f64::from(cos) - angle.cos()).abs() <= 1e-7, "cos {angle}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert!((ln(2f32.powi(-24)) + 16.635532).abs() <= 2e-6);
        assert_eq!(sin_cos(0.0), (0.0, 1.0));
    }

    /// The scalar loop has to give the same bits, for CPUs without these vectors.
    #[test]
    fn the_plain_loop_agrees_with_the_vectorized_one() {
        let mut rng = crate::rng::Mt19937::new(5);
        let mut runs = vec![[f32::NAN; 16]; 1000];
        rng.uniform(runs.as_flattened_mut(), 0.0, 1.0);
        runs[0] = [0.0; 16];
        let mut plain = runs.clone();
        box_muller(&mut runs, 0.1, 0.9);
        box_muller_all(&mut plain, 0.1, 0.9);
        assert!(runs.as_flattened().iter().all(|x| x.is_finite()));
        assert_eq!(runs, plain);
    }
}
