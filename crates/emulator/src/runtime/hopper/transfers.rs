//! Copies to shared memory that report to an mbarrier. An early copy lands when it is issued; a
//! late one poisons its destination and lands when no thread can run without it.

use super::super::block::{Block, Me};
use super::super::checker::By;
use super::super::failure::{Failure, Site};
use super::mbarrier::Mbarriers;
use super::tma::Tile;
use super::{Hopper, Span, overlap};
use std::collections::VecDeque;

/// The data of a copy.
pub enum Source {
    /// A box of a matrix in global memory.
    Tile(Tile),
    /// Bytes at this address in global memory.
    Bytes(usize),
    /// A number in registers.
    Registers([u8; 16]),
}

/// A copy to the shared memory of a block, whose mbarrier has the number `barrier`.
pub struct Transfer {
    pub source: Source,
    pub to: Span,
    pub barrier: usize,
    pub issuer: Me,
    /// Whether it was started by an instruction for clusters, for which there are more rules.
    pub in_cluster: bool,
    pub site: Site,
}

/// A copy to a place in shared memory, which may be read once the phase is known to have ended.
struct Arrival {
    to: Span,
    barrier: usize,
    phase: u64,
    /// The block that issued it.
    rank: usize,
    is_store: bool,
    site: Site,
}

/// The copies to the shared memory of a block.
#[derive(Default)]
pub struct Transfers {
    pending: VecDeque<Transfer>,
    /// The latest copy to each place.
    arrivals: Vec<Arrival>,
}

impl Transfers {
    /// Checks that wgmma of a warp may read a place.
    ///
    /// # Errors
    /// The reason why it must not.
    pub fn refuse_read(&self, barriers: &Mbarriers, warp: usize, span: Span) -> Result<(), String> {
        if let Some(copy) = self.pending.iter().find(|copy| overlap(copy.to, span)) {
            let address = barriers.address(copy.barrier);
            return Err(format!(
                "reads at {:#x} what the {} has not copied yet; its mbarrier is at {address:#x}",
                span.0, copy.site
            ));
        }
        for arrival in self.arrivals.iter().filter(|arrival| overlap(arrival.to, span)) {
            let Arrival { barrier, phase, site, .. } = *arrival;
            if !barriers.has_seen(warp, barrier, phase) {
                let address = barriers.address(barrier);
                return Err(format!(
                    "reads at {:#x} what the {site} copied, without having waited for phase {phase} of its mbarrier \
                     at {address:#x}",
                    span.0
                ));
            }
            if arrival.is_store {
                return Err(format!("reads at {:#x} what the {site} stored, which is not emulated", span.0));
            }
        }
        Ok(())
    }

    /// Checks that a block that ends does not leave copies by other blocks behind, of which it
    /// cannot know.
    ///
    /// # Errors
    /// The copy that it must wait for first.
    pub fn unseen(&self, barriers: &Mbarriers, rank: usize) -> Result<(), String> {
        let unseen = |a: &&Arrival| a.rank != rank && !barriers.is_seen(a.barrier, a.phase);
        match self.arrivals.iter().find(unseen) {
            Some(arrival) => Err(format!(
                "the block ends without having waited for the {} of block {} of the cluster, which copies to its \
                 shared memory",
                arrival.site, arrival.rank
            )),
            None => Ok(()),
        }
    }

    pub fn left_behind(&self) -> Result<(), (Site, String)> {
        match self.pending.front() {
            Some(copy) => Err((copy.site, "the block ends before this copy has landed".to_owned())),
            None => Ok(()),
        }
    }
}

impl Transfer {
    /// Starts the copy to a block, on behalf of the issuer.
    pub fn start(self, block: &Block) {
        let (me, site) = (self.issuer, self.site);
        block.require_shared(me, site, self.to);
        if let Err(message) = block.hopper.accept(block, &self) {
            me.fail(site, message);
        }
        if me.block.copies_late() {
            // SAFETY: the destination was found to be in shared memory.
            unsafe { block.shared_bytes(self.to.0).write_bytes(0xff, self.bytes() as usize) };
            block.hopper.transfers.borrow_mut().pending.push_back(self);
            return;
        }
        match self.land(block) {
            Ok(waiting) => block.wake_all(waiting),
            Err(message) => me.fail(site, message),
        }
    }

