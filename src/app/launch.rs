//! `warpsmith launch`: starts the ranks of a run on this machine, shows their output, and ends all
//! of them when one fails.

use crate::cli::flags::warpsmith::LaunchArgs;
use crate::parallel::environment::OWN_RUN;
use anyhow::{Context, Result, ensure};
use log::warn;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

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
    };
    Ok(ExitCode::from(job.run()? as u8))
}

/// The ranks to start.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program and its arguments, the same for every rank.
    pub command: Vec<OsString>,
    pub processes: usize,
    /// How many times to restart after a failure.
    pub restarts: usize,
    /// How long the other ranks may take to notice a failure, and then to end after SIGTERM.
    pub grace: Duration,
}

impl Job {
    /// Runs the ranks to their end. Returns the exit code of the first that failed, or 0.
    ///
    /// # Errors
    /// If a rank cannot be started.
    pub fn run(&self) -> Result<i32> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM] {
            signal_hook::flag::register_usize(number, signal.clone(), number as usize)
                .context("could not listen for SIGINT and SIGTERM")?;
        }
        for attempt in 0.. {
            let Some((rank, status)) = self.attempt(attempt, &signal)? else { return Ok(0) };
            let stopped = signal.load(Ordering::Relaxed) != 0;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
            if stopped || attempt == self.restarts {
                return Ok(code);
            }
            warn!("launch: rank {rank} ended with {status}; restart {} of {}", attempt + 1, self.restarts);
        }
        unreachable!("attempts are counted")
    }

    /// Starts all ranks and waits for them. Returns the first that failed.
    fn attempt(&self, attempt: usize, signal: &AtomicUsize) -> Result<Option<(usize, ExitStatus)>> {
        let port = free_port()?;
        let mut ranks = Ranks::default();
        for rank in 0..self.processes {
            ranks.add(rank, self.start(rank, port, attempt)?);
        }
        let (mut failed, mut forwarded) = (None, false);
        // The next signal to the remaining ranks, and when it is due.
        let mut next: Option<(Instant, Signal)> = None;
        while ranks.poll(&mut failed)? {
            let received = Signal::from_named_raw(signal.load(Ordering::Relaxed) as i32);
            if let Some(received) = received.filter(|_| !forwarded) {
                forwarded = true;
                ranks.send(received);
            }
            if failed.is_some() && next.is_none() {
                next = Some((Instant::now() + self.grace, Signal::TERM));
            }
            if let Some((_, signal)) = next.filter(|(due, _)| Instant::now() >= *due) {
                ranks.send(signal);
                next = Some((Instant::now() + self.grace, Signal::KILL));
            }
            sleep(Duration::from_millis(20));
        }
        Ok(failed)
    }

    fn start(&self, rank: usize, port: u16, attempt: usize) -> Result<Child> {
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
            .env_remove("TORCHELASTIC_USE_AGENT_STORE");
        if std::env::var_os("RAYON_NUM_THREADS").is_none() {
            // By default every rank would use every core.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", number((cores / self.processes).max(1)));
        }
        // In a process group of its own a rank receives Ctrl-C once, from the launcher.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_parent(&mut command);
        let program = self.command[0].to_string_lossy();
        command.spawn().with_context(|| format!("launch: cannot start {program}"))
    }
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

/// The ranks of an attempt. They are killed when this is dropped.
#[derive(Default)]
struct Ranks {
    running: Vec<(usize, Child)>,
    readers: Vec<JoinHandle<()>>,
}

impl Ranks {
    fn add(&mut self, rank: usize, mut child: Child) {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        self.readers.extend(out.map(|out| prefix(rank, out, std::io::stdout())));
        self.readers.extend(err.map(|err| prefix(rank, err, std::io::stderr())));
        self.running.push((rank, child));
    }

    /// Whether any rank is running. Sets `failed` to the first rank that failed. If several failed
    /// at once, that is one killed by a signal, since the others fail because it is gone.
    fn poll(&mut self, failed: &mut Option<(usize, ExitStatus)>) -> Result<bool> {
        let mut failures = Vec::new();
        let mut i = 0;
        while i < self.running.len() {
            let (rank, child) = &mut self.running[i];
            match child.try_wait().context("waiting for a rank")? {
                Some(status) => {
                    failures.extend((!status.success()).then_some((*rank, status)));
                    self.running.remove(i);
                }
                None => i += 1,
            }
        }
        if failed.is_none() {
            *failed = failures.into_iter().min_by_key(|(_, status)| status.signal().is_none());
        }
        Ok(!self.running.is_empty())
    }

    fn send(&self, signal: Signal) {
        for (_, child) in &self.running {
            // The child was not waited for yet, so its id is still its own. Errors mean that it has
            // ended.
            let _ = kill_process(Pid::from_child(child), signal);
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.send(Signal::KILL);
        for (_, child) in &mut self.running {
            let _ = child.wait();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// Copies lines, each with the rank in front.
fn prefix(rank: usize, from: impl Read + Send + 'static, to: impl Write + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut from, mut to) = (BufReader::new(from), to);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let mut prefixed = format!("[{rank}] ").into_bytes();
            prefixed.append(&mut line);
            if prefixed.last() != Some(&b'\n') {
                prefixed.push(b'\n');
            }
            // One write per line, so that lines of different ranks do not mix. If the reader of the
            // output is gone, the run continues.
            let _ = to.write_all(&prefixed).and_then(|()| to.flush());
        }
    })
}
