//! The watchdog. NCCL waits forever for a rank that is gone, so ranks exchange heartbeats beside
//! it. In every round all ranks receive the same heartbeats, so all of them see in the same round
//! that every rank has finished.

use crate::parallel::transport::Transport;
use anyhow::{Context, Result, anyhow};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Running,
    /// The rank will start no more collectives, and waits for the others to end together.
    Finished,
    Failed,
}

/// One rank's message of a round.
#[derive(Clone, Copy, Debug)]
struct Heartbeat {
    status: Status,
    /// How many times the rank has started collectives.
    started: u64,
}

const HEARTBEAT_BYTES: usize = 9;

impl Heartbeat {
    const FIRST: Self = Heartbeat { status: Status::Running, started: 0 };

    fn to_bytes(self) -> [u8; HEARTBEAT_BYTES] {
        let mut bytes = [self.status as u8; HEARTBEAT_BYTES];
        bytes[1..].copy_from_slice(&self.started.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEARTBEAT_BYTES]) -> Self {
        let status = match bytes[0] {
            0 => Status::Running,
            1 => Status::Finished,
            _ => Status::Failed,
        };
        let [_, started @ ..] = bytes;
        Heartbeat { status, started: u64::from_le_bytes(started) }
    }
}

/// This rank's view of all ranks.
pub struct Watchdog {
    rank: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    own: Heartbeat,
    /// The last heartbeat of each rank.
    all: Vec<Heartbeat>,
    /// Set after the last round: all ranks have finished, or why they have not.
    end: Option<Result<(), String>>,
}

impl Watchdog {
    /// Starts a thread that exchanges heartbeats every `interval`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(transport: impl Transport + 'static, interval: Duration) -> Result<Self> {
        let (rank, world_size) = (transport.rank(), transport.world_size());
        let state = State { own: Heartbeat::FIRST, all: vec![Heartbeat::FIRST; world_size], end: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = shared.clone();
        let exchange = move || theirs.exchange_heartbeats(transport, interval);
        let thread = Builder::new().name("heartbeats".to_owned()).spawn(exchange);
        Ok(Watchdog { rank, shared, thread: Some(thread.context("cannot start the thread for heartbeats")?) })
    }

    /// Counts a start of collectives on this rank.
    pub fn count_start(&self) {
        self.shared.lock().own.started += 1;
    }

    /// # Errors
    /// One line that names the rank that is gone or has failed.
    pub fn check(&self) -> Result<()> {
        match &self.shared.lock().end {
            Some(Err(why)) => Err(anyhow!("{why}")),
            _ => Ok(()),
        }
    }

    /// Checks after waiting up to `time` for the last round.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_within(&self, time: Duration) -> Result<()> {
        let state = self.shared.lock();
        let changed = &self.shared.changed;
        drop(changed.wait_timeout_while(state, time, |state| state.end.is_none()).expect("no panics"));
        self.check()
    }

    /// Returns a rank that will start no more collectives.
    pub fn finished_rank(&self) -> Option<usize> {
        self.shared.lock().all.iter().position(|heartbeat| heartbeat.status == Status::Finished)
    }

    /// Returns the other ranks that have started collectives fewer than `started` times.
    pub fn behind(&self, started: u64) -> Vec<usize> {
        let state = self.shared.lock();
        let late = |rank: &usize| *rank != self.rank && state.all[*rank].started < started;
        (0..state.all.len()).filter(late).collect()
    }

    /// Waits until all ranks have finished.
    ///
    /// # Errors
    /// If a rank is gone or has failed instead.
    pub fn finish(&mut self) -> Result<()> {
        self.shared.publish(Status::Finished);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.check()
    }

    /// Tells the other ranks, if they can be reached.
    pub fn fail(&self) {
        self.shared.publish(Status::Failed);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // No effect after `finish`. The thread is not joined: it may be waiting for a dead machine.
        self.fail();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the lock")
    }

    fn publish(&self, status: Status) {
        self.lock().own.status = status;
        self.changed.notify_all();
    }

    fn exchange_heartbeats(&self, mut transport: impl Transport, interval: Duration) {
        let (rank, world_size) = (transport.rank(), transport.world_size());
        loop {
            let own = self.lock().own;
            let bytes = own.to_bytes();
            let mut received = vec![bytes; world_size];
            let mut incoming: Vec<&mut [u8]> =
                received.iter_mut().map(<[u8; HEARTBEAT_BYTES]>::as_mut_slice).collect();
            let exchanged = transport.exchange(&vec![&bytes[..]; world_size], &mut incoming);
            let all: Vec<Heartbeat> = received.into_iter().map(Heartbeat::from_bytes).collect();
            let end = exchanged.map_or_else(|e| Some(Err(format!("{e:#}"))), |()| verdict(rank, &all));
            let mut state = self.lock();
            state.all = all;
            state.end = end;
            if state.end.is_some() {
                drop(state);
                return self.changed.notify_all();
            }
            let next = Instant::now() + interval;
            // A change of this rank's status is sent at once.
            while state.own.status == own.status
                && let Some(left) = next.checked_duration_since(Instant::now())
            {
                let waited = self.changed.wait_timeout(state, left);
                state = waited.expect("no thread panics while it holds the lock").0;
            }
        }
    }
}

