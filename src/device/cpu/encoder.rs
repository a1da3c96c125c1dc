//! Token and position embeddings.
#![allow(non_snake_case)]

use crate::device::cpu::simd::{dispatch, rows_per_task};
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

/// A task owns a run of rows of dwte, and adds to each in the order of positions in the batch; so the result does not
/// depend on how tasks are scheduled.
pub fn backward(dwte: &mut [f32], dwpe: &mut [f32], dout: &[f32], tokens: &[i32], T: usize, C: usize) {
    const TOKENS_PER_TASK: usize = 16;
    assert_eq!(dout.len(), tokens.len() * C);

    // Rows of the batch by token; the sort is stable, which keeps those of one token in order.
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
