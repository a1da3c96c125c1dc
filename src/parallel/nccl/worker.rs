//! The thread that calls NCCL, whose calls may wait for other ranks. The training thread waits for it with its eyes open.

use super::functions::{Comm, Elements, Functions, UniqueId};
use super::stream::{Context, Event, Stream};
use crate::parallel::host::partitions;
use crate::parallel::{Collective, Operation};
use anyhow::{Result, anyhow};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// One rank's place in a communicator.
pub struct Seat {
    pub id: UniqueId,
    pub rank: usize,
    pub world_size: usize,
}

enum Job {
    /// After the event.
    Queue(Vec<Operation>, Event),
    End(Ending),
}

/// How a communicator ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All is done, and all ranks do the same.
    Destroy,
    Abort,
}

/// What both threads look at.
struct Shared {
    functions: Arc<Functions>,
    stream: Stream,
    /// The communicator is about to be aborted: nothing else of it may be called any more.
    over: AtomicBool,
    /// Somebody has begun to end it, which must happen once.
    ending: AtomicBool,
}

pub struct Worker {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
    /// Of each job that was queued, in order: the event that passes when it is done.
    results: Receiver<Result<Event>>,
    /// Says how the communicator's end went.
    ended: Receiver<()>,
    /// The answer to the first call.
    joined: Receiver<Result<Comm>>,
}

impl Worker {
    /// Begins to join the others.
    pub fn start(functions: Arc<Functions>, context: Context, stream: Stream, seat: Seat) -> Self {
        let shared = Arc::new(Shared {
            functions,
            stream,
            over: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let (jobs, queue) = channel();
        let (done, results) = channel();
        let (end, ended) = channel();
        let (join, joined) = channel();
        let theirs = shared.clone();
        std::thread::spawn(move || {
            let Seat { id, rank, world_size } = seat;
            let comm = context.bind().and_then(|()| theirs.functions.comm_init_rank(world_size, id, rank));
            let here = Here { shared: theirs, rank, world_size, comm: comm.as_ref().ok().copied() };
            if join.send(comm).is_ok() {
                here.work(&queue, &done, &end);
            }
        });
        Worker { shared, jobs, results, ended, joined }
    }

    /// The communicator, once all ranks are there.
    pub fn joined(&self) -> Option<Result<Comm>> {
        self.joined.try_recv().ok()
    }

    /// # Errors
    /// If the thread is no more.
    pub fn queue(&self, operations: Vec<Operation>, after: Event) -> Result<()> {
        self.jobs
            .send(Job::Queue(operations, after))
            .map_err(|_| anyhow!("the thread that calls NCCL has ended"))
    }

    /// When the next of what was queued is done, if it is in the stream by now.
    pub fn result(&self) -> Option<Result<Event>> {
        self.results.try_recv().ok()
    }

    /// Ends the communicator when the thread is done with what it does. False if that takes longer than `patience`.
    pub fn end(&self, ending: Ending, patience: Duration) -> bool {
        if ending == Ending::Abort {
            self.shared.over.store(true, Ordering::SeqCst);
        }
        self.jobs.send(Job::End(ending)).is_err() || self.ended.recv_timeout(patience).is_ok()
    }

    /// Aborts from outside what the thread hangs in. False if that takes longer than `patience`.
    pub fn break_off(&self, comm: Comm, patience: Duration) -> bool {
        let shared = self.shared.clone();
        let (end, ended) = channel();
        std::thread::spawn(move || {
            if !shared.ending.swap(true, Ordering::SeqCst) {
                // SAFETY: the thread hangs in one of NCCL's calls, which return when the communicator is aborted, and then
                // calls no other.
                let _ = unsafe { shared.functions.comm_abort(comm) };
                let _ = end.send(());
            }
        });
        ended.recv_timeout(patience).is_ok()
    }
}

/// The thread's side.
struct Here {
    shared: Arc<Shared>,
    rank: usize,
    world_size: usize,
    comm: Option<Comm>,
}

impl Here {
    fn work(&self, jobs: &Receiver<Job>, done: &Sender<Result<Event>>, ended: &Sender<()>) {
        let Some(comm) = self.comm else { return };
        for job in jobs {
            match job {
                Job::Queue(operations, after) => {
                    if done.send(self.queue(comm, &operations, after)).is_err() {
                        return;
                    }
                }
                Job::End(ending) => {
                    if self.shared.ending.swap(true, Ordering::SeqCst) {
                        return;
                    }
                    // SAFETY: nobody else ends it, and it is not used again. How an end failed is of no use to anyone.
                    let _ = match ending {
                        Ending::Destroy => unsafe { self.shared.functions.comm_destroy(comm) },
                        Ending::Abort => unsafe { self.shared.functions.comm_abort(comm) },
                    };
                    let _ = ended.send(());
                    return;
                }
            }
        }
    }

    /// Operations in one group: NCCL then makes few kernels of them.
    fn queue(&self, comm: Comm, operations: &[Operation], after: Event) -> Result<Event> {
        let Shared { functions, stream, .. } = &*self.shared;
        self.check_over()?;
        stream.wait_for(after)?;
        functions.group(|| operations.iter().try_for_each(|operation| self.call(comm, operation)))?;
        stream.event()
    }

    fn check_over(&self) -> Result<()> {
        match self.shared.over.load(Ordering::SeqCst) {
            true => Err(anyhow!("the communicator was aborted")),
            false => Ok(()),
        }
    }

    /// One operation, in place. NCCL's own scatter and gather want parts of one length; other parts go one by one.
    fn call(&self, comm: Comm, operation: &Operation) -> Result<()> {
        let Operation { collective, buffer } = operation;
        self.check_over()?;
        let size = buffer.dtype.size();
        let elements = |send: &Range<usize>, receive: &Range<usize>, count: usize| {
            let at = |range: &Range<usize>| (buffer.address + range.start as u64) as *mut c_void;
            Elements { send: at(send), receive: at(receive), count, dtype: buffer.dtype }
        };
        let whole = 0..buffer.size_bytes();
        let parts = partitions(whole.len(), size, self.world_size);
        let (own, count) = (&parts[self.rank], parts[self.rank].len() / size);
        let even = buffer.len.is_multiple_of(self.world_size);
        let one_by_one = || {
            let parts = parts.iter().enumerate().filter(|(_, part)| !part.is_empty());
            parts.map(|(rank, part)| (rank, elements(part, part, part.len() / size)))
        };
        let all = elements(&whole, &whole, buffer.len);
        let (f, stream) = (&self.shared.functions, self.shared.stream.raw().cast::<c_void>());
        // SAFETY: the communicator was not over a moment ago; who aborts it waits for this thread first, unless it hangs in one
        // of these calls. Who started the operation left the buffer to it until it ends. The stream lives as long as this thread.
        unsafe {
            match *collective {
                _ if buffer.len == 0 => Ok(()),
                Collective::AllReduce => f.all_reduce(all, comm, stream),
                Collective::ReduceScatter if even => {
                    f.reduce_scatter(elements(&whole, own, count), comm, stream)
                }
                Collective::ReduceScatter => {
                    one_by_one().try_for_each(|(root, part)| f.reduce(part, root, comm, stream))
                }
                Collective::AllGather if even => f.all_gather(elements(own, &whole, count), comm, stream),
                Collective::AllGather => {
                    one_by_one().try_for_each(|(root, part)| f.broadcast(part, root, comm, stream))
                }
                Collective::Broadcast { root } => f.broadcast(all, root, comm, stream),
            }
        }
    }
}
