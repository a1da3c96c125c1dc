//! MMAs of a warpgroup, 64 x N x 16. Each of its four warps computes its own 16 rows, and only when
//! it waits for them: nothing promises that one warp's wait covers the others. Until then the
//! registers of the sums are poisoned.

use super::super::block::{Block, Me};
use super::super::collective::Lanes;
use super::super::failure::Site;
use super::super::tensor_core::Element;
use super::{Span, overlap, swizzle};
use std::collections::VecDeque;

/// The argument of a lane; see `emulated/hopper.h`.
#[repr(C)]
pub struct Wgmma {
    d: *mut f32,
    a: u64,
    b: u64,
    /// Four registers, in place of the descriptor `a`; or null.
    a_registers: *const [u32; 4],
    columns: u32,
    accumulate: u32,
    across_a: u32,
    across_b: u32,
}

const ROWS: usize = 16;
const K: usize = 16;
const POISON: u32 = u32::MAX;

/// An operand in shared memory, as a matrix descriptor of the PTX ISA describes it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Operand {
    start: u32,
    /// Bytes of a row, which the swizzle mixes.
    row_bytes: u32,
    /// Bytes from a row's elements across to the next, if rows run across K.
    panel: u32,
    /// Bytes from 8 rows to the next 8.
    eight_rows: u32,
    /// Whether rows run across K.
    across: bool,
}

impl Operand {
    fn new(descriptor: u64, across: bool) -> Result<Self, String> {
        let field = |bit: u32| ((descriptor >> bit & 0x3fff) << 4) as u32;
        let row_bytes = match descriptor >> 62 {
            1 => 128,
            2 => 64,
            3 => 32,
            _ => 0,
        };
        if row_bytes == 0 || descriptor >> 49 & 7 != 0 {
            return Err(format!(
                "descriptor {descriptor:#x}: only the swizzles of 128, 64 and 32 bytes from a start are emulated"
            ));
        }
        let operand = Operand { start: field(0), row_bytes, panel: field(16), eight_rows: field(32), across };
        let offset = operand.start % operand.pattern_bytes();
        if offset + 32 > if across { 32 } else { row_bytes } {
            return Err(format!(
                "the operand at {:#x} starts {offset} bytes into the swizzle's pattern",
                operand.start
            ));
        }
        Ok(operand)
    }

    /// Bytes after which the swizzle repeats: eight rows.
    fn pattern_bytes(&self) -> u32 {
        8 * self.row_bytes
    }

    /// The address of eight contiguous elements from `mn` across and `k` on, along the rows.
    fn chunk(&self, mn: usize, k: usize) -> u32 {
        let (mn, k) = (mn as u32, k as u32);
        let (row, columns) = (self.row_bytes, self.row_bytes / 2);
        let address = if self.across {
            self.start + mn / columns * self.panel + k / 8 * self.eight_rows + k % 8 * row + mn % columns * 2
        } else {
            self.start + mn / 8 * self.eight_rows + mn % 8 * row + k * 2
        };
        swizzle(address, row)
    }

    /// All memory in which `count` rows (columns of B) from `mn` on may lie.
    fn spans(&self, mn: usize, count: usize) -> Vec<Span> {
        let (bytes, columns) = (self.pattern_bytes(), self.row_bytes / 2);
        let pattern = self.start / bytes * bytes;
        if self.across {
            let panels = mn as u32 / columns..((mn + count) as u32).div_ceil(columns);
            let starts =
                panels.flat_map(|p| [0, 1].map(|group| pattern + p * self.panel + group * self.eight_rows));
            starts.map(|start| (start, start + bytes)).collect()
        } else {
            let groups = mn as u32 / 8..(mn + count) as u32 / 8;
            groups.map(|g| (pattern + g * self.eight_rows, pattern + g * self.eight_rows + bytes)).collect()
        }
    }

