//! A training step as a list of kernels with their work: the calls of `model/forward.rs` and
//! `model/backward.rs`, at the same shapes, with the fusions of the CUDA device.
//!
//! Fused operations have no row: bias, GELU and residual are in matmul epilogues, the derivative of
//! GELU in that of fcproj's input gradient, bias gradients in the weight gradients' pass over
//! `dout`, and the row sums of attention's backward pass in that pass. Softmax, loss and the
//! gradient of the logits are one kernel, in place, on one chunk of the logits at a time.

use crate::config::{ModelConfig, logits_rows};
use crate::params::{Param, ParamLayout};

/// Bytes of a parameter, activation or gradient: bf16.
const X: f64 = 2.0;
/// Bytes of a statistic, moment or master weight: f32.
const F32: f64 = 4.0;

/// The shape of a step: its batch, and what is recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    pub B: usize,
    pub T: usize,
    /// Forward and backward passes per step.
    pub micro_steps: usize,
    /// 0 keeps all activations for the backward pass, 1 recomputes GELU, 2 layernorm too.
    pub recompute: usize,
    /// Maximum rows of logits in memory.
    pub logits_rows: usize,
}

impl StepShape {
    /// Tokens per step.
    pub fn tokens(&self) -> usize {
        self.B * self.T * self.micro_steps
    }

    fn rows(&self) -> usize {
        self.B * self.T
    }

    /// Rows of logits computed at a time.
    pub fn logits_chunk(&self) -> usize {
        logits_rows(self.rows(), self.logits_rows)
    }
}

/// The category to which a kernel's time is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    BlockForward,
    BlockDgrad,
    BlockWgrad,
    HeadForward,
    HeadDgrad,
    HeadWgrad,
    AttentionForward,
    AttentionBackward,
    LayernormForward,
    LayernormBackward,
    Classifier,
    Embedding,
    Recompute,
    Optimizer,
}

impl Class {
    pub const ALL: [Class; 14] = [
        Class::BlockForward,
        Class::BlockDgrad,
        Class::BlockWgrad,
        Class::HeadForward,
        Class::HeadDgrad,
        Class::HeadWgrad,
        Class::AttentionForward,
        Class::AttentionBackward,
        Class::LayernormForward,
        Class::LayernormBackward,
        Class::Classifier,
        Class::Embedding,
        Class::Recompute,
        Class::Optimizer,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Class::BlockForward => "block matmuls, forward",
            Class::BlockDgrad => "block matmuls, input gradients",
            Class::BlockWgrad => "block matmuls, weight gradients",
            Class::HeadForward => "head, forward",
            Class::HeadDgrad => "head, input gradient",
            Class::HeadWgrad => "head, weight gradient",
            Class::AttentionForward => "attention, forward",
            Class::AttentionBackward => "attention, backward",
            Class::LayernormForward => "layernorm, forward",
            Class::LayernormBackward => "layernorm, backward",
            Class::Classifier => "softmax, loss and its gradient",
            Class::Embedding => "embedding",
            Class::Recompute => "recomputing",
            Class::Optimizer => "norm and AdamW",
        }
    }
}

/// Work after the multiplication in the same kernel that does not overlap the next tile's
/// multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Store.
    Plain,
    /// Add a bias, and store.
    Bias,
    /// Read the residual and add it, with a bias.
    Residual,
    /// GELU, two outputs.
    Gelu,
    /// Read the input of the GELU and multiply by its derivative.
    GeluBackward,
    /// Add to a gradient; few outputs and a long sum, which is split.
    SplitSum,
}

/// The kind of work a kernel does, as far as it decides its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// (m, k) times (k, n).
    Matmul { m: usize, n: usize, k: usize, tail: Tail },
    /// Tiles of causal attention.
    Attention { B: usize, NH: usize, T: usize, HS: usize, backward: bool },
    /// One pass over memory at this share of a copy's bandwidth.
    Stream { share: f64 },
}

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    pub name: &'static str,
    /// `M x N x K`, `B x NH x T x HS` or `rows x columns`, as in records.
    pub shape: String,
    pub class: Class,
    pub work: Work,
    /// Calls per step.
    pub calls: usize,
    /// Launches per call.
    pub launches: usize,
    /// FLOPs per call.
    pub flops: f64,
    /// Bytes per call that must be read and written once, however large the caches.
    pub bytes: f64,
}

/// The four matmuls of a block: the parameter, then the names of its three kernels.
const BLOCK_MATMULS: [(Param, [&str; 3]); 4] = [
    (Param::Qkvw, ["qkv forward", "qkv dgrad", "qkv wgrad"]),
    (Param::Attprojw, ["attproj forward", "attproj dgrad", "attproj wgrad"]),
    (Param::Fcw, ["fc forward", "fc dgrad", "fc wgrad"]),
    (Param::Fcprojw, ["fcproj forward", "fcproj dgrad", "fcproj wgrad"]),
];
const HEAD_MATMUL: [&str; 3] = ["head forward", "head dgrad", "head wgrad"];

