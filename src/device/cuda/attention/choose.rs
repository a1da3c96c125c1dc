//! The kernels of the backward pass where Hopper has none of its own. Which are faster depends on
//! the GPU and on the shape, so both are timed once per shape; those with atomics only if they
//! compute the same as the ordered ones.
//!
//! Nothing is timed if every run must choose alike (`--deterministic 1`), on the emulated device,
//! or with dropout, which the kernel with atomics lacks: then the ordered kernels serve.

#[cfg(all(test, emulated))]
mod tests;

use super::{AttentionBackward, atomic, hopper_backward, ordered, stats};
use crate::device::compare::{Tolerance, close};
use crate::device::cuda::Cuda;
use crate::device::cuda::driver::Driver;
use crate::device::cuda::kernel::Ptr;
use crate::device::cuda::matmul::stopwatch;
use crate::device::cuda::memory::Memory;
use crate::device::cuda::reduce;
use crate::ops::{AttentionDims, download_f32};
use crate::tensor::Dtype;
use anyhow::Result;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// The kernels that attention's backward pass may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardKernels {
    /// Two kernels, each of which sums in one order.
    Ordered,
    /// One kernel, which adds dQ with atomics, in any order. In f32 there is none.
    Atomic,
}

impl fmt::Display for BackwardKernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackwardKernels::Ordered => "two ordered kernels",
            BackwardKernels::Atomic => "one kernel with atomics",
        })
    }
}

impl BackwardKernels {
    fn run(self, dev: &mut dyn Driver, m: &Memory, a: AttentionBackward) -> Result<()> {
        stats(dev, m, a)?;
        match self {
            BackwardKernels::Ordered => ordered(dev, m, a),
            BackwardKernels::Atomic => atomic::run(dev, m, a),
        }
    }
}

/// The choices so far.
#[derive(Debug, Default)]
pub struct Choices {
    /// The kernels that a test or a benchmark asks for.
    pub forced: Option<BackwardKernels>,
    known: HashMap<AttentionDims, BackwardKernels>,
    /// How often kernels were compared, which cannot be done under capture.
    pub attempts: usize,
}

/// Whether the kernels are chosen by timing.
fn measures(cuda: &Cuda) -> bool {
    let has_clock = !cuda.driver.info().emulated && !cuda.options.deterministic;
    has_clock && cuda.attention.forced.is_none() && cuda.options.dtype != Dtype::F32
}

/// Whether the kernel with atomics may be used, so that it needs memory.
pub fn may_be_atomic(cuda: &Cuda) -> bool {
    let forced = cuda.attention.forced == Some(BackwardKernels::Atomic) && cuda.options.dtype != Dtype::F32;
    forced || measures(cuda)
}

/// Queues the backward pass by the kernels that are asked for or chosen.
///
/// # Errors
/// If the device fails.
pub fn run(cuda: &mut Cuda, a: AttentionBackward) -> Result<()> {
    let kernels = match cuda.attention.known.get(&a.dims) {
        _ if a.dropout.is_some() || hopper_backward::suits(cuda, a.dims.HS) => BackwardKernels::Ordered,
        Some(known) if measures(cuda) => *known,
        None if measures(cuda) => choose(cuda, a)?,
        _ if may_be_atomic(cuda) => BackwardKernels::Atomic,
        _ => BackwardKernels::Ordered,
    };
    kernels.run(cuda.driver.as_mut(), &cuda.memory, a)
}

