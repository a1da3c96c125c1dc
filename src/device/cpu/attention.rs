//! Causal multi-head attention without a T x T buffer (Dao et al. 2022).
//!
//! Both directions proceed in tiles of [`W`] columns, side by side in vector registers, and
//! [`DEPTH`] rows: columns are queries in the forward pass and keys in the backward pass. Columns
//! past the end are computed on zeros and not stored. Every matmul is in [`tile`].
//!
//! Each of the documents that are packed into a sequence is attended by itself, in tiles that begin
//! with it. So its results have the bits that it would have alone.

mod backward;
mod dropout;
#[cfg(test)]
mod tests;
mod tile;

use crate::device::cpu::gelu::exp;
use crate::ops::{AttentionDims, Mask};
use crate::simd::{Simd, dispatch, larger};
pub use backward::backward;
use dropout::HeadMask;
use rayon::prelude::*;
use std::marker::PhantomData;
use tile::{Scratch, Strided, add_product, gather_rows, product, scale_rows, store_transposed, transpose};

/// Columns per tile: two AVX-512 registers.
const W: usize = 32;

/// Rows per tile: enough to amortize the overhead of a step, and few enough for its operands to fit
/// in the L1 cache.
const DEPTH: usize = 64;

/// The lengths, the documents and the dropout of a call.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub dims: AttentionDims,
    /// (B, T): places of tokens in their documents
    pub positions: Option<&'a [i32]>,
    pub mask: Option<Mask>,
}

/// A document in sequence b, or as much of it as is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Document {
    b: usize,
    start: usize,
    len: usize,
}

impl View<'_> {
    /// # Panics
    /// If the positions are not those of documents one after another.
    fn documents(&self) -> Vec<Document> {
        let AttentionDims { B, T, .. } = self.dims;
        let whole = |b| Document { b, start: 0, len: T };
        let Some(positions) = self.positions else {
            return (0..B).map(whole).collect();
        };
        assert_eq!(positions.len(), B * T);
        let mut documents = Vec::<Document>::new();
        for (b, positions) in positions.chunks_exact(T).enumerate() {
            for (t, &position) in positions.iter().enumerate() {
                let start = t.saturating_sub(position as usize);
                match documents.last_mut() {
                    Some(last) if t > 0 && last.start == start => last.len += 1,
                    _ => {
                        assert_eq!(start, t, "position {position} of token {t} in sequence {b}");
                        documents.push(Document { b, start, len: 1 });
                    }
                }
            }
        }
        documents
    }

    /// The mask of head h in a document.
    fn mask(&self, document: Document, h: usize) -> Option<HeadMask> {
        let Document { b, start, .. } = document;
        self.mask.map(|mask| HeadMask { mask, sequence_row: b * self.dims.T, h, start })
    }
}

/// out (B, T, C) =; lse (B, NH, T) =; qkv (B, T, 3 C).
pub fn forward(out: &mut [f32], lse: &mut [f32], qkv: &[f32], view: View) {
    let AttentionDims { B, T, NH, HS } = view.dims;
    let C = NH * HS;
    assert!(out.len() == B * T * C && lse.len() == B * NH * T && qkv.len() == B * T * 3 * C);
    let (out, lse) = (Disjoint::new(out), Disjoint::new(lse));
    let of_head = |document: Document, h| (0..document.len).step_by(W).map(move |first| (document, h, first));
    let of_document = |document: &Document| {
        let document = *document;
        (0..NH).flat_map(move |h| of_head(document, h))
    };
    let tasks: Vec<_> = view.documents().iter().flat_map(of_document).collect();
    tasks.into_par_iter().for_each_init(
        || ForwardScratch::new(HS),
        |scratch, (document, h, first)| {
            let Document { b, start, len } = document;
            let queries = W.min(len - first);
            let qkv = &qkv[(b * T + start) * 3 * C + h * HS..];
            scratch.attend(qkv, first, queries, (C, HS), view.mask(document, h));
            for i in 0..queries {
                let t = start + first + i;
                // SAFETY: no other task has this query of this head, so the slices do not overlap
                // any others.
                let (out, lse) =
                    unsafe { (out.slice((b * T + t) * C + h * HS, HS), lse.slice((b * NH + h) * T + t, 1)) };
                lse[0] = scratch.finish(i, out);
            }
        },
    );
}

/// out (B, C) = the row of [`forward`] for position t, with the same bits; qkv (B, T, 3 C), whose
/// rows after t do not matter.
pub fn decode(out: &mut [f32], qkv: &[f32], t: usize, dims: AttentionDims) {
    let AttentionDims { B, T, NH, HS } = dims;
    let C = NH * HS;
    assert!(t < T && out.len() == B * C && qkv.len() == B * T * 3 * C);
    out.par_chunks_exact_mut(HS).enumerate().for_each_init(
        || ForwardScratch::new(HS),
        |scratch, (head, out)| {
            let (b, h) = (head / NH, head % NH);
            scratch.attend(&qkv[b * T * 3 * C + h * HS..], t, 1, (C, HS), None);
            scratch.finish(0, out);
        },
    );
}

