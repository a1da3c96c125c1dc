//! The transport over MPI, for processes that MPI's own launcher has started.
//!
//! MPI is initialized once and finalized once per process, and one thread at a time may call it:
//! every caller holds [`STATE`], as MPI_THREAD_SERIALIZED requires. No call blocks inside MPI. An
//! exchange polls its messages, so that a silent rank can be named.
//!
//! A process that fails must not call MPI_Finalize, which waits for all others: [`end`] calls
//! MPI_Abort instead, which ends them, too. If a process panics or is killed, `mpirun` ends the
//! others.

mod messages;

use super::environment::Process;
use super::transport::{Transport, check_length, silent};
use anyhow::{Context, Result, ensure};
use log::info;
use messages::{Done, Messages, check};
use mpi::environment::{Threading, Universe, initialize_with_threading, library_version};
use mpi::ffi;
use mpi::topology::Communicator;
use mpi::traits::AsRaw;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The state of MPI in this process. A thread that holds the lock may call MPI.
static STATE: Mutex<State> = Mutex::new(State::Uninitialized);

enum State {
    Uninitialized,
    Initialized(Universe),
    Finalized,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Timeout for the next message of an exchange.
    pub timeout: Duration,
    /// The most bytes per message. All ranks split longer ones alike. MPI counts in 31 bits.
    pub message_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { timeout: Duration::from_secs(600), message_bytes: 1 << 30 }
    }
}

/// One rank's connection to all others.
pub struct Mpi {
    rank: usize,
    world_size: usize,
    /// A duplicate of the world, so that messages of other users of MPI are not received. It lives
    /// as long as MPI.
    communicator: ffi::MPI_Comm,
    /// MPI's name and version.
    library: String,
    limits: Limits,
}

// SAFETY: the communicator is a handle, which any thread that holds STATE may use.
unsafe impl Send for Mpi {}

impl Mpi {
    /// Initializes MPI, which waits until all processes have.
    ///
    /// # Errors
    /// One line: MPI counts other ranks than the launcher, supports one thread only, or was
    /// initialized before.
    pub fn begin(process: &Process, limits: Limits) -> Result<Self> {
        let began = Instant::now();
        let mut state = lock();
        let library = library();
        let initialized = initialize_with_threading(Threading::Serialized);
        let (universe, threads) = initialized.context("MPI was initialized in this process before")?;
        let world = universe.world();
        *state = State::Initialized(universe);
        ensure!(
            threads >= Threading::Serialized,
            "MPI: {library} supports one thread only, expected MPI_THREAD_SERIALIZED; use -pi tcp"
        );
        let (rank, world_size) = (world.rank() as usize, world.size() as usize);
        check_rank(&library, (rank, world_size), process)?;
        let mut communicator = world.as_raw();
        // SAFETY: MPI is initialized, and all ranks make these calls.
        unsafe {
            check(ffi::MPI_Comm_dup(world.as_raw(), &mut communicator)).context("MPI")?;
            // By default MPI would end the process, without naming the rank that an error is about.
            check(ffi::MPI_Comm_set_errhandler(communicator, ffi::RSMPI_ERRORS_RETURN)).context("MPI")?;
        }
        info!("{world_size} processes connected over {library} in {} ms", began.elapsed().as_millis());
        Ok(Mpi { rank, world_size, communicator, library, limits })
    }
}

/// MPI's name and version, before or after it is initialized: `Open MPI 4.1.4`.
pub fn library() -> String {
    shorten(&library_version().unwrap_or_default())
}

/// Finalizes MPI if it was initialized. After a failure this ends all ranks, this one with exit
/// code 2.
pub fn end(clean: bool) {
    let mut state = lock();
    if let State::Initialized(universe) = std::mem::replace(&mut *state, State::Finalized) {
        let world = universe.world();
        // A single rank has no others to end.
        if !clean && world.size() > 1 {
            // MPICH's mpirun drops output that it has not read by then, such as the error.
            std::thread::sleep(Duration::from_millis(200));
            world.abort(2);
        }
    }
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the state. MPI may be called until the guard is dropped.
fn enter() -> Result<MutexGuard<'static, State>> {
    let state = lock();
    ensure!(matches!(*state, State::Initialized(_)), "MPI was finalized");
    Ok(state)
}

/// Checks that MPI and the launcher count the same ranks.
fn check_rank(library: &str, (rank, world_size): (usize, usize), process: &Process) -> Result<()> {
    ensure!(
        (rank, world_size) == (process.rank, process.world_size),
        "MPI: {library}, with which this program was built, sees rank {rank} of {world_size}, expected rank {} of {} from {}: start \
         with the mpirun of {library}, build with the other MPI, or use -pi tcp",
        process.rank,
        process.world_size,
        process.launcher.name()
    );
    Ok(())
}

