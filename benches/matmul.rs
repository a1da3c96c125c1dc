//! All matmuls of one training step of GPT-2 124M, in the order and over the memory of a real step
//! (cached weights would flatter). Engines alternate, so that a noisy machine affects all alike.
//!
//! `cargo bench --bench matmul` takes rows (B*T) as arguments, 256 and 1024 by default. Without
//! cargo's `--bench` sizes are tiny, so that `cargo test` keeps the program working.

use std::time::Instant;
use warpsmith::device::cpu::matmul::{self, Epilogue, Gradients, Precision, Scratch, Shape};

/// Name, layers, C, OC.
type Kind = (&'static str, usize, usize, usize);

const D12: [Kind; 5] = [
    ("qkv", 12, 768, 2304),
    ("attproj", 12, 768, 768),
    ("fc", 12, 768, 3072),
    ("fcproj", 12, 3072, 768),
    ("head", 1, 768, 50304),
];
const TINY: [Kind; 2] = [("fc", 2, 64, 256), ("head", 1, 64, 1000)];

enum Engine {
    /// The `gemm` crate with its own threads, without an epilogue: the baseline.
    Plain,
    Ours(Precision, Scratch),
}

impl Engine {
    fn name(&self) -> String {
        match self {
            Engine::Plain => "plain gemm".into(),
            Engine::Ours(precision, _) => precision.describe(),
        }
    }

    fn forward(&mut self, out: &mut [f32], inp: &[f32], weight: &[f32], bias: &[f32], shape: Shape) {
        match self {
            Engine::Plain => plain(out, (inp, false), (weight, true), (shape.N, shape.OC, shape.C)),
            Engine::Ours(precision, scratch) => {
                matmul::forward(*precision, scratch, out, inp, weight, Epilogue::Bias { bias }, shape)
            }
        }
    }

    fn backward(
        &mut self,
        dinp: &mut [f32],
        dweight: &mut [f32],
        dout: &[f32],
        inp: &[f32],
        weight: &[f32],
        shape: Shape,
    ) {
        let Shape { N, C, OC } = shape;
        match self {
            Engine::Plain => {
                plain(dinp, (dout, false), (weight, false), (N, C, OC));
                plain(dweight, (dout, true), (inp, false), (OC, C, N));
            }
            Engine::Ours(precision, scratch) => {
                let gradients =
                    Gradients { dinp, dweight: Some(dweight), overwrite_dweight: true, dbias: None };
                matmul::backward(*precision, scratch, gradients, dout, inp, weight, None, shape);
            }
        }
    }
}

/// out (m, n) = lhs @ rhs, each row-major or (`true`) the transpose of a row-major matrix.
fn plain(out: &mut [f32], lhs: (&[f32], bool), rhs: (&[f32], bool), (m, n, k): (usize, usize, usize)) {
    assert!(out.len() == m * n && lhs.0.len() == m * k && rhs.0.len() == k * n);
    let strides = |transposed, rows, cols| if transposed { (1, rows as isize) } else { (cols as isize, 1) };
    let ((lhs_rs, lhs_cs), (rhs_rs, rhs_cs)) = (strides(lhs.1, m, k), strides(rhs.1, k, n));
    // SAFETY: the pointers are valid for the sizes and strides, because the assertion above
    // compares the slices' lengths with m, n and k.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            lhs.0.as_ptr(),
            lhs_cs,
            lhs_rs,
            rhs.0.as_ptr(),
            rhs_cs,
            rhs_rs,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        )
    }
}

struct Buffers {
    weights: Vec<f32>,
    dweights: Vec<f32>,
    bias: Vec<f32>,
    inp: Vec<f32>,
    dinp: Vec<f32>,
    out: Vec<f32>,
}

