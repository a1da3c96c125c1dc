//! Collectives between GPUs by NCCL, which is loaded when it is first needed.
//!
//! NCCL works in a stream of its own, so that gradients travel while the next ones are computed.
//! Its calls may block on other ranks, so a thread of its own makes them. Waiting happens on the
//! host, which watches for everything that can go wrong: an error of NCCL's, a rank that is gone
//! (ranks exchange heartbeats beside NCCL), or no progress until a timeout. A failure is therefore
//! known before the sums are used, and no rank hangs.

mod find;
pub mod functions;
mod gpu;
mod watchdog;
mod worker;

use super::timing::{Started, Times, WorkTime};
use super::transport::Transport;
use super::{Communicator, Operation, Work};
use crate::libraries::cuda_error;
use crate::ops::Place;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cudarc::driver::{CudaContext, CudaEvent};
use cudarc::nccl::sys::ncclUniqueId;
use functions::{Comm, Functions, show};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use watchdog::Watchdog;
use worker::{Events, RankId, Shutdown, Worker};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Interval between heartbeats.
    pub heartbeat: Duration,
    /// How long a wait continues after another rank has finished.
    pub finished: Duration,
    /// How long operations may take while all ranks are running.
    pub progress: Duration,
    /// How long NCCL may take to release a communicator.
    pub release: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            heartbeat: Duration::from_millis(200),
            finished: Duration::from_secs(10),
            // Other ranks may wait while rank 0 writes a checkpoint to a slow disk.
            progress: Duration::from_secs(600),
            release: Duration::from_secs(10),
        }
    }
}

/// Pause between two polls: a small fraction of a step.
const POLL: Duration = Duration::from_micros(20);

/// The communicator of GPUs, one per process.
pub struct Nccl {
    rank: usize,
    world_size: usize,
    timeouts: Timeouts,
    functions: Arc<Functions>,
    context: Arc<CudaContext>,
    worker: Worker,
    watchdog: Watchdog,
    /// `None` until all ranks have joined, and after it has ended.
    comm: Option<Comm>,
    last_started: Work,
    /// Work that the thread has yet to put into the stream, in order.
    queued: VecDeque<(Work, Started)>,
    /// Work in the stream that is not known to be done, in order.
    in_flight: VecDeque<(Work, Started, Events)>,
    times: Times,
    /// An event from which work is timed, and when it passed.
    timer: Option<(CudaEvent, Instant)>,
    failed: Option<String>,
}

impl Nccl {
    /// Joins all ranks. Each has opened its GPU in the thread that calls this. The transport is in
    /// use for the rest of the run.
    ///
    /// # Errors
    /// One line: NCCL is missing, another rank has another version, or the rank that is gone.
    pub fn open(mut transport: impl Transport + 'static, timeouts: Timeouts) -> Result<Self> {
        let (rank, world_size) = (transport.rank(), transport.world_size());
        let functions = Arc::new(Functions::load()?);
        let context = gpu::current_context()?;
        let id = exchange_id(&mut transport, &functions)?;
        let stream = context.new_stream().map_err(|e| cuda_error("cuStreamCreate", e))?;
        let watchdog = Watchdog::start(transport, timeouts.heartbeat)?;
        let worker = Worker::start(functions.clone(), stream, RankId { id, rank, world_size })?;
        let mut nccl = Nccl {
            rank,
            world_size,
            timeouts,
            functions,
            context,
            worker,
            watchdog,
            comm: None,
            last_started: Work(0),
            queued: VecDeque::new(),
            in_flight: VecDeque::new(),
            times: Times::default(),
            timer: None,
            failed: None,
        };
        nccl.wait_until(nccl.last_started, |nccl| match nccl.worker.joined() {
            Some(comm) => comm.map(|comm| nccl.comm = Some(comm)).map(|()| true),
            None => Ok(false),
        })?;
        Ok(nccl)
    }

