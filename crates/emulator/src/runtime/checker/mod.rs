//! The checker: every access of a kernel is looked at for bounds, initialisation, races, and copies that were not waited for.
//!
//! Who is ordered before whom is kept by vector clocks, one component a warp: a barrier joins those of its warps. Lanes of a
//! warp are ordered by `__syncwarp` and barriers alone; shuffles and tensor cores exchange registers, not memory. Blocks of a
//! launch are not ordered, except through atomics: one that follows a `__threadfence` releases what the thread knew at the
//! fence, and every atomic at the same address after it acquires that.

mod hooks;
mod hopper;
mod shadow;

use super::block::{Block, Me};
use super::failure::Site;
use super::region::*;
use crate::lent::Lent;
pub use hopper::MbarrierClock;
use shadow::{Access, Cell, GRAIN, Shadow};
use std::collections::HashMap;

const WARPS: usize = MAX_THREADS / 32;

type Clock = [u32; WARPS];

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

/// Where an access goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Shared,
    Global,
}

/// What an atomic released: the block, and the clock of the thread's last fence.
struct Release {
    block: u32,
    clock: Clock,
}

/// The state of a checked device; the first and last address of every allocation.
pub struct Checker {
    pub allocations: Vec<(usize, usize)>,
    pub lent: Lent,
    shadow: Shadow,
    /// Number of the block that runs, over all launches.
    block: u32,
    /// Of the first block of this launch.
    first_block: u32,
    clocks: [Clock; WARPS],
    epochs: [u32; WARPS],
    /// Of each thread, at its last fence.
    fences: HashMap<usize, Clock>,
    /// How many each thread has executed.
    proxy_fences: HashMap<usize, u32>,
    releases: HashMap<usize, Vec<Release>>,
    /// How many of the releases at an address a warp of this block has acquired.
    acquired: HashMap<(usize, usize), usize>,
}

impl Checker {
    pub fn new() -> Self {
        Checker {
            allocations: Vec::new(),
            lent: Lent::default(),
            shadow: Shadow::new(),
            block: 0,
            first_block: 1,
            clocks: [[0; WARPS]; WARPS],
            epochs: [0; WARPS],
            fences: HashMap::new(),
            proxy_fences: HashMap::new(),
            releases: HashMap::new(),
            acquired: HashMap::new(),
        }
    }

    pub fn start_launch(&mut self) {
        self.first_block = self.block + 1;
        self.releases.clear();
    }

    pub fn start_block(&mut self) {
        self.block += 1;
        self.clocks = [[0; WARPS]; WARPS];
        (0..WARPS).for_each(|warp| self.clocks[warp][warp] = 1);
        self.epochs = [1; WARPS];
        self.fences.clear();
        self.proxy_fences.clear();
        self.acquired.clear();
    }

    /// All lanes of a warp that have not ended have met.
    pub fn sync_warp(&mut self, warp: usize) {
        self.epochs[warp] += 1;
    }

    /// Warps whose lanes in `waiting` have met at a barrier; `alive` has all lanes that have not ended.
    pub fn sync_block(&mut self, waiting: &[u32; WARPS], alive: impl Fn(usize) -> u32) {
        let warps = || (0..WARPS).filter(|warp| waiting[*warp] != 0);
        let mut joined = [0; WARPS];
        warps().for_each(|warp| join(&mut joined, &self.clocks[warp]));
        for warp in warps() {
            self.clocks[warp] = joined;
            self.clocks[warp][warp] += 1;
            if waiting[warp] == alive(warp) {
                self.epochs[warp] += 1;
            }
        }
    }

    pub fn fence(&mut self, thread: usize) {
        self.fences.insert(thread, self.clocks[thread / 32]);
    }

    fn acquire(&mut self, thread: usize, address: usize) {
        let warp = thread / 32;
        let Some(releases) = self.releases.get(&address) else { return };
        let seen = self.acquired.insert((warp, address), releases.len()).unwrap_or(0);
        for release in releases[seen..].iter().filter(|release| release.block == self.block) {
            join(&mut self.clocks[warp], &release.clock);
        }
    }