/// Returns the outcome if this is the last round.
fn verdict(own: usize, all: &[Heartbeat]) -> Option<Result<(), String>> {
    let failed = |rank: usize| all[rank].status == Status::Failed;
    match (0..all.len()).find(|&rank| failed(rank) && rank != own) {
        Some(rank) => Some(Err(format!("rank {rank} has failed: its output says why"))),
        None if failed(own) => Some(Err("this rank has failed".to_owned())),
        None => all.iter().all(|heartbeat| heartbeat.status == Status::Finished).then_some(Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::transport::testing::Threads;

    const INTERVAL: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(20);

    fn watchdogs(world_size: usize) -> Vec<Watchdog> {
        let start = |transport| Watchdog::start(transport, INTERVAL).unwrap();
        Threads::of(world_size, LONG).into_iter().map(start).collect()
    }

    fn wait_until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + LONG;
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(INTERVAL);
        }
    }

    #[test]
    fn ranks_finish_together() {
        let watchdogs = watchdogs(3);
        watchdogs[1].count_start();
        wait_until(|| watchdogs[0].behind(1) == [2] && watchdogs[1].behind(1) == [0, 2]);
        assert!(watchdogs[0].behind(0).is_empty());
        std::thread::scope(|scope| {
            let mut waiting = watchdogs.into_iter();
            let (mut first, mut last) = (waiting.next().unwrap(), waiting.next_back().unwrap());
            let finishing = scope.spawn(move || first.finish());
            wait_until(|| last.finished_rank() == Some(0));
            let others = scope.spawn(move || waiting.try_for_each(|mut watchdog| watchdog.finish()));
            std::thread::sleep(5 * INTERVAL);
            assert!(!finishing.is_finished() && !others.is_finished(), "the last one is still running");
            last.finish().unwrap();
            finishing.join().unwrap().unwrap();
            others.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_rank_that_fails_or_is_gone_is_named() {
        let failing = watchdogs(3);
        failing[1].fail();
        for rank in [0, 2] {
            let error = failing[rank].check_within(LONG).unwrap_err().to_string();
            assert_eq!(error, "rank 1 has failed: its output says why");
        }
        let mut threads = Threads::of(2, LONG);
        drop(threads.pop());
        let mut alone = Watchdog::start(threads.pop().unwrap(), INTERVAL).unwrap();
        let error = alone.check_within(LONG).unwrap_err().to_string();
        assert!(error.starts_with("rank 1 is gone"), "{error}");
        assert_eq!(alone.finish().unwrap_err().to_string(), error);
    }

    #[test]
    fn a_single_rank_finishes_at_once() {
        watchdogs(1)[0].finish().unwrap();
    }
}
