//! The buffers of one micro-batch. Names and shapes are llm.c's.

use super::{BatchShape, ModelOptions};
use crate::config::{DropoutRates, Lora, ModelConfig, logits_rows};
use crate::params::frozen::Frozen;
use crate::sharding::Sharding;
use crate::tensor::{Dtype, MemoryPlan, Tensor};

/// The activations that the backward pass recomputes instead of the forward pass storing them
/// (llm.c's `-r`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Recompute {
    #[value(name = "0")]
    Nothing,
    /// The output of the GELU: 4 C elements per token and layer. Its kept input is then replaced by
    /// its gradient.
    #[value(name = "1")]
    Gelu,
    /// That and the outputs of both layernorms: 6 C elements per token and layer.
    #[value(name = "2")]
    GeluAndLayernorm,
}

/// A buffer of which each layer has its own copy, or which all layers share.
#[derive(Clone, Copy, Debug)]
pub struct PerLayer {
    all: Tensor,
    layers: usize,
    /// Elements per row (token).
    width: usize,
}

impl PerLayer {
    /// The first `rows` rows of layer `l`.
    pub fn get(&self, l: usize, rows: usize) -> Tensor {
        let len = self.all.len / self.layers;
        self.all.part(if self.layers == 1 { 0 } else { l }, len).slice(0, rows * self.width)
    }

    /// The layer whose own copy holds `tensor`.
    fn layer_of(&self, tensor: Tensor) -> Option<usize> {
        let same = (tensor.arena, tensor.dtype) == (self.all.arena, self.all.dtype);
        let bytes = tensor.offset.checked_sub(self.all.offset).filter(|_| same && self.layers > 1)?;
        (bytes < self.all.size_bytes()).then(|| bytes / (self.all.size_bytes() / self.layers))
    }
}

/// All activations, for N = B*T rows.
#[derive(Clone, Debug)]
pub struct Activations {
    /// Capacity in rows.
    pub rows: usize,
    /// Tokens of the longest sequence.
    pub T: usize,
    pub recompute: Recompute,
    /// Dropout of the passes that train: the masks are drawn where they are used, and never stored.
    pub dropout: DropoutRates,
    pub dropout_state: Tensor,    // (4) i32, with dropout only
    pub inputs: Tensor,           // (N) i32
    pub targets: Tensor,          // (N) i32
    pub rows_by_token: Tensor,    // (N) i32, backward only
    pub positions: Tensor,        // (N) i32, of packed documents
    pub rows_by_position: Tensor, // (N) i32, of packed documents, backward only
    pub encoded: Tensor,          // (N, C)
    pub ln1: PerLayer,            // (L, N, C), one layer if recomputed
    pub ln1_mean: PerLayer,       // (L, N) f32
    pub ln1_rstd: PerLayer,       // (L, N) f32
    pub qkv: PerLayer,            // (L, N, 3C), decoding: (L, slots, N, 3C)
    pub qkv_step: Tensor,         // (slots, 3C), decoding only
    pub atty: PerLayer,           // (L, N, C)
    pub lse: PerLayer,            // (L, B, NH, T) f32
    pub residual2: PerLayer,      // (L, N, C)
    pub ln2: PerLayer,            // as ln1
    pub ln2_mean: PerLayer,       // (L, N) f32
    pub ln2_rstd: PerLayer,       // (L, N) f32
    pub fch: PerLayer,            // (L, N, 4C), gelu'(h); h until it is recomputed
    pub fch_gelu: PerLayer,       // (L, N, 4C), one layer if recomputed
    pub residual3: PerLayer,      // (L, N, C)
    pub lnf: Tensor,              // (N, C)
    pub lnf_mean: Tensor,         // (N) f32
    pub lnf_rstd: Tensor,         // (N) f32
    pub losses: Tensor,           // (N) f32, summed over micro-steps
    pub logits: Tensor,           // (chunk of rows, Vp), then their gradient
    pub scratch_btc: Tensor,      // (N, C), backward only
    pub scratch_bt4c: Tensor,     // (N, 4C), backward only
    pub dresidual: Tensor,        // (N, C), backward only
    /// Those of the adapters, if there are any.
    pub lora: Option<LoraBuffers>,
    /// Scalars of a step: loss sum, squared gradient norm, votes to stop; and dloss.
    pub scalars: Tensor, // (4) f32
}

