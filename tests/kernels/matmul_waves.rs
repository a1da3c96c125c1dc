//! GEMMs of more tiles than the device has SMs: persistent blocks go from tile to tile, and the
//! order of tiles crosses strips. A weighted sum over each row of outputs is compared with the same
//! sum in f64, so every element counts, at the cost of reading the operands once. Some elements are
//! compared singly.

use crate::devices::{Under, on_gpu, options, with_options};
use crate::harness::*;
use warpsmith::device::compare::assert_close;
use warpsmith::device::cuda::{CudaOptions, MatmulChoice};
use warpsmith::ops::{Epilogue, MatmulBackward, MatmulForward};
use warpsmith::tensor::Dtype;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Dgrad,
    Wgrad,
}
const PASSES: [Pass; 3] = [Pass::Forward, Pass::Dgrad, Pass::Wgrad];

/// Returns (N, C, OC), off the tiles on every side. The largest known GPUs have some 150 SMs; on a
/// GPU there are 429 tiles of 128 x 256 forward and 231 in each pass backward, without splits. The
/// emulated device has 4 SMs; there are two stages of K, and a strip of `strip_rows` and part of
/// another.
fn shape(pass: Pass, strip_rows: usize) -> (usize, usize, usize) {
    let M = strip_rows + 136;
    match pass {
        Pass::Forward if on_gpu() => (4096 + 8, 776, 3080),
        Pass::Dgrad if on_gpu() => (4096 + 8, 1544, 776),
        Pass::Wgrad if on_gpu() => (776, 1544, 4096 + 8),
        Pass::Forward => (M, 72, 264),
        Pass::Dgrad => (M, 264, 72),
        Pass::Wgrad => (72, 264, M),
    }
}

/// A GEMM by its definition, `out[m][n] = sum over k of a(m, k) b(k, n) + added(m, n)`, with
/// operands rounded to the type.
struct Reference {
    M: usize,
    N: usize,
    K: usize,
    a: Vec<f32>,
    a_across: bool,
    b: Vec<f32>,
    b_across: bool,
    added: Vec<f32>,
    bias: Vec<f32>,
    /// (M) The bias gradient before sums over K of `a` are added; empty if there is none.
    row_bias: Vec<f32>,
}

impl Reference {
    fn a(&self, m: usize, k: usize) -> f64 {
        f64::from(self.a[if self.a_across { k * self.M + m } else { m * self.K + k }])
    }

    fn b(&self, k: usize, n: usize) -> f64 {
        f64::from(self.b[if self.b_across { k * self.N + n } else { n * self.K + k }])
    }

    fn added(&self, m: usize, n: usize) -> f64 {
        let bias = self.bias.get(n).copied().unwrap_or_default();
        f64::from(self.added.get(m * self.N + n).copied().unwrap_or_default()) + f64::from(bias)
    }

    fn element(&self, m: usize, n: usize) -> f64 {
        (0..self.K).map(|k| self.a(m, k) * self.b(k, n)).sum::<f64>() + self.added(m, n)
    }

    /// Returns the bias gradient: `out[m] = sum over k of a(m, k) + row_bias(m)`.
    fn bias_gradient(&self) -> Vec<f64> {
        let row = |(m, &bias)| (0..self.K).map(|k| self.a(m, k)).sum::<f64>() + f64::from(bias);
        self.row_bias.iter().enumerate().map(row).collect()
    }

    /// Returns the sum of elements times `weights` per row.
    fn row_sums(&self, weights: &[f64]) -> Vec<f64> {
        let mut weighted = vec![0.0; self.K];
        for (n, weight) in weights.iter().enumerate() {
            weighted.iter_mut().enumerate().for_each(|(k, sum)| *sum += self.b(k, n) * weight);
        }
        let row = |m| {
            let dot: f64 = (0..self.K).map(|k| self.a(m, k) * weighted[k]).sum();
            dot + weights.iter().enumerate().map(|(n, weight)| self.added(m, n) * weight).sum::<f64>()
        };
        (0..self.M).map(row).collect()
    }

