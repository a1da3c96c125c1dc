//! The contract between the model and a device: [`Device`] is memory and order, [`Ops`] has one
//! method per operation.
//!
//! This file *is* the list of what a device must do; `kernels/` and the kernel tests mirror it.
//! Conventions, for every method:
//! - arguments go outputs, inputs, weights, dimensions; `N` = B*T rows;
//! - gradients of parameters are added to (`+=`), gradients of activations are assigned (`=`),
//!   unless said otherwise;
//! - outputs never overlap inputs, unless said otherwise;
//! - `positions` (B, T) i32, where documents are packed into sequences, are the places of tokens in
//!   their documents; without them each sequence is one document;
//! - a method returns once the work is queued; [`Device::download`] and [`Device::synchronize`]
//!   wait for it;
//! - a tensor of the wrong length or type is a bug and panics; an `Err` means that the device
//!   failed.

mod buffer;
mod call;
mod dropout;
mod epilogue;
mod floats;
mod gpu;
mod limits;
mod muon;
mod observed;
mod span;
mod stamps;

pub use buffer::{Buffer, Place};
pub use call::{Access, Call, CallDevice};
pub use dropout::{Dropout, DropoutState, Mask, philox};
pub use epilogue::{Epilogue, Kept};
pub use floats::{download_f32, upload_f32};
pub use gpu::{Gpu, GpuMemory};
pub use limits::{Limits, SCRATCH, plan_scratch};
pub use muon::{MuonMomentum, MuonStep, NewtonSchulz};
pub use observed::{Observed, Observer};
pub use span::{Span, within};
pub use stamps::HostStamps;

use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::time::Duration;

/// Memory and order of execution.
pub trait Device {
    /// Describes the device for the start-up table: `"CPU, 2 threads, AVX-512, f32"`.
    fn describe(&self) -> String;

    /// Opens the vendor libraries that the device uses and returns, for each, its purpose, then its
    /// version and path or that it is missing.
    ///
    /// # Errors
    /// One line, if a library that was asked for is missing, or one that was found cannot be used.
    fn libraries(&mut self) -> Result<Vec<(&'static str, String)>> {
        Ok(Vec::new())
    }

    /// The type of parameters, activations and gradients on this device (llm.c's `floatX`).
    fn float_dtype(&self) -> Dtype;

    /// The type of matmul operands, as `--dtype` names it.
    fn operand_dtype(&self) -> Dtype {
        self.float_dtype()
    }

    /// Bytes of scratch memory that operations within `limits` need. The planner of the memory adds
    /// them as the arena [`SCRATCH`], which the device then uses on its own.
    ///
    /// # Errors
    /// One line, if the device has no kernel for these shapes.
    fn scratch_bytes(&self, limits: &Limits) -> Result<usize> {
        let _ = limits;
        Ok(0)
    }

    /// Preferred size of the logits in bytes. The more rows fit at a time, the less often the
    /// gradient of the embedding is read and written.
    fn logits_bytes(&self) -> usize {
        256 << 20
    }

    /// Allocates all arenas of the plan, zeroed. Called once, before any tensor is touched.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn allocate(&mut self, plan: &MemoryPlan) -> Result<()>;

    /// Copies `src`, elements of `dst.dtype` in native byte order, to the device.
    fn upload(&mut self, dst: Tensor, src: &[u8]) -> Result<()>;

    /// Waits for the work that writes `src` and copies it to the host.
    fn download(&mut self, dst: &mut [u8], src: Tensor) -> Result<()>;

    /// Waits for all queued work.
    fn synchronize(&mut self) -> Result<()>;

    /// Copies `src` to `dst`. Both have the same type and length, and they do not overlap.
    fn copy(&mut self, dst: Tensor, src: Tensor) -> Result<()>;

    /// Lends `tensor` to a collective, ordered after everything queued so far. No operation may
    /// touch it until [`reclaim`](Self::reclaim): the CPU panics and the emulated device fails if
    /// one does.
    fn lend(&mut self, tensor: Tensor) -> Buffer;

    /// Takes back `tensor`, exactly as it was lent.
    fn reclaim(&mut self, tensor: Tensor);

