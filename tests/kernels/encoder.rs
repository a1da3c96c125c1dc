//! Token and position embeddings.

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

#[test]
fn forward() {
    for (B, T, C, V) in SHAPES {
        check(&format!("encoder forward {B} {T} {C} {V}"), |t| {
            let encoded = t.out_x("encoded", B * T * C, Tolerance::new(1.0, 1));
            let tokens = t.i32("tokens", &random_indices(1, B * T, V));
            let wte = t.x("wte", &random(2, V * C));
            let wpe = t.x("wpe", &random(3, (T + 2) * C));
            Box::new(move |dev| {
                dev.encoder_forward(EncoderForward {
                    encoded,
                    tokens,
                    positions: None,
                    wte,
                    wpe,
                    dropout: None,
                    B,
                    T,
                    C,
                })
            })
        });
    }
}

#[test]
fn backward() {
    let alone = [(true, false), (false, true)].map(|trained| (SHAPES[1], trained));
    for ((B, T, C, V), (wte, wpe)) in SHAPES.map(|shape| (shape, (true, true))).into_iter().chain(alone) {
        check(&format!("encoder backward {B} {T} {C} {V}, {wte} {wpe}"), |t| {
            let tokens = random_indices(1, B * T, V);
            let tolerance = Tolerance::new(1.0, B * T);
            let args = EncoderBackward {
                dwte: wte.then(|| t.inout_x("dwte", &random(2, V * C), tolerance)),
                dwpe: wpe.then(|| t.inout_x("dwpe", &random(3, (T + 2) * C), tolerance)),
                dout: t.x("dout", &random(4, B * T * C)),
                tokens: t.i32("tokens", &tokens),
                rows_by_token: t.i32("rows_by_token", &rows_by_token(&tokens)),
                positions: None,
                dropout: None,
                B,
                T,
                C,
            };
            Box::new(move |dev| dev.encoder_backward(args))
        });
    }
}
