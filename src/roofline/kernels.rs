//! A training step as a list of kernels, with the work of each: what `model/forward.rs` and `model/backward.rs` ask for, at
//! the shapes they ask for it, with the fusions of the CUDA device.
//!
//! Fused, and so without a row: bias, GELU and residual in the epilogues of products, GELU's derivative in that of fcproj's
//! input gradient, bias gradients in the weight gradients' pass over `dout`, the row sums that attention's backward pass needs.
//! Softmax, loss and gradient of the logits are one kernel, in place, on a piece of the logits at a time.

use crate::config::{ModelConfig, logits_rows};
use crate::params::{Param, ParamLayout};

/// Bytes of a parameter, activation or gradient: bf16.
const X: f64 = 2.0;
/// Bytes of a statistic, moment or master weight: f32.
const F32: f64 = 4.0;

/// The step whose kernels are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub B: usize,
    pub T: usize,
    /// Forward and backward passes in a step.
    pub micro_steps: usize,
    /// 0 keeps everything for the backward pass, 1 computes GELU again, 2 the layernorms too.
    pub recompute: usize,
    /// Rows of logits that memory holds.
    pub logits_rows: usize,
}

impl Run {
    /// Tokens in a step.
    pub fn tokens(&self) -> usize {
        self.B * self.T * self.micro_steps
    }

    fn rows(&self) -> usize {
        self.B * self.T
    }

    /// Rows of logits that are computed at a time.
    pub fn logits_chunk(&self) -> usize {
        logits_rows(self.rows(), self.logits_rows)
    }
}

/// What a kernel's time is added to.
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
            Class::BlockForward => "block products, forward",
            Class::BlockDgrad => "block products, input gradients",
            Class::BlockWgrad => "block products, weight gradients",
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

/// What follows a product in the same kernel, and does not hide behind the next tile's product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Store.
    Plain,
    /// Add a bias, and store.
    Bias,
    /// Read the residual and add, with a bias.
    Residual,
    /// GELU, two outputs.
    Gelu,
    /// Read what went into the GELU and multiply by its derivative.
    GeluBackward,
    /// Add to a gradient; few outputs and a long sum, which is cut into pieces.
    SplitSum,
}

/// How a kernel works, as far as it decides its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// (m, k) times (k, n).
    Product { m: usize, n: usize, k: usize, tail: Tail },
    /// Tiles of causal attention.
    Attention { B: usize, NH: usize, T: usize, HS: usize, backward: bool },
    /// One pass over memory, at this share of a copy's bandwidth.
    Stream { share: f64 },
}

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    pub name: &'static str,
    /// `M x N x K`, `B x NH x T x HS` or `rows x columns`, as records name it.
    pub shape: String,
    pub class: Class,
    pub work: Work,
    /// Calls in a step.
    pub calls: usize,
    /// Launches in a call.
    pub launches: usize,
    /// Of one call.
    pub flops: f64,
    /// Of one call: what must be read and written once, however large the caches.
    pub bytes: f64,
}

/// The four products of a block: parameter, then the names of its three kernels.
const BLOCK_PRODUCTS: [(Param, [&str; 3]); 4] = [
    (Param::Qkvw, ["qkv forward", "qkv dgrad", "qkv wgrad"]),
    (Param::Attprojw, ["attproj forward", "attproj dgrad", "attproj wgrad"]),
    (Param::Fcw, ["fc forward", "fc dgrad", "fc wgrad"]),
    (Param::Fcprojw, ["fcproj forward", "fcproj dgrad", "fcproj wgrad"]),
];
const HEAD_PRODUCT: [&str; 3] = ["head forward", "head dgrad", "head wgrad"];

/// All kernels of a step, those of the same name and shape in one row.
pub fn step(config: &ModelConfig, run: &Run) -> Vec<Kernel> {
    let mut rows = Vec::new();
    block_products(config, run, &mut rows);
    head(config, run, &mut rows);
    attention(config, run, &mut rows);
    layernorms(config, run, &mut rows);
    embedding(config, run, &mut rows);
    recomputed(config, run, &mut rows);
    optimizer(config, &mut rows);
    rows
}

/// A product with OC outputs from C inputs over N rows, its two gradients, and what is beside operands and result.
struct Linear {
    names: [&'static str; 3],
    classes: [Class; 3],
    N: usize,
    OC: usize,
    C: usize,
    calls: usize,
    /// Of the forward product and of its input gradient.
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
        // The first micro-step overwrites the gradient, the others read it too.
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
                work: Work::Product { m, n, k, tail },
                calls: self.calls,
                launches: 1,
                flops: 2.0 * m as f64 * n as f64 * k as f64,
                bytes,
            });
        }
    }
}

fn block_products(config: &ModelConfig, run: &Run, rows: &mut Vec<Kernel>) {
    for (param, names) in BLOCK_PRODUCTS {
        let (OC, C) = (param.spec().shape)(config);
        let tails = match param {
            Param::Attprojw => [Tail::Residual, Tail::Plain],
            Param::Fcw => [Tail::Gelu, Tail::Plain],
            Param::Fcprojw => [Tail::Residual, Tail::GeluBackward],
            _ => [Tail::Bias, Tail::Plain],
        };
        let classes = [Class::BlockForward, Class::BlockDgrad, Class::BlockWgrad];
        let (calls, micro_steps) = (config.L * run.micro_steps, run.micro_steps);
        Linear { names, classes, N: run.rows(), OC, C, calls, tails, micro_steps }.push(rows);
    }
}

