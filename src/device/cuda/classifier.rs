//! Softmax, cross-entropy and their gradient.

use super::Cuda;
use super::kernel::{FloatX, Launch, Ptr, kernels};
use crate::ops::*;
use anyhow::Result;

kernels! {
    "classifier.cu":
    fn classifier(
        losses: Ptr<f32>, logits: Ptr<FloatX>, targets: Ptr<i32>,
        dloss: Ptr<f32>, keep_row: i32, V: i32, Vp: i32,
    );
}

const THREADS: u32 = 512;

/// Shared memory per block besides the row: its partial results and the driver's reserve.
const OVERHEAD_BYTES: usize = 2048;
/// Shared memory of an SM beyond the most that one block can have.
const RESERVED_BYTES: usize = 1024;

pub fn fused(cuda: &mut Cuda, a: Classifier) -> Result<()> {
    let pack = cuda.pack();
    assert!(0 < a.V && a.V <= a.Vp && a.Vp.is_multiple_of(pack), "{} columns padded to {}", a.V, a.Vp);
    assert!(a.losses.len == a.N && a.logits.len == a.N * a.Vp && a.targets.len == a.N);
    let Cuda { driver, memory: m, .. } = cuda;
    // A single block per SM would leave it idle while it waits, which costs more than reading the
    // row twice.
    let row_bytes = a.Vp * a.logits.dtype.size();
    let two_fit = 2 * (row_bytes + OVERHEAD_BYTES) <= driver.info().shared_bytes + RESERVED_BYTES;
    let keep_row = a.dloss.is_some() && two_fit;
    let launch = Launch::new(a.N, THREADS).shared(if keep_row { row_bytes } else { 0 });
    let (losses, logits, targets) = (m.f32(a.losses), m.x(a.logits), m.i32(a.targets));
    let dloss = a.dloss.map_or(Ptr::NULL, |dloss| m.f32(dloss));
    let (keep_row, V, Vp) = (i32::from(keep_row), a.V as i32, a.Vp as i32);
    kernel::classifier(driver.as_mut(), launch, losses, logits, targets, dloss, keep_row, V, Vp)
}
