//! Dropout in the residual stream, and its gradient.

use crate::harness::*;
use warpsmith::ops::{Dropout, Epilogue, LayernormForward, MatmulForward};

/// A dropout whose rows and stream are far from 0.
pub fn dropout(t: &mut Tensors, rate: f32) -> Dropout {
    let state = t.i32("dropout_state", &[0x1234_5678, -7, 1_000_003, 0]);
    Dropout { rate, state, stream: 77 }
}

/// (N, C): a pack; rows off the block; a row per warp and per block; rows for the wide kernels.
const SHAPES: [(usize, usize); 5] = [(1, 8), (5, 24), (33, 264), (3, 1032), (2, 4104)];

#[test]
fn backward() {
    for (N, C) in SHAPES {
        check(&format!("dropout backward {N} {C}"), |t| {
            let dinp = t.out_x("dinp", N * C, Tolerance::new(1.0, 1));
            let dout = t.x("dout", &random(1, N * C));
            let dropout = dropout(t, 0.3);
            Box::new(move |dev| dev.dropout_backward(dinp, dout, C, dropout))
        });
    }
}

/// The product and what is kept of it are rounded, the sum is, and the layernorm of that.
#[test]
fn projections() {
    for (N, OC) in [(3, 24), (70, 264), (2, 1032)] {
        for rate in [0.1, 0.9] {
            check(&format!("matmul, dropout, layernorm {N} {OC}, rate {rate}"), |t| {
                let C = 72;
                let scaled: Vec<f32> = random(3, OC * C).iter().map(|x| x / 8.0).collect();
                let matmul = MatmulForward {
                    out: t.out_x("residual", N * OC, Tolerance::new(1.0 + 1.0 / (1.0 - f64::from(rate)), C)),
                    inp: t.x("inp", &random(2, N * C)),
                    weight: t.x("weight", &scaled),
                    epilogue: Epilogue::BiasResidual {
                        bias: t.x("bias", &random(4, OC)),
                        residual: t.x("residual", &random(5, N * OC)),
                    },
                    N,
                    C,
                    OC,
                };
                // Deviations are of the order of one, so errors of the sum pass as they are.
                let tolerance = Tolerance::new(4.0 + 4.0 / (1.0 - f64::from(rate)), C + OC);
                let norm = LayernormForward {
                    out: t.out_x("out", N * OC, tolerance),
                    mean: t.out_f32("mean", N, tolerance),
                    rstd: t.out_f32("rstd", N, tolerance),
                    inp: matmul.out,
                    weight: t.x("weight", &random(6, OC)),
                    bias: t.x("bias", &random(7, OC)),
                    N,
                    C: OC,
                };
                let dropout = dropout(t, rate);
                Box::new(move |dev| dev.matmul_residual_layernorm(matmul, Some(dropout), norm))
            });
        }
    }
}
