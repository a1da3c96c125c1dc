//! How ranks connect. Rank 0 listens at an address that all ranks know, or that it writes to a
//! file. The others connect to it and tell it where they listen themselves; every connection begins
//! with a [handshake](super::handshake). When all are there, rank 0 sends them the list of places
//! and waits until each has answered: a rank whose connection has broken is missing again, and may
//! come back. Then it sends `Begin`, and each rank connects to the ranks below its own.

use super::acceptor::{Acceptor, Verified};
use super::address::{self, Published};
use super::handshake::{
    Call, FromCaller, FromHost, Hello, LONGEST_HELLO, Line, PROTOCOL, Place, Refused, persist, send,
};
use super::{Meeting, Rendezvous, Waiting};
use crate::parallel::secret::{Secret, VARIABLE, nonce};
use anyhow::{Result, bail, ensure};
use log::warn;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Longest time between two looks at who is there.
const TICK: Duration = Duration::from_millis(10);

/// Time to send a message to a rank that reads none.
const SENDING: Duration = Duration::from_secs(5);

/// A rank as rank 0 sees it.
struct Member {
    stream: TcpStream,
    place: Place,
    line: Line,
    /// The last welcome that it answered.
    met: u32,
}

impl Member {
    fn new(Verified { hello, stream, from }: Verified) -> Self {
        let host = (!from.is_loopback()).then(|| from.to_string());
        Member { stream, place: (host, hello.port), line: Line::default(), met: 0 }
    }

    /// Reads what it has answered.
    ///
    /// # Errors
    /// If it is gone.
    fn listen(&mut self) -> Result<()> {
        while let Some(line) = self.line.read(&self.stream, LONGEST_HELLO)? {
            if let FromCaller::Met(round) = serde_json::from_slice(&line)? {
                self.met = round;
            }
        }
        Ok(())
    }

    fn send(&self, message: &FromHost) -> Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(SENDING))?;
        send(&self.stream, message)?;
        Ok(self.stream.set_nonblocking(true)?)
    }
}

/// The members of a run, by rank; nobody at rank 0. A member whose connection breaks is missing.
struct Members {
    ranks: Vec<Option<Member>>,
    /// The number of the last welcome, and whether it is still true.
    round: u32,
    welcomed: bool,
}

impl Members {
    fn new(world_size: usize) -> Self {
        Members { ranks: (0..world_size).map(|_| None).collect(), round: 0, welcomed: false }
    }

    /// Keeps the members for which `keep` succeeds.
    fn retain(&mut self, mut keep: impl FnMut(&mut Member) -> Result<()>) {
        for member in &mut self.ranks {
            if member.as_mut().is_some_and(|member| keep(member).is_err()) {
                *member = None;
            }
        }
    }

    fn admit(&mut self, verified: Verified, acceptor: &mut Acceptor) {
        let rank = verified.hello.rank;
        if self.ranks[rank].as_mut().is_some_and(|member| member.listen().is_ok()) {
            acceptor.refuse(&verified.stream, two_processes(rank));
            return;
        }
        let member = Member::new(verified);
        if member.send(&FromHost::Accepted).is_ok() {
            self.ranks[rank] = Some(member);
            self.welcomed = false;
        }
    }

    /// Those who are missing; if nobody is, those who have not answered the welcome.
    fn missing(&self) -> Vec<usize> {
        let others = 1..self.ranks.len();
        let gone: Vec<usize> = others.clone().filter(|&rank| self.ranks[rank].is_none()).collect();
        if !gone.is_empty() {
            return gone;
        }
        let met =
            |rank: usize| self.ranks[rank].as_ref().is_some_and(|m| self.welcomed && m.met == self.round);
        others.filter(|&rank| !met(rank)).collect()
    }

    /// Sends all of them the list of places, if they are complete and do not have it.
    fn welcome(&mut self) {
        if self.welcomed || self.ranks.iter().skip(1).any(Option::is_none) {
            return;
        }
        self.round += 1;
        self.welcomed = true;
        let place =
            |member: &Option<Member>| member.as_ref().map_or((None, 0), |member| member.place.clone());
        let places = self.ranks.iter().map(place).collect();
        let welcome = FromHost::Welcome { round: self.round, places };
        self.retain(|member| member.send(&welcome));
    }

