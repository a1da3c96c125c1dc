//! Memory per GPU, by ZeRO stage.

use super::{Sizes, X};
use crate::sharding::ZeroStage;

/// Bytes of optimizer state per parameter: master weight, m and v in f32.
const STATE: f64 = 12.0;

/// Layers whose gathered parameters, or gradients in flight, are resident at a time: the active one
/// and its neighbor.
const RESIDENT_LAYERS: usize = 2;

/// Bytes per GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub parameters: f64,
    pub gradients: f64,
    pub state: f64,
    /// Full tensors of sharded state that are temporarily resident.
    pub buffers: f64,
    pub activations: f64,
}

impl Memory {
    pub fn of(stage: ZeroStage, gpus: usize, sizes: &Sizes, activations: usize) -> Self {
        let all = sizes.all() as f64;
        let sharded = |from| if stage >= from { all / gpus as f64 } else { all };
        // The shared unit is used at both ends of a pass and stays resident throughout.
        let full = (sizes.shared + RESIDENT_LAYERS.min(sizes.L) * sizes.layer) as f64;
        let resident = |from| if stage >= from && gpus > 1 { X * full } else { 0.0 };
        Memory {
            parameters: X * sharded(ZeroStage::Zero3),
            gradients: X * sharded(ZeroStage::Zero2),
            state: STATE * sharded(ZeroStage::Zero1),
            buffers: resident(ZeroStage::Zero3) + resident(ZeroStage::Zero2),
            activations: activations as f64,
        }
    }

    pub fn total(&self) -> f64 {
        self.parameters + self.gradients + self.state + self.buffers + self.activations
    }
}
