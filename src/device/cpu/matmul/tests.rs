//! Compares every layout and epilogue with sums in f64, at shapes that do not fit blocks.

use super::*;
use crate::ops::Kept;

const SHAPES: [(usize, usize, usize); 15] = [
    (1, 1, 1),
    (1, 768, 257),
    (2, 3, 5),
    (3, 17, 33),
    (17, 255, 31),
    (32, 32, 32),
    (33, 65, 129),
    (64, 48, 96),
    (100, 1600, 70),
    (255, 17, 257),
    (257, 31, 40),
    (300, 100, 300),
    // More than one phase along k in forward, dgrad and wgrad.
    (3, 4200, 35),
    (5, 33, 4200),
    (2100, 33, 20),
];

/// Numbers in -1..1 from a counter, identical in each run.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mix = |i: u32| {
        let mut z = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
        z = (z ^ (z >> 13)).wrapping_mul(0xc2b2_ae35);
        (z ^ (z >> 16)) as f32 / (1u64 << 31) as f32 - 1.0
    };
    (0..len as u32).map(mix).collect()
}

fn poison(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// Rounds the operands of a matmul.
fn rounded(precision: Precision, x: &[f32]) -> Vec<f64> {
    let round = |&x: &f32| match precision {
        Precision::F32 => x as f64,
        Precision::Bf16 => half::bf16::from_f32(x).to_f64(),
    };
    x.iter().map(round).collect()
}

/// lhs (m, k) @ rhs (k, n), given the strides of both, with the sum of the terms' magnitudes, which
/// bounds the error.
fn reference(
    (lhs, lhs_rs, lhs_cs): (&[f64], usize, usize),
    (rhs, rhs_rs, rhs_cs): (&[f64], usize, usize),
    (m, n, k): (usize, usize, usize),
) -> Vec<(f64, f64)> {
    let mut out = vec![(0.0, 0.0); m * n];
    for i in 0..m {
        for j in 0..n {
            let term = |l: usize| lhs[i * lhs_rs + l * lhs_cs] * rhs[l * rhs_rs + j * rhs_cs];
            out[i * n + j] = (0..k).map(term).fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
        }
    }
    out
}

/// Compares with sums of `k` terms of random sign: partial sums are near magnitude / sqrt(k), each
/// of k additions errs by up to half a unit in its last place, and such errors add up as sqrt(k).
/// The bound is four times that for the worst of many elements, and a few units for epilogues.
fn assert_close(what: &str, got: &[f32], want: &[(f64, f64)]) {
    const UNIT: f64 = f32::EPSILON as f64 / 2.0;
    assert_eq!(got.len(), want.len());
    let used = |i: usize| {
        let (value, magnitude) = want[i];
        (got[i] as f64 - value).abs() / (UNIT * (4.0 * magnitude + 8.0 * value.abs() + 2.0))
    };
    for i in 0..got.len() {
        assert!(
            used(i) <= 1.0,
            "{what}: element {i} is {} for {}, {:.2} of the budget",
            got[i],
            want[i].0,
            used(i)
        );
    }
}

fn gelu64(x: f64) -> f64 {
    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    0.5 * x * (1.0 + u.tanh())
}

fn gelu_grad64(x: f64) -> f64 {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let t = (c * (x + 0.044715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)
}

/// All engines that this CPU can run.
fn engines() -> Vec<(Precision, Engine)> {
    let of = |precision| {
        if let Err(error) = Precision::require_support(precision) {
            println!("skipped: {error}");
        }
        Engine::available(precision).map(move |engine| (precision, engine))
    };
    [Precision::F32, Precision::Bf16].into_iter().flat_map(of).collect()
}

#[test]
fn forward_and_its_epilogues_match_f64() {
    for ((precision, engine), (N, C, OC)) in engines().into_iter().flat_map(|e| SHAPES.map(|s| (e, s))) {
        let what = format!("{engine} {N}x{C}x{OC}");
        let shape = Shape { N, C, OC };
        let scratch = &mut Scratch::default();
        let (inp, weight) = (numbers(N * C, 1), numbers(OC * C, 2));
        let (bias, residual) = (numbers(OC, 3), numbers(N * OC, 4));
        let (inp64, weight64) = (rounded(precision, &inp), rounded(precision, &weight));
        let product = reference((&inp64, C, 1), (&weight64, 1, C), (N, OC, C));
        let map = |f: &dyn Fn(usize, f64) -> f64| -> Vec<_> {
            product.iter().enumerate().map(|(i, &(s, a))| (f(i, s), a)).collect()
        };

        let mut out = poison(N * OC);
        forward_on(engine, scratch, &mut out, &inp, &weight, Epilogue::Assign, shape);
        assert_close(&what, &out, &product);

        let biased = map(&|i, s| s + bias[i % OC] as f64);
        out.fill(f32::NAN);
        forward_on(engine, scratch, &mut out, &inp, &weight, Epilogue::Bias { bias: &bias }, shape);
        assert_close(&format!("{what} + bias"), &out, &biased);

        let with_gelu = map(&|i, s| gelu64(s + bias[i % OC] as f64));
        let gradients = map(&|i, s| gelu_grad64(s + bias[i % OC] as f64));
        for (keeps_input, want) in [(true, &biased), (false, &gradients)] {
            let mut kept = poison(N * OC);
            out.fill(f32::NAN);
            let cells = cells(&mut kept);
            let kept_cells = if keeps_input { Kept::Input(cells) } else { Kept::Gradient(cells) };
            let epilogue = Epilogue::BiasGelu { bias: &bias, kept: kept_cells };
            forward_on(engine, scratch, &mut out, &inp, &weight, epilogue, shape);
            assert_close(&format!("{what} kept"), &kept, want);
            assert_close(&format!("{what} gelu"), &out, &with_gelu);
        }

        out.fill(f32::NAN);
        let epilogue = Epilogue::BiasResidual { bias: &bias, residual: &residual };
        forward_on(engine, scratch, &mut out, &inp, &weight, epilogue, shape);
        let want = map(&|i, s| s + bias[i % OC] as f64 + residual[i] as f64);
        assert_close(&format!("{what} + residual"), &out, &want);
    }
}

#[test]
fn backward_matches_f64() {
    for ((precision, engine), (N, C, OC)) in engines().into_iter().flat_map(|e| SHAPES.map(|s| (e, s))) {
        let shape = Shape { N, C, OC };
        let scratch = &mut Scratch::default();
        let (dout, inp, weight) = (numbers(N * OC, 1), numbers(N * C, 2), numbers(OC * C, 3));
        let (factors, old) = (numbers(N * C, 4), numbers(OC * C, 5));
        let (d, x, w) = (rounded(precision, &dout), rounded(precision, &inp), rounded(precision, &weight));
        let dinp_want = reference((&d, OC, 1), (&w, C, 1), (N, C, OC));
        let dweight_want = reference((&d, 1, OC), (&x, C, 1), (OC, C, N));
        let dbias_old = numbers(OC, 6);
        let exact: Vec<f64> = dout.iter().map(|&x| x as f64).collect();
        let mut dbias_want = reference((&exact, 1, OC), (&vec![1.0; N], 1, 1), (OC, 1, N));
        dbias_want.iter_mut().zip(&dbias_old).for_each(|(w, &o)| w.0 += o as f64);

        for (overwrite_dweight, gelu_gradient) in [(true, None), (false, Some(&factors[..]))] {
            let what = format!("{engine} {N}x{C}x{OC}, overwrite {overwrite_dweight}");
            let (mut dinp, mut dbias) = (poison(N * C), dbias_old.clone());
            let mut dweight = if overwrite_dweight { poison(OC * C) } else { old.clone() };
            let gradients = Gradients {
                dinp: &mut dinp,
                dweight: Some(&mut dweight),
                overwrite_dweight,
                dbias: gelu_gradient.map(|_| &mut dbias[..]),
            };
            backward_on(engine, scratch, gradients, &dout, &inp, &weight, gelu_gradient, shape);

            let slope = |i: usize| gelu_gradient.map_or(1.0, |factors| factors[i] as f64);
            let want: Vec<_> = dinp_want.iter().enumerate().map(|(i, &(s, a))| (s * slope(i), a)).collect();
            assert_close(&format!("{what}: dinp"), &dinp, &want);
            let kept = |i: usize| if overwrite_dweight { 0.0 } else { old[i] as f64 };
            let want: Vec<_> = dweight_want.iter().enumerate().map(|(i, &(s, a))| (s + kept(i), a)).collect();
            assert_close(&format!("{what}: dweight"), &dweight, &want);
            match gelu_gradient {
                Some(_) => assert_close(&format!("{what}: dbias"), &dbias, &dbias_want),
                None => assert_eq!(dbias, dbias_old),
            }
        }
    }
}

/// All outputs of one forward and one backward call, as bits.
fn all_bits(engine: Engine, (N, C, OC): (usize, usize, usize)) -> Vec<u32> {
    let shape = Shape { N, C, OC };
    let scratch = &mut Scratch::default();
    let (inp, weight, dout) = (numbers(N * C, 1), numbers(OC * C, 2), numbers(N * OC, 3));
    let (bias, mut out, mut kept) = (numbers(OC, 4), poison(N * OC), poison(N * OC));
    let epilogue = Epilogue::BiasGelu { bias: &bias, kept: Kept::Gradient(cells(&mut kept)) };
    forward_on(engine, scratch, &mut out, &inp, &weight, epilogue, shape);
    let (mut dinp, mut dweight, mut dbias) = (poison(N * C), numbers(OC * C, 5), numbers(OC, 6));
    let gradients = Gradients {
        dinp: &mut dinp,
        dweight: Some(&mut dweight),
        overwrite_dweight: false,
        dbias: Some(&mut dbias),
    };
    backward_on(engine, scratch, gradients, &dout, &inp, &weight, Some(&inp), shape);
    [out, kept, dinp, dweight, dbias].iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn threads_do_not_change_a_bit() {
    let shapes = [(1, 64, 50304), (256, 192, 576), (37, 130, 2100), (300, 16, 4000), (600, 33, 65)];
    for ((_, engine), shape) in engines().into_iter().flat_map(|e| shapes.map(|s| (e, s))) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| all_bits(engine, shape))
        };
        let one = run(1);
        for threads in [2, 3, 7] {
            assert!(run(threads) == one, "{engine} {shape:?}: {threads} threads differ from 1");
        }
    }
}

