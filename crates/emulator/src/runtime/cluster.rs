//! Blocks that run together: a cluster, or a single block. They take turns on one OS thread, each
//! in a region of its own, and a thread can reach the shared memory of all.

use super::block::{Block, Me, me};
use super::checker::Checker;
use super::failure::{Failure, Site};
use super::job::Job;
use super::region::MAX_THREADS;
use crate::options::Schedule;
use std::cell::Cell;
use std::ffi::c_char;

/// The most blocks in a cluster: what the checker has room for.
pub const MAX_BLOCKS: usize = 4;

pub struct Cluster {
    blocks: Vec<&'static Block>,
    /// The rank of the block that ran last.
    last: Cell<usize>,
    barrier: ClusterBarrier,
}

/// The barrier of all threads: `cluster_sync`.
#[derive(Default)]
struct ClusterBarrier {
    arrived: Cell<usize>,
    completed: Cell<usize>,
    site: Cell<Option<Site>>,
    /// The waiting lanes of each block, one mask per warp.
    waiting: [[Cell<u32>; MAX_THREADS / 32]; MAX_BLOCKS],
}

impl Cluster {
    pub fn new(blocks: Vec<&'static Block>) -> Self {
        Cluster { blocks, last: Cell::new(0), barrier: ClusterBarrier::default() }
    }

    /// The blocks in the order of their ranks.
    pub fn blocks(&self) -> &[&'static Block] {
        &self.blocks
    }

    /// How often `cluster_sync` has completed.
    pub fn syncs(&self) -> usize {
        self.barrier.completed.get()
    }

    /// The place where threads wait for the whole cluster, if any do.
    pub fn sync_site(&self) -> Option<Site> {
        self.barrier.site.get().filter(|_| self.barrier.arrived.get() > 0)
    }

    /// Runs all threads of adjacent blocks of a launch, of which `first` is the number of the
    /// first.
    ///
    /// # Errors
    /// The index of the block that fails, and how.
    pub fn run(&self, job: &Job, first: usize) -> Result<(), ([u32; 3], Box<Failure>)> {
        let count = self.blocks.len();
        self.barrier.reset();
        // So that the schedule begins with the first or the last block.
        self.last.set(if job.options.schedule == Schedule::Descending { 0 } else { count - 1 });
        for (rank, block) in self.blocks.iter().enumerate() {
            block.start(job, self, rank, first + rank);
        }
        if let Some(checker) = job.checker {
            checker.borrow_mut().start_cluster(count, job.warps());
        }
        let after_a_flag = || {
            let failed = self.blocks.iter().any(|block| block.failure.borrow().is_some());
            if !failed && self.wait_for_flags(&job.progress) { self.next() } else { None }
        };
        while let Some(block) = self.next().or_else(|| self.after_a_copy()).or_else(after_a_flag) {
            block.resume();
            if block.failure.borrow().is_some() {
                break;
            }
        }
        if let Some(counter) = job.counter {
            counter.borrow_mut().end_cluster();
        }
        let result = self.result(job);
        self.blocks.iter().for_each(|block| block.end());
        result.map_err(|(block, failure)| (block.geometry.block_index.get(), Box::new(failure)))
    }

    fn result(&self, job: &Job) -> Result<(), (&'static Block, Failure)> {
        for block in &self.blocks {
            if let Some(failure) = block.failure.take() {
                return Err((block, failure));
            }
        }
        if let Some(block) = self.blocks.iter().find(|block| block.live.get() > 0) {
            if job.progress.has_failed() {
                // Another cluster has failed, and this one waits for it.
                return Ok(());
            }
            return Err((block, self.deadlock()));
        }
        self.blocks
            .iter()
            .try_for_each(|block| block.hopper.unfinished().map_err(|failure| (*block, failure)))
    }

