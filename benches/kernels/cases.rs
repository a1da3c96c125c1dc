//! The benchmark cases: each kernel that `warpsmith roofline` predicts, called as in training, and
//! kernels that a training step does not use.

use crate::buffers::{Buffers, random_indices};
use crate::matmuls::{self, Layer, Matmul, Pass};
use anyhow::{Context, Result, bail};
use warpsmith::config::ModelConfig;
use warpsmith::data::buckets;
use warpsmith::device::compare::{Tolerance, adamw_part, adamw_step};
use warpsmith::device::cpu::Cpu;
use warpsmith::device::cuda::Cuda;
use warpsmith::model::activations::Recompute;
use warpsmith::ops::*;
use warpsmith::roofline::calls::step;
use warpsmith::roofline::kernels::{Class, Kernel, StepShape, Work};

/// A device that can run the two matmuls of a backward pass separately.
pub trait Target: Ops {
    fn dgrad(&mut self, args: MatmulBackward) -> Result<()>;
    fn wgrad(&mut self, args: MatmulBackward) -> Result<()>;
}

impl Target for Cuda {
    fn dgrad(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_dgrad(args)
    }

    fn wgrad(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_wgrad(args)
    }
}

/// The reference for comparisons; it runs both.
impl Target for Cpu {
    fn dgrad(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_backward(args)
    }

    fn wgrad(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_backward(args)
    }
}

pub type Call = Box<dyn Fn(&mut dyn Target) -> Result<()>>;

/// A case with its tensors.
pub struct Calls {
    /// Computes the inputs; runs once.
    pub before: Option<Call>,
    pub call: Call,
    /// The matmul, whose single elements can be checked at any size.
    pub matmul: Option<Matmul>,
}

impl Calls {
    fn of(call: impl Fn(&mut dyn Target) -> Result<()> + 'static) -> Self {
        Calls { before: None, call: Box::new(call), matmul: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    Matmul(Layer, Pass),
    AttentionForward,
    AttentionBackward,
    AttentionDecode,
    LayernormForward,
    /// The first starts the gradient of the residual stream, the others add to it.
    LayernormBackward {
        first: bool,
    },
    /// With gradients, or losses only.
    Classifier(bool),
    EncoderForward,
    EncoderBackward,
    Gelu,
    Fill,
    Add,
    Norm,
    Sum,
    Adamw,
}

/// Maps a kernel's name to its operation.
fn op(kernel: &Kernel) -> Result<Op> {
    Ok(match kernel.name {
        "attention forward" => Op::AttentionForward,
        "attention backward" => Op::AttentionBackward,
        "attention decode" => Op::AttentionDecode,
        "layernorm forward" | "layernorm again" => Op::LayernormForward,
        "layernorm backward, first" => Op::LayernormBackward { first: true },
        "layernorm backward" => Op::LayernormBackward { first: false },
        "classifier" => Op::Classifier(true),
        "classifier losses" => Op::Classifier(false),
        "encoder forward" => Op::EncoderForward,
        "encoder backward" => Op::EncoderBackward,
        "gelu forward" => Op::Gelu,
        "fill with ones" => Op::Fill,
        "add" => Op::Add,
        "norm" => Op::Norm,
        "sum" => Op::Sum,
        "adamw" => Op::Adamw,
        name if matches!(kernel.work, Work::Matmul { .. }) => {
            let (layer, pass) = matmuls::named(name)?;
            Op::Matmul(layer, pass)
        }
        name => bail!("no benchmark for the kernel {name}; benches/kernels/cases.rs lists them"),
    })
}

/// One kernel at one shape.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Kernel,
    /// A model that uses the kernel at this shape.
    pub config: ModelConfig,
    pub step: StepShape,
    op: Op,
    dims: Vec<usize>,
}

/// Returns the kernels of a model's step with everything recomputed, then the others.
///
/// # Errors
/// If a kernel of the step has no benchmark.
pub fn cases(config: &ModelConfig, shape: &StepShape) -> Result<Vec<Case>> {
    let of_step = step(config, &StepShape { recompute: Recompute::GeluAndLayernorm, ..*shape }).into_iter();
    let of_step = of_step.filter(|kernel| kernel.class != Class::Other);
    of_step
        .chain(others(config, shape))
        .map(|kernel| {
            let dims = kernel.shape.split('x').map(str::parse).collect::<Result<_, _>>();
            let dims = dims.with_context(|| format!("{}: the shape {}", kernel.name, kernel.shape))?;
            Ok(Case { op: op(&kernel)?, config: *config, step: *shape, dims, kernel })
        })
        .collect()
}

/// Returns the kernels of evaluation, sampling, logging and multi-GPU training.
fn others(config: &ModelConfig, shape: &StepShape) -> Vec<Kernel> {
    let StepShape { B, T, .. } = *shape;
    let (rows, C, Vp) = (shape.logits_chunk(), config.C, config.Vp);
    let like = |name, dims: &[usize], bytes: usize| Kernel {
        name,
        shape: dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
        class: Class::Classifier,
        work: Work::Stream { share: 0.9 },
        calls: 0,
        launches: 1,
        flops: 0.0,
        bytes: bytes as f64,
    };
    vec![
        like("classifier losses", &[rows, Vp], rows * Vp * 2 + rows * 8),
        like("attention decode", &[B, config.NH, T, config.HS()], B * T * 2 * C * 2),
        like("fill with ones", &[B * T, C], B * T * C * 2),
        like("sum", &[B * T], B * T * 4),
        // The matrices of a layer.
        like("add", &[12 * C, C], 12 * C * C * 6),
    ]
}

/// Rows for a comparison with the CPU: not a multiple of the tiles.
const FEW: usize = 72;
/// Elements of a parameter tensor for the same: more than a block's.
const FEW_ELEMENTS: usize = 20_000;

impl Case {
    pub fn is_matmul(&self) -> bool {
        matches!(self.op, Op::Matmul(..))
    }