/// Logits, losses and their gradients, by equal pieces and one of what is left.
fn head(config: &ModelConfig, run: &Run, rows: &mut Vec<Kernel>) {
    let chunk = run.logits_chunk();
    let (whole, left) = (run.rows() / chunk, run.rows() % chunk);
    let pieces = [(chunk, whole), (left, usize::from(left > 0))];
    for (N, pieces) in pieces.into_iter().filter(|piece| piece.1 > 0) {
        let calls = pieces * run.micro_steps;
        let classes = [Class::HeadForward, Class::HeadDgrad, Class::HeadWgrad];
        let tails = [Tail::Plain; 2];
        // Each piece but the first of a step adds to the embedding's gradient.
        let (OC, C, micro_steps) = (config.Vp, config.C, calls);
        Linear { names: HEAD_PRODUCT, classes, N, OC, C, calls, tails, micro_steps }.push(rows);
        let bytes = (N * config.Vp) as f64 * 2.0 * X + N as f64 * 2.0 * F32;
        rows.push(stream("classifier", &[N, config.Vp], Class::Classifier, 0.905, calls, bytes));
    }
}

fn attention(config: &ModelConfig, run: &Run, rows: &mut Vec<Kernel>) {
    let (B, T, NH, HS) = (run.B, run.T, config.NH, config.HS());
    let (N, C) = (run.rows() as f64, config.C as f64);
    // Two products of T x T x HS a head, half of it masked.
    let forward = 2.0 * N * T as f64 * C;
    let mut push = |name, class, backward, launches, flops, bytes| {
        let work = Work::Attention { B, NH, T, HS, backward };
        let calls = config.L * run.micro_steps;
        rows.push(Kernel { name, shape: shape(&[B, NH, T, HS]), class, work, calls, launches, flops, bytes });
    };
    let lse = N * NH as f64 * F32;
    // qkv in, out and log-sum-exp out.
    let bytes = N * 4.0 * C * X + lse;
    push("attention forward", Class::AttentionForward, false, 1, forward, bytes);
    // qkv, out, dout in, dqkv out; the row sums are written and read. Five products in place of two.
    let bytes = N * 8.0 * C * X + 3.0 * lse;
    push("attention backward", Class::AttentionBackward, true, 2, 2.5 * forward, bytes);
}

/// The layernorm before the head begins the gradient of the residual stream, which the others add to.
pub const LAYERNORM_BACKWARD_FIRST: &str = "layernorm backward, first";

fn layernorms(config: &ModelConfig, run: &Run, rows: &mut Vec<Kernel>) {
    let (N, C) = (run.rows(), config.C);
    let (len, statistics) = ((N * C) as f64, N as f64 * 2.0 * F32);
    let calls = (2 * config.L + 1) * run.micro_steps;
    let bytes = 2.0 * len * X + statistics;
    rows.push(stream("layernorm forward", &[N, C], Class::LayernormForward, 0.93, calls, bytes));
    // dout, inp and the residual stream's gradient in, but for the first, and the latter out.
    let class = Class::LayernormBackward;
    let (first, rest) = (3.0 * len * X + statistics, 4.0 * len * X + statistics);
    rows.push(stream(LAYERNORM_BACKWARD_FIRST, &[N, C], class, 0.86, run.micro_steps, first));
    rows.push(stream("layernorm backward", &[N, C], class, 0.86, calls - run.micro_steps, rest));
}

fn embedding(config: &ModelConfig, run: &Run, rows: &mut Vec<Kernel>) {
    let (N, C) = (run.rows(), config.C);
    let len = (N * C) as f64;
    // A row of wte in, a row out; wpe stays in the cache. Gathering and scattering reach less than half of a copy.
    let token = N as f64 * F32;
    let class = Class::Embedding;
    rows.push(stream("encoder forward", &[N, C], class, 0.4, run.micro_steps, 2.0 * len * X + token));
    let backward = stream("encoder backward", &[N, C], class, 0.4, run.micro_steps, 2.0 * len * X + token);
    rows.push(Kernel { launches: 2, ..backward });
}

fn recomputed(config: &ModelConfig, run: &Run, rows: &mut Vec<Kernel>) {
    let (N, C) = (run.rows(), config.C);
    let calls = config.L * run.micro_steps;
    if run.recompute >= 1 {
        let bytes = 2.0 * (N * 4 * C) as f64 * X;
        rows.push(stream("gelu forward", &[N, 4 * C], Class::Recompute, 0.93, calls, bytes));
    }
    if run.recompute >= 2 {
        let bytes = 2.0 * (N * C) as f64 * X + N as f64 * 2.0 * F32;
        rows.push(stream("layernorm again", &[N, C], Class::Recompute, 0.93, 2 * calls, bytes));
    }
}

fn optimizer(config: &ModelConfig, rows: &mut Vec<Kernel>) {
    let len = ParamLayout::new(config).len();
    let norm = stream("norm", &[len], Class::Optimizer, 0.9, 1, len as f64 * X);
    rows.push(Kernel { launches: 2, ..norm });
    // Master weight, m and v in and out, the gradient in, the parameter out.
    let bytes = len as f64 * (6.0 * F32 + 2.0 * X);
    let adamw = stream("adamw", &[len], Class::Optimizer, 0.86, 1, bytes);
    // The parameters of each layer, and those that are in none.
    rows.push(Kernel { launches: config.L + 1, ..adamw });
}

fn stream(name: &'static str, dims: &[usize], class: Class, share: f64, calls: usize, bytes: f64) -> Kernel {
    let work = Work::Stream { share };
    Kernel { name, shape: shape(dims), class, work, calls, launches: 1, flops: 0.0, bytes }
}

fn shape(dims: &[usize]) -> String {
    dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x")
}

/// FLOPs a token that MFU counts, by llm.c's formula: six for each parameter, and causal attention.
pub fn flops_per_token(config: &ModelConfig, T: usize) -> f64 {
    (6 * ParamLayout::new(config).len() + 6 * config.L * config.C * T) as f64
}