    /// Polls until `done`, or until that cannot happen any more. It takes all ranks to have started
    /// `work`.
    fn wait_until(&mut self, work: Work, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        loop {
            let state = done(self).and_then(|done| match done {
                true => Ok(true),
                false => self.check(work, began.elapsed()).map(|()| false),
            });
            match state {
                Ok(true) => return Ok(()),
                Ok(false) => std::thread::sleep(POLL),
                Err(why) => return Err(self.fail(why)),
            }
        }
    }

    /// Checks for everything that makes waiting futile.
    fn check(&self, work: Work, waited: Duration) -> Result<()> {
        self.watchdog.check()?;
        if let Some(comm) = self.comm {
            // SAFETY: the communicator is taken out of `self.comm` before it is destroyed or
            // aborted.
            unsafe { self.functions.comm_async_error(comm) }?;
        }
        if waited > self.timeouts.finished
            && let Some(rank) = self.watchdog.finished_rank()
        {
            bail!("rank {rank} has finished while other ranks continue: its output says why");
        }
        if waited <= self.timeouts.progress {
            return Ok(());
        }
        let seconds = waited.as_secs();
        match self.watchdog.behind(work.0).first() {
            Some(rank) => {
                bail!("rank {rank} has not started what other ranks have waited {seconds} s for: it hangs")
            }
            None => bail!(
                "NCCL made no progress for {seconds} s although all ranks are running; NCCL_DEBUG=INFO says how it connects them"
            ),
        }
    }

    /// Releases everything, tells the other ranks, and keeps the error.
    fn fail(&mut self, why: anyhow::Error) -> anyhow::Error {
        // NCCL may be the first to notice a lost connection, but does not know which rank it was
        // to.
        let mut why = format!("{why:#}");
        if let Err(named) = self.watchdog.check_within(5 * self.timeouts.heartbeat)
            && named.to_string() != why
        {
            why = format!("{named} ({why})");
        }
        let why = format!("rank {}: {why}", self.rank);
        self.watchdog.fail();
        self.failed = Some(why.clone());
        if let Some(comm) = self.comm.take() {
            let timeout = self.timeouts.release;
            if !self.worker.shut_down(Shutdown::Abort, timeout) && !self.worker.force_abort(comm, timeout) {
                // Freeing memory would wait for the GPU forever, and the error would never be
                // printed.
                eprintln!("{why}; NCCL does not release the GPU, so this process exits at once");
                // SAFETY: exiting is always allowed. `std::process::exit` would run the exit
                // handlers of libraries that hang.
                unsafe { libc::_exit(2) };
            }
        }
        anyhow!(why)
    }

    /// Whether everything that was started up to and including `work` is done.
    fn is_done(&mut self, work: Work) -> Result<bool> {
        while let Some(result) = self.worker.result() {
            let (work, started) = self.queued.pop_front().expect("one result per job");
            self.in_flight.push_back((work, started, result?));
        }
        while let Some((next, _, events)) = self.in_flight.front() {
            if *next > work {
                return Ok(true);
            }
            if !events.end.try_is_complete().map_err(|e| cuda_error("cuEventQuery", e))? {
                return Ok(false);
            }
            let (done, started, events) = self.in_flight.pop_front().expect("looked at");
            started.log_end(done);
            self.note_time(done, started, &events)?;
        }
        Ok(self.queued.front().is_none_or(|(next, _)| *next > work))
    }

    /// Notes when work ran, if its start was timed.
    fn note_time(&mut self, work: Work, started: Started, events: &Events) -> Result<()> {
        let (Some((timer, zero)), Some(start)) = (&self.timer, &events.start) else { return Ok(()) };
        let at = |event| {
            let ms = timer.elapsed_ms(event).map_err(|e| cuda_error("cuEventElapsedTime", e))?;
            Ok::<_, anyhow::Error>(*zero + Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
        };
        let span = (at(start)?, at(&events.end)?);
        self.times.note(work, started, span);
        Ok(())
    }

    fn check_failed(&self) -> Result<()> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(anyhow!("{why}")))
    }
}

const ID_BYTES: usize = size_of::<ncclUniqueId>();

