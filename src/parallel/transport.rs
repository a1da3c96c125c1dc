//! How bytes get from each rank to every other one. Collectives over host memory are written once,
//! on top of this.

#[cfg(any(test, feature = "testing"))]
pub mod testing;

use anyhow::{Result, anyhow, ensure};
use std::time::Duration;

/// One rank's connections to all others.
pub trait Transport: Send {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// `"4 threads"`, for the start-up table.
    fn describe(&self) -> String;

    /// Sends `outgoing[r]` to each rank r and receives `incoming[r]` from it; the entries of this
    /// rank are ignored. All ranks make the same calls in the same order, and know how many bytes
    /// each of them sends.
    ///
    /// # Errors
    /// One line that names the rank which is gone, silent for too long, or sends something else.
    /// The other ranks are told, so that all name the same culprit instead of each other. Nothing
    /// can be exchanged afterwards.
    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()>;
}

pub(super) fn gone(rank: usize) -> anyhow::Error {
    anyhow!("rank {rank} is gone: its output says why")
}

pub(super) fn silent(rank: usize, timeout: Duration) -> anyhow::Error {
    anyhow!("rank {rank} has sent no message for {} s: it hangs, or its machine is gone", timeout.as_secs())
}

pub(super) fn check_length(rank: usize, found: usize, expected: usize) -> Result<()> {
    ensure!(
        found == expected,
        "rank {rank} sent {found} bytes where {expected} were expected: start all ranks with the same program and flags"
    );
    Ok(())
}
