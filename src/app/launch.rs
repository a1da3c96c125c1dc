//! `warpsmith launch`: starts the ranks of a run on this machine, shows their output, and ends all
//! of them when one fails.

mod ranks;

use super::trainer::TRY_AGAIN;
use crate::cli::flags::warpsmith::LaunchArgs;
use crate::parallel::environment::{OWN_RUN, STARTED};
use crate::parallel::lifeline::Lifeline;
use crate::parallel::secret::{self, Secret};
use crate::train::signals;
use anyhow::{Context, Result, ensure};
use log::warn;
use ranks::{Failure, POLL, Ranks};
use rustix::process::Signal;
use signal_hook::iterator::Signals as Arrivals;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// Runs the ranks, and returns their exit status.
pub fn launch(args: LaunchArgs) -> Result<ExitCode> {
    let resumes = args.command.windows(2).any(|pair| {
        let [flag, value] = pair else { return false };
        (flag == "-y" || flag == "--resume") && value == "1"
    });
    ensure!(
        args.restarts == 0 || resumes,
        "--restarts {}: expected -y 1 among the program's flags, or a restart would begin at step 0",
        args.restarts
    );
    let job = Job {
        command: args.command,
        processes: args.processes,
        restarts: args.restarts,
        grace: Duration::from_secs(5),
        save_time: Duration::from_secs(120),
        started: SystemTime::now(),
        lifeline: Lifeline::new()?,
    };
    Ok(ExitCode::from(job.run()? as u8))
}

/// The ranks to start.
#[derive(Debug)]
pub struct Job {
    /// The program and its arguments, the same for every rank.
    pub command: Vec<OsString>,
    pub processes: usize,
    /// How many times to restart after a failure.
    pub restarts: usize,
    /// How long the other ranks may take to notice a failure, and to end after a second signal of
    /// the user.
    pub grace: Duration,
    /// Time from SIGTERM to SIGKILL, long enough to write a checkpoint: ranks that are well end by
    /// themselves.
    pub save_time: Duration,
    /// The start of the launcher, from which --max-hours counts in every attempt.
    pub started: SystemTime,
    /// Ends the trainers when the launcher is killed.
    pub lifeline: Lifeline,
}

impl Job {
    /// Runs the ranks to their end. Returns the exit code of the first that failed, or 0.
    ///
    /// # Errors
    /// If a rank cannot be started.
    pub fn run(&self) -> Result<i32> {
        let mut signals = Signals::listen()?;
        adopt_orphans()?;
        for attempt in 0.. {
            let Some(failure) = self.attempt(attempt, &mut signals)? else { return Ok(0) };
            // A job whose time is up would not get more of it by a restart.
            let ended = signals.first.is_some() || failure.code() == i32::from(TRY_AGAIN);
            if ended || attempt == self.restarts {
                return Ok(failure.code());
            }
            warn!("launch: restart {} of {}", attempt + 1, self.restarts);
        }
        unreachable!("attempts are counted")
    }

    /// Starts all ranks and waits until all their processes have ended. Returns the first rank that
    /// failed.
    fn attempt(&self, attempt: usize, signals: &mut Signals) -> Result<Option<Failure>> {
        let (port, secret) = (free_port()?, Secret::draw()?);
        let mut ranks = Ranks::default();
        for rank in 0..self.processes {
            ranks.add(rank, self.start(rank, port, &secret, attempt)?)?;
        }
        let mut failed = None;
        let mut escalation = Escalation { next: None, save_time: self.save_time };
        while ranks.alive() > 0 {
            let failure = ranks.poll()?;
            if let Some(request) = signals.next() {
                ranks.send(request.signal);
                if request.repeated {
                    escalation.kill_after(self.grace);
                }
            }
            let asked = signals.first.is_some();
            if let Some(failure) = failure.filter(|_| failed.is_none()) {
                failed = Some(failure);
                if !asked {
                    let others = if ranks.are_running() { "; ending the others" } else { "" };
                    warn!("launch: {failure}{others}");
                }
            }
            // After a signal a wrapper ends at once, while its trainer writes a checkpoint: all
            // trainers end when that is complete.
            let ends = if asked { ranks.alive() < self.processes } else { failed.is_some() };
            if ends {
                escalation.terminate_after(self.grace);
            }
            // The children that wrappers have left behind.
            if !asked && !ranks.are_running() {
                escalation.terminate_after(Duration::ZERO);
            }
            if let Some(signal) = escalation.due() {
                ranks.send(signal);
            }
            sleep(POLL);
        }
        Ok(failed)
    }