    /// Waits until all have met.
    fn gather(
        &mut self,
        acceptor: &mut Acceptor,
        Meeting { world_size, at, size_from, .. }: &Meeting,
        published: Option<&Published>,
        timeout: Duration,
    ) -> Result<()> {
        let mut waiting = Waiting::new(timeout);
        loop {
            for verified in acceptor.accept_ready(TICK)? {
                self.admit(verified, acceptor);
            }
            self.retain(Member::listen);
            self.welcome();
            let missing = self.missing();
            if missing.is_empty() {
                return Ok(());
            }
            published.map_or(Ok(()), Published::check)?;
            let missing = || name_ranks(&missing, *world_size);
            waiting.tell(|| format!("{} for {} ({size_from})", at.place(), missing()));
            if waiting.is_over() {
                let seconds = timeout.as_secs();
                let refused = acceptor.refused();
                bail!("{} did not come within {seconds} s ({size_from}){refused}", missing());
            }
        }
    }

    /// Lets all of them begin.
    fn begin(self) -> Result<Vec<Option<TcpStream>>> {
        let stream = |member: Option<Member>| {
            let Some(member) = member else { return Ok(None) };
            // Whoever is gone by now is missed by the first message.
            let _ = member.send(&FromHost::Begin);
            member.stream.set_nonblocking(false)?;
            Ok(Some(member.stream))
        };
        self.ranks.into_iter().map(stream).collect()
    }
}

fn two_processes(rank: usize) -> String {
    format!("two processes have rank {rank}: give each process a rank of its own")
}

/// Runs on rank 0: meets all other ranks, and tells them about each other.
pub fn host(meeting: &Meeting, timeout: Duration) -> Result<Vec<Option<TcpStream>>> {
    let at = &meeting.at;
    let listener = address::listen(at)?;
    let here = listener.local_addr()?;
    let drawn = matches!(at, Rendezvous::File(_)) && meeting.secret.is_none();
    let secret = if drawn { Secret::draw()? } else { meeting.secret.clone() };
    if secret.is_none() && !here.ip().to_canonical().is_loopback() {
        warn!(
            "whoever reaches port {} can join this run, because it has no secret: set {VARIABLE} to the same \
             random text for all ranks (openssl rand -hex 16)",
            here.port()
        );
    }
    let published = match at {
        Rendezvous::File(path) => {
            let written = if drawn { &secret } else { &Secret::NONE };
            Some(Published::new(path, here.port(), written)?)
        }
        Rendezvous::Address(_) => None,
    };
    let mut acceptor = Acceptor::new(listener, meeting, &secret)?;
    let mut members = Members::new(meeting.world_size);
    match members.gather(&mut acceptor, meeting, published.as_ref(), timeout) {
        Ok(()) => members.begin(),
        Err(why) => {
            let refused = FromHost::Refused(format!("rank 0 ended: {why:#}"));
            members.retain(|member| member.send(&refused));
            Err(why)
        }
    }
}

/// `ranks 1, 2 of 4`.
fn name_ranks(ranks: &[usize], world_size: usize) -> String {
    const NAMED: usize = 8;
    let named: Vec<String> = ranks.iter().take(NAMED).map(usize::to_string).collect();
    let more = match ranks.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let plural = if ranks.len() == 1 { "" } else { "s" };
    format!("rank{plural} {}{more} of {world_size}", named.join(", "))
}

