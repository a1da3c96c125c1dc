//! GPT-2, written once over [`Ops`]: [`forward`], [`backward`], and [`decode`] for
//! sampling.
//!
//! The model knows no rank, file or vendor: where ranks shard parameters, its [`hooks`] gather
//! those that a pass is about to read. It plans its memory into a [`MemoryPlan`], and from then on
//! each step is a fixed list of operations on fixed buffers.

pub mod activations;
pub mod backward;
pub mod decode;
pub mod dropout;
pub mod forward;
pub mod hooks;
pub mod init;
mod lora;

use crate::config::{DropoutRates, ModelConfig};
use crate::ops::{Limits, Ops, upload_f32};
use crate::params::Param;
use crate::params::frozen::Frozen;
use crate::sharding::{ParamBuffer, Partition, Sharding, UnitLayout, ZeroStage};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use activations::{Activations, Recompute};
use anyhow::Result;

/// The parameters of a model on a device, in full, as passes read them.
#[derive(Clone, Debug)]
pub struct Weights {
    pub config: ModelConfig,
    pub params: ParamBuffer,
    /// The parameters that no step changes.
    pub frozen: Frozen,
}

impl Weights {
    pub fn plan(
        config: &ModelConfig,
        dtype: Dtype,
        sharding: Sharding,
        frozen: &Frozen,
        plan: &mut MemoryPlan,
    ) -> Self {
        let layout = UnitLayout::with_frozen(config, sharding.partition.of, frozen);
        let sharded = sharding.stage >= ZeroStage::Zero3;
        let params = plan_units(&layout, dtype, sharded, PARAMETERS, plan);
        Weights { config: *config, params, frozen: frozen.clone() }
    }

    /// Layer `l` of a parameter; 0 for those that exist once.
    pub fn get(&self, param: Param, l: usize) -> Tensor {
        self.params.get(param, l)
    }

    /// The epilogue of the query-key-value projection: its bias, if the model has one.
    pub fn qkv_epilogue(&self, l: usize) -> crate::ops::Epilogue {
        match self.config.qkv_bias {
            true => crate::ops::Epilogue::Bias { bias: self.get(Param::Qkvb, l) },
            false => crate::ops::Epilogue::None,
        }
    }
}

/// Arenas of stored tensors, and of those that are resident only while a pass uses them.
const PARAMETERS: [&str; 2] = ["parameters", "gathered parameters"];
const GRADIENTS: [&str; 2] = ["gradients", "full gradients"];

/// Plans full units: all of them, or, if ranks shard them, as many as a pass needs at a time.
fn plan_units(
    layout: &UnitLayout,
    dtype: Dtype,
    sharded: bool,
    [stored, resident]: [&'static str; 2],
    plan: &mut MemoryPlan,
) -> ParamBuffer {
    match sharded {
        true => ParamBuffer::plan_double_buffered(layout, dtype, (resident, resident), plan),
        false => ParamBuffer::plan(layout, Partition::WHOLE, dtype, (stored, stored), plan),
    }
}

/// The options that, with the shape of the model, fix the buffers of a [`GPT2`].
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Sequences and tokens of a training batch.
    pub B: usize,
    pub T: usize,
    /// The least number of rows (tokens) the buffers hold, for evaluation batches of other shapes.
    pub min_rows: usize,
    pub recompute: Recompute,
    /// Dropout of the passes that train.
    pub dropout: DropoutRates,
    /// Logits are computed and consumed in chunks of rows that take at most this much memory.
    pub logits_bytes: usize,
    pub sharding: Sharding,
    /// The parameters that are not trained, which have no gradients.
    pub frozen: Frozen,
}

/// A model with the activations, and for training the gradients, of one micro-batch.
#[derive(Clone, Debug)]
pub struct GPT2 {
    pub weights: Weights,
    /// Gradients of all units, or, if sharded, of those that a pass is working on.
    pub grads: Option<ParamBuffer>,
    /// Gradients that an operation computes though nobody wants them, as their parameters are
    /// frozen: overwritten all the time.
    unwanted: Option<Tensor>,
    pub acts: Activations,
}