/// Lists all kernels of a step; kernels of the same name and shape share a row.
pub fn step(config: &ModelConfig, step: &StepShape) -> Vec<Kernel> {
    let mut rows = Vec::new();
    block_matmuls(config, step, &mut rows);
    head(config, step, &mut rows);
    attention(config, step, &mut rows);
    layernorms(config, step, &mut rows);
    embedding(config, step, &mut rows);
    recomputed(config, step, &mut rows);
    optimizer(config, &mut rows);
    rows
}

/// A matmul with OC outputs from C inputs over N rows, its two gradients, and their epilogues.
struct Linear {
    names: [&'static str; 3],
    classes: [Class; 3],
    N: usize,
    OC: usize,
    C: usize,
    calls: usize,
    /// Epilogues of the forward matmul and of its input gradient.
    tails: [Tail; 2],
    micro_steps: usize,
}

impl Linear {
    fn push(&self, rows: &mut Vec<Kernel>) {
        let (N, OC, C) = (self.N, self.OC, self.C);
        let [inp, weight, out] = [N * C, OC * C, N * OC].map(|len| len as f64 * X);
        let beside = |tail, result: f64| match tail {
            Tail::Plain | Tail::Bias | Tail::SplitSum => 0.0,
            Tail::Residual | Tail::Gelu | Tail::GeluBackward => result,
        };
        // The first micro-step overwrites the gradient; the others also read it.
        let dweight = weight * (2.0 - 1.0 / self.micro_steps as f64);
        let [forward, dgrad] = self.tails;
        let three = [
            ((N, OC, C), forward, inp + weight + out + beside(forward, out)),
            ((N, C, OC), dgrad, out + weight + inp + beside(dgrad, inp)),
            ((OC, C, N), Tail::SplitSum, out + inp + dweight),
        ];
        for (i, ((m, n, k), tail, bytes)) in three.into_iter().enumerate() {
            rows.push(Kernel {
                name: self.names[i],
                shape: shape(&[m, n, k]),
                class: self.classes[i],
                work: Work::Matmul { m, n, k, tail },
                calls: self.calls,
                launches: 1,
                flops: 2.0 * m as f64 * n as f64 * k as f64,
                bytes,
            });
        }
    }
}

fn block_matmuls(config: &ModelConfig, step: &StepShape, rows: &mut Vec<Kernel>) {
    for (param, names) in BLOCK_MATMULS {
        let (OC, C) = (param.spec().shape)(config);
        let tails = match param {
            Param::Attprojw => [Tail::Residual, Tail::Plain],
            Param::Fcw => [Tail::Gelu, Tail::Plain],
            Param::Fcprojw => [Tail::Residual, Tail::GeluBackward],
            _ => [Tail::Bias, Tail::Plain],
        };
        let classes = [Class::BlockForward, Class::BlockDgrad, Class::BlockWgrad];
        let (calls, micro_steps) = (config.L * step.micro_steps, step.micro_steps);
        Linear { names, classes, N: step.rows(), OC, C, calls, tails, micro_steps }.push(rows);
    }
}

/// Logits, losses and their gradients, in equal chunks and one remainder.
fn head(config: &ModelConfig, step: &StepShape, rows: &mut Vec<Kernel>) {
    let chunk = step.logits_chunk();
    let (whole, left) = (step.rows() / chunk, step.rows() % chunk);
    let pieces = [(chunk, whole), (left, usize::from(left > 0))];
    for (N, pieces) in pieces.into_iter().filter(|piece| piece.1 > 0) {
        let calls = pieces * step.micro_steps;
        let classes = [Class::HeadForward, Class::HeadDgrad, Class::HeadWgrad];
        let tails = [Tail::Plain; 2];
        // Each chunk except the first of a step adds to the embedding's gradient.
        let (OC, C, micro_steps) = (config.Vp, config.C, calls);
        Linear { names: HEAD_MATMUL, classes, N, OC, C, calls, tails, micro_steps }.push(rows);
        let bytes = (N * config.Vp) as f64 * 2.0 * X + N as f64 * 2.0 * F32;
        rows.push(stream("classifier", &[N, config.Vp], Class::Classifier, 0.905, calls, bytes));
    }
}

fn attention(config: &ModelConfig, step: &StepShape, rows: &mut Vec<Kernel>) {
    let (B, T, NH, HS) = (step.B, step.T, config.NH, config.HS());
    let (N, C) = (step.rows() as f64, config.C as f64);
    // Two matmuls of T x T x HS per head, half of it masked.
    let forward = 2.0 * N * T as f64 * C;
    let mut push = |name, class, backward, launches, flops, bytes| {
        let work = Work::Attention { B, NH, T, HS, backward };
        let calls = config.L * step.micro_steps;
        rows.push(Kernel { name, shape: shape(&[B, NH, T, HS]), class, work, calls, launches, flops, bytes });
    };
    let lse = N * NH as f64 * F32;
    // Reads qkv, writes out and log-sum-exp.
    let bytes = N * 4.0 * C * X + lse;
    push("attention forward", Class::AttentionForward, false, 1, forward, bytes);
    // Reads qkv, out and dout, writes dqkv; the row sums are written and read. Five matmuls instead
    // of two.
    let bytes = N * 8.0 * C * X + 3.0 * lse;
    push("attention backward", Class::AttentionBackward, true, 2, 2.5 * forward, bytes);
}

/// The backward pass of the layernorm before the head: it starts the gradient of the residual
/// stream, to which the others add.
pub const LAYERNORM_BACKWARD_FIRST: &str = "layernorm backward, first";

fn layernorms(config: &ModelConfig, step: &StepShape, rows: &mut Vec<Kernel>) {
    let (N, C) = (step.rows(), config.C);
    let (len, statistics) = ((N * C) as f64, N as f64 * 2.0 * F32);
    let calls = (2 * config.L + 1) * step.micro_steps;
    let bytes = 2.0 * len * X + statistics;
    rows.push(stream("layernorm forward", &[N, C], Class::LayernormForward, 0.93, calls, bytes));
    // Reads dout, inp and, except in the first, the gradient of the residual stream; writes the
    // latter.
    let class = Class::LayernormBackward;
    let (first, rest) = (3.0 * len * X + statistics, 4.0 * len * X + statistics);
    rows.push(stream(LAYERNORM_BACKWARD_FIRST, &[N, C], class, 0.86, step.micro_steps, first));
    rows.push(stream("layernorm backward", &[N, C], class, 0.86, calls - step.micro_steps, rest));
}

fn embedding(config: &ModelConfig, step: &StepShape, rows: &mut Vec<Kernel>) {
    let (N, C) = (step.rows(), config.C);
    let len = (N * C) as f64;
    // Reads a row of wte and writes a row; wpe stays in the cache. Gather and scatter reach less
    // than half of a copy's bandwidth.
    let token = N as f64 * F32;
    let class = Class::Embedding;
    rows.push(stream("encoder forward", &[N, C], class, 0.4, step.micro_steps, 2.0 * len * X + token));
    let backward = stream("encoder backward", &[N, C], class, 0.4, step.micro_steps, 2.0 * len * X + token);
    rows.push(Kernel { launches: 2, ..backward });
}

fn recomputed(config: &ModelConfig, step: &StepShape, rows: &mut Vec<Kernel>) {
    let (N, C) = (step.rows(), config.C);
    let calls = config.L * step.micro_steps;
    if step.recompute >= 1 {
        let bytes = 2.0 * (N * 4 * C) as f64 * X;
        rows.push(stream("gelu forward", &[N, 4 * C], Class::Recompute, 0.93, calls, bytes));
    }
    if step.recompute >= 2 {
        let bytes = 2.0 * (N * C) as f64 * X + N as f64 * 2.0 * F32;
        rows.push(stream("layernorm again", &[N, C], Class::Recompute, 0.93, 2 * calls, bytes));
    }
}

fn optimizer(config: &ModelConfig, rows: &mut Vec<Kernel>) {
    let len = ParamLayout::new(config).len();
    let norm = stream("norm", &[len], Class::Optimizer, 0.9, 1, len as f64 * X);
    rows.push(Kernel { launches: 2, ..norm });
    // Reads and writes master weight, m and v, reads the gradient, writes the parameter.
    let bytes = len as f64 * (6.0 * F32 + 2.0 * X);
    let adamw = stream("adamw", &[len], Class::Optimizer, 0.86, 1, bytes);
    // One launch per layer, and one for the parameters outside layers.
    rows.push(Kernel { launches: config.L + 1, ..adamw });
}

fn stream(name: &'static str, dims: &[usize], class: Class, share: f64, calls: usize, bytes: f64) -> Kernel {
    let work = Work::Stream { share };
    Kernel { name, shape: shape(dims), class, work, calls, launches: 1, flops: 0.0, bytes }
}

fn shape(dims: &[usize]) -> String {
    dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x")
}

/// FLOPs per token that MFU counts, by llm.c's formula: six per parameter, and causal attention.
pub fn flops_per_token(config: &ModelConfig, T: usize) -> f64 {
    (6 * ParamLayout::new(config).len() + 6 * config.L * config.C * T) as f64
}
