//! Transports for tests, of this crate and of crates that use it.

use super::{Transport, check_length, gone, silent};
use anyhow::{Result, anyhow};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Bytes from one thread to another, or why it sends nothing more.
type Message = Result<Vec<u8>, String>;

/// Ranks that are threads of one process.
pub struct Threads {
    rank: usize,
    /// To each rank.
    to: Vec<Sender<Message>>,
    /// From each rank.
    from: Vec<Receiver<Message>>,
    timeout: Duration,
}

impl Threads {
    /// The transports of ranks 0, 1, …, one per thread. Silence longer than `timeout` is an error.
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

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank;
        (0..self.to.len()).filter(move |&rank| rank != own)
    }

    fn receive(&self, rank: usize, incoming: &mut [u8]) -> Result<()> {
        let message = self.from[rank].recv_timeout(self.timeout).map_err(|e| match e {
            RecvTimeoutError::Timeout => silent(rank, self.timeout),
            RecvTimeoutError::Disconnected => gone(rank),
        })?;
        let bytes = message.map_err(|why| anyhow!(why))?;
        check_length(rank, bytes.len(), incoming.len())?;
        incoming.copy_from_slice(&bytes);
        Ok(())
    }
}

impl Transport for Threads {
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
        for rank in self.others() {
            // A rank that is gone is noticed below.
            let _ = self.to[rank].send(Ok(outgoing[rank].to_vec()));
        }
        let received = self.others().try_for_each(|rank| self.receive(rank, incoming[rank]));
        if let Err(why) = &received {
            for rank in self.others() {
                let _ = self.to[rank].send(Err(why.to_string()));
            }
        }
        received
    }
}

/// Another transport with random delays, like those of a network.
pub struct Delayed<T> {
    transport: T,
    /// State of the random number generator.
    state: u64,
}

impl<T: Transport> Delayed<T> {
    /// Each rank needs a seed of its own.
    pub fn new(transport: T, seed: u64) -> Self {
        Delayed { transport, state: seed }
    }

    /// Mostly sleeps for up to two milliseconds or not at all, and rarely for up to thirty.
    fn sleep(&mut self) {
        // Knuth's linear congruential generator, whose upper bits are random enough.
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = self.state >> 33;
        let microseconds = match random % 32 {
            0..16 => return,
            16..31 => random / 32 % 2_000,
            _ => random / 32 % 30_000,
        };
        std::thread::sleep(Duration::from_micros(microseconds));
    }
}

impl<T: Transport> Transport for Delayed<T> {
    fn rank(&self) -> usize {
        self.transport.rank()
    }

    fn world_size(&self) -> usize {
        self.transport.world_size()
    }

    fn describe(&self) -> String {
        format!("{}, with delays", self.transport.describe())
    }

    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        self.sleep();
        let exchanged = self.transport.exchange(outgoing, incoming);
        self.sleep();
        exchanged
    }
}
