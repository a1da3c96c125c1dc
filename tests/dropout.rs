//! Dropout: the masks as random numbers, the gradient of a whole model that drops activations, the
//! same on the emulated device, and runs.

mod common;
#[path = "common/live_model.rs"]
mod live_model;

use common::{Corpus, losses, refuse, stdout, succeed};
use live_model::LiveModel;
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::device::compare::assert_close;
use warpsmith::device::cpu::{Cpu, matmul::Precision};
use warpsmith::device::cuda::emulated::{self, EmulatorOptions};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::model::activations::Recompute;
use warpsmith::model::dropout;
use warpsmith::ops::{Dropout, DropoutState, Mask, Ops};
use warpsmith::params::PARAMS;
use warpsmith::tensor::{Dtype, Tensor};

fn mask(rate: f32, stream: u32, key: [u32; 2], first_row: u32) -> Mask {
    let state = Tensor { arena: 0, offset: 0, len: 4, dtype: Dtype::I32 };
    Dropout { rate, state, stream }.mask(DropoutState { key, first_row, unused: 0 })
}

/// Whether each of `rows` x `columns` elements is kept.
fn kept(mask: &Mask, rows: usize, columns: usize) -> Vec<bool> {
    let of_row = |row| (0..columns / 4).flat_map(move |four| mask.of_columns(row, 4 * four));
    (0..rows).flat_map(of_row).map(|factor| factor > 0.0).collect()
}

/// Whether each weight of T queries and keys is kept.
fn kept_weights(mask: &Mask, h: usize, T: usize) -> Vec<bool> {
    let factor = |q: usize, k: usize| mask.of_weights(0, h, q & !8, k & !8)[2 * (q >> 3 & 1) + (k >> 3 & 1)];
    (0..T * T).map(|i| factor(i / T, i % T) > 0.0).collect()
}

/// Fails unless `hits` of `trials` are within five standard deviations of what `rate` gives.
#[track_caller]
fn assert_share(what: &str, hits: usize, trials: usize, rate: f64) {
    let (n, expected) = (trials as f64, trials as f64 * rate);
    let deviations = (hits as f64 - expected) / (n * rate * (1.0 - rate)).sqrt();
    assert!(deviations.abs() <= 5.0, "{what}: {hits} of {trials}, {deviations:.1} standard deviations off");
}

#[test]
fn the_share_that_is_kept_is_right_and_the_mean_stays() {
    for rate in [0.001, 0.1, 0.5, 0.9] {
        let mask = mask(rate, 3, dropout::key(42, 7), 0);
        let share = 1.0 - f64::from(rate);
        for (what, all) in [("columns", kept(&mask, 512, 512)), ("weights", kept_weights(&mask, 2, 512))] {
            let hits = all.iter().filter(|&&kept| kept).count();
            assert_share(&format!("{what}, rate {rate}"), hits, all.len(), share);
            assert!((f64::from(mask.scale) * share - 1.0).abs() < 1e-6, "the factor at rate {rate}");
        }
    }
}

/// Pairs of elements are both kept as often as independent ones: neighbors in rows and columns, the
/// same elements in other streams, steps, seeds and heads, and one row against the next.
#[test]
fn masks_are_independent() {
    let (rate, N, C) = (0.3, 512, 512);
    let key = dropout::key(42, 7);
    let own = kept(&mask(rate, 3, key, 0), N, C);
    let weights = kept_weights(&mask(rate, 4, key, 0), 0, 512);
    let shifted = |all: &[bool], by: usize| all[by..].iter().chain(&all[..by]).copied().collect::<Vec<_>>();
    let others = [
        ("the next column", shifted(&own, 1)),
        ("four columns on", shifted(&own, 4)),
        ("the next row", shifted(&own, C)),
        ("the next place", kept(&mask(rate, 4, key, 0), N, C)),
        ("the next layer", kept(&mask(rate, 6, key, 0), N, C)),
        ("the next step", kept(&mask(rate, 3, dropout::key(42, 8), 0), N, C)),
        ("another seed", kept(&mask(rate, 3, dropout::key(43, 7), 0), N, C)),
        ("the next micro-step", kept(&mask(rate, 3, key, N as u32), N, C)),
        ("attention weights", weights.clone()),
    ];
    let both = f64::from(1.0 - rate).powi(2);
    let compare = |what: &str, a: &[bool], b: &[bool]| {
        let hits = a.iter().zip(b).filter(|(a, b)| **a && **b).count();
        assert_share(what, hits, a.len(), both);
    };
    for (what, other) in &others {
        compare(what, &own, other);
    }
    for by in [1, 8, 16, 512, 8 * 512, 9 * 512] {
        compare(&format!("weights {by} on"), &weights, &shifted(&weights, by));
    }
    compare("the next head", &weights, &kept_weights(&mask(rate, 4, key, 0), 1, 512));
}

