//! Gradient of attention. With P the softmax of the scores S = scale Q Kᵀ, and O = P V: dV = Pᵀ dO,
//! dP = dO Vᵀ, dS = P (dP - rows(dO O)), dQ = scale dS K, dK = scale dSᵀ Q.
//!
//! Dropout multiplies P by its factors M: O = (M P) V, dV = (M P)ᵀ dO, dP = M (dO Vᵀ), and the rest
//! is as without.

use super::tile::{Scratch, Strided, add_product, gather_rows, product, store_transposed, transpose};
use super::{DEPTH, Disjoint, Document, HeadMask, View, W};
use crate::device::cpu::gelu::exp;
use crate::ops::AttentionDims;
use crate::simd::{Simd, dispatch};
use rayon::prelude::*;

/// dqkv (B, T, 3 C) =; dout, out (B, T, C); lse (B, NH, T); qkv (B, T, 3 C).
///
/// P is recomputed from `lse`. A task is one head of one document, because every tile of keys adds
/// to the gradients of all later queries.
pub fn backward(dqkv: &mut [f32], dout: &[f32], out: &[f32], lse: &[f32], qkv: &[f32], view: View) {
    let AttentionDims { B, T, NH, HS } = view.dims;
    let C = NH * HS;
    assert!(dqkv.len() == B * T * 3 * C && qkv.len() == B * T * 3 * C);
    assert!(dout.len() == B * T * C && out.len() == B * T * C && lse.len() == B * NH * T);
    let dqkv = Disjoint::new(dqkv);
    let documents = view.documents();
    let longest = documents.iter().map(|document| document.len).max().unwrap_or(0);
    (0..documents.len() * NH).into_par_iter().for_each_init(
        || BackwardScratch::new(longest, HS),
        |scratch, task| {
            let (document, h) = (documents[task / NH], task % NH);
            let Document { b, start, len } = document;
            let head_start = (b * T + start) * C + h * HS;
            let qkv_start = (b * T + start) * 3 * C + h * HS;
            let head = Head {
                qkv: &qkv[qkv_start..],
                dout: &dout[head_start..],
                out: &out[head_start..],
                lse: &lse[(b * NH + h) * T + start..][..len],
                mask: view.mask(document, h),
                T: len,
                C,
                HS,
            };
            // SAFETY: no other task has this head of the document, and `which` is 0 to 2, so slices
            // of different tasks do not overlap.
            let store = |which, t| unsafe { dqkv.slice(qkv_start + (t * 3 + which) * C, HS) };
            scratch.run(&head, store);
        },
    );
}

/// One head of one document; the slices start at its position 0 and extend past its end.
struct Head<'a> {
    qkv: &'a [f32],
    dout: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    mask: Option<HeadMask>,
    T: usize,
    C: usize,
    HS: usize,
}

impl<'a> Head<'a> {
    /// The (T - t, HS) rows from t on of queries (0), keys (1) or values (2).
    #[inline(always)]
    fn rows(&self, which: usize, t: usize) -> Strided<'a> {
        Strided { data: &self.qkv[(t * 3 + which) * self.C..], row: 3 * self.C, column: 1 }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.HS as f32).sqrt()
    }
}

/// Scratch memory of one thread for a head and a tile of its keys.
struct BackwardScratch {
    /// (HS, W) each: scaled keys, values, and the gradients of both
    keys: Scratch,
    values: Scratch,
    dkeys: Scratch,
    dvalues: Scratch,
    /// (W, HS rounded up to 16): the keys again, not transposed
    key_rows: Scratch,
    /// (DEPTH, W): P, and dS
    p: Scratch,
    ds: Scratch,
    /// (DEPTH, W): of the dropout
    factors: Scratch,
    /// (T, HS) each: gathered from the interleaved heads
    queries: Scratch,
    dout: Scratch,
    /// (T, HS rounded up to 16)
    dqueries: Scratch,
    /// (T): dout times out, summed over the head
    dout_out: Vec<f32>,
}

impl BackwardScratch {
    fn new(T: usize, HS: usize) -> Self {
        let padded = HS.next_multiple_of(16);
        BackwardScratch {
            keys: Scratch::new(HS * W),
            values: Scratch::new(HS * W),
            dkeys: Scratch::new(HS * W),
            dvalues: Scratch::new(HS * W),
            key_rows: Scratch::new(W * padded),
            p: Scratch::new(DEPTH * W),
            ds: Scratch::new(DEPTH * W),
            factors: Scratch::new(DEPTH * W),
            queries: Scratch::new((T * HS).next_multiple_of(16)),
            dout: Scratch::new((T * HS).next_multiple_of(16)),
            dqueries: Scratch::new(T * padded),
            dout_out: vec![0.0; T],
        }
    }

