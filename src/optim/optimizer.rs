//! AdamW over a model: its moments, which parameters decay, and the fixed hyper-parameters.

use crate::ops::{AdamW, Ops};
use crate::tensor::{Dtype, MemoryPlan};
use crate::units::{Part, PerParam, UnitLayout};
use anyhow::Result;

/// What stays the same from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HyperParams {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Of matrices; vectors never decay.
    pub weight_decay: f32,
    /// Largest global gradient norm; 0 turns clipping off.
    pub grad_clip: f32,
}

/// First and second moments, master weights (all f32, laid out like the parameters), and how to use them. Of a run that divides
/// them among ranks, one rank's part.
pub struct Optimizer {
    /// The parameters as the steps left them; those of the model are their rounded image.
    pub master: Option<PerParam>,
    pub m: PerParam,
    pub v: PerParam,
    hyper: HyperParams,
}

/// What changes from update to update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub lr: f32,
    /// What gradients are multiplied by first.
    pub grad_scale: f32,
    /// The number of the update, from 1.
    pub t: usize,
}

impl Optimizer {
    /// `params` is the type of the model's parameters. Master weights are kept beside those only if they are narrower than f32: f32 parameters
    /// are their own.
    pub fn plan(
        layout: &UnitLayout,
        part: Part,
        params: Dtype,
        use_master_weights: bool,
        hyper: HyperParams,
        plan: &mut MemoryPlan,
    ) -> Self {
        let mut state = |name| PerParam::plan(layout, part, Dtype::F32, ("optimizer state", name), plan);
        let wanted = use_master_weights && params != Dtype::F32;
        let master = wanted.then(|| state("master weights"));
        let (m, v) = (state("m"), state("v"));
        Optimizer { master, m, v, hyper }
    }

    pub fn hyper(&self) -> &HyperParams {
        &self.hyper
    }

    /// The part of each unit that this updates.
    pub fn part(&self) -> Part {
        self.m.part
    }

    /// What to multiply gradients of this norm by so that their norm is at most the clip.
    pub fn clip_scale(&self, norm: f32) -> f32 {
        match self.hyper.grad_clip {
            clip if clip > 0.0 && norm > clip => clip / norm,
            _ => 1.0,
        }
    }

    /// Updates a unit, or what of it is [ours](Self::part).
    pub fn update(
        &self,
        dev: &mut dyn Ops,
        unit: usize,
        params: &PerParam,
        grads: &PerParam,
        update: Update,
    ) -> Result<()> {
        let (layout, hyper) = (&self.m.layout, &self.hyper);
        let range = layout.part(unit, self.part());
        dev.adamw(AdamW {
            params: params.part_of(unit, self.part()),
            master: self.master.as_ref().map(|master| master.units()[unit]),
            m: self.m.units()[unit],
            v: self.v.units()[unit],
            grads: grads.part_of(unit, self.part()),
            decayed: layout.matrices(unit).saturating_sub(range.start).min(range.len()),
            weight_decay: hyper.weight_decay,
            lr: update.lr,
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            grad_scale: update.grad_scale,
            t: update.t,
            // Of the step alone, so that a resumed run rounds as one that never stopped.
            seed: update.t as u32,
            first: (layout.first(unit) + range.start) as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    const HYPER: HyperParams =
        HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

    fn plan(part: Part, params: Dtype, use_master_weights: bool, hyper: HyperParams) -> Optimizer {
        let layout = UnitLayout::new(&ModelConfig::new(8, 2, 2, 8), part.of);
        Optimizer::plan(&layout, part, params, use_master_weights, hyper, &mut MemoryPlan::new())
    }

    #[test]
    fn only_narrow_parameters_need_master_weights() {
        let master = |params, wanted| plan(Part::WHOLE, params, wanted, HYPER).master.map(|m| m.dtype());
        assert_eq!(master(Dtype::Bf16, true), Some(Dtype::F32));
        assert_eq!(master(Dtype::F16, true), Some(Dtype::F32));
        assert_eq!(master(Dtype::Bf16, false), None);
        assert_eq!(master(Dtype::F32, true), None);
    }

    #[test]
    fn clipping_only_ever_shrinks() {
        let scale = |grad_clip, norm| {
            plan(Part::WHOLE, Dtype::F32, true, HyperParams { grad_clip, ..HYPER }).clip_scale(norm)
        };
        assert_eq!(scale(1.0, 0.5), 1.0);
        assert_eq!(scale(1.0, 4.0), 0.25);
        assert_eq!(scale(0.0, 4.0), 1.0);
    }
}