    /// Queues a time stamp, which is taken when everything queued so far is done.
    ///
    /// # Errors
    /// If the device has no clock.
    fn stamp(&mut self) -> Result<()> {
        anyhow::bail!("{} has no clock", self.describe())
    }

    /// Waits for all stamps since the last call, and returns them in order, each as the time since
    /// the first one.
    ///
    /// # Errors
    /// If the device has failed.
    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        Ok(Vec::new())
    }

    /// Begins a part of the run. Devices that a profiler observes take note of it; others do
    /// nothing.
    fn enter(&mut self, span: Span) {
        let _ = span;
    }

    /// Ends the part that began last.
    fn leave(&mut self) {}

    /// Tells the vendor's profiler, if one is attached, to record from now on, or no longer.
    ///
    /// # Errors
    /// If the device's driver fails.
    fn record_for_profiler(&mut self, on: bool) -> Result<()> {
        let _ = on;
        Ok(())
    }

    /// The GPU, for estimates; `None` on any other device.
    fn gpu(&self) -> Option<Gpu> {
        None
    }

    /// Bytes of host memory that operations within `limits` take besides the plan;
    /// `head_gradient` says whether the gradient of the head's weights is among them.
    fn host_bytes(&self, limits: &Limits, head_gradient: bool) -> usize {
        let _ = (limits, head_gradient);
        0
    }

    /// The memory that is in use on the GPU now; `None` on any other device, and where it is not
    /// reported. Cheap enough for every step.
    fn gpu_memory(&mut self) -> Option<GpuMemory> {
        None
    }

    /// Describes the current state of the GPU in one line.
    ///
    /// # Errors
    /// One line, if there is no GPU, or it cannot be queried.
    fn gpu_state(&mut self) -> Result<String> {
        anyhow::bail!("there is no GPU to report on")
    }
}

/// out (N, OC) = epilogue(inp (N, C) @ weight (OC, C)ᵀ)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatmulForward {
    pub out: Tensor,
    pub inp: Tensor,
    pub weight: Tensor,
    pub epilogue: Epilogue,
    pub N: usize,
    pub C: usize,
    pub OC: usize,
}

/// dinp (N, C) = dout @ weight, then times gelu_gradient where the input came out of a GELU;
/// dweight (OC, C) += doutᵀ @ inp; dbias (OC) += column sums of dout. Without dweight there is no
/// dbias either, and dinp alone is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatmulBackward {
    pub dinp: Tensor,
    pub dweight: Option<Tensor>,
    /// `=` instead of `+=` for `dweight`, so that the first micro-step need not clear and read it.
    pub overwrite_dweight: bool,
    pub dbias: Option<Tensor>,
    pub dout: Tensor,
    pub inp: Tensor,
    pub weight: Tensor,
    /// gelu'(h) (N, C), where `inp` is gelu(h).
    pub gelu_gradient: Option<Tensor>,
    pub N: usize,
    pub C: usize,
    pub OC: usize,
}

/// Dimensions of multi-head attention over packed (B, T, 3, NH, HS) queries, keys, values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionDims {
    pub B: usize,
    pub T: usize,
    pub NH: usize,
    pub HS: usize,
}

/// out (B, T, C) is the sum over keys of a query's attention weights times values, with dropout of
/// the weights; lse (B, NH, T) f32 is the log-sum-exp of each row of scaled scores. qkv (B, T, 3C).
/// Queries see the keys up to theirs, from the first one of their document on. No T x T buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionForward {
    pub out: Tensor,
    pub lse: Tensor,
    pub qkv: Tensor,
    pub positions: Option<Tensor>,
    pub dropout: Option<Dropout>,
    pub dims: AttentionDims,
}

/// dqkv (B, T, 3 C) =.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionBackward {
    pub dqkv: Tensor,
    pub dout: Tensor,
    pub out: Tensor,
    pub lse: Tensor,
    pub qkv: Tensor,
    pub positions: Option<Tensor>,
    pub dropout: Option<Dropout>,
    pub dims: AttentionDims,
}