/// The buffers of an adapter's passes, which all adapters share.
#[derive(Clone, Copy, Debug)]
pub struct LoraBuffers {
    /// (N, r): the input times A.
    pub h: Tensor,
    /// (N, r), backward only.
    pub dh: Tensor,
    /// (N, OC): an adapter's output, and after it what dropout leaves of it; or (N, C): the
    /// gradient of its input.
    pub wide: Tensor,
}

impl LoraBuffers {
    fn plan(lora: &Lora, C: usize, X: Dtype, backward_rows: usize, p: &mut Planner) -> Self {
        let widths = [3 * C, 2 * C, 4 * C, 4 * C];
        let width = widths.into_iter().zip(lora.targets).filter(|(_, on)| *on).map(|(width, _)| width).max();
        let r = lora.padded_rank();
        LoraBuffers {
            h: p.add("lora_h", X, p.rows * r),
            dh: p.add("lora_dh", X, backward_rows * r),
            wide: p.add("lora_wide", X, p.rows * width.unwrap_or(0)),
        }
    }
}

/// The number of copies of the per-layer buffers that a use of the model needs.
struct Copies {
    layers: usize,
    /// Copies of queries, keys and values, which are also the cache when decoding.
    qkv: usize,
    /// Sequences that are decoded at the same time.
    slots: usize,
    backward: bool,
}

/// One arena of a plan, for a number of rows.
struct Planner<'a> {
    arena: &'static str,
    rows: usize,
    plan: &'a mut MemoryPlan,
}

impl Planner<'_> {
    fn add(&mut self, name: &'static str, dtype: Dtype, len: usize) -> Tensor {
        self.plan.add(self.arena, name, dtype, len)
    }

    fn per_layer(&mut self, name: &'static str, dtype: Dtype, layers: usize, width: usize) -> PerLayer {
        PerLayer { all: self.add(name, dtype, layers * self.rows * width), layers, width }
    }
}

impl Activations {
    /// The layer whose own copy of a buffer holds `tensor`.
    pub fn layer_of(&self, tensor: Tensor) -> Option<usize> {
        let layers = [&self.ln1, &self.ln1_mean, &self.ln1_rstd, &self.qkv, &self.atty, &self.lse];
        let more = [&self.residual2, &self.ln2, &self.ln2_mean, &self.ln2_rstd, &self.fch, &self.fch_gelu];
        let all = layers.into_iter().chain(more).chain([&self.residual3]);
        all.into_iter().find_map(|buffer| buffer.layer_of(tensor))
    }

    /// Plans buffers for training: each layer keeps everything its backward pass needs.
    pub fn plan(c: &ModelConfig, options: &ModelOptions, dtype: Dtype, plan: &mut MemoryPlan) -> Self {
        let copies = Copies { layers: c.L, qkv: c.L, slots: 0, backward: true };
        Self::plan_copies("activations", c, options, dtype, plan, copies)
    }

    /// Plans buffers for forward passes alone: all layers share one set.
    pub fn plan_for_evaluation(
        c: &ModelConfig,
        options: &ModelOptions,
        dtype: Dtype,
        plan: &mut MemoryPlan,
    ) -> Self {
        let copies = Copies { layers: 1, qkv: 1, slots: 0, backward: false };
        Self::plan_copies("activations", c, options, dtype, plan, copies)
    }

    /// Plans buffers for decoding up to `slots` sequences token by token: as for evaluation, but
    /// each layer keeps the keys and values of every slot, and there are logits of a row per slot.
    pub fn plan_for_decoding(
        c: &ModelConfig,
        maxT: usize,
        slots: usize,
        dtype: Dtype,
        plan: &mut MemoryPlan,
    ) -> Self {
        let options = ModelOptions {
            B: 1,
            T: maxT,
            min_rows: slots,
            recompute: Recompute::Gelu,
            dropout: DropoutRates::NONE,
            logits_bytes: slots * c.Vp * dtype.size(),
            sharding: Sharding::NONE,
            frozen: Frozen::default(),
        };
        let copies = Copies { layers: 1, qkv: c.L * slots, slots, backward: false };
        Self::plan_copies("decoding", c, &options, dtype, plan, copies)
    }

