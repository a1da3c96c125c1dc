//! The processes of an attempt. Each rank is a process group: behind a wrapper script the trainer
//! is a child of the program that was started, and must not outlive the attempt either.

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process_group, test_kill_process_group, waitpgid,
};
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Child;
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// Pause between two looks at the ranks.
pub const POLL: Duration = Duration::from_millis(20);

/// Time for the last output of processes that have ended, and for killed processes to be gone.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Longer lines are cut.
const LONGEST_LINE: u64 = 1 << 16;

/// The first rank that failed, and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    rank: usize,
    status: WaitStatus,
}

impl Failure {
    /// The exit code, as a shell reports it.
    pub fn code(&self) -> i32 {
        let signal = || 128 + self.status.terminating_signal().unwrap_or_default();
        self.status.exit_status().unwrap_or_else(signal)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Failure { rank, status } = self;
        match status.terminating_signal() {
            Some(signal) => write!(f, "rank {rank} was killed by {}", crate::train::signals::name_of(signal)),
            None => write!(f, "rank {rank} ended with exit code {}", self.code()),
        }
    }
}

/// The ranks of an attempt. They are killed when this is dropped.
#[derive(Default)]
pub struct Ranks {
    /// Those of which any process is alive.
    alive: Vec<Rank>,
    readers: Vec<JoinHandle<()>>,
}

struct Rank {
    rank: usize,
    /// The process that was started, which leads the group.
    leader: Pid,
    /// The leader has ended. Its children may run on.
    ended: bool,
}

impl Ranks {
    /// Takes over a process that leads a group, and shows its output.
    ///
    /// # Errors
    /// If the threads that read the output cannot be started.
    pub fn add(&mut self, rank: usize, mut child: Child) -> Result<()> {
        self.alive.push(Rank { rank, leader: Pid::from_child(&child), ended: false });
        if let Some(out) = child.stdout.take() {
            self.readers.push(prefix(rank, out, std::io::stdout())?);
        }
        if let Some(err) = child.stderr.take() {
            self.readers.push(prefix(rank, err, std::io::stderr())?);
        }
        Ok(())
    }

    /// The number of ranks of which any process is alive.
    pub fn alive(&self) -> usize {
        self.alive.len()
    }

    /// Whether any rank has not ended. Its children count only once it is gone.
    pub fn are_running(&self) -> bool {
        self.alive.iter().any(|rank| !rank.ended)
    }

    /// Notes who has ended. Returns the rank that failed since the last call. If several failed,
    /// that is one killed by a signal, since the others fail because it is gone.
    ///
    /// # Errors
    /// If the system cannot tell.
    pub fn poll(&mut self) -> Result<Option<Failure>> {
        let mut failures = Vec::new();
        let mut i = 0;
        while i < self.alive.len() {
            let Rank { rank, leader, ended } = &mut self.alive[i];
            match waitpgid(*leader, WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == *leader => {
                    *ended = true;
                    let failed = status.exit_status() != Some(0);
                    failures.extend(failed.then_some(Failure { rank: *rank, status }));
                }
                // A child that it left to this process.
                Ok(Some(_)) => {}
                Ok(None) => i += 1,
                // The number of a group stays taken while it has processes.
                Err(Errno::CHILD) if test_kill_process_group(*leader).is_ok() => i += 1,
                Err(Errno::CHILD) => drop(self.alive.remove(i)),
                Err(e) => return Err(e).context("waiting for a rank"),
            }
        }
        Ok(failures.into_iter().min_by_key(|failure| failure.status.terminating_signal().is_none()))
    }

    /// Sends a signal to all processes of all ranks.
    pub fn send(&self, signal: Signal) {
        for rank in &self.alive {
            // An error means that the processes have ended.
            let _ = kill_process_group(rank.leader, signal);
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.send(Signal::KILL);
        let deadline = Instant::now() + LAST_WORDS;
        while self.alive() > 0 && self.poll().is_ok() && Instant::now() < deadline {
            sleep(POLL / 10);
        }
        // A process that left its group may hold a pipe: its reader is left behind.
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < deadline {
            sleep(POLL / 10);
        }
    }
}

/// Starts a thread that copies lines, each with the rank in front.
fn prefix(
    rank: usize,
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> Result<JoinHandle<()>> {
    let copy = move || {
        let (mut from, mut line) = (BufReader::new(from), Vec::new());
        while (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let mut prefixed = format!("[{rank}] ").into_bytes();
            prefixed.append(&mut line);
            if prefixed.last() != Some(&b'\n') {
                prefixed.push(b'\n');
            }
            // One write per line, so that lines of different ranks do not mix. If the reader of the
            // output is gone, the run continues.
            let _ = to.write_all(&prefixed).and_then(|()| to.flush());
        }
    };
    let thread = Builder::new().name(format!("output of rank {rank}"));
    thread.spawn(copy).context("launch: cannot start a thread that reads the output of a rank")
}
