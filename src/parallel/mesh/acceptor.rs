//! Accepts connections for a rank that listens: it shakes hands with all callers at the same time,
//! and returns those who prove that they belong to the run. Nobody else takes a place, delays the
//! others or ends the run: each has a few seconds and a few kilobytes for its handshake, and the
//! number of pending ones is limited.

use super::Meeting;
use super::handshake::{FromCaller, FromHost, Hello, LONGEST_HELLO, Line, PROTOCOL, Version, send};
use crate::parallel::secret::{End, Nonce, Secret, nonce};
use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Time for a whole handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Handshakes that may be pending at once, beside those of the ranks of the run.
const MAX_PENDING: usize = 128;

/// Connections that are accepted before those that are pending are read again.
const AT_ONCE: usize = 32;

/// Different refusals that are remembered.
const REMEMBERED: usize = 4;

pub struct Acceptor<'a> {
    listener: TcpListener,
    meeting: &'a Meeting,
    secret: &'a Secret,
    /// The oldest first.
    callers: VecDeque<Caller>,
    /// Why callers were refused.
    refused: Vec<String>,
}

/// A caller who has not proven yet that it belongs to the run.
struct Caller {
    stream: TcpStream,
    from: IpAddr,
    deadline: Instant,
    line: Line,
    /// Its hello, and the nonce that it must answer.
    challenged: Option<Challenged>,
}

struct Challenged {
    hello: Hello,
    line: Vec<u8>,
    nonce: Nonce,
}

/// A rank that has proven that it belongs to the run, on a connection that does not block.
pub struct Verified {
    pub hello: Hello,
    pub stream: TcpStream,
    pub from: IpAddr,
}