/// `encoded (B, T, C) = dropout(wte[tokens] + wpe[positions])`. tokens (B, T) i32; wpe (at least T,
/// C): its first row is for position 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderForward {
    pub encoded: Tensor,
    pub tokens: Tensor,
    pub positions: Option<Tensor>,
    pub wte: Tensor,
    pub wpe: Tensor,
    pub dropout: Option<Dropout>,
    pub B: usize,
    pub T: usize,
    pub C: usize,
}

/// `dwte[tokens] += dropout'(dout)`; `dwpe[positions] += dropout'(dout)`. Deterministic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderBackward {
    /// `None` for an embedding that is frozen.
    pub dwte: Option<Tensor>,
    pub dwpe: Option<Tensor>,
    pub dout: Tensor,
    pub tokens: Tensor,
    /// (N) i32: indices of rows, those of one token adjacent and in ascending order, the most
    /// frequent token first. The host sorts them while the device is busy, so that the device needs
    /// neither atomics nor a sort. A device that sorts may ignore them.
    pub rows_by_token: Tensor,
    /// The positions of packed documents, and (N) i32 the rows sorted by them, as `rows_by_token`.
    pub positions: Option<[Tensor; 2]>,
    pub dropout: Option<Dropout>,
    pub B: usize,
    pub T: usize,
    pub C: usize,
}

/// out (N, C) = (inp - mean) * rstd * weight + bias; mean, rstd (N) f32 are stored for the backward
/// pass. eps = 1e-5.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayernormForward {
    pub out: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
    pub inp: Tensor,
    pub weight: Tensor,
    pub bias: Tensor,
    pub N: usize,
    pub C: usize,
}

/// dinp (N, C) **+=** (it is the gradient of the residual stream), or = for the layernorm at the
/// end of the stream; dweight, dbias (C) +=.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayernormBackward {
    pub dinp: Tensor,
    pub overwrite_dinp: bool,
    pub dweight: Tensor,
    pub dbias: Tensor,
    pub dout: Tensor,
    pub inp: Tensor,
    pub weight: Tensor,
    pub mean: Tensor,
    pub rstd: Tensor,
    pub N: usize,
    pub C: usize,
}

/// Names a list of operations: lists of one key are the same operations on the same tensors, with
/// the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GraphKey(pub [usize; 4]);

/// Queues operations.
pub type Work<'a> = dyn FnMut(&mut dyn Ops) -> Result<()> + 'a;

/// The target of a row that does not count, as in PyTorch.
pub const IGNORED: i32 = -100;

/// Softmax and cross-entropy over rows of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classifier {
    /// (N) f32; `+=`, so that it accumulates over micro-steps.
    pub losses: Tensor,
    /// (N, Vp); with `dloss`, overwritten by the gradient, and columns `V..Vp` by zero.
    pub logits: Tensor,
    /// (N) i32, each below V. Rows of a negative target, [`IGNORED`], have no loss and no gradient.
    pub targets: Tensor,
    /// (1) f32: weight of one row's loss in the total, 1 / (rows of the step that count) times the
    /// loss scale. It is on the device because it changes from step to step. Without it only losses
    /// are computed and the logits stay.
    pub dloss: Option<Tensor>,
    pub N: usize,
    pub V: usize,
    pub Vp: usize,
}

/// One AdamW step (Loshchilov & Hutter 2019) with bias correction over a range of parameters, with
/// g = grad_scale * grads:
///
/// m = lerp(g, m, beta1); v = lerp(g², v, beta2); p -= lr (m̂ / (sqrt(v̂) + eps) + decay p)
///
/// If parameters, or m and v, are narrower than f32, the f32 result is rounded stochastically, so
/// that it is right on average.
///
/// All tensors have the same length. On a CUDA device 16 bytes of its floating-point type must
/// divide that length, and each tensor must start at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub params: Tensor,
    /// Master weights: the f32 copy of the parameters that takes the step in their place. The
    /// parameters become its rounded image.
    pub master: Option<Tensor>,
    /// f32 or bf16, as v.
    pub m: Tensor,
    pub v: Tensor,
    pub grads: Tensor,
    /// 0 for parameters that do not decay.
    pub weight_decay: f32,
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Factor on the gradients: gradient clipping and loss scaling.
    pub grad_scale: f32,
    /// 1 for the first update.
    pub t: usize,
    /// Seed of the stochastic rounding; a new one each step.
    pub seed: u32,
    /// Index of the first element among all parameters: stochastic rounding depends on it, so it
    /// does not depend on how parameters are sharded.
    pub first: u64,
}