    /// Compares a result whose elements were rounded to bf16 once or, with splits and additions, up
    /// to three times.
    fn check(&self, case: &str, found: &[f32], tolerance: Tolerance) {
        let (M, N) = (self.M, self.N);
        assert_eq!(found.len(), M * N, "{case}");
        let corners = [(0, 0), (0, N - 1), (M - 1, 0), (M - 1, N - 1)];
        let rows = random_indices(21, 64, M).into_iter().zip(random_indices(22, 64, N));
        let places: Vec<(usize, usize)> =
            corners.into_iter().chain(rows.map(|(m, n)| (m as usize, n as usize))).collect();
        let got: Vec<f32> = places.iter().map(|&(m, n)| found[m * N + n]).collect();
        let want: Vec<f64> = places.iter().map(|&(m, n)| self.element(m, n)).collect();
        let relative = tolerance.relative(Dtype::Bf16);
        assert_close(&format!("{case}, elements"), &got, &want, relative);

        // Allows six standard deviations of a sum of N errors that are uniform within the
        // tolerance.
        let weights: Vec<f64> = random(23, N).iter().map(|x| f64::from(x.signum())).collect();
        let got = found.chunks(N).map(|row| {
            let sum: f64 = row.iter().zip(&weights).map(|(&x, w)| f64::from(x) * w).sum();
            sum as f32
        });
        let want = self.row_sums(&weights);
        assert_close(&format!("{case}, rows"), &got.collect::<Vec<_>>(), &want, 6.0 / 3f64.sqrt() * relative);
    }
}

fn rounded(seed: u32, len: usize) -> Vec<f32> {
    random(seed, len).into_iter().map(|x| round(x, Dtype::Bf16)).collect()
}

fn reference(pass: Pass, (N, C, OC): (usize, usize, usize)) -> Reference {
    let (inp, weight, dout) = (rounded(1, N * C), rounded(2, OC * C), rounded(7, N * OC));
    match pass {
        Pass::Forward => Reference {
            M: N,
            N: OC,
            K: C,
            a: inp,
            a_across: false,
            b: weight,
            b_across: false,
            added: rounded(4, N * OC),
            bias: rounded(3, OC),
            row_bias: Vec::new(),
        },
        Pass::Dgrad => Reference {
            M: N,
            N: C,
            K: OC,
            a: dout,
            a_across: false,
            b: weight,
            b_across: true,
            added: Vec::new(),
            bias: Vec::new(),
            row_bias: Vec::new(),
        },
        Pass::Wgrad => Reference {
            M: OC,
            N: C,
            K: N,
            a: dout,
            a_across: true,
            b: inp,
            b_across: true,
            added: rounded(5, OC * C),
            bias: Vec::new(),
            row_bias: rounded(6, OC),
        },
    }
}

/// Declares a pass. Its result is the first output; the bias gradient, if it has one, is the last.
fn declare(t: &mut Tensors, pass: Pass, (N, C, OC): (usize, usize, usize)) -> Work {
    let heads = C.div_ceil(96).next_multiple_of(12);
    t.limit(|limits| (limits.rows, limits.NH, limits.C) = (N.max(512), heads, heads * 96));
    let any = Tolerance::new(3.0, 1);
    if pass == Pass::Forward {
        let out = t.out_x("out", N * OC, any);
        let epilogue = Epilogue::BiasResidual {
            bias: t.x("bias", &random(3, OC)),
            residual: t.x("residual", &random(4, N * OC)),
        };
        let (inp, weight) = (t.x("inp", &random(1, N * C)), t.x("weight", &random(2, OC * C)));
        let args = MatmulForward { out, inp, weight, epilogue, N, C, OC };
        return Box::new(move |dev| dev.matmul_forward(args));
    }
    let dinp = |t: &mut Tensors| t.out_x("dinp", N * C, any);
    let dweight = |t: &mut Tensors| t.inout_x("dweight", &random(5, OC * C), any);
    let (dinp, dweight) = match pass {
        Pass::Dgrad => (dinp(t), dweight(t)),
        _ => {
            let dweight = dweight(t);
            (dinp(t), dweight)
        }
    };
    let args = MatmulBackward {
        dinp,
        dweight: Some(dweight),
        overwrite_dweight: false,
        dbias: Some(t.inout_x("dbias", &random(6, OC), any)),
        dout: t.x("dout", &random(7, N * OC)),
        inp: t.x("inp", &random(1, N * C)),
        weight: t.x("weight", &random(2, OC * C)),
        gelu_gradient: None,
        N,
        C,
        OC,
    };
    Box::new(move |dev| dev.matmul_backward(args))
}

