//! A thread that passes the lines of a log to a tracker, and goes on after any error.

use super::{Line, Sink};
use crate::report::jsonl;
use crate::report::tail::Tail;
use crate::words::count;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Duration;

/// Bytes of the log that are read at a time.
const CHUNK: usize = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Times {
    /// Between two looks at the log.
    look: Duration,
    /// Between an error and the next attempt, which doubles up to `longest`.
    retry: Duration,
    longest: Duration,
    /// The longest time that the end of training waits for the tracker.
    patience: Duration,
}

const TIMES: Times = Times {
    look: Duration::from_millis(500),
    retry: Duration::from_secs(1),
    longest: Duration::from_secs(60),
    patience: Duration::from_secs(5),
};

/// The state that the thread shares with those who wait for it.
#[derive(Debug, Default)]
struct Shared {
    /// Lines of the log that have arrived, or are known to.
    arrived: usize,
    /// The error since which nothing arrives.
    error: Option<String>,
}

/// A tracker that follows a run.
pub struct Follower {
    flag: String,
    dir: PathBuf,
    shared: Arc<Mutex<Shared>>,
    /// Asks the thread to end with the log as it is then, when dropped.
    stop: Option<Sender<()>>,
    /// Says that it has.
    ended: Receiver<()>,
    times: Times,
}

impl Follower {
    /// Starts to follow the run in `dir`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(dir: &Path, sink: Box<dyn Sink>) -> Result<Self> {
        Self::start_with(dir, sink, TIMES)
    }

    fn start_with(dir: &Path, sink: Box<dyn Sink>, times: Times) -> Result<Self> {
        let (stop, stopped) = channel();
        let (end, ended) = channel();
        let (flag, shared) = (sink.flag(), Arc::new(Mutex::new(Shared::default())));
        let mut passing = Passing { sink, tail: log_of(dir), shared: Arc::clone(&shared), lines: 0 };
        let work = move || {
            passing.follow(&stopped, times);
            // Nobody listens any more if patience ended first.
            let _ = end.send(());
        };
        let thread = Builder::new().name("tracker".to_owned()).spawn(work);
        thread.with_context(|| format!("{flag}: cannot start its thread"))?;
        Ok(Follower { flag, dir: dir.to_owned(), shared, stop: Some(stop), ended, times })
    }

    /// Waits some seconds until all of the log has arrived. If it has not, returns what to do about
    /// the rest.
    pub fn finish(mut self) -> Option<String> {
        self.stop = None;
        // An end of the thread by a panic, which has been reported, counts as one without an error.
        if self.ended.recv_timeout(self.times.patience) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
        let shared = self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let left = lines_in(&log_of(&self.dir)).saturating_sub(shared.arrived);
        let (flag, dir) = (&self.flag, self.dir.display());
        let why = shared.error.as_deref().unwrap_or("the other side is slow");
        let left = count(left, "line");
        Some(format!(
            "{flag}: up to {left} of the log not sent ({why}); to send the rest: warpsmith track {dir} {flag}"
        ))
    }
}

fn log_of(dir: &Path) -> Tail {
    Tail::new(dir.join(jsonl::NAME))
}

fn lines_in(log: &Tail) -> usize {
    let text = std::fs::read(log.path()).unwrap_or_default();
    text.iter().filter(|&&byte| byte == b'\n').count()
}

/// Passes the whole log of a run to a tracker, in this thread.
///
/// # Errors
/// If the log is missing, or the first error of the tracker.
pub fn follow_to_end(dir: &Path, sink: Box<dyn Sink>) -> Result<()> {
    let log = dir.join(jsonl::NAME);
    crate::files::open(&log).context("expected the directory of a run")?;
    let mut passing = Passing { sink, tail: Tail::new(log), shared: Arc::default(), lines: 0 };
    passing.sink.begin()?;
    while passing.pass()? {}
    passing.sink.end()
}

/// A tracker and the log that it follows.
struct Passing {
    sink: Box<dyn Sink>,
    tail: Tail,
    shared: Arc<Mutex<Shared>>,
    /// Lines since the start of the log.
    lines: usize,
}

impl Passing {
    /// Passes the next lines on. Returns whether there were any.
    fn pass(&mut self) -> Result<bool> {
        let news = self.tail.read(CHUNK)?;
        if news.lines.is_empty() && !news.from_start {
            return Ok(false);
        }
        self.sink.take(&Line::parse_all(&news.lines), news.from_start)?;
        self.lines = if news.from_start { 0 } else { self.lines };
        self.lines += news.lines.iter().filter(|&&byte| byte == b'\n').count();
        Ok(true)
    }

