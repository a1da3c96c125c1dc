//! Token and position embeddings.

use crate::harness::*;
use warpsmith::data::buckets;
use warpsmith::ops::{EncoderBackward, TokenBuckets};

/// (B, T, C, rows of wte): one row; a bucket of more rows than a warp takes; more channels than a
/// warp has packs.
const SHAPES: [(usize, usize, usize, usize); 4] =
    [(1, 1, 8, 3), (3, 7, 40, 50), (5, 67, 24, 3), (2, 33, 272, 9)];

#[test]
fn forward() {
    for (B, T, C, V) in SHAPES {
        check(&format!("encoder forward {B} {T} {C} {V}"), |t| {
            let encoded = t.out_x("encoded", B * T * C, Tolerance::new(1.0, 1));
            let tokens = t.i32("tokens", &random_indices(1, B * T, V));
            let wte = t.x("wte", &random(2, V * C));
            let wpe = t.x("wpe", &random(3, (T + 2) * C));
            Box::new(move |dev| dev.encoder_forward(encoded, tokens, wte, wpe, (B, T, C)))
        });
    }
}

#[test]
fn backward() {
    for (B, T, C, V) in SHAPES {
        check(&format!("encoder backward {B} {T} {C} {V}"), |t| {
            let tokens = random_indices(1, B * T, V);
            let by_token = buckets::TokenBuckets::of(&tokens);
            let tolerance = Tolerance::new(1.0, B * T);
            let args = EncoderBackward {
                dwte: t.inout_x("dwte", &random(2, V * C), tolerance),
                dwpe: t.inout_x("dwpe", &random(3, (T + 2) * C), tolerance),
                dout: t.x("dout", &random(4, B * T * C)),
                tokens: t.i32("tokens", &tokens),
                buckets: TokenBuckets {
                    rows: t.i32("rows", &by_token.rows),
                    starts: t.i32("starts", &by_token.starts),
                    count: by_token.starts.len() - 1,
                },
                B,
                T,
                C,
            };
            Box::new(move |dev| dev.encoder_backward(args))
        });
    }
}
