//! What Hopper's copies and products do to memory, for the checker. An mbarrier orders who arrived before who waited. Copies
//! and wgmma go to shared memory by another way (the async proxy), which sees what a thread wrote after its `proxy_fence`.

use super::super::block::{Block, Me};
use super::super::failure::Site;
use super::shadow::{Cell, GRAIN};
use super::{Checker, Clock, Kind, join, race};

/// What those know that wait for an mbarrier.
pub type MbarrierClock = Clock;

impl Checker {
    /// An arrival releases what the thread's warp knows.
    pub fn mbarrier_arrive(&mut self, thread: usize, barrier: &mut MbarrierClock) {
        join(barrier, &self.clocks[thread / 32]);
        self.clocks[thread / 32][thread / 32] += 1;
    }

    pub fn mbarrier_wait(&mut self, thread: usize, barrier: &MbarrierClock) {
        join(&mut self.clocks[thread / 32], barrier);
    }

    pub fn proxy_fence(&mut self, thread: usize) {
        *self.proxy_fences.entry(thread).or_default() += 1;
    }

    /// How many a thread has executed.
    pub fn proxy_fences_of(&self, thread: usize) -> u32 {
        self.proxy_fences.get(&thread).copied().unwrap_or_default()
    }

    /// What is wrong with wgmma reading shared memory.
    pub fn wgmma_reads(&mut self, thread: usize, start: u32, end: u32) -> Result<(), String> {
        for place in (start as usize..end as usize).step_by(GRAIN) {
            let cell = *self.shadow.shared(place);
            if cell.block != self.block || !cell.initialised {
                return Err(format!("a read of uninitialised shared memory at {place:#x}"));
            }
            let Some(writer) = cell.writer else { continue };
            if !self.before(writer, thread) {
                return Err(format!("a read {}", race("shared", "written", writer)));
            }
            let by = usize::from(writer.warp) * 32 + usize::from(writer.lane);
            if self.proxy_fences_of(by) <= cell.proxy_fences {
                return Err(format!(
                    "a read of what thread {by} (warp {}) wrote to shared memory without a proxy_fence after it",
                    writer.warp
                ));
            }
        }
        Ok(())
    }

    /// A copy was issued: from now on nobody's writes but its own are there. The mbarrier it reports to orders its readers.
    fn tma_writes(&mut self, start: u32, end: u32) {
        for place in (start as usize..end as usize).step_by(GRAIN) {
            let block = self.block;
            *self.shadow.shared(place) = Cell { block, initialised: true, pending: true, ..Cell::default() };
        }
    }
}

impl Block {
    /// A copy by `user` to shared memory was issued.
    pub fn check_tma_issue(&self, user: Me, span: (u32, u32), site: Site) {
        let place = self.shared_bytes(span.0).addr();
        self.check_access(user, place, (span.1 - span.0) as usize, Kind::Write, site);
        self.check(|c| c.tma_writes(span.0, span.1));
    }
}
