//! GPT-2, written once over [`Ops`](crate::ops::Ops): [`forward`], [`backward`], and [`decode`] for sampling.
//!
//! The model knows no rank, file or vendor. It plans its memory into a [`MemoryPlan`](crate::tensor::MemoryPlan), and from
//! then on each step is a fixed list of operations on fixed buffers.
#![allow(non_snake_case)]

pub mod activations;
pub mod backward;
pub mod decode;
pub mod forward;
pub mod init;

use crate::config::ModelConfig;
use crate::ops::{Limits, Ops, TokenBuckets};
use crate::params::{Param, ParamLayout};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use activations::{Activations, Recompute};
use anyhow::Result;

/// The parameters of a model on a device.
#[derive(Clone, Debug)]
pub struct Weights {
    pub config: ModelConfig,
    pub layout: ParamLayout,
    pub all: Tensor,
}

impl Weights {
    pub fn plan(config: &ModelConfig, dtype: Dtype, plan: &mut MemoryPlan) -> Self {
        let layout = ParamLayout::new(config);
        let all = plan.add("parameters", "parameters", dtype, layout.len());
        Weights { config: *config, layout, all }
    }

    /// Layer `l` of a parameter; 0 for those that exist once.
    pub fn get(&self, param: Param, l: usize) -> Tensor {
        self.layout.layer(self.all, param, l)
    }

    /// The bias of the query-key-value projection, where the model has one.
    pub fn qkv_epilogue(&self, l: usize) -> crate::ops::Epilogue {
        match self.config.qkv_bias {
            true => crate::ops::Epilogue::Bias { bias: self.get(Param::Qkvb, l) },
            false => crate::ops::Epilogue::None,
        }
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
}

/// A model with the activations, and for training the gradients, of one micro-batch.
#[derive(Clone, Debug)]
pub struct GPT2 {
    pub weights: Weights,
    /// Same layout as the parameters.
    pub grads: Option<Tensor>,
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
        let weights = Weights::plan(config, dtype, plan);
        let grads = plan.add("gradients", "gradients", dtype, weights.layout.len());
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
        let weights = Weights::plan(config, dtype, plan);
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
            num_parameters: self.weights.layout.len(),
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
