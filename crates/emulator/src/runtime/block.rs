//! A block of CUDA threads: which can run, which runs next, and how a thread stops.

use super::barrier::Barrier;
use super::cluster::Cluster;
use super::collective::Warp;
use super::copies::CopyQueue;
use super::failure::{Failure, Site};
use super::fiber;
use super::flags::Flags;
use super::hopper::Hopper;
use super::job::Job;
use super::named_barrier::{self, NamedBarrier};
use super::region::*;
use super::shared::SharedMemory;
use crate::options::{Copies, Schedule};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;

/// The part of [`Block`] that `emulated/runtime.h` knows.
#[repr(C)]
pub struct Geometry {
    pub block_index: Cell<[u32; 3]>,
    pub block_dim: Cell<[u32; 3]>,
    pub grid_dim: Cell<[u32; 3]>,
    thread_index: *const [u32; 3],
}

/// A block's state, at the start of its region. All its threads refer to it and take turns on one
/// OS thread; so everything that changes is in a cell, and no borrow is held across a switch.
#[repr(C)]
pub struct Block {
    pub geometry: Geometry,
    pub threads: Box<[Thread]>,
    pub warps: Box<[Warp]>,
    /// The warps with a runnable thread.
    runnable_warps: Cell<u32>,
    pub barrier: Barrier,
    pub named_barriers: [NamedBarrier; named_barrier::COUNT],
    pub thread_count: Cell<usize>,
    pub live: Cell<usize>,
    pub shared: SharedMemory,
    pub hopper: Hopper,
    pub flags: Flags,
    /// Whether a thread has waited for earlier launches.
    pub has_waited: Cell<bool>,
    pub failure: RefCell<Option<Failure>>,
    job: Cell<*const Job<'static>>,
    cluster: Cell<*const Cluster>,
    /// The number of this block in its cluster.
    rank: Cell<usize>,
    /// Whether it is the only block of its cluster.
    is_alone: Cell<bool>,
    /// The stack from which the block is run.
    scheduler: Cell<*mut u8>,
    random: Cell<u64>,
}

/// The state of a thread that is not running.
#[derive(Default)]
pub struct Thread {
    stack: Cell<*mut u8>,
    pub copies: RefCell<CopyQueue>,
}

/// A thread, usually the one that is running.
#[derive(Clone, Copy)]
pub struct Me {
    pub block: &'static Block,
    pub thread: usize,
}

/// The thread that runs the caller, which a kernel must have called.
#[inline(always)]
pub fn me() -> Me {
    let sp = stack_pointer();
    // SAFETY: kernels run on stacks inside a region that is aligned to its size and starts with its
    // block, which lives as long as the region.
    let block = unsafe { &*((sp & !(REGION_BYTES - 1)) as *const Block) };
    Me { block, thread: ((sp & (REGION_BYTES - 1)) - STACKS_OFFSET) / STACK_BYTES }
}

impl Me {
    pub fn lane(self) -> usize {
        self.thread % 32
    }

    /// The number of its warp in its cluster, by which the checker and the counter know it.
    pub fn cluster_warp(self) -> usize {
        self.block.first_warp() + self.thread / 32
    }

    /// Its number in its cluster; each block has whole warps.
    pub fn cluster_thread(self) -> usize {
        self.block.first_warp() * 32 + self.thread
    }

    pub fn warp(self) -> &'static Warp {
        &self.block.warps[self.thread / 32]
    }

    /// Lets others run until [`Block::wake`] is called for this thread.
    #[inline]
    pub fn wait(self) {
        self.block.suspend(self.thread);
        self.block.leave(self.thread);
    }

    /// Ends the launch with an error of this thread.
    pub fn fail(self, site: Site, message: String) -> ! {
        self.block.fail(Failure::new(Some(self.thread), site, message))
    }
}

