//! Links over MPI, for processes that MPI's own launcher has started.
//!
//! MPI begins once and ends once in a process, and no two threads are in it at a time: whoever calls it holds [`STATE`]. That is
//! what MPI_THREAD_SERIALIZED wants. Nobody waits inside MPI. An exchange looks again and again at what has come, so that a
//! rank that says nothing gets a name.
//!
//! A process that fails must not come to MPI_Finalize, which waits for all others: [`end`] calls MPI_Abort in its place, which
//! ends them, too. One that panics or is killed is gone without a word, and `mpirun` ends the others.

mod messages;

use super::environment::Process;
use super::links::{Links, check_length, silent};
use anyhow::{Context, Result, ensure};
use messages::{Done, Messages, check};
use mpi::environment::{Threading, Universe, initialize_with_threading, library_version};
use mpi::ffi;
use mpi::topology::Communicator;
use mpi::traits::AsRaw;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far MPI is in this process. Whoever holds it may call MPI.
static STATE: Mutex<State> = Mutex::new(State::NotBegun);

enum State {
    NotBegun,
    Begun(Universe),
    Ended,
}

/// How long to wait, and how much to send at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the next sign of a rank that others wait for.
    pub silence: Duration,
    /// Bytes; longer messages are cut, by all ranks alike. MPI counts in 31 bits.
    pub message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { silence: Duration::from_secs(600), message: 1 << 30 }
    }
}

/// One process's links to all others.
pub struct Mpi {
    rank: usize,
    world_size: usize,
    /// A duplicate of the world, so that nobody else's messages are met. It lives as long as MPI.
    communicator: ffi::MPI_Comm,
    /// What MPI calls itself.
    library: String,
    limits: Limits,
}

// SAFETY: a handle, for whichever thread holds STATE.
unsafe impl Send for Mpi {}

impl Mpi {
    /// Begins MPI, which waits until all processes have.
    ///
    /// # Errors
    /// One line: MPI sees other processes than the launcher tells of, is made for one thread, or has begun before.
    pub fn begin(process: &Process, limits: Limits) -> Result<Self> {
        let mut state = lock();
        let library = shorten(&library_version().unwrap_or_default());
        let begun = initialize_with_threading(Threading::Serialized);
        let (universe, threads) = begun.context("MPI: it has begun in this process before")?;
        let world = universe.world();
        *state = State::Begun(universe);
        ensure!(
            threads >= Threading::Serialized,
            "MPI: {library} is built for one thread, expected MPI_THREAD_SERIALIZED; take -pi tcp"
        );
        let (rank, world_size) = (world.rank() as usize, world.size() as usize);
        check_seat(&library, (rank, world_size), process)?;
        let mut communicator = world.as_raw();
        // SAFETY: MPI has begun, and all ranks come here.
        unsafe {
            check(ffi::MPI_Comm_dup(world.as_raw(), &mut communicator)).context("MPI")?;
            // Else MPI would end the process, and nobody could say which rank it was about.
            check(ffi::MPI_Comm_set_errhandler(communicator, ffi::RSMPI_ERRORS_RETURN)).context("MPI")?;
        }
        Ok(Mpi { rank, world_size, communicator, library, limits })
    }
}

/// Ends MPI if it has begun. After a failure this ends all ranks, this one with exit code 2.
pub fn end(clean: bool) {
    let mut state = lock();
    if let State::Begun(universe) = std::mem::replace(&mut *state, State::Ended) {
        let world = universe.world();
        // Who is alone has nobody to wait for, and nobody to end.
        if !clean && world.size() > 1 {
            // MPICH's mpirun drops what it has not read by then, such as why.
            std::thread::sleep(Duration::from_millis(200));
            world.abort(2);
        }
    }
}

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leave to call MPI, for as long as it is kept.
fn enter() -> Result<MutexGuard<'static, State>> {
    let state = lock();
    ensure!(matches!(*state, State::Begun(_)), "MPI has ended");
    Ok(state)
}

