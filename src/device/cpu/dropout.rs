//! Dropout of rows of activations, with the masks of [`Mask::of_columns`].

use crate::ops::Mask;
use crate::simd::{dispatch, rows_per_task};
use rayon::prelude::*;

/// out (N, C) = residual + dropout(out)
pub fn residual(out: &mut [f32], residual: &[f32], mask: &Mask, C: usize) {
    all_rows(out, residual, mask, C, |out, residual, factor| residual + factor * out);
}

/// dinp (N, C) = dropout'(dout)
pub fn backward(dinp: &mut [f32], dout: &[f32], mask: &Mask, C: usize) {
    all_rows(dinp, dout, mask, C, |_, dout, factor| factor * dout);
}

/// [`row`] of each row.
fn all_rows(
    out: &mut [f32],
    inp: &[f32],
    mask: &Mask,
    C: usize,
    f: impl Fn(f32, f32, f32) -> f32 + Copy + Sync,
) {
    assert!(out.len() == inp.len() && out.len().is_multiple_of(C));
    let rows = rows_per_task(C);
    out.par_chunks_mut(rows * C).zip(inp.par_chunks(rows * C)).enumerate().for_each(|(task, (out, inp))| {
        for (i, (out, inp)) in out.chunks_exact_mut(C).zip(inp.chunks_exact(C)).enumerate() {
            row(out, inp, mask, task * rows + i, f);
        }
    });
}

/// Replaces each element of an `out` of C by `f` of it, of that of `inp` and of its factor in batch
/// row `number` of the mask.
pub fn row(out: &mut [f32], inp: &[f32], mask: &Mask, number: usize, f: impl Fn(f32, f32, f32) -> f32) {
    dispatch(
        #[inline(always)]
        |_| {
            for (four, (out, inp)) in out.chunks_mut(4).zip(inp.chunks(4)).enumerate() {
                let factors = mask.of_columns(number, 4 * four);
                for ((out, &inp), factor) in out.iter_mut().zip(inp).zip(factors) {
                    *out = f(*out, inp, factor);
                }
            }
        },
    );
}

/// Masks for tests.
#[cfg(test)]
pub(super) mod testing {
    use crate::ops::{Dropout, DropoutState, Mask};
    use crate::tensor::{Dtype, Tensor};

    pub fn mask(rate: f32) -> Mask {
        let state = Tensor { arena: 0, offset: 0, len: 4, dtype: Dtype::I32 };
        let numbers = DropoutState { key: [1, 2], first_row: 70, unused: 0 };
        Dropout { rate, state, stream: 3 }.mask(numbers)
    }

    /// The factors (N, C) of all elements.
    pub fn factors(mask: &Mask, N: usize, C: usize) -> Vec<f64> {
        let factor = |i| f64::from(mask.of_columns(i / C, i % C / 4 * 4)[i % C % 4]);
        (0..N * C).map(factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::*;
    use super::*;
    use crate::device::compare::assert_close;
    use crate::device::compare::testing::*;

    const SHAPES: [(usize, usize); 4] = [(1, 1), (3, 7), (70, 64), (5, 33)];

    #[test]
    fn what_is_kept_is_added_to_the_residual() {
        for (N, C) in SHAPES {
            let (inp, skipped, mask) = (random(1, N * C), random(2, N * C), mask(0.3));
            let mut out = inp.clone();
            residual(&mut out, &skipped, &mask, C);
            let factors = factors(&mask, N, C);
            let want: Vec<f64> =
                (0..N * C).map(|i| f64::from(skipped[i]) + factors[i] * f64::from(inp[i])).collect();
            assert_close(&format!("({N}, {C}): out"), &out, &want, 1e-6);
        }
    }

    #[test]
    fn backward_is_the_derivative_of_forward() {
        for (N, C) in SHAPES {
            let (inp, dout, mask) = (random(1, N * C), random(2, N * C), mask(0.6));
            let mut dinp = poisoned(N * C);
            backward(&mut dinp, &dout, &mask, C);
            let factors = factors(&mask, N, C);
            let loss = |inp: &[f64]| {
                let dropped: Vec<f64> = inp.iter().zip(&factors).map(|(x, factor)| x * factor).collect();
                weighted_sum(&dropped, &dout)
            };
            assert_close(&format!("({N}, {C}): dinp"), &dinp, &central_differences(&inp, loss), 1e-6);
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (N, C, mask) = (300, 100, mask(0.1));
        let (inp, dout) = (random(1, N * C), random(2, N * C));
        assert_same_on_any_threads("dropout", || {
            let mut out = inp.clone();
            residual(&mut out, &dout, &mask, C);
            out
        });
    }
}