impl Block {
    /// Writes a block to the start of a region.
    ///
    /// # Safety
    /// The region is used for nothing else and outlives the block.
    pub unsafe fn new_in(region: &Region) -> &'static Block {
        let geometry = Geometry {
            block_index: Cell::default(),
            block_dim: Cell::default(),
            grid_dim: Cell::default(),
            thread_index: region.base().wrapping_add(INDICES_OFFSET).cast(),
        };
        let block = Block {
            geometry,
            threads: (0..MAX_THREADS).map(|_| Thread::default()).collect(),
            warps: (0..MAX_THREADS / 32).map(|_| Warp::default()).collect(),
            runnable_warps: Cell::new(0),
            barrier: Barrier::default(),
            named_barriers: Default::default(),
            thread_count: Cell::new(0),
            live: Cell::new(0),
            shared: SharedMemory::new(region.base().wrapping_add(ARENA_OFFSET)),
            hopper: Hopper::default(),
            flags: Flags::default(),
            has_waited: Cell::new(false),
            failure: RefCell::new(None),
            job: Cell::new(std::ptr::null()),
            cluster: Cell::new(std::ptr::null()),
            rank: Cell::new(0),
            is_alone: Cell::new(true),
            scheduler: Cell::new(std::ptr::null_mut()),
            random: Cell::new(1),
        };
        const { assert!(size_of::<Block>() <= ARGUMENTS_OFFSET) };
        let place = region.base().cast::<Block>();
        // SAFETY: the caller gives the region to this block, which fits before the arguments and
        // needs less alignment than the region has.
        unsafe {
            place.write(block);
            &*place
        }
    }

    pub fn base(&self) -> *mut u8 {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    /// The launch that runs.
    pub fn job(&self) -> &Job<'_> {
        // SAFETY: only called while the block runs, during which `Cluster::run` borrows the job.
        unsafe { &*self.job.get() }
    }

    /// The blocks that run together with this one.
    pub fn cluster(&self) -> &Cluster {
        // SAFETY: only called while the block runs, which `Cluster::run` does.
        unsafe { &*self.cluster.get() }
    }

    pub fn rank(&self) -> usize {
        self.rank.get()
    }

    /// The number of its first warp among those of the cluster.
    pub fn first_warp(&self) -> usize {
        self.rank.get() * self.thread_count.get().div_ceil(32)
    }

    pub fn arguments(&self) -> *const *const c_void {
        self.base().wrapping_add(ARGUMENTS_OFFSET).cast_const().cast()
    }

    /// Whether a thread can run.
    pub fn can_run(&self) -> bool {
        self.runnable_warps.get() != 0
    }

    /// Runs threads until none can run, one fails, or the schedule chooses another block.
    pub fn resume(&self) {
        let Some(first) = self.next(None) else { return };
        // SAFETY: a runnable thread's stack was prepared by `start` or saved by its last switch.
        unsafe { fiber::switch(self.scheduler.as_ptr(), self.threads[first].stack.get()) };
    }

    /// Releases what the block has borrowed for its run.
    pub fn end(&self) {
        self.job.set(std::ptr::null());
        self.cluster.set(std::ptr::null());
    }

    /// Prepares all threads of block `number` of a launch.
    pub fn start(&self, job: &Job, cluster: &Cluster, rank: usize, number: usize) {
        let dim = job.block_dim;
        let count = job.threads();
        self.job.set(std::ptr::from_ref(job).cast());
        self.cluster.set(cluster);
        self.rank.set(rank);
        self.is_alone.set(cluster.blocks().len() == 1);
        self.has_waited.set(false);
        self.failure.take();
        self.random.set(job.seed(number) | 1);
        self.geometry.block_index.set(job.index(number));
        self.geometry.grid_dim.set(job.grid);
        self.geometry.block_dim.set(dim);
        self.thread_count.set(count);
        self.live.set(count);
        self.barrier.reset();
        self.named_barriers.iter().for_each(NamedBarrier::reset);
        self.runnable_warps.set(0);
        for (number, warp) in self.warps.iter().enumerate() {
            let lanes = count.saturating_sub(number * 32).min(32);
            warp.reset(lanes);
            self.wake(number, warp.alive.get());
        }
        self.shared.reset(job.shared_bytes);
        self.hopper.reset();
        self.flags.reset();
        for thread in 0..count {
            let t = thread as u32;
            let index = [t % dim[0], t / dim[0] % dim[1], t / (dim[0] * dim[1])];
            // Stacks start in different cache lines: aligned alike, they would compete for a few
            // sets.
            let color = thread % 61 * 64;
            let top = self.base().wrapping_add(STACKS_OFFSET + (thread + 1) * STACK_BYTES - color);
            self.threads[thread].copies.borrow_mut().clear();
            // SAFETY: the indices and the stack are inside the region, and no thread runs yet.
            unsafe {
                self.geometry.thread_index.cast_mut().add(thread).write(index);
                self.threads[thread].stack.set(fiber::prepare(top, run_thread));
            }
        }
    }

    /// Makes lanes runnable.
    pub fn wake(&self, warp: usize, lanes: u32) {
        if lanes != 0 {
            let runnable = &self.warps[warp].runnable;
            runnable.set(runnable.get() | lanes);
            self.runnable_warps.set(self.runnable_warps.get() | 1 << warp);
        }
    }

    fn suspend(&self, thread: usize) {
        let runnable = &self.warps[thread / 32].runnable;
        runnable.set(runnable.get() & !(1 << (thread % 32)));
        if runnable.get() == 0 {
            self.runnable_warps.set(self.runnable_warps.get() & !(1 << (thread / 32)));
        }
    }

    /// Switches from a thread to the next runnable one, or to the scheduler.
    fn leave(&self, from: usize) {
        let stays = self.is_alone.get() || !self.cluster().yields(self.rank.get());
        let to = match stays.then(|| self.next(Some(from))).flatten() {
            Some(next) => self.threads[next].stack.get(),
            None => self.scheduler.get(),
        };
        // SAFETY: `to` was prepared by `start`, or saved when it was left, and is not running.
        unsafe { fiber::switch(self.threads[from].stack.as_ptr(), to) };
    }

    /// Switches to the scheduler for good: the stacks of all threads are abandoned.
    pub fn fail(&self, failure: Failure) -> ! {
        self.failure.replace(Some(failure));
        let mut here = std::ptr::null_mut();
        // SAFETY: the scheduler was saved when it switched to the first thread and has not run
        // since.
        unsafe { fiber::switch(&mut here, self.scheduler.get()) };
        unreachable!("a thread that failed does not run");
    }

    /// The thread that runs after `from` by the schedule.
    #[inline]
    fn next(&self, from: Option<usize>) -> Option<usize> {
        let warps = self.runnable_warps.get();
        if warps == 0 {
            return None;
        }
        let lanes = |warp: u32| self.warps[warp as usize].runnable.get();
        let same_warp = from.filter(|from| warps >> (from / 32) & 1 == 1).map(|from| from as u32);
        let (warp, lane) = match (self.job().options.schedule, same_warp) {
            (Schedule::Ascending, Some(from)) => (from / 32, bit_above(lanes(from / 32), from % 32)),
            (Schedule::Ascending, None) => {
                let warp = bit_above(warps, from.map_or(31, |from| from as u32 / 32));
                (warp, lanes(warp).trailing_zeros())
            }
            (Schedule::Descending, Some(from)) => (from / 32, bit_below(lanes(from / 32), from % 32)),
            (Schedule::Descending, None) => {
                let warp = bit_below(warps, from.map_or(0, |from| from as u32 / 32));
                (warp, 31 - lanes(warp).leading_zeros())
            }
            (Schedule::AheadLow, _) => {
                let warp = warps.trailing_zeros();
                (warp, lanes(warp).trailing_zeros())
            }
            (Schedule::AheadHigh, _) => {
                let warp = 31 - warps.leading_zeros();
                (warp, 31 - lanes(warp).leading_zeros())
            }
            (Schedule::Random(_), _) => {
                let warp = bit_above(warps, self.random() % 32);
                (warp, bit_above(lanes(warp), self.random() % 32))
            }
        };
        Some((warp * 32 + lane) as usize)
    }

    /// Returns 32 bits of a xorshift generator, seeded by launch and block.
    pub fn random(&self) -> u32 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 32) as u32
    }

    /// Whether an asynchronous copy that starts now lands only when a thread waits for it.
    pub fn copies_late(&self) -> bool {
        match self.job().options.copies {
            Copies::Eager => false,
            Copies::Late => true,
            Copies::Random => self.random() & 1 == 0,
        }
    }

    /// Whether copies land in random order.
    pub fn copies_random(&self) -> bool {
        self.job().options.copies == Copies::Random
    }

    /// Describes the named barriers at which some warps have arrived.
    fn arrived_at_named(&self) -> impl Iterator<Item = String> {
        self.named_barriers.iter().enumerate().filter_map(|(id, barrier)| barrier.describe(id))
    }

    /// Describes every waiting group of threads, for the report of a deadlock.
    pub fn waiting(&self) -> Vec<String> {
        let mut waiting = self.flags.describe();
        waiting.extend(self.barrier.describe(self.thread_count.get()));
        waiting.extend(self.arrived_at_named());
        for (number, warp) in self.warps.iter().enumerate() {
            waiting.extend(warp.describe(number));
        }
        waiting.extend(self.hopper.describe());
        waiting
    }
}

