//! What a GPU holds, by ZeRO stage.

use super::{Sizes, X};
use crate::units::Stage;

/// Bytes of a parameter's optimizer state: master weight, m and v in f32.
const STATE: f64 = 12.0;

/// Layers whose gathered parameters, or gradients on their way, are in memory at a time: one at work, and its neighbour.
const LAYERS_AT_HAND: usize = 2;

/// Bytes on each GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub parameters: f64,
    pub gradients: f64,
    pub state: f64,
    /// Of what is divided, the whole tensors that are at hand for a while.
    pub buffers: f64,
    pub activations: f64,
}

impl Memory {
    pub fn of(stage: Stage, gpus: usize, sizes: &Sizes, activations: usize) -> Self {
        let all = sizes.all() as f64;
        let divided = |from| if stage >= from { all / gpus as f64 } else { all };
        // Embeddings are at work at both ends of a pass, and stay whole through it.
        let whole = (sizes.rest + LAYERS_AT_HAND.min(sizes.L) * sizes.layer) as f64;
        let at_hand = |from| if stage >= from && gpus > 1 { X * whole } else { 0.0 };
        Memory {
            parameters: X * divided(Stage::Zero3),
            gradients: X * divided(Stage::Zero2),
            state: STATE * divided(Stage::Zero1),
            buffers: at_hand(Stage::Zero3) + at_hand(Stage::Zero2),
            activations: activations as f64,
        }
    }

    pub fn total(&self) -> f64 {
        self.parameters + self.gradients + self.state + self.buffers + self.activations
    }
}
