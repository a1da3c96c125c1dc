//! Barriers of a block: `__syncthreads` is number 0.

use super::block::{Me, me};
use super::failure::Site;
use super::region::MAX_THREADS;
use std::cell::Cell;
use std::ffi::c_char;

#[derive(Default)]
pub struct Barrier {
    arrived: Cell<usize>,
    /// Threads that it waits for.
    expected: Cell<usize>,
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

    pub fn describe(&self) -> Option<String> {
        let site = self.site()?;
        Some(format!("{} of {} threads wait in {site}", self.arrived.get(), self.expected.get()))
    }

    fn check(&self, me: Me, site: Site, expected: usize, of_all: bool) {
        let total = me.block.thread_count.get();
        if of_all && me.block.live.get() < total {
            let ended = total - me.block.live.get();
            me.fail(site, format!("{ended} of {total} threads ended before this barrier of all threads"));
        }
        if self.arrived.get() == 0 {
            return;
        }
        let other = self.site.get().unwrap_or(Site::UNKNOWN);
        if !other.is_same(&site) {
            me.fail(site, format!("threads of the block diverge at a barrier: others wait in {other}"));
        }
        if self.expected.get() != expected {
            let others = self.expected.get();
            me.fail(site, format!("a barrier of {expected} threads, at which others wait for {others}"));
        }
    }

    /// Waits for the others; returns the number of true predicates.
    fn arrive(&self, me: Me, site: Site, expected: usize, predicate: bool) -> u32 {
        let generation = self.completed.get();
        self.site.set(Some(site));
        self.expected.set(expected);
        self.arrived.set(self.arrived.get() + 1);
        self.votes.set(self.votes.get() + u32::from(predicate));
        let waiting = &self.waiting[me.thread / 32];
        waiting.set(waiting.get() | 1 << me.lane());
        if self.arrived.get() == expected {
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
extern "C" fn cuda_emulator_barrier(
    id: u32,
    threads: u32,
    predicate: u32,
    file: *const c_char,
    line: u32,
) -> u32 {
    let me = me();
    let of_all = threads == 0;
    let site = Site::new(if of_all { "__syncthreads" } else { "a named barrier" }, file, line);
    let Some(barrier) = me.block.barriers.get(id as usize) else {
        me.fail(site, format!("barrier {id}: there are only 16"));
    };
    if !threads.is_multiple_of(32) {
        me.fail(site, format!("a barrier of {threads} threads, not a multiple of a warp"));
    }
    let expected = if of_all { me.block.thread_count.get() } else { threads as usize };
    barrier.check(me, site, expected, of_all);
    barrier.arrive(me, site, expected, predicate != 0)
}