    pub fn same_as(&self, other: &Case) -> bool {
        self.kernel.name == other.kernel.name && self.kernel.shape == other.kernel.shape
    }

    /// Returns the case with the same columns, heads and classes, but few rows.
    pub fn small(&self) -> Case {
        let mut small = self.clone();
        let few: &[(usize, usize)] = match self.op {
            Op::Matmul(_, Pass::Wgrad) => &[(2, FEW)],
            Op::AttentionForward | Op::AttentionBackward | Op::AttentionDecode => &[(0, 2), (2, FEW)],
            Op::Norm | Op::Sum | Op::Adamw => &[(0, FEW_ELEMENTS)],
            _ => &[(0, FEW)],
        };
        for &(i, most) in few {
            small.dims[i] = small.dims[i].min(most);
        }
        // The sequence length must divide the rows.
        if matches!(self.op, Op::EncoderForward | Op::EncoderBackward) {
            small.step.T = (small.dims[0] / 2).max(1);
            small.dims[0] = 2 * small.step.T;
            small.config.V = small.config.V.min(FEW);
        }
        small
    }

    /// The largest operations of the model, which determine a device's scratch memory.
    pub fn limits(&self) -> Limits {
        let ModelConfig { C, NH, V, Vp, .. } = self.config;
        let rows = (self.step.B * self.step.T).max(2 * FEW);
        Limits {
            rows,
            logits_rows: self.step.logits_rows.max(FEW),
            T: self.step.T.max(FEW),
            C,
            NH,
            V,
            Vp,
            norm_pieces: self.config.L + 1,
        }
    }

