//! Ranks that train together: who they are, how they connect, and their collectives.
//!
//! A [`Communicator`] works on a device's own memory. It carries operations out in the order in
//! which they are started, beside the device's other work: the gradients of one layer travel while
//! those of the next are computed.

pub mod environment;
pub mod host;
pub mod lifeline;
pub mod mesh;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod queue;
pub mod rendezvous;
pub mod secret;
mod timing;
pub mod transport;

use crate::ops::Buffer;
use anyhow::Result;
use std::fmt;
pub use timing::WorkTime;

/// Describes the libraries that connect ranks, for `--version`.
pub fn libraries() -> Vec<(&'static str, String)> {
    vec![
        ("NCCL", nccl::functions::Functions::describe()),
        #[cfg(feature = "mpi")]
        ("MPI", mpi::library()),
    ]
}

/// An operation on the buffers of all ranks, in place. Partitions, one per rank, are as even as
/// whole elements allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collective {
    /// Every rank gets the sum.
    AllReduce,
    /// Rank r gets partition r of the sum; the rest of its buffer is undefined afterwards.
    ReduceScatter,
    /// Every rank gets partition r of rank r.
    AllGather,
    /// Every rank gets the buffer of `root`.
    Broadcast { root: usize },
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Collective::AllReduce => f.write_str("all-reduce"),
            Collective::ReduceScatter => f.write_str("reduce-scatter"),
            Collective::AllGather => f.write_str("all-gather"),
            Collective::Broadcast { root } => write!(f, "broadcast from rank {root}"),
        }
    }
}

/// A collective and this rank's buffer for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub collective: Collective,
    pub buffer: Buffer,
}

/// Handle of the collectives in flight that one call of [`start`](Communicator::start) started.
/// Handles count from 1 in the order of those calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work(pub u64);

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "work {}", self.0)
    }
}

/// One rank's connection to all others. After a failure every call returns the first error.
pub trait Communicator: Send {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// How ranks are connected: `"4 processes over NCCL 2.27.7"`.
    fn describe(&self) -> String;

    /// The library that was loaded for the communicator: its name, and its version and path.
    fn library(&self) -> Option<(&'static str, String)> {
        None
    }

    /// Starts operations, in this order, after the work that is queued on the device so far. They
    /// borrow their buffers until [`wait`](Self::wait) or [`finish`](Self::finish). All ranks start
    /// the same operations in the same order.
    ///
    /// # Errors
    /// If they cannot be queued, or earlier ones have failed.
    fn start(&mut self, operations: Vec<Operation>) -> Result<Work>;

    /// Orders work that is queued on the device from now on after everything that was started up to
    /// and including `work`. Later operations stay in flight.
    ///
    /// # Errors
    /// One line that names the rank that is gone or out of step.
    fn wait(&mut self, work: Work) -> Result<()>;

    /// Waits for everything that was started.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn finish(&mut self) -> Result<()>;

    /// Waits for everything that was started, and notes from then on when work runs.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn note_times(&mut self) -> Result<()> {
        self.finish()
    }

    /// Waits for everything that was started. Returns when all work since
    /// [`note_times`](Self::note_times) ran, and notes no more.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn take_times(&mut self) -> Result<Vec<WorkTime>> {
        self.finish().map(|()| Vec::new())
    }
}

#[cfg(test)]
mod tests;
