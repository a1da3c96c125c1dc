//! The checker examines every access of a kernel: bounds, initialization, races, lent memory, and
//! copies that no thread has waited for.
//!
//! Vector clocks with one component per warp and per mbarrier keep the order of accesses; a barrier
//! joins the clocks of its warps. The blocks of a cluster are checked as one, whose warps are
//! numbered across them. Only `__syncwarp` and barriers order the lanes of a warp; shuffles and
//! tensor cores exchange registers, not memory. Clusters of a launch (blocks, if it has none) are
//! not ordered, except through atomics: one that follows a `__threadfence` releases what the thread
//! knew at the fence, and every later atomic at the same address acquires that. Flags do the same
//! without a fence.

mod clock;
mod dependencies;
mod hooks;
mod hopper;
mod named;
mod releases;
mod shadow;
mod stores;

use super::block::{Block, Me};
use super::failure::Site;
use super::region::*;
use crate::lent::Lent;
use clock::Clock;
use dependencies::Dependencies;
pub use hopper::{By, MbarrierClock, Scope};
pub use named::NamedClock;
use releases::{Known, Release, Released};
use shadow::{Access, Cell, GRAIN, Shadow};
use std::collections::HashMap;

const WARPS: usize = MAX_THREADS / 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Read,
    Write,
    Atomic,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Read => "a read",
            Kind::Write => "a write",
            Kind::Atomic => "an atomic operation",
        }
    }
}

/// The memory that an access goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Shared,
    Global,
}

/// The state of a checked device.
pub struct Checker {
    /// Start and end of every allocation, in order.
    pub allocations: Vec<(usize, usize)>,
    pub lent: Lent,
    shadow: Shadow,
    /// The number of the cluster that runs; clusters are numbered over all launches.
    cluster: u32,
    /// The number of the first cluster of this launch.
    first_cluster: u32,
    /// Blocks per cluster, and warps per block.
    blocks: usize,
    block_warps: usize,
    clocks: Vec<Clock>,
    epochs: Vec<u32>,
    /// The mbarriers that have been initialized.
    mbarriers: usize,
    /// The knowledge of each thread at its last fence.
    fences: HashMap<usize, Released>,
    /// The proxy fences of each thread, in order.
    proxy_fences: HashMap<usize, Vec<Access>>,
    releases: HashMap<usize, Vec<Release>>,
    /// The number of releases at an address that a warp of this cluster has acquired.
    acquired: HashMap<(usize, usize), usize>,
    /// The knowledge of each warp about other clusters.
    known: Vec<Known>,
    dependencies: Dependencies,
}

impl Checker {
    pub fn new() -> Self {
        Checker {
            allocations: Vec::new(),
            lent: Lent::default(),
            shadow: Shadow::new(),
            cluster: 0,
            first_cluster: 1,
            blocks: 1,
            block_warps: 0,
            clocks: Vec::new(),
            epochs: Vec::new(),
            mbarriers: 0,
            fences: HashMap::new(),
            proxy_fences: HashMap::new(),
            releases: HashMap::new(),
            acquired: HashMap::new(),
            known: Vec::new(),
            dependencies: Dependencies::default(),
        }
    }

    pub fn start_launch(&mut self, programmatic: bool) {
        self.dependencies.start_launch(programmatic);
        self.first_cluster = self.cluster + 1;
        self.releases.clear();
    }

    /// Prepares for blocks that run together, each with `warps` warps.
    pub fn start_cluster(&mut self, blocks: usize, warps: usize) {
        self.cluster += 1;
        (self.blocks, self.block_warps) = (blocks, warps);
        let all = blocks * warps;
        self.clocks.clear();
        self.clocks.extend((0..all).map(|warp| Clock::of_warp(warp, all)));
        self.epochs.clear();
        self.epochs.resize(all, 1);
        self.mbarriers = 0;
        self.shadow.make_room(blocks);
        self.fences.clear();
        self.proxy_fences.clear();
        self.acquired.clear();
        self.known.clear();
        self.known.resize(all, Known::default());
        self.dependencies.start_cluster(32 * all);
    }

