//! GPT-2, written once over [`Ops`](crate::ops::Ops): [`forward`], [`backward`], and [`decode`] for sampling.
//!
//! The model knows no rank, file or vendor: where ranks share parameters out, a [`keeper`] fetches what a pass is about to read.
//! It plans its memory into a [`MemoryPlan`](crate::tensor::MemoryPlan), and from then on each step is a fixed list of
//! operations on fixed buffers.

pub mod activations;
pub mod backward;
pub mod decode;
pub mod forward;
pub mod init;
pub mod keeper;

use crate::config::ModelConfig;
use crate::ops::{Limits, Ops, TokenBuckets};
use crate::params::Param;
use crate::sharding::{ParamBuffer, Partition, Sharding, UnitLayout, ZeroStage};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use activations::{Activations, Recompute};
use anyhow::Result;

/// The parameters of a model on a device, as passes read them.
#[derive(Clone, Debug)]
pub struct Weights {
    pub config: ModelConfig,
    pub params: ParamBuffer,
}

impl Weights {
    pub fn plan(config: &ModelConfig, dtype: Dtype, sharding: Sharding, plan: &mut MemoryPlan) -> Self {
        let layout = UnitLayout::new(config, sharding.partition.of);
        Weights {
            config: *config,
            params: plan_units(&layout, dtype, sharding.stage >= ZeroStage::Zero3, PARAMETERS, plan),
        }
    }

    /// Layer `l` of a parameter; 0 for those that exist once.
    pub fn get(&self, param: Param, l: usize) -> Tensor {
        self.params.get(param, l)
    }

    /// The bias of the query-key-value projection, where the model has one.
    pub fn qkv_epilogue(&self, l: usize) -> crate::ops::Epilogue {
        match self.config.qkv_bias {
            true => crate::ops::Epilogue::Bias { bias: self.get(Param::Qkvb, l) },
            false => crate::ops::Epilogue::None,
        }
    }
}

/// Arenas: of what is kept, and of what is whole only while a pass is at it.
const PARAMETERS: [&str; 2] = ["parameters", "parameters at hand"];
const GRADIENTS: [&str; 2] = ["gradients", "gradients at hand"];

/// Whole units: all of them, or, if each rank keeps a part of them only, as many as passes need at a time.
fn plan_units(
    layout: &UnitLayout,
    dtype: Dtype,
    divided: bool,
    [kept, at_hand]: [&'static str; 2],
    plan: &mut MemoryPlan,
) -> ParamBuffer {
    match divided {
        true => ParamBuffer::plan_double_buffered(layout, dtype, (at_hand, at_hand), plan),
        false => ParamBuffer::plan(layout, Partition::WHOLE, dtype, (kept, kept), plan),
    }
}

/// What fixes the buffers of a [`GPT2`] besides its shape.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions {
    /// Sequences and tokens of a training batch.
    pub B: usize,
    pub T: usize,
    /// Rows (tokens) the buffers must hold at least, for evaluation batches of other shapes.
    pub min_rows: usize,
    pub recompute: Recompute,
    /// Logits are computed and consumed by chunks of rows that take no more than this.
    pub logits_bytes: usize,
    pub sharding: Sharding,
}

/// A model with the activations, and for training the gradients, of one micro-batch.
#[derive(Clone, Debug)]
pub struct GPT2 {
    pub weights: Weights,
    /// Of all units, or, like the parameters, of those that a pass is at.
    pub grads: Option<ParamBuffer>,
    pub acts: Activations,
}

/// Rows of the micro-batch in the buffers: B sequences of T tokens, which may be fewer than was planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    pub B: usize,
    pub T: usize,
}

impl BatchShape {
    pub fn rows(&self) -> usize {
        self.B * self.T
    }
}

impl GPT2 {
    /// A model to train: parameters, gradients, activations.
    pub fn plan(config: &ModelConfig, options: &ModelOptions, dtype: Dtype, plan: &mut MemoryPlan) -> Self {
        let weights = Weights::plan(config, dtype, options.sharding, plan);
        let divided = options.sharding.stage >= ZeroStage::Zero2;
        let grads = plan_units(&weights.params.layout, dtype, divided, GRADIENTS, plan);
        let acts = Activations::plan(config, options, dtype, plan);
        GPT2 { weights, grads: Some(grads), acts }
    }

    /// A model that only evaluates: its layers share one set of buffers.
    pub fn plan_for_evaluation(
        config: &ModelConfig,
        options: &ModelOptions,
        dtype: Dtype,
        plan: &mut MemoryPlan,
    ) -> Self {
        let weights = Weights::plan(config, dtype, options.sharding, plan);
        let acts = Activations::plan_for_evaluation(config, options, dtype, plan);
        GPT2 { weights, grads: None, acts }
    }

    /// The largest operations that this model asks of a device.
    pub fn limits(&self) -> Limits {
        let c = &self.weights.config;
        Limits {
            rows: self.acts.rows,
            logits_rows: self.acts.logits.len / c.Vp,
            T: self.acts.T,
            C: c.C,
            NH: c.NH,
            V: c.V,
            Vp: c.Vp,
            norm_pieces: self.weights.params.layout.count(),
        }
    }

    /// Puts a batch where the forward and backward pass look for it.
    ///
    /// # Panics
    /// If it is larger than what the buffers are for, longer than the position embedding, or not B*T long.
    pub fn load_batch(
        &self,
        dev: &mut dyn Ops,
        shape: BatchShape,
        inputs: &[i32],
        targets: &[i32],
    ) -> Result<()> {
        let rows = shape.rows();
        assert!(
            rows <= self.acts.rows && shape.T <= self.acts.T.min(self.weights.config.maxT),
            "batch {shape:?} does not fit"
        );
        assert_eq!((inputs.len(), targets.len()), (rows, rows));
        dev.upload(self.acts.inputs.slice(0, rows), bytemuck::cast_slice(inputs))?;
        dev.upload(self.acts.targets.slice(0, rows), bytemuck::cast_slice(targets))
    }

    /// Puts the rows of the batch grouped by token (see [`TokenBuckets`]) where the backward pass looks for them.
    pub fn load_buckets(&self, dev: &mut dyn Ops, rows: &[i32], starts: &[i32]) -> Result<TokenBuckets> {
        let a = &self.acts;
        dev.upload(a.bucket_rows.slice(0, rows.len()), bytemuck::cast_slice(rows))?;
        dev.upload(a.bucket_starts.slice(0, starts.len()), bytemuck::cast_slice(starts))?;
        Ok(TokenBuckets { rows: a.bucket_rows, starts: a.bucket_starts, count: starts.len() - 1 })
    }
}
