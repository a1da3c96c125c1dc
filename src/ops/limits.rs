//! The scratch memory of a device, planned from the largest operations of a run.

use super::Device;
use crate::tensor::{Dtype, MemoryPlan};
use anyhow::Result;

/// Name of the arena for a device's scratch memory.
pub const SCRATCH: &str = "scratch";

/// The largest operations that a run asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows (B*T) of the largest batch.
    pub rows: usize,
    /// Rows of the largest chunk of logits.
    pub logits_rows: usize,
    /// Tokens in the longest sequence.
    pub T: usize,
    pub C: usize,
    pub NH: usize,
    pub V: usize,
    pub Vp: usize,
    /// Most tensors that one norm spans.
    pub norm_pieces: usize,
}

/// Adds the scratch memory for a run whose every operation is within one of `uses`.
///
/// # Errors
/// One line, if the device has no kernel for one of these shapes.
pub fn plan_scratch(dev: &(impl Device + ?Sized), uses: &[Limits], plan: &mut MemoryPlan) -> Result<()> {
    let mut bytes = 0;
    for limits in uses {
        bytes = bytes.max(dev.scratch_bytes(limits)?);
    }
    if bytes > 0 {
        plan.add(SCRATCH, SCRATCH, Dtype::F32, bytes.div_ceil(4));
    }
    Ok(())
}
