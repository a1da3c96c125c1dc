//! The part of a run that lives on a device: one rank's model, gradients and optimizer state, and
//! the training step. It knows no flag and no file; [`crate::train`] makes a run of it.

pub mod peers;
pub mod step;
pub mod zero;

use crate::config::ModelConfig;
use crate::model::decode::Decoder;
use crate::model::{GPT2, ModelOptions, init};
use crate::ops::{Ops, plan_scratch};
use crate::optim::optimizer::{HyperParams, Optimizer, OptimizerOptions};
use crate::sharding::{ParamBuffer, ZeroStage};
use crate::tensor::MemoryPlan;
use anyhow::Result;
use peers::Peers;
use zero::{ZeroBuffers, ZeroState};

/// GPU memory that is not ours to plan: the driver's, the kernels', a library's.
pub const RESERVED_BYTES: usize = 1 << 30;

/// The options that, with the shape of the model, fix the memory of a [`Replica`].
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    pub model: ModelOptions,
    pub hyper: HyperParams,
    pub optimizer: OptimizerOptions,
    pub use_master_weights: bool,
    /// Positions in the cache of the decoder; `None` if no samples are drawn.
    pub decode_context: Option<usize>,
}

/// A [`Replica`] whose memory is not yet allocated.
pub struct ReplicaPlan {
    pub config: ModelConfig,
    pub options: ReplicaOptions,
    pub memory: MemoryPlan,
    pub model: GPT2,
    buffers: ZeroBuffers,
    pub optimizer: Optimizer,
    decoder: Option<Decoder>,
}

/// The memory that a sequence takes, and the largest batch that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeeds {
    pub sequence_bytes: usize,
    /// `None` if the size of the device's memory is not known.
    pub max_batch_size: Option<usize>,
}

/// One rank's device, the model on it and the state of its optimizer.
pub struct Replica {
    // Dropped before the device, in whose memory collectives may be pending.
    pub zero: ZeroState,
    pub dev: Box<dyn Ops>,
    pub model: GPT2,
    pub optimizer: Optimizer,
    pub decoder: Option<Decoder>,
    /// The key of the masks of the next step; without one, nothing is dropped.
    pub dropout_key: Option<[u32; 2]>,
}

impl ReplicaPlan {
    /// Plans everything that takes memory on the device.
    ///
    /// # Errors
    /// If the device cannot run a model of this shape.
    pub fn new(config: ModelConfig, options: ReplicaOptions, dev: &dyn Ops) -> Result<Self> {
        let mut memory = MemoryPlan::new();
        let (dtype, sharding) = (dev.float_dtype(), options.model.sharding);
        let model = GPT2::plan(&config, &options.model, dtype, &mut memory);
        let buffers = ZeroBuffers::plan(sharding, &model, &mut memory);
        let optimizer = Optimizer::plan(
            &model.weights.params.layout.trained(),
            sharding.stored(ZeroStage::Zero1),
            dtype,
            options.use_master_weights,
            (options.hyper, options.optimizer.clone()),
            &mut memory,
        );
        let context = options.decode_context;
        let decoder = context.map(|context| Decoder::plan(&model.weights, context, &mut memory));
        let limits: Vec<_> =
            [model.limits()].into_iter().chain(decoder.as_ref().map(Decoder::limits)).collect();
        plan_scratch(dev, &limits, &mut memory)?;
        Ok(ReplicaPlan { config, options, memory, model, buffers, optimizer, decoder })
    }

    /// Plans the same with micro-batches of B sequences.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_batch(&self, B: usize, dev: &dyn Ops) -> Result<Self> {
        let model = ModelOptions { B, ..self.options.model.clone() };
        Self::new(self.config, ReplicaOptions { model, ..self.options.clone() }, dev)
    }

    /// Measures the memory that one more sequence per batch takes, by planning for it, and from
    /// that the largest batch that fits.
    pub fn memory_needs(&self, dev: &dyn Ops) -> Result<MemoryNeeds> {
        let model = &self.options.model;
        // A batch that fills the buffers, which may be planned for longer questions.
        let B = model.B.max(model.min_rows.div_ceil(model.T));
        let bytes = |B: usize| self.with_batch(B, dev).map(|plan| plan.memory.size_bytes());
        let (at_B, one_more) = (bytes(B)?, bytes(B + 1)?);
        let sequence_bytes = one_more - at_B;
        let room = dev.gpu().map(|gpu| gpu.memory_bytes.saturating_sub(RESERVED_BYTES));
        let fits = |room: usize| (room + B * sequence_bytes).saturating_sub(at_B) / sequence_bytes.max(1);
        Ok(MemoryNeeds { sequence_bytes, max_batch_size: room.map(fits) })
    }

    /// Allocates the planned memory on `dev`.
    ///
    /// # Errors
    /// If memory is short.
    pub fn allocate(
        self,
        mut dev: Box<dyn Ops>,
        peers: Peers,
        reduce_every_micro_step: bool,
    ) -> Result<Replica> {
        dev.allocate(&self.memory)?;
        let ReplicaPlan { model, optimizer, decoder, .. } = self;
        let zero = ZeroState::new(peers, self.buffers, reduce_every_micro_step);
        Ok(Replica { zero, dev, model, optimizer, decoder, dropout_key: None })
    }
}

/// The parameters that this rank stores, and their master weights, if any.
fn copies<'a>(zero: &'a ZeroState, optimizer: &'a Optimizer) -> Vec<&'a ParamBuffer> {
    [zero.params()].into_iter().chain(&optimizer.master).collect()
}

impl Replica {
    /// Initializes the parameters from `seed`.
    pub fn initialize(&mut self, seed: u32) -> Result<()> {
        let copies = copies(&self.zero, &self.optimizer);
        init::initialize(self.dev.as_mut(), &self.model.weights.config, &copies, seed)
    }

    /// Initializes the adapters from `seed`, if there are any.
    pub fn initialize_adapters(&mut self, seed: u32) -> Result<()> {
        let copies = copies(&self.zero, &self.optimizer);
        init::initialize_adapters(self.dev.as_mut(), &self.model.weights.config, &copies, seed)
    }

    /// Fills the parameters with the values of a model file, and, where they follow, the adapters.
    pub fn load(&mut self, params: &[f32]) -> Result<()> {
        let copies = copies(&self.zero, &self.optimizer);
        copies.iter().try_for_each(|copy| copy.upload(self.dev.as_mut(), 0, params))
    }

    /// Waits for pending all-gathers of parameters.
    ///
    /// # Errors
    /// As [`Peers::wait`].
    pub fn finish_params(&mut self) -> Result<()> {
        self.zero.finish_params(self.dev.as_mut())
    }

    /// Sums numbers on the host over all ranks.
    ///
    /// # Errors
    /// As [`Peers::wait`].
    pub fn sum_over_ranks(&mut self, values: &mut [f32]) -> Result<()> {
        self.zero.peers.sum(self.dev.as_mut(), &self.model, values)
    }
}