    /// Records that all live lanes of a warp have synchronized.
    pub fn sync_warp(&mut self, warp: usize) {
        self.epochs[warp] += 1;
    }

    /// Records that lanes of a block have met at a barrier: those in `waiting`, of the warps from
    /// `first` on; `alive` returns the live lanes of a warp.
    pub fn sync_warps(&mut self, first: usize, waiting: &[u32; WARPS], alive: impl Fn(usize) -> u32) {
        let warps = || (0..WARPS).filter(|warp| waiting[*warp] != 0);
        self.join_clocks(warps().map(|warp| first + warp));
        for warp in warps().filter(|warp| waiting[*warp] == alive(*warp)) {
            self.epochs[first + warp] += 1;
        }
    }

    /// Records that all threads of the cluster have met.
    pub fn sync_cluster(&mut self) {
        self.join_clocks(0..self.clocks.len());
        self.epochs.iter_mut().for_each(|epoch| *epoch += 1);
    }

    fn join_clocks(&mut self, warps: impl Iterator<Item = usize> + Clone) {
        let mut joined = Clock::default();
        warps.clone().for_each(|warp| joined.join(&self.clocks[warp]));
        for warp in warps.clone() {
            self.clocks[warp].copy_from(&joined);
            self.clocks[warp].tick(warp);
        }
        self.share_known(warps);
    }

    /// Whether an access of this cluster is ordered before what a thread does now.
    fn before(&self, access: Access, thread: usize) -> bool {
        let (warp, of) = (thread / 32, access.warp as usize);
        if of == warp {
            usize::from(access.lane) == thread % 32 || access.epoch < self.epochs[warp]
        } else {
            self.clocks[warp].includes(access)
        }
    }

    /// Checks an access to two bytes and records it.
    ///
    /// # Errors
    /// The end of a sentence that begins with the access and says what is wrong with it.
    fn visit(&mut self, space: Space, place: usize, thread: usize, kind: Kind) -> Result<(), String> {
        let mut cell = *self.cell(space, place);
        self.refuse_stored(&cell)?;
        self.refuse_unknown_addition(&cell, thread)?;
        if cell.cluster != self.cluster {
            cell = self.take_over(cell, space, place, thread, kind)?;
        }
        if cell.pending {
            return Err("of shared memory that an asynchronous copy, which was not waited for, still writes"
                .to_owned());
        }
        if space == Space::Shared && kind != Kind::Write && !cell.initialized {
            return Err(format!("of uninitialized shared memory at {:#x}", place % ARENA_BYTES));
        }
        let both_atomic = kind == Kind::Atomic && cell.atomic;
        if let Some(writer) = cell.writer.filter(|w| !both_atomic && !self.before(*w, thread)) {
            return Err(self.race(space, "written", writer));
        }
        let now = self.now(thread);
        if kind == Kind::Read {
            self.add_reader(&mut cell, now, thread);
        } else {
            if let Some(reader) = cell.readers.iter().flatten().find(|r| !self.before(**r, thread)) {
                return Err(self.race(space, "read", *reader));
            }
            cell.readers = [None; 3];
            cell.writer = Some(now);
            cell.proxy_fences = self.proxy_fences_of(thread);
            cell.initialized = true;
            cell.atomic = kind == Kind::Atomic;
            cell.added = false;
            cell.copied = false;
        }
        *self.cell(space, place) = cell;
        Ok(())
    }

    /// An access that a thread makes now.
    fn now(&self, thread: usize) -> Access {
        Access {
            lane: (thread % 32) as u8,
            warp: (thread / 32) as u8,
            epoch: self.epochs[thread / 32],
            clock: self.clocks[thread / 32].at(thread / 32),
        }
    }

    fn cell(&mut self, space: Space, place: usize) -> &mut Cell {
        match space {
            Space::Shared => self.shadow.shared(place),
            Space::Global => self.shadow.global(place),
        }
    }

