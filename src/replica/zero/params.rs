//! Parameters: all-gathered before a pass reads them, updated shard by shard.

use super::ZeroState;
use crate::ops::{Ops, Span, within};
use crate::optim::optimizer::{Optimizer, Update};
use crate::parallel::Collective;
use crate::sharding::{ParamBuffer, ZeroStage};
use anyhow::Result;

impl ZeroState {
    /// The parameters that this rank stores.
    pub fn params(&self) -> &ParamBuffer {
        &self.params.shard
    }

    /// Starts the all-gather of a unit and of what is frozen beside it, unless they are resident or
    /// being gathered.
    pub(super) fn gather(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let mut parts = self.params.full.layout.parts(unit);
        parts.try_for_each(|part| self.gather_part(dev, part))
    }

    fn gather_part(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        if self.gathered[unit] || self.params.full.layout.len(unit) == 0 {
            return Ok(());
        }
        for alias in self.params.full.aliases(unit) {
            self.await_part(dev, alias)?;
            self.gathered[alias] = false;
        }
        let (shard, full) = (&self.params.shard, &self.params.full);
        dev.copy(full.shard(unit, shard.partition), shard.units()[unit])?;
        self.start_gather(dev, unit)?;
        self.gathered[unit] = true;
        Ok(())
    }

    /// Starts the all-gather of a unit whose full tensor already holds this rank's shard.
    fn start_gather(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let full = self.params.full.units()[unit];
        self.params.pending[unit] = self.peers.start(dev, &[(Collective::AllGather, full)])?;
        Ok(())
    }

    /// Waits for the all-gathers of a unit and of what is frozen beside it, if any are pending.
    pub(super) fn await_params(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let mut parts = self.params.full.layout.parts(unit);
        parts.try_for_each(|part| self.await_part(dev, part))
    }

    pub(super) fn await_part(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let work = self.params.pending[unit].take();
        self.peers.wait(dev, work)
    }

    /// Updates this rank's partition of each unit that is trained, in the order in which the next
    /// forward pass reads the units.
    pub fn update(&mut self, dev: &mut dyn Ops, optimizer: &Optimizer, update: Update) -> Result<()> {
        let shared = self.params.shard.layout.shared_unit();
        self.update_unit(dev, optimizer, shared, update)?;
        if self.divides_matrices(optimizer) {
            return self.update_layers_together(dev, optimizer, update);
        }
        (0..shared).try_for_each(|unit| {
            within(dev, Span::Layer(unit), |dev| self.update_unit(dev, optimizer, unit, update))
        })
    }

    /// Updates this rank's partition of a unit, without other ranks.
    fn update_unit(
        &mut self,
        dev: &mut dyn Ops,
        optimizer: &Optimizer,
        unit: usize,
        update: Update,
    ) -> Result<()> {
        // Some units have nothing that is trained.
        if self.params.shard.layout.len(unit) == 0 {
            return Ok(());
        }
        // Still pending if no pass has run since the last update.
        self.await_part(dev, unit)?;
        optimizer.update(dev, unit, &self.params.shard, &self.grads.shard, update)?;
        self.updated(dev, unit)
    }

    /// Passes on that this rank's partition of a unit is updated.
    pub(super) fn updated(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        match self.sharding.stage {
            ZeroStage::Zero0 => Ok(()),
            ZeroStage::Zero1 | ZeroStage::Zero2 => self.start_gather(dev, unit),
            ZeroStage::Zero3 => {
                self.gathered[unit] = false;
                Ok(())
            }
        }
    }

    /// Forgets gathered units, after the stored parameters have changed. None may be in flight.
    pub fn forget_gathered(&mut self) {
        if self.params.is_sharded() {
            self.gathered.fill(false);
        }
    }

    /// Waits for all pending all-gathers.
    ///
    /// # Errors
    /// As [`Peers::wait`](crate::replica::peers::Peers::wait).
    pub fn finish_params(&mut self, dev: &mut dyn Ops) -> Result<()> {
        (0..self.params.pending.len()).try_for_each(|unit| self.await_part(dev, unit))
    }
}