    /// Reads 16 numbers of K from `count` rows, from `mn` on: (K, count).
    fn gather<T: Element>(&self, block: &Block, mn: usize, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; K * count];
        let read = |mn: usize, k: usize| {
            // SAFETY: `try_issue` found the operand to be in shared memory.
            let elements = unsafe { block.shared_bytes(self.chunk(mn, k)).cast::<[u16; 8]>().read() };
            elements.map(T::widen)
        };
        if self.across {
            for k in 0..K {
                for i in (0..count).step_by(8) {
                    values[k * count + i..][..8].copy_from_slice(&read(mn + i, k));
                }
            }
        } else {
            for i in (0..count).step_by(8) {
                for k in (0..K).step_by(8) {
                    let rows: [[f32; 8]; 8] = std::array::from_fn(|r| read(mn + i + r, k));
                    for j in 0..8 {
                        values[(k + j) * count + i..][..8].copy_from_slice(&rows.map(|row| row[j]));
                    }
                }
            }
        }
        values
    }
}

/// The left operand.
enum Left {
    Shared(Operand),
    /// A warp's 16 rows, read from its registers when the MMA was issued. A GPU may read them until
    /// the wait: a change in between is not found.
    Registers(Box<[[f32; K]; ROWS]>),
}

impl Left {
    /// Reads the registers of a warp: those of lane l hold rows l / 4 and l / 4 + 8, columns 2 (l %
    /// 4) and the next, then the same 8 columns on.
    ///
    /// # Safety
    /// Each lane passed a pointer to four registers, and waits.
    unsafe fn of_registers<T: Element>(lanes: [*const [u32; 4]; 32]) -> Self {
        let mut rows = Box::new([[0.0; K]; ROWS]);
        for (lane, registers) in lanes.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            for (i, pair) in unsafe { *registers }.into_iter().enumerate() {
                let (row, column) = (lane / 4 + i % 2 * 8, lane % 4 * 2 + i / 2 * 8);
                rows[row][column] = T::widen(pair as u16);
                rows[row][column + 1] = T::widen((pair >> 16) as u16);
            }
        }
        Left::Registers(rows)
    }

    /// Returns the 16 rows of a warp.
    fn rows<T: Element>(&self, block: &Block, warp: usize) -> [[f32; K]; ROWS] {
        match self {
            Left::Shared(operand) => {
                let by_k = operand.gather::<T>(block, warp % 4 * ROWS, ROWS);
                std::array::from_fn(|row| std::array::from_fn(|k| by_k[k * ROWS + row]))
            }
            Left::Registers(rows) => **rows,
        }
    }

    /// The operand in shared memory, which all warps of a warpgroup must have in common.
    fn shared(&self) -> Option<Operand> {
        match self {
            Left::Shared(operand) => Some(*operand),
            Left::Registers(_) => None,
        }
    }
}

/// An MMA that its warp has not waited for.
struct PendingMma {
    group: u64,
    sums: usize,
    a: Left,
    b: Operand,
    accumulate: bool,
    compute: fn(&PendingMma, &mut Sums, &Block, usize),
    spans: Vec<Span>,
    site: Site,
}

/// The 16 rows of sums of a warp while an MMA owns their registers.
struct Sums {
    registers: [*mut f32; 32],
    columns: usize,
    values: Vec<f32>,
    last_group: u64,
}

/// Row and column of a lane's register `i`.
fn place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2)
}

impl Sums {
    /// The index of a lane's register `i` in `values`.
    fn index(&self, lane: usize, i: usize) -> usize {
        let (row, column) = place(lane, i);
        row * self.columns + column
    }

    /// Moves the sums out of the lanes' registers and poisons those.
    fn take(registers: [*mut f32; 32], columns: usize, last_group: u64) -> Self {
        let mut sums = Sums { registers, columns, values: vec![0.0; ROWS * columns], last_group };
        for (lane, registers) in registers.into_iter().enumerate() {
            for i in 0..columns / 2 {
                let place = sums.index(lane, i);
                // SAFETY: the lane waits, and passed a pointer to `columns / 2` registers.
                sums.values[place] = unsafe { registers.add(i).replace(f32::from_bits(POISON)) };
            }
        }
        sums
    }

    fn give_back(&self) -> Result<(), String> {
        for (lane, registers) in self.registers.into_iter().enumerate() {
            for i in 0..self.columns / 2 {
                let value = self.values[self.index(lane, i)];
                // SAFETY: the lane waits, and the registers live until it has waited for this MMA.
                let found = unsafe { registers.add(i).replace(value) };
                if found.to_bits() != POISON {
                    return Err(format!("lane {lane} wrote to sum {i} while wgmma was in flight"));
                }
            }
        }
        Ok(())
    }
}

