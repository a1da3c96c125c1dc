//! Token and position embeddings.

use crate::device::cpu::dropout;
use crate::ops::Mask;
use crate::simd::{dispatch, rows_per_task};
use rayon::prelude::*;

/// The rows of a batch, and their dropout.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// (B, T)
    pub tokens: &'a [i32],
    /// (B, T); without them, places in the sequence.
    pub positions: Option<&'a [i32]>,
    pub mask: Option<Mask>,
    pub T: usize,
    pub C: usize,
}

impl Rows<'_> {
    fn token(&self, row: usize) -> usize {
        usize::try_from(self.tokens[row]).expect("a token is never negative")
    }

    fn position(&self, row: usize) -> usize {
        let position = |all: &[i32]| usize::try_from(all[row]).expect("a position is never negative");
        self.positions.map_or(row % self.T, position)
    }
}

pub fn forward(encoded: &mut [f32], wte: &[f32], wpe: &[f32], batch: Rows) {
    let C = batch.C;
    assert_eq!(encoded.len(), batch.tokens.len() * C);
    let rows = rows_per_task(C);
    encoded.par_chunks_mut(rows * C).enumerate().for_each(|(task, encoded)| {
        for (i, out) in encoded.chunks_exact_mut(C).enumerate() {
            let row = task * rows + i;
            let (token, position) = (&wte[batch.token(row) * C..][..C], &wpe[batch.position(row) * C..][..C]);
            for ((out, &a), &b) in out.iter_mut().zip(token).zip(position) {
                *out = a + b;
            }
            if let Some(mask) = &batch.mask {
                dropout::row(out, token, mask, row, |sum, _, factor| factor * sum);
            }
        }
    });
}

/// See [`crate::ops::EncoderBackward`].
pub fn backward(dwte: Option<&mut [f32]>, dwpe: Option<&mut [f32]>, dout: &[f32], batch: Rows) {
    if let Some(dwte) = dwte {
        scatter(dwte, dout, batch, |row| batch.token(row));
    }
    if let Some(dwpe) = dwpe {
        scatter(dwpe, dout, batch, |row| batch.position(row));
    }
}

/// Adds each row of `dout` to the row of `dweight` of its index. Each task owns a range of rows of
/// dweight and adds to each in the order of the batch, so the result does not depend on the
/// scheduling of tasks.
fn scatter(dweight: &mut [f32], dout: &[f32], batch: Rows, index: impl Fn(usize) -> usize + Sync) {
    const ROWS_PER_TASK: usize = 16;
    let (N, C) = (batch.tokens.len(), batch.C);
    assert_eq!(dout.len(), N * C);

    // Batch rows sorted by index; the sort is stable and so keeps rows of the same index in order.
    let mut order: Vec<usize> = (0..N).collect();
    order.par_sort_by_key(|&row| index(row));
    if let Some(last) = order.last().map(|&row| index(row)) {
        assert!((last + 1) * C <= dweight.len(), "{last} has no embedding");
    }
    dweight.par_chunks_mut(ROWS_PER_TASK * C).enumerate().for_each(|(task, dweight)| {
        let first = task * ROWS_PER_TASK;
        let start = order.partition_point(|&row| index(row) < first);
        for &row in order[start..].iter().take_while(|&&row| index(row) < first + ROWS_PER_TASK) {
            let (dst, src) = (&mut dweight[(index(row) - first) * C..][..C], &dout[row * C..][..C]);
            match &batch.mask {
                Some(mask) => dropout::row(dst, src, mask, row, |dst, src, factor| dst + factor * src),
                None => add(dst, src),
            }
        }
    });
}