const CONFIG: ModelConfig =
    ModelConfig { maxT: 24, V: 61, Vp: 128, L: 2, NH: 2, C: 128, qkv_bias: true, lora: None };

/// A model with random masks.
fn dropped(dev: Box<dyn Ops>, rates: DropoutRates) -> LiveModel {
    LiveModel::new(dev, CONFIG, Recompute::Gelu, rates)
}

fn cpu() -> Box<dyn Ops> {
    Box::new(Cpu::new(Precision::F32).unwrap())
}

/// Moves each tensor of each layer along its gradient, and compares the change of the loss.
#[test]
fn gradients_are_those_of_the_masked_loss() {
    let mut model = dropped(cpu(), DropoutRates { embd: 0.2, attn: 0.3, resid: 0.4 });
    model.check_gradients(PARAMS.iter());
}

/// Kernels draw the masks of the CPU.
#[test]
fn kernels_drop_what_the_cpu_drops() {
    let rates = DropoutRates { embd: 0.2, attn: 0.3, resid: 0.4 };
    let mut want = dropped(cpu(), rates);
    for matmul in [MatmulChoice::Own, MatmulChoice::Fastest] {
        let driver = emulated::open(Dtype::F32, EmulatorOptions::default()).unwrap();
        let (dtype, tf32, gelu_fusion, deterministic, graphs) = (Dtype::F32, false, 2, true, false);
        let options = CudaOptions { dtype, tf32, gelu_fusion, deterministic, matmul, graphs };
        let mut got = dropped(Box::new(Cuda::new(driver, options)), rates);
        assert_close("losses", &got.losses(), &want.losses(), 1e-5);
        got.backward();
        want.backward();
        for spec in &PARAMS {
            for l in 0..spec.layers(&CONFIG) {
                let (of_got, of_want) = (got.model.grad(spec.param, l), want.model.grad(spec.param, l));
                let what = format!("d{}, layer {l}", spec.name);
                assert_close(&what, &got.download(of_got), &want.download(of_want), 1e-5);
            }
        }
    }
}

/// A run that resumes has the rates and the masks of its checkpoint, and says if they change.
#[test]
fn a_resumed_run_draws_the_same_masks() {
    let corpus = Corpus::new();
    let run = |flags: &str| {
        stdout(&succeed(
            corpus.train().args("-l 1e-3 -d 64 -n 3 -v 3 -m 2".split(' ')).args(flags.split(' ')),
        ))
    };
    let warnings = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix("WARNING: ")).map(str::to_owned).collect()
    };
    let plain = run("-x 9 -o plain");
    let whole = run("-x 9 --dropout 0.1 --attn-dropout 0.3 -o whole");
    // Evaluation has no dropout: before the first step both models are the same.
    let first_val = |text: &str| text.lines().find(|line| line.starts_with("val loss")).map(str::to_owned);
    assert!(first_val(&plain).is_some() && first_val(&plain) == first_val(&whole), "{plain}{whole}");

    let resume = |flags: &str| {
        common::forget_after(&corpus.path("parts"), 3);
        warnings(&run(&format!("-x 9 -o parts -y 1{flags}")))
    };
    run("-x 9 --dropout 0.1 --attn-dropout 0.3 -o parts");
    assert_eq!(resume(""), Vec::<String>::new());
    assert_eq!(losses(&corpus.path("whole")), losses(&corpus.path("parts")));
    assert_eq!(
        resume(" --dropout 0.2 --seed 7"),
        [
            "--attn-dropout 0.2: the run so far used 0.3",
            "--embd-dropout 0.2: the run so far used 0.1",
            "--resid-dropout 0.2: the run so far used 0.1",
            "--seed 7: the run so far used 42",
        ]
    );
    assert_ne!(losses(&corpus.path("whole")), losses(&corpus.path("parts")));
}

#[test]
fn rates_out_of_range_are_refused() {
    let corpus = Corpus::new();
    for flag in ["--dropout", "--embd-dropout", "--attn-dropout", "--resid-dropout"] {
        for rate in ["1", "-0.1", "nan", "x"] {
            let words = [flag, "expected a number of at least 0 and below 1", rate];
            refuse(corpus.train().args([flag, rate]), &words);
        }
    }
}