/// Shortens a version: `Open MPI v4.1.4, package: …` becomes `Open MPI 4.1.4`, and
/// `MPICH Version:      4.0.2\n…` becomes `MPICH 4.0.2`.
fn shorten(version: &str) -> String {
    let first = version.split([',', '\n']).next().unwrap_or_default();
    let words = first.split_whitespace().map(|word| word.trim_end_matches(':'));
    let number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let words = words.map(|word| word.strip_prefix('v').filter(|rest| number(rest)).unwrap_or(word));
    let words: Vec<&str> = words.filter(|word| !word.is_empty() && *word != "Version").collect();
    words.join(" ").chars().take(60).collect()
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn describe(&self) -> String {
        format!("{} processes over MPI ({})", self.world_size, self.library)
    }

    fn exchange(&mut self, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        let mut messages = Messages::new(self.communicator);
        let result = self.exchange_messages(&mut messages, outgoing, incoming);
        if result.is_err() {
            withdraw(messages);
        }
        result
    }
}

impl Mpi {
    /// Each rank sends a length and then the bytes. The length is checked before the bytes are
    /// received.
    fn exchange_messages(
        &self,
        messages: &mut Messages,
        outgoing: &[&[u8]],
        incoming: &mut [&mut [u8]],
    ) -> Result<()> {
        let others: Vec<usize> = (0..self.world_size).filter(|&rank| rank != self.rank).collect();
        {
            let _mpi = enter()?;
            for &rank in &others {
                messages.receive_length(rank)?;
                messages.send_length(rank, outgoing[rank].len())?;
                for piece in outgoing[rank].chunks(self.limits.message_bytes) {
                    // SAFETY: `exchange` returns only after all messages are done or withdrawn.
                    unsafe { messages.send(rank, piece) }?;
                }
            }
        }
        let mut heard = Instant::now();
        while !messages.are_done() {
            let mpi = enter()?;
            let done = messages.take_done()?;
            for Done { rank, length } in &done {
                let Some(length) = *length else { continue };
                check_length(*rank, length, incoming[*rank].len())?;
                for piece in incoming[*rank].chunks_mut(self.limits.message_bytes) {
                    // SAFETY: `exchange` returns only after all messages are done or withdrawn.
                    unsafe { messages.receive(*rank, piece) }?;
                }
            }
            drop(mpi);
            if !done.is_empty() {
                heard = Instant::now();
            } else if let Some(rank) =
                messages.first_awaited().filter(|_| heard.elapsed() > self.limits.timeout)
            {
                return Err(silent(rank, self.limits.timeout));
            }
            pause(heard.elapsed());
        }
        Ok(())
    }
}

/// Takes the buffers back from MPI after a failure. Requests that it does not complete within a
/// second, because a rank hangs in the middle of a message, are abandoned: most MPIs progress in
/// calls alone, and the only call that follows is the one that ends all ranks. An MPI with a thread
/// of its own may write to the buffers in the moments until then, when this process no longer uses
/// them.
fn withdraw(mut messages: Messages) {
    let deadline = Instant::now() + Duration::from_secs(1);
    if let Ok(_mpi) = enter() {
        messages.cancel();
    }
    while !messages.are_done() && Instant::now() < deadline {
        match enter() {
            // The exchange has failed already, so errors of single messages are ignored.
            Ok(_mpi) => drop(messages.take_done()),
            Err(_) => break,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    messages.abandon();
}

/// Pauses between two polls. The next message often arrives at once, but constant polling would
/// take a core from the ranks that compute.
fn pause(waited: Duration) {
    match waited < Duration::from_micros(100) {
        true => std::thread::yield_now(),
        false => std::thread::sleep(Duration::from_micros(50)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::environment::Launcher;

    #[test]
    fn versions_are_short() {
        let open_mpi =
            "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022";
        assert_eq!(shorten(open_mpi), "Open MPI 4.1.4");
        let mpich = "MPICH Version:      4.0.2\nMPICH Release date: Thu Apr  7 12:34:45 CDT 2022\nMPICH ABI: 14:2:2\n";
        assert_eq!(shorten(mpich), "MPICH 4.0.2");
        assert_eq!(shorten("MVAPICH2 Version      :\t2.3.7\nMore"), "MVAPICH2 2.3.7");
        assert_eq!(
            shorten("Intel(R) MPI Library 2021.9 for Linux* OS\n"),
            "Intel(R) MPI Library 2021.9 for Linux* OS"
        );
        assert_eq!(shorten(""), "");
    }

    #[test]
    fn another_mpi_than_the_launchers_is_refused() {
        let process = Process { rank: 2, world_size: 4, local_rank: 2, launcher: Launcher::Mpich };
        check_rank("Open MPI 4.1.4", (2, 4), &process).unwrap();
        for seen in [(0, 1), (0, 4), (2, 3)] {
            let error = check_rank("Open MPI 4.1.4", seen, &process).unwrap_err().to_string();
            let expected =
                format!("sees rank {} of {}, expected rank 2 of 4 from MPICH's mpirun", seen.0, seen.1);
            assert!(error.contains(&expected) && error.contains("-pi tcp"), "{error}");
        }
    }
}
