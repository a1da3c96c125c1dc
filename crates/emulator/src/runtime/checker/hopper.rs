//! The accesses of Hopper's copies and MMAs, for the checker. An mbarrier orders arrivals before
//! waits. Copies and wgmma access shared memory through the async proxy, which sees the writes of a
//! thread only after its `proxy_fence`.

use super::super::block::{Block, Me};
use super::super::failure::Site;
use super::releases::{Known, join_known};
use super::shadow::{Cell, GRAIN};
use super::{Checker, Clock, Kind, join, race};

/// The knowledge that a wait for an mbarrier acquires.
#[derive(Default)]
pub struct MbarrierClock {
    clock: Clock,
    known: Known,
}

impl Checker {
    /// Releases what the thread's warp knows.
    pub fn mbarrier_arrive(&mut self, thread: usize, barrier: &mut MbarrierClock) {
        join(&mut barrier.clock, &self.clocks[thread / 32]);
        join_known(&mut barrier.known, &self.known[thread / 32]);
        self.clocks[thread / 32][thread / 32] += 1;
    }

    pub fn mbarrier_wait(&mut self, thread: usize, barrier: &MbarrierClock) {
        join(&mut self.clocks[thread / 32], &barrier.clock);
        join_known(&mut self.known[thread / 32], &barrier.known);
    }

    pub fn proxy_fence(&mut self, thread: usize) {
        let now = self.now(thread);
        self.proxy_fences.entry(thread).or_default().push(now);
    }

    /// The number of proxy fences that a thread has executed.
    pub fn proxy_fences_of(&self, thread: usize) -> u32 {
        self.proxy_fences.get(&thread).map_or(0, |fences| fences.len() as u32)
    }

    /// Checks that wgmma, or a copy that a thread starts, may read shared memory.
    ///
    /// # Errors
    /// The reason why it must not.
    pub fn async_reads(&mut self, thread: usize, start: u32, end: u32) -> Result<(), String> {
        for place in (start as usize..end as usize).step_by(GRAIN) {
            let cell = *self.shadow.shared(place);
            if cell.block != self.block || !cell.initialized {
                return Err(format!("a read of uninitialized shared memory at {place:#x}"));
            }
            let Some(writer) = cell.writer else { continue };
            if !self.before(writer, thread) {
                return Err(format!("a read {}", race("shared", "written", writer)));
            }
            let by = usize::from(writer.warp) * 32 + usize::from(writer.lane);
            let fence = self.proxy_fences.get(&by).and_then(|all| all.get(cell.proxy_fences as usize));
            if !fence.is_some_and(|fence| self.before(*fence, thread)) {
                return Err(format!(
                    "a read of what thread {by} (warp {}) wrote to shared memory without a proxy_fence after it{}",
                    writer.warp,
                    if fence.is_some() { " that is ordered before the read" } else { "" }
                ));
            }
        }
        Ok(())
    }

    /// Records a copy that was issued: its writes replace all earlier ones, and the mbarrier that
    /// it reports to orders its readers.
    fn tma_writes(&mut self, start: u32, end: u32) {
        for place in (start as usize..end as usize).step_by(GRAIN) {
            let block = self.block;
            *self.shadow.shared(place) = Cell { block, initialized: true, pending: true, ..Cell::default() };
        }
    }
}

impl Block {
    /// Checks and records a copy to shared memory that `user` issued.
    pub fn check_tma_issue(&self, user: Me, span: (u32, u32), site: Site) {
        let place = self.shared_bytes(span.0).addr();
        self.check_access(user, place, (span.1 - span.0) as usize, Kind::Write, site);
        self.check(|c| c.tma_writes(span.0, span.1));
    }
}
