//! Causal attention at every head size: forward, backward, and for one position.

use crate::devices::{at_the_same_time, older, under_test};
use crate::harness::{Tensors, Tolerance, Work, check, check_dtype, check_on, outputs_of, random};
use std::panic::{AssertUnwindSafe, catch_unwind};
use warpsmith::device::cuda::BackwardKernels;
use warpsmith::ops::{AttentionBackward, AttentionDims, AttentionForward, Dropout, Limits, Ops};
use warpsmith::tensor::{Dtype, Tensor};

/// Random numbers large enough for scores that the softmax tells apart.
fn scaled(seed: u32, len: usize, factor: f32) -> Vec<f32> {
    random(seed, len).into_iter().map(|x| x * factor).collect()
}

/// Documents of these lengths, which are repeated, and a dropout.
#[derive(Clone, Copy, Debug, Default)]
struct View {
    lengths: Option<&'static [usize]>,
    rate: Option<f32>,
}

impl View {
    fn positions(&self, t: &mut Tensors, dims: AttentionDims) -> Option<Tensor> {
        let lengths = self.lengths?.iter().cycle();
        let sequence: Vec<i32> = lengths.flat_map(|&len| 0..len as i32).take(dims.T).collect();
        Some(t.i32("positions", &sequence.repeat(dims.B)))
    }

    fn dropout(&self, t: &mut Tensors) -> Option<Dropout> {
        let state = t.i32("dropout state", &[0x1234_5678, -7, 1000, 0]);
        self.rate.map(|rate| Dropout { rate, state, stream: 3 })
    }
}

/// Runs the forward pass, the backward pass from its outputs, and the last position by itself.
fn all_of(t: &mut Tensors, dims: AttentionDims) -> Work {
    all_in(t, dims, View::default())
}

fn all_in(t: &mut Tensors, dims: AttentionDims, view: View) -> Work {
    let AttentionDims { B, T, NH, HS } = dims;
    let C = NH * HS;
    let qkv = t.x("qkv", &scaled(1, B * T * 3 * C, 2.0));
    let dout = t.x("dout", &random(2, B * T * C));
    // Weights and their sums are rounded once each. dS is a difference, and the rounded output is
    // part of each of its terms. The first rows of a sequence have the largest gradients, and their
    // errors are compared with the mean of all.
    // With dropout no weight is exact, where the largest of a row was, and each is larger, but the
    // mean of all results is not.
    let (further, larger) = view.rate.map_or((0.0, 1.0), |rate| (1.0, 1.0 / (1.0 - f64::from(rate))));
    let out = t.out_x("out", B * T * C, Tolerance::new((3.0 + further) * larger, T));
    let lse = t.out_f32("lse", B * NH * T, Tolerance::new(0.0, HS));
    let dqkv = t.out_x("dqkv", B * T * 3 * C, Tolerance::new((12.0 + further) * larger, T + HS));
    let last = t.out_x("out of the last position", B * C, Tolerance::new(2.0, T));
    let (positions, dropout) = (view.positions(t, dims), view.dropout(t));
    Box::new(move |dev| {
        dev.attention_forward(AttentionForward { out, lse, qkv, positions, dropout, dims })?;
        dev.attention_backward(AttentionBackward { dqkv, dout, out, lse, qkv, positions, dropout, dims })?;
        dev.attention_decode(last, qkv, T - 1, dims)
    })
}

fn check_dims(B: usize, T: usize, NH: usize, HS: usize) {
    let dims = AttentionDims { B, T, NH, HS };
    check(&format!("attention, {dims:?}"), |t| all_of(t, dims));
}

/// Runs the forward pass alone.
fn forward_of(t: &mut Tensors, qkv: &[f32], dims: AttentionDims) -> Work {
    let AttentionDims { B, T, NH, HS } = dims;
    let qkv = t.x("qkv", qkv);
    let out = t.out_x("out", B * T * NH * HS, Tolerance::new(3.0, T));
    let lse = t.out_f32("lse", B * NH * T, Tolerance::new(0.0, HS));
    Box::new(move |dev| {
        dev.attention_forward(AttentionForward { out, lse, qkv, positions: None, dropout: None, dims })
    })
}

/// Tiles of 128 queries and keys, more of them than the emulated device has SMs.
#[test]
fn forward_in_many_tiles() {
    for (B, T, NH, HS) in
        [(2, 300, 2, 64), (1, 257, 2, 80), (1, 385, 1, 96), (3, 129, 1, 128), (1, 128, 2, 128)]
    {
        let dims = AttentionDims { B, T, NH, HS };
        let qkv = scaled(4, B * T * 3 * NH * HS, 2.0);
        check(&format!("attention_forward, {dims:?}"), |t| forward_of(t, &qkv, dims));
    }
}

