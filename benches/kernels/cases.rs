//! The benchmark cases: each kernel of a recorded training step, and kernels that a step does not
//! use.

use crate::op::Op;
use crate::operands::Operands;
use warpsmith::config::ModelConfig;
use warpsmith::model::activations::Recompute;
use warpsmith::ops::*;
use warpsmith::recorder::Event;
use warpsmith::roofline::calls::{Kernels, step};
use warpsmith::roofline::kernels::{Class, Kernel, StepShape, Work};
use warpsmith::roofline::recording::Recording;
use warpsmith::sharding::ZeroStage;
use warpsmith::tensor::{Dtype, Tensor};

/// One kernel at one shape.
#[derive(Clone, Debug)]
pub struct Case {
    pub kernel: Kernel,
    /// One, or the updates of all units.
    ops: Vec<Op>,
    /// The same kernel with the same columns, heads and classes, but few rows.
    few: Vec<Op>,
    /// The largest operations of the model, which determine a device's scratch memory.
    pub limits: Limits,
}

/// Sequences and tokens for a comparison with the CPU: their rows are not a multiple of the tiles.
const FEW_SEQUENCES: usize = 2;
const FEW_TOKENS: usize = 72;
/// Elements of a tensor without rows for the same: more than a block's.
const FEW_ELEMENTS: usize = 20_000;

/// Returns the kernels of a model's step with everything recomputed, then the others.
pub fn cases(config: &ModelConfig, shape: &StepShape) -> Vec<Case> {
    let T = FEW_TOKENS.min(shape.T * 7 / 8).max(1);
    let few = listed(config, &StepShape { B: shape.B.min(FEW_SEQUENCES), T, ..*shape });
    let limits = limits(config, shape);
    let case = |(kernel, ops): (Kernel, Vec<Op>)| {
        let (_, few) = few.iter().find(|(few, _)| few.name == kernel.name).expect("the same step");
        Case { ops, few: few.iter().cloned().map(few_elements).collect(), limits, kernel }
    };
    listed(config, shape).into_iter().map(case).collect()
}

impl Case {
    pub fn is_matmul(&self) -> bool {
        matches!(self.kernel.work, Work::Matmul { .. })
    }

    /// Lays out the tensors for a device of this type.
    pub fn operands(&self, dtype: Dtype) -> Operands {
        Operands::new(&self.ops, self.limits.V, dtype, dtype)
    }

    /// Lays out the tensors of the kernel with few rows, for a device that stores numbers of
    /// `dtype` as `stored`.
    pub fn few_operands(&self, dtype: Dtype, stored: Dtype) -> Operands {
        Operands::new(&self.few, self.limits.V, dtype, stored)
    }

    pub fn same_as(&self, other: &Case) -> bool {
        self.kernel.name == other.kernel.name && self.kernel.shape == other.kernel.shape
    }
}

fn limits(config: &ModelConfig, shape: &StepShape) -> Limits {
    let ModelConfig { C, NH, V, Vp, L, .. } = *config;
    let (rows, logits_rows, T) = (shape.rows(), shape.logits_chunk(), shape.T);
    Limits { rows, logits_rows, T, C, NH, V, Vp, norm_pieces: L + 1 }
}

/// The kernels with their operations: those of a step that recomputes nothing, and of one that
/// recomputes all it can those that repeat others.
fn listed(config: &ModelConfig, shape: &StepShape) -> Vec<(Kernel, Vec<Op>)> {
    let stored = &StepShape { recompute: Recompute::Nothing, ..*shape };
    let recomputed = &StepShape { recompute: Recompute::GeluAndLayernorm, ..*shape };
    let (mut kernels, mut recorded) = record(config, stored);
    let again = |kernel: &Kernel| kernel.class == Class::Recompute;
    recorded.extend(record(config, recomputed).1.into_iter().filter(|(kernel, _)| again(kernel)));
    let with_ops = |row: Kernel| {
        let named = recorded.iter().filter(|(kernel, _)| kernel.name == row.name);
        // The last, as the first micro-step overwrites gradients that the others add to.
        let ops = match named.clone().rfind(|(kernel, _)| kernel.shape == row.shape) {
            Some((_, op)) => vec![op.clone()],
            // A row for all units.
            None => named.map(|(_, op)| op.clone()).collect(),
        };
        (row, ops)
    };
    let rows = step(config, stored).into_iter().filter(|row| row.class != Class::Other);
    let rows = rows.chain(step(config, recomputed).into_iter().filter(again));
    let mut listed: Vec<_> = rows.map(with_ops).collect();
    for call in others(config, shape) {
        let kernel = kernels.of(&Event::Call(call.clone())).remove(0);
        listed.push((as_recorded(kernel, config), vec![Op::whole(call)]));
    }
    listed
}

