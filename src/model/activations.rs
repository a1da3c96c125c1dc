//! The buffers of one micro-batch. Names and shapes are llm.c's.

use super::{BatchShape, ModelOptions};
use crate::config::{ModelConfig, logits_rows};
use crate::sharding::Sharding;
use crate::tensor::{Dtype, MemoryPlan, Tensor};

/// The activations that the backward pass recomputes instead of the forward pass storing them
/// (llm.c's `-r`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Recompute {
    #[value(name = "0")]
    Nothing,
    /// The output of the GELU: 4 C elements per token and layer.
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
}

/// All activations, for N = B*T rows.
#[derive(Clone, Debug)]
pub struct Activations {
    /// Capacity in rows.
    pub rows: usize,
    /// Tokens of the longest sequence.
    pub T: usize,
    pub recompute: Recompute,
    pub inputs: Tensor,        // (N) i32
    pub targets: Tensor,       // (N) i32
    pub bucket_rows: Tensor,   // (N) i32, rows by token, backward only
    pub bucket_starts: Tensor, // (N + 1) i32, backward only
    pub encoded: Tensor,       // (N, C)
    pub ln1: PerLayer,         // (L, N, C), one layer if recomputed
    pub ln1_mean: PerLayer,    // (L, N) f32
    pub ln1_rstd: PerLayer,    // (L, N) f32
    pub qkv: PerLayer,         // (L, N, 3C)
    pub atty: PerLayer,        // (L, N, C)
    pub lse: PerLayer,         // (L, B, NH, T) f32
    pub residual2: PerLayer,   // (L, N, C)
    pub ln2: PerLayer,         // as ln1
    pub ln2_mean: PerLayer,    // (L, N) f32
    pub ln2_rstd: PerLayer,    // (L, N) f32
    pub fch: PerLayer,         // (L, N, 4C), before the GELU
    pub fch_gelu: PerLayer,    // (L, N, 4C), one layer if recomputed
    pub residual3: PerLayer,   // (L, N, C)
    pub lnf: Tensor,           // (N, C)
    pub lnf_mean: Tensor,      // (N) f32
    pub lnf_rstd: Tensor,      // (N) f32
    pub losses: Tensor,        // (N) f32, summed over micro-steps
    pub logits: Tensor,        // (chunk of rows, Vp), then their gradient
    pub scratch_btc: Tensor,   // (N, C), backward only
    pub scratch_bt4c: Tensor,  // (N, 4C), backward only
    pub dresidual: Tensor,     // (N, C), backward only
    /// Scalars of a step: loss sum, squared gradient norm, votes to stop.
    pub scalars: Tensor, // (4) f32
}

/// The number of copies of the per-layer buffers that a use of the model needs.
struct Copies {
    layers: usize,
    /// Copies of queries, keys and values, which are also the cache when decoding.
    qkv: usize,
    backward: bool,
}

impl Activations {
    /// Plans buffers for training: each layer keeps everything its backward pass needs.
    pub fn plan(c: &ModelConfig, options: &ModelOptions, dtype: Dtype, plan: &mut MemoryPlan) -> Self {
        let copies = Copies { layers: c.L, qkv: c.L, backward: true };
        Self::plan_copies("activations", c, options, dtype, plan, copies)
    }

    /// Plans buffers for forward passes alone: all layers share one set.
    pub fn plan_for_evaluation(
        c: &ModelConfig,
        options: &ModelOptions,
        dtype: Dtype,
        plan: &mut MemoryPlan,
    ) -> Self {
        let copies = Copies { layers: 1, qkv: 1, backward: false };
        Self::plan_copies("activations", c, options, dtype, plan, copies)
    }

    /// Plans buffers for decoding one sequence token by token: as for evaluation, but each layer
    /// keeps its keys and values.
    pub fn plan_for_decoding(c: &ModelConfig, maxT: usize, dtype: Dtype, plan: &mut MemoryPlan) -> Self {
        let options = ModelOptions {
            B: 1,
            T: maxT,
            min_rows: 0,
            recompute: Recompute::Gelu,
            logits_bytes: 0,
            sharding: Sharding::NONE,
        };
        let copies = Copies { layers: 1, qkv: c.L, backward: false };
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
        let rows = o.min_rows.max(o.B * o.T);
        let L = copies.layers;
        let mut add = |name, dtype, len| plan.add(arena, name, dtype, len);
        let mut per_layer = |name, dtype, width, layers| {
            let all = add(name, dtype, layers * rows * width);
            PerLayer { all, layers, width }
        };
        let (L_ln, L_gelu) = match o.recompute {
            Recompute::Nothing => (L, L),
            Recompute::Gelu => (L, 1),
            Recompute::GeluAndLayernorm => (1, 1),
        };
        let C = c.C;
        let (ln1, ln2) = (per_layer("ln1", X, C, L_ln), per_layer("ln2", X, C, L_ln));
        let (ln1_mean, ln1_rstd) =
            (per_layer("ln1_mean", Dtype::F32, 1, L), per_layer("ln1_rstd", Dtype::F32, 1, L));
        let (ln2_mean, ln2_rstd) =
            (per_layer("ln2_mean", Dtype::F32, 1, L), per_layer("ln2_rstd", Dtype::F32, 1, L));
        let qkv = per_layer("qkv", X, 3 * C, copies.qkv);
        let atty = per_layer("atty", X, C, L);
        let lse = per_layer("lse", Dtype::F32, c.NH, L);
        let (residual2, residual3) = (per_layer("residual2", X, C, L), per_layer("residual3", X, C, L));
        let fch = per_layer("fch", X, 4 * C, L);
        let fch_gelu = per_layer("fch_gelu", X, 4 * C, L_gelu);
        let backward_rows = if copies.backward { rows } else { 0 };
        let chunk = logits_rows(rows, (o.logits_bytes / (c.Vp * X.size())).max(1));
        Activations {
            rows,
            T: o.T.max(o.min_rows),
            recompute: o.recompute,
            ln1,
            ln1_mean,
            ln1_rstd,
            qkv,
            atty,
            lse,
            residual2,
            ln2,
            ln2_mean,
            ln2_rstd,
            fch,
            fch_gelu,
            residual3,
            inputs: add("inputs", Dtype::I32, rows),
            targets: add("targets", Dtype::I32, rows),
            bucket_rows: add("bucket_rows", Dtype::I32, backward_rows),
            bucket_starts: add("bucket_starts", Dtype::I32, backward_rows + 1),
            encoded: add("encoded", X, rows * C),
            lnf: add("lnf", X, rows * C),
            lnf_mean: add("lnf_mean", Dtype::F32, rows),
            lnf_rstd: add("lnf_rstd", Dtype::F32, rows),
            losses: add("losses", Dtype::F32, rows),
            logits: add("logits", X, chunk * c.Vp),
            scratch_btc: add("scratch_btc", X, backward_rows * C),
            scratch_bt4c: add("scratch_bt4c", X, backward_rows * 4 * C),
            dresidual: add("dresidual", X, backward_rows * C),
            scalars: add("scalars", Dtype::F32, 4),
        }
    }

    /// The input of layer `l`: the token embeddings, or the output of the layer below.
    pub fn block_input(&self, l: usize, shape: BatchShape, C: usize) -> Tensor {
        match l {
            0 => self.encoded.slice(0, shape.rows() * C),
            _ => self.residual3.get(l - 1, shape.rows()),
        }
    }
}
