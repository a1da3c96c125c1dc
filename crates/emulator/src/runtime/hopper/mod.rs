//! Hopper's asynchronous operations: copies of tiles (TMA) that report to barriers in shared
//! memory, also in other blocks of a cluster; copies and additions to global memory in groups of a
//! thread; and MMAs of warpgroups. All may be carried out at any time between the instruction that
//! starts them and the one that waits for them. What a kernel must not do in between is checked
//! here, with or without the checker of memory accesses.

mod cluster;
mod mbarrier;
mod stores;
mod tma;
mod transfers;
mod wgmma;

use super::block::{Block, Me};
use super::failure::{Failure, Site};
use super::region::{ARENA_OFFSET, MAX_THREADS};
use mbarrier::{Mbarriers, Reach};
pub use stores::LateStores;
use stores::Stores;
pub use tma::{decode, encode};
use transfers::Transfers;
use wgmma::{Mmas, Warpgroup};
pub use wgmma::{Wgmma, commit, fence, issue, wait};

use std::cell::{Cell, RefCell};

/// A range of shared memory: the 32-bit addresses of its start and its end.
type Span = (u32, u32);

fn overlap(a: Span, b: Span) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The asynchronous operations of a block.
pub struct Hopper {
    /// Whether the block has used any of them.
    used: Cell<bool>,
    barriers: RefCell<Mbarriers>,
    transfers: RefCell<Transfers>,
    stores: RefCell<Stores>,
    /// The MMAs of each warp.
    mmas: Box<[RefCell<Mmas>]>,
    warpgroups: Box<[RefCell<Warpgroup>]>,
}

impl Default for Hopper {
    fn default() -> Self {
        Hopper {
            used: Cell::new(false),
            barriers: RefCell::default(),
            transfers: RefCell::default(),
            stores: RefCell::default(),
            mmas: (0..MAX_THREADS / 32).map(|_| RefCell::default()).collect(),
            warpgroups: (0..MAX_THREADS / 128).map(|_| RefCell::default()).collect(),
        }
    }
}

impl Hopper {
    /// Prepares for a new block.
    pub fn reset(&self) {
        if self.used.take() {
            self.barriers.take();
            self.transfers.take();
            self.stores.take();
            self.mmas.iter().for_each(|mmas| drop(mmas.take()));
            self.warpgroups.iter().for_each(|warpgroup| drop(warpgroup.take()));
        }
    }

    /// Describes the waiting threads, for the report of a deadlock.
    pub fn describe(&self) -> Vec<String> {
        self.barriers.borrow().describe()
    }

    /// The copy to global memory that may still be reading a place.
    pub fn read_by_store(&self, span: Span) -> Option<Site> {
        self.stores.borrow().reads(span)
    }

    /// Checks that a thread that ends leaves nothing behind.
    ///
    /// # Errors
    /// The operation that it must wait for first.
    pub fn left_behind(&self, me: Me) -> Result<(), (Site, String)> {
        if !self.used.get() {
            return Ok(());
        }
        self.stores.borrow_mut().end_thread(me)?;
        if me.warp().alive.get().count_ones() > 1 {
            return Ok(());
        }
        self.mmas[me.thread / 32].borrow().left_behind()?;
        let last =
            me.block.warps[me.thread / 128 * 4..][..4].iter().all(|w| w.alive.get() & !(1 << me.lane()) == 0);
        if last { self.warpgroups[me.thread / 128].borrow().left_behind() } else { Ok(()) }
    }

    /// Checks that a block of a cluster, whose last thread ends, knows that no other block still
    /// reaches its memory: it has waited for what they did, or met them at a cluster_sync.
    ///
    /// # Errors
    /// The operation that it must wait for first.
    pub fn still_reached(&self, block: &Block) -> Result<(), String> {
        let barriers = self.barriers.borrow();
        self.transfers.borrow().unseen(&barriers, block.rank())?;
        match barriers.unseen_arrival(block.cluster().syncs()) {
            Some(Reach { rank, site, .. }) => Err(format!(
                "the block ends without a cluster_sync after the {site} of block {rank} of the cluster, and without \
                 having waited for it"
            )),
            None => Ok(()),
        }
    }

    /// Checks that a block that ends leaves nothing behind.
    ///
    /// # Errors
    /// The copy that has not landed.
    pub fn unfinished(&self) -> Result<(), Failure> {
        self.transfers.borrow().left_behind().map_err(|(site, message)| Failure::new(None, site, message))
    }
}

impl Block {
    /// The place of bytes in shared memory.
    pub fn shared_bytes(&self, start: u32) -> *mut u8 {
        self.base().wrapping_add(ARENA_OFFSET + start as usize)
    }

    /// Fails on behalf of the user if some bytes are not in shared memory.
    fn require_shared(&self, user: Me, site: Site, span: Span) {
        if !self.shared.holds(span.0 as usize, (span.1 - span.0) as usize) {
            user.fail(
                site,
                format!("{} bytes at {:#x} are outside of shared memory", span.1 - span.0, span.0),
            );
        }
    }
}

/// The swizzled address of a 16-byte chunk in rows of 128, 64 or 32 bytes: in line `l` of 128
/// bytes, chunk `c` is at chunk `c ^ l % n`, where a row has n chunks.
fn swizzle(address: u32, row_bytes: u32) -> u32 {
    address ^ (address >> 7 & (row_bytes / 16 - 1)) << 4
}
