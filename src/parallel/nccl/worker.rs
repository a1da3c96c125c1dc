//! The thread that calls NCCL, whose calls may block on other ranks. The training thread polls it
//! and watches for failures meanwhile.

use super::functions::{Call, Comm, Elements, Functions};
use crate::libraries::cuda_error;
use crate::parallel::host::partitions;
use crate::parallel::{Collective, Operation};
use anyhow::{Context, Result, anyhow};
use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaEvent, CudaStream};
use cudarc::nccl::sys::ncclUniqueId;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

/// One rank's identity in a communicator.
pub struct RankId {
    pub id: ncclUniqueId,
    pub rank: usize,
    pub world_size: usize,
}

/// The events around a job in the stream.
pub struct Events {
    /// Passes when the job starts; only where that was asked for.
    pub start: Option<CudaEvent>,
    /// Completes when the job is done.
    pub end: CudaEvent,
}

enum Job {
    /// Operations to queue after the event, and whether to time them.
    Queue(Vec<Operation>, CudaEvent, bool),
    Shutdown(Shutdown),
}

/// How a communicator ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// All work is done, and all ranks destroy the communicator together.
    Destroy,
    Abort,
}

/// State of both threads.
struct Shared {
    functions: Arc<Functions>,
    stream: Arc<CudaStream>,
    /// The communicator is about to be aborted: no other function may use it from now on.
    aborting: AtomicBool,
    /// A thread has begun to end the communicator, which must happen once.
    ending: AtomicBool,
}

pub struct Worker {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    /// For each queued job, in order: its events.
    results: Receiver<Result<Events>>,
    /// A message when the communicator has ended.
    ended: Receiver<()>,
    /// The communicator, once.
    joined: Receiver<Result<Comm>>,
}

impl Worker {
    /// Starts the thread, which begins to join the other ranks.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(functions: Arc<Functions>, stream: Arc<CudaStream>, rank_id: RankId) -> Result<Self> {
        let shared = Arc::new(Shared {
            functions,
            stream,
            aborting: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let (jobs, queue) = channel();
        let (done, results) = channel();
        let (end, ended) = channel();
        let (join, joined) = channel();
        let theirs = shared.clone();
        let work = move || {
            let RankId { id, rank, world_size } = rank_id;
            let bound = theirs.stream.context().bind_to_thread();
            let comm = bound
                .map_err(|e| cuda_error("cuCtxSetCurrent", e))
                .and_then(|()| theirs.functions.comm_init_rank(world_size, id, rank));
            let thread = WorkerThread { shared: theirs, rank, world_size, comm: comm.as_ref().ok().copied() };
            if join.send(comm).is_ok() {
                thread.work(&queue, &done, &end);
            }
        };
        let thread = Builder::new().name("NCCL".to_owned()).spawn(work);
        drop(thread.context("cannot start the thread that calls NCCL")?);
        Ok(Worker { shared, jobs, results, ended, joined })
    }

    /// Returns the communicator once all ranks have joined.
    pub fn joined(&self) -> Option<Result<Comm>> {
        self.joined.try_recv().ok()
    }

    /// Hands operations to the thread, which queues them after an event.
    ///
    /// # Errors
    /// If the thread has ended.
    pub fn queue(&self, operations: Vec<Operation>, after: CudaEvent, timed: bool) -> Result<()> {
        self.jobs
            .send(Job::Queue(operations, after, timed))
            .map_err(|_| anyhow!("the thread that calls NCCL has ended"))
    }

    /// Returns the events of the next queued job, if that is in the stream by now.
    pub fn result(&self) -> Option<Result<Events>> {
        self.results.try_recv().ok()
    }

    /// Records an event in the stream, from which others are timed.
    pub fn timer(&self) -> Result<CudaEvent> {
        record(&self.shared.stream, true)
    }

    /// Ends the communicator after the thread's current call. False if that takes longer than
    /// `timeout`.
    pub fn shut_down(&self, shutdown: Shutdown, timeout: Duration) -> bool {
        if shutdown == Shutdown::Abort {
            self.shared.aborting.store(true, Ordering::SeqCst);
        }
        self.jobs.send(Job::Shutdown(shutdown)).is_err() || self.ended.recv_timeout(timeout).is_ok()
    }

    /// Aborts the communicator while the thread hangs in a call. False if that takes longer than
    /// `timeout`.
    pub fn force_abort(&self, comm: Comm, timeout: Duration) -> bool {
        let shared = self.shared.clone();
        let (end, ended) = channel();
        let abort = move || {
            if !shared.ending.swap(true, Ordering::SeqCst) {
                // SAFETY: `ending` makes this the only thread that ends the communicator. The
                // worker hangs in a call of NCCL's that returns when the communicator is aborted,
                // and makes no other call afterwards because `aborting` is set.
                let _ = unsafe { shared.functions.comm_abort(comm) };
                let _ = end.send(());
            }
        };
        // Without a thread the sender is dropped, and nothing is received.
        let _ = Builder::new().name("NCCL abort".to_owned()).spawn(abort);
        ended.recv_timeout(timeout).is_ok()
    }
}

/// The worker as its own thread sees it.
struct WorkerThread {
    shared: Arc<Shared>,
    rank: usize,
    world_size: usize,
    comm: Option<Comm>,
}

impl WorkerThread {
    fn work(&self, jobs: &Receiver<Job>, done: &Sender<Result<Events>>, ended: &Sender<()>) {
        let Some(comm) = self.comm else { return };
        for job in jobs {
            match job {
                Job::Queue(operations, after, timed) => {
                    if done.send(self.queue(comm, &operations, after, timed)).is_err() {
                        return;
                    }
                }
                Job::Shutdown(shutdown) => {
                    if self.shared.ending.swap(true, Ordering::SeqCst) {
                        return;
                    }
                    // An error changes nothing: the communicator is gone in any case.
                    let _ = match shutdown {
                        // SAFETY: `ending` makes this the only thread that ends the communicator,
                        // and this thread returns without using it again.
                        Shutdown::Destroy => unsafe { self.shared.functions.comm_destroy(comm) },
                        // SAFETY: see above.
                        Shutdown::Abort => unsafe { self.shared.functions.comm_abort(comm) },
                    };
                    let _ = ended.send(());
                    return;
                }
            }
        }
    }

