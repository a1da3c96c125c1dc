//! TCP connections between all pairs of ranks: how processes without MPI find each other, and the
//! transport of CPU devices.

mod acceptor;
mod address;
mod handshake;
mod meeting;
mod peer;

use super::secret::Secret;
use super::transport::Transport;
use anyhow::{Context, Result, ensure};
use log::{info, warn};
use peer::Peer;
use std::fmt;
use std::net::TcpStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The place where ranks find rank 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rendezvous {
    /// `host:port`, as the other ranks resolve it.
    Address(String),
    /// A file on a shared disk, to which rank 0 writes its address.
    File(PathBuf),
}

impl Rendezvous {
    /// `at HOST:PORT`, or `through FILE`.
    fn place(&self) -> String {
        match self {
            Rendezvous::Address(address) => format!("at {address}"),
            Rendezvous::File(path) => format!("through {}", path.display()),
        }
    }
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rendezvous {}", self.place())
    }
}

/// One rank, and how it meets the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    pub rank: usize,
    pub world_size: usize,
    /// The origin of the world size, for messages: `WORLD_SIZE=2 in the environment`.
    pub size_from: String,
    /// Distinguishes this run from others that may use the same port or file.
    pub run: String,
    /// The secret of the job. If there is none, ranks that meet through a file find one there.
    pub secret: Secret,
    pub at: Rendezvous,
}

/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(50);

/// Time after which a rank that waits says so.
const SILENCE: Duration = Duration::from_secs(1);

/// A rank's wait for others.
struct Waiting {
    began: Instant,
    timeout: Duration,
    told: bool,
}

impl Waiting {
    fn new(timeout: Duration) -> Self {
        Waiting { began: Instant::now(), timeout, told: false }
    }

    fn is_over(&self) -> bool {
        self.began.elapsed() >= self.timeout
    }

    /// Says once, when it takes long, what this rank waits for.
    fn tell(&mut self, what: impl FnOnce() -> String) {
        if !self.told && self.began.elapsed() >= SILENCE {
            self.told = true;
            warn!("waiting {}", what());
        }
    }

    /// Says so, and checks the time.
    fn look(&mut self, whom: &str) -> Result<()> {
        self.tell(|| format!("for {whom}"));
        ensure!(!self.is_over(), "it does not answer");
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For all ranks to connect.
    pub connect: Duration,
    /// For a message from a rank that sends heartbeats.
    pub message: Duration,
    /// For a heartbeat. Every process sends them several times as often, whatever else it does.
    pub heartbeat: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(120),
            // Other ranks may wait while rank 0 writes a checkpoint to a slow disk.
            message: Duration::from_secs(600),
            // Longer than a network needs to recover.
            heartbeat: Duration::from_secs(60),
        }
    }
}

/// One rank's connections.
pub struct TcpMesh {
    rank: usize,
    peers: Vec<Option<Peer>>,
    timeouts: Timeouts,
    failed: bool,
}

impl TcpMesh {
    /// Connects to all other ranks.
    ///
    /// # Errors
    /// One line: a rank did not connect in time, the port is taken, or another process has this
    /// rank.
    pub fn connect(meeting: &Meeting, timeouts: Timeouts) -> Result<Self> {
        let began = Instant::now();
        let Meeting { rank, world_size, at, .. } = meeting;
        let (rank, world_size) = (*rank, *world_size);
        let connect = || match rank {
            0 => meeting::host(meeting, timeouts.connect),
            _ => meeting::join(meeting, timeouts.connect),
        };
        let streams = connect().with_context(|| format!("rank {rank} of {world_size}: {at}"))?;
        let peer = |(rank, stream): (usize, Option<TcpStream>)| {
            stream.map(|stream| Peer::new(rank, stream, timeouts)).transpose()
        };
        let peers = streams.into_iter().enumerate().map(peer).collect::<Result<_>>()?;
        info!("{world_size} processes connected over TCP, {at}, in {} ms", began.elapsed().as_millis());
        Ok(TcpMesh { rank, peers, timeouts, failed: false })
    }

    fn peers(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut().flatten()
    }
}

/// How long, after a failure, other ranks may take to receive what was sent.
const LINGER: Duration = Duration::from_secs(5);

impl Drop for TcpMesh {
    /// Messages sent arrive even if this process has nothing more to do.
    fn drop(&mut self) {
        let deadline = Instant::now() + if self.failed { LINGER } else { self.timeouts.message };
        let mut peers: Vec<Peer> = self.peers.drain(..).flatten().collect();
        peers.iter_mut().for_each(Peer::close);
        while !peers.is_empty() && Instant::now() < deadline {
            peers.retain_mut(Peer::is_sending);
            sleep(Duration::from_millis(1));
        }
    }
}

impl Transport for TcpMesh {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.peers.len()
    }

    fn describe(&self) -> String {
        format!("{} processes over TCP", self.peers.len())
    }

    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        for (peer, message) in self.peers.iter().zip(outgoing) {
            if let Some(peer) = peer {
                peer.send(message.to_vec());
            }
        }
        let mut peers = self.peers.iter_mut().zip(incoming);
        let received = peers.try_for_each(|(peer, message)| match peer {
            Some(peer) => peer.receive(message),
            None => Ok(()),
        });
        if let Err(why) = &received {
            self.failed = true;
            self.peers().for_each(|peer| peer.send_failure(why.to_string()));
        }
        received
    }
}

#[cfg(test)]
mod tests;
