//! Copies of boxes from shared memory to a matrix. A copy may read its source at any time until its
//! thread waits for its group, and write the matrix at any time until the launch ends. So its
//! source must not change before that wait, which is found here without the checker too; and a late
//! copy is written when the launch has ended.

use super::super::block::{Block, Me, me};
use super::super::checker::Kind;
use super::super::failure::Site;
use super::tma::{CHUNK_COLUMNS, ROW_BYTES, box_of};
use super::{Span, overlap, swizzle};
use crate::tensor_map::{BOX_COLUMNS, TensorMap, TiledMatrix};
use std::collections::HashMap;
use std::ffi::c_char;
use std::sync::Mutex;

/// 16 bytes of a box that are inside the matrix.
struct Chunk {
    from: u32,
    /// The address in global memory.
    to: usize,
    /// The source when the copy was issued.
    bytes: [u8; 16],
}

/// A copy whose thread has not waited for it.
struct Store {
    chunks: Vec<Chunk>,
    from: Span,
    issuer: usize,
    /// The number of its group among those of its thread.
    group: u64,
    written: bool,
    site: Site,
}

/// The copies of a block that still read shared memory.
#[derive(Default)]
pub struct Stores {
    pending: Vec<Store>,
    /// The number of groups that each thread has committed.
    committed: HashMap<usize, u64>,
}

/// Copies that have read their source and are written when the launch has ended.
#[derive(Default)]
pub struct LateStores(Mutex<Vec<Vec<Chunk>>>);

impl LateStores {
    /// Adds a copy, at a random place in the order if a number is given.
    fn add(&self, chunks: Vec<Chunk>, random: Option<u32>) {
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.push(chunks);
        if let Some(random) = random {
            let (place, last) = (random as usize % all.len(), all.len() - 1);
            all.swap(place, last);
        }
    }

    /// Writes all copies: the launch has ended.
    pub fn write(self) {
        let all = self.0.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.iter().for_each(|chunks| write(chunks));
    }
}

fn write(chunks: &[Chunk]) {
    for chunk in chunks {
        let place = std::ptr::with_exposed_provenance_mut::<[u8; 16]>(chunk.to);
        // SAFETY: `Emulator::tensor_map` found the matrix to be inside an allocation, and chunks
        // are inside the matrix.
        unsafe { place.write_unaligned(chunk.bytes) };
    }
}

impl Stores {
    /// The copy that may still be reading a place.
    pub fn reads(&self, span: Span) -> Option<Site> {
        self.pending.iter().find(|store| overlap(store.from, span)).map(|store| store.site)
    }

    /// Checks that a thread that ends has waited for its copies.
    ///
    /// # Errors
    /// The copy that it has not waited for.
    pub fn left_behind(&self, thread: usize) -> Result<(), (Site, String)> {
        let Some(store) = self.pending.iter().find(|store| store.issuer == thread) else { return Ok(()) };
        let message = if store.group < self.committed_by(thread) {
            "the thread ends without a tma_store_wait_read<0> after this store"
        } else {
            "the thread ends without a tma_store_commit after this store"
        };
        Err((store.site, message.to_owned()))
    }

    fn committed_by(&self, thread: usize) -> u64 {
        self.committed.get(&thread).copied().unwrap_or_default()
    }

    /// Takes out the copies that must have read their source for at most `groups_left` groups of a
    /// thread to stay in flight.
    fn take_due(&mut self, thread: usize, groups_left: u64) -> Vec<Store> {
        let committed = self.committed_by(thread);
        let due = |store: &mut Store| store.issuer == thread && store.group + groups_left < committed;
        self.pending.extract_if(.., due).collect()
    }
}

/// The parts of a box at (x, y) that are inside the matrix, with the contents of shared memory.
fn chunks_of(block: &Block, matrix: &TiledMatrix, x: i32, y: i32, from: u32) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for row in 0..matrix.box_rows {
        for first in (0..BOX_COLUMNS).step_by(CHUNK_COLUMNS) {
            let (row_of, column) = (i64::from(y) + row as i64, i64::from(x) + first as i64);
            // Rows are whole chunks, so no chunk is inside in part.
            if !(0..matrix.rows as i64).contains(&row_of) || !(0..matrix.columns as i64).contains(&column) {
                continue;
            }
            let from = swizzle(from + row as u32 * ROW_BYTES + first as u32 * 2);
            let to = matrix.address as usize + row_of as usize * matrix.row_bytes() + column as usize * 2;
            // SAFETY: `box_of` found the box to be in shared memory.
            let bytes = unsafe { block.shared_bytes(from).cast::<[u8; 16]>().read() };
            chunks.push(Chunk { from, to, bytes });
        }
    }
    chunks
}

impl Store {
    /// Completes the copy: its thread waits for it.
    fn finish(mut self, me: Me, site: Site) {
        for chunk in &self.chunks {
            let place = me.block.shared_bytes(chunk.from);
            // SAFETY: the chunk is in shared memory, as it was when the copy was issued.
            if unsafe { place.cast::<[u8; 16]>().read() } != chunk.bytes {
                let message = format!("the source of the {} was overwritten before this wait", self.site);
                me.fail(site, message);
            }
            me.block.check_access(me, place.addr(), 16, Kind::Read, self.site);
        }
        if self.written {
            return;
        }
        if me.block.copies_late() {
            let random = me.block.copies_random().then(|| me.block.random());
            me.block.job().late_stores.add(std::mem::take(&mut self.chunks), random);
        } else {
            write(&self.chunks);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_store(
    map: *const TensorMap,
    x: i32,
    y: i32,
    src: u32,
    file: *const c_char,
    line: u32,
) {
    let me = me();
    let site = Site::new("tma_store", file, line);
    let hopper = &me.block.hopper;
    hopper.used.set(true);
    let (matrix, from) = box_of(me, site, map, x, src);
    let refusal = hopper.transfers.borrow().refuse_read(&hopper.barriers.borrow(), me.thread / 32, from);
    if let Err(message) = refusal {
        me.fail(site, message);
    }
    let chunks = chunks_of(me.block, &matrix, x, y, src);
    for chunk in &chunks {
        if let Err(message) = me.block.check_async_reads(me, (chunk.from, chunk.from + 16)) {
            me.fail(site, message);
        }
    }
    let rows = matrix.rows_inside(x, y);
    rows.iter().for_each(|row| me.block.check_tma_destination(me, row.address, row.bytes, site));
    me.block.count(|c| c.tma(Kind::Write, &rows, matrix.box_rows as u64, 1));
    let written = !me.block.copies_late();
    if written {
        write(&chunks);
    }
    let mut stores = hopper.stores.borrow_mut();
    let group = stores.committed_by(me.thread);
    stores.pending.push(Store { chunks, from, issuer: me.thread, group, written, site });
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_store_commit() {
    let me = me();
    *me.block.hopper.stores.borrow_mut().committed.entry(me.thread).or_default() += 1;
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_store_wait_read(groups_left: u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new("tma_store_wait_read", file, line);
    let due = me.block.hopper.stores.borrow_mut().take_due(me.thread, u64::from(groups_left));
    due.into_iter().for_each(|store| store.finish(me, site));
}