    /// Declares the tensors of the case.
    pub fn declare(&self, t: &mut Buffers) -> Calls {
        let dims = &self.dims[..];
        match self.op {
            Op::Matmul(layer, pass) => {
                let accumulate = self.step.micro_steps > 1;
                let matmul = matmuls::declare(t, (layer, pass), matmuls::sizes(pass, dims), accumulate);
                Calls { before: None, call: matmul.call(), matmul: Some(matmul) }
            }
            Op::AttentionForward | Op::AttentionBackward | Op::AttentionDecode => self.attention(t),
            Op::LayernormForward => layernorm_forward(t, dims[0], dims[1]),
            Op::LayernormBackward { first } => layernorm_backward(t, dims[0], dims[1], first),
            Op::Classifier(gradients) => classifier(t, dims[0], self.config.V, dims[1], gradients),
            Op::EncoderForward | Op::EncoderBackward => self.encoder(t),
            Op::Gelu => {
                let len = dims[0] * dims[1];
                let evenly: Vec<f32> = (-32..=32).map(|i| i as f32 / 8.0).collect();
                let (out, inp) = (t.out_x("out", len, Tolerance::of_gelu(&evenly)), t.x("inp", len, 4.0));
                Calls::of(move |dev| dev.gelu_forward(out, inp))
            }
            Op::Fill => {
                let out = t.out_x("out", dims[0] * dims[1], Tolerance::new(0.0, 1));
                Calls::of(move |dev| dev.fill(out, 1.0))
            }
            Op::Add => {
                let len = dims[0] * dims[1];
                let dst = t.inout_x("dst", len, 1.0, Tolerance::new(1.0, 1));
                let src = t.x("src", len, 1.0);
                Calls::of(move |dev| dev.add(dst, src))
            }
            Op::Norm => {
                let (out, src) =
                    (t.out_f32("out", 1, Tolerance::new(0.0, dims[0])), t.x("src", dims[0], 1.0));
                Calls::of(move |dev| dev.norm_squared(out, &[src]))
            }
            Op::Sum => {
                let out = t.out_f32("out", 1, Tolerance::new(0.0, dims[0]));
                // The range is asymmetric: numbers of both signs would cancel, and rounding errors
                // would dominate the sum.
                let src = t.f32("src", dims[0], (-0.5, 1.5));
                Calls::of(move |dev| dev.sum(out, src))
            }
            Op::Adamw => adamw(t, dims[0], self.kernel.launches),
        }
    }

    fn attention(&self, t: &mut Buffers) -> Calls {
        let &[B, NH, T, HS] = &self.dims[..] else { panic!("{:?} is not B x NH x T x HS", self.dims) };
        let dims = AttentionDims { B, T, NH, HS };
        let C = NH * HS;
        let qkv = t.x("qkv", B * T * 3 * C, 2.0);
        if self.op == Op::AttentionDecode {
            let out = t.out_x("out", B * C, Tolerance::new(2.0, T));
            return Calls::of(move |dev| dev.attention_decode(out, qkv, T - 1, dims));
        }
        // As in tests/kernels: weights and their sums are each rounded once, and dS is a difference
        // of such sums.
        let out = t.out_x("out", B * T * C, Tolerance::new(3.0, T));
        let lse = t.out_f32("lse", B * NH * T, Tolerance::new(0.0, HS));
        let forward = move |dev: &mut dyn Target| dev.attention_forward(out, lse, qkv, dims);
        if self.op == Op::AttentionForward {
            return Calls::of(forward);
        }
        let dout = t.x("dout", B * T * C, 1.0);
        let dqkv = t.out_x("dqkv", B * T * 3 * C, Tolerance::new(12.0, T + HS));
        let backward = Calls::of(move |dev| dev.attention_backward(dqkv, dout, out, lse, qkv, dims));
        Calls { before: Some(Box::new(forward)), ..backward }
    }

