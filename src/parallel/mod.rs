//! Many processes that train together: who they are, and how they add up and share out numbers.
//!
//! A [`Communicator`] works on a device's own memory. What it is told to do it does in that order and beside the device's
//! other work: gradients of one layer are on their way while those of the next are computed.

pub mod environment;
pub mod host;
pub mod links;
pub mod mesh;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod nccl;
pub mod queue;
pub mod rendezvous;

use crate::ops::Buffer;
use anyhow::Result;

/// What is done with the buffers of all ranks, in place. Parts are as even as whole elements allow, one for each rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collective {
    /// Every rank gets the sum.
    AllReduce,
    /// Rank r gets part r of the sum; what the rest of its buffer holds is undefined.
    ReduceScatter,
    /// Every rank gets part r of rank r.
    AllGather,
    /// Every rank gets what `root` has.
    Broadcast { root: usize },
}

/// A collective and this rank's buffer for it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub collective: Collective,
    pub buffer: Buffer,
}

/// What was begun by one call of [`start`](Communicator::start); later ones are greater. The first one is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One rank's way to all others. After a failure all calls say what failed first.
pub trait Communicator: Send {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// How ranks are connected: `"4 processes over NCCL 2.27.7"`.
    fn describe(&self) -> String;

    /// A library that was loaded for that: its name, and version and place.
    fn library(&self) -> Option<(&'static str, String)> {
        None
    }

    /// Begins operations, in this order, once the device is done with what was queued on it before. Their buffers are
    /// theirs until [`wait`](Self::wait) or [`finish`](Self::finish). All ranks begin the same operations in the same order.
    ///
    /// # Errors
    /// If they cannot be queued, or earlier ones have failed.
    fn start(&mut self, operations: Vec<Operation>) -> Result<Ticket>;

    /// What is queued on the device from now on comes after everything that was started up to and including `ticket`.
    /// Later ones go on meanwhile.
    ///
    /// # Errors
    /// One line that names the rank that is gone or out of step.
    fn wait(&mut self, ticket: Ticket) -> Result<()>;

    /// The same for everything that was started.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    fn finish(&mut self) -> Result<()>;
}

#[cfg(test)]
mod tests;
