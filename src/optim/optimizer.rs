//! AdamW over a model: its moments, which parameters decay, and the fixed hyper-parameters.

use crate::ops::{AdamW, Ops};
use crate::params::{PARAMS, ParamLayout};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::ops::Range;

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

/// First and second moments, master weights (all f32, laid out like the parameters), and how to use them.
pub struct Optimizer {
    /// The parameters as the steps left them; those of the model are their rounded image.
    pub master: Option<Tensor>,
    pub m: Tensor,
    pub v: Tensor,
    hyper: HyperParams,
    /// Runs of parameters, and whether they decay.
    segments: Vec<(Range<usize>, bool)>,
}

impl Optimizer {
    /// `params` are the model's. Master weights are kept beside those only if they are narrower than f32: f32 parameters
    /// are their own.
    pub fn plan(
        layout: &ParamLayout,
        params: Dtype,
        use_master_weights: bool,
        hyper: HyperParams,
        plan: &mut MemoryPlan,
    ) -> Self {
        let wanted = use_master_weights && params != Dtype::F32;
        let master = wanted.then(|| plan.add("optimizer state", "master weights", Dtype::F32, layout.len()));
        let m = plan.add("optimizer state", "m", Dtype::F32, layout.len());
        let v = plan.add("optimizer state", "v", Dtype::F32, layout.len());
        let segments = PARAMS.iter().map(|spec| (layout.range(spec.param), spec.is_matrix)).collect();
        Optimizer { master, m, v, hyper, segments }
    }

    /// What to multiply gradients of this norm by so that their norm is at most the clip.
    pub fn clip_scale(&self, norm: f32) -> f32 {
        match self.hyper.grad_clip {
            clip if clip > 0.0 && norm > clip => clip / norm,
            _ => 1.0,
        }
    }

    /// Update number `t`, counted from 1.
    pub fn update(
        &self,
        dev: &mut dyn Ops,
        params: Tensor,
        grads: Tensor,
        lr: f32,
        grad_scale: f32,
        t: usize,
    ) -> Result<()> {
        for (range, decays) in &self.segments {
            let run = |tensor: Tensor| tensor.slice(range.start, range.len());
            dev.adamw(AdamW {
                params: run(params),
                master: self.master.map(run),
                m: run(self.m),
                v: run(self.v),
                grads: run(grads),
                decayed: if *decays { range.len() } else { 0 },
                weight_decay: self.hyper.weight_decay,
                lr,
                beta1: self.hyper.beta1,
                beta2: self.hyper.beta2,
                eps: self.hyper.eps,
                grad_scale,
                t,
                // Of the step alone, so that a resumed run rounds as one that never stopped.
                seed: t as u32,
                first: range.start as u64,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    fn optimizer(grad_clip: f32) -> Optimizer {
        let hyper = HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip };
        plan(Dtype::F32, true, hyper)
    }

    #[test]
    fn only_matrices_decay_and_every_parameter_is_covered() {
        let optimizer = optimizer(1.0);
        let mut next = 0;
        for ((range, decays), spec) in optimizer.segments.iter().zip(&PARAMS) {
            assert_eq!(range.start, next);
            next = range.end;
            assert_eq!(*decays, spec.is_matrix, "{}", spec.name);
        }
        assert_eq!(next, optimizer.m.len);
    }

    fn plan(params: Dtype, use_master_weights: bool, hyper: HyperParams) -> Optimizer {
        let layout = ParamLayout::new(&ModelConfig::new(8, 2, 2, 8));
        Optimizer::plan(&layout, params, use_master_weights, hyper, &mut MemoryPlan::new())
    }

    #[test]
    fn only_narrow_parameters_need_master_weights() {
        let hyper = HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 0.0 };
        let master = |params, wanted| plan(params, wanted, hyper).master.map(|t| (t.dtype, t.len));
        let len = optimizer(1.0).m.len;
        assert_eq!(master(Dtype::Bf16, true), Some((Dtype::F32, len)));
        assert_eq!(master(Dtype::F16, true), Some((Dtype::F32, len)));
        assert_eq!(master(Dtype::Bf16, false), None);
        assert_eq!(master(Dtype::F32, true), None);
    }

    #[test]
    fn clipping_only_ever_shrinks() {
        assert_eq!(optimizer(1.0).clip_scale(0.5), 1.0);
        assert_eq!(optimizer(1.0).clip_scale(4.0), 0.25);
        assert_eq!(optimizer(0.0).clip_scale(4.0), 1.0);
    }
}
