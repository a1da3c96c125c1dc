//! Collectives of GPUs: NCCL, loaded when it is first needed.
//!
//! NCCL works in a stream of its own, so that gradients are on their way while the next ones are computed, and a thread of its
//! own calls it, since its calls may wait for other ranks. Who waits for them waits on the host, looking out for everything
//! that can go wrong meanwhile: an error of NCCL's, a rank that is gone (the ranks tell each other beside NCCL how they
//! are), or nothing at all for too long. So a failure is known before anything is made of the sums, and nobody hangs.

mod find;
pub mod functions;
mod stream;
mod watch;
mod worker;

use super::transport::Transport;
use super::{Communicator, Operation, Work};
use crate::ops::Place;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use functions::{Comm, Functions, UniqueId, show};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stream::{Context, Event, Stream};
use watch::Watch;
use worker::{Ending, Seat, Worker};

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// From one turn of telling each other to the next.
    pub turn: Duration,
    /// For sums that a rank has left without.
    pub parting: Duration,
    /// For operations to end while all ranks are there.
    pub progress: Duration,
    /// For NCCL to let go of a communicator.
    pub release: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            turn: Duration::from_millis(200),
            parting: Duration::from_secs(10),
            // Others may wait for a master that writes a checkpoint to a slow disk.
            progress: Duration::from_secs(600),
            release: Duration::from_secs(10),
        }
    }
}

/// Pause between two looks: a small part of a step.
const LOOK: Duration = Duration::from_micros(20);

/// The communicator of GPUs, one for each process.
pub struct Nccl {
    rank: usize,
    world_size: usize,
    version: i32,
    patience: Patience,
    functions: Arc<Functions>,
    worker: Worker,
    watch: Watch,
    /// `None` before all ranks are there, and once it is gone.
    comm: Option<Comm>,
    last_started: Work,
    /// What the thread has yet to put into the stream, in order.
    queued: VecDeque<Work>,
    /// What is in the stream and not known to be done, in order.
    under_way: VecDeque<(Work, Event)>,
    failed: Option<String>,
}

impl Nccl {
    /// Joins all ranks; each has opened its GPU in the thread that calls this. The links are used for the rest of the run.
    ///
    /// # Errors
    /// One line: no NCCL, another one elsewhere, or the rank that is gone.
    pub fn open(mut links: impl Transport + 'static, patience: Patience) -> Result<Self> {
        let (rank, world_size) = (links.rank(), links.world_size());
        let functions = Arc::new(Functions::load()?);
        let context = Context::current()?;
        let version = functions.version()?;
        let id = agree(&mut links, &functions, version)?;
        let stream = Stream::new()?;
        let watch = Watch::start(links, patience.turn);
        let seat = Seat { id, rank, world_size };
        let worker = Worker::start(functions.clone(), context, stream, seat);
        let mut nccl = Nccl {
            rank,
            world_size,
            version,
            patience,
            functions,
            worker,
            watch,
            comm: None,
            last_started: Work(0),
            queued: VecDeque::new(),
            under_way: VecDeque::new(),
            failed: None,
        };
        nccl.wait_until(nccl.last_started, |nccl| match nccl.worker.joined() {
            Some(comm) => comm.map(|comm| nccl.comm = Some(comm)).map(|()| true),
            None => Ok(false),
        })?;
        Ok(nccl)
    }

    /// Looks again and again whether something is done, and whether it will ever be: it takes ranks that have begun what
    /// `ticket` stands for.
    fn wait_until(&mut self, ticket: Work, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        loop {
            let state = done(self).and_then(|done| match done {
                true => Ok(true),
                false => self.check(ticket, began.elapsed()).map(|()| false),
            });
            match state {
                Ok(true) => return Ok(()),
                Ok(false) => std::thread::sleep(LOOK),
                Err(why) => return Err(self.fail(why)),
            }
        }
    }

    /// Everything that would make waiting vain.
    fn check(&self, ticket: Work, waited: Duration) -> Result<()> {
        self.watch.check()?;
        if let Some(comm) = self.comm {
            // SAFETY: it is neither destroyed nor aborted while it is here.
            unsafe { self.functions.comm_async_error(comm) }?;
        }
        if waited > self.patience.parting
            && let Some(rank) = self.watch.leaver()
        {
            bail!("rank {rank} has ended while others go on: its output says why");
        }
        if waited <= self.patience.progress {
            return Ok(());
        }
        let seconds = waited.as_secs();
        match self.watch.behind(ticket.0).first() {
            Some(rank) => bail!("rank {rank} has not begun what others wait for since {seconds} s: it hangs"),
            None => bail!(
                "NCCL does not get on: no result for {seconds} s, though all ranks are there; NCCL_DEBUG=INFO says how it connects them"
            ),
        }
    }

