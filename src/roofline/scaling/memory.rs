//! Memory per GPU, from the plan of its rank.

use crate::tensor::MemoryPlan;

/// Bytes per GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub parameters: f64,
    pub gradients: f64,
    pub state: f64,
    /// Full tensors of sharded state that are temporarily resident, and buffers of collectives.
    pub buffers: f64,
    pub activations: f64,
}

impl Memory {
    pub fn of(plan: &MemoryPlan) -> Self {
        let mut memory = Memory::default();
        for arena in &plan.arenas {
            let part = match arena.name {
                "parameters" => &mut memory.parameters,
                "gradients" => &mut memory.gradients,
                "optimizer state" => &mut memory.state,
                "activations" => &mut memory.activations,
                _ => &mut memory.buffers,
            };
            *part += arena.size_bytes as f64;
        }
        memory
    }

    pub fn total(&self) -> f64 {
        self.parameters + self.gradients + self.state + self.buffers + self.activations
    }
}
