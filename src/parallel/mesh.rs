//! TCP links between all pairs of ranks: how processes without MPI find each other, and the way of the sums of CPU devices.
//!
//! Rank 0 listens where all know it (an address, or a file that it writes it to); the others come to it, tell where they
//! listen themselves, and get the list of all. Then each goes to those of lower rank.

mod peer;

use super::links::Links;
use anyhow::{Context, Result, bail, ensure};
use peer::Peer;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where rank 0 is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// `host:port`, as names are looked up by the others.
    Address(String),
    /// A file on a disk that all share, which rank 0 writes.
    File(PathBuf),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For all ranks to meet.
    pub meet: Duration,
    /// For a rank that is there but sends nothing.
    pub silence: Duration,
    /// For a sign of life, which every process gives several times as often whatever it is at.
    pub lost: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            meet: Duration::from_secs(120),
            // Others may wait for a master that writes a checkpoint to a slow disk.
            silence: Duration::from_secs(600),
            // Longer than a network needs to mend itself.
            lost: Duration::from_secs(60),
        }
    }
}

/// What a process says first on a connection. One line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    /// Which run, so that what comes from another one is turned away: the same for all ranks, chosen by who started them.
    run: String,
    world_size: usize,
    rank: usize,
    /// Where this rank listens.
    port: u16,
}

/// Rank 0's answer: where each rank listens, or why it will not do.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// At once: this is rank 0 of that run, and waits for the others.
    Wait,
    /// By rank; none for those on rank 0's own machine, whose address depends on who asks.
    Welcome(Vec<(Option<String>, u16)>),
    Refused(String),
}

/// The links of one rank.
pub struct Mesh {
    rank: usize,
    peers: Vec<Option<Peer>>,
    patience: Patience,
    failed: bool,
}

impl Mesh {
    /// Meets all others. `run` tells this run from others that may use the same port or file.
    ///
    /// # Errors
    /// One line: nobody there in time, another program or run there, a rank twice.
    pub fn meet(rank: usize, world_size: usize, run: &str, at: &Meeting, patience: Patience) -> Result<Mesh> {
        let deadline = Instant::now() + patience.meet;
        let meet = || match rank {
            0 => host(world_size, run, at, deadline),
            _ => join(rank, world_size, run, at, deadline),
        };
        let streams = meet().with_context(|| format!("rank {rank} of {world_size}: {at}"))?;
        let peer = |(rank, stream): (usize, Option<TcpStream>)| {
            stream.map(|stream| Peer::new(rank, stream, patience)).transpose()
        };
        let peers = streams.into_iter().enumerate().map(peer).collect::<Result<_>>()?;
        Ok(Mesh { rank, peers, patience, failed: false })
    }

    fn peers(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.peers.iter_mut().flatten()
    }
}

/// Rank 0: takes in all others, then tells them about each other.
fn host(world_size: usize, run: &str, at: &Meeting, deadline: Instant) -> Result<Vec<Option<TcpStream>>> {
    let listener = listen(at)?;
    if let Meeting::File(path) = at {
        publish(path, listener.local_addr()?.port())?;
    }
    let mut streams: Vec<Option<TcpStream>> = (0..world_size).map(|_| None).collect();
    let mut places = vec![(None, 0); world_size];
    while streams.iter().skip(1).any(Option::is_none) {
        let missing = || {
            let missing = (1..world_size).filter(|&rank| streams[rank].is_none());
            missing.map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ")
        };
        let Some((mut stream, from)) = accept(&listener, deadline)? else {
            bail!("rank(s) {} did not come in time", missing());
        };
        // Who does not speak our language is not one of ours, whatever it wants.
        let Ok(hello) = read_line::<Hello>(&mut stream, Instant::now() + GREETING) else { continue };
        if hello.run != run {
            let _ =
                write_line(&mut stream, &Answer::Refused("rank 0 here belongs to another run".to_owned()));
            continue;
        }
        let fits = hello.world_size == world_size && (1..world_size).contains(&hello.rank);
        // A rank that lost patience comes anew.
        if !fits || streams[hello.rank].as_ref().is_some_and(|stream| !is_closed(stream)) {
            let (theirs, rank) = (hello.world_size, hello.rank);
            let why = match fits {
                true => format!("rank {rank} came twice: give each process a rank of its own"),
                false => format!("rank {rank} of {theirs} came to a run of {world_size} processes"),
            };
            let _ = write_line(&mut stream, &Answer::Refused(why.clone()));
            bail!(why);
        }
        if write_line(&mut stream, &Answer::Wait).is_err() {
            continue;
        }
        let host = (!from.ip().is_loopback()).then(|| from.ip().to_string());
        places[hello.rank] = (host, hello.port);
        streams[hello.rank] = Some(stream);
    }
    for stream in streams.iter_mut().flatten() {
        write_line(stream, &Answer::Welcome(places.clone()))?;
    }
    if let Meeting::File(path) = at {
        // Whoever starts next must not find the address of this run.
        let _ = std::fs::remove_file(path);
    }
    Ok(streams)
}

