//! One other rank. What is sent to it goes through a thread, so that two ranks that send each other much do not wait for one
//! another; and whoever has nothing to send gives a sign of life now and then, as a machine without power says nothing, and TCP
//! tries to reach it for a quarter of an hour.

use super::super::links::{check_length, gone, silent};
use super::Patience;
use anyhow::{Result, anyhow};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// In place of a message's length: there is none, but this rank is still there.
const SIGN_OF_LIFE: u64 = u64::MAX;

/// Added to the length of a text that says why no message follows.
const FAILURE: u64 = 1 << 63;

/// No text of ours is longer.
const LONGEST_TEXT: u64 = 1 << 16;

/// Signs of life that may get lost.
const SIGNS: u32 = 6;

pub struct Peer {
    rank: usize,
    patience: Patience,
    stream: TcpStream,
    /// `None` once the thread is told to end.
    outgoing: Option<Sender<Frame>>,
    writer: Option<JoinHandle<()>>,
    /// It is gone, or nothing is heard of it.
    lost: bool,
}

enum Frame {
    Message(Vec<u8>),
    Failure(String),
}

impl Peer {
    pub fn new(rank: usize, stream: TcpStream, patience: Patience) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience.silence.min(patience.lost)))?;
        stream.set_write_timeout(Some(patience.silence))?;
        let writing = stream.try_clone()?;
        let (outgoing, queue) = channel();
        let writer = std::thread::spawn(move || write(writing, &queue, patience.lost / SIGNS));
        Ok(Peer { rank, patience, stream, outgoing: Some(outgoing), writer: Some(writer), lost: false })
    }

    pub fn send(&self, message: Vec<u8>) {
        self.queue(Frame::Message(message));
    }

    /// Says why this rank sends nothing more.
    pub fn send_failure(&self, why: String) {
        self.queue(Frame::Failure(why));
    }

    fn queue(&self, frame: Frame) {
        // Whoever receives from this peer next will see that it is gone, or what it says of its end.
        let _ = self.outgoing.as_ref().expect("open until dropped").send(frame);
    }

    /// Waits for a message of exactly this length.
    pub fn receive(&mut self, message: &mut [u8]) -> Result<()> {
        let deadline = Instant::now() + self.patience.silence;
        let mut head = [0; 8];
        let length = loop {
            self.read(&mut head)?;
            match u64::from_le_bytes(head) {
                SIGN_OF_LIFE if Instant::now() < deadline => {}
                SIGN_OF_LIFE => return Err(silent(self.rank, self.patience.silence)),
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
        let Patience { silence, lost, .. } = self.patience;
        let read = self.stream.read_exact(bytes);
        self.lost |= read.is_err();
        read.map_err(|e| match e.kind() {
            ErrorKind::WouldBlock if silence <= lost => silent(self.rank, silence),
            ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => anyhow!(
                "rank {} has given no sign of life for {} s: its machine is gone, or the network to it",
                self.rank,
                lost.as_secs()
            ),
            _ => gone(self.rank),
        })
    }

    /// Sends no more than what is queued.
    pub fn close(&mut self) {
        self.outgoing = None;
    }

    /// Whether some of what was sent has yet to arrive. A connection that is closed with signs of life unread in it is torn down,
    /// and what is still on its way is lost.
    pub fn is_sending(&mut self) -> bool {
        let sending = self.writer.as_ref().is_some_and(|writer| !writer.is_finished());
        if self.lost || !sending && !under_way(&self.stream) {
            return false;
        }
        // The other one may do the same, and take nothing before it has got rid of what it sends itself.
        let _ = self.stream.set_read_timeout(Some(Duration::from_millis(1)));
        let _ = self.stream.read(&mut [0; 1 << 16]);
        true
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.close();
        // Wakes a writer that nobody listens to.
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
            Err(RecvTimeoutError::Timeout) => (SIGN_OF_LIFE, Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let written = stream.write_all(&head.to_le_bytes()).and_then(|()| stream.write_all(&body));
        if written.is_err() {
            return;
        }
    }
}

/// Whether the other machine has yet to confirm some of what was sent.
#[cfg(target_os = "linux")]
fn under_way(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut bytes: libc::c_int = 0;
    let mut state = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: both ask about a socket that is open, and write where they are told to.
    let asked = unsafe {
        libc::ioctl(state.fd, libc::TIOCOUTQ, &mut bytes) == 0 && libc::poll(&mut state, 1, 0) >= 0
    };
    // A connection that was torn down keeps its bytes for ever.
    asked && bytes > 0 && state.revents & (libc::POLLHUP | libc::POLLERR) == 0
}

/// Others do not say. Their processes are of one machine, where all arrives at once.
#[cfg(not(target_os = "linux"))]
fn under_way(_stream: &TcpStream) -> bool {
    false
}