    /// Follows the log until the other side of `stopped` is dropped, and then to the log's end.
    fn follow(&mut self, stopped: &Receiver<()>, times: Times) {
        let (mut ready, mut retry, mut stopping) = (false, times.retry, false);
        loop {
            let passed = self.attempt(&mut ready, stopping);
            let wait = match &passed {
                Ok(true) if ready => Duration::ZERO,
                Ok(_) if stopping => return,
                Ok(_) => times.look,
                Err(_) => retry,
            };
            retry = if passed.is_err() { (retry * 2).min(times.longest) } else { times.retry };
            self.note(passed.err());
            // At the end, the patience of those who wait is the limit.
            let wait = if stopping { wait.min(times.look) } else { wait };
            match stopping {
                true => std::thread::sleep(wait),
                false => stopping = stopped.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected),
            }
        }
    }

    /// Passes some lines on, after a new beginning unless it is `ready`. Returns whether there may
    /// be more.
    fn attempt(&mut self, ready: &mut bool, stopping: bool) -> Result<bool> {
        if !*ready {
            self.sink.begin()?;
            self.tail.rewind();
        }
        *ready = false;
        let more = self.pass()?;
        if !more && stopping {
            self.sink.end()?;
        }
        *ready = true;
        Ok(more)
    }

    /// Takes note of the outcome of an attempt, and warns of the first error in a row.
    fn note(&mut self, error: Option<anyhow::Error>) {
        let mut shared = self.shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (flag, error) = (self.sink.flag(), error.map(|error| format!("{error:#}")));
        match (&error, &shared.error) {
            (Some(error), None) => log::warn!("{flag}: {error}; training goes on, and the log is sent later"),
            (None, Some(_)) => log::warn!("{flag}: it works again"),
            _ => {}
        }
        *shared = Shared { arrived: self.lines, error };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::jsonl::Jsonl;
    use anyhow::bail;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    const SHORT: Times = Times {
        look: Duration::from_millis(5),
        retry: Duration::from_millis(5),
        longest: Duration::from_millis(20),
        patience: Duration::from_millis(400),
    };

    /// A tracker that keeps the steps since the start of the log, and is away when told so.
    #[derive(Clone, Default)]
    struct Steps {
        steps: Arc<Mutex<Vec<u64>>>,
        away: Arc<AtomicBool>,
        ended: Arc<AtomicBool>,
    }

    impl Steps {
        fn answer(&self) -> Result<()> {
            if self.away.load(Ordering::Relaxed) { bail!("away") } else { Ok(()) }
        }

        fn wait_for(&self, steps: &[u64]) {
            let start = Instant::now();
            while *self.steps.lock().unwrap() != steps {
                assert!(start.elapsed() < Duration::from_secs(20), "{:?}", self.steps.lock().unwrap());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    impl Sink for Steps {
        fn flag(&self) -> String {
            "--steps".to_owned()
        }

        fn begin(&mut self) -> Result<()> {
            self.answer()
        }

        fn take(&mut self, lines: &[Line], from_start: bool) -> Result<()> {
            self.answer()?;
            let mut steps = self.steps.lock().unwrap();
            if from_start {
                steps.clear();
            }
            steps.extend(lines.iter().map(|line| line.step));
            Ok(())
        }

        fn end(&mut self) -> Result<()> {
            self.answer()?;
            self.ended.store(true, Ordering::Relaxed);
            Ok(())
        }
    }

    fn start(dir: &Path, sink: &Steps) -> Follower {
        Follower::start_with(dir, Box::new(sink.clone()), SHORT).unwrap()
    }

    #[test]
    fn all_lines_arrive_though_the_tracker_was_away() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Steps::default();
        let follower = start(dir.path(), &sink);
        let mut log = Jsonl::create(dir.path()).unwrap();
        (0..3).for_each(|step| log.val(step, 1.0).unwrap());
        sink.wait_for(&[0, 1, 2]);
        sink.away.store(true, Ordering::Relaxed);
        log.val(3, 1.0).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        sink.wait_for(&[0, 1, 2]);
        sink.away.store(false, Ordering::Relaxed);
        sink.wait_for(&[0, 1, 2, 3]);
        let mut log = Jsonl::resume(dir.path(), 1).unwrap();
        log.val(1, 2.0).unwrap();
        assert_eq!(follower.finish(), None);
        sink.wait_for(&[0, 1]);
        assert!(sink.ended.load(Ordering::Relaxed));
    }

    #[test]
    fn the_end_waits_for_a_while_and_says_what_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Steps::default();
        let mut log = Jsonl::create(dir.path()).unwrap();
        log.val(0, 1.0).unwrap();
        let follower = start(dir.path(), &sink);
        sink.wait_for(&[0]);
        sink.away.store(true, Ordering::Relaxed);
        (1..4).for_each(|step| log.val(step, 1.0).unwrap());
        let message = follower.finish().unwrap();
        let command = format!("warpsmith track {} --steps", dir.path().display());
        assert!(message.starts_with("--steps: up to 3 lines of the log not sent (away); "), "{message}");
        assert!(message.ends_with(&command), "{message}");
        sink.away.store(false, Ordering::Relaxed);
        follow_to_end(dir.path(), Box::new(sink.clone())).unwrap();
        sink.wait_for(&[0, 1, 2, 3]);
    }

    #[test]
    fn a_run_without_a_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = format!("{:#}", follow_to_end(dir.path(), Box::new(Steps::default())).unwrap_err());
        assert!(
            error.starts_with("expected the directory of a run") && error.contains("metrics.jsonl"),
            "{error}"
        );
    }
}