    /// The cell that this cluster starts with after another one.
    ///
    /// # Errors
    /// If the two race.
    fn take_over(
        &self,
        old: Cell,
        space: Space,
        place: usize,
        thread: usize,
        kind: Kind,
    ) -> Result<Cell, String> {
        let mut cell = Cell { cluster: self.cluster, ..Cell::default() };
        if space == Space::Shared || old.cluster < self.first_cluster {
            return Ok(cell);
        }
        if let Some(writer) = old.writer {
            let same_atomic = old.atomic && self.acquired.contains_key(&(thread / 32, place));
            let both_atomic = old.atomic && kind == Kind::Atomic;
            if !both_atomic && !same_atomic && !self.knows(thread, old.cluster, writer) {
                return Err(self.conflict(old.cluster, "wrote"));
            }
        }
        let reader = old.readers.iter().flatten().next();
        let read_by = if reader.is_some() { old.cluster } else { old.read_by };
        if read_by >= self.first_cluster && read_by != 0 {
            let known = reader.is_some_and(|r| self.knows(thread, old.cluster, *r));
            if kind != Kind::Read && !known {
                return Err(self.conflict(read_by, "read"));
            }
            cell.read_by = if known { 0 } else { read_by };
        }
        cell.atomic = old.atomic && kind == Kind::Atomic;
        Ok(cell)
    }

    fn conflict(&self, cluster: u32, how: &str) -> String {
        let (who, number) = (if self.blocks > 1 { "cluster" } else { "block" }, cluster - self.first_cluster);
        format!(
            "of global memory that {who} {number} {how} in the same launch, without anything that orders the two"
        )
    }

    fn add_reader(&self, cell: &mut Cell, now: Access, thread: usize) {
        let readers = &mut cell.readers;
        let of_warp = readers.iter().position(|r| r.is_some_and(|r| r.warp == now.warp));
        let slot = of_warp
            .or_else(|| readers.iter().position(Option::is_none))
            .or_else(|| readers.iter().position(|r| r.is_some_and(|r| self.before(r, thread))))
            .unwrap_or(0);
        let with_others =
            readers[slot].is_some_and(|r| r.warp == now.warp && r.epoch == now.epoch && r.lane != now.lane);
        readers[slot] = Some(Access { lane: if with_others { Access::MANY } else { now.lane }, ..now });
    }

    /// Visits every two bytes of an access.
    fn visit_all(
        &mut self,
        space: Space,
        start: usize,
        bytes: usize,
        thread: usize,
        kind: Kind,
    ) -> Result<(), String> {
        for place in (start / GRAIN * GRAIN..start + bytes).step_by(GRAIN) {
            self.visit(space, place, thread, kind)?;
        }
        Ok(())
    }

    fn set_pending(&mut self, start: usize, bytes: usize, pending: bool) {
        for place in (start..start + bytes).step_by(GRAIN) {
            let cluster = self.cluster;
            let cell = self.shadow.shared(place);
            if cell.cluster != cluster {
                *cell = Cell { cluster, ..Cell::default() };
            }
            cell.pending = pending;
        }
    }

    fn race(&self, space: Space, how: &str, other: Access) -> String {
        if other.lane == Access::COPY {
            return "of shared memory that an asynchronous copy wrote, before a wait for its mbarrier has made that \
                    known"
                .to_owned();
        }
        let name = match space {
            Space::Shared => "shared",
            Space::Global => "global",
        };
        let who = self.name(other);
        format!("of {name} memory is a race: {how} by {who} without synchronization in between")
    }

    /// Names the thread of an access, or the lanes.
    fn name(&self, access: Access) -> String {
        let (block, warp) =
            (usize::from(access.warp) / self.block_warps, usize::from(access.warp) % self.block_warps);
        let of_block =
            if self.blocks > 1 { format!(" of block {block} of the cluster") } else { String::new() };
        match access.lane {
            Access::MANY => format!("lanes of warp {warp}{of_block}"),
            lane => format!("thread {} (warp {warp}){of_block}", warp * 32 + usize::from(lane)),
        }
    }

