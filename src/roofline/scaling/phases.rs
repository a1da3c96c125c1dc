//! The computation of a step, divided where communication can begin or must have ended.

use crate::roofline::kernels::{Class, LAYERNORM_BACKWARD_FIRST};
use crate::roofline::predict::GAP_US;
use crate::roofline::report::{Budget, Row};

/// Milliseconds on one GPU; all but the last three are per micro-step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    pub layers: usize,
    pub encoder: f64,
    /// Per layer.
    pub layer_forward: f64,
    /// The final layernorm, logits, losses, and the backward pass through them.
    pub head: f64,
    /// Per layer, with recomputation.
    pub layer_backward: f64,
    pub encoder_backward: f64,
    /// Norm of all gradients and update of all parameters, without sharding.
    pub norm: f64,
    pub adamw: f64,
    /// Launch gaps of the two, which sharding does not reduce.
    pub update_gaps: f64,
}

impl Phases {
    /// Takes measured times where available, realistic ones elsewhere, and adds gaps between
    /// kernels.
    pub fn of(budget: &Budget) -> Self {
        let mut phases = Phases { layers: budget.config.L, ..Phases::default() };
        let (layers, micro_steps) = (budget.config.L as f64, budget.step.micro_steps as f64);
        for row in &budget.rows {
            let gap = row.kernel.launches as f64 * GAP_US / 1e3;
            let call = call_ms(row) + gap;
            let of_micro_step = call * row.kernel.calls as f64 / micro_steps;
            match row.kernel.class {
                Class::BlockForward | Class::AttentionForward => {
                    phases.layer_forward += of_micro_step / layers;
                }
                Class::BlockDgrad | Class::BlockWgrad | Class::AttentionBackward | Class::Recompute => {
                    phases.layer_backward += of_micro_step / layers;
                }
                // Two per layer, and one before the head.
                Class::LayernormForward => {
                    phases.layer_forward += 2.0 * call;
                    phases.head += call;
                }
                // The first belongs to the head, the others to the layers.
                Class::LayernormBackward if row.kernel.name == LAYERNORM_BACKWARD_FIRST => {
                    phases.head += call
                }
                Class::LayernormBackward => phases.layer_backward += of_micro_step / layers,
                Class::HeadForward | Class::HeadDgrad | Class::HeadWgrad | Class::Classifier => {
                    phases.head += of_micro_step;
                }
                Class::Embedding => match row.kernel.name {
                    "encoder forward" => phases.encoder += of_micro_step,
                    _ => phases.encoder_backward += of_micro_step,
                },
                Class::Optimizer => {
                    let part = if row.kernel.name == "norm" { &mut phases.norm } else { &mut phases.adamw };
                    *part += call_ms(row);
                    phases.update_gaps += gap;
                }
            }
        }
        phases
    }

    /// Milliseconds of a step on a single GPU.
    pub fn alone_ms(&self, micro_steps: usize) -> f64 {
        let layers = self.layers as f64 * (self.layer_forward + self.layer_backward);
        let micro_step = self.encoder + layers + self.head + self.encoder_backward;
        micro_steps as f64 * micro_step + self.norm + self.adamw + self.update_gaps
    }
}

fn call_ms(row: &Row) -> f64 {
    row.measured_us.unwrap_or(row.prediction.realistic_us) / 1e3
}
