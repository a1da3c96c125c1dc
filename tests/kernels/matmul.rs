//! Matmuls.

use crate::devices::{options, with_options};
use crate::harness::*;
use warpsmith::device::cuda::{CudaOptions, MatmulChoice};
use warpsmith::ops::{Epilogue, Kept, MatmulBackward, MatmulForward};
use warpsmith::tensor::Dtype;

/// (N, C, OC): one row; off the tiles by one row and by 8 columns; more rows than columns; exactly
/// a tile.
const SHAPES: [(usize, usize, usize); 4] = [(1, 8, 264), (65, 72, 136), (130, 136, 40), (64, 128, 64)];

#[derive(Clone, Copy, Debug)]
enum Kind {
    None,
    Bias,
    BiasResidual,
    /// It keeps the input of the GELU.
    BiasGelu,
    /// It keeps the gradient of the GELU.
    BiasGeluGradient,
}
const KINDS: [Kind; 5] = [Kind::None, Kind::Bias, Kind::BiasResidual, Kind::BiasGelu, Kind::BiasGeluGradient];

/// Declares a forward pass. `coarseness` is the number of roundings of the operands, for TF32.
fn forward(t: &mut Tensors, kind: Kind, (N, C, OC): (usize, usize, usize), coarseness: f64) -> Work {
    let tolerance = |roundings| Tolerance::new(coarseness + roundings, C);
    let bias = t.x("bias", &random(3, OC));
    // Products of a variance of 1/9, whatever their length, and the bias' 1/3: where the gradient
    // of GELU varies.
    let (scale, size) = (1.0 / (C as f32).sqrt(), (1.0 / 9.0 + 1.0 / 3.0f64).sqrt());
    let weight: Vec<f32> = random(2, OC * C).iter().map(|w| w * scale).collect();
    let epilogue = match kind {
        Kind::None => Epilogue::None,
        Kind::Bias => Epilogue::Bias { bias },
        Kind::BiasResidual => Epilogue::BiasResidual { bias, residual: t.x("residual", &random(4, N * OC)) },
        Kind::BiasGelu => {
            Epilogue::BiasGelu { bias, kept: Kept::Input(t.out_x("kept", N * OC, tolerance(1.0))) }
        }
        Kind::BiasGeluGradient => {
            let kept = t.out_x("kept", N * OC, tolerance(1.0).then_gelu_gradient(size));
            Epilogue::BiasGelu { bias, kept: Kept::Gradient(kept) }
        }
    };
    let plain = tolerance(3.0);
    let has_gelu = matches!(epilogue, Epilogue::BiasGelu { .. });
    let args = MatmulForward {
        out: t.out_x("out", N * OC, if has_gelu { plain.then_gelu() } else { plain }),
        inp: t.x("inp", &random(1, N * C)),
        weight: t.x("weight", &weight),
        epilogue,
        N,
        C,
        OC,
    };
    Box::new(move |dev| dev.matmul_forward(args))
}

/// The variants of the backward pass.
#[derive(Clone, Copy, Debug)]
struct Backward {
    /// Whether the weight is trained.
    weight: bool,
    overwrite: bool,
    bias: bool,
    gelu: bool,
}
const BACKWARD: [Backward; 4] = [
    Backward { weight: true, overwrite: true, bias: false, gelu: true },
    Backward { weight: true, overwrite: false, bias: true, gelu: false },
    Backward { weight: true, overwrite: true, bias: true, gelu: false },
    Backward { weight: false, overwrite: true, bias: false, gelu: false },
];

fn backward(t: &mut Tensors, what: Backward, (N, C, OC): (usize, usize, usize), coarseness: f64) -> Work {
    let tolerance = |roundings, terms| Tolerance::new(coarseness + roundings, terms);
    let mut dweight = || match what.overwrite {
        true => t.out_x("dweight", OC * C, tolerance(1.0, N)),
        false => t.inout_x("dweight", &random(5, OC * C), tolerance(1.0, N)),
    };
    let dweight = what.weight.then(&mut dweight);
    let args = MatmulBackward {
        dinp: t.out_x("dinp", N * C, tolerance(3.0, OC)),
        dweight,
        overwrite_dweight: what.overwrite,
        dbias: what.bias.then(|| t.inout_x("dbias", &random(6, OC), tolerance(1.0, N))),
        dout: t.x("dout", &random(7, N * OC)),
        inp: t.x("inp", &random(1, N * C)),
        weight: t.x("weight", &random(2, OC * C)),
        gelu_gradient: what.gelu.then(|| t.x("gelu_gradient", &random(8, N * C))),
        N,
        C,
        OC,
    };
    Box::new(move |dev| dev.matmul_backward(args))
}

/// Checks both passes in all variants.
fn check_all(what: &str, options: CudaOptions, shape: (usize, usize, usize), coarseness: f64) {
    for kind in KINDS {
        let case = format!("matmul forward, {what}, {shape:?}, {kind:?}");
        check_on(&case, options.dtype, with_options(options), |t| forward(t, kind, shape, coarseness));
    }
    for variant in BACKWARD {
        let case = format!("matmul backward, {what}, {shape:?}, {variant:?}");
        check_on(&case, options.dtype, with_options(options), |t| backward(t, variant, shape, coarseness));
    }
}