/// Returns the kernels of a step's calls, each with its operation.
fn record(config: &ModelConfig, shape: &StepShape) -> (Kernels, Vec<(Kernel, Op)>) {
    let mut recording = Recording::new(config, shape, ZeroStage::Zero0, 1);
    let mut kernels = Kernels::new(recording.weights());
    let mut recorded = Vec::new();
    recording.step(|event| {
        let found = kernels.of(&event);
        if let Event::Call(call) = event {
            recorded.extend(found.into_iter().zip(Op::split(call)));
        }
    });
    (kernels, recorded)
}

/// Returns the calls of evaluation, sampling, logging and multi-GPU training.
fn others(config: &ModelConfig, shape: &StepShape) -> Vec<Call> {
    let (&StepShape { B, T, .. }, &ModelConfig { C, NH, V, Vp, .. }) = (shape, config);
    let N = shape.logits_chunk();
    let tensor = |dtype, len| Tensor { arena: 0, offset: 0, len, dtype };
    let x = |len| tensor(Dtype::Bf16, len);
    let f32 = |len| tensor(Dtype::F32, len);
    let targets = tensor(Dtype::I32, N);
    let dims = AttentionDims { B, T, NH, HS: config.HS() };
    vec![
        Call::Classifier(Classifier { losses: f32(N), logits: x(N * Vp), targets, dloss: None, N, V, Vp }),
        Call::AttentionDecode { out: x(B * C), qkv: x(B * T * 3 * C), t: T - 1, dims },
        Call::Fill { dst: x(B * T * C), value: 1.0 },
        Call::Sum { out: f32(1), src: f32(B * T) },
        // The matrices of a layer.
        Call::Add { dst: x(12 * C * C), src: x(12 * C * C) },
        Call::Scale { dst: x(12 * C * C), factor: 0.5 },
        Call::MuonMomentum(MuonMomentum {
            grads: x(12 * C * C),
            m: f32(12 * C * C),
            momentum: 0.95,
            grad_scale: 0.5,
            seed: 1,
            first: 0,
        }),
        Call::MuonStep(MuonStep {
            params: x(12 * C * C),
            master: Some(f32(12 * C * C)),
            direction: x(12 * C * C),
            lr: 0.01,
            scale: 1.0,
            weight_decay: 0.1,
            seed: 1,
            first: 0,
        }),
    ]
}

/// Returns the kernel with its name and shape in records, where those of fill, add and scale have
/// columns.
fn as_recorded(kernel: Kernel, config: &ModelConfig) -> Kernel {
    let name = match kernel.name {
        "fill" => "fill with ones",
        "add" => "add",
        "scale" => "scale",
        _ => return kernel,
    };
    let len: usize = kernel.shape.parse().expect("a length");
    Kernel { name, shape: format!("{}x{}", len / config.C, config.C), ..kernel }
}

/// Shortens the tensors of an operation that has no rows.
fn few_elements(mut op: Op) -> Op {
    use Call::{AdamW, Add, Fill, MuonMomentum, MuonStep, NormSquared, Scale, Sum};
    let is_stream = matches!(op.call, AdamW(_) | MuonMomentum(_) | MuonStep(_) | Add { .. })
        || matches!(op.call, NormSquared { .. } | Sum { .. } | Fill { .. } | Scale { .. });
    if is_stream {
        op.call.for_each_tensor(|tensor, _| tensor.len = tensor.len.min(FEW_ELEMENTS));
    }
    op
}