/// The operations of GPT-2.
pub trait Ops: Device {
    fn encoder_forward(&mut self, args: EncoderForward) -> Result<()>;

    fn encoder_backward(&mut self, args: EncoderBackward) -> Result<()>;

    fn layernorm_forward(&mut self, args: LayernormForward) -> Result<()>;

    fn layernorm_backward(&mut self, args: LayernormBackward) -> Result<()>;

    fn matmul_forward(&mut self, args: MatmulForward) -> Result<()>;

    /// A projection into the residual stream (its epilogue is [`Epilogue::BiasResidual`]), and the
    /// layernorm that reads the sum (`norm.inp` is `matmul.out`), whose output does not overlap any
    /// input. With dropout, matmul.out = residual + dropout(matmul + bias). A device with a kernel
    /// that fuses both may choose between that and a composition.
    fn matmul_residual_layernorm(
        &mut self,
        matmul: MatmulForward,
        dropout: Option<Dropout>,
        norm: LayernormForward,
    ) -> Result<()>;

    /// dinp (N, C) = dropout'(dout): the gradient of what was dropped.
    fn dropout_backward(&mut self, dinp: Tensor, dout: Tensor, C: usize, dropout: Dropout) -> Result<()>;

    fn matmul_backward(&mut self, args: MatmulBackward) -> Result<()>;

    fn attention_forward(&mut self, args: AttentionForward) -> Result<()>;

    fn attention_backward(&mut self, args: AttentionBackward) -> Result<()>;

    /// Attention for the single position `t`, over keys and values 0..=t of each of the B
    /// sequences. out (B, C); qkv (B, T, 3 C) is the cache.
    fn attention_decode(&mut self, out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims) -> Result<()>;

    /// Repeats the GELU of a forward pass that kept its input ([`Kept::Input`]): out = gelu(kept),
    /// tanh form, and kept = gelu'(kept) in place. Both have the bits that a forward pass with
    /// [`Kept::Gradient`] leaves.
    fn gelu_recompute(&mut self, out: Tensor, kept: Tensor) -> Result<()>;

    fn classifier(&mut self, args: Classifier) -> Result<()>;

    fn adamw(&mut self, args: AdamW) -> Result<()>;

    fn muon_momentum(&mut self, args: MuonMomentum) -> Result<()>;

    fn newton_schulz(&mut self, args: NewtonSchulz) -> Result<()>;

    fn muon_step(&mut self, args: MuonStep) -> Result<()>;

    /// dst += src, of the same type; each sum is formed in f32 and rounded to nearest. Lengths and
    /// starts on a CUDA device are as for [`AdamW`].
    fn add(&mut self, dst: Tensor, src: Tensor) -> Result<()>;

    /// dst *= factor, of the device's floating-point type; each product is formed in f32 and
    /// rounded to nearest. Lengths and starts on a CUDA device are as for [`AdamW`].
    fn scale(&mut self, dst: Tensor, factor: f32) -> Result<()>;

    /// out (1) f32 = sum of squares of all of `src`; deterministic.
    fn norm_squared(&mut self, out: Tensor, src: &[Tensor]) -> Result<()>;

    /// out (1) f32 = sum of src (f32); deterministic.
    fn sum(&mut self, out: Tensor, src: Tensor) -> Result<()>;

    fn fill(&mut self, dst: Tensor, value: f32) -> Result<()>;

    /// Queues `work`, the operations that `key` names. It only queues: it neither uploads,
    /// downloads nor lends. A device may record it and later repeat the record instead of calling
    /// it.
    fn replay(&mut self, key: GraphKey, work: &mut Work) -> Result<()>;
}