#[test]
fn not_a_number_and_infinity_propagate() {
    let (N, C, OC) = (5, 40, 37);
    for (_, engine) in engines() {
        let (mut inp, weight) = (vec![1.0; N * C], vec![1.0; OC * C]);
        inp[C + 7] = f32::NAN;
        inp[2 * C + 39] = f32::INFINITY;
        inp[3 * C] = f32::NEG_INFINITY;
        let mut out = vec![0.0; N * OC];
        let scratch = &mut Scratch::default();
        forward_on(engine, scratch, &mut out, &inp, &weight, Epilogue::Assign, Shape { N, C, OC });
        let rows: Vec<_> = out.chunks_exact(OC).collect();
        assert!(rows[0].iter().chain(rows[4]).all(|&x| x == C as f32));
        assert!(rows[1].iter().all(|x| x.is_nan()));
        assert!(rows[2].iter().all(|&x| x == f32::INFINITY));
        assert!(rows[3].iter().all(|&x| x == f32::NEG_INFINITY));
    }
}

/// Operands from the smallest gradients to the largest numbers: f32 keeps its precision in every
/// engine's representation.
#[test]
fn f32_keeps_its_precision_at_every_scale() {
    let (N, C, OC) = (33, 50, 40);
    for (precision, engine) in engines().into_iter().filter(|(p, _)| *p == Precision::F32) {
        for (inp_scale, weight_scale) in [(1e-20, 1.0), (1e-28, 1e-3), (1e15, 1e15), (f32::MAX, 1e-3)] {
            let scaled =
                |len, seed, scale| numbers(len, seed).into_iter().map(|x| x * scale).collect::<Vec<_>>();
            let (mut inp, weight) = (scaled(N * C, 1, inp_scale), scaled(OC * C, 2, weight_scale));
            inp[0] = inp_scale;
            let (inp64, weight64) = (rounded(precision, &inp), rounded(precision, &weight));
            let mut out = poison(N * OC);
            let scratch = &mut Scratch::default();
            forward_on(engine, scratch, &mut out, &inp, &weight, Epilogue::Assign, Shape { N, C, OC });
            for (got, (want, magnitude)) in
                out.iter().zip(reference((&inp64, C, 1), (&weight64, 1, C), (N, OC, C)))
            {
                let error = (*got as f64 - want).abs();
                assert!(
                    error <= 2.0 * f32::EPSILON as f64 * magnitude,
                    "{engine}, {inp_scale:e} x {weight_scale:e}: {got} for {want}"
                );
            }
        }
    }
}