fn add(dst: &mut [f32], src: &[f32]) {
    dispatch(
        #[inline(always)]
        |_| {
            for (dst, &src) in dst.iter_mut().zip(src) {
                *dst += src;
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::testing::*;
    use crate::device::compare::{assert_close, assert_same_bits};
    use crate::device::cpu::dropout::testing::{factors, mask};

    /// (B, T, C, rows of wte)
    const SHAPES: [(usize, usize, usize, usize); 4] =
        [(1, 1, 1, 1), (1, 5, 20, 3), (3, 7, 33, 50), (2, 64, 48, 17)];

    /// Every combination of packed documents and dropout.
    fn variants(tokens: &[i32], positions: &[i32], T: usize, C: usize, check: impl Fn(&str, Rows)) {
        for positions in [None, Some(positions)] {
            for mask in [None, Some(mask(0.4))] {
                let name = format!("{T}, {C}, positions {}, {mask:?}", positions.is_some());
                check(&name, Rows { tokens, positions, mask, T, C });
            }
        }
    }

    /// Factors (N, C) of dropout, or ones.
    fn all_factors(batch: &Rows) -> Vec<f64> {
        let (N, C) = (batch.tokens.len(), batch.C);
        batch.mask.as_ref().map_or(vec![1.0; N * C], |mask| factors(mask, N, C))
    }

    #[test]
    fn forward_is_the_sum_of_two_rows() {
        for (B, T, C, V) in SHAPES {
            let (tokens, wte, wpe) = (random_indices(1, B * T, V), random(2, V * C), random(3, (T + 2) * C));
            variants(&tokens, &random_indices(4, B * T, T + 2), T, C, |name, batch| {
                let mut encoded = poisoned(B * T * C);
                forward(&mut encoded, &wte, &wpe, batch);
                let position = |row| batch.positions.map_or(row % T, |positions| positions[row] as usize);
                let factors = all_factors(&batch);
                let want: Vec<f32> = (0..B * T * C)
                    .map(|i| wte[tokens[i / C] as usize * C + i % C] + wpe[position(i / C) * C + i % C])
                    .zip(factors)
                    .map(|(sum, factor)| sum * factor as f32)
                    .collect();
                assert_same_bits(name, &encoded, &want);
            });
        }
    }

    #[test]
    fn backward_adds_rows_up() {
        for (B, T, C, V) in SHAPES {
            let (tokens, dout) = (random_indices(1, B * T, V), random(2, B * T * C));
            let (dwte_before, dwpe_before) = (random(3, V * C), random(4, (T + 2) * C));
            variants(&tokens, &random_indices(5, B * T, T + 2), T, C, |name, batch| {
                let (mut dwte, mut dwpe) = (dwte_before.clone(), dwpe_before.clone());
                backward(Some(&mut dwte), Some(&mut dwpe), &dout, batch);
                let position = |row| batch.positions.map_or(row % T, |positions| positions[row] as usize);
                let mut gradient = (vec![0.0; V * C], vec![0.0; (T + 2) * C]);
                for (i, factor) in all_factors(&batch).into_iter().enumerate() {
                    let d = factor * f64::from(dout[i]);
                    gradient.0[tokens[i / C] as usize * C + i % C] += d;
                    gradient.1[position(i / C) * C + i % C] += d;
                }
                assert_close(&format!("{name}: dwte"), &dwte, &added(&dwte_before, &gradient.0), 1e-6);
                assert_close(&format!("{name}: dwpe"), &dwpe, &added(&dwpe_before, &gradient.1), 1e-6);
            });
        }
    }

    fn two_rows(tokens: &[i32]) -> Rows<'_> {
        Rows { tokens, positions: None, mask: None, T: 2, C: 2 }
    }

    #[test]
    #[should_panic(expected = "no embedding")]
    fn an_unknown_token_panics() {
        backward(Some(&mut [0.0; 6]), Some(&mut [0.0; 4]), &[1.0; 4], two_rows(&[0, 3]));
    }

    #[test]
    #[should_panic(expected = "never negative")]
    fn a_negative_token_panics() {
        backward(Some(&mut [0.0; 6]), Some(&mut [0.0; 4]), &[1.0; 4], two_rows(&[0, -1]));
    }

    #[test]
    #[should_panic(expected = "no embedding")]
    fn an_unknown_position_panics() {
        let batch = Rows { positions: Some(&[0, 2]), ..two_rows(&[0, 1]) };
        backward(Some(&mut [0.0; 6]), Some(&mut [0.0; 4]), &[1.0; 4], batch);
    }

    #[test]
    fn threads_do_not_matter() {
        let (B, T, C, V) = (4, 64, 40, 70);
        let (tokens, dout) = (random_indices(1, B * T, V), random(2, B * T * C));
        variants(&tokens, &random_indices(4, B * T, T), T, C, |name, batch| {
            assert_same_on_any_threads(name, || {
                let (mut dwte, mut dwpe) = (random(3, V * C), random(4, T * C));
                backward(Some(&mut dwte), Some(&mut dwpe), &dout, batch);
                let mut encoded = poisoned(B * T * C);
                forward(&mut encoded, &dwte, &dwpe, batch);
                [dwte, dwpe, encoded].concat()
            });
        });
    }
}
