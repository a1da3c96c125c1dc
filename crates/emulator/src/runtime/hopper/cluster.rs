//! Addresses in the shared memory of other blocks of the cluster, and stores to them. A cluster
//! address has the block's rank plus one in its high bits, and the address there in the others.

use super::super::block::{Block, Me, me};
use super::super::failure::Site;
use super::super::region::ARENA_BYTES;
use super::transfers::{Source, Transfer};
use std::ffi::c_char;

const RANK_SHIFT: u32 = 24;

impl Me {
    pub fn is_in(self, block: &Block) -> bool {
        std::ptr::eq(self.block, block)
    }

    /// ` of block 1 of the cluster` for a block that is not the thread's own.
    pub(super) fn whose(self, block: &Block) -> String {
        if self.is_in(block) { String::new() } else { format!(" of block {} of the cluster", block.rank()) }
    }

    /// A block of the cluster whose memory the thread reaches; fails if it has ended.
    pub(super) fn peer(self, rank: usize, site: Site) -> &'static Block {
        let blocks = self.block.cluster().blocks();
        let Some(block) = blocks.get(rank) else {
            self.fail(site, format!("block {rank} of a cluster of {}", blocks.len()));
        };
        if block.live.get() == 0 {
            self.fail(site, format!("reaches the memory of block {rank} of the cluster, which has ended"));
        }
        block
    }

    /// The block of a cluster address, or this thread's own for an address of its own, and the
    /// address there.
    pub(super) fn reach(self, address: u32, site: Site) -> (&'static Block, u32) {
        let local = address & ((1 << RANK_SHIFT) - 1);
        match address >> RANK_SHIFT {
            0 => (self.block, local),
            number => (self.peer(number as usize - 1, site), local),
        }
    }

    /// Fails if this is not an address of the thread's own block.
    pub fn require_local(self, address: u32, site: Site) {
        if address as usize >= ARENA_BYTES {
            self.fail(
                site,
                format!("the address {address:#x} is not one of this block, which the instruction needs; is it a cluster_address?"),
            );
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_cluster_address(address: u32, rank: u32, file: *const c_char, line: u32) -> u32 {
    let (me, site) = (me(), Site::new("cluster_address", file, line));
    me.require_local(address, site);
    let blocks = me.block.cluster().blocks().len();
    if rank as usize >= blocks {
        me.fail(site, format!("block {rank} of a cluster of {blocks}"));
    }
    (rank + 1) << RANK_SHIFT | address
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_store_async(
    dst: u32,
    value: *const [u8; 16],
    barrier: u32,
    file: *const c_char,
    line: u32,
) {
    let (me, site) = (me(), Site::new("store_async", file, line));
    let (block, to) = me.reach(dst, site);
    let (other, barrier) = me.reach(barrier, site);
    if !std::ptr::eq(block, other) {
        let [block, other] = [block, other].map(Block::rank);
        me.fail(site, format!("stores to block {block} of the cluster, but reports to block {other}"));
    }
    if !to.is_multiple_of(16) {
        me.fail(site, format!("the destination {to:#x} is not a multiple of 16"));
    }
    let barrier = me.mbarrier_in(block, barrier, site);
    if !me.is_in(block) {
        block.hopper.barriers.borrow_mut().store(barrier, me.block.rank(), site);
    }
    // SAFETY: `store_async` passes a variable on the stack of the thread.
    let source = Source::Registers(unsafe { value.read_unaligned() });
    let to = (to, to + 16);
    Transfer { source, to, barrier, issuer: me, in_cluster: true, site }.start(block);
}