/// The micro-batch in the buffers: B sequences of T tokens, possibly fewer rows than were planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    pub B: usize,
    pub T: usize,
    /// Whether the sequences are packed documents, whose positions are in the buffers.
    pub packed: bool,
}

impl BatchShape {
    /// Sequences that are one document each.
    pub const fn new(B: usize, T: usize) -> Self {
        BatchShape { B, T, packed: false }
    }

    pub fn rows(&self) -> usize {
        self.B * self.T
    }
}

impl GPT2 {
    /// Plans a model to train: parameters, gradients, activations.
    pub fn plan(config: &ModelConfig, options: &ModelOptions, dtype: Dtype, plan: &mut MemoryPlan) -> Self {
        let weights = Weights::plan(config, dtype, options.sharding, &options.frozen, plan);
        let sharded = options.sharding.stage >= ZeroStage::Zero2;
        let grads = plan_units(&weights.params.layout.trained(), dtype, sharded, GRADIENTS, plan);
        let unwanted = backward::unwanted_len(config, &options.frozen);
        let unwanted = (unwanted > 0).then(|| plan.add(GRADIENTS[1], "unwanted", dtype, unwanted));
        let acts = Activations::plan(config, options, dtype, plan);
        GPT2 { weights, grads: Some(grads), unwanted, acts }
    }

    /// Plans a model that only evaluates: its layers share one set of buffers.
    pub fn plan_for_evaluation(
        config: &ModelConfig,
        options: &ModelOptions,
        dtype: Dtype,
        plan: &mut MemoryPlan,
    ) -> Self {
        let weights = Weights::plan(config, dtype, options.sharding, &options.frozen, plan);
        let acts = Activations::plan_for_evaluation(config, options, dtype, plan);
        GPT2 { weights, grads: None, unwanted: None, acts }
    }

    /// The sizes of the largest operations that this model asks of a device.
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

    /// Uploads a batch for the forward and backward passes.
    ///
    /// # Panics
    /// If it has more rows than the buffers, sequences longer than the position embedding, or
    /// slices that are not B*T long.
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
            "a batch of {} x {} tokens does not fit",
            shape.B,
            shape.T
        );
        assert_eq!((inputs.len(), targets.len()), (rows, rows));
        dev.upload(self.acts.inputs.slice(0, rows), bytemuck::cast_slice(inputs))?;
        dev.upload(self.acts.targets.slice(0, rows), bytemuck::cast_slice(targets))
    }

    /// Uploads the batch's rows sorted by token (see
    /// [`EncoderBackward`](crate::ops::EncoderBackward)) for the backward pass.
    pub fn load_rows_by_token(&self, dev: &mut dyn Ops, rows: &[i32]) -> Result<()> {
        dev.upload(self.acts.rows_by_token.slice(0, rows.len()), bytemuck::cast_slice(rows))
    }

    /// Uploads the positions of the batch's rows in their documents, for passes of packed
    /// documents.
    pub fn load_positions(&self, dev: &mut dyn Ops, positions: &[i32]) -> Result<()> {
        dev.upload(self.acts.positions.slice(0, positions.len()), bytemuck::cast_slice(positions))
    }

    /// Uploads the rows sorted by position, for the backward pass of packed documents.
    pub fn load_rows_by_position(&self, dev: &mut dyn Ops, rows: &[i32]) -> Result<()> {
        dev.upload(self.acts.rows_by_position.slice(0, rows.len()), bytemuck::cast_slice(rows))
    }

    /// Uploads the weight of one row's loss in the loss of the step, 1 / (rows of the step that
    /// count) times the loss scale, for the backward passes of the step.
    pub fn load_dloss(&self, dev: &mut dyn Ops, dloss: f32) -> Result<()> {
        upload_f32(dev, self.dloss(), &[dloss])
    }

    fn dloss(&self) -> Tensor {
        self.acts.scalars.slice(3, 1)
    }
}