    fn encoder(&self, t: &mut Buffers) -> Calls {
        let (N, C, T, V) = (self.dims[0], self.dims[1], self.step.T, self.config.V);
        let B = N / T;
        if self.op == Op::EncoderForward {
            let encoded = t.out_x("encoded", N * C, Tolerance::new(1.0, 1));
            let tokens = t.indices("tokens", N, V);
            let (wte, wpe) = (t.x("wte", V * C, 1.0), t.x("wpe", T * C, 1.0));
            return Calls::of(move |dev| dev.encoder_forward(encoded, tokens, wte, wpe, (B, T, C)));
        }
        let tokens = random_indices(N, V);
        let by_token = buckets::TokenBuckets::of(&tokens);
        let buckets = TokenBuckets {
            count: by_token.starts.len() - 1,
            rows: t.i32("rows", by_token.rows),
            starts: t.i32("starts", by_token.starts),
        };
        let tolerance = Tolerance::new(1.0, N);
        let args = EncoderBackward {
            dwte: t.inout_x("dwte", V * C, 1.0, tolerance),
            dwpe: t.inout_x("dwpe", T * C, 1.0, tolerance),
            dout: t.x("dout", N * C, 0.1),
            tokens: t.i32("tokens", tokens),
            buckets,
            B,
            T,
            C,
        };
        Calls::of(move |dev| dev.encoder_backward(args))
    }
}

fn layernorm_forward(t: &mut Buffers, N: usize, C: usize) -> Calls {
    let args = LayernormForward {
        out: t.out_x("out", N * C, Tolerance::new(1.0, C)),
        mean: t.out_f32("mean", N, Tolerance::new(0.0, C)),
        rstd: t.out_f32("rstd", N, Tolerance::new(0.0, C)),
        inp: t.x("inp", N * C, 1.0),
        weight: t.x("weight", C, 1.0),
        bias: t.x("bias", C, 1.0),
        N,
        C,
    };
    Calls::of(move |dev| dev.layernorm_forward(args))
}

fn layernorm_backward(t: &mut Buffers, N: usize, C: usize, first: bool) -> Calls {
    let args = LayernormBackward {
        dinp: match first {
            true => t.out_x("dinp", N * C, Tolerance::new(1.0, C)),
            false => t.inout_x("dinp", N * C, 1.0, Tolerance::new(1.0, C)),
        },
        overwrite_dinp: first,
        dweight: t.inout_x("dweight", C, 1.0, Tolerance::new(1.0, N)),
        dbias: t.inout_x("dbias", C, 1.0, Tolerance::new(1.0, N)),
        dout: t.x("dout", N * C, 0.1),
        inp: t.x("inp", N * C, 1.0),
        weight: t.x("weight", C, 1.0),
        mean: t.f32("mean", N, (-1.0, 1.0)),
        rstd: t.f32("rstd", N, (1.0, 3.0)),
        N,
        C,
    };
    Calls::of(move |dev| dev.layernorm_backward(args))
}

fn classifier(t: &mut Buffers, N: usize, V: usize, Vp: usize, gradients: bool) -> Calls {
    let exact = Tolerance::new(0.0, 1);
    let args = Classifier {
        losses: t.inout_f32("losses", N, (-1.0, 1.0), Tolerance::new(0.0, V)),
        logits: t.inout_x("logits", N * Vp, 5.0, if gradients { Tolerance::new(1.0, V) } else { exact }),
        targets: t.indices("targets", N, V),
        dloss: gradients.then_some(1.0),
        N,
        V,
        Vp,
    };
    Calls::of(move |dev| dev.classifier(args))
}

/// AdamW over all parameters, with master weights, half of them decayed, in `runs` launches. In
/// training their lengths differ.
fn adamw(t: &mut Buffers, len: usize, runs: usize) -> Calls {
    let exact = Tolerance::new(0.0, 4);
    // Stochastic rounding: up to two tolerance units.
    let params = t.inout_x("params", len, 1.0, Tolerance::new(2.0, 4));
    let master = Some(t.inout_f32("master", len, (-1.0, 1.0), exact));
    let m = t.inout_f32("m", len, (-1.0, 1.0), exact);
    let v = t.inout_f32("v", len, (0.01, 1.01), exact);
    let grads = t.x("grads", len, 1.0);
    let decayed = len / 2;
    let whole = AdamW { master, decayed, grad_scale: 0.5, ..adamw_step(params, m, v, grads) };
    let most = len.div_ceil(runs).next_multiple_of(8);
    let runs: Vec<AdamW> =
        (0..len).step_by(most).map(|start| adamw_part(whole, start, most.min(len - start))).collect();
    Calls::of(move |dev| runs.iter().try_for_each(|run| dev.adamw(*run)))
}
