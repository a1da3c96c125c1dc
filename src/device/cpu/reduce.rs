//! Deterministic sums in f64: a gradient norm adds up to a billion squares, some of which are too
//! large for f32. Also the element-wise sum of two tensors, and a tensor times a number.

use crate::simd::{CHUNK, LANES, dispatch};
use rayon::prelude::*;

/// dst += src
pub fn add(dst: &mut [f32], src: &[f32]) {
    assert_eq!(dst.len(), src.len(), "added tensors differ in length");
    dst.par_chunks_mut(CHUNK).zip(src.par_chunks(CHUNK)).for_each(|(dst, src)| {
        dispatch(
            #[inline(always)]
            |_| dst.iter_mut().zip(src).for_each(|(d, s)| *d += s),
        );
    });
}

/// dst *= factor
pub fn scale(dst: &mut [f32], factor: f32) {
    dst.par_chunks_mut(CHUNK).for_each(|dst| {
        dispatch(
            #[inline(always)]
            |_| dst.iter_mut().for_each(|d| *d *= factor),
        );
    });
}

/// Returns the sum of squares.
pub fn norm_squared(src: &[f32]) -> f64 {
    sum_of(src, |x| x * x)
}

pub fn sum(src: &[f32]) -> f64 {
    sum_of(src, |x| x)
}

/// Sums `f(x)` within chunks, then adds the sums of chunks in order.
fn sum_of(src: &[f32], f: impl Fn(f64) -> f64 + Sync) -> f64 {
    let sums: Vec<f64> = src
        .par_chunks(CHUNK)
        .map(|chunk| {
            dispatch(
                #[inline(always)]
                |_| chunk_sum(chunk, &f),
            )
        })
        .collect();
    sums.iter().sum()
}

#[inline(always)]
fn chunk_sum(chunk: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (pieces, rest) = chunk.as_chunks::<LANES>();
    for piece in pieces {
        for (lane, &x) in lanes.iter_mut().zip(piece) {
            *lane += f(f64::from(x));
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(f64::from(x));
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::testing::{assert_same_on_any_threads, random};

    #[test]
    fn sums_are_accurate_at_any_length() {
        for len in [0, 1, 15, 16, 17, CHUNK - 1, CHUNK, 3 * CHUNK + 33] {
            let src = random(len as u64, len);
            let exact: f64 = src.iter().map(|&x| f64::from(x)).sum();
            let exact_squared: f64 = src.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert!((sum(&src) - exact).abs() <= 1e-10, "sum of {len}: {} {exact}", sum(&src));
            let got = norm_squared(&src);
            assert!((got - exact_squared).abs() <= 1e-13 * exact_squared, "{len}: {got} {exact_squared}");
        }
    }

    #[test]
    fn every_element_is_added_to() {
        let len = 2 * CHUNK + 33;
        let (mut dst, src) = (random(1, len), random(2, len));
        let want: Vec<f32> = dst.iter().zip(&src).map(|(d, s)| d + s).collect();
        add(&mut dst, &src);
        assert_eq!(dst, want);
    }

    #[test]
    fn large_values_do_not_overflow() {
        assert_eq!(norm_squared(&[1e30, 1e30]), 2.0 * f64::from(1e30_f32) * f64::from(1e30_f32));
    }

    #[test]
    fn what_is_not_finite_shows_wherever_it_is() {
        for at in [0, 16, CHUNK, CHUNK + 40] {
            let mut src = vec![1.0; CHUNK + 41];
            src[at] = f32::NAN;
            assert!(norm_squared(&src).is_nan() && sum(&src).is_nan());
            src[at] = f32::NEG_INFINITY;
            assert_eq!((norm_squared(&src), sum(&src)), (f64::INFINITY, f64::NEG_INFINITY));
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let src = random(1, 10 * CHUNK + 7);
        assert_same_on_any_threads("sums", || {
            let (a, b) = (sum(&src).to_bits(), norm_squared(&src).to_bits());
            // The bytes of each f64, all exact in f32.
            [a, b].iter().flat_map(|x| x.to_le_bytes().map(f32::from)).collect()
        });
    }
}
