//! How ranks connect. Rank 0 listens at an address that all ranks know, or that it writes to a
//! file. The others connect to it, tell it where they listen themselves, and receive the list of
//! all ranks. Then each connects to the ranks below its own.

use super::Rendezvous;
use crate::files;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The first message of a process on a connection. One line of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    /// The run, the same for all its ranks. Processes of other runs are turned away.
    run: String,
    world_size: usize,
    rank: usize,
    /// The port on which this rank listens.
    port: u16,
}

/// Rank 0's answer.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// Sent at once: this is rank 0 of that run, which waits for the other ranks.
    Wait,
    /// Host and port of each rank. There is no host for ranks on rank 0's own machine, whose
    /// address depends on who asks.
    Welcome(Vec<(Option<String>, u16)>),
    Refused(String),
}

/// Runs on rank 0: accepts all other ranks, then tells them about each other.
pub fn host(
    world_size: usize,
    run: &str,
    at: &Rendezvous,
    deadline: Instant,
) -> Result<Vec<Option<TcpStream>>> {
    let listener = listen(at)?;
    if let Rendezvous::File(path) = at {
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
            bail!("rank(s) {} did not connect in time", missing());
        };
        // A caller that sends no greeting is not one of our processes.
        let Ok(hello) = read_line::<Hello>(&mut stream, Instant::now() + GREETING) else { continue };
        if hello.run != run {
            let refused = Answer::Refused("rank 0 here belongs to another run".to_owned());
            let _ = write_line(&mut stream, &refused);
            continue;
        }
        let fits = hello.world_size == world_size && (1..world_size).contains(&hello.rank);
        // A rank whose connection timed out connects again.
        if !fits || streams[hello.rank].as_ref().is_some_and(|stream| !is_closed(stream)) {
            let (theirs, rank) = (hello.world_size, hello.rank);
            let why = match fits {
                true => format!("two processes have rank {rank}: give each process a rank of its own"),
                false => format!("rank {rank} of {theirs} tried to join a run of {world_size} processes"),
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
    if let Rendezvous::File(path) = at {
        // The next run must not find the address of this one.
        let _ = std::fs::remove_file(path);
    }
    Ok(streams)
}

/// Runs on other ranks: connects to rank 0, then to lower ranks, and accepts higher ranks.
pub fn join(
    rank: usize,
    world_size: usize,
    run: &str,
    at: &Rendezvous,
    deadline: Instant,
) -> Result<Vec<Option<TcpStream>>> {
    let listener = bind(0)?;
    let port = listener.local_addr()?.port();
    let hello = Hello { run: run.to_owned(), world_size, rank, port };
    let mut first = greet_rank0(at, &hello, deadline)?;
    let places = match read_line(&mut first, deadline).context("rank 0 waited for other ranks, and left")? {
        Answer::Welcome(places) => places,
        Answer::Refused(why) => bail!(why),
        Answer::Wait => bail!("rank 0 sent Wait twice"),
    };
    ensure!(places.len() == world_size, "rank 0 knows of {} processes", places.len());
    let host_of_rank0 = first.peer_addr()?.ip().to_string();
    let mut streams: Vec<Option<TcpStream>> = (0..world_size).map(|_| None).collect();
    streams[0] = Some(first);
    for (other, (host, port)) in places.iter().enumerate().take(rank).skip(1) {
        let host = host.as_deref().unwrap_or(&host_of_rank0);
        let address = (host, *port).to_socket_addrs()?.next().context("a host without an address")?;
        let mut stream = dial(address, deadline).with_context(|| format!("rank {other} at {address}"))?;
        write_line(&mut stream, &hello)?;
        streams[other] = Some(stream);
    }
    while streams.iter().skip(rank + 1).any(Option::is_none) {
        let Some((mut stream, _)) = accept(&listener, deadline)? else {
            bail!("a rank above {rank} did not connect in time")
        };
        let Ok(hello) = read_line::<Hello>(&mut stream, deadline) else { continue };
        if hello.run == run && (rank + 1..world_size).contains(&hello.rank) {
            streams[hello.rank] = Some(stream);
        }
    }
    Ok(streams)
}

/// Connects to rank 0 of this run, until it answers that it waits for the other ranks.
fn greet_rank0(at: &Rendezvous, hello: &Hello, deadline: Instant) -> Result<TcpStream> {
    loop {
        let mut stream = connect(at, deadline)?;
        let answer = write_line(&mut stream, hello)
            .and_then(|()| read_line::<Answer>(&mut stream, Instant::now() + GREETING));
        match answer {
            Ok(Answer::Wait) => return Ok(stream),
            // A file may hold the address of an earlier run until rank 0 overwrites it.
            Ok(Answer::Refused(why)) if matches!(at, Rendezvous::Address(_)) => bail!(why),
            Err(e) if Instant::now() > deadline => return Err(e.context("rank 0 does not answer there")),
            _ => sleep(RETRY),
        }
    }
}

/// Whether the other end has closed the connection.
fn is_closed(stream: &TcpStream) -> bool {
    let peek = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let closed = !matches!(&peek, Err(e) if e.kind() == ErrorKind::WouldBlock);
    closed || stream.set_nonblocking(false).is_err()
}

/// Timeout for the greeting of a caller.
const GREETING: Duration = Duration::from_secs(2);

/// Pause between two attempts.
pub(super) const RETRY: Duration = Duration::from_millis(50);

fn listen(at: &Rendezvous) -> Result<TcpListener> {
    match at {
        Rendezvous::File(_) => bind(0),
        Rendezvous::Address(address) => {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            let port: u16 = port.with_context(|| format!("expected host:port, found {address}"))?;
            bind(port)
        }
    }
}

/// Listens on all addresses of this machine: IPv6, which also accepts IPv4, or else IPv4 alone.
fn bind(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind(("::", port)).or_else(|e| match e.kind() {
        ErrorKind::AddrInUse => Err(e),
        _ => TcpListener::bind(("0.0.0.0", port)),
    });
    listener.with_context(|| format!("cannot listen on port {port}: choose another"))
}

/// Writes this process's address to a file atomically, over one that an earlier run may have left.
fn publish(path: &Path, port: u16) -> Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    files::write(path, |out| Ok(writeln!(out, "{host}:{port}")?))
}

/// Accepts the next caller. Returns `None` after the deadline.
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

/// Turns an IPv6 address that embeds an IPv4 address, as IPv6 listeners report them, into the
/// latter.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects to rank 0, which may start to listen at any time before the deadline.
fn connect(at: &Rendezvous, deadline: Instant) -> Result<TcpStream> {
    let mut last = None;
    while Instant::now() < deadline {
        let address = match at {
            Rendezvous::Address(address) => Ok(address.clone()),
            Rendezvous::File(path) => std::fs::read_to_string(path).map(|text| text.trim().to_owned()),
        };
        match address.and_then(|address| dial_any(&address)) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = Some(e),
        }
        sleep(RETRY);
    }
    let why = last.map_or("no time".to_owned(), |e| e.to_string());
    bail!("rank 0 was not there in time ({why}); is it running, and the address reachable from here?")
}

/// Connects to the first reachable address of a name, which may have several.
fn dial_any(address: &str) -> io::Result<TcpStream> {
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

/// Longer than any line of ours for thousands of ranks.
const LONGEST_LINE: usize = 1 << 20;

fn write_line(stream: &mut TcpStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// Reads a line byte by byte, because the bytes after it belong to other readers.
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
    bail!("expected a line of at most {LONGEST_LINE} bytes")
}
