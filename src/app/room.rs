//! The memory that each rank may take with `-b auto`.

use crate::cli::flags::trainer::{MicroBatch, TrainArgs};
use crate::memory;
use crate::ops::Ops;
use crate::parallel::transport::Transport;
use anyhow::{Context, Result};

/// The share of free memory of a machine that is left to the system: what is free changes while a
/// run starts, and one that takes all of it is killed.
const LEFT_TO_SYSTEM: u64 = 16;

/// The free memory of one rank's machine, and of its GPU if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Free {
    /// Ranks of one machine have the same number, and share the memory of the machine.
    machine: u64,
    bytes: u64,
    is_gpu: bool,
}

/// Returns the bytes that each rank may take, the least of all ranks, if `-b auto` asks.
///
/// # Errors
/// If the system does not report it, or another rank is gone.
pub fn room(
    args: &TrainArgs,
    dev: &mut dyn Ops,
    transport: Option<&mut dyn Transport>,
) -> Result<Option<u64>> {
    if args.batch.micro_batch != MicroBatch::Auto {
        return Ok(None);
    }
    let own = free(dev).context("-b auto: the free memory of this system is not known; give a number")?;
    let all = match transport {
        Some(transport) => exchange(own, transport)?,
        None => vec![own],
    };
    Ok(Some(least(&all)))
}

/// The free memory of this machine without ranks that share it; `None` if it is not known.
pub fn alone() -> Option<u64> {
    Some(least(&[Free { machine: memory::machine()?, bytes: memory::available()?, is_gpu: false }]))
}

fn free(dev: &mut dyn Ops) -> Option<Free> {
    let machine = memory::machine()?;
    Some(match dev.gpu() {
        Some(gpu) => {
            let free = dev.gpu_memory().map_or(gpu.memory_bytes as u64, |memory| memory.free);
            Free { machine, bytes: free, is_gpu: true }
        }
        None => Free { machine, bytes: memory::available()?, is_gpu: false },
    })
}

/// Returns what is free on each rank.
fn exchange(own: Free, transport: &mut dyn Transport) -> Result<Vec<Free>> {
    let encoded = [own.machine.to_le_bytes(), own.bytes.to_le_bytes()].concat();
    let ranks = transport.world_size();
    let mut received = vec![encoded.clone(); ranks];
    let mut incoming: Vec<&mut [u8]> = received.iter_mut().map(Vec::as_mut_slice).collect();
    transport.exchange(&vec![encoded.as_slice(); ranks], &mut incoming)?;
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let free = |bytes: &Vec<u8>| Free { machine: number(&bytes[..8]), bytes: number(&bytes[8..]), ..own };
    Ok(received.iter().map(free).collect())
}

/// The least that a rank may take: all that is free on its GPU, or an equal part of its machine's.
fn least(all: &[Free]) -> u64 {
    let of_rank = |rank: &Free| match rank.is_gpu {
        true => rank.bytes,
        false => {
            let neighbors = all.iter().filter(|other| other.machine == rank.machine).count() as u64;
            (rank.bytes - rank.bytes / LEFT_TO_SYSTEM) / neighbors
        }
    };
    all.iter().map(of_rank).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_share_a_machine_and_the_least_counts_for_all() {
        let host = |machine, bytes| Free { machine, bytes, is_gpu: false };
        assert_eq!(least(&[host(1, 1600)]), 1500);
        assert_eq!(least(&[host(1, 1600), host(1, 1632), host(2, 800)]), 750);
        let gpu = |bytes| Free { machine: 1, bytes, is_gpu: true };
        assert_eq!(least(&[gpu(1600), gpu(1500)]), 1500);
    }
}
