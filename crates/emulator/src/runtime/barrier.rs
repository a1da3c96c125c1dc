//! The barrier of all threads of a block: `__syncthreads`.

use super::block::{Me, me};
use super::failure::Site;
use super::region::MAX_THREADS;
use std::cell::Cell;
use std::ffi::c_char;

#[derive(Default)]
pub struct Barrier {
    arrived: Cell<usize>,
    /// The waiting lanes, one mask per warp.
    waiting: [Cell<u32>; MAX_THREADS / 32],
    /// Arrivals whose predicate is true.
    votes: Cell<u32>,
    /// The votes of the last two completions: a thread that waited for one reads it before the next
    /// but one can complete.
    results: [Cell<u32>; 2],
    completed: Cell<usize>,
    site: Cell<Option<Site>>,
}

impl Barrier {
    pub fn reset(&self) {
        self.arrived.set(0);
        self.votes.set(0);
        self.waiting.iter().for_each(|lanes| lanes.set(0));
    }

    /// The number of completions.
    pub fn completed(&self) -> usize {
        self.completed.get()
    }

    /// The place where threads wait, if any do.
    pub fn site(&self) -> Option<Site> {
        self.site.get().filter(|_| self.arrived.get() > 0)
    }

    pub fn describe(&self, threads: usize) -> Option<String> {
        let site = self.site()?;
        Some(format!("{} of {threads} threads wait in {site}", self.arrived.get()))
    }

    fn check(&self, me: Me, site: Site) {
        let total = me.block.thread_count.get();
        if me.block.live.get() < total {
            let ended = total - me.block.live.get();
            me.fail(site, format!("{ended} of {total} threads ended before this barrier of all threads"));
        }
        if let Some(other) = self.site().filter(|other| !other.is_same(&site)) {
            me.fail(site, format!("threads of the block diverge at a barrier: others wait in {other}"));
        }
    }

    /// Waits for the others; returns the number of true predicates.
    fn arrive(&self, me: Me, site: Site, predicate: bool) -> u32 {
        let generation = self.completed.get();
        self.site.set(Some(site));
        self.arrived.set(self.arrived.get() + 1);
        self.votes.set(self.votes.get() + u32::from(predicate));
        let waiting = &self.waiting[me.thread / 32];
        waiting.set(waiting.get() | 1 << me.lane());
        if self.arrived.get() == me.block.thread_count.get() {
            self.complete(me);
        } else {
            me.wait();
        }
        self.results[generation % 2].get()
    }

    fn complete(&self, me: Me) {
        self.results[self.completed.get() % 2].set(self.votes.get());
        self.completed.set(self.completed.get() + 1);
        self.arrived.set(0);
        self.votes.set(0);
        let waiting = self.waiting.each_ref().map(Cell::take);
        let first = me.block.first_warp();
        me.block.check(|c| c.sync_warps(first, &waiting, |warp| me.block.warps[warp].alive.get()));
        for (warp, lanes) in waiting.into_iter().enumerate() {
            if lanes == u32::MAX {
                me.block.count(|c| c.close(first + warp));
            }
            me.block.wake(warp, lanes);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_barrier(predicate: u32, file: *const c_char, line: u32) -> u32 {
    let (me, site) = (me(), Site::new("__syncthreads", file, line));
    me.block.barrier.check(me, site);
    me.block.barrier.arrive(me, site, predicate != 0)
}