impl<'a> Acceptor<'a> {
    pub fn new(listener: TcpListener, meeting: &'a Meeting, secret: &'a Secret) -> Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Acceptor { listener, meeting, secret, callers: VecDeque::new(), refused: Vec::new() })
    }

    /// Waits up to `time` for bytes from any caller, and continues the handshakes that have some.
    /// Returns the ranks that have proven themselves; the caller of this function answers them.
    ///
    /// # Errors
    /// If no connection can be accepted.
    pub fn accept_ready(&mut self, time: Duration) -> Result<Vec<Verified>> {
        self.wait(time);
        let all_files_open = self.accept()?;
        let mut verified = Vec::new();
        for _ in 0..self.callers.len() {
            let Some(mut caller) = self.callers.pop_front() else { break };
            match self.advance(&mut caller) {
                Ok(Some(hello)) => {
                    let Caller { stream, from, .. } = caller;
                    verified.push(Verified { hello, stream, from });
                }
                Ok(None) if Instant::now() < caller.deadline => self.callers.push_back(caller),
                // Not one of ours, or too slow.
                Ok(None) | Err(_) => {}
            }
        }
        // Nobody is dropped unheard: one who has just been accepted may have sent a hello.
        let excess = self.callers.len().saturating_sub(MAX_PENDING + self.meeting.world_size);
        for _ in 0..excess.max(usize::from(all_files_open)) {
            self.drop_oldest();
        }
        Ok(verified)
    }

    /// The reasons why callers were refused so far.
    pub fn refused(&self) -> String {
        match self.refused.is_empty() {
            true => String::new(),
            false => format!("; refused meanwhile: {}", self.refused.join(", ")),
        }
    }

    /// Refuses a caller, and remembers why.
    pub fn refuse(&mut self, stream: &TcpStream, why: String) -> anyhow::Error {
        // It may be gone.
        let _ = send(stream, &FromHost::Refused(why.clone()));
        if self.refused.len() < REMEMBERED && !self.refused.contains(&why) {
            self.refused.push(why.clone());
        }
        anyhow!(why)
    }

    fn wait(&self, time: Duration) {
        let callers = self.callers.iter().map(|caller| PollFd::new(&caller.stream, PollFlags::IN));
        let mut all: Vec<PollFd> = callers.collect();
        all.push(PollFd::new(&self.listener, PollFlags::IN));
        let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        // An error is a signal, and a shorter wait does no harm.
        let _ = poll(&mut all, Some(&time));
    }

    /// Accepts those who call. Returns whether this process can open no more files, which strangers
    /// may hold.
    fn accept(&mut self) -> Result<bool> {
        for _ in 0..AT_ONCE {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    stream.set_nonblocking(true)?;
                    let (from, deadline) = (from.ip().to_canonical(), Instant::now() + HANDSHAKE);
                    let line = Line::default();
                    self.callers.push_back(Caller { stream, from, deadline, line, challenged: None });
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(_) if !self.callers.is_empty() => return Ok(true),
                Err(e) => return Err(e).context("accepting connections"),
            }
        }
        Ok(false)
    }

    /// Drops the oldest caller, of those who have said nothing if there is one.
    fn drop_oldest(&mut self) {
        let silent = self.callers.iter().position(|caller| caller.challenged.is_none());
        self.callers.remove(silent.unwrap_or(0));
    }

    /// Reads what a caller has sent, and answers. Returns its hello once it has proven itself.
    ///
    /// # Errors
    /// If it does not belong to the run.
    fn advance(&mut self, caller: &mut Caller) -> Result<Option<Hello>> {
        while let Some(line) = caller.line.read(&caller.stream, LONGEST_HELLO)? {
            match caller.challenged.take() {
                None => caller.challenged = Some(self.challenge(&caller.stream, line)?),
                Some(challenged) => return self.check(&caller.stream, challenged, &line).map(Some),
            }
        }
        Ok(None)
    }

    /// Answers a hello with a challenge, if it is of this run.
    fn challenge(&mut self, stream: &TcpStream, line: Vec<u8>) -> Result<Challenged> {
        let version = serde_json::from_slice::<Version>(&line)?.warpsmith;
        if version != PROTOCOL {
            let why = format!("a rank of another version of the program called (protocol {version})");
            return Err(self.refuse(stream, why));
        }
        let hello: Hello = serde_json::from_slice(&line)?;
        if hello.run != self.meeting.run {
            let why = format!("rank {} here belongs to another run", self.meeting.rank);
            return Err(self.refuse(stream, why));
        }
        let nonce = nonce()?;
        let proof = self.secret.proof(End::Host, &line, &nonce);
        send(stream, &FromHost::Challenge { nonce, proof })?;
        Ok(Challenged { hello, line, nonce })
    }

    /// Checks the answer to a challenge, and then whether the caller fits.
    fn check(&mut self, stream: &TcpStream, challenged: Challenged, answer: &[u8]) -> Result<Hello> {
        let Challenged { hello, line, nonce } = challenged;
        let FromCaller::Proof(proof) = serde_json::from_slice(answer)? else {
            return Err(anyhow!("no proof"));
        };
        let (theirs, rank) = (hello.world_size, hello.rank);
        if !self.secret.verify(&proof, End::Caller, &line, &nonce) {
            return Err(self.refuse(stream, format!("rank {rank} does not know the secret of this run")));
        }
        let Meeting { rank: own, world_size, .. } = *self.meeting;
        if theirs != world_size || !(own + 1..world_size).contains(&rank) || hello.to != own {
            let why = format!("rank {rank} of {theirs} tried to join a run of {world_size} processes");
            return Err(self.refuse(stream, why));
        }
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::mesh::Rendezvous;
    use std::io::Read;

    #[test]
    fn callers_are_heard_before_any_is_dropped() {
        let meeting = Meeting {
            rank: 0,
            world_size: 3,
            size_from: String::new(),
            run: "run".to_owned(),
            secret: Secret::NONE,
            at: Rendezvous::Address(String::new()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut acceptor = Acceptor::new(listener, &meeting, &meeting.secret).unwrap();
        let call = |rank| {
            let stream = TcpStream::connect(address).unwrap();
            let run = meeting.run.clone();
            let nonce = nonce().unwrap();
            let hello = Hello { warpsmith: PROTOCOL, run, world_size: 3, rank, port: 1, to: 0, nonce };
            send(&stream, &hello).unwrap();
            stream
        };
        // As many as there is room for, and all have said hello.
        let mut strangers = Vec::new();
        while strangers.len() < MAX_PENDING + meeting.world_size {
            strangers
                .extend((0..8).map(|_| call(1)).take(MAX_PENDING + meeting.world_size - strangers.len()));
            assert!(acceptor.accept_ready(Duration::from_secs(1)).unwrap().is_empty());
        }
        let ranks = [call(1), call(2)];
        for _ in 0..10 {
            acceptor.accept_ready(Duration::from_millis(20)).unwrap();
        }
        for (mut rank, number) in ranks.into_iter().zip(1..) {
            rank.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut answer = [0; 12];
            rank.read_exact(&mut answer).unwrap_or_else(|e| panic!("rank {number}: {e}"));
            assert_eq!(&answer, b"{\"Challenge\"");
        }
    }
}