    fn in_allocation(&self, start: usize, bytes: usize) -> Result<bool, String> {
        let after = self.allocations.partition_point(|(first, _)| *first <= start);
        let Some(&(first, end)) = after.checked_sub(1).map(|i| &self.allocations[i]) else {
            return Ok(false);
        };
        if start >= end + 4096 {
            return Ok(false);
        }
        if start + bytes > end {
            let (offset, len) = (start - first, end - first);
            return Err(format!(
                "of {bytes} bytes out of bounds: at byte {offset} of an allocation of {len}"
            ));
        }
        Ok(true)
    }
}

/// Whether an address is inside the executable: a constant of a kernel.
fn is_constant(address: usize) -> bool {
    // SAFETY: `dladdr` takes any address, and fills in a struct that lives here.
    unsafe {
        let mut info = std::mem::zeroed();
        libc::dladdr(std::ptr::without_provenance(address), &mut info) != 0
    }
}

impl Block {
    /// Calls `work` with the checker if the launch is checked.
    pub fn check<R>(&self, work: impl FnOnce(&mut Checker) -> R) -> Option<R> {
        Some(work(&mut self.job().checker?.borrow_mut()))
    }

    /// Checks an access of a thread, which fails if something is wrong with it.
    pub fn check_access(&self, user: Me, start: usize, bytes: usize, kind: Kind, site: Site) {
        if bytes == 0 {
            // The source of a copy that only writes zeros means nothing.
            return;
        }
        let thread = user.cluster_thread();
        let offset = start.wrapping_sub(self.base().addr());
        let result = if offset < REGION_BYTES {
            let shared = offset.wrapping_sub(ARENA_OFFSET);
            if shared >= ARENA_BYTES {
                // A stack, the arguments, or the indices of threads.
                return;
            }
            if !self.shared.holds(shared, bytes) {
                Some(Err(format!("of {bytes} bytes at {shared:#x}, out of bounds of shared memory")))
            } else if let Some(refusal) = self.refuse_change(shared, bytes, kind) {
                Some(Err(refusal))
            } else {
                self.check(|c| c.visit_all(Space::Shared, self.shadow_place(shared), bytes, thread, kind))
            }
        } else {
            self.check_global(user, start, bytes, kind, site);
            self.check(|c| match c.in_allocation(start, bytes)? {
                true => c.visit_all(Space::Global, start, bytes, thread, kind),
                false if is_constant(start) => Ok(()),
                false => Err(format!("of {bytes} bytes at {start:#x}, outside of every allocation")),
            })
        };
        if let Some(Err(message)) = result {
            user.fail(site, format!("{} {message}", kind.name()));
        }
    }

    /// Fails if an access to global memory touches lent memory, or comes too early.
    pub fn check_global(&self, user: Me, start: usize, bytes: usize, kind: Kind, site: Site) {
        let refusal = self.check(|c| {
            let early = c.refuse_early(user.cluster_thread(), start);
            early.or_else(|| c.lent.refusal(start, bytes).map(|lent| format!("of {bytes} bytes {lent}")))
        });
        if let Some(message) = refusal.flatten() {
            user.fail(site, format!("{} {message}", kind.name()));
        }
    }

    /// Checks an atomic operation, which acquires before its access and releases after it.
    fn check_atomic(&self, user: Me, address: usize, bytes: usize) {
        self.check(|c| c.acquire(user.cluster_thread(), address));
        self.check_access(user, address, bytes, Kind::Atomic, Site::UNKNOWN);
        self.check(|c| c.release(user.cluster_thread(), address));
    }

    /// Marks the destination of an asynchronous copy as pending, or no longer.
    pub fn check_pending(&self, place: *mut u8, bytes: usize, pending: bool) {
        let start = self.shadow_place(place.addr() - self.base().addr() - ARENA_OFFSET);
        self.check(|c| c.set_pending(start, bytes, pending));
    }

    /// The place of an address in this block's shared memory among those of the cluster.
    fn shadow_place(&self, shared: usize) -> usize {
        self.rank() * ARENA_BYTES + shared
    }
}
