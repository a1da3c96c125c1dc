//! Counts the work that launches ask of memory and of tensor cores: see [`Counts`]. Like the
//! checker, it needs the instrumented kernels; it works with or without the checker.
//!
//! A warp of a GPU carries an instruction out for all its lanes at once; here each lane runs by
//! itself. So accesses are kept until the lanes of their warp synchronize. Then the n-th accesses
//! of all lanes from one place in the kernel count as the same instruction. That is right in every
//! schedule, but a guess where lanes diverge and pass the same place at different times.

use super::block::{Block, Me};
use super::checker::Kind;
use super::cluster::MAX_BLOCKS;
use super::region::*;
use crate::counts::Counts;
use std::collections::HashMap;

const SECTOR_BYTES: usize = 32;
const PAGE_BYTES: usize = 128 * SECTOR_BYTES;
/// Banks of shared memory; each serves one word per wavefront.
const BANKS: usize = 32;
const WORD_BYTES: usize = 4;
/// The most bytes that a lane reads or writes with one instruction.
const MOST_BYTES: usize = 16;

/// The properties that the accesses of an instruction share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Instruction {
    /// The place in the kernel: an address, or the address of a file's name and a line.
    from: (usize, u32),
    is_shared: bool,
    kind: Kind,
}

/// The access of one lane. Addresses in shared memory count from its start.
#[derive(Clone, Copy)]
pub struct Span {
    pub lane: usize,
    pub address: usize,
    pub bytes: usize,
}

/// The state of a device that counts.
pub struct Counter {
    /// Start and end of every allocation, in order.
    pub allocations: Vec<(usize, usize)>,
    counts: Counts,
    /// The accesses of each warp of a cluster since its lanes last synchronized.
    logs: Vec<Vec<(Instruction, Span)>>,
    /// By page number: a bit for each sector that the launch reads, and that it writes.
    touched: HashMap<usize, [u128; 2]>,
}

impl Counter {
    pub fn new() -> Self {
        let logs = vec![Vec::new(); MAX_THREADS / 32 * MAX_BLOCKS];
        Counter { allocations: Vec::new(), counts: Counts::default(), logs, touched: HashMap::new() }
    }

    pub fn start_launch(&mut self) {
        self.counts = Counts { launches: 1, ..Counts::default() };
        self.logs.iter_mut().for_each(Vec::clear);
        self.touched.clear();
    }

    pub fn end_launch(&mut self) -> Counts {
        let bytes = |which: usize| {
            let sectors: u32 = self.touched.values().map(|bits| bits[which].count_ones()).sum();
            u64::from(sectors) * SECTOR_BYTES as u64
        };
        Counts { bytes_read: bytes(0), bytes_written: bytes(1), ..self.counts }
    }

    /// Closes the instructions of the blocks that ran together.
    pub fn end_cluster(&mut self) {
        (0..self.logs.len()).for_each(|warp| self.close(warp));
    }

    /// Closes the instructions of a warp whose lanes have all synchronized.
    pub fn close(&mut self, warp: usize) {
        let mut log = std::mem::take(&mut self.logs[warp]);
        // Accesses of a lane from the same place stay in order.
        log.sort_by_key(|(instruction, span)| (*instruction, span.lane));
        for same_place in log.chunk_by(|a, b| a.0 == b.0) {
            let lanes: Vec<_> = same_place.chunk_by(|a, b| a.1.lane == b.1.lane).collect();
            let times = lanes.iter().map(|accesses| accesses.len()).max().unwrap_or(0);
            for time in 0..times {
                let nth = lanes.iter().filter_map(|accesses| accesses.get(time));
                let spans: Vec<Span> = nth.map(|(_, span)| *span).collect();
                let Instruction { is_shared, kind, .. } = same_place[0].0;
                if is_shared { self.shared(&spans) } else { self.global(kind, &spans) }
            }
        }
        log.clear();
        self.logs[warp] = log;
    }

    /// Counts one instruction on global memory.
    fn global(&mut self, kind: Kind, spans: &[Span]) {
        let sectors_of = |s: &Span| s.address / SECTOR_BYTES..(s.address + s.bytes).div_ceil(SECTOR_BYTES);
        let mut sectors: Vec<usize> = spans.iter().flat_map(sectors_of).collect();
        sectors.sort_unstable();
        sectors.dedup();
        self.counts.global_requests += 1;
        let (reads, writes) = (kind != Kind::Write, kind != Kind::Read);
        self.counts.sectors_read += if reads { sectors.len() as u64 } else { 0 };
        self.counts.sectors_written += if writes { sectors.len() as u64 } else { 0 };
        for sector in sectors {
            let in_page = PAGE_BYTES / SECTOR_BYTES;
            let bit = 1u128 << (sector % in_page);
            let [read, written] = self.touched.entry(sector / in_page).or_default();
            *read |= if reads { bit } else { 0 };
            *written |= if writes { bit } else { 0 };
        }
    }