/// A row's largest score is in the first tile of its sequence, the last one that is read, and much
/// larger than all others: the maximum so far does not serve.
#[test]
fn forward_with_a_late_maximum() {
    for (HS, T) in [(64, 300), (80, 150), (96, 150), (128, 280)] {
        let dims = AttentionDims { B: 1, T, NH: 2, HS };
        let row = 3 * dims.NH * HS;
        let mut qkv = scaled(5, T * row, 2.0);
        let query: Vec<f32> = qkv[(T - 1) * row..][..HS].to_vec();
        for (key, q) in qkv[7 * row + dims.NH * HS..][..HS].iter_mut().zip(query) {
            *key = 8.0 * q;
        }
        check(&format!("attention_forward, {dims:?}"), |t| forward_of(t, &qkv, dims));
    }
}

/// Documents of one token, that begin and end at the edges of tiles and off them, and one that
/// fills the sequence: (B, T, NH, lengths).
const DOCUMENTS: [(usize, usize, usize, &[usize]); 5] = [
    (1, 70, 1, &[1]),
    (2, 257, 1, &[64, 65, 127, 1]),
    (1, 129, 2, &[1000]),
    (1, 260, 1, &[128, 31, 97]),
    (2, 100, 3, &[5, 1, 32, 3]),
];

/// Documents on every kernel, and with dropout on those that have it: the ordered ones.
fn check_views((B, T, NH, HS): (usize, usize, usize, usize), lengths: &'static [usize]) {
    let dims = AttentionDims { B, T, NH, HS };
    let view = View { lengths: Some(lengths), rate: None };
    for kernels in [BackwardKernels::Ordered, BackwardKernels::Atomic] {
        let devices = older(Dtype::Bf16, kernels);
        check_on(&format!("attention, {dims:?}, {view:?}"), Dtype::Bf16, devices, |t| all_in(t, dims, view));
    }
    for view in [view, View { rate: Some(0.5), ..view }] {
        check(&format!("attention, {dims:?}, {view:?}"), |t| all_in(t, dims, view));
    }
}

#[test]
fn documents_and_dropout() {
    DOCUMENTS.into_iter().for_each(|(B, T, NH, lengths)| check_views((B, T, NH, 64), lengths));
}

#[test]
fn documents_and_dropout_in_other_heads() {
    [32, 80, 96, 128].into_iter().for_each(|HS| check_views((1, 100, 1, HS), &[33, 1, 50]));
}

#[test]
fn dropout_of_whole_sequences() {
    let (dims, view) =
        (AttentionDims { B: 2, T: 130, NH: 2, HS: 64 }, View { lengths: None, rate: Some(0.1) });
    check(&format!("attention, {dims:?}, {view:?}"), |t| all_in(t, dims, view));
}

/// A case whose tensors differ by one on the device under test does not pass: a document that sees
/// one key more, masks of the next row, and masks of the next row in the backward pass alone.
#[test]
fn faults_by_one_show() {
    let dims = AttentionDims { B: 1, T: 100, NH: 1, HS: 64 };
    let faults = ["none", "a leak", "shifted masks", "other masks backward"];
    for fault in faults {
        let run = || {
            check_dtype(fault, Dtype::F32, |t| {
                let [qkv, dout] = [3, 1].map(|n| t.x("input", &scaled(n, 100 * n as usize * 64, 2.0)));
                let tolerance = Tolerance::new(12.0, dims.T + dims.HS);
                let [out, dqkv] = [1, 3].map(|n| t.out_x("output", 100 * n * 64, tolerance));
                let lse = t.out_f32("lse", 100, Tolerance::new(0.0, dims.HS));
                let positions = |first: i32| (0..first).chain(0..100 - first).collect::<Vec<_>>();
                let positions = [50, 49].map(|first| t.i32("positions", &positions(first)));
                let states = [7, 8].map(|first_row| t.i32("state", &[1, 2, first_row, 0]));
                let mask = move |i: usize| Some(Dropout { rate: 0.1, state: states[i], stream: 0 });
                Box::new(move |dev: &mut dyn Ops| {
                    let wrong = |at: &str| usize::from(fault == at && !dev.describe().starts_with("CPU"));
                    let positions = Some(positions[wrong("a leak")]);
                    let (here, there) = (wrong("shifted masks"), wrong("other masks backward"));
                    let dropout = mask(here);
                    dev.attention_forward(AttentionForward { out, lse, qkv, positions, dropout, dims })?;
                    let dropout = mask(here.max(there));
                    dev.attention_backward(AttentionBackward {
                        dqkv,
                        dout,
                        out,
                        lse,
                        qkv,
                        positions,
                        dropout,
                        dims,
                    })
                })
            })
        };
        let outcome = catch_unwind(AssertUnwindSafe(run));
        assert_eq!(outcome.is_ok(), fault == "none", "{fault}");
    }
}

