//! The time of a collective: rings within machines, and rings between them.

use super::links::{BASE_US, Link};
use crate::parallel::Collective;

/// Machines of `per_node` GPUs each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    pub within: Link,
    pub across: Link,
    pub per_node: usize,
    /// Fixed cost of each collective, besides bytes and hops.
    pub base_us: f64,
}

impl Cluster {
    pub fn new([within, across]: [Link; 2], per_node: usize) -> Self {
        Cluster { within, across, per_node, base_us: BASE_US }
    }

    /// Milliseconds of a collective over `bytes` on each of `gpus`. More than one machine means
    /// whole machines.
    ///
    /// A sum is reduce-scattered within each machine, then each GPU's shard between the GPUs of the
    /// same position in all machines, and gathered in reverse: each GPU's link between machines
    /// carries one shard, all at the same time.
    pub fn ms(&self, collective: Collective, bytes: f64, gpus: usize) -> f64 {
        if gpus == 1 {
            return 0.0;
        }
        // An all-reduce is a reduce-scatter followed by an all-gather.
        let passes = if collective == Collective::AllReduce { 2.0 } else { 1.0 };
        let local = gpus.min(self.per_node);
        let inside = ring_us(&self.within, bytes, local);
        let outside = ring_us(&self.across, bytes / local as f64, gpus / local);
        (self.base_us + passes * (inside + outside)) / 1e3
    }
}

/// Time of one pass around a ring without the last hop: each of n ranks sends n - 1 of n shards.
fn ring_us(link: &Link, bytes: f64, ranks: usize) -> f64 {
    let (hops, ranks) = (ranks as f64 - 1.0, ranks as f64);
    hops / ranks * bytes / (link.bus_gbs * 1e3) + hops * link.hop_us
}
