//! What ranks share: gradients are added up, and parameters, gradients and optimizer state may be divided (ZeRO).
//!
//! Each operation is begun as soon as its unit is ready, and waited for only where the next pass needs its memory or its result.

use super::peers::Peers;
use crate::model::GPT2;
use crate::model::hooks::{LayerHooks, Pass};
use crate::ops::{Ops, download_f32};
use crate::optim::optimizer::{Optimizer, Update};
use crate::parallel::{Collective, Work};
use crate::sharding::{ParamBuffer, Partition, Sharding, ZeroStage};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::ops::Range;

/// Elements of a part that travel at a time on their way to a checkpoint.
const STAGING: usize = 1 << 16;

/// The parameters and gradients of a run, and where they are on their way to.
pub struct Sharing {
    pub peers: Peers,
    /// Whether gradients are added up in every micro-step and not just in the last one.
    sums_every_micro_step: bool,
    /// How they are in this one, if they are.
    sums: Option<Collective>,
    /// Units of whose gradients there already is a sum, of earlier micro-steps.
    summed: Vec<bool>,
    shares: Shares,
}

/// What this rank has of what is divided.
pub struct Shares {
    sharding: Sharding,
    params: Kept,
    /// Units whose parameters are where passes look for them, or on their way there.
    present: Vec<bool>,
    grads: Kept,
    /// For tensors of which each rank has a part, if there are any.
    staging: Option<Tensor>,
}

/// Parameters or gradients.
struct Kept {
    /// What this rank keeps from step to step: all or its part.
    own: ParamBuffer,
    /// What passes work on: the same, or units that take turns.
    at_hand: ParamBuffer,
    under_way: Vec<Option<Work>>,
}

impl Kept {
    fn plan(whole: &ParamBuffer, part: Partition, name: &'static str, plan: &mut MemoryPlan) -> Self {
        let (at_hand, count) = (whole.clone(), whole.units().len());
        let own = match part {
            Partition::WHOLE => whole.clone(),
            _ => ParamBuffer::plan(&whole.layout, part, whole.dtype(), (name, name), plan),
        };
        Kept { own, at_hand, under_way: vec![None; count] }
    }

    /// Units that share this one's memory, itself included.
    fn in_place_of(&self, unit: usize) -> Vec<usize> {
        let units = self.at_hand.units();
        (0..units.len()).filter(|&other| units[other] == units[unit]).collect()
    }
}

impl Shares {
    /// Adds to the plan what of `model` this rank keeps beside what its passes work on.
    pub fn plan(sharding: Sharding, model: &GPT2, plan: &mut MemoryPlan) -> Self {
        let params = Kept::plan(&model.weights.params, sharding.stored(ZeroStage::Zero3), "parameters", plan);
        let grads = Kept::plan(model.grads(), sharding.stored(ZeroStage::Zero2), "gradients", plan);
        let staging = (sharding.stored(ZeroStage::Zero1) != Partition::WHOLE)
            .then(|| plan.add("communication", "staging", Dtype::F32, STAGING));
        let present = vec![params.own.partition == Partition::WHOLE; params.under_way.len()];
        Shares { sharding, params, present, grads, staging }
    }
}

impl Sharing {
    pub fn new(peers: Peers, shares: Shares, sums_every_micro_step: bool) -> Self {
        let summed = vec![false; shares.grads.own.units().len()];
        Sharing { peers, sums_every_micro_step, sums: None, summed, shares }
    }

    /// What this rank keeps of the parameters.
    pub fn params(&self) -> &ParamBuffer {
        &self.shares.params.own
    }

    /// Says which micro-step the next backward pass belongs to. Returns whether its gradients start from zero.
    pub fn begin_micro_step(&mut self, first: bool, last: bool) -> bool {
        if first {
            self.summed.fill(false);
        }
        let stage = self.shares.sharding.stage;
        let scatters = stage >= ZeroStage::Zero2 || stage == ZeroStage::Zero1 && last;
        self.sums = match (scatters, last || self.sums_every_micro_step) {
            (true, _) => Some(Collective::ReduceScatter),
            (false, true) => Some(Collective::AllReduce),
            (false, false) => None,
        };
        // Of sums that all ranks have, one takes them along into the next sum.
        let carries = !self.sums_every_micro_step || self.peers.process.is_rank0();
        first || stage >= ZeroStage::Zero2 || !carries
    }

