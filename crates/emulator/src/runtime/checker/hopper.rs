//! The accesses of Hopper's copies and MMAs, for the checker. An mbarrier orders arrivals before
//! waits. Copies and wgmma access shared memory through the async proxy, which sees the writes of a
//! thread only after its `proxy_fence`.

use super::super::block::{Block, Me};
use super::super::region::ARENA_BYTES;
use super::releases::{Known, join_known};
use super::shadow::{Access, Cell, GRAIN};
use super::{Checker, Clock, Kind, Space};
use std::ops::Range;

/// The knowledge that a wait for an mbarrier acquires.
#[derive(Default)]
pub struct MbarrierClock {
    component: usize,
    own: Clock,
    known: Known,
    /// The knowledge that other blocks of the cluster have released.
    peers: Clock,
    known_to_peers: Known,
}

/// The threads between which an arrival or a wait makes memory known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Block,
    Cluster,
}

impl Checker {
    /// The clock of a new mbarrier, or `None` if there are too many.
    pub fn new_mbarrier(&mut self) -> Option<MbarrierClock> {
        let component = self.clocks.len() + self.mbarriers;
        self.mbarriers += 1;
        let clock = MbarrierClock { component, ..MbarrierClock::default() };
        (component <= usize::from(u8::MAX)).then_some(clock)
    }

    /// Releases what the thread's warp knows to waits of its block or, to those of other blocks,
    /// what it knew at its last fence.
    pub fn mbarrier_arrive(&mut self, thread: usize, barrier: &mut MbarrierClock, scope: Scope) {
        match scope {
            Scope::Block => {
                barrier.own.join(&self.clocks[thread / 32]);
                join_known(&mut barrier.known, &self.known[thread / 32]);
            }
            Scope::Cluster => {
                let Some(fenced) = self.fences.get(&thread) else { return };
                barrier.peers.join(&fenced.clock);
                join_known(&mut barrier.known_to_peers, &fenced.known);
            }
        }
        self.clocks[thread / 32].tick(thread / 32);
    }

    /// Acquires what is known in this scope, after `ended` phases.
    pub fn mbarrier_wait(&mut self, thread: usize, barrier: &MbarrierClock, ended: u64, scope: Scope) {
        let (clock, known) = (&mut self.clocks[thread / 32], &mut self.known[thread / 32]);
        clock.join(&barrier.own);
        join_known(known, &barrier.known);
        if scope == Scope::Cluster {
            clock.join(&barrier.peers);
            join_known(known, &barrier.known_to_peers);
        }
        clock.advance(barrier.component, ended as u32);
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
    pub fn async_reads(&mut self, thread: usize, start: usize, bytes: usize) -> Result<(), String> {
        for place in (start..start + bytes).step_by(GRAIN) {
            let cell = *self.shadow.shared(place);
            if cell.cluster != self.cluster || !cell.initialized {
                return Err(format!("a read of uninitialized shared memory at {:#x}", place % ARENA_BYTES));
            }
            // Copies were found to be waited for.
            let Some(writer) = cell.writer.filter(|w| w.lane != Access::COPY) else { continue };
            if !self.before(writer, thread) {
                return Err(format!("a read {}", self.race(Space::Shared, "written", writer)));
            }
            self.is_fenced(writer, cell.proxy_fences, thread, "read").map_err(|e| format!("a read {e}"))?;
        }
        Ok(())
    }

    /// Checks that a thread that wrote to shared memory after `fences` proxy fences executed
    /// another one, ordered before the access by copy or wgmma of `thread`.
    fn is_fenced(&self, writer: Access, fences: u32, thread: usize, access: &str) -> Result<(), String> {
        let by = usize::from(writer.warp) * 32 + usize::from(writer.lane);
        let fence = self.proxy_fences.get(&by).and_then(|all| all.get(fences as usize));
        if fence.is_some_and(|fence| self.before(*fence, thread)) {
            return Ok(());
        }
        Err(format!(
            "of what {} wrote to shared memory without a proxy_fence after it{}",
            self.name(writer),
            if fence.is_some() { format!(" that is ordered before the {access}") } else { String::new() }
        ))
    }

    /// Checks and records an asynchronous copy that was issued: its writes replace all earlier
    /// ones, and the mbarrier that it reports to orders its readers. TMA may replace other copies
    /// without knowing of them: the rules for mbarriers find those that come too early.
    fn async_writes(
        &mut self,
        thread: usize,
        places: Range<usize>,
        copy: Access,
        by: By,
    ) -> Result<(), String> {
        let cluster = self.cluster;
        for place in places.step_by(GRAIN) {
            let cell = self.shadow.shared(place);
            if by == By::Tma && cell.writer.is_some_and(|w| w.lane == Access::COPY) {
                cell.writer = None;
            }
            let old = *cell;
            self.visit(Space::Shared, place, thread, Kind::Write)?;
            let writer = old.writer.filter(|w| old.cluster == cluster && w.lane != Access::COPY);
            if let Some(writer) = writer {
                self.is_fenced(writer, old.proxy_fences, thread, "write")?;
            }
            let cell =
                Cell { cluster, initialized: true, pending: true, writer: Some(copy), ..Cell::default() };
            *self.shadow.shared(place) = cell;
        }
        Ok(())
    }
}

/// The instruction that copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Tma,
    StoreAsync,
}

impl Block {
    /// Checks that wgmma, or a copy that a thread starts, may read shared memory.
    ///
    /// # Errors
    /// The reason why it must not.
    pub fn check_async_reads(&self, user: Me, span: (u32, u32)) -> Result<(), String> {
        let start = self.shadow_place(span.0 as usize);
        let result = self.check(|c| c.async_reads(user.cluster_thread(), start, (span.1 - span.0) as usize));
        result.unwrap_or(Ok(()))
    }

    /// Checks and records a copy to this block's shared memory that `user` issued, complete after a
    /// phase of an mbarrier.
    ///
    /// # Errors
    /// The reason why it must not be written.
    pub fn check_async_write(
        &self,
        user: Me,
        span: (u32, u32),
        until: (&MbarrierClock, u64),
        by: By,
    ) -> Result<(), String> {
        let (warp, clock) = (until.0.component as u8, until.1 as u32 + 1);
        let copy = Access { lane: Access::COPY, warp, epoch: 0, clock };
        let places = self.shadow_place(span.0 as usize)..self.shadow_place(span.1 as usize);
        let result = self.check(|c| c.async_writes(user.cluster_thread(), places, copy, by));
        result.unwrap_or(Ok(())).map_err(|message| format!("{} {message}", Kind::Write.name()))
    }
}
