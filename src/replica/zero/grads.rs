//! Gradients: all-reduced or reduce-scattered unit by unit, as backward completes them.

use super::ZeroState;
use crate::ops::Ops;
use crate::parallel::Collective;
use crate::sharding::{ParamBuffer, Partition, ZeroStage};
use crate::tensor::Tensor;
use anyhow::Result;

impl ZeroState {
    /// The gradients that this rank stores.
    pub fn grads(&self) -> &ParamBuffer {
        &self.grads.shard
    }

    /// Prepares for the backward pass of a micro-step. Returns whether its gradients start from
    /// zero.
    pub fn begin_micro_step(&mut self, first: bool, last: bool) -> bool {
        if first {
            self.reduced.fill(false);
        }
        let stage = self.sharding.stage;
        let scatters = stage >= ZeroStage::Zero2 || stage == ZeroStage::Zero1 && last;
        self.reduction = match (scatters, last || self.reduce_every_micro_step) {
            (true, _) => Some(Collective::ReduceScatter),
            (false, true) => Some(Collective::AllReduce),
            (false, false) => None,
        };
        // After an all-reduce every rank holds the sum. Only rank 0 carries it into the next one;
        // otherwise it would be counted once per rank.
        let carries = !self.reduce_every_micro_step || self.peers.process.is_rank0();
        first || stage >= ZeroStage::Zero2 || !carries
    }

    /// Whether the passes of this micro-step start collectives or wait for some.
    pub fn communicates(&self) -> bool {
        let pending = self.params.pending.iter().chain(&self.grads.pending).any(Option::is_some);
        !self.peers.is_alone() && (self.reduction.is_some() || self.params.is_sharded() || pending)
    }

    /// Starts the reduction of a unit's gradients, if this micro-step reduces them.
    pub(super) fn reduce(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let full = self.grads.full.units()[unit];
        if let Some(collective) = self.reduction.filter(|_| full.len > 0) {
            self.grads.pending[unit] = self.peers.start(dev, &[(collective, full)])?;
        }
        Ok(())
    }

    /// Waits for the reduction of a unit's gradients, if one is pending, and stores this rank's
    /// shard.
    pub(super) fn await_grads(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let Some(work) = self.grads.pending[unit].take() else { return Ok(()) };
        self.peers.wait(dev, Some(work))?;
        if !self.grads.is_sharded() {
            return Ok(());
        }
        let (shard, full) = (&self.grads.shard, &self.grads.full);
        let (sum, addend) = (shard.units()[unit], full.shard(unit, shard.partition));
        match std::mem::replace(&mut self.reduced[unit], true) {
            true => dev.add(sum, addend),
            false => dev.copy(sum, addend),
        }
    }

    /// Computes the squared norm of all gradients, and reduces it with the loss and the votes to
    /// stop: `scalars` are loss, squared norm, votes.
    pub fn finish_grads(&mut self, dev: &mut dyn Ops, scalars: Tensor) -> Result<()> {
        let units = 0..self.grads.pending.len();
        units.clone().try_for_each(|unit| self.await_grads(dev, unit))?;
        let (grads, partition) = (&self.grads.shard, self.sharding.stored(ZeroStage::Zero1));
        let shards = match grads.partition == partition {
            true => vec![grads.all()],
            false => units.map(|unit| grads.shard(unit, partition)).filter(|shard| shard.len > 0).collect(),
        };
        dev.norm_squared(scalars.slice(1, 1), &shards)?;
        match partition {
            // Every rank already has the norm of all gradients.
            Partition::WHOLE => self.peers.all_reduce(dev, &[scalars.slice(0, 1), scalars.slice(2, 1)]),
            _ => self.peers.all_reduce(dev, &[scalars]),
        }
    }
}