    /// Brings parameters of a unit to where passes look for them, if they are not on their way already.
    fn gather(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        if self.shares.present[unit] {
            return Ok(());
        }
        for other in self.shares.params.in_place_of(unit) {
            self.await_params(dev, other)?;
            self.shares.present[other] = false;
        }
        let Kept { own, at_hand, .. } = &self.shares.params;
        dev.copy(at_hand.shard(unit, own.partition), own.units()[unit])?;
        let whole = at_hand.units()[unit];
        self.shares.params.under_way[unit] = self.peers.start(dev, &[(Collective::AllGather, whole)])?;
        self.shares.present[unit] = true;
        Ok(())
    }

    fn await_params(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let ticket = self.shares.params.under_way[unit].take();
        self.peers.wait(dev, ticket)
    }

    /// Waits for the sum of a unit's gradients and keeps what is this rank's.
    fn await_grads(&mut self, dev: &mut dyn Ops, unit: usize) -> Result<()> {
        let Some(ticket) = self.shares.grads.under_way[unit].take() else { return Ok(()) };
        self.peers.wait(dev, Some(ticket))?;
        let Kept { own, at_hand, .. } = &self.shares.grads;
        if own.partition == Partition::WHOLE {
            return Ok(());
        }
        let (sum, part) = (own.units()[unit], at_hand.shard(unit, own.partition));
        match std::mem::replace(&mut self.summed[unit], true) {
            true => dev.add(sum, part),
            false => dev.copy(sum, part),
        }
    }

    /// The squared norm of all gradients, and the sums over all ranks of what is beside it: `scalars` are loss, norm and votes.
    pub fn finish_grads(&mut self, dev: &mut dyn Ops, scalars: Tensor) -> Result<()> {
        let part = self.shares.sharding.stored(ZeroStage::Zero1);
        let units = 0..self.shares.grads.own.units().len();
        units.clone().try_for_each(|unit| self.await_grads(dev, unit))?;
        let grads = &self.shares.grads.own;
        let own = match grads.partition == part {
            true => vec![grads.all()],
            false => units.map(|unit| grads.shard(unit, part)).collect(),
        };
        dev.norm_squared(scalars.slice(1, 1), &own)?;
        match part {
            // Each has the norm of everything.
            Partition::WHOLE => self.peers.sum_tensors(dev, &[scalars.slice(0, 1), scalars.slice(2, 1)]),
            _ => self.peers.sum_tensors(dev, &[scalars]),
        }
    }

    /// Updates what is this rank's, unit by unit in the order in which the next forward pass reads them.
    pub fn update(&mut self, dev: &mut dyn Ops, optimizer: &Optimizer, update: Update) -> Result<()> {
        let rest = self.shares.params.own.layout.shared_unit();
        for unit in [rest].into_iter().chain(0..rest) {
            // Of an update without a pass in between.
            self.await_params(dev, unit)?;
            optimizer.update(dev, unit, &self.shares.params.own, &self.shares.grads.own, update)?;
            match self.shares.sharding.stage {
                ZeroStage::Zero0 => {}
                ZeroStage::Zero1 | ZeroStage::Zero2 => {
                    let whole = self.shares.params.own.units()[unit];
                    self.shares.params.under_way[unit] =
                        self.peers.start(dev, &[(Collective::AllGather, whole)])?;
                }
                ZeroStage::Zero3 => self.shares.present[unit] = false,
            }
        }
        Ok(())
    }

    /// Waits for parameters under way.
    ///
    /// # Errors
    /// As [`Peers::wait`].
    pub fn finish_params(&mut self, dev: &mut dyn Ops) -> Result<()> {
        (0..self.shares.params.under_way.len()).try_for_each(|unit| self.await_params(dev, unit))
    }

