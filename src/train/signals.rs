//! SIGINT, SIGTERM, SIGUSR1 and SIGHUP ask a run to stop.
//!
//! A thread receives them, so that it can say at once what the run is about to do. One request
//! often arrives as several signals: from `timeout`, from a launcher, from the kernel when the
//! launcher is gone. So only a signal that comes later than [`PATIENCE`] after the first ends the
//! process at once.

use crate::report::say;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals as Arrivals;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Signals within this time after the first one belong to the same request.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The work of a run that a signal waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A step, counted from 1.
    Step(usize),
    /// An evaluation, which is cut short.
    Evaluation(&'static str),
    Checkpoint,
}

/// The signals that the process received since [`Self::listen`].
pub struct Signals {
    shared: Arc<Shared>,
}

struct Shared {
    /// The first signal; 0 for none.
    first: AtomicI32,
    doing: Mutex<Doing>,
    /// The directory of checkpoints.
    output_dir: Option<PathBuf>,
}

impl Signals {
    /// Not listening yet: each signal has its default effect.
    pub fn new(output_dir: Option<PathBuf>) -> Self {
        let (first, doing) = (AtomicI32::new(0), Mutex::new(Doing::Step(1)));
        Signals { shared: Arc::new(Shared { first, doing, output_dir }) }
    }

    /// Starts listening; a process that `speaks` says on standard error what a signal leads to.
    /// SIGHUP stays ignored if the process was started so, as by nohup.
    ///
    /// # Errors
    /// If the thread or a handler cannot be installed.
    pub fn listen(&self, speaks: bool) -> Result<()> {
        let arrivals = Arrivals::new(of_requests()).context("could not listen for signals")?;
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread
            .spawn(move || shared.watch(arrivals, speaks))
            .context("cannot start the thread for signals")?;
        Ok(())
    }

    /// The number of the first signal, if one arrived.
    pub fn received(&self) -> Option<i32> {
        Some(self.shared.first.load(Ordering::Relaxed)).filter(|&signal| signal != 0)
    }

    /// Notes the work that a signal would wait for from now on.
    pub fn note(&self, doing: Doing) {
        *self.shared.doing.lock().unwrap_or_else(PoisonError::into_inner) = doing;
    }
}

impl Shared {
    fn watch(&self, mut arrivals: Arrivals, speaks: bool) {
        let mut first = None;
        for signal in arrivals.forever() {
            let since = *first.get_or_insert_with(Instant::now);
            if self.first.load(Ordering::Relaxed) == 0 {
                self.first.store(signal, Ordering::Relaxed);
                let doing = *self.doing.lock().unwrap_or_else(PoisonError::into_inner);
                if speaks {
                    say(self.announcement(signal, doing));
                }
            } else if since.elapsed() > PATIENCE {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    }

    /// `SIGINT: finishing step 7, then writing a checkpoint to out; a second Ctrl-C …`.
    fn announcement(&self, signal: i32, doing: Doing) -> String {
        let work = match doing {
            Doing::Step(step) => format!("finishing step {step}"),
            Doing::Evaluation(name) => format!("cutting {name} short"),
            Doing::Checkpoint => "finishing the checkpoint".to_owned(),
        };
        let then = match &self.output_dir {
            None => "; without -o nothing is saved".to_owned(),
            Some(dir) if doing == Doing::Checkpoint => format!(" in {}", dir.display()),
            Some(dir) => format!(", then writing a checkpoint to {}", dir.display()),
        };
        let again = if signal == SIGINT { "press Ctrl-C again" } else { "send a second signal" };
        let (name, seconds) = (name_of(signal), PATIENCE.as_secs());
        format!("{name}: {work}{then}; {again} after {seconds} s to end at once")
    }
}

/// The signals that ask a process to stop. SIGHUP is not among them if the process ignores it.
pub fn of_requests() -> impl Iterator<Item = i32> {
    let hangup = if ignores_hangup() { None } else { Some(SIGHUP) };
    [SIGINT, SIGTERM, SIGUSR1].into_iter().chain(hangup)
}

/// The name of a signal: `SIGINT`.
pub fn name_of(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("a signal")
}

/// Whether SIGHUP must be left alone: it is ignored, or this system does not say.
fn ignores_hangup() -> bool {
    std::fs::read_to_string("/proc/self/status").map_or(true, |status| is_ignored(&status, SIGHUP))
}

/// Whether a process with this `/proc/self/status` ignores a signal.
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(output_dir: Option<&str>) -> Arc<Shared> {
        Signals::new(output_dir.map(PathBuf::from)).shared
    }

    #[test]
    fn a_signal_is_answered_with_what_happens_next() {
        let say = |dir, signal, doing| shared(dir).announcement(signal, doing);
        assert_eq!(
            say(Some("out"), SIGINT, Doing::Step(657)),
            "SIGINT: finishing step 657, then writing a checkpoint to out; press Ctrl-C again after 2 s to end at once"
        );
        assert_eq!(
            say(Some("out"), SIGTERM, Doing::Evaluation("validation")),
            "SIGTERM: cutting validation short, then writing a checkpoint to out; send a second signal after 2 s to end at once"
        );
        assert_eq!(
            say(Some("out"), SIGHUP, Doing::Checkpoint),
            "SIGHUP: finishing the checkpoint in out; send a second signal after 2 s to end at once"
        );
        assert!(
            say(None, SIGUSR1, Doing::Step(1)).contains("step 1; without -o nothing is saved; send a second")
        );
    }

    #[test]
    fn an_ignored_signal_is_seen_in_the_status() {
        assert!(is_ignored("Name:\tx\nSigIgn:\t0000000000000001\n", SIGHUP));
        assert!(!is_ignored("SigIgn:\t0000000000001000\n", SIGHUP));
        assert!(is_ignored("SigIgn:\t0000000000004000\n", SIGTERM));
        assert!(is_ignored("Name:\tx\n", SIGHUP), "a system that does not say");
    }
}