    /// Lets go of everything, tells the others, and remembers why.
    fn fail(&mut self, why: anyhow::Error) -> anyhow::Error {
        // NCCL may hear first that a connection is lost, but it does not know whose it was.
        let mut why = format!("{why:#}");
        if let Err(named) = self.watch.check_for(5 * self.patience.turn)
            && named.to_string() != why
        {
            why = format!("{named} ({why})");
        }
        let why = format!("rank {}: {why}", self.rank);
        self.watch.fail();
        self.failed = Some(why.clone());
        if let Some(comm) = self.comm.take() {
            let patience = self.patience.release;
            if !self.worker.end(Ending::Abort, patience) && !self.worker.break_off(comm, patience) {
                // Freeing memory would wait for the GPU for ever, and the message would never be seen.
                eprintln!("{why}; NCCL does not let go of the GPU, so that this process ends at once");
                // SAFETY: ends the process without a word to libraries that hang.
                unsafe { libc::_exit(2) };
            }
        }
        anyhow!(why)
    }

    /// Whether what was begun up to and including `ticket` is done.
    fn is_done(&mut self, ticket: Work) -> Result<bool> {
        while let Some(result) = self.worker.result() {
            let ticket = self.queued.pop_front().expect("a result for each job");
            self.under_way.push_back((ticket, result?));
        }
        while let Some((next, event)) = self.under_way.front() {
            if *next > ticket {
                return Ok(true);
            }
            if !event.has_passed()? {
                return Ok(false);
            }
            self.under_way.pop_front();
        }
        Ok(self.queued.front().is_none_or(|next| *next > ticket))
    }

    fn check_failed(&self) -> Result<()> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(anyhow!("{why}")))
    }
}

/// All ranks have one version, and learn rank 0's id.
fn agree(links: &mut impl Transport, functions: &Functions, version: i32) -> Result<UniqueId> {
    let (rank, world_size) = (links.rank(), links.world_size());
    let mut own = version.to_le_bytes().to_vec();
    own.extend(match rank {
        0 => functions.unique_id()?.0,
        _ => [0; UniqueId::BYTES],
    });
    let mut all = vec![own.clone(); world_size];
    let mut incoming: Vec<&mut [u8]> = all.iter_mut().map(Vec::as_mut_slice).collect();
    links.exchange(&vec![&own[..]; world_size], &mut incoming).context("NCCL's id")?;
    for (other, message) in all.iter().enumerate() {
        let theirs = i32::from_le_bytes(message[..4].try_into().expect("four bytes"));
        ensure!(
            theirs == version,
            "rank {other} has NCCL {}, rank {rank} has {}: install one version on all machines",
            show(theirs),
            show(version)
        );
    }
    Ok(UniqueId(all[0][4..].try_into().expect("an id's bytes")))
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn describe(&self) -> String {
        let processes = if self.world_size == 1 { "process" } else { "processes" };
        format!("{} {processes} over NCCL {}", self.world_size, show(self.version))
    }

    fn library(&self) -> Option<(&'static str, String)> {
        Some(("NCCL", format!("{} from {}", show(self.version), self.functions.name())))
    }

    fn start(&mut self, operations: Vec<Operation>) -> Result<Work> {
        self.check_failed()?;
        let after = match operations.first().map(|first| first.buffer.place) {
            None => None,
            Some(Place::Host) => bail!("NCCL adds up what is on GPUs, and a buffer is on the host"),
            Some(place @ Place::Gpu { stream }) => {
                let all_there = operations.iter().all(|o| o.buffer.place == place);
                ensure!(all_there, "buffers of several GPUs in one process");
                // SAFETY: as the buffer says; and the device has made its context current to queue what is in it.
                Some(unsafe { Event::after(stream) }?)
            }
        };
        self.last_started.0 += 1;
        self.watch.begin();
        if let Some(after) = after {
            self.queued.push_back(self.last_started);
            self.worker.queue(operations, after)?;
        }
        Ok(self.last_started)
    }

    /// On the host: what is queued on the device afterwards comes later, as the host has seen the end of this.
    fn wait(&mut self, ticket: Work) -> Result<()> {
        assert!(ticket <= self.last_started, "{ticket:?} was not given out");
        self.check_failed()?;
        self.wait_until(ticket, |nccl| nccl.is_done(ticket))
    }

    fn finish(&mut self) -> Result<()> {
        self.wait(self.last_started)
    }
}

impl Drop for Nccl {
    /// Nothing of NCCL's may be on the GPU when the device frees its memory. Who comes here with sums under way, or out of a
    /// panic, has no use for them; else all ranks end together, as NCCL wants it.
    fn drop(&mut self) {
        if self.comm.is_none() {
            return;
        }
        let under_way = !self.queued.is_empty() || !self.under_way.is_empty();
        if under_way || std::thread::panicking() {
            let _ = self.fail(anyhow!("ended with sums under way"));
            return;
        }
        match self.watch.leave() {
            // One that hangs now ends with the process.
            Ok(()) => {
                self.worker.end(Ending::Destroy, self.patience.release);
            }
            Err(why) => {
                self.fail(why);
            }
        }
    }
}
