//! Links for tests, of this crate and of what uses it.

use super::{Links, check_length, gone, silent};
use anyhow::{Result, anyhow};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// What one thread sends another: bytes, or why it sends nothing more.
type Message = Result<Vec<u8>, String>;

/// Ranks that are threads of one process.
pub struct Threads {
    rank: usize,
    /// By rank.
    to: Vec<Sender<Message>>,
    from: Vec<Receiver<Message>>,
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
        for rank in self.others() {
            // Who is gone is found out below.
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

/// Other links that are slow at times, as networks are.
pub struct Delayed<L> {
    links: L,
    /// Of the random numbers.
    state: u64,
}

impl<L: Links> Delayed<L> {
    /// Each rank wants a seed of its own.
    pub fn new(links: L, seed: u64) -> Self {
        Delayed { links, state: seed }
    }

    /// Mostly not at all or for up to two milliseconds, and now and then for up to thirty.
    fn sleep(&mut self) {
        // Knuth's generator, whose upper bits are random enough.
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

impl<L: Links> Links for Delayed<L> {
    fn rank(&self) -> usize {
        self.links.rank()
    }

    fn world_size(&self) -> usize {
        self.links.world_size()
    }

    fn describe(&self) -> String {
        format!("{}, with delays", self.links.describe())
    }

    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        self.sleep();
        let exchanged = self.links.exchange(outgoing, incoming);
        self.sleep();
        exchanged
    }
}
