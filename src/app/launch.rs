//! `warpsmith launch`: starts the ranks of a run on this machine, shows what they say, and ends all when one fails.

use crate::cli::flags::warpsmith::LaunchArgs;
use crate::parallel::environment::OWN_RUN;
use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGINT, SIGKILL, SIGTERM};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// Returns the exit status of the ranks.
pub fn launch(args: LaunchArgs) -> Result<ExitCode> {
    let resumes = args.command.windows(2).any(|pair| {
        let [flag, value] = pair else { return false };
        (flag == "-y" || flag == "--resume") && value == "1"
    });
    ensure!(
        args.restarts == 0 || resumes,
        "--restarts {}: expected -y 1 among the program's flags, without which it would begin from the start",
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

/// What to start, and how often.
#[derive(Clone, Debug)]
pub struct Job {
    /// Program and arguments of every rank.
    pub command: Vec<OsString>,
    pub processes: usize,
    /// How often to begin anew after a failure.
    pub restarts: usize,
    /// How long the others get to notice that one has failed, and again how long to end when asked to.
    pub grace: Duration,
}

impl Job {
    /// Runs the ranks to their end, and returns the exit code of the first that failed, 0 if none did.
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
            eprintln!(
                "warpsmith launch: rank {rank} ended with {status}; restart {} of {}",
                attempt + 1,
                self.restarts
            );
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
        // What is to be sent to those that are left, and when.
        let mut next: Option<(Instant, i32)> = None;
        while ranks.poll(&mut failed)? {
            let asked = signal.load(Ordering::Relaxed);
            if asked != 0 && !forwarded {
                forwarded = true;
                ranks.send(asked as i32);
            }
            if failed.is_some() && next.is_none() {
                next = Some((Instant::now() + self.grace, SIGTERM));
            }
            if let Some((_, number)) = next.filter(|(due, _)| Instant::now() >= *due) {
                ranks.send(number);
                next = Some((Instant::now() + self.grace, SIGKILL));
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
            // Else every rank would take every core.
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env("RAYON_NUM_THREADS", number((cores / self.processes).max(1)));
        }
        // A group of its own: Ctrl-C reaches the ranks once, through us.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        end_with_parent(&mut command);
        let program = self.command[0].to_string_lossy();
        command.spawn().with_context(|| format!("launch: cannot start {program}"))
    }
}

/// Has the rank asked to end if the launcher is no more.
fn end_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: between fork and exec, where prctl may be called.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, SIGTERM);
            Ok(())
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// A port that nobody uses at the moment.
fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("launch: no port to meet at")?;
    Ok(listener.local_addr()?.port())
}

/// The ranks of an attempt; ended with it, whatever happens.
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

    /// Whether any still runs. `failed` becomes the first that ended badly; of several at once the one that a signal ended, since
    /// the others will have missed it.
    fn poll(&mut self, failed: &mut Option<(usize, ExitStatus)>) -> Result<bool> {
        let mut ended_badly = Vec::new();
        let mut i = 0;
        while i < self.running.len() {
            let (rank, child) = &mut self.running[i];
            match child.try_wait().context("waiting for a rank")? {
                Some(status) => {
                    ended_badly.extend((!status.success()).then_some((*rank, status)));
                    self.running.remove(i);
                }
                None => i += 1,
            }
        }
        if failed.is_none() {
            *failed = ended_badly.into_iter().min_by_key(|(_, status)| status.signal().is_none());
        }
        Ok(!self.running.is_empty())
    }

    fn send(&self, signal: i32) {
        for (_, child) in &self.running {
            // SAFETY: sends a signal to a child that was not waited for yet, so that its number is still its own.
            unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.send(SIGKILL);
        for (_, child) in &mut self.running {
            let _ = child.wait();
        }
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }
}

/// Shows each line with the number of the rank before it.
fn prefix(rank: usize, from: impl Read + Send + 'static, to: impl Write + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut from, mut to) = (BufReader::new(from), to);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let mut whole = format!("[{rank}] ").into_bytes();
            whole.append(&mut line);
            if whole.last() != Some(&b'\n') {
                whole.push(b'\n');
            }
            // In one piece, so that lines of ranks do not mix. A reader that is gone must not stop the run.
            let _ = to.write_all(&whole).and_then(|()| to.flush());
        }
    })
}