    /// Queues operations as one group, which NCCL fuses into few kernels.
    fn queue(&self, comm: Comm, operations: &[Operation], after: CudaEvent, timed: bool) -> Result<Events> {
        let Shared { functions, stream, .. } = &*self.shared;
        self.check_aborting()?;
        stream.wait(&after).map_err(|e| cuda_error("cuStreamWaitEvent", e))?;
        // The stream has taken note of it.
        drop(after);
        let start = timed.then(|| record(stream, true)).transpose()?;
        functions.group(|| operations.iter().try_for_each(|operation| self.enqueue(comm, operation)))?;
        Ok(Events { start, end: record(stream, timed)? })
    }

    fn check_aborting(&self) -> Result<()> {
        match self.shared.aborting.load(Ordering::SeqCst) {
            true => Err(anyhow!("the communicator was aborted")),
            false => Ok(()),
        }
    }

    fn enqueue(&self, comm: Comm, operation: &Operation) -> Result<()> {
        self.check_aborting()?;
        let stream = self.shared.stream.cu_stream().cast();
        calls(operation, self.rank, self.world_size).into_iter().try_for_each(|(call, elements)| {
            // SAFETY: the communicator is alive: a thread that aborts it waits for this one first,
            // unless this one hangs in a call. The caller that started the operation lends the
            // buffer until it ends. This thread shares ownership of the stream.
            unsafe { self.shared.functions.enqueue(call, elements, comm, stream) }
        })
    }
}

/// Records an event, which is cheaper if nothing is timed by it.
fn record(stream: &CudaStream, timed: bool) -> Result<CudaEvent> {
    let flags = timed.then_some(CUevent_flags::CU_EVENT_DEFAULT);
    stream.record_event(flags).map_err(|e| cuda_error("cuEventRecord", e))
}

/// The calls for one operation, in place. NCCL's own reduce-scatter and all-gather need partitions
/// of equal length; others are reduced or broadcast one by one.
fn calls(operation: &Operation, rank: usize, world_size: usize) -> Vec<(Call, Elements)> {
    let Operation { collective, buffer } = operation;
    let size = buffer.dtype.size();
    let elements = |send: &Range<usize>, receive: &Range<usize>, count: usize| {
        let at = |range: &Range<usize>| (buffer.address + range.start as u64) as *mut c_void;
        Elements { send: at(send), receive: at(receive), count, dtype: buffer.dtype }
    };
    let full = 0..buffer.size_bytes();
    let partitions = partitions(full.len(), size, world_size);
    let (own, count) = (&partitions[rank], partitions[rank].len() / size);
    let even = buffer.len.is_multiple_of(world_size);
    let one_by_one = |call: fn(usize) -> Call| {
        let partitions = partitions.iter().enumerate().filter(|(_, partition)| !partition.is_empty());
        let call = |(root, partition): (usize, &Range<usize>)| {
            (call(root), elements(partition, partition, partition.len() / size))
        };
        partitions.map(call).collect()
    };
    let all = elements(&full, &full, buffer.len);
    match *collective {
        _ if buffer.len == 0 => Vec::new(),
        Collective::AllReduce => vec![(Call::AllReduce, all)],
        Collective::ReduceScatter if even => vec![(Call::ReduceScatter, elements(&full, own, count))],
        Collective::ReduceScatter => one_by_one(|root| Call::Reduce { root }),
        Collective::AllGather if even => vec![(Call::AllGather, elements(own, &full, count))],
        Collective::AllGather => one_by_one(|root| Call::Broadcast { root }),
        Collective::Broadcast { root } => vec![(Call::Broadcast { root }, all)],
    }
}