    fn release(&mut self, thread: usize, address: usize) {
        let clock = self.fences.get(&thread).copied().unwrap_or([0; WARPS]);
        self.releases.entry(address).or_default().push(Release { block: self.block, clock });
        self.clocks[thread / 32][thread / 32] += 1;
        let count = self.releases[&address].len();
        self.acquired.insert((thread / 32, address), count);
    }

    /// Whether a thread's warp knows, through atomics, of an access of another block.
    fn knows(&self, thread: usize, block: u32, access: Access) -> bool {
        self.acquired.iter().filter(|((warp, _), _)| *warp == thread / 32).any(|((_, address), seen)| {
            let releases = &self.releases[address][..*seen];
            releases.iter().any(|r| r.block == block && r.clock[access.warp as usize] >= access.clock)
        })
    }

    /// Whether an access of this block comes before what a thread does now.
    fn before(&self, access: Access, thread: usize) -> bool {
        let (warp, of) = (thread / 32, access.warp as usize);
        if of == warp {
            usize::from(access.lane) == thread % 32 || access.epoch < self.epochs[warp]
        } else {
            self.clocks[warp][of] >= access.clock
        }
    }

    /// What is wrong with an access to two bytes, if anything; remembers it otherwise.
    fn visit(&mut self, space: Space, place: usize, thread: usize, kind: Kind) -> Result<(), String> {
        let mut cell = *self.cell(space, place);
        let name = match space {
            Space::Shared => "shared",
            Space::Global => "global",
        };
        if cell.block != self.block {
            cell = self.take_over(cell, space, place, thread, kind)?;
        }
        if cell.pending {
            return Err("of shared memory that an asynchronous copy, which was not waited for, still writes"
                .to_owned());
        }
        if space == Space::Shared && kind != Kind::Write && !cell.initialised {
            return Err(format!("of uninitialised shared memory at {place:#x}"));
        }
        let both_atomic = kind == Kind::Atomic && cell.atomic;
        if let Some(writer) = cell.writer.filter(|w| !both_atomic && !self.before(*w, thread)) {
            return Err(race(name, "written", writer));
        }
        let now = Access {
            lane: (thread % 32) as u8,
            warp: (thread / 32) as u8,
            epoch: self.epochs[thread / 32],
            clock: self.clocks[thread / 32][thread / 32],
        };
        if kind == Kind::Read {
            self.add_reader(&mut cell, now, thread);
        } else {
            if let Some(reader) = cell.readers.iter().flatten().find(|r| !self.before(**r, thread)) {
                return Err(race(name, "read", *reader));
            }
            cell.readers = [None; 3];
            cell.writer = Some(now);
            cell.proxy_fences = self.proxy_fences_of(thread);
            cell.initialised = true;
            cell.atomic = kind == Kind::Atomic;
        }
        *self.cell(space, place) = cell;
        Ok(())
    }

    fn cell(&mut self, space: Space, place: usize) -> &mut Cell {
        match space {
            Space::Shared => self.shadow.shared(place),
            Space::Global => self.shadow.global(place),
        }
    }

