//! Token and position embeddings.

use crate::dropout::dropout;
use crate::harness::*;
use warpsmith::data::buckets::rows_by_token;
use warpsmith::ops::{EncoderBackward, EncoderForward};

/// (B, T, C, rows of wte): one row; most tokens once; tokens of more rows than a warp has lanes, of
/// more than a warp takes, and one of more than a block's warps take at once; exactly as many as a
/// warp takes; more channels than a warp has packs; a batch of more sequences than are in flight.
const SHAPES: [(usize, usize, usize, usize); 8] = [
    (1, 1, 8, 3),
    (3, 7, 40, 50),
    (3, 60, 8, 4),
    (5, 67, 24, 3),
    (2, 300, 16, 1),
    (2, 32, 8, 1),
    (2, 33, 272, 9),
    (19, 4, 24, 30),
];

/// Every combination of packed documents and dropout.
const VARIANTS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

#[test]
fn forward() {
    for ((B, T, C, V), (packed, drops)) in SHAPES.into_iter().flat_map(|s| VARIANTS.map(|v| (s, v))) {
        check(&format!("encoder forward {B} {T} {C} {V}, packed {packed}, dropout {drops}"), |t| {
            let args = EncoderForward {
                encoded: t.out_x("encoded", B * T * C, Tolerance::new(1.0, 1)),
                tokens: t.i32("tokens", &random_indices(1, B * T, V)),
                positions: packed.then(|| t.i32("positions", &random_indices(4, B * T, T))),
                wte: t.x("wte", &random(2, V * C)),
                wpe: t.x("wpe", &random(3, (T + 2) * C)),
                dropout: drops.then(|| dropout(t, 0.3)),
                B,
                T,
                C,
            };
            Box::new(move |dev| dev.encoder_forward(args))
        });
    }
}

#[test]
fn backward() {
    for ((B, T, C, V), (packed, drops)) in SHAPES.into_iter().flat_map(|s| VARIANTS.map(|v| (s, v))) {
        check(&format!("encoder backward {B} {T} {C} {V}, packed {packed}, dropout {drops}"), |t| {
            let (tokens, positions) = (random_indices(1, B * T, V), random_indices(5, B * T, T));
            let tolerance = Tolerance::new(1.0, B * T);
            let args = EncoderBackward {
                dwte: t.inout_x("dwte", &random(2, V * C), tolerance),
                dwpe: t.inout_x("dwpe", &random(3, (T + 2) * C), tolerance),
                dout: t.x("dout", &random(4, B * T * C)),
                tokens: t.i32("tokens", &tokens),
                rows_by_token: t.i32("rows_by_token", &rows_by_token(&tokens)),
                positions: packed.then(|| {
                    let rows = t.i32("rows_by_position", &rows_by_token(&positions));
                    [t.i32("positions", &positions), rows]
                }),
                dropout: drops.then(|| dropout(t, 0.3)),
                B,
                T,
                C,
            };
            Box::new(move |dev| dev.encoder_backward(args))
        });
    }
}
