//! Hooks around each layer: they make its parameters (and gradients) resident before a pass touches
//! them, as the pre- and post-hooks of FSDP do.

use crate::ops::Ops;
use anyhow::Result;

/// The direction of a pass. Forward visits the shared unit, then layers 0, 1, …; backward visits
/// the shared unit, then the layers in reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Backward,
}

/// Called by each pass around its work on a unit.
///
/// A pass owns a unit's memory between the two calls. The shared unit (embeddings, final layernorm)
/// is needed at both ends of a pass, so it stays resident until the next one.
pub trait LayerHooks {
    /// Makes the parameters of `unit` resident and, in a backward pass, its gradients writable.
    ///
    /// # Errors
    /// If a collective fails.
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()>;

    /// Releases `unit`: every read of its parameters is queued, and in a backward pass its
    /// gradients are complete.
    ///
    /// # Errors
    /// If a collective cannot be started.
    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()>;
}

/// For models whose parameters and gradients are always resident.
pub struct NoHooks;

impl LayerHooks for NoHooks {
    fn before(&mut self, _: &mut dyn Ops, _: Pass, _: usize) -> Result<()> {
        Ok(())
    }

    fn after(&mut self, _: &mut dyn Ops, _: Pass, _: usize) -> Result<()> {
        Ok(())
    }
}
