//! ZeRO: ranks reduce gradients, and may shard optimizer state, gradients and parameters.
//!
//! Each collective starts as soon as its unit is ready, and is waited for only where the next
//! operation needs its memory or its result.

mod grads;
mod muon;
mod params;
mod rank0;

use crate::model::GPT2;
use crate::model::hooks::{LayerHooks, Pass};
use crate::ops::Ops;
use crate::parallel::{Collective, Work};
use crate::replica::peers::Peers;
use crate::sharding::{ParamBuffer, Partition, Sharding, ZeroStage};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use rank0::STAGING_LEN;

/// Parameters and gradients of a run, and the collectives that are pending on them.
pub struct ZeroState {
    pub peers: Peers,
    sharding: Sharding,
    params: Sharded,
    /// Units whose full parameters are resident or being gathered.
    gathered: Vec<bool>,
    grads: Sharded,
    /// Units whose gradients already hold a reduced sum from an earlier micro-step.
    reduced: Vec<bool>,
    /// Whether gradients are reduced in every micro-step, not only in the last.
    reduce_every_micro_step: bool,
    /// The lowest layer of backward passes.
    lowest_trained: usize,
    /// The collective that reduces gradients in this micro-step, if any.
    reduction: Option<Collective>,
    /// A buffer that shards pass through on their way to rank 0, if anything is sharded.
    staging: Option<Tensor>,
}

/// The memory of a [`ZeroState`].
pub struct ZeroBuffers {
    sharding: Sharding,
    params: Sharded,
    grads: Sharded,
    staging: Option<Tensor>,
}

/// Parameters or gradients.
struct Sharded {
    /// The partition that this rank stores from step to step; unsharded, all of it.
    shard: ParamBuffer,
    /// The full units that passes work on: `shard` itself if unsharded, else double-buffered.
    full: ParamBuffer,
    /// The collective in flight on each unit.
    pending: Vec<Option<Work>>,
}

impl Sharded {
    fn plan(full: &ParamBuffer, partition: Partition, name: &'static str, plan: &mut MemoryPlan) -> Self {
        let shard = match partition {
            Partition::WHOLE => full.clone(),
            _ => ParamBuffer::plan(&full.layout, partition, full.dtype(), (name, name), plan),
        };
        Sharded { shard, full: full.clone(), pending: vec![None; full.layout.count_all()] }
    }

    fn is_sharded(&self) -> bool {
        self.shard.partition != Partition::WHOLE
    }
}

impl ZeroBuffers {
    /// Plans what this rank stores besides the full units that `model` works on.
    pub fn plan(sharding: Sharding, model: &GPT2, plan: &mut MemoryPlan) -> Self {
        let stored = |stage| sharding.stored(stage);
        let params = Sharded::plan(&model.weights.params, stored(ZeroStage::Zero3), "parameters", plan);
        let grads = Sharded::plan(model.grads(), stored(ZeroStage::Zero2), "gradients", plan);
        let staging = (stored(ZeroStage::Zero1) != Partition::WHOLE)
            .then(|| plan.add("communication", "staging", Dtype::F32, STAGING_LEN));
        ZeroBuffers { sharding, params, grads, staging }
    }
}

impl ZeroState {
    pub fn new(peers: Peers, buffers: ZeroBuffers, reduce_every_micro_step: bool) -> Self {
        let ZeroBuffers { sharding, params, grads, staging } = buffers;
        let units = params.full.layout.count_all();
        let (gathered, reduced) = (vec![!params.is_sharded(); units], vec![false; units]);
        ZeroState {
            peers,
            sharding,
            lowest_trained: grads.full.layout.lowest_trained(),
            params,
            gathered,
            grads,
            reduced,
            reduce_every_micro_step,
            reduction: None,
            staging,
        }
    }
}

impl LayerHooks for ZeroState {
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if pass == Pass::Backward {
            // The pass is about to overwrite the memory of their gradients.
            for alias in self.grads.full.aliases(unit) {
                self.await_grads(dev, alias)?;
            }
        }
        self.gather(dev, unit)?;
        let shared = self.params.full.layout.shared_unit();
        if (pass, unit) == (Pass::Forward, shared) {
            (0..shared.min(2)).try_for_each(|l| self.gather(dev, l))?;
        }
        self.await_params(dev, unit)
    }

    /// Prefetches the layer that takes this one's memory while the pass works on the one between.
    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if pass == Pass::Backward {
            self.reduce(dev, unit)?;
        }
        let shared = self.params.full.layout.shared_unit();
        let next = match pass {
            Pass::Forward => Some(unit + 2),
            // A backward pass ends where nothing below is trained.
            Pass::Backward => unit.checked_sub(2).filter(|&next| next >= self.lowest_trained),
        };
        match next.filter(|&next| unit < shared && next < shared) {
            Some(next) => self.gather(dev, next),
            None => Ok(()),
        }
    }
}
