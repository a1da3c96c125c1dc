//! Predictions for the operations of a step that runs, beside what they took.

use super::calls::Kernels;
use super::gpu::Gpu;
use super::predict::{STEP_GAP_US, predict};
use crate::model::Weights;
use crate::ops;
use crate::recorder::Event;
use crate::trace::Op;

/// Predicts the operations of a model on the GPU that it runs on.
pub struct Predictor {
    kernels: Kernels,
    gpu: &'static Gpu,
}

impl Predictor {
    /// Returns `None` where there is nothing to go by: for a GPU that is not in the table, operands
    /// other than bf16, and matmuls of adapters.
    pub fn new(weights: &Weights, gpu: &ops::Gpu) -> Option<Self> {
        let known = Gpu::of_device(&gpu.name)?;
        let fits = gpu.operands == "bf16" && weights.config.lora.is_none();
        fits.then(|| Predictor { kernels: Kernels::new(weights), gpu: known })
    }

    /// Returns the realistic microseconds of an operation, with the gaps at its launches; `None`
    /// for a transfer to or from the host. All operations of a step must be passed in order.
    pub fn us(&mut self, op: &Op) -> Option<f64> {
        let kernels = self.kernels.of(&match op {
            Op::Call(call) => Event::Call((**call).clone()),
            Op::Copy { dst, src } => Event::Copy { dst: *dst, src: *src },
            Op::Upload { .. } | Op::Download { .. } => return None,
        });
        let us = kernels.iter().map(|kernel| {
            predict(kernel, self.gpu, |_| None).realistic_us + kernel.launches as f64 * STEP_GAP_US
        });
        Some(us.sum())
    }
}