    /// The block that runs next, by the schedule.
    fn next(&self) -> Option<&'static Block> {
        self.pick(|block| block.can_run())
    }

    /// Lets copies land until a thread can run.
    fn after_a_copy(&self) -> Option<&'static Block> {
        while self.blocks.iter().any(|block| block.live.get() > 0) {
            let block = self.pick(|block| block.hopper.has_pending())?;
            if let Err((issuer, failure)) = block.hopper.land_one(block) {
                issuer.failure.replace(Some(failure));
                return None;
            }
            if let Some(next) = self.next() {
                return Some(next);
            }
        }
        None
    }

    /// The next block in the order of the schedule that satisfies a condition.
    fn pick(&self, is_eligible: impl Fn(&Block) -> bool) -> Option<&'static Block> {
        let count = self.blocks.len();
        let first = &self.blocks[0];
        let start = match first.job().options.schedule {
            _ if count == 1 => 0,
            Schedule::Ascending => self.last.get() + 1,
            Schedule::Descending => self.last.get() + count - 1,
            Schedule::Random(_) => first.random() as usize,
            Schedule::AheadLow => 0,
            Schedule::AheadHigh => count - 1,
        };
        let descends = matches!(first.job().options.schedule, Schedule::Descending | Schedule::AheadHigh);
        let rank = |i: usize| if descends { (start + count - i) % count } else { (start + i) % count };
        let rank = (0..count).map(rank).find(|rank| is_eligible(self.blocks[*rank]))?;
        self.last.set(rank);
        Some(self.blocks[rank])
    }

    /// Whether a thread of a block that waits makes room for another block.
    pub fn yields(&self, rank: usize) -> bool {
        match self.blocks[rank].job().options.schedule {
            Schedule::Ascending | Schedule::Descending => false,
            Schedule::Random(_) => self.blocks[rank].random().is_multiple_of(4),
            Schedule::AheadLow => self.blocks[..rank].iter().any(|block| block.can_run()),
            Schedule::AheadHigh => self.blocks[rank + 1..].iter().any(|block| block.can_run()),
        }
    }

    fn deadlock(&self) -> Failure {
        let mut waiting = Vec::new();
        for block in &self.blocks {
            let [x, y, z] = block.geometry.block_index.get();
            let of = if self.blocks.len() > 1 { format!("in block ({x},{y},{z}) ") } else { String::new() };
            waiting.extend(block.waiting().iter().map(|text| format!("{of}{text}")));
        }
        if let Some(site) = self.sync_site() {
            let [arrived, total] =
                [self.barrier.arrived.get(), self.threads(|block| block.thread_count.get())];
            waiting.push(format!("{arrived} of {total} threads of the cluster wait in {site}"));
        }
        let more = waiting.len().saturating_sub(8);
        waiting.truncate(8);
        if more > 0 {
            waiting.push(format!("{more} more groups of threads wait"));
        }
        let ended = self.threads(|block| block.thread_count.get() - block.live.get());
        let message =
            format!("deadlock, no thread can run: {}; {ended} threads have ended", waiting.join("; "));
        Failure::new(None, Site::UNKNOWN, message)
    }

    /// A sum over all blocks.
    fn threads(&self, count: impl Fn(&Block) -> usize) -> usize {
        self.blocks.iter().map(|block| count(block)).sum()
    }

    fn check_sync(&self, me: Me, site: Site) {
        let total = self.threads(|block| block.thread_count.get());
        let live = self.threads(|block| block.live.get());
        if live < total {
            let ended = total - live;
            me.fail(
                site,
                format!("{ended} of {total} threads of the cluster ended before this cluster_sync"),
            );
        }
        if let Some(other) = self.sync_site().filter(|other| !other.is_same(&site)) {
            me.fail(
                site,
                format!("threads of the cluster diverge at a cluster_sync: others wait in {other}"),
            );
        }
    }

    fn complete_sync(&self, me: Me) {
        let barrier = &self.barrier;
        barrier.completed.set(barrier.completed.get() + 1);
        barrier.arrived.set(0);
        me.block.check(Checker::sync_cluster);
        for (block, waiting) in self.blocks.iter().zip(&barrier.waiting) {
            for (warp, lanes) in waiting.iter().enumerate() {
                let lanes = lanes.take();
                if lanes == u32::MAX {
                    block.count(|c| c.close(block.first_warp() + warp));
                }
                block.wake(warp, lanes);
            }
        }
    }
}

impl ClusterBarrier {
    fn reset(&self) {
        self.arrived.set(0);
        self.completed.set(0);
        self.waiting.iter().flatten().for_each(|lanes| lanes.set(0));
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_cluster_rank() -> u32 {
    me().block.rank() as u32
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_cluster_sync(file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("cluster_sync", file, line);
    let cluster = me.block.cluster();
    let barrier = &cluster.barrier;
    cluster.check_sync(me, site);
    barrier.site.set(Some(site));
    barrier.arrived.set(barrier.arrived.get() + 1);
    let waiting = &barrier.waiting[me.block.rank()][me.thread / 32];
    waiting.set(waiting.get() | 1 << me.lane());
    if barrier.arrived.get() == cluster.threads(|block| block.thread_count.get()) {
        cluster.complete_sync(me);
    } else {
        me.wait();
    }
}