/// The MMAs of a warp.
#[derive(Default)]
pub struct Mmas {
    fenced: bool,
    groups: u64,
    pending: VecDeque<PendingMma>,
    sums: Vec<Option<Sums>>,
}

impl Mmas {
    /// The MMA that may still be reading a place.
    pub fn reads(&self, span: Span) -> Option<Site> {
        let reading = |p: &&PendingMma| p.spans.iter().any(|s| overlap(*s, span));
        self.pending.iter().find(reading).map(|p| p.site)
    }

    pub fn left_behind(&self) -> Result<(), (Site, String)> {
        match self.pending.front() {
            Some(mma) => Err((mma.site, "the warp ends without having waited for this wgmma".to_owned())),
            None => Ok(()),
        }
    }

    /// The number of the sums in these registers, which the first MMA moves out of them.
    fn sums_of(&mut self, registers: [*mut f32; 32], columns: usize) -> usize {
        let group = self.groups;
        if let Some(number) =
            self.sums.iter().position(|s| s.as_ref().is_some_and(|s| s.registers == registers))
        {
            self.sums[number].iter_mut().for_each(|s| s.last_group = group);
            return number;
        }
        let sums = Some(Sums::take(registers, columns, group));
        match self.sums.iter().position(Option::is_none) {
            Some(number) => {
                self.sums[number] = sums;
                number
            }
            None => {
                self.sums.push(sums);
                self.sums.len() - 1
            }
        }
    }

    /// Computes all MMAs except those of the last groups.
    fn complete(&mut self, block: &Block, warp: usize, groups_left: u64) -> Result<(), (Site, String)> {
        while self.pending.front().is_some_and(|p| p.group + groups_left < self.groups) {
            let Some(mma) = self.pending.pop_front() else { break };
            if let Some(sums) = &mut self.sums[mma.sums] {
                (mma.compute)(&mma, sums, block, warp);
            }
        }
        for place in &mut self.sums {
            if let Some(sums) = place.take_if(|s| s.last_group + groups_left < self.groups) {
                sums.give_back().map_err(|message| (Site::UNKNOWN, message))?;
            }
        }
        Ok(())
    }
}

/// The left operand if it is in shared memory, the right one, and the columns of an MMA; then its
/// place in the kernel.
type Issued = (Option<Operand>, Operand, u32, Site);

/// The MMAs that the four warps of a warpgroup must issue alike.
#[derive(Default)]
pub struct Warpgroup {
    /// The MMAs that not all warps have issued, and the number of the first.
    log: VecDeque<Issued>,
    first: u64,
    issued: [u64; 4],
}

impl Warpgroup {
    fn issue(&mut self, warp: usize, entry: Issued) -> Result<(), String> {
        let number = (self.issued[warp] - self.first) as usize;
        match self.log.get(number) {
            None => self.log.push_back(entry),
            Some(other) if (other.0, other.1, other.2) == (entry.0, entry.1, entry.2) => {}
            Some(other) => {
                return Err(format!(
                    "the warps of a warpgroup multiply different operands: another in {}",
                    other.3
                ));
            }
        }
        self.issued[warp] += 1;
        if self.issued.iter().all(|&issued| issued > self.first) {
            self.first += 1;
            self.log.pop_front();
        }
        Ok(())
    }

    pub fn left_behind(&self) -> Result<(), (Site, String)> {
        match self.log.front() {
            Some(entry) => {
                Err((entry.3, "not all four warps of a warpgroup took part in this wgmma".to_owned()))
            }
            None => Ok(()),
        }
    }
}

fn compute<T: Element>(mma: &PendingMma, sums: &mut Sums, block: &Block, warp: usize) {
    let a = mma.a.rows::<T>(block, warp);
    let b = mma.b.gather::<T>(block, 0, sums.columns);
    if !mma.accumulate {
        sums.values.fill(0.0);
    }
    if sums.columns.is_multiple_of(32) {
        multiply::<32>(&mut sums.values, &a, &b, sums.columns);
    } else {
        multiply::<8>(&mut sums.values, &a, &b, sums.columns);
    }
}