    fn bytes(&self) -> u32 {
        self.to.1 - self.to.0
    }

    fn land(&self, block: &Block) -> Result<[u32; 32], String> {
        match &self.source {
            Source::Tile(tile) => tile.write(block, self.to.0),
            // SAFETY: the kernel vouches for the source, as for its own loads; the destination was
            // found to be in shared memory.
            Source::Bytes(address) => unsafe {
                let source = std::ptr::with_exposed_provenance::<u8>(*address);
                std::ptr::copy_nonoverlapping(source, block.shared_bytes(self.to.0), self.bytes() as usize);
            },
            // SAFETY: the destination was found to be in shared memory.
            Source::Registers(value) => unsafe {
                block.shared_bytes(self.to.0).cast::<[u8; 16]>().write(*value)
            },
        }
        block.check_pending(block.shared_bytes(self.to.0), self.bytes() as usize, false);
        // A thread that copies by TMA to its own block has no reason to expect the bytes later.
        let may_be_early = !self.issuer.is_in(block) || matches!(self.source, Source::Registers(_));
        block.hopper.barriers.borrow_mut().land(self.barrier, self.bytes(), may_be_early)
    }
}

impl Hopper {
    pub fn has_pending(&self) -> bool {
        !self.transfers.borrow().pending.is_empty()
    }

    /// Lets the next copy to a block land.
    ///
    /// # Errors
    /// The issuer's block and its failure, if the mbarrier does not expect the copy.
    pub fn land_one(&self, block: &Block) -> Result<(), (&'static Block, Failure)> {
        let count = self.transfers.borrow().pending.len();
        let number = if block.copies_random() { block.random() as usize % count } else { 0 };
        let copy = self.transfers.borrow_mut().pending.remove(number);
        let Some(copy) = copy else { return Ok(()) };
        match copy.land(block) {
            Ok(waiting) => {
                block.wake_all(waiting);
                Ok(())
            }
            Err(message) => {
                let Me { block, thread } = copy.issuer;
                Err((block, Failure::new(Some(thread), copy.site, message)))
            }
        }
    }

    /// Checks that a copy may write to a place, and records it.
    ///
    /// # Errors
    /// The reason why it must not.
    fn accept(&self, block: &Block, copy: &Transfer) -> Result<(), String> {
        let Transfer { to, barrier, site, .. } = *copy;
        let barriers = self.barriers.borrow();
        if !barriers.is_fenced(barrier) {
            return Err("there was no mbarrier_init_fence since its mbarrier was initialized".to_owned());
        }
        let mut transfers = self.transfers.borrow_mut();
        if let Some(other) = transfers.pending.iter().find(|other| overlap(other.to, to)) {
            return Err(format!("writes to {:#x}, as does the {}, which has not landed", to.0, other.site));
        }
        for (warp, mmas) in self.mmas.iter().enumerate() {
            if let Some(reader) = mmas.borrow().reads(to) {
                let whose = copy.issuer.whose(block);
                return Err(format!(
                    "writes to {:#x}, which the {reader} of warp {warp}{whose} may still be reading",
                    to.0
                ));
            }
        }
        if let Some(reader) = self.read_by_store(to) {
            return Err(format!("writes to {:#x}, which the {reader} may still be reading", to.0));
        }
        if copy.in_cluster {
            let unread = |old: &&Arrival| overlap(old.to, to) && !barriers.is_seen(old.barrier, old.phase);
            if let Some(old) = transfers.arrivals.iter().find(unread) {
                let whose = copy.issuer.whose(block);
                return Err(format!(
                    "writes to {:#x}{whose} over what the {} copied, for which no thread has waited",
                    to.0, old.site
                ));
            }
        }
        let by = match copy.source {
            Source::Tile(_) | Source::Bytes(_) => By::Tma,
            Source::Registers(_) => By::StoreAsync,
        };
        let phase = barriers.phase(barrier);
        block.check_async_write(copy.issuer, to, (barriers.clock(barrier), phase), by)?;
        let (rank, is_store) = (copy.issuer.block.rank(), by == By::StoreAsync);
        transfers.arrivals.retain(|old| !overlap(old.to, to));
        transfers.arrivals.push(Arrival { to, barrier, phase, rank, is_store, site });
        Ok(())
    }
}
