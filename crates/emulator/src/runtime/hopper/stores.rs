//! Copies from shared memory to global memory: boxes of a matrix, and numbers that are added. A
//! copy may read its source at any time until its thread waits for that, and write at any time
//! until its thread waits for the writes, or else until the launch ends. So its source must not
//! change before the wait, which is found here without the checker too; and a late copy whose
//! writes no thread waits for is written when the launch has ended.

use super::super::block::{Block, Me, me};
use super::super::checker::Kind;
use super::super::counting;
use super::super::failure::Site;
use super::tma::box_of;
use super::{Span, overlap};
use crate::tensor_map::{TensorMap, TiledMatrix};
use std::collections::HashMap;
use std::ffi::c_char;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// The effect of a copy on its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Write,
    /// Adds f32 numbers, each atomically.
    Add,
}

/// 16 bytes of a copy; of a box, only those that are inside the matrix.
struct Chunk {
    from: u32,
    /// The address in global memory.
    to: usize,
    /// The source when the copy was issued.
    bytes: [u8; 16],
}

/// The bytes that a copy has yet to write.
struct Writes {
    effect: Effect,
    chunks: Vec<Chunk>,
}

/// A copy for which its thread has not waited.
struct Store {
    writes: Writes,
    /// Whether it was written early.
    written: bool,
    from: Span,
    to: Vec<counting::Span>,
    issuer: usize,
    /// The number of its group among those of its thread.
    group: u64,
    site: Site,
}

/// The copies of a block.
#[derive(Default)]
pub struct Stores {
    /// Those that may still read shared memory, and those that may only have to be written.
    reading: Vec<Store>,
    writing: Vec<Store>,
    /// The number of groups that each thread has committed.
    committed: HashMap<usize, u64>,
}

/// Copies that are written when the launch has ended.
#[derive(Default)]
pub struct LateStores(Mutex<Vec<Writes>>);

impl LateStores {
    /// Adds a copy, at a random place in the order if a number is given.
    fn add(&self, writes: Writes, random: Option<u32>) {
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.push(writes);
        if let Some(random) = random {
            let (place, last) = (random as usize % all.len(), all.len() - 1);
            all.swap(place, last);
        }
    }

    /// Writes all copies: the launch has ended.
    pub fn write(self) {
        let all = self.0.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        all.iter().for_each(Writes::write);
    }
}

impl Writes {
    fn write(&self) {
        for chunk in &self.chunks {
            match self.effect {
                Effect::Write => {
                    let place = std::ptr::with_exposed_provenance_mut::<[u8; 16]>(chunk.to);
                    // SAFETY: `Emulator::tensor_map` found the matrix to be inside an allocation,
                    // and chunks are inside the matrix.
                    unsafe { place.write_unaligned(chunk.bytes) };
                }
                Effect::Add => {
                    for (i, bytes) in chunk.bytes.as_chunks().0.iter().enumerate() {
                        add(chunk.to + 4 * i, f32::from_ne_bytes(*bytes));
                    }
                }
            }
        }
    }
}

/// Adds to a number in global memory. As on a GPU, subnormal numbers count as zero.
fn add(address: usize, term: f32) {
    let flush = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
    // SAFETY: the kernel vouches for the address, as for its own stores; `bulk_reduce_add` found it
    // to be aligned.
    let number = unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(address)) };
    let sum = |old| Some(flush(flush(f32::from_bits(old)) + flush(term)).to_bits());
    number.fetch_update(SeqCst, SeqCst, sum).expect("there is always a sum");
}

impl Stores {
    /// The copy that may still be reading a place.
    pub fn reads(&self, span: Span) -> Option<Site> {
        self.reading.iter().find(|store| overlap(store.from, span)).map(|store| store.site)
    }

    fn committed_by(&self, thread: usize) -> u64 {
        self.committed.get(&thread).copied().unwrap_or_default()
    }

    /// Ends the copies of a thread that ends; they are written when the launch ends, if not
    /// earlier.
    ///
    /// # Errors
    /// A copy that may still read shared memory.
    pub fn end_thread(&mut self, me: Me) -> Result<(), (Site, String)> {
        if let Some(store) = self.reading.iter().find(|store| store.issuer == me.thread) {
            let message = if store.group < self.committed_by(me.thread) {
                "the thread ends without a tma_store_wait_read<0> after this store"
            } else {
                "the thread ends without a tma_store_commit after this store"
            };
            return Err((store.site, message.to_owned()));
        }
        for store in self.writing.extract_if(.., |store| store.issuer == me.thread) {
            if !store.written {
                let random = me.block.copies_random().then(|| me.block.random());
                me.block.job().late_stores.add(store.writes, random);
            }
        }
        Ok(())
    }

    /// Takes out the copies of a list that belong to the groups of a thread before group `end`.
    fn take_due(list: &mut Vec<Store>, thread: usize, end: u64) -> Vec<Store> {
        list.extract_if(.., |store| store.issuer == thread && store.group < end).collect()
    }
}

/// The parts of a box at (x, y) that are inside the matrix, with the contents of shared memory.
fn chunks_of(block: &Block, matrix: &TiledMatrix, x: i32, y: i32, from: u32) -> Vec<Chunk> {
    let chunks = matrix.box_chunks(from).filter_map(|(from, row, column)| {
        let (row, column) = (i64::from(y) + row as i64, i64::from(x) + column as i64);
        // Rows are whole chunks, so no chunk is inside in part.
        let inside = (0..matrix.rows as i64).contains(&row) && (0..matrix.columns as i64).contains(&column);
        let to = || matrix.address as usize + row as usize * matrix.row_bytes() + column as usize * 2;
        inside.then(|| Chunk { from, to: to(), bytes: block.chunk(from) })
    });
    chunks.collect()
}