    fn start(&self, rank: usize, port: u16, secret: &Secret, attempt: usize) -> Result<Child> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        let own = std::process::id();
        let number = |n: usize| n.to_string();
        command
            .env("RANK", number(rank))
            .env("LOCAL_RANK", number(rank))
            .env("WORLD_SIZE", number(self.processes))
            .env("LOCAL_WORLD_SIZE", number(self.processes))
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env(OWN_RUN, format!("launch {own} {attempt}"))
            .env(STARTED, seconds_since_1970(self.started).to_string())
            .env(secret::VARIABLE, secret.reveal())
            .env_remove("TORCHELASTIC_USE_AGENT_STORE");
        if !["RAYON_NUM_THREADS", "OMP_NUM_THREADS"].iter().any(|name| std::env::var_os(name).is_some()) {
            // By default every rank would use every core.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", number((cores / self.processes).max(1)));
        }
        // In a process group of its own a rank receives Ctrl-C once, from the launcher.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.lifeline.hand_to(&mut command);
        end_with_parent(&mut command);
        let program = self.command[0].to_string_lossy();
        command.spawn().with_context(|| format!("launch: cannot start {program}"))
    }
}

/// The signals that end ranks which do not end by themselves: SIGTERM, then SIGKILL.
struct Escalation {
    /// The next signal, and when it is due.
    next: Option<(Instant, Signal)>,
    save_time: Duration,
}

impl Escalation {
    /// Plans SIGTERM after `wait`, unless it is planned for an earlier time, or was sent already.
    fn terminate_after(&mut self, wait: Duration) {
        let due = Instant::now() + wait;
        if self.next.is_none_or(|(planned, signal)| signal == Signal::TERM && due < planned) {
            self.next = Some((due, Signal::TERM));
        }
    }

    fn kill_after(&mut self, wait: Duration) {
        self.next = Some((Instant::now() + wait, Signal::KILL));
    }

    /// Returns the signal that is due, and plans SIGKILL to follow it.
    fn due(&mut self) -> Option<Signal> {
        let (_, signal) = self.next.filter(|(due, _)| Instant::now() >= *due)?;
        self.kill_after(self.save_time);
        Some(signal)
    }
}

/// The signals that this process is asked to stop with.
struct Signals {
    arrivals: Arrivals,
    /// When the first arrived.
    first: Option<Instant>,
}

/// A signal to forward.
struct Request {
    signal: Signal,
    /// The ranks were asked to stop before, and have not.
    repeated: bool,
}

impl Signals {
    /// # Errors
    /// If a handler cannot be installed.
    fn listen() -> Result<Self> {
        let arrivals = Arrivals::new(signals::of_requests()).context("could not listen for signals")?;
        Ok(Signals { arrivals, first: None })
    }

    /// The next signal to forward, if one arrived. Those that follow the first one closely belong
    /// to the same request, as for a trainer.
    fn next(&mut self) -> Option<Request> {
        let signal = Signal::from_named_raw(self.arrivals.pending().next()?)?;
        let since = self.first.map(|first| first.elapsed());
        self.first.get_or_insert_with(Instant::now);
        let repeated = since.is_some();
        since.is_none_or(|since| since > signals::PATIENCE).then_some(Request { signal, repeated })
    }
}

/// Makes the system hand the children of wrappers that have ended on to this process, so that it
/// learns when they end.
fn adopt_orphans() -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("launch: cannot watch the children of ranks")?;
    Ok(())
}

/// Makes the system send SIGTERM to the rank when the launcher ends.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: the closure runs between fork and exec, and makes one system call there: it neither
    // allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Returns a port that is not in use.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("launch: no free port")?;
    Ok(listener.local_addr()?.port())
}

fn seconds_since_1970(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the script as two ranks, without a handler of signals, and returns how long it took.
    fn attempt(script: &str, save_time: Duration) -> Duration {
        let job = Job {
            command: ["sh", "-c", script].map(OsString::from).to_vec(),
            processes: 2,
            restarts: 0,
            grace: Duration::from_millis(100),
            save_time,
            started: SystemTime::now(),
            lifeline: Lifeline::new().unwrap(),
        };
        let none: [i32; 0] = [];
        let mut signals = Signals { arrivals: Arrivals::new(none).unwrap(), first: None };
        let began = Instant::now();
        assert_eq!(job.attempt(0, &mut signals).unwrap().unwrap().code(), 7);
        began.elapsed()
    }

    #[test]
    fn ranks_have_time_to_write_a_checkpoint_before_they_are_killed() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().display();
        let fails = "if [ $RANK = 1 ]; then exit 7; fi";
        let loops = "while :; do sleep 0.1; done";
        let saves = format!("{fails}; trap 'sleep 1; echo saved > {dir}/saved; exit 0' TERM; {loops}");
        attempt(&saves, Duration::from_secs(60));
        assert_eq!(std::fs::read_to_string(directory.path().join("saved")).unwrap(), "saved\n");
        let hangs = format!("{fails}; trap '' TERM; {loops}");
        let save_time = Duration::from_millis(500);
        let took = attempt(&hangs, save_time);
        assert!((save_time..Duration::from_secs(20)).contains(&took), "it took {took:?}");
    }
}