#[test]
fn bf16() {
    for shape in SHAPES {
        check_all("chosen tile", options(Dtype::Bf16), shape, 0.0);
    }
}

#[test]
fn f16() {
    for shape in SHAPES {
        check_all("chosen tile", options(Dtype::F16), shape, 0.0);
    }
}

#[test]
fn f32() {
    for shape in SHAPES {
        check_all("chosen tile", options(Dtype::F32), shape, 0.0);
    }
}

/// TF32 has 13 bits less than f32. The errors of the terms of a sum are independent; one in
/// thousands of sums is off by four standard deviations.
const TF32: f64 = 4.0 * 8192.0;

#[test]
fn tf32() {
    for shape in SHAPES {
        check_all("TF32", CudaOptions { tf32: true, ..options(Dtype::F32) }, shape, TF32);
    }
}

/// Checks each tile with and without splits, some of which have no work.
fn check_tiles(options: CudaOptions, tiles: &[(usize, usize)], coarseness: f64) {
    for &(M, N) in tiles {
        for splits in [1, 3] {
            let options = CudaOptions { matmul: MatmulChoice::Tile { M, N, splits }, ..options };
            check_all(&format!("{M}x{N} in {splits}"), options, (65, 40, 136), coarseness);
        }
    }
}

const TENSOR_CORE_TILES: [(usize, usize); 3] = [(128, 256), (128, 128), (64, 64)];

#[test]
fn every_tile_bf16() {
    check_tiles(options(Dtype::Bf16), &TENSOR_CORE_TILES, 0.0);
}

#[test]
fn every_tile_tf32() {
    check_tiles(CudaOptions { tf32: true, ..options(Dtype::F32) }, &TENSOR_CORE_TILES, TF32);
}

#[test]
fn every_tile_f32() {
    check_tiles(options(Dtype::F32), &[(128, 128), (64, 64)], 0.0);
}

/// Every layout of Hopper's kernels: one row; off the tiles; more tiles than clusters; runs that
/// end inside tiles, up to one for each stage; last tiles of 64 and of 128 columns.
#[test]
fn hopper_tiles() {
    for M in [128, 64] {
        for (shape, runs) in [
            ((1, 8, 264), None),
            ((65, 136, 72), None),
            ((600, 200, 392), None),
            ((200, 264, 392), Some(3)),
            ((200, 264, 72), Some(5)),
            ((200, 328, 72), None),
            ((200, 328, 72), Some(5)),
        ] {
            let matmul = MatmulChoice::Hopper { M, runs };
            let options = CudaOptions { matmul, ..options(Dtype::Bf16) };
            check_all(&matmul.to_string(), options, shape, 0.0);
        }
    }
    for (M, runs) in [(128, None), (64, Some(5))] {
        let matmul = MatmulChoice::Hopper { M, runs };
        check_all(&matmul.to_string(), CudaOptions { matmul, ..options(Dtype::F16) }, (65, 136, 72), 0.0);
    }
}

/// The order of tiles: more than a strip of 8, the last strip not full.
#[test]
fn many_tiles() {
    let shape = (64 * 9 + 1, 16, 136);
    let options =
        CudaOptions { matmul: MatmulChoice::Tile { M: 64, N: 64, splits: 1 }, ..options(Dtype::Bf16) };
    check_on("matmul, strips of tiles", Dtype::Bf16, with_options(options), |t| {
        forward(t, Kind::Bias, shape, 0.0)
    });
}

/// Fusion and recomputation move no bits: GELU and its gradient are taken of the rounded sum, in
/// the forward pass and when they are recomputed.
#[test]
fn gelu_fused_is_gelu_apart_and_gelu_recomputed() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let run = |kind, gelu_fusion, recomputed: bool| {
            let device = with_options(CudaOptions { gelu_fusion, ..options(dtype) }).swap_remove(0);
            outputs_of(device, dtype, |t| {
                let work = forward(t, kind, (65, 72, 136), 0.0);
                let (kept, out) = (t.output("kept"), t.output("out"));
                Box::new(move |dev| {
                    work(dev)?;
                    if recomputed { dev.gelu_recompute(out, kept) } else { Ok(()) }
                })
            })
        };
        for kind in [Kind::BiasGelu, Kind::BiasGeluGradient] {
            assert_eq!(run(kind, 1, false), run(kind, 0, false), "{dtype:?}, {kind:?}");
        }
        let at_once = run(Kind::BiasGeluGradient, 1, false);
        assert_eq!(run(Kind::BiasGelu, 1, true), at_once, "{dtype:?}, recomputed");
    }
}

/// Fusion in the backward pass moves no more than a rounding.
#[test]
fn gelu_gradient_apart() {
    let options = CudaOptions { gelu_fusion: 1, ..options(Dtype::Bf16) };
    check_on("matmul backward, GELU apart", Dtype::Bf16, with_options(options), |t| {
        backward(t, BACKWARD[0], SHAPES[1], 0.0)
    });
}

/// The bits do not depend on the order in which threads run.
#[test]
fn the_same_bits_every_time() {
    let run = |under| outputs_of(under, Dtype::Bf16, |t| backward(t, BACKWARD[1], SHAPES[1], 0.0));
    let mut runs = with_options(options(Dtype::Bf16)).into_iter().map(run);
    let first = runs.next().unwrap();
    assert!(runs.all(|run| run == first));
}