impl Block {
    /// 16 bytes that were found to be in shared memory.
    fn chunk(&self, from: u32) -> [u8; 16] {
        // SAFETY: the caller has found them to be there.
        unsafe { self.shared_bytes(from).cast::<[u8; 16]>().read() }
    }
}

impl Store {
    /// Starts the copy.
    fn start(mut self, me: Me) {
        let hopper = &me.block.hopper;
        hopper.used.set(true);
        let refusal =
            hopper.transfers.borrow().refuse_read(&hopper.barriers.borrow(), me.thread / 32, self.from);
        if let Err(message) = refusal {
            me.fail(self.site, message);
        }
        for chunk in &self.writes.chunks {
            if let Err(message) = me.block.check_async_reads(me, (chunk.from, chunk.from + 16)) {
                me.fail(self.site, message);
            }
        }
        let adds = self.writes.effect == Effect::Add;
        self.to.iter().for_each(|row| me.block.check_tma_destination(me, *row, adds, self.site));
        let kind = if adds { Kind::Atomic } else { Kind::Write };
        me.block.count(|c| c.tma(kind, &self.to, (self.from.1 - self.from.0) as usize, 1));
        self.written = !me.block.copies_late();
        if self.written {
            self.writes.write();
        }
        let mut stores = hopper.stores.borrow_mut();
        self.group = stores.committed_by(me.thread);
        stores.reading.push(self);
    }

    /// Ends reading: its thread waits for it.
    fn end_reading(&mut self, me: Me, site: Site) {
        for chunk in &self.writes.chunks {
            if me.block.chunk(chunk.from) != chunk.bytes {
                let message = format!("the source of the {} was overwritten before this wait", self.site);
                me.fail(site, message);
            }
            me.block.check_access(me, me.block.shared_bytes(chunk.from).addr(), 16, Kind::Read, self.site);
        }
        if !self.written && !me.block.copies_late() {
            self.writes.write();
            self.written = true;
        }
        if self.written {
            self.writes.chunks = Vec::new();
        }
    }

    /// Ends writing: its thread waits for it.
    fn end_writing(&self, me: Me) {
        if !self.written {
            self.writes.write();
        }
        self.to.iter().for_each(|row| me.block.check_tma_written(me, *row));
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
    let (me, site) = (me(), Site::new("tma_store", file, line));
    let (matrix, from) = box_of(me, site, map, x, src);
    let writes = Writes { effect: Effect::Write, chunks: chunks_of(me.block, &matrix, x, y, src) };
    let to = matrix.rows_inside(x, y);
    Store { writes, written: false, from, to, issuer: me.thread, group: 0, site }.start(me);
}

/// Checks that a bulk copy between these places and of this length is possible.
pub(super) fn check_bulk(me: Me, site: Site, global: usize, shared: u32, bytes: u32) {
    me.require_local(shared, site);
    if !(shared.is_multiple_of(16) && global.is_multiple_of(16) && bytes.is_multiple_of(16) && bytes > 0) {
        let message =
            format!("{bytes} bytes at {shared:#x} and {global:#x}: these are not all multiples of 16");
        me.fail(site, message);
    }
    me.block.require_shared(me, site, (shared, shared + bytes));
}

fn start_bulk(effect: Effect, dst: *mut f32, src: u32, bytes: u32, site: Site) {
    let (me, address) = (me(), dst.expose_provenance());
    check_bulk(me, site, address, src, bytes);
    let chunks = (0..bytes).step_by(16).map(|offset| Chunk {
        from: src + offset,
        to: address + offset as usize,
        bytes: me.block.chunk(src + offset),
    });
    let writes = Writes { effect, chunks: chunks.collect() };
    let to = vec![counting::Span { lane: 0, address, bytes: bytes as usize }];
    let from = (src, src + bytes);
    Store { writes, written: false, from, to, issuer: me.thread, group: 0, site }.start(me);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_bulk_reduce_add(
    dst: *mut f32,
    src: u32,
    bytes: u32,
    file: *const c_char,
    line: u32,
) {
    start_bulk(Effect::Add, dst, src, bytes, Site::new("bulk_reduce_add", file, line));
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_bulk_store(dst: *mut f32, src: u32, bytes: u32, file: *const c_char, line: u32) {
    start_bulk(Effect::Write, dst, src, bytes, Site::new("bulk_store", file, line));
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_store_commit() {
    let me = me();
    *me.block.hopper.stores.borrow_mut().committed.entry(me.thread).or_default() += 1;
}

/// Waits until at most some groups of the thread have not been read, or not been written.
#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_store_wait(groups_left: u32, read_only: u32, file: *const c_char, line: u32) {
    let me = me();
    let site = Site::new(if read_only != 0 { "tma_store_wait_read" } else { "tma_store_wait" }, file, line);
    let stores = &me.block.hopper.stores;
    let end = stores.borrow().committed_by(me.thread).saturating_sub(u64::from(groups_left));
    let mut read = Stores::take_due(&mut stores.borrow_mut().reading, me.thread, end);
    read.iter_mut().for_each(|store| store.end_reading(me, site));
    stores.borrow_mut().writing.append(&mut read);
    if read_only == 0 {
        let written = Stores::take_due(&mut stores.borrow_mut().writing, me.thread, end);
        written.iter().for_each(|store| store.end_writing(me));
    }
}