impl Buffers {
    fn new(kinds: &[Kind], N: usize) -> Self {
        let weights: usize = kinds.iter().map(|&(_, L, C, OC)| L * C * OC).sum();
        let (C, OC) = (kinds.iter().map(|k| k.2).max().unwrap(), kinds.iter().map(|k| k.3).max().unwrap());
        let numbers = |len: usize| (0..len).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect();
        let (weights, dweights) = (numbers(weights), numbers(weights));
        let (inp, dinp, out) = (numbers(N * C), numbers(N * C), numbers(N * OC));
        Buffers { weights, dweights, bias: numbers(OC), inp, dinp, out }
    }

    /// Runs one step; adds the seconds of each kind's forward and backward matmuls to `seconds`.
    fn step(&mut self, engine: &mut Engine, kinds: &[Kind], N: usize, seconds: &mut [[f64; 2]]) {
        for backward in [false, true] {
            let mut start = 0;
            for (index, &(_, L, C, OC)) in kinds.iter().enumerate() {
                let shape = Shape { N, C, OC };
                for _ in 0..L {
                    let weight = &self.weights[start..start + C * OC];
                    let dweight = &mut self.dweights[start..start + C * OC];
                    let (out, inp) = (&mut self.out[..N * OC], &self.inp[..N * C]);
                    let timer = Instant::now();
                    if backward {
                        engine.backward(&mut self.dinp[..N * C], dweight, out, inp, weight, shape);
                    } else {
                        engine.forward(out, inp, weight, &self.bias[..OC], shape);
                    }
                    seconds[index][backward as usize] += timer.elapsed().as_secs_f64();
                    start += C * OC;
                }
            }
        }
    }
}

fn main() {
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let (kinds, repetitions): (&[Kind], _) = if quick { (&TINY, 2) } else { (&D12, 9) };
    let mut rows: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    if rows.is_empty() {
        rows = if quick { vec![16] } else { vec![256, 1024] };
    }
    let mut engines = vec![Engine::Plain];
    for precision in [Precision::F32, Precision::Bf16] {
        match precision.require_support() {
            Ok(()) => engines.push(Engine::Ours(precision, Scratch::default())),
            Err(error) => println!("skipped: {error}"),
        }
    }
    for N in rows {
        bench(&mut engines, kinds, N, repetitions);
    }
}

fn bench(engines: &mut [Engine], kinds: &[Kind], N: usize, repetitions: usize) {
    let mut buffers = Buffers::new(kinds, N);
    let mut runs = vec![vec![]; engines.len()];
    for repetition in 0..=repetitions {
        for (engine, runs) in engines.iter_mut().zip(&mut runs) {
            let mut seconds = vec![[0.0; 2]; kinds.len()];
            buffers.step(engine, kinds, N, &mut seconds);
            if repetition > 0 {
                runs.push(seconds);
            }
        }
    }
    println!("\nN = {N}, {} threads, GFLOP/s: median (slowest - fastest)", rayon::current_num_threads());
    print!("{:<26}", "matmuls");
    engines.iter().for_each(|e| print!(" | {:>24}", e.name()));
    println!();
    let GFLOP = |&(_, L, C, OC): &Kind| 2e-9 * (L * N * C * OC) as f64;
    for (index, kind) in kinds.iter().enumerate() {
        for (pass, name, matmuls) in [(0, "forward", 1.0), (1, "backward", 2.0)] {
            print!("{:<26}", format!("{:<8}{name:<9}{} x {}", kind.0, kind.2, kind.3));
            for runs in &runs {
                let rates = runs.iter().map(|r| matmuls * GFLOP(kind) / r[index][pass]).collect();
                print!(" | {}", summary(rates, 0));
            }
            println!();
        }
    }
    print!("{:<26}", "whole step, ms");
    for runs in &runs {
        print!(" | {}", summary(runs.iter().map(|r| r.iter().flatten().sum::<f64>() * 1e3).collect(), 0));
    }
    println!();
}

fn summary(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (median, low, high) = (values[values.len() / 2], values[0], values[values.len() - 1]);
    format!("{:>24}", format!("{median:.digits$} ({low:.digits$} - {high:.digits$})"))
}