    /// Does on the master something that takes passes; who else has a part of the parameters goes along with each of them.
    ///
    /// # Errors
    /// Those of `passes`, and as [`Peers::wait`].
    pub fn passes_of_the_master(
        &mut self,
        dev: &mut dyn Ops,
        model: &GPT2,
        passes: impl FnOnce(&mut dyn Ops, &mut dyn LayerHooks) -> Result<()>,
    ) -> Result<()> {
        let divided = self.shares.params.own.partition != Partition::WHOLE;
        if self.peers.process.is_rank0() {
            let result = passes(dev, &mut Leader { sharing: self, model, divided });
            let end = if divided { self.peers.sum(dev, model, &mut [0.0]) } else { Ok(()) };
            return result.and(end);
        }
        if !divided {
            return Ok(());
        }
        loop {
            let mut another = [0.0];
            self.peers.sum(dev, model, &mut another)?;
            if another == [0.0] {
                return Ok(());
            }
            model.participate(dev, self)?;
        }
    }

    /// Elements of `tensors` from `start` on, in the order of files, to the host of the master. All ranks call it alike.
    ///
    /// # Errors
    /// As [`Peers::wait`].
    pub fn download(
        &mut self,
        dev: &mut dyn Ops,
        tensors: &ParamBuffer,
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let mut rest = out;
        for (unit, range) in tensors.layout.pieces(start..start + rest.len()) {
            let piece;
            (piece, rest) = rest.split_at_mut(range.len());
            if tensors.partition == Partition::WHOLE {
                if self.peers.process.is_rank0() {
                    download_f32(dev, piece, tensors.units()[unit].slice(range.start, range.len()))?;
                }
                continue;
            }
            for index in 0..tensors.partition.of {
                let theirs = tensors.layout.overlap(unit, Partition { index, ..tensors.partition }, &range);
                for at in theirs.clone().step_by(STAGING) {
                    let here = at..theirs.end.min(at + STAGING);
                    let out = &mut piece[here.start - range.start..here.end - range.start];
                    self.receive(dev, tensors, (unit, here), index, out)?;
                }
            }
        }
        Ok(())
    }

    /// Elements of a unit that one rank has.
    fn receive(
        &mut self,
        dev: &mut dyn Ops,
        tensors: &ParamBuffer,
        (unit, range): (usize, Range<usize>),
        root: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let staging = self.shares.staging.expect("planned where anything is divided");
        let staging = Tensor { len: range.len(), dtype: tensors.dtype(), ..staging };
        if let Some((_, own)) = tensors.overlap(unit, range) {
            dev.copy(staging, own)?;
        }
        // All get what the master needs alone: checkpoints are rare, and links of GPUs fast beside the disk.
        let ticket = self.peers.start(dev, &[(Collective::Broadcast { root }, staging)])?;
        self.peers.wait(dev, ticket)?;
        if self.peers.process.is_rank0() { download_f32(dev, out, staging) } else { Ok(()) }
    }
}

impl LayerHooks for Sharing {
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if pass == Pass::Backward {
            // Their memory is about to be written.
            for other in self.shares.grads.in_place_of(unit) {
                self.await_grads(dev, other)?;
            }
        }
        self.gather(dev, unit)?;
        let rest = self.shares.params.own.layout.shared_unit();
        if (pass, unit) == (Pass::Forward, rest) {
            (0..rest.min(2)).try_for_each(|l| self.gather(dev, l))?;
        }
        self.await_params(dev, unit)
    }

    /// What takes a layer's place is on its way while the next layer is worked on.
    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if let (Pass::Backward, Some(collective)) = (pass, self.sums) {
            let whole = self.shares.grads.at_hand.units()[unit];
            self.shares.grads.under_way[unit] = self.peers.start(dev, &[(collective, whole)])?;
        }
        let rest = self.shares.params.own.layout.shared_unit();
        let next = match pass {
            Pass::Forward => unit + 2,
            Pass::Backward => unit.wrapping_sub(2),
        };
        if unit < rest && next < rest { self.gather(dev, next) } else { Ok(()) }
    }
}

/// The master in passes of its own, before each of which it calls those who go along.
struct Leader<'a> {
    sharing: &'a mut Sharing,
    model: &'a GPT2,
    divided: bool,
}

impl LayerHooks for Leader<'_> {
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if self.divided && unit == self.model.weights.params.layout.shared_unit() {
            self.sharing.peers.sum(dev, self.model, &mut [1.0])?;
        }
        self.sharing.before(dev, pass, unit)
    }

    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        self.sharing.after(dev, pass, unit)
    }
}