/// The lowest set bit above `after`, or else the lowest.
#[inline]
fn bit_above(mask: u32, after: u32) -> u32 {
    let above = mask & (u32::MAX << after << 1);
    if above == 0 { mask.trailing_zeros() } else { above.trailing_zeros() }
}

/// The highest set bit below `before`, or else the highest.
#[inline]
fn bit_below(mask: u32, before: u32) -> u32 {
    let below = mask & !(u32::MAX << before);
    31 - if below == 0 { mask.leading_zeros() } else { below.leading_zeros() }
}

/// The first function on a thread's stack.
extern "C" fn run_thread() -> ! {
    let me = me();
    me.block.job().kernel.run(me.block.arguments());
    finish(me)
}

fn finish(me: Me) -> ! {
    let block = me.block;
    let copies = me.block.threads[me.thread].copies.borrow().len();
    if copies > 0 {
        let message = format!("the thread ends with {copies} asynchronous copies that it did not wait for");
        me.fail(Site::UNKNOWN, message);
    }
    if let Err((site, message)) = block.hopper.left_behind(me) {
        me.fail(site, message);
    }
    if let Some(site) = block.barrier.site() {
        me.fail(
            site,
            "the thread ends while others of its block wait at a barrier of all threads".to_owned(),
        );
    }
    if let Some(site) = block.cluster().sync_site() {
        me.fail(site, "the thread ends while others of its cluster wait at a cluster_sync".to_owned());
    }
    if block.live.get() == 1 && block.job().programmatic && !block.has_waited.get() {
        let message = "the block ends without a wait_for_dependencies: launches after this one could go on before \
                       those before it have ended";
        me.fail(Site::UNKNOWN, message.to_owned());
    }
    if let Some(text) = block.arrived_at_named().next().filter(|_| block.live.get() == 1) {
        me.fail(Site::UNKNOWN, format!("the block ends, but only {text}"));
    }
    if block.live.get() == 1
        && !block.is_alone.get()
        && let Err(message) = block.hopper.still_reached(block)
    {
        me.fail(Site::UNKNOWN, message);
    }
    block.live.set(block.live.get() - 1);
    let warp = me.warp();
    warp.alive.set(warp.alive.get() & !(1 << me.lane()));
    block.suspend(me.thread);
    warp.complete_without(me);
    block.leave(me.thread);
    unreachable!("a thread that ended does not run");
}
