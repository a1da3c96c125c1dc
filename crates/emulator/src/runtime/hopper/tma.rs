//! Copies of boxes of a matrix to shared memory. An early copy lands when it is issued; a late one
//! poisons its destination and lands when no thread can run without it.

use super::super::block::{Block, Me, me};
use super::super::checker::Kind;
use super::super::counting;
use super::super::failure::{Failure, Site};
use super::mbarrier::Mbarriers;
use super::{Hopper, Span, overlap, swizzle};
use crate::tensor_map::{BOX_COLUMNS, TensorMap, TiledMatrix};
use std::collections::VecDeque;
use std::ffi::c_char;

const MAGIC: u64 = 0x7465_6e73_6f72_6d61;
pub(super) const ROW_BYTES: u32 = 128;
/// Alignment in shared memory, so that the swizzle starts where wgmma expects it.
const ALIGN: u32 = 1024;
/// The 16 bytes that the swizzle moves as one; hardware refuses a box that starts inside of them.
pub(super) const CHUNK_COLUMNS: usize = 8;

/// Makes a tensor map of a matrix.
pub fn encode(matrix: &TiledMatrix) -> TensorMap {
    let mut map = TensorMap([0; 16]);
    let TiledMatrix { address, rows, columns, box_rows } = *matrix;
    map.0[..5].copy_from_slice(&[MAGIC, address, rows as u64, columns as u64, box_rows as u64]);
    map
}

/// Returns the matrix of a map that [`encode`] made.
pub fn decode(map: &TensorMap) -> Option<TiledMatrix> {
    let [magic, address, rows, columns, box_rows, ..] = map.0;
    let [rows, columns, box_rows] = [rows, columns, box_rows].map(|n| n as usize);
    (magic == MAGIC).then_some(TiledMatrix { address, rows, columns, box_rows })
}

/// A copy that has not landed.
struct Load {
    matrix: TiledMatrix,
    x: i32,
    y: i32,
    to: Span,
    barrier: usize,
    issuer: usize,
    site: Site,
}

/// A copy to a place in shared memory, which may be read once the phase is known to have ended.
struct Arrival {
    to: Span,
    barrier: usize,
    phase: u64,
    site: Site,
}

#[derive(Default)]
pub struct Loads {
    pending: VecDeque<Load>,
    /// The latest copy to each place.
    arrivals: Vec<Arrival>,
}

impl Loads {
    /// Checks that a warp may read a place.
    ///
    /// # Errors
    /// The reason why it must not.
    pub fn refuse_read(&self, barriers: &Mbarriers, warp: usize, span: Span) -> Result<(), String> {
        if let Some(load) = self.pending.iter().find(|load| overlap(load.to, span)) {
            let address = barriers.address(load.barrier);
            return Err(format!(
                "reads at {:#x} what the {} has not copied yet; its mbarrier is at {address:#x}",
                span.0, load.site
            ));
        }
        let unseen = |a: &&Arrival| overlap(a.to, span) && !barriers.has_seen(warp, a.barrier, a.phase);
        if let Some(arrival) = self.arrivals.iter().find(unseen) {
            let address = barriers.address(arrival.barrier);
            return Err(format!(
                "reads at {:#x} what the {} copied, without having waited for phase {} of its mbarrier at {address:#x}",
                span.0, arrival.site, arrival.phase
            ));
        }
        Ok(())
    }

    pub fn left_behind(&self) -> Result<(), (Site, String)> {
        match self.pending.front() {
            Some(load) => Err((load.site, "the block ends before this copy has landed".to_owned())),
            None => Ok(()),
        }
    }
}

impl Load {
    fn land(&self, block: &Block) -> Result<[u32; 32], String> {
        for row in 0..self.matrix.box_rows {
            let y = i64::from(self.y) + row as i64;
            for chunk in 0..BOX_COLUMNS / CHUNK_COLUMNS {
                let x = i64::from(self.x) + (chunk * CHUNK_COLUMNS) as i64;
                let bytes = self.matrix.chunk(x, y);
                let address = self.to.0 + row as u32 * ROW_BYTES + chunk as u32 * 16;
                // SAFETY: the chunk is inside the destination, which was found to be in shared
                // memory.
                unsafe { block.shared_bytes(swizzle(address)).cast::<[u8; 16]>().write(bytes) };
            }
        }
        let bytes = (self.to.1 - self.to.0) as usize;
        block.check_pending(block.shared_bytes(self.to.0), bytes, false);
        block.hopper.barriers.borrow_mut().land(self.barrier, u64::from(self.to.1 - self.to.0))
    }
}

impl TiledMatrix {
    /// The rows of the box at (x, y) that are inside the matrix, in global memory.
    pub(super) fn rows_inside(&self, x: i32, y: i32) -> Vec<counting::Span> {
        let inside = |from: i32, len: usize, end: usize| {
            let last = i64::from(from) + len as i64;
            from.max(0) as usize..last.clamp(0, end as i64) as usize
        };
        let columns = inside(x, BOX_COLUMNS, self.columns);
        let row = |row: usize| counting::Span {
            lane: 0,
            address: self.address as usize + row * self.row_bytes() + columns.start * 2,
            bytes: columns.len() * 2,
        };
        let rows = inside(y, self.box_rows, self.rows);
        rows.filter(|_| !columns.is_empty()).map(row).collect()
    }