    /// Counts one instruction on shared memory; lanes are in order. More than a word per lane is
    /// served by half warps, more than two by quarter warps. Each part takes as many wavefronts as
    /// the busiest bank has distinct words to serve.
    fn shared(&mut self, spans: &[Span]) {
        let bytes = spans.iter().map(|span| span.bytes).max().unwrap_or(0);
        let lanes_at_once = 32 / bytes.div_ceil(WORD_BYTES).next_power_of_two();
        for part in spans.chunk_by(|a, b| a.lane / lanes_at_once == b.lane / lanes_at_once) {
            let words_of = |s: &Span| s.address / WORD_BYTES..(s.address + s.bytes).div_ceil(WORD_BYTES);
            let mut words: Vec<usize> = part.iter().flat_map(words_of).collect();
            words.sort_unstable();
            words.dedup();
            let mut wavefronts = [0; BANKS];
            words.iter().for_each(|word| wavefronts[word % BANKS] += 1);
            self.counts.shared_wavefronts += wavefronts.into_iter().max().unwrap_or(0);
            self.counts.shared_wavefronts_without_conflicts += 1;
        }
    }

    /// Counts an ldmatrix or a stmatrix of four matrices, whose rows the lanes name.
    pub fn matrix_rows(&mut self, rows: [u32; 32]) {
        let row = |lane: usize| Span { lane, address: rows[lane] as usize, bytes: 16 };
        self.shared(&std::array::from_fn::<_, 32, _>(row));
    }

    /// Counts a copy by TMA: the rows in global memory, which it reads or writes, once for all
    /// blocks that it goes to, and in each of them all of the box.
    pub fn tma(&mut self, kind: Kind, rows_inside: &[Span], box_bytes: usize, blocks: u64) {
        self.global(kind, rows_inside);
        let wavefronts = box_bytes.div_ceil(BANKS * WORD_BYTES) as u64 * blocks;
        self.counts.shared_wavefronts += wavefronts;
        self.counts.shared_wavefronts_without_conflicts += wavefronts;
    }

    /// Counts an MMA of (m, k) and (k, n).
    pub fn mma(&mut self, m: usize, n: usize, k: usize) {
        self.counts.tensor_flops += 2 * (m * n * k) as u64;
    }

    /// Counts the part of a wgmma that one warp has: 16 rows of A, if they are in shared memory,
    /// and the `columns` of B for the first warp of the four, as B is read once for all. Swizzled
    /// chunks have no conflicts.
    pub fn wgmma(&mut self, warp: usize, columns: usize, a_is_shared: bool) {
        let a_rows = if a_is_shared { 16 } else { 0 };
        let b_columns = if warp.is_multiple_of(4) { columns } else { 0 };
        let wavefronts = ((a_rows + b_columns) * 16 * 2 / 128) as u64;
        self.counts.shared_wavefronts += wavefronts;
        self.counts.shared_wavefronts_without_conflicts += wavefronts;
        self.mma(16, columns, 16);
    }

    /// Whether an address is in global memory, and not on a stack or a constant of the kernel.
    fn is_global(&self, address: usize) -> bool {
        let after = self.allocations.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).is_some_and(|i| address < self.allocations[i].1)
    }
}

impl Block {
    /// Calls `work` with the counter if the launch is counted.
    pub fn count(&self, work: impl FnOnce(&mut Counter)) {
        if let Some(counter) = self.job().counter {
            work(&mut counter.borrow_mut());
        }
    }

    /// Records an access of a thread from one place in the kernel, a long one in pieces.
    pub fn count_access(&self, user: Me, from: (usize, u32), start: usize, bytes: usize, kind: Kind) {
        self.count(|c| {
            let shared = start.wrapping_sub(self.base().addr() + ARENA_OFFSET);
            let is_shared = shared < ARENA_BYTES;
            if !is_shared && !c.is_global(start) {
                return;
            }
            let first = if is_shared { shared } else { start };
            for offset in (0..bytes).step_by(MOST_BYTES) {
                let bytes = MOST_BYTES.min(bytes - offset);
                let span = Span { lane: user.lane(), address: first + offset, bytes };
                c.logs[user.cluster_warp()].push((Instruction { from, is_shared, kind }, span));
            }
        });
    }
}
