//! How bytes get from each process to each other one. Collectives over the memory of hosts are written once over this.

use anyhow::{Result, anyhow, ensure};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
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
    /// One line that names the rank which is gone, silent for too long, or sends something else.
    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()>;
}

/// Ranks that are threads of one process, for tests.
pub struct Threads {
    rank: usize,
    /// By rank.
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    timeout: Duration,
}

impl Threads {
    /// The links of ranks 0, 1, …: one for each thread. Silence longer than `timeout` is an error.
    pub fn of(world_size: usize, timeout: Duration) -> Vec<Threads> {
        let mut to: Vec<Vec<_>> = (0..world_size).map(|_| Vec::new()).collect();
        let mut from: Vec<Vec<_>> = (0..world_size).map(|_| Vec::new()).collect();
        for sender in &mut to {
            for receiver in &mut from {
                let (tx, rx) = channel();
                sender.push(tx);
                receiver.push(rx);
            }
        }
        let ends = to.into_iter().zip(from).enumerate();
        ends.map(|(rank, (to, from))| Threads { rank, to, from, timeout }).collect()
    }
}

impl Links for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.to.len()
    }

    fn describe(&self) -> String {
        format!("{} threads", self.world_size())
    }

    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        let others = || (0..self.world_size()).filter(|&rank| rank != self.rank);
        for rank in others() {
            self.to[rank].send(outgoing[rank].to_vec()).map_err(|_| gone(rank))?;
        }
        for rank in others() {
            let bytes = self.from[rank].recv_timeout(self.timeout).map_err(|e| match e {
                RecvTimeoutError::Timeout => silent(rank, self.timeout),
                RecvTimeoutError::Disconnected => gone(rank),
            })?;
            check_length(rank, bytes.len(), incoming[rank].len())?;
            incoming[rank].copy_from_slice(&bytes);
        }
        Ok(())
    }
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
