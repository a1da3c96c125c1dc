//! Layer normalization.

use crate::harness::*;
use warpsmith::ops::{LayernormBackward, LayernormForward};
use warpsmith::tensor::Dtype;

/// (N, C): one lane of a warp with a pack; rows off the block; a row per warp and per block; more
/// rows than the groups of the emulated device take at once, of one warp and of two, and fewer;
/// rows for the wide kernels.
const SHAPES: [(usize, usize); 8] =
    [(1, 8), (5, 24), (611, 40), (310, 264), (9, 768), (3, 1032), (2, 4104), (2, 12288)];

#[test]
fn forward() {
    for (N, C) in SHAPES {
        check(&format!("layernorm forward {N} {C}"), |t| {
            let args = LayernormForward {
                out: t.out_x("out", N * C, Tolerance::new(1.0, C)),
                mean: t.out_f32("mean", N, Tolerance::new(0.0, C)),
                rstd: t.out_f32("rstd", N, Tolerance::new(0.0, C)),
                inp: t.x("inp", &random(1, N * C)),
                weight: t.x("weight", &random(2, C)),
                bias: t.x("bias", &random(3, C)),
                N,
                C,
            };
            Box::new(move |dev| dev.layernorm_forward(args))
        });
    }
}

/// The variance is taken about the mean: here the mean of squares minus the square of the mean
/// would be noise.
#[test]
fn far_from_zero() {
    let (N, C) = (4, 768);
    check("layernorm far from zero", |t| {
        let inp: Vec<f32> = random(1, N * C).iter().map(|x| 200.0 + x).collect();
        let args = LayernormForward {
            // A last place of the mean is up to 2^-16.
            out: t.out_x("out", N * C, Tolerance::new(1.0, 1 << 16)),
            mean: t.out_f32("mean", N, Tolerance::new(0.0, C)),
            rstd: t.out_f32("rstd", N, Tolerance::new(0.0, C)),
            inp: t.x("inp", &inp),
            weight: t.x("weight", &random(2, C)),
            bias: t.x("bias", &random(3, C)),
            N,
            C,
        };
        Box::new(move |dev| dev.layernorm_forward(args))
    });
}

#[test]
fn backward() {
    for (N, C) in SHAPES.into_iter().filter(|&(_, C)| C < 12288) {
        check(&format!("layernorm backward {N} {C}"), |t| backward_case(t, N, C, false, 0.0));
    }
    check_dtype("layernorm backward 2 12288", Dtype::Bf16, |t| backward_case(t, 2, 12288, true, 0.0));
}

/// The last layernorm starts the gradient of the residual stream, in memory that may hold anything.
#[test]
fn backward_without_a_gradient_before() {
    for (N, C) in [(1, 8), (9, 264)] {
        check(&format!("layernorm backward {N} {C}, dinp ="), |t| backward_case(t, N, C, true, 0.0));
    }
}

/// Subtracting a mean of hundreds of deviations adds no more noise than its last place has.
#[test]
fn backward_far_from_zero() {
    check("layernorm backward far from zero", |t| backward_case(t, 9, 768, false, 200.0));
}

/// `mean` is roughly the mean of the input.
fn backward_case(t: &mut Tensors, N: usize, C: usize, overwrite_dinp: bool, mean: f32) -> Work {
    if C > 2048 {
        // Enough scratch memory for the wide kernel, and no more for the other operations.
        t.limit(|limits| (limits.C, limits.NH, limits.rows) = (4160, 65, 128));
    }
    let rstd: Vec<f32> = random(9, N).iter().map(|x| 2.0 + x).collect();
    let about_mean = |seed, len| random(seed, len).iter().map(|x| mean + x).collect::<Vec<f32>>();
    // A last place of a mean of 200 is up to 2^-16.
    let terms = |len: usize| if mean == 0.0 { len } else { 1 << 16 };
    let args = LayernormBackward {
        dinp: match overwrite_dinp {
            true => t.out_x("dinp", N * C, Tolerance::new(1.0, terms(C))),
            false => t.inout_x("dinp", &random(1, N * C), Tolerance::new(1.0, terms(C))),
        },
        overwrite_dinp,
        dweight: t.inout_x("dweight", &random(2, C), Tolerance::new(1.0, terms(N))),
        dbias: t.inout_x("dbias", &random(3, C), Tolerance::new(1.0, N)),
        dout: t.x("dout", &random(4, N * C)),
        inp: t.x("inp", &about_mean(5, N * C)),
        weight: t.x("weight", &random(6, C)),
        mean: t.f32("mean", &about_mean(7, N)),
        rstd: t.f32("rstd", &rstd),
        N,
        C,
    };
    Box::new(move |dev| dev.layernorm_backward(args))
}