/// Checks that all ranks have one version of NCCL, and returns rank 0's id.
fn exchange_id(transport: &mut impl Transport, functions: &Functions) -> Result<ncclUniqueId> {
    let (rank, world_size, version) = (transport.rank(), transport.world_size(), functions.version());
    let mut own = version.to_le_bytes().to_vec();
    own.extend(match rank {
        0 => bytemuck::cast(functions.unique_id()?.internal),
        _ => [0u8; ID_BYTES],
    });
    let mut all = vec![own.clone(); world_size];
    let mut incoming: Vec<&mut [u8]> = all.iter_mut().map(Vec::as_mut_slice).collect();
    transport.exchange(&vec![&own[..]; world_size], &mut incoming).context("NCCL's id")?;
    for (other, message) in all.iter().enumerate() {
        let theirs = i32::from_le_bytes(message[..4].try_into().expect("four bytes"));
        ensure!(
            theirs == version,
            "rank {other} has NCCL {}, rank {rank} has {}: install one version on all machines",
            show(theirs),
            show(version)
        );
    }
    let id: [u8; ID_BYTES] = all[0][4..].try_into().expect("an id's bytes");
    Ok(ncclUniqueId { internal: bytemuck::cast(id) })
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
        format!("{} {processes} over NCCL {}", self.world_size, show(self.functions.version()))
    }

    fn library(&self) -> Option<(&'static str, String)> {
        let functions = &self.functions;
        Some(("NCCL", format!("{} from {}", show(functions.version()), functions.path())))
    }

    fn start(&mut self, operations: Vec<Operation>) -> Result<Work> {
        self.check_failed()?;
        let after = match operations.first().map(|first| first.buffer.place) {
            None => None,
            Some(Place::Host) => bail!("NCCL needs buffers on GPUs, and a buffer is on the host"),
            Some(place @ Place::Gpu { stream }) => {
                let one_place = operations.iter().all(|o| o.buffer.place == place);
                ensure!(one_place, "buffers on several GPUs in one process");
                // SAFETY: the buffer names the live stream of the device, whose context is this
                // one.
                Some(unsafe { gpu::record(&self.context, stream) }?)
            }
        };
        self.last_started.0 += 1;
        self.watchdog.count_start();
        if let Some(after) = after {
            self.queued.push_back((self.last_started, Started::now(&operations, &self.times)));
            self.worker.queue(operations, after, self.times.are_noted())?;
        }
        Ok(self.last_started)
    }

    /// Blocks the host, so work queued on the device afterwards is ordered after the collectives.
    fn wait(&mut self, work: Work) -> Result<()> {
        assert!(work <= self.last_started, "{work} was never started");
        self.check_failed()?;
        self.wait_until(work, |nccl| nccl.is_done(work))
    }

    fn finish(&mut self) -> Result<()> {
        self.wait(self.last_started)
    }

    fn note_times(&mut self) -> Result<()> {
        self.finish()?;
        let timer = self.worker.timer()?;
        timer.synchronize().map_err(|e| cuda_error("cuEventSynchronize", e))?;
        self.timer = Some((timer, Instant::now()));
        self.times.begin();
        Ok(())
    }

    fn take_times(&mut self) -> Result<Vec<WorkTime>> {
        self.finish()?;
        self.timer = None;
        Ok(self.times.take())
    }
}

impl Drop for Nccl {
    /// NCCL must not use the GPU any more when the device frees its memory. With collectives in
    /// flight, or after a panic, the communicator is aborted; otherwise all ranks end together, as
    /// NCCL requires.
    fn drop(&mut self) {
        if self.comm.is_none() {
            return;
        }
        let in_flight = !self.queued.is_empty() || !self.in_flight.is_empty();
        if in_flight || std::thread::panicking() {
            let _ = self.fail(anyhow!("ended with collectives in flight"));
            return;
        }
        match self.watchdog.finish() {
            // If destroying hangs, it ends with the process.
            Ok(()) => {
                self.worker.shut_down(Shutdown::Destroy, self.timeouts.release);
            }
            Err(why) => {
                self.fail(why);
            }
        }
    }
}