/// Scratch memory of one thread for a tile of queries.
struct ForwardScratch {
    /// (HS, W): scaled
    queries: Scratch,
    /// (DEPTH, W): scores, then their exponentials
    scores: Scratch,
    /// (DEPTH, W): of the dropout
    factors: Scratch,
    /// (DEPTH, HS): copied, because rows that are a power of two apart evict each other from the
    /// cache
    values: Scratch,
    /// (HS, W): weighted sum of values
    out: Scratch,
    /// (W): largest score so far
    max: [f32; W],
    /// (W): sum of exponentials so far
    sum: [f32; W],
}

impl ForwardScratch {
    fn new(HS: usize) -> Self {
        ForwardScratch {
            queries: Scratch::new(HS * W),
            scores: Scratch::new(DEPTH * W),
            factors: Scratch::new(DEPTH * W),
            values: Scratch::new(DEPTH * HS),
            out: Scratch::new(HS * W),
            max: [0.0; W],
            sum: [0.0; W],
        }
    }

    /// Computes attention for `queries` positions from `first` on; `qkv` starts at the query of
    /// position 0 of the head in a document.
    fn attend(
        &mut self,
        qkv: &[f32],
        first: usize,
        queries: usize,
        (C, HS): (usize, usize),
        mask: Option<HeadMask>,
    ) {
        let row = 3 * C;
        let scale = 1.0 / (HS as f32).sqrt();
        transpose(&mut self.queries, Strided { data: &qkv[first * row..], row, column: 1 }, queries, scale);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.out.fill(0.0);
        let end = first + queries;
        for start in (0..end).step_by(DEPTH) {
            let count = DEPTH.min(end - start);
            dispatch(
                #[inline(always)]
                |simd| self.step(simd, &qkv[start * row..], (first, start, count), C, mask),
            );
        }
    }

    /// Adds `count` keys from `start` on; `qkv` starts at the query of position `start`.
    #[inline(always)]
    fn step(
        &mut self,
        simd: Simd,
        qkv: &[f32],
        (first, start, count): (usize, usize, usize),
        C: usize,
        mask: Option<HeadMask>,
    ) {
        let scores = &mut self.scores[..count * W];
        let keys = Strided { data: &qkv[C..], row: 3 * C, column: 1 };
        product(simd, scores, keys, &self.queries, W);
        let scores = scores.as_chunks_mut::<W>().0;
        for (i, scores) in scores.iter_mut().enumerate().skip((first + 1).saturating_sub(start)) {
            // These queries precede the key.
            scores[..W.min(start + i - first)].fill(f32::NEG_INFINITY);
        }
        online_softmax(simd, scores, &mut self.out, &mut self.max, &mut self.sum);
        if let Some(mask) = mask {
            let factors = &mut self.factors.as_chunks_mut::<W>().0[..count];
            mask.draw::<false>(factors, start, first);
            for (weights, factors) in scores.iter_mut().zip(factors) {
                (0..W).for_each(|i| weights[i] *= factors[i]);
            }
        }
        let values = Strided { data: &qkv[2 * C..], row: 3 * C, column: 1 };
        let HS = self.queries.len() / W;
        let values = gather_rows(&mut self.values[..count * HS], values, HS);
        add_product(simd, &mut self.out, values.transposed(), scores.as_flattened(), W);
    }

    /// Writes row `i` of the result; returns its log-sum-exp.
    fn finish(&self, i: usize, out: &mut [f32]) -> f32 {
        store_transposed(out, &self.out[i..], 1.0 / self.sum[i]);
        self.max[i] + self.sum[i].ln()
    }
}

/// scores = exp(scores - max), where max is updated first and previous sums are rescaled to it
/// (Milakov & Gimelshein 2018). Every query sees the first key, so max is finite from the first
/// call on.
#[inline(always)]
fn online_softmax(
    simd: Simd,
    scores: &mut [[f32; W]],
    out: &mut [f32],
    max: &mut [f32; W],
    sum: &mut [f32; W],
) {
    let mut new_max = *max;
    for row in scores.iter() {
        new_max = std::array::from_fn(|i| larger(row[i], new_max[i]));
    }
    let scale: [f32; W] = std::array::from_fn(|i| exp(max[i] - new_max[i]));
    *max = new_max;
    scale_rows(simd, out, &scale);
    let mut new_sum: [f32; W] = std::array::from_fn(|i| sum[i] * scale[i]);
    for row in scores {
        for i in 0..W {
            row[i] = exp(row[i] - max[i]);
            new_sum[i] += row[i];
        }
    }
    *sum = new_sum;
}

/// A slice that several tasks write at the same time, each in disjoint parts.
struct Disjoint<'a> {
    start: *mut f32,
    len: usize,
    _slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through `slice`, whose callers guarantee that parts do not overlap.
unsafe impl Sync for Disjoint<'_> {}

impl<'a> Disjoint<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// Returns a part of the slice.
    ///
    /// # Safety
    /// No other slice that overlaps the result may exist while it lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the range lies inside the slice, as asserted above, and is not aliased, as the
        // caller guarantees.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