/// Compares and times the kernels on the operands themselves. Leaves garbage in `dqkv`.
fn choose(cuda: &mut Cuda, a: AttentionBackward) -> Result<BackwardKernels> {
    use BackwardKernels::{Atomic, Ordered};
    let AttentionDims { B, T, NH, HS } = a.dims;
    cuda.attention.attempts += 1;
    let what = format!("attention_backward {B}x{T}x{NH}x{HS} {}", cuda.options.dtype);
    let right = outcome(cuda, Ordered, a)?;
    if !right.is_finite() {
        // Gradients that overflowed. Later ones of this shape can be compared.
        return Ok(Ordered);
    }
    let fault = match outcome(cuda, Atomic, a) {
        Ok(seen) => {
            seen.differs(&right, a.dims, cuda.options.dtype).map(|how| format!("its result is wrong: {how}"))
        }
        Err(refused) => {
            // If the device is broken rather than the launch refused, waiting for it fails too.
            cuda.driver.synchronize()?;
            Some(format!("it is refused: {refused:#}"))
        }
    };
    let chosen = if let Some(fault) = fault {
        log::warn!("{Atomic} is left out for {what}: {fault}; the run continues with {Ordered}");
        Ordered
    } else {
        let Cuda { driver, memory, .. } = cuda;
        let mut time =
            |kernels: BackwardKernels| stopwatch(driver.as_mut(), |dev| kernels.run(dev, memory, a));
        let times = [(Ordered, time(Ordered)?), (Atomic, time(Atomic)?)];
        let (better, worse) =
            if times[1].1 < times[0].1 { (times[1], times[0]) } else { (times[0], times[1]) };
        log::info!("{what}: {} {:.3} ms; {} {:.3} ms", better.0, better.1, worse.0, worse.1);
        better.0
    };
    cuda.attention.known.insert(a.dims, chosen);
    Ok(chosen)
}

/// A result: the norm of all, and some sequences.
struct Seen {
    norm_squared: f64,
    sequences: Vec<f32>,
}

/// Computes into poisoned memory and looks at the first, a middle and the last sequence.
fn outcome(cuda: &mut Cuda, kernels: BackwardKernels, a: AttentionBackward) -> Result<Seen> {
    let Cuda { driver, memory: m, options, .. } = cuda;
    let dev = driver.as_mut();
    dev.set_bytes(m.address(a.dqkv), 0xff, a.dqkv.size_bytes())?;
    kernels.run(dev, m, a)?;
    // Errors surface here, before they could be blamed on the kernels that only look.
    dev.synchronize()?;
    // Scratch memory is free again.
    let scratch = m.scratch(norm_bytes(dev.info().sm_count));
    let (norm, partials) = (Ptr::new(scratch), Ptr::new(scratch + NORM_BYTES as u64));
    reduce::norm_squared_at(dev, norm, partials, (m.x(a.dqkv), a.dqkv.len), options.dtype)?;
    let mut norm_squared = [0; size_of::<f32>()];
    dev.download(&mut norm_squared, scratch)?;
    let len = a.dqkv.len / a.dims.B;
    let mut sequences = Vec::new();
    for b in BTreeSet::from([0, a.dims.B / 2, a.dims.B - 1]) {
        let first = sequences.len();
        sequences.resize(first + len, 0.0);
        download_f32(cuda, &mut sequences[first..], a.dqkv.slice(b * len, len))?;
    }
    Ok(Seen { norm_squared: f32::from_ne_bytes(norm_squared).into(), sequences })
}

/// Bytes before the partial sums of a norm.
const NORM_BYTES: usize = 16;

/// Returns the scratch memory of a comparison in bytes.
pub fn norm_bytes(sm_count: usize) -> usize {
    NORM_BYTES + reduce::most_partials(sm_count) * size_of::<f32>()
}

impl Seen {
    fn is_finite(&self) -> bool {
        self.norm_squared.is_finite() && self.sequences.iter().all(|x| x.is_finite())
    }

    /// Says how the result differs from the right one, dQ, dK and dV each by itself.
    fn differs(&self, right: &Seen, dims: AttentionDims, dtype: Dtype) -> Option<String> {
        // The kernels round the same numbers; a few fall to the other side.
        let tolerance = Tolerance::new(12.0, dims.T + dims.HS).relative(dtype);
        let C = dims.NH * dims.HS;
        let part = |seen: &Seen, i: usize| -> Vec<f32> {
            seen.sequences.chunks_exact(3 * C).flat_map(|row| row[i * C..][..C].to_vec()).collect()
        };
        for (i, name) in ["dQ", "dK", "dV"].into_iter().enumerate() {
            if let Err(how) = close(&part(self, i), &part(right, i), tolerance) {
                return Some(format!("{name}{how}"));
            }
        }
        let (got, want) = (self.norm_squared, right.norm_squared);
        let near = (got - want).abs() <= tolerance * want;
        (!near).then(|| format!("its squared norm is {got:e}, want {want:e}"))
    }
}