/// Adds the same terms in the same order with any instruction set, `W` columns at a time.
fn multiply<const W: usize>(sums: &mut [f32], a: &[[f32; K]; ROWS], b: &[f32], columns: usize) {
    #[inline(always)]
    fn blocks<const W: usize>(sums: &mut [f32], a: &[[f32; K]; ROWS], b: &[f32], columns: usize) {
        for first in (0..columns).step_by(W) {
            for (row, a) in a.iter().enumerate() {
                let place = &mut sums[row * columns + first..][..W];
                let mut block: [f32; W] = std::array::from_fn(|i| place[i]);
                for (k, a) in a.iter().enumerate() {
                    let b = &b[k * columns + first..][..W];
                    block.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                }
                place.copy_from_slice(&block);
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<const W: usize>(sums: &mut [f32], a: &[[f32; K]; ROWS], b: &[f32], columns: usize) {
            blocks::<W>(sums, a, b, columns);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { with_avx2::<W>(sums, a, b, columns) };
        }
    }
    blocks::<W>(sums, a, b, columns);
}

pub fn fence(lanes: &Lanes) {
    let me = lanes.as_lane(0);
    me.block.hopper.used.set(true);
    me.block.hopper.mmas[me.thread / 32].borrow_mut().fenced = true;
}

pub fn commit(lanes: &Lanes) {
    let me = lanes.as_lane(0);
    me.block.hopper.mmas[me.thread / 32].borrow_mut().groups += 1;
}

pub fn wait(lanes: &Lanes, groups_left: u32) {
    let me = lanes.as_lane(0);
    let result = {
        let mut mmas = me.block.hopper.mmas[me.thread / 32].borrow_mut();
        mmas.fenced = false;
        mmas.complete(me.block, me.thread / 32, u64::from(groups_left))
    };
    if let Err((_, message)) = result {
        me.fail(lanes.site, message);
    }
}

pub fn issue<T: Element>(lanes: &Lanes, arguments: [&mut Wgmma; 32]) {
    let me = lanes.as_lane(0);
    if let Err(message) = try_issue::<T>(me, lanes.site, arguments) {
        me.fail(lanes.site, message);
    }
}

fn try_issue<T: Element>(me: Me, site: Site, arguments: [&mut Wgmma; 32]) -> Result<(), String> {
    let hopper = &me.block.hopper;
    let (warp, rows) = (me.thread / 32, me.thread / 32 % 4 * ROWS);
    let first = &arguments[0];
    let columns = first.columns as usize;
    if arguments.iter().any(|x| (x.a, x.b, x.accumulate) != (first.a, first.b, first.accumulate)) {
        return Err("the lanes of a warp multiply different operands".to_owned());
    }
    let a = if first.a_registers.is_null() {
        Left::Shared(Operand::new(first.a, first.across_a != 0)?)
    } else {
        // SAFETY: `wgmma` in `emulated/hopper.h` passes the registers of every lane, or of none.
        unsafe { Left::of_registers::<T>(arguments.each_ref().map(|x| x.a_registers)) }
    };
    let b = Operand::new(first.b, first.across_b != 0)?;
    if b.across && !first.columns.is_multiple_of(b.row_bytes / 2) {
        let row = b.row_bytes / 2;
        return Err(format!("N = {columns} is not a multiple of {row}, the elements of a row of B across K"));
    }
    let accumulate = first.accumulate != 0;
    let a_spans = a.shared().map(|a| a.spans(rows, ROWS)).unwrap_or_default();
    let spans = [a_spans, b.spans(0, columns)].concat();
    spans.iter().for_each(|span| me.block.require_shared(me, site, *span));
    let mut mmas = hopper.mmas[warp].borrow_mut();
    if !mmas.fenced {
        return Err("there was no wgmma_fence since the last wgmma_wait".to_owned());
    }
    for &span in &spans {
        hopper.transfers.borrow().refuse_read(&hopper.barriers.borrow(), warp, span)?;
    }
    for span in &spans {
        me.block.check_async_reads(me, *span)?;
    }
    hopper.warpgroups[warp / 4].borrow_mut().issue(warp % 4, (a.shared(), b, first.columns, site))?;
    me.block.count(|c| c.wgmma(warp, columns, a.shared().is_some()));
    let sums = mmas.sums_of(arguments.each_ref().map(|x| x.d), columns);
    let group = mmas.groups;
    mmas.pending.push_back(PendingMma { group, sums, a, b, accumulate, compute: compute::<T>, spans, site });
    Ok(())
}
