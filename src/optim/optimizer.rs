//! The optimizer of a model: its state, and the update of each unit, segment by segment.

use super::segments::{Rule, Segment, Segments};
use crate::ops::{AdamW, Ops};
use crate::sharding::{ParamBuffer, Partition, UnitLayout};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::fmt;

/// The hyper-parameters, which are constant over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HyperParams {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Applies to matrices; vectors never decay.
    pub weight_decay: f32,
    /// Largest global gradient norm; 0 turns clipping off.
    pub grad_clip: f32,
}

impl fmt::Display for HyperParams {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let HyperParams { beta1, beta2, eps, weight_decay, grad_clip } = self;
        write!(
            f,
            "beta1 {beta1}, beta2 {beta2}, epsilon {eps}, weight decay {weight_decay}, clip {grad_clip}"
        )
    }
}

/// First and second moments and master weights, all f32 and laid out like the parameters. When
/// they are sharded, these are one rank's partition.
pub struct Optimizer {
    /// The exact result of the updates; the model's parameters are these, rounded.
    pub master: Option<ParamBuffer>,
    pub m: ParamBuffer,
    pub v: ParamBuffer,
    hyper: HyperParams,
    segments: Segments,
}

/// The values that change from update to update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub lr: f32,
    /// Gradients are multiplied by this first.
    pub grad_scale: f32,
    /// The number of the update, from 1.
    pub t: usize,
}

impl Optimizer {
    /// Plans the state of `partition`. f32 master weights are kept only when parameters, whose type
    /// is `params`, are narrower; f32 parameters need none.
    pub fn plan(
        layout: &UnitLayout,
        partition: Partition,
        params: Dtype,
        use_master_weights: bool,
        hyper: HyperParams,
        plan: &mut MemoryPlan,
    ) -> Self {
        let mut state =
            |name| ParamBuffer::plan(layout, partition, Dtype::F32, ("optimizer state", name), plan);
        let wanted = use_master_weights && params != Dtype::F32;
        let master = wanted.then(|| state("master weights"));
        let (m, v) = (state("m"), state("v"));
        Optimizer { master, m, v, hyper, segments: Segments::new(layout, hyper.weight_decay) }
    }

    pub fn hyper(&self) -> &HyperParams {
        &self.hyper
    }

    /// The partition of each unit that this updates.
    pub fn partition(&self) -> Partition {
        self.m.partition
    }

    /// The factor that brings gradients of this norm down to the clipping threshold; at most 1.
    pub fn clip_scale(&self, norm: f32) -> f32 {
        match self.hyper.grad_clip {
            clip if clip > 0.0 && norm > clip => clip / norm,
            _ => 1.0,
        }
    }

    /// Updates [`partition`](Self::partition) of a unit.
    pub fn update(
        &self,
        dev: &mut dyn Ops,
        unit: usize,
        params: &ParamBuffer,
        grads: &ParamBuffer,
        update: Update,
    ) -> Result<()> {
        let stored = self.m.layout.partition(unit, self.partition());
        let tensors = Stored {
            params: params.shard(unit, self.partition()),
            master: self.master.as_ref().map(|master| master.units()[unit]),
            m: self.m.units()[unit],
            v: self.v.units()[unit],
            grads: grads.shard(unit, self.partition()),
            first: self.m.layout.first(unit) + stored.start,
        };
        self.segments.within(unit, &stored).try_for_each(|segment| {
            let part = tensors.part(segment.range.start - stored.start, segment.range.len());
            match segment.rule {
                Rule::AdamW => self.adamw(dev, part, &segment, update),
            }
        })
    }

    fn adamw(&self, dev: &mut dyn Ops, part: Stored, segment: &Segment, update: Update) -> Result<()> {
        let HyperParams { beta1, beta2, eps, .. } = self.hyper;
        let Stored { params, master, m, v, grads, first } = part;
        dev.adamw(AdamW {
            params,
            master,
            m,
            v,
            grads,
            weight_decay: segment.weight_decay,
            lr: segment.lr_scale * update.lr,
            beta1,
            beta2,
            eps,
            grad_scale: update.grad_scale,
            t: update.t,
            // A function of the step alone, so a resumed run rounds as an uninterrupted one would.
            seed: update.t as u32,
            first: first as u64,
        })
    }
}

/// What is stored here of a run of one unit's parameters.
#[derive(Clone, Copy)]
struct Stored {
    params: Tensor,
    master: Option<Tensor>,
    m: Tensor,
    v: Tensor,
    grads: Tensor,
    /// Index of the first element among all parameters.
    first: usize,
}

impl Stored {
    /// Elements `start .. start + len` of it.
    fn part(&self, start: usize, len: usize) -> Stored {
        let part = |tensor: Tensor| tensor.slice(start, len);
        Stored {
            params: part(self.params),
            master: self.master.map(part),
            m: part(self.m),
            v: part(self.v),
            grads: part(self.grads),
            first: self.first + start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    const HYPER: HyperParams =
        HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

    fn plan(partition: Partition, params: Dtype, use_master_weights: bool, hyper: HyperParams) -> Optimizer {
        let layout = UnitLayout::new(&ModelConfig::new(8, 2, 2, 8), partition.of);
        Optimizer::plan(&layout, partition, params, use_master_weights, hyper, &mut MemoryPlan::new())
    }

    #[test]
    fn only_narrow_parameters_need_master_weights() {
        let master = |params, wanted| plan(Partition::WHOLE, params, wanted, HYPER).master.map(|m| m.dtype());
        assert_eq!(master(Dtype::Bf16, true), Some(Dtype::F32));
        assert_eq!(master(Dtype::F16, true), Some(Dtype::F32));
        assert_eq!(master(Dtype::Bf16, false), None);
        assert_eq!(master(Dtype::F32, true), None);
    }

    #[test]
    fn clipping_only_ever_shrinks() {
        let scale = |grad_clip, norm| {
            plan(Partition::WHOLE, Dtype::F32, true, HyperParams { grad_clip, ..HYPER }).clip_scale(norm)
        };
        assert_eq!(scale(1.0, 0.5), 1.0);
        assert_eq!(scale(1.0, 4.0), 0.25);
        assert_eq!(scale(0.0, 4.0), 1.0);
    }
}
