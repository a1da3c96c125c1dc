//! Barriers among whole warps of a block, by number: `bar.sync` and `bar.arrive`. All lanes of a
//! warp arrive at once; those that synchronize wait until enough threads have arrived.

use super::block::{Block, me};
use super::checker::NamedClock;
use super::collective::Lanes;
use super::failure::Site;
use std::cell::{Cell, RefCell};

/// The numbers that a block has; 0 is the barrier of all threads.
pub const COUNT: usize = 16;

/// The argument of a lane; see `emulated/runtime.h`.
#[repr(C)]
pub struct Arrival {
    id: u32,
    threads: u32,
    /// The result: how often the barrier had completed before.
    used: u32,
}

#[derive(Default)]
pub struct NamedBarrier {
    /// The warps that have arrived, and those of them that wait: a bit for each.
    arrived: Cell<u32>,
    waiting: Cell<u32>,
    /// Threads that it waits for.
    expected: Cell<u32>,
    completed: Cell<u32>,
    /// The place where a warp arrived last.
    site: Cell<Option<Site>>,
    /// The knowledge of the warps that arrived, for the checker.
    clock: RefCell<NamedClock>,
}

impl NamedBarrier {
    pub fn reset(&self) {
        self.arrived.set(0);
        self.waiting.set(0);
        self.completed.set(0);
        self.clock.take();
    }

    /// Describes the barrier if it is not complete, for the report of a deadlock.
    pub fn describe(&self, id: usize) -> Option<String> {
        let (threads, expected) = (32 * self.arrived.get().count_ones(), self.expected.get());
        let site = self.site.get().filter(|_| threads > 0)?;
        let waiting: Vec<String> =
            (0..32).filter(|warp| self.waiting.get() >> warp & 1 == 1).map(|warp| warp.to_string()).collect();
        let by = if waiting.is_empty() {
            "no warp waits".to_owned()
        } else {
            format!("warps {} wait", waiting.join(", "))
        };
        Some(format!(
            "{threads} of {expected} threads have arrived at barrier {id}, the last in {site}; {by}"
        ))
    }

    /// Records the arrival of a warp, which waits or not.
    ///
    /// # Errors
    /// The reason why it must not arrive.
    fn arrive(
        &self,
        block: &Block,
        warp: usize,
        waits: bool,
        threads: u32,
        site: Site,
    ) -> Result<(), String> {
        let bit = 1 << warp;
        let arrived = self.arrived.get();
        if let Some(other) = self.site.get().filter(|_| arrived != 0) {
            if self.expected.get() != threads {
                let expected = self.expected.get();
                return Err(format!(
                    "for {threads} threads, but for {expected} in {other}, where warps arrived before"
                ));
            }
            if arrived & bit != 0 {
                return Err(format!(
                    "a warp arrives twice before {threads} threads have arrived; the last arrival was in {other}"
                ));
            }
        }
        let all = (arrived | bit).count_ones() * 32;
        self.expected.set(threads);
        self.arrived.set(arrived | bit);
        self.waiting.set(self.waiting.get() | if waits { bit } else { 0 });
        self.site.set(Some(site));
        let mut clock = self.clock.borrow_mut();
        block.check(|c| c.arrive_at_named(block.first_warp() + warp, &mut clock)).unwrap_or(Ok(()))?;
        if all == threads {
            let waiting = self.waiting.take();
            let warps = || (0..32).filter(|warp| waiting >> warp & 1 == 1);
            self.arrived.set(0);
            self.completed.set(self.completed.get() + 1);
            block.check(|c| c.complete_named(warps().map(|warp| block.first_warp() + warp), &mut clock));
            warps().for_each(|warp| block.wake(warp, u32::MAX));
        }
        Ok(())
    }
}

/// The arrival of a warp.
pub fn arrive(lanes: &Lanes, arguments: [&mut Arrival; 32], waits: bool) {
    let me = lanes.as_lane(0);
    let Arrival { id, threads, .. } = *arguments[0];
    if arguments.iter().any(|other| (other.id, other.threads) != (id, threads)) {
        me.fail(lanes.site, "the lanes of a warp name different barriers".to_owned());
    }
    let in_block = me.block.thread_count.get();
    if !(1..COUNT as u32).contains(&id) {
        me.fail(lanes.site, format!("barrier {id}: the numbers are 1 to 15, and 0 is __syncthreads"));
    }
    if threads == 0 || !threads.is_multiple_of(32) || threads as usize > in_block {
        let message =
            format!("barrier {id} of {threads} threads: whole warps of {in_block} threads can meet");
        me.fail(lanes.site, message);
    }
    let barrier = &me.block.named_barriers[id as usize];
    let used = barrier.completed.get();
    if let Err(message) = barrier.arrive(me.block, me.thread / 32, waits, threads, lanes.site) {
        me.fail(lanes.site, format!("barrier {id} {message}"));
    }
    arguments.into_iter().for_each(|argument| argument.used = used);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_barrier_wait(id: u32, used: u32) {
    let me = me();
    let barrier = &me.block.named_barriers[id as usize];
    while barrier.completed.get() == used {
        me.wait();
    }
}
