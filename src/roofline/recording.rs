//! A training step as the trainer takes it, run on a [recorder](crate::recorder): nothing here
//! repeats what a step does.

use super::kernels::StepShape;
use crate::config::{DropoutRates, ModelConfig};
use crate::data::buckets::rows_by_token;
use crate::data::loader::Batch;
use crate::model::{BatchShape, ModelOptions, Weights};
use crate::optim::optimizer::{HyperParams, Muon, OptimizerKind, OptimizerOptions};
use crate::parallel::environment::Process;
use crate::params::frozen::Frozen;
use crate::recorder::{Event, Log};
use crate::replica::peers::Peers;
use crate::replica::{Replica, ReplicaOptions, ReplicaPlan};
use crate::sharding::{Partition, Sharding, ZeroStage};
use crate::tensor::{Dtype, MemoryPlan};
use crate::trace::Names;

/// The type of parameters, activations and gradients.
const X: Dtype = Dtype::Bf16;

/// Values are irrelevant: every update is one.
const HYPER: HyperParams =
    HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

const MUON: Muon = Muon { lr_ratio: 1.0, momentum: 0.95 };

/// Rank 0 of a run that trains on recorders.
pub struct Recording {
    /// The memory of the rank.
    pub memory: MemoryPlan,
    replica: Replica,
    shape: StepShape,
    log: Log,
}

impl Recording {
    /// Sets up one of `ranks`, which train together at a ZeRO stage.
    pub fn new(config: &ModelConfig, shape: &StepShape, stage: ZeroStage, ranks: usize) -> Self {
        let sharding = match ranks {
            1 => Sharding::NONE,
            of => Sharding { stage, partition: Partition { index: 0, of } },
        };
        let model = ModelOptions {
            B: shape.B,
            T: shape.T,
            min_rows: 0,
            recompute: shape.recompute,
            dropout: DropoutRates::NONE,
            logits_bytes: shape.logits_rows * config.Vp * X.size(),
            sharding,
            frozen: Frozen::default(),
        };
        let muon = (shape.optimizer == OptimizerKind::Muon).then_some(MUON);
        let options = ReplicaOptions {
            model,
            hyper: HYPER,
            optimizer: OptimizerOptions { muon, ..OptimizerOptions::default() },
            use_master_weights: true,
            decode_context: None,
        };
        let log = Log::default();
        let dev = Box::new(log.device(X));
        let peers = match ranks {
            1 => Peers::alone(),
            _ => {
                let process = Process { world_size: ranks, ..Process::ALONE };
                Peers::new(process, Box::new(log.communicator(0, ranks)))
            }
        };
        let plan = ReplicaPlan::new(*config, options, dev.as_ref()).expect("a recorder runs any shape");
        let memory = plan.memory.clone();
        let replica = plan.allocate(dev, peers, false).expect("a recorder allocates nothing");
        Recording { memory, replica, shape: *shape, log }
    }

    pub fn weights(&self) -> &Weights {
        &self.replica.model.weights
    }

    /// The names of the rank's tensors.
    pub fn names(&self) -> Names {
        let (params, stored) = (self.weights().params.clone(), self.replica.zero.params().clone());
        Names { memory: self.memory.clone(), params, stored }
    }

    /// Takes an optimizer step, and passes each of its events to `take`. Later steps begin with
    /// what earlier ones left in flight.
    pub fn step(&mut self, mut take: impl FnMut(Event)) {
        let Recording { replica, shape, log, .. } = self;
        let tokens = vec![0; shape.rows()];
        let batch = Batch {
            rows_by_token: rows_by_token(&tokens),
            inputs: tokens.clone(),
            targets: tokens,
            packed: None,
        };
        // The log never holds more than one micro-step.
        let mut drain = || log.take().into_iter().for_each(&mut take);
        let next_batch = || {
            drain();
            Ok(batch.clone())
        };
        let batch_shape = BatchShape::new(shape.B, shape.T);
        replica
            .forward_backward(next_batch, batch_shape, shape.micro_steps, shape.rows(), 1.0, || 0.0)
            .and_then(|stats| replica.update(0, 0.0, stats.norm, 1.0))
            .expect("a recorder never fails");
        drain();
    }
}