/// Other ranks: goes to rank 0, then to those of lower rank, and takes in those of higher rank.
fn join(
    rank: usize,
    world_size: usize,
    run: &str,
    at: &Meeting,
    deadline: Instant,
) -> Result<Vec<Option<TcpStream>>> {
    let listener = bind(0)?;
    let port = listener.local_addr()?.port();
    let hello = Hello { run: run.to_owned(), world_size, rank, port };
    let mut first = knock(at, &hello, deadline)?;
    let places = match read_line(&mut first, deadline).context("rank 0 waited for the others, and left")? {
        Answer::Welcome(places) => places,
        Answer::Refused(why) => bail!(why),
        Answer::Wait => bail!("rank 0 said to wait twice"),
    };
    ensure!(places.len() == world_size, "rank 0 told of {} processes", places.len());
    let next_to_rank_0 = first.peer_addr()?.ip().to_string();
    let mut streams: Vec<Option<TcpStream>> = (0..world_size).map(|_| None).collect();
    streams[0] = Some(first);
    for (other, (host, port)) in places.iter().enumerate().take(rank).skip(1) {
        let host = host.as_deref().unwrap_or(&next_to_rank_0);
        let address = (host, *port).to_socket_addrs()?.next().context("an address without an address")?;
        let mut stream = dial(address, deadline).with_context(|| format!("rank {other} at {address}"))?;
        write_line(&mut stream, &hello)?;
        streams[other] = Some(stream);
    }
    while streams.iter().skip(rank + 1).any(Option::is_none) {
        let Some((mut stream, _)) = accept(&listener, deadline)? else {
            bail!("a rank above {rank} did not come in time")
        };
        let Ok(hello) = read_line::<Hello>(&mut stream, deadline) else { continue };
        if hello.run == run && (rank + 1..world_size).contains(&hello.rank) {
            streams[hello.rank] = Some(stream);
        }
    }
    Ok(streams)
}

/// A connection to rank 0 of this run, which waits for the others.
fn knock(at: &Meeting, hello: &Hello, deadline: Instant) -> Result<TcpStream> {
    loop {
        let mut stream = connect(at, deadline)?;
        let answer = write_line(&mut stream, hello)
            .and_then(|()| read_line::<Answer>(&mut stream, Instant::now() + GREETING));
        match answer {
            Ok(Answer::Wait) => return Ok(stream),
            // The address in a file may be that of a run before; rank 0 will write ours over it.
            Ok(Answer::Refused(why)) if matches!(at, Meeting::Address(_)) => bail!(why),
            Err(e) if Instant::now() > deadline => return Err(e.context("who listens there gives no answer")),
            _ => sleep(RETRY),
        }
    }
}