/// Runs on other ranks: meets rank 0, then connects to lower ranks, and accepts higher ranks.
pub fn join(meeting: &Meeting, timeout: Duration) -> Result<Vec<Option<TcpStream>>> {
    let Meeting { rank, world_size, .. } = *meeting;
    let listener = address::listen_beside(&meeting.at)?;
    let hello = |to| -> Result<Hello> {
        let (run, port) = (meeting.run.clone(), listener.local_addr()?.port());
        Ok(Hello { warpsmith: PROTOCOL, run, world_size, rank, port, to, nonce: nonce()? })
    };
    let (first, secret, places) = meet_rank0(meeting, timeout, &|| hello(0))?;
    ensure!(places.len() == world_size, "rank 0 knows of {} processes", places.len());
    let host_of_rank0 = first.peer_addr()?.ip().to_string();
    let mut streams: Vec<Option<TcpStream>> = (0..world_size).map(|_| None).collect();
    streams[0] = Some(first);
    let mut waiting = Waiting::new(timeout);
    for (other, (host, port)) in places.iter().enumerate().take(rank).skip(1) {
        let host = host.as_deref().unwrap_or(&host_of_rank0);
        let whom = format!("rank {other} at {host}:{port}");
        let call = persist(&mut waiting, &whom, |waiting| {
            let stream = address::dial((host, *port))?;
            Call::handshake(stream, &hello(other)?, &secret, &mut || waiting.look(&whom))
        });
        streams[other] = Some(call?.stream);
    }
    accept_links(listener, meeting, &secret, &mut waiting, &mut streams)?;
    Ok(streams)
}

/// Accepts the ranks above this one.
fn accept_links(
    listener: TcpListener,
    meeting: &Meeting,
    secret: &Secret,
    waiting: &mut Waiting,
    streams: &mut [Option<TcpStream>],
) -> Result<()> {
    let Meeting { rank: own, world_size, .. } = *meeting;
    let mut acceptor = Acceptor::new(listener, meeting, secret)?;
    loop {
        let missing: Vec<usize> = (own + 1..world_size).filter(|&rank| streams[rank].is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let missing = || name_ranks(&missing, world_size);
        waiting.tell(|| format!("for connections from {}", missing()));
        ensure!(!waiting.is_over(), "{} did not connect in time{}", missing(), acceptor.refused());
        for Verified { hello, stream, .. } in acceptor.accept_ready(TICK)? {
            let place = &mut streams[hello.rank];
            if place.as_ref().is_some_and(|stream| !is_closed(stream)) {
                acceptor.refuse(&stream, two_processes(hello.rank));
            } else if send(&stream, &FromHost::Accepted).is_ok() {
                stream.set_nonblocking(false)?;
                *place = Some(stream);
            }
        }
    }
}

/// Connects to rank 0 of this run, until it says that all ranks have met. Returns the connection,
/// the secret of the run and the places of all ranks.
fn meet_rank0(
    meeting: &Meeting,
    timeout: Duration,
    hello: &dyn Fn() -> Result<Hello>,
) -> Result<(TcpStream, Secret, Vec<Place>)> {
    let whom = format!("rank 0 {} ({})", meeting.at.place(), meeting.size_from);
    let mut accepted = false;
    persist(&mut Waiting::new(timeout), &whom, |waiting| {
        let found = address::find_rank0(&meeting.at, &meeting.secret);
        let (address, secret) = found.map_err(|why| leave(accepted).unwrap_or(why))?;
        let stream = address::dial(&*address).map_err(|why| leave(accepted).unwrap_or(why.into()))?;
        let mut look = || {
            waiting.look(&whom)?;
            // A file may hold the address of an earlier run until rank 0 overwrites it.
            let moved =
                address::find_rank0(&meeting.at, &meeting.secret).is_ok_and(|(now, _)| now != address);
            ensure!(!moved, "rank 0 has moved");
            Ok(())
        };
        let mut call = Call::handshake(stream, &hello()?, &secret, &mut look)?;
        accepted = true;
        let mut places = Vec::new();
        loop {
            match call.receive(&mut look)? {
                FromHost::Welcome { round, places: all } => {
                    places = all;
                    send(&call.stream, &FromCaller::Met(round))?;
                }
                FromHost::Begin => return Ok((call.stream, secret, places)),
                FromHost::Refused(why) => return Err(Refused(why).into()),
                FromHost::Challenge { .. } | FromHost::Accepted => bail!("an unexpected message"),
            }
        }
    })
}

/// The error of a rank whose rank 0 was there before.
fn leave(accepted: bool) -> Option<anyhow::Error> {
    accepted.then(|| Refused("rank 0 waited for other ranks, and left: its output says why".into()).into())
}

/// Whether the other end has closed a connection on which it has nothing to say.
fn is_closed(stream: &TcpStream) -> bool {
    let peek = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let closed = !matches!(&peek, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
    closed || stream.set_nonblocking(false).is_err()
}

#[cfg(test)]
mod tests;
