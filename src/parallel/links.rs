//! How bytes get from each process to each other one. Collectives over the memory of hosts are written once over this.

mod testing;

pub use testing::{Delayed, Threads};

use anyhow::{Result, anyhow, ensure};
use std::time::Duration;

/// One process's ends of the links to all others.
pub trait Links: Send {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// `"4 threads"`, for the start-up table.
    fn describe(&self) -> String;

    /// Sends `outgoing[r]` to each rank r and receives `incoming[r]` from it; those of this rank are ignored. All ranks
    /// make the same calls in the same order, and know how much each of them sends.
    ///
    /// # Errors
    /// One line that names the rank which is gone, silent for too long, or sends something else. The others are told, so that
    /// all blame the same one, and not each other for what came of it. Nothing can be exchanged afterwards.
    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()>;
}

pub(super) fn gone(rank: usize) -> anyhow::Error {
    anyhow!("rank {rank} is gone: its output says why")
}

pub(super) fn silent(rank: usize, timeout: Duration) -> anyhow::Error {
    anyhow!("rank {rank} has not been heard of for {} s: it hangs, or its machine is gone", timeout.as_secs())
}

pub(super) fn check_length(rank: usize, found: usize, expected: usize) -> Result<()> {
    ensure!(
        found == expected,
        "rank {rank} sent {found} bytes where {expected} were expected: start all ranks with the same program and flags"
    );
    Ok(())
}
