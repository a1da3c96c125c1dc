//! The kernels of a training step: what decides their time, and the category it belongs to.

use crate::config::logits_rows;
use crate::model::activations::Recompute;
use crate::optim::optimizer::OptimizerKind;

/// The shape of a step: its batch, and what is recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    pub B: usize,
    pub T: usize,
    /// Forward and backward passes per step.
    pub micro_steps: usize,
    pub recompute: Recompute,
    /// Maximum rows of logits in memory.
    pub logits_rows: usize,
    pub optimizer: OptimizerKind,
}

impl StepShape {
    /// Tokens per step.
    pub fn tokens(&self) -> usize {
        self.B * self.T * self.micro_steps
    }

    /// Tokens per micro-batch.
    pub fn rows(&self) -> usize {
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
    Other,
}

impl Class {
    pub const ALL: [Class; 15] = [
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
        Class::Other,
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
            Class::Optimizer => "norm and update",
            Class::Other => "fills, sums and copies",
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
    /// GELU, and store its input too.
    Gelu,
    /// GELU, and store its gradient too.
    GeluAndGradient,
    /// Read the gradient of the GELU and multiply by it.
    GeluBackward,
    /// Add to a gradient, which has few outputs and long sums.
    Accumulate,
}

/// The kind of work a kernel does, as far as it decides its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// (m, k) times (k, n).
    Matmul { m: usize, n: usize, k: usize, tail: Tail },
    /// Tiles of causal attention.
    Attention { B: usize, NH: usize, T: usize, HS: usize, backward: bool },
    /// One pass over a matrix in memory: at this share of a copy's bandwidth, where a kernel's
    /// clocks are not known.
    Stream { rows: usize, columns: usize, share: f64 },
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