/// Whether the other end has hung up.
fn is_closed(stream: &TcpStream) -> bool {
    let peek = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let closed = !matches!(&peek, Err(e) if e.kind() == ErrorKind::WouldBlock);
    closed || stream.set_nonblocking(false).is_err()
}

/// How long one who calls may take to say who it is.
const GREETING: Duration = Duration::from_secs(2);

/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(50);

fn listen(at: &Meeting) -> Result<TcpListener> {
    match at {
        Meeting::File(_) => bind(0),
        Meeting::Address(address) => {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            let port: u16 = port.with_context(|| format!("expected host:port, found {address}"))?;
            bind(port)
        }
    }
}

/// On all of this machine's addresses: those of version 6, which take calls of version 4 too, or of 4 alone.
fn bind(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind(("::", port)).or_else(|e| match e.kind() {
        ErrorKind::AddrInUse => Err(e),
        _ => TcpListener::bind(("0.0.0.0", port)),
    });
    listener.with_context(|| format!("cannot listen on port {port}: choose another"))
}

/// Writes where this process listens, in one act, over what an earlier run may have left.
fn publish(path: &Path, port: u16) -> Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, format!("{host}:{port}\n"))
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The next caller, or `None` after the deadline.
fn accept(listener: &TcpListener, deadline: Instant) -> Result<Option<(TcpStream, SocketAddr)>> {
    listener.set_nonblocking(true)?;
    while Instant::now() < deadline {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                return Ok(Some((stream, canonical(from))));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => sleep(RETRY / 5),
            Err(e) => return Err(e).context("accepting connections"),
        }
    }
    Ok(None)
}

/// A caller of version 4 at a listener of version 6 has an address of version 6 that holds its own.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A connection to rank 0, however long it takes to be there.
fn connect(at: &Meeting, deadline: Instant) -> Result<TcpStream> {
    let mut last = None;
    while Instant::now() < deadline {
        let address = match at {
            Meeting::Address(address) => Ok(address.clone()),
            Meeting::File(path) => std::fs::read_to_string(path).map(|text| text.trim().to_owned()),
        };
        match address.and_then(|address| first_that_answers(&address)) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = Some(e),
        }
        sleep(RETRY);
    }
    let why = last.map_or("no time".to_owned(), |e| e.to_string());
    bail!("rank 0 was not there in time ({why}); is it running, and the address reachable from here?")
}

/// A name may have several addresses, not all of which lead anywhere.
fn first_that_answers(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn dial(address: SocketAddr, deadline: Instant) -> Result<TcpStream> {
    let left = deadline.saturating_duration_since(Instant::now()).max(RETRY);
    Ok(TcpStream::connect_timeout(&address, left)?)
}

/// More than any line of ours for thousands of ranks.
const LONGEST_LINE: usize = 1 << 20;

fn write_line(stream: &mut TcpStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// Byte by byte: what follows the line belongs to others.
fn read_line<T: for<'a> Deserialize<'a>>(stream: &mut TcpStream, deadline: Instant) -> Result<T> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LONGEST_LINE {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(serde_json::from_slice(&line)?);
        }
        line.push(byte[0]);
    }
    bail!("expected a line, found none")
}

impl std::fmt::Display for Meeting {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Meeting::Address(address) => write!(f, "meeting at {address}"),
            Meeting::File(path) => write!(f, "meeting through {}", path.display()),
        }
    }
}

/// What others are given, after a failure, to take what was sent.
const PARTING: Duration = Duration::from_secs(5);

impl Drop for Mesh {
    /// What was sent arrives, even if this process has nothing more to do.
    fn drop(&mut self) {
        let deadline = Instant::now() + if self.failed { PARTING } else { self.patience.silence };
        let mut peers: Vec<Peer> = self.peers.drain(..).flatten().collect();
        peers.iter_mut().for_each(Peer::close);
        while !peers.is_empty() && Instant::now() < deadline {
            peers.retain_mut(Peer::is_sending);
            sleep(Duration::from_millis(1));
        }
    }
}

impl Links for Mesh {
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