    fn plan_copies(
        arena: &'static str,
        c: &ModelConfig,
        o: &ModelOptions,
        X: Dtype,
        plan: &mut MemoryPlan,
        copies: Copies,
    ) -> Self {
        use Dtype::{F32, I32};
        let rows = o.min_rows.max(o.B * o.T);
        let (C, L) = (c.C, copies.layers);
        let L_gelu = if o.recompute >= Recompute::Gelu { 1 } else { L };
        let L_ln = if o.recompute >= Recompute::GeluAndLayernorm { 1 } else { L };
        let backward_rows = if copies.backward { rows } else { 0 };
        let dropout = if copies.backward { o.dropout } else { DropoutRates::NONE };
        let chunk = logits_rows(rows, (o.logits_bytes / (c.Vp * X.size())).max(1));
        let mut p = Planner { arena, rows, plan };
        Activations {
            rows,
            T: o.T.max(o.min_rows),
            recompute: o.recompute,
            dropout,
            dropout_state: p.add("dropout_state", I32, if dropout.any() { 4 } else { 0 }),
            inputs: p.add("inputs", I32, rows),
            targets: p.add("targets", I32, rows),
            rows_by_token: p.add("rows_by_token", I32, backward_rows),
            positions: p.add("positions", I32, rows),
            rows_by_position: p.add("rows_by_position", I32, backward_rows),
            encoded: p.add("encoded", X, rows * C),
            ln1: p.per_layer("ln1", X, L_ln, C),
            ln1_mean: p.per_layer("ln1_mean", F32, L, 1),
            ln1_rstd: p.per_layer("ln1_rstd", F32, L, 1),
            qkv: p.per_layer("qkv", X, copies.qkv, 3 * C),
            qkv_step: p.add("qkv_step", X, copies.slots * 3 * C),
            atty: p.per_layer("atty", X, L, C),
            lse: p.per_layer("lse", F32, L, c.NH),
            residual2: p.per_layer("residual2", X, L, C),
            ln2: p.per_layer("ln2", X, L_ln, C),
            ln2_mean: p.per_layer("ln2_mean", F32, L, 1),
            ln2_rstd: p.per_layer("ln2_rstd", F32, L, 1),
            fch: p.per_layer("fch", X, L, 4 * C),
            fch_gelu: p.per_layer("fch_gelu", X, L_gelu, 4 * C),
            residual3: p.per_layer("residual3", X, L, C),
            lnf: p.add("lnf", X, rows * C),
            lnf_mean: p.add("lnf_mean", F32, rows),
            lnf_rstd: p.add("lnf_rstd", F32, rows),
            losses: p.add("losses", F32, rows),
            logits: p.add("logits", X, chunk * c.Vp),
            scratch_btc: p.add("scratch_btc", X, backward_rows * C),
            scratch_bt4c: p.add("scratch_bt4c", X, backward_rows * 4 * C),
            dresidual: p.add("dresidual", X, backward_rows * C),
            lora: c.lora.map(|lora| LoraBuffers::plan(&lora, C, X, backward_rows, &mut p)),
            scalars: p.add("scalars", F32, 4),
        }
    }

    /// The positions of a batch's rows, if it is one of packed documents.
    pub fn positions(&self, shape: BatchShape) -> Option<Tensor> {
        shape.packed.then(|| self.positions.slice(0, shape.rows()))
    }

    /// The input of layer `l`: the token embeddings, or the output of the layer below.
    pub fn block_input(&self, l: usize, shape: BatchShape, C: usize) -> Tensor {
        match l {
            0 => self.encoded.slice(0, shape.rows() * C),
            _ => self.residual3.get(l - 1, shape.rows()),
        }
    }
}
