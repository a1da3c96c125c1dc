//! Shadow memory of the checker: for every two bytes, the last write and the last reads.

use super::super::region::ARENA_BYTES;
use std::collections::HashMap;

/// Bytes of memory per cell.
pub const GRAIN: usize = 2;
const PAGE_BYTES: usize = 4096;

/// An access: the thread, and the time in its warp.
#[derive(Clone, Copy)]
pub struct Access {
    /// The lane, or [`Access::MANY`] for several lanes of the warp.
    pub lane: u8,
    pub warp: u8,
    /// The number of times that the warp had synchronized all its lanes.
    pub epoch: u32,
    /// The warp's own component of its clock.
    pub clock: u32,
}

impl Access {
    pub const MANY: u8 = u8::MAX;
}

#[derive(Clone, Copy, Default)]
pub struct Cell {
    /// The block that the other fields describe; blocks are numbered over all launches.
    pub block: u32,
    pub initialized: bool,
    /// Whether a copy that no thread has waited for writes it.
    pub pending: bool,
    /// Whether the last write was atomic.
    pub atomic: bool,
    /// Whether the last write was a copy from shared memory, which may land until the launch ends.
    pub stored: bool,
    pub writer: Option<Access>,
    /// The number of proxy fences that the writer had executed.
    pub proxy_fences: u32,
    /// Reads by different warps that are not ordered; of more than three, one is forgotten.
    pub readers: [Option<Access>; 3],
    /// An earlier block that read it.
    pub read_by_block: u32,
}

pub struct Shadow {
    shared: Vec<Cell>,
    global: HashMap<usize, Box<[Cell]>>,
}

impl Shadow {
    pub fn new() -> Self {
        Shadow { shared: vec![Cell::default(); ARENA_BYTES / GRAIN], global: HashMap::new() }
    }

    pub fn shared(&mut self, offset: usize) -> &mut Cell {
        &mut self.shared[offset / GRAIN]
    }

    pub fn global(&mut self, address: usize) -> &mut Cell {
        let page = self.global.entry(address / PAGE_BYTES);
        let page = page.or_insert_with(|| vec![Cell::default(); PAGE_BYTES / GRAIN].into_boxed_slice());
        &mut page[address % PAGE_BYTES / GRAIN]
    }

    /// The cells of bytes in global memory that any access has touched.
    pub fn touched(&self, start: usize, bytes: usize) -> impl Iterator<Item = &Cell> {
        let places = (start / GRAIN * GRAIN..start + bytes).step_by(GRAIN);
        places.filter_map(|place| Some(&self.global.get(&(place / PAGE_BYTES))?[place % PAGE_BYTES / GRAIN]))
    }
}