    /// The cell for this block of what another block left.
    fn take_over(
        &self,
        old: Cell,
        space: Space,
        place: usize,
        thread: usize,
        kind: Kind,
    ) -> Result<Cell, String> {
        let mut cell = Cell { block: self.block, ..Cell::default() };
        if space == Space::Shared || old.block < self.first_block {
            return Ok(cell);
        }
        let conflict = |how| {
            let message = format!(
                "of global memory that block {how} in the same launch, with nothing that orders them"
            );
            Err(message)
        };
        if let Some(writer) = old.writer {
            let same_atomic = old.atomic && self.acquired.contains_key(&(thread / 32, place));
            let both_atomic = old.atomic && kind == Kind::Atomic;
            if !both_atomic && !same_atomic && !self.knows(thread, old.block, writer) {
                return conflict(format!("{} wrote", old.block - self.first_block));
            }
        }
        let reader = old.readers.iter().flatten().next();
        let read_by = if reader.is_some() { old.block } else { old.read_by_block };
        if read_by >= self.first_block && read_by != 0 {
            let known = reader.is_some_and(|r| self.knows(thread, old.block, *r));
            if kind != Kind::Read && !known {
                return conflict(format!("{} read", read_by - self.first_block));
            }
            cell.read_by_block = if known { 0 } else { read_by };
        }
        cell.atomic = old.atomic && kind == Kind::Atomic;
        Ok(cell)
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

    /// Every two bytes of an access.
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

    fn set_pending(&mut self, offset: usize, bytes: usize, pending: bool) {
        for place in (offset..offset + bytes).step_by(GRAIN) {
            let block = self.block;
            let cell = self.shadow.shared(place);
            if cell.block != block {
                *cell = Cell { block, ..Cell::default() };
            }
            cell.pending = pending;
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

/// Whether an address is inside the program: a constant of a kernel.
fn is_constant(address: usize) -> bool {
    // SAFETY: asks where an address lies, into a struct of its own.
    unsafe {
        let mut info = std::mem::zeroed();
        libc::dladdr(std::ptr::without_provenance(address), &mut info) != 0
    }
}

fn race(space: &str, how: &str, other: Access) -> String {
    let who = match other.lane {
        Access::MANY => format!("lanes of warp {}", other.warp),
        lane => format!("thread {} (warp {})", u32::from(other.warp) * 32 + u32::from(lane), other.warp),
    };
    format!("of {space} memory is a race: {how} by {who} with no synchronisation between")
}

fn join(clock: &mut Clock, other: &Clock) {
    clock.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

impl Block {
    /// Does something with the checker, if the launch is checked.
    pub fn check<R>(&self, work: impl FnOnce(&mut Checker) -> R) -> Option<R> {
        Some(work(&mut self.job().checker?.borrow_mut()))
    }

    /// Looks at an access of a thread, which fails if something is wrong with it.
    pub fn check_access(&self, user: Me, start: usize, bytes: usize, kind: Kind, site: Site) {
        if bytes == 0 {
            // A copy that only fills with zeros has a source that means nothing.
            return;
        }
        let thread = user.thread;
        let offset = start.wrapping_sub(self.base().addr());
        let result = if offset < REGION_BYTES {
            let shared = offset.wrapping_sub(ARENA_OFFSET);
            if shared >= ARENA_BYTES {
                // A stack, the arguments, the indices of threads.
                return;
            }
            if !self.shared.holds(shared, bytes) {
                Some(Err(format!("of {bytes} bytes at {shared:#x} out of the bounds of shared memory")))
            } else {
                self.check(|c| c.visit_all(Space::Shared, shared, bytes, thread, kind))
            }
        } else {
            self.check_lent(user, start, bytes, kind, site);
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

    /// Looks at whether an access to global memory touches what is lent.
    pub fn check_lent(&self, user: Me, start: usize, bytes: usize, kind: Kind, site: Site) {
        if let Some(message) = self.check(|c| c.lent.refusal(start, bytes)).flatten() {
            user.fail(site, format!("{} of {bytes} bytes {message}", kind.name()));
        }
    }

    /// An atomic operation: acquires before, releases after.
    fn check_atomic(&self, user: Me, address: usize, bytes: usize) {
        self.check(|c| c.acquire(user.thread, address));
        self.check_access(user, address, bytes, Kind::Atomic, Site::UNKNOWN);
        self.check(|c| c.release(user.thread, address));
    }

    /// Marks or unmarks the destination of an asynchronous copy.
    pub fn check_pending(&self, place: *mut u8, bytes: usize, pending: bool) {
        let offset = place.addr() - self.base().addr() - ARENA_OFFSET;
        self.check(|c| c.set_pending(offset, bytes, pending));
    }
}