/// Checks every pass for the right numbers, and for the same bits in each mode of the emulated
/// device or in two runs on a GPU.
fn check_waves(matmul: MatmulChoice, (tile_m, tile_n): (usize, usize), strip_rows: usize) {
    let options = CudaOptions { matmul, ..options(Dtype::Bf16) };
    for pass in PASSES {
        let shape = shape(pass, strip_rows);
        let reference = reference(pass, shape);
        let case = format!("{matmul}, {pass:?}, {shape:?}");
        let tiles = reference.M.div_ceil(tile_m) * reference.N.div_ceil(tile_n);
        let run = |under: Under| {
            let (mode, sm_count) = (under.mode.clone(), under.sm_count);
            // More than a whole wave.
            assert!(tiles > sm_count, "{case}: {tiles} tiles on {sm_count}");
            let mut outputs = outputs_of(under, Dtype::Bf16, |t| declare(t, pass, shape));
            let dbias = if pass == Pass::Wgrad { outputs.pop().expect("dbias") } else { Vec::new() };
            (mode, outputs.swap_remove(0), dbias)
        };
        let mut runs: Vec<_> = with_options(options).into_iter().map(run).collect();
        if on_gpu() {
            runs.push(run(with_options(options).swap_remove(0)));
        }
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|x| x.to_bits()).collect() };
        let (_, result, dbias) = &runs[0];
        let tolerance = Tolerance::new(3.0, reference.K);
        reference.check(&case, result, tolerance);
        let want = reference.bias_gradient();
        assert_close(&format!("{case}, dbias"), dbias, &want, tolerance.relative(Dtype::Bf16));
        for (mode, again, dbias_again) in &runs[1..] {
            assert!(bits(again) == bits(result), "{case}: other bits on {mode}");
            assert!(bits(dbias_again) == bits(dbias), "{case}: other bits of dbias on {mode}");
        }
    }
}

/// With a run per tile, and with runs that end inside tiles.
fn check_hopper(M: usize) {
    for runs in [None, Some(7)] {
        check_waves(MatmulChoice::Hopper { M, runs }, (M, 256), 8 * 256);
    }
}

#[test]
fn hopper_128x256() {
    check_hopper(128);
}

#[test]
fn hopper_64x256() {
    check_hopper(64);
}

#[test]
fn portable_tiles() {
    for (M, N) in [(128, 256), (128, 128), (64, 64)] {
        check_waves(MatmulChoice::Tile { M, N, splits: 2 }, (M, N), 8 * 128);
    }
}

/// The check itself must find an unwritten tile, swapped tiles, and one element that is off.
mod tests {
    use super::*;

    fn spoilt(spoil: impl Fn(&mut [f32])) {
        let reference = reference(Pass::Wgrad, (40, 264, 72));
        let mut result: Vec<f32> =
            (0..72 * 264).map(|i| round(reference.element(i / 264, i % 264) as f32, Dtype::Bf16)).collect();
        spoil(&mut result);
        reference.check("spoilt", &result, Tolerance::new(3.0, 40));
    }

    #[test]
    fn the_right_result_passes() {
        spoilt(|_| {});
    }

    #[test]
    #[should_panic(expected = "spoilt, ")]
    fn an_unwritten_tile_fails() {
        spoilt(|result| result.chunks_mut(264).take(8).for_each(|row| row[64..72].fill(f32::NAN)));
    }

    #[test]
    #[should_panic(expected = "spoilt, ")]
    fn swapped_tiles_fail() {
        spoilt(|result| {
            for row in result.chunks_mut(264) {
                let (left, right) = row.split_at_mut(128);
                left[..128].swap_with_slice(&mut right[..128]);
            }
        });
    }

    /// The element is not among those compared singly.
    #[test]
    #[should_panic(expected = "spoilt, rows: [33] of 72 is ")]
    fn one_element_that_is_off_fails() {
        spoilt(|result| result[33 * 264 + 100] += 8.0);
    }
}
