//! Whether all ranks are still there. NCCL waits for a rank that is gone for ever; so ranks tell each other beside it, by turns,
//! how they are. As everyone hears the same in a turn, all decide at the same one that all are done.

use crate::parallel::transport::Transport;
use anyhow::{Result, anyhow};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Runs,
    /// Has done all that it was to do, and waits for the others to end together.
    Leaves,
    Failed,
}

/// What a rank tells the others.
#[derive(Clone, Copy, Debug)]
struct Beat {
    health: Health,
    /// How many times it has begun operations.
    begun: u64,
}

const BEAT_BYTES: usize = 9;

impl Beat {
    const FIRST: Self = Beat { health: Health::Runs, begun: 0 };

    fn to_bytes(self) -> [u8; BEAT_BYTES] {
        let mut bytes = [self.health as u8; BEAT_BYTES];
        bytes[1..].copy_from_slice(&self.begun.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; BEAT_BYTES]) -> Self {
        let health = match bytes[0] {
            0 => Health::Runs,
            1 => Health::Leaves,
            _ => Health::Failed,
        };
        let [_, begun @ ..] = bytes;
        Beat { health, begun: u64::from_le_bytes(begun) }
    }
}

/// This rank's view of all.
pub struct Watch {
    rank: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    own: Beat,
    /// By rank, as last heard.
    all: Vec<Beat>,
    /// How it ended: all left, or why not.
    end: Option<Result<(), String>>,
}

impl Watch {
    /// Takes a turn every `interval`.
    pub fn start(links: impl Transport + 'static, interval: Duration) -> Self {
        let (rank, world_size) = (links.rank(), links.world_size());
        let state = State { own: Beat::FIRST, all: vec![Beat::FIRST; world_size], end: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || theirs.keep_watch(links, interval));
        Watch { rank, shared, thread: Some(thread) }
    }

    /// This rank begins operations that the others begin, too.
    pub fn begin(&self) {
        self.shared.lock().own.begun += 1;
    }

    /// # Errors
    /// One line that names the rank that is gone or has failed.
    pub fn check(&self) -> Result<()> {
        match &self.shared.lock().end {
            Some(Err(why)) => Err(anyhow!("{why}")),
            _ => Ok(()),
        }
    }

    /// The same, of whoever is heard of until then.
    pub fn check_for(&self, time: Duration) -> Result<()> {
        let state = self.shared.lock();
        let changed = &self.shared.changed;
        drop(changed.wait_timeout_while(state, time, |state| state.end.is_none()).expect("no panics"));
        self.check()
    }

    /// A rank that will begin nothing more.
    pub fn leaver(&self) -> Option<usize> {
        self.shared.lock().all.iter().position(|beat| beat.health == Health::Leaves)
    }

    /// Ranks that have begun less often than that, as last heard.
    pub fn behind(&self, begun: u64) -> Vec<usize> {
        let state = self.shared.lock();
        let late = |rank: &usize| *rank != self.rank && state.all[*rank].begun < begun;
        (0..state.all.len()).filter(late).collect()
    }

    /// Waits until all ranks leave.
    ///
    /// # Errors
    /// If one of them is gone or has failed instead.
    pub fn leave(&mut self) -> Result<()> {
        self.shared.tell(Health::Leaves);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.check()
    }

    /// Tells the others, if they can be told.
    pub fn fail(&self) {
        self.shared.tell(Health::Failed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Without effect on those who have left. The thread is not waited for: it may wait for a machine that is gone.
        self.fail();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    fn tell(&self, health: Health) {
        self.lock().own.health = health;
        self.changed.notify_all();
    }

    fn keep_watch(&self, mut links: impl Transport, interval: Duration) {
        let (rank, world_size) = (links.rank(), links.world_size());
        loop {
            let own = self.lock().own;
            let bytes = own.to_bytes();
            let mut heard = vec![bytes; world_size];
            let mut incoming: Vec<&mut [u8]> =
                heard.iter_mut().map(<[u8; BEAT_BYTES]>::as_mut_slice).collect();
            let exchanged = links.exchange(&vec![&bytes[..]; world_size], &mut incoming);
            let all: Vec<Beat> = heard.into_iter().map(Beat::from_bytes).collect();
            let end = exchanged.map_or_else(|e| Some(Err(format!("{e:#}"))), |()| verdict(rank, &all));
            let mut state = self.lock();
            state.all = all;
            state.end = end;
            if state.end.is_some() {
                drop(state);
                return self.changed.notify_all();
            }
            let next = Instant::now() + interval;
            // News of one's own goes out at once.
            while state.own.health == own.health
                && let Some(left) = next.checked_duration_since(Instant::now())
            {
                state = self.changed.wait_timeout(state, left).expect("nobody panics with it").0;
            }
        }
    }
}

/// How it ends, if this is the last turn.
fn verdict(own: usize, all: &[Beat]) -> Option<Result<(), String>> {
    let failed = |rank: usize| all[rank].health == Health::Failed;
    match (0..all.len()).find(|&rank| failed(rank) && rank != own) {
        Some(rank) => Some(Err(format!("rank {rank} has failed: its output says why"))),
        None if failed(own) => Some(Err("this rank has failed".to_owned())),
        None => all.iter().all(|beat| beat.health == Health::Leaves).then_some(Ok(())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::transport::testing::Threads;

    const TURN: Duration = Duration::from_millis(10);
    const LONG: Duration = Duration::from_secs(20);

    fn watches(world_size: usize) -> Vec<Watch> {
        Threads::of(world_size, LONG).into_iter().map(|links| Watch::start(links, TURN)).collect()
    }

    fn wait_until(what: impl Fn() -> bool) {
        let deadline = Instant::now() + LONG;
        while !what() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(TURN);
        }
    }

    #[test]
    fn ranks_leave_together() {
        let watches = watches(3);
        watches[1].begin();
        wait_until(|| watches[0].behind(1) == [2] && watches[1].behind(1) == [0, 2]);
        assert!(watches[0].behind(0).is_empty());
        std::thread::scope(|scope| {
            let mut waiting = watches.into_iter();
            let (mut first, mut last) = (waiting.next().unwrap(), waiting.next_back().unwrap());
            let leaving = scope.spawn(move || first.leave());
            wait_until(|| last.leaver() == Some(0));
            let others = scope.spawn(move || waiting.try_for_each(|mut watch| watch.leave()));
            std::thread::sleep(5 * TURN);
            assert!(!leaving.is_finished() && !others.is_finished(), "the last one still runs");
            last.leave().unwrap();
            leaving.join().unwrap().unwrap();
            others.join().unwrap().unwrap();
        });
    }

    #[test]
    fn who_fails_or_goes_is_named() {
        let failing = watches(3);
        failing[1].fail();
        for rank in [0, 2] {
            let error = failing[rank].check_for(LONG).unwrap_err().to_string();
            assert_eq!(error, "rank 1 has failed: its output says why");
        }
        let mut links = Threads::of(2, LONG);
        drop(links.pop());
        let mut alone = Watch::start(links.pop().unwrap(), TURN);
        let error = alone.check_for(LONG).unwrap_err().to_string();
        assert!(error.starts_with("rank 1 is gone"), "{error}");
        assert_eq!(alone.leave().unwrap_err().to_string(), error);
    }

    #[test]
    fn one_rank_alone_leaves_when_it_likes() {
        watches(1)[0].leave().unwrap();
    }
}