    /// Computes the gradients of a head; `store(which, t)` returns the row to write.
    fn run<'a>(&mut self, head: &Head, store: impl Fn(usize, usize) -> &'a mut [f32]) {
        let Head { T, C, HS, .. } = *head;
        let padded = HS.next_multiple_of(16);
        gather_rows(&mut self.queries[..T * HS], head.rows(0, 0), HS);
        gather_rows(&mut self.dout[..T * HS], Strided { data: head.dout, row: C, column: 1 }, HS);
        for (t, sum) in self.dout_out[..T].iter_mut().enumerate() {
            *sum = dot(&head.dout[t * C..][..HS], &head.out[t * C..][..HS]);
        }
        self.dqueries[..T * padded].fill(0.0);
        for first in (0..T).step_by(W) {
            let keys = W.min(T - first);
            self.load_keys(head, first, keys);
            for start in (first..T).step_by(DEPTH) {
                dispatch(
                    #[inline(always)]
                    |simd| self.step(simd, head, first, start),
                );
            }
            for i in 0..keys {
                store_transposed(store(1, first + i), &self.dkeys[i..], head.scale());
                store_transposed(store(2, first + i), &self.dvalues[i..], 1.0);
            }
        }
        for t in 0..T {
            store(0, t).copy_from_slice(&self.dqueries[t * padded..][..HS]);
        }
    }

    fn load_keys(&mut self, head: &Head, first: usize, keys: usize) {
        transpose(&mut self.keys, head.rows(1, first), keys, head.scale());
        transpose(&mut self.values, head.rows(2, first), keys, 1.0);
        self.key_rows.fill(0.0);
        let padded = head.HS.next_multiple_of(16);
        for (i, row) in self.key_rows.chunks_exact_mut(padded).enumerate().take(keys) {
            let key = &head.rows(1, first + i).data[..head.HS];
            row.iter_mut().zip(key).for_each(|(row, &key)| *row = key * head.scale());
        }
        self.dkeys.fill(0.0);
        self.dvalues.fill(0.0);
    }

    /// Adds the queries from `start` on for the tile of keys at `first`.
    #[inline(always)]
    fn step(&mut self, simd: Simd, head: &Head, first: usize, start: usize) {
        let count = DEPTH.min(head.T - start);
        let padded = head.HS.next_multiple_of(16);
        let rows = |data| Strided { data, row: head.HS, column: 1 };
        let (queries, dout) = (rows(&self.queries[start * head.HS..]), rows(&self.dout[start * head.HS..]));
        let (p, ds) = (&mut self.p[..count * W], &mut self.ds[..count * W]);
        product(simd, p, queries, &self.keys, W);
        product(simd, ds, dout, &self.values, W);
        let factors = &mut self.factors.as_chunks_mut::<W>().0[..count];
        if let Some(mask) = head.mask {
            mask.draw::<true>(factors, start, first);
        }
        for (i, (p, ds)) in p.as_chunks_mut::<W>().0.iter_mut().zip(ds.as_chunks_mut().0).enumerate() {
            let t = start + i;
            if head.mask.is_some() {
                dropped_softmax_backward(p, ds, &factors[i], head.lse[t], self.dout_out[t]);
            } else {
                softmax_backward(p, ds, head.lse[t], self.dout_out[t]);
            }
            // Keys after the query.
            let seen = W.min(t + 1 - first);
            p[seen..].fill(0.0);
            ds[seen..].fill(0.0);
        }
        add_product(simd, &mut self.dvalues, dout.transposed(), p, W);
        add_product(simd, &mut self.dkeys, queries.transposed(), ds, W);
        let dqueries = &mut self.dqueries[start * padded..][..count * padded];
        add_product(simd, dqueries, Strided { data: ds, row: W, column: 1 }, &self.key_rows, padded);
    }
}

/// Processes one row: p from scores to probabilities, ds from dP to dS.
#[inline(always)]
fn softmax_backward(p: &mut [f32; W], ds: &mut [f32; W], lse: f32, dout_out: f32) {
    for i in 0..W {
        p[i] = exp(p[i] - lse);
        ds[i] = p[i] * (ds[i] - dout_out);
    }
}

/// The same with dropout: p becomes what values are multiplied by.
#[inline(always)]
fn dropped_softmax_backward(
    p: &mut [f32; W],
    ds: &mut [f32; W],
    factors: &[f32; W],
    lse: f32,
    dout_out: f32,
) {
    for i in 0..W {
        p[i] = exp(p[i] - lse);
        ds[i] = p[i] * (factors[i] * ds[i] - dout_out);
        p[i] *= factors[i];
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
