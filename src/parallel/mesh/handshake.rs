//! The handshake at the start of every connection between ranks, one line of JSON per message:
//!
//! 1. The caller sends [`Hello`], with a nonce.
//! 2. The host sends [`FromHost::Challenge`]: a nonce of its own, and its proof over both.
//! 3. The caller checks that proof and sends its own: [`FromCaller::Proof`].
//! 4. The host sends [`FromHost::Accepted`], or [`FromHost::Refused`] and closes the connection.
//!
//! A host that cannot prove itself, for example because it belongs to another run, sends `Refused`
//! in place of the challenge. The caller then tries again: a stranger may have sent it.

use super::Waiting;
use crate::parallel::secret::{End, Nonce, Proof, Secret};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Version of the messages between ranks.
pub const PROTOCOL: u32 = 1;

/// The first message of a caller. Proofs cover the whole line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the caller.
    pub warpsmith: u32,
    /// The run, the same for all its ranks. Processes of other runs are turned away.
    pub run: String,
    pub world_size: usize,
    pub rank: usize,
    /// The port on which the caller listens itself.
    pub port: u16,
    /// The rank that is called.
    pub to: usize,
    pub nonce: Nonce,
}

/// The part of [`Hello`] that all versions have.
#[derive(Deserialize)]
pub struct Version {
    pub warpsmith: u32,
}

/// Host and port of a rank. There is no host for ranks on rank 0's own machine, whose address
/// depends on who asks.
pub type Place = (Option<String>, u16);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromHost {
    Challenge {
        nonce: Nonce,
        proof: Proof,
    },
    Accepted,
    Refused(String),
    /// Rank 0 knows the place of every rank, and awaits [`FromCaller::Met`] with the same number.
    Welcome {
        round: u32,
        places: Vec<Place>,
    },
    /// All ranks have answered the last welcome.
    Begin,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromCaller {
    Proof(Proof),
    Met(u32),
}

/// The error after which no other attempt helps: a host that has proven itself refused this rank,
/// or has left.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The longest line before a proof.
pub const LONGEST_HELLO: usize = 4096;

/// The longest welcome: of the most processes that a run may have.
const LONGEST_WELCOME: usize = 1 << 23;

/// Pause between two looks at a connection that is silent.
const LOOK: Duration = Duration::from_millis(200);

/// The caller's end of a connection.
pub struct Call {
    pub stream: TcpStream,
    pub line: Line,
    /// The longest line that is read.
    longest: usize,
}

impl Call {
    /// Proves to the rank at the other end that this one belongs to the run, and returns once that
    /// rank has accepted it. Calls `look` while the other end is silent.
    ///
    /// # Errors
    /// [`Refused`], or any other error, after which another attempt may succeed.
    pub fn handshake(
        stream: TcpStream,
        hello: &Hello,
        secret: &Secret,
        look: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        let mut call = Call { stream, line: Line::default(), longest: LONGEST_HELLO };
        let said = send(&call.stream, hello)?;
        let (nonce, proof) = match call.receive(look)? {
            FromHost::Challenge { nonce, proof } => (nonce, proof),
            FromHost::Refused(why) => bail!(why),
            _ => bail!("another program is there"),
        };
        ensure!(
            secret.verify(&proof, End::Host, &said, &nonce),
            "the process there does not know the secret of this run"
        );
        send(&call.stream, &FromCaller::Proof(secret.proof(End::Caller, &said, &nonce)))?;
        match call.receive(look)? {
            FromHost::Accepted => Ok(Call { longest: LONGEST_WELCOME, ..call }),
            FromHost::Refused(why) => Err(Refused(why).into()),
            _ => bail!("another program is there"),
        }
    }

    /// Waits for the next message, and calls `look` while there is none.
    pub fn receive(&mut self, look: &mut dyn FnMut() -> Result<()>) -> Result<FromHost> {
        loop {
            match self.line.read(&self.stream, self.longest)? {
                Some(line) => return Ok(serde_json::from_slice(&line)?),
                None => look()?,
            }
        }
    }
}

/// Dials until `attempt` succeeds, a host refuses this rank, or the time is over. The last error
/// names `whom`.
pub fn persist<T>(
    waiting: &mut Waiting,
    whom: &str,
    mut attempt: impl FnMut(&mut Waiting) -> Result<T>,
) -> Result<T> {
    loop {
        match attempt(waiting) {
            Err(why) if why.is::<Refused>() => return Err(why),
            Err(why) if waiting.is_over() => bail!(
                "{whom} did not accept this rank in time ({why:#}); is it running, and reachable from here?"
            ),
            Err(why) => {
                waiting.tell(|| format!("for {whom}: {why:#}"));
                std::thread::sleep(super::RETRY);
            }
            done => return done,
        }
    }
}

/// Sends a message, and returns its line.
pub fn send(mut stream: &TcpStream, message: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    line.pop();
    Ok(line)
}

/// A line that is arriving.
#[derive(Default)]
pub struct Line(Vec<u8>);

impl Line {
    /// Reads what is there, byte by byte because the bytes after the line belong to other readers.
    /// Returns `None` if the stream would block, or its timeout has passed, before the line ends.
    ///
    /// # Errors
    /// If the connection is closed, or the line is longer than `longest`.
    pub fn read(&mut self, mut stream: &TcpStream, longest: usize) -> Result<Option<Vec<u8>>> {
        let mut byte = [0];
        loop {
            match stream.read(&mut byte) {
                Ok(0) => bail!("the connection was closed"),
                Ok(_) if byte[0] == b'\n' => return Ok(Some(std::mem::take(&mut self.0))),
                Ok(_) => self.0.push(byte[0]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
            ensure!(self.0.len() <= longest, "expected a line of at most {longest} bytes");
        }
    }
}