/// The processes of MPI are those that the launcher tells of.
fn check_seat(library: &str, (rank, world_size): (usize, usize), process: &Process) -> Result<()> {
    ensure!(
        (rank, world_size) == (process.rank, process.world_size),
        "MPI: {library}, with which this program was built, sees rank {rank} of {world_size}, expected rank {} of {} from {}: start \
         with the mpirun of {library}, build with the other MPI, or take -pi tcp",
        process.rank,
        process.world_size,
        process.launcher.name()
    );
    Ok(())
}

/// `Open MPI v4.1.4, package: …` is Open MPI 4.1.4; `MPICH Version:      4.0.2\n…` is MPICH 4.0.2.
fn shorten(version: &str) -> String {
    let first = version.split([',', '\n']).next().unwrap_or_default();
    let words = first.split_whitespace().map(|word| word.trim_end_matches(':'));
    let number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    let words = words.map(|word| word.strip_prefix('v').filter(|rest| number(rest)).unwrap_or(word));
    let words: Vec<&str> = words.filter(|word| !word.is_empty() && *word != "Version").collect();
    words.join(" ").chars().take(60).collect()
}

impl Links for Mpi {
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
        let result = self.carry(&mut messages, outgoing, incoming);
        if result.is_err() {
            withdraw(messages);
        }
        result
    }
}

impl Mpi {
    /// Each rank tells how much it sends, and sends it. What it says is checked before anything is received in its place.
    fn carry(&self, messages: &mut Messages, outgoing: &[&[u8]], incoming: &mut [&mut [u8]]) -> Result<()> {
        let others: Vec<usize> = (0..self.world_size).filter(|&rank| rank != self.rank).collect();
        {
            let _mpi = enter()?;
            for &rank in &others {
                messages.receive_length(rank)?;
                messages.send_length(rank, outgoing[rank].len())?;
                for piece in outgoing[rank].chunks(self.limits.message) {
                    // SAFETY: exchange returns when all is done or withdrawn.
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
                for piece in incoming[*rank].chunks_mut(self.limits.message) {
                    // SAFETY: as above.
                    unsafe { messages.receive(*rank, piece) }?;
                }
            }
            drop(mpi);
            if !done.is_empty() {
                heard = Instant::now();
            } else if let Some(rank) =
                messages.first_awaited().filter(|_| heard.elapsed() > self.limits.silence)
            {
                return Err(silent(rank, self.limits.silence));
            }
            pause(heard.elapsed());
        }
        Ok(())
    }
}

/// After a failure: MPI is to leave the buffers alone. What it does not give back within a second, as a rank hangs in the midst of a
/// message, stays with it: most MPIs work on that in calls alone, of which none follows but that to end all. One that works by itself
/// may write to memory that is ours again, in the moments until then, of a process that has nothing left to say.
fn withdraw(mut messages: Messages) {
    let deadline = Instant::now() + Duration::from_secs(1);
    if let Ok(_mpi) = enter() {
        messages.cancel();
    }
    while !messages.are_done() && Instant::now() < deadline {
        match enter() {
            // Errors of single messages are no news.
            Ok(_mpi) => drop(messages.take_done()),
            Err(_) => break,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    messages.abandon();
}

/// Between two looks. What comes next often comes at once; but who looks all the time takes a core from those who compute.
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
        check_seat("Open MPI 4.1.4", (2, 4), &process).unwrap();
        for seen in [(0, 1), (0, 4), (2, 3)] {
            let error = check_seat("Open MPI 4.1.4", seen, &process).unwrap_err().to_string();
            let expected =
                format!("sees rank {} of {}, expected rank 2 of 4 from MPICH's mpirun", seen.0, seen.1);
            assert!(error.contains(&expected) && error.contains("-pi tcp"), "{error}");
        }
    }
}
