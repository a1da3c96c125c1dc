//! TCP connections between all pairs of ranks: how processes without MPI find each other, and the
//! transport of CPU devices.

mod handshake;
mod peer;

use super::transport::Transport;
use anyhow::{Context, Result};
use log::info;
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

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Rendezvous::Address(address) => write!(f, "rendezvous at {address}"),
            Rendezvous::File(path) => write!(f, "rendezvous through {}", path.display()),
        }
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
    /// Connects to all other ranks. `run` distinguishes this run from others that may use the same
    /// port or file.
    ///
    /// # Errors
    /// One line: a rank did not connect in time, another program or run is there, or two processes
    /// have one rank.
    pub fn connect(
        rank: usize,
        world_size: usize,
        run: &str,
        at: &Rendezvous,
        timeouts: Timeouts,
    ) -> Result<Self> {
        let began = Instant::now();
        let deadline = began + timeouts.connect;
        let connect = || match rank {
            0 => handshake::host(world_size, run, at, deadline),
            _ => handshake::join(rank, world_size, run, at, deadline),
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