/// A single term per sum, so that nothing hides the error of a product.
#[test]
fn single_products_of_f32_err_by_units_in_the_last_place() {
    let (N, C, OC) = (64, 1, 64);
    for (_, engine) in engines().into_iter().filter(|(p, _)| *p == Precision::F32) {
        let (inp, weight, mut out) = (numbers(N, 1), numbers(OC, 2), poison(N * OC));
        let scratch = &mut Scratch::default();
        forward_on(engine, scratch, &mut out, &inp, &weight, Epilogue::Assign, Shape { N, C, OC });
        for (i, got) in out.iter().enumerate() {
            let want = inp[i / OC] as f64 * weight[i % OC] as f64;
            let error = (*got as f64 - want).abs() / (want.abs() * f32::EPSILON as f64);
            assert!(error <= 2.0, "{engine}: {got} for {want}");
        }
    }
}

#[test]
#[should_panic(expected = "wrong length")]
fn a_wrong_length_is_a_bug() {
    let shape = Shape { N: 2, C: 3, OC: 4 };
    forward(
        Precision::F32,
        &mut Scratch::default(),
        &mut [0.0; 7],
        &[0.0; 6],
        &[0.0; 12],
        Epilogue::Assign,
        shape,
    );
}

/// Both engines round the operands alike, but sum them in another order on other units.
#[test]
fn the_two_bf16_engines_agree() {
    let engines: Vec<_> = Engine::available(Precision::Bf16).collect();
    let [amx, avx512] = engines[..] else {
        println!("skipped: this CPU has {} of AMX and AVX512-BF16", engines.len());
        return;
    };
    let (N, C, OC) = (65, 2100, 70);
    let shape = Shape { N, C, OC };
    let (inp, weight) = (numbers(N * C, 1), numbers(OC * C, 2));
    let run = |engine| {
        let mut out = poison(N * OC);
        forward_on(engine, &mut Scratch::default(), &mut out, &inp, &weight, Epilogue::Assign, shape);
        out
    };
    for (a, b) in run(amx).iter().zip(run(avx512)) {
        assert!((a - b).abs() <= 1e-4, "{a} by AMX, {b} by AVX512-BF16");
    }
}

/// A row does not depend on its batch: so a key-value cache gives the logits of a full forward
/// pass.
#[cfg(target_arch = "x86_64")]
#[test]
fn other_rows_do_not_change_a_bit_of_a_row() {
    let (N, C, OC) = (70, 2100, 100);
    let (inp, weight) = (numbers(N * C, 1), numbers(OC * C, 2));
    for (_, engine) in engines().into_iter().filter(|(_, e)| *e != Engine::Portable) {
        let run = |N: usize, inp: &[f32]| {
            let mut out = poison(N * OC);
            let shape = Shape { N, C, OC };
            forward_on(engine, &mut Scratch::default(), &mut out, inp, &weight, Epilogue::Assign, shape);
            out
        };
        let all = run(N, &inp);
        for row in [0, 33, 69] {
            assert!(run(1, &inp[row * C..][..C]) == all[row * OC..][..OC], "{engine}: row {row} alone");
        }
    }
}
