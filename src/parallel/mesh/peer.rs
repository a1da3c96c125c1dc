//! The connection to one other rank. A thread sends, so that two ranks that send each other large
//! messages do not wait for one another. A rank with nothing to send sends heartbeats: a machine
//! that lost power sends nothing, and TCP tries to reach it for a quarter of an hour.

use super::Timeouts;
use crate::parallel::transport::{check_length, gone, silent};
use anyhow::{Context, Result, anyhow};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// A heartbeat: sent in place of a message's length, with no message.
const HEARTBEAT: u64 = u64::MAX;

/// Flag in the length of a text that says why no message follows.
const FAILURE: u64 = 1 << 63;

/// Longer than any such text.
const LONGEST_TEXT: u64 = 1 << 16;

/// Heartbeats sent per timeout.
const HEARTBEATS: u32 = 6;

pub struct Peer {
    rank: usize,
    timeouts: Timeouts,
    stream: TcpStream,
    /// `None` once the thread has been told to end.
    outgoing: Option<Sender<Frame>>,
    writer: Option<JoinHandle<()>>,
    /// The rank is gone or silent.
    lost: bool,
}

enum Frame {
    Message(Vec<u8>),
    Failure(String),
}

impl Peer {
    pub fn new(rank: usize, stream: TcpStream, timeouts: Timeouts) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeouts.message.min(timeouts.heartbeat)))?;
        stream.set_write_timeout(Some(timeouts.message))?;
        let writing = stream.try_clone()?;
        let (outgoing, queue) = channel();
        let pause = timeouts.heartbeat / HEARTBEATS;
        let sender = Builder::new().name(format!("to rank {rank}"));
        let writer = sender.spawn(move || write(writing, &queue, pause)).context("cannot start a thread")?;
        Ok(Peer { rank, timeouts, stream, outgoing: Some(outgoing), writer: Some(writer), lost: false })
    }

    pub fn send(&self, message: Vec<u8>) {
        self.queue(Frame::Message(message));
    }

    /// Tells the peer why this rank sends nothing more.
    pub fn send_failure(&self, why: String) {
        self.queue(Frame::Failure(why));
    }

    fn queue(&self, frame: Frame) {
        // An error is ignored here: the next receive reports that the peer is gone, or its own
        // failure.
        let _ = self.outgoing.as_ref().expect("open until dropped").send(frame);
    }

    /// Waits for a message of exactly this length.
    pub fn receive(&mut self, message: &mut [u8]) -> Result<()> {
        let deadline = Instant::now() + self.timeouts.message;
        let mut head = [0; 8];
        let length = loop {
            self.read(&mut head)?;
            match u64::from_le_bytes(head) {
                HEARTBEAT if Instant::now() < deadline => {}
                HEARTBEAT => return Err(silent(self.rank, self.timeouts.message)),
                length => break length,
            }
        };
        if length & FAILURE != 0 {
            let mut text = vec![0; (length & !FAILURE).min(LONGEST_TEXT) as usize];
            self.read(&mut text)?;
            return Err(anyhow!("{}", String::from_utf8_lossy(&text)));
        }
        check_length(self.rank, length as usize, message.len())?;
        self.read(message)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        let Timeouts { message, heartbeat, .. } = self.timeouts;
        let read = self.stream.read_exact(bytes);
        self.lost |= read.is_err();
        read.map_err(|e| match e.kind() {
            ErrorKind::WouldBlock if message <= heartbeat => silent(self.rank, message),
            ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => anyhow!(
                "rank {} has sent no heartbeat for {} s: its machine is gone, or the network to it",
                self.rank,
                heartbeat.as_secs()
            ),
            _ => gone(self.rank),
        })
    }

    /// Lets the thread end once it has sent what is queued.
    pub fn close(&mut self) {
        self.outgoing = None;
    }

    /// Whether bytes that were sent have yet to arrive. Closing a connection with unread heartbeats
    /// in it resets it, and bytes in flight are lost.
    pub fn is_sending(&mut self) -> bool {
        let sending = self.writer.as_ref().is_some_and(|writer| !writer.is_finished());
        if self.lost || !sending && !in_flight(&self.stream) {
            return false;
        }
        // Drain what the peer sends: it may do the same, and read nothing until its own bytes
        // arrived.
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(1)));
        let _ = self.stream.read(&mut [0; 1 << 16]);
        true
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.close();
        // Unblocks a writer whose peer does not read.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The thread that sends.
fn write(mut stream: TcpStream, queue: &Receiver<Frame>, pause: Duration) {
    loop {
        let (head, body) = match queue.recv_timeout(pause) {
            Ok(Frame::Message(message)) => (message.len() as u64, message),
            Ok(Frame::Failure(why)) => (FAILURE | why.len() as u64, why.into_bytes()),
            Err(RecvTimeoutError::Timeout) => (HEARTBEAT, Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let written = stream.write_all(&head.to_le_bytes()).and_then(|()| stream.write_all(&body));
        if written.is_err() {
            return;
        }
    }
}

/// Whether the other machine has yet to acknowledge bytes.
#[cfg(target_os = "linux")]
fn in_flight(stream: &TcpStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and this request writes an int.
    let queried = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) } == 0;
    let mut state = [PollFd::new(stream, PollFlags::empty())];
    let polled = poll(&mut state, Some(&Timespec::default())).is_ok();
    // A connection that was reset keeps its bytes forever.
    let is_reset = state[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
    queried && polled && bytes > 0 && !is_reset
}

/// Other systems do not tell. Their processes are on one machine, where bytes arrive at once.
#[cfg(not(target_os = "linux"))]
fn in_flight(_stream: &TcpStream) -> bool {
    false
}