/// Lengths and heads at the edges of tiles, blocks and sequences: (B, T, NH).
const EDGES: [(usize, usize, usize); 5] = [(1, 1, 1), (1, 65, 3), (2, 129, 1), (1, 64, 2), (1, 257, 1)];

#[test]
fn heads_of_64() {
    EDGES.into_iter().for_each(|(B, T, NH)| check_dims(B, T, NH, 64));
}

/// The kernels that older GPUs use where Hopper has its own.
#[test]
fn before_hopper() {
    EDGES.into_iter().for_each(|(B, T, NH)| check_older(BackwardKernels::Ordered, B, T, NH, 64));
}

fn check_older(backward: BackwardKernels, B: usize, T: usize, NH: usize, HS: usize) {
    let dims = AttentionDims { B, T, NH, HS };
    for dtype in [Dtype::Bf16, Dtype::F16] {
        check_on(&format!("attention, {dims:?}"), dtype, older(dtype, backward), |t| all_of(t, dims));
    }
}

/// One kernel backward, whose tiles have 128 keys.
#[test]
fn with_atomics() {
    let with = |B, T, NH, HS| check_older(BackwardKernels::Atomic, B, T, NH, HS);
    EDGES.into_iter().for_each(|(B, T, NH)| with(B, T, NH, 64));
    for HS in [32, 80, 96, 128] {
        with(1, 100, 3, HS);
        with(1, 161, 1, HS);
    }
    with(1, 384, 1, 64);
}

/// More heads than a launch has sums for in the memory that these tests plan.
#[test]
fn atomics_in_two_launches() {
    check_older(BackwardKernels::Atomic, 9, 5, 12, 64);
}

#[test]
fn heads_of_32() {
    check_dims(1, 100, 1, 32);
}

#[test]
fn heads_of_80() {
    check_dims(1, 100, 1, 80);
}

#[test]
fn heads_of_96() {
    check_dims(1, 66, 1, 96);
}

#[test]
fn heads_of_128() {
    check_dims(1, 70, 1, 128);
}

/// More heads than blocks take in one group.
#[test]
fn many_heads() {
    check_dims(3, 2, 12, 32);
}

/// More heads than those of two groups, so that places for sums of dQ are used again.
#[test]
fn more_heads_than_places() {
    for (B, T, NH) in [(2, 130, 5), (3, 2, 7)] {
        let dims = AttentionDims { B, T, NH, HS: 64 };
        check_dtype(&format!("attention, {dims:?}"), Dtype::Bf16, |t| all_of(t, dims));
    }
}

#[test]
fn one_position_attends_to_those_before_it_alone() {
    let dims = AttentionDims { B: 2, T: 70, NH: 3, HS: 64 };
    check("attention_decode", |t| {
        let rows = dims.T * 3 * dims.NH * dims.HS;
        let mut cache = scaled(3, dims.B * rows, 2.0);
        let t_now = 33;
        for sequence in cache.chunks_exact_mut(rows) {
            sequence[(t_now + 1) * 3 * dims.NH * dims.HS..].fill(f32::NAN);
        }
        let qkv = t.x("qkv", &cache);
        let out = t.out_x("out", dims.B * dims.NH * dims.HS, Tolerance::new(2.0, t_now));
        Box::new(move |dev| dev.attention_decode(out, qkv, t_now, dims))
    });
}

/// The bits depend neither on the order of threads nor on the mode or the run, as without a choice
/// the ordered kernels serve.
#[test]
fn gives_the_same_bits_every_time() {
    let dims = AttentionDims { B: 2, T: 130, NH: 5, HS: 64 };
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let again = under_test(dtype).into_iter().take(1).chain(at_the_same_time(dtype));
        let runs = under_test(dtype).into_iter().chain(again);
        let outputs: Vec<_> = runs.map(|under| outputs_of(under, dtype, |t| all_of(t, dims))).collect();
        let bits = |outputs: &[Vec<f32>]| -> Vec<u32> {
            outputs.iter().flatten().map(|value| value.to_bits()).collect()
        };
        for other in &outputs[1..] {
            assert!(bits(other) == bits(&outputs[0]), "{dtype:?}");
        }
    }
}

#[test]
fn refuses_other_head_sizes() {
    for under in under_test(Dtype::Bf16) {
        let (C, NH) = (144, 3);
        let limits = Limits { rows: 64, logits_rows: 64, T: 64, C, NH, V: 512, Vp: 512, norm_pieces: 1 };
        let error = under.device.scratch_bytes(&limits).unwrap_err().to_string();
        assert!(error.starts_with("no attention kernel for 144 channels in 3 heads"), "{error}");
    }
}