    /// Eight elements of row y from column x on, zeros outside of the matrix.
    fn chunk(&self, x: i64, y: i64) -> [u8; 16] {
        let mut bytes = [0; 16];
        let inside = (0..self.rows as i64).contains(&y);
        let columns = 0.max(x)..(x + 8).min(self.columns as i64);
        if inside && !columns.is_empty() {
            let offset = y as usize * self.row_bytes() + columns.start as usize * 2;
            let source = std::ptr::with_exposed_provenance::<u8>(self.address as usize + offset);
            let place = (columns.start - x) as usize * 2;
            let len = (columns.end - columns.start) as usize * 2;
            // SAFETY: `Emulator::tensor_map` found the matrix to be inside an allocation, and these
            // elements are inside the matrix.
            unsafe { std::ptr::copy_nonoverlapping(source, bytes[place..].as_mut_ptr(), len) };
        }
        bytes
    }
}

impl Hopper {
    /// Lets the next copy land; returns whether there was one.
    ///
    /// # Errors
    /// If its mbarrier does not expect it.
    pub fn land_one(&self, block: &Block) -> Result<bool, Failure> {
        let count = self.loads.borrow().pending.len();
        if count == 0 {
            return Ok(false);
        }
        let number = if block.copies_random() { block.random() as usize % count } else { 0 };
        let load = self.loads.borrow_mut().pending.remove(number);
        let Some(load) = load else { return Ok(false) };
        match load.land(block) {
            Ok(waiting) => {
                waiting.into_iter().enumerate().for_each(|(warp, lanes)| block.wake(warp, lanes));
                Ok(true)
            }
            Err(message) => Err(Failure::new(Some(load.issuer), load.site, message)),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_load(
    dst: u32,
    map: *const TensorMap,
    x: i32,
    y: i32,
    barrier: u32,
    file: *const c_char,
    line: u32,
) {
    let me = me();
    let site = Site::new("tma_load", file, line);
    let (matrix, to) = box_of(me, site, map, x, dst);
    let barrier = me.mbarrier(barrier, site);
    if let Err(message) = me.block.hopper.refuse_overwrite(barrier, to) {
        me.fail(site, message);
    }
    let load = Load { matrix, x, y, to, barrier, issuer: me.thread, site };
    issue(me, load);
}

/// The matrix of a map, and the place in shared memory of its box; fails if no copy can have them.
pub(super) fn box_of(me: Me, site: Site, map: *const TensorMap, x: i32, address: u32) -> (TiledMatrix, Span) {
    // SAFETY: the map is a parameter of the kernel. It is copied now, as the thread may end before
    // the copy lands.
    let Some(matrix) = decode(&unsafe { map.read_unaligned() }) else {
        me.fail(site, "this is not a tensor map of the emulated device".to_owned());
    };
    if !address.is_multiple_of(ALIGN) {
        let message = format!(
            "the address {address:#x} in shared memory is not a multiple of {ALIGN}, at which the swizzle starts"
        );
        me.fail(site, message);
    }
    if x % CHUNK_COLUMNS as i32 != 0 {
        let message = format!(
            "the first column {x} is not a multiple of {CHUNK_COLUMNS}: an illegal instruction on a GPU"
        );
        me.fail(site, message);
    }
    let span = (address, address + matrix.box_rows as u32 * ROW_BYTES);
    me.block.require_shared(me, site, span);
    (matrix, span)
}

impl Hopper {
    /// Checks that a copy may write to a place.
    ///
    /// # Errors
    /// The reason why it must not.
    fn refuse_overwrite(&self, barrier: usize, to: Span) -> Result<(), String> {
        if !self.barriers.borrow().is_fenced(barrier) {
            return Err("there was no mbarrier_init_fence since its mbarrier was initialized".to_owned());
        }
        if let Some(other) = self.loads.borrow().pending.iter().find(|load| overlap(load.to, to)) {
            return Err(format!("writes to {:#x}, as does the {}, which has not landed", to.0, other.site));
        }
        for (warp, mmas) in self.mmas.iter().enumerate() {
            if let Some(site) = mmas.borrow().reads(to) {
                return Err(format!(
                    "writes to {:#x}, which the {site} of warp {warp} may still be reading",
                    to.0
                ));
            }
        }
        Ok(())
    }
}

fn issue(me: Me, load: Load) {
    let hopper = &me.block.hopper;
    let (barrier, site, to) = (load.barrier, load.site, load.to);
    let arrival = Arrival { to, barrier, phase: hopper.barriers.borrow().phase(barrier), site };
    me.block.check_tma_issue(me, to, site);
    let rows = load.matrix.rows_inside(load.x, load.y);
    rows.iter().for_each(|row| me.block.check_tma_source(me, row.address, row.bytes, site));
    me.block.count(|c| c.tma(Kind::Read, &rows, load.matrix.box_rows as u64));
    let late = me.block.copies_late();
    {
        let mut loads = hopper.loads.borrow_mut();
        loads.arrivals.retain(|old| !overlap(old.to, to));
        loads.arrivals.push(arrival);
    }
    if late {
        // SAFETY: the destination was found to be in shared memory.
        unsafe { me.block.shared_bytes(to.0).write_bytes(0xff, (to.1 - to.0) as usize) };
        hopper.loads.borrow_mut().pending.push_back(load);
        return;
    }
    match load.land(me.block) {
        Ok(waiting) => me.wake_all(waiting),
        Err(message) => me.fail(site, message),
    }
}
