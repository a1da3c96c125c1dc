//! Token and position embeddings.

use crate::simd::{dispatch, rows_per_task};
use rayon::prelude::*;

pub fn forward(encoded: &mut [f32], tokens: &[i32], wte: &[f32], wpe: &[f32], T: usize, C: usize) {
    assert_eq!(encoded.len(), tokens.len() * C);
    let rows = rows_per_task(C);
    encoded.par_chunks_mut(rows * C).enumerate().for_each(|(task, encoded)| {
        for (i, out) in encoded.chunks_exact_mut(C).enumerate() {
            let row = task * rows + i;
            let token = row_of(tokens[row], wte, C);
            let position = &wpe[row % T * C..][..C];
            for ((out, &a), &b) in out.iter_mut().zip(token).zip(position) {
                *out = a + b;
            }
        }
    });
}

fn row_of(token: i32, wte: &[f32], C: usize) -> &[f32] {
    let token = usize::try_from(token).expect("a token is never negative");
    &wte[token * C..][..C]
}

/// Each task owns a range of rows of dwte and adds to each in the order of batch positions, so the
/// result does not depend on the scheduling of tasks.
pub fn backward(dwte: &mut [f32], dwpe: &mut [f32], dout: &[f32], tokens: &[i32], T: usize, C: usize) {
    const TOKENS_PER_TASK: usize = 16;
    assert_eq!(dout.len(), tokens.len() * C);

    // Batch rows sorted by token; the sort is stable and so keeps rows of the same token in order.
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.par_sort_by_key(|&row| tokens[row]);
    let token = |row: usize| usize::try_from(tokens[row]).expect("a token is never negative");
    if let Some(&last) = order.last() {
        assert!((token(last) + 1) * C <= dwte.len(), "token {} has no embedding", token(last));
    }

    dwte.par_chunks_mut(TOKENS_PER_TASK * C).enumerate().for_each(|(task, dwte)| {
        let first = task * TOKENS_PER_TASK;
        let start = order.partition_point(|&row| token(row) < first);
        for &row in order[start..].iter().take_while(|&&row| token(row) < first + TOKENS_PER_TASK) {
            add(&mut dwte[(token(row) - first) * C..][..C], &dout[row * C..][..C]);
        }
    });

    dwpe[..T * C].par_chunks_mut(C).enumerate().for_each(|(t, dwpe)| {
        for dout in dout.chunks_exact(T * C) {
            add(dwpe, &dout[t * C..][..C]);
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

    /// (B, T, C, rows of wte)
    const SHAPES: [(usize, usize, usize, usize); 4] =
        [(1, 1, 1, 1), (1, 5, 20, 3), (3, 7, 33, 50), (2, 64, 48, 17)];

    #[test]
    fn forward_is_the_sum_of_two_rows() {
        for (B, T, C, V) in SHAPES {
            let (tokens, wte, wpe) = (random_indices(1, B * T, V), random(2, V * C), random(3, (T + 2) * C));
            let mut encoded = poisoned(B * T * C);
            forward(&mut encoded, &tokens, &wte, &wpe, T, C);
            let want: Vec<f32> = (0..B * T * C)
                .map(|i| wte[tokens[i / C] as usize * C + i % C] + wpe[i / C % T * C + i % C])
                .collect();
            assert_same_bits("encoded", &encoded, &want);
        }
    }

    #[test]
    fn backward_adds_rows_up() {
        for (B, T, C, V) in SHAPES {
            let (tokens, dout) = (random_indices(1, B * T, V), random(2, B * T * C));
            let (dwte_before, dwpe_before) = (random(3, V * C), random(4, (T + 2) * C));
            let (mut dwte, mut dwpe) = (dwte_before.clone(), dwpe_before.clone());
            backward(&mut dwte, &mut dwpe, &dout, &tokens, T, C);
            let mut gradient = (vec![0.0; V * C], vec![0.0; (T + 2) * C]);
            for (i, &d) in dout.iter().enumerate() {
                gradient.0[tokens[i / C] as usize * C + i % C] += f64::from(d);
                gradient.1[i / C % T * C + i % C] += f64::from(d);
            }
            assert_close("dwte", &dwte, &added(&dwte_before, &gradient.0), 1e-6);
            assert_close("dwpe", &dwpe, &added(&dwpe_before, &gradient.1), 1e-6);
        }
    }

    #[test]
    #[should_panic(expected = "no embedding")]
    fn an_unknown_token_panics() {
        backward(&mut [0.0; 6], &mut [0.0; 4], &[1.0; 4], &[0, 3], 2, 2);
    }

    #[test]
    #[should_panic(expected = "never negative")]
    fn a_negative_token_panics() {
        backward(&mut [0.0; 6], &mut [0.0; 4], &[1.0; 4], &[0, -1], 2, 2);
    }

    #[test]
    fn threads_do_not_matter() {
        let (B, T, C, V) = (4, 64, 40, 70);
        let (tokens, dout) = (random_indices(1, B * T, V), random(2, B * T * C));
        assert_same_on_any_threads("encoder", || {
            let (mut dwte, mut dwpe) = (random(3, V * C), random(4, T * C));
            backward(&mut dwte, &mut dwpe, &dout, &tokens, T, C);
            let mut encoded = poisoned(B * T * C);
            forward(&mut encoded, &tokens, &dwte, &dwpe, T, C);
            [dwte, dwpe, encoded].concat()
        });
    }
}
