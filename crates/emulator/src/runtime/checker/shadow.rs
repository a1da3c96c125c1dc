//! What the checker remembers of memory: for every two bytes who wrote and read them last.

use super::super::region::ARENA_BYTES;
use std::collections::HashMap;

/// Of memory that one cell stands for.
pub const GRAIN: usize = 2;
const PAGE_BYTES: usize = 4096;

/// An access: which thread, and when in the time of its warp.
#[derive(Clone, Copy)]
pub struct Access {
    /// Of the block; [`Access::MANY`] for several lanes of the warp.
    pub lane: u8,
    pub warp: u8,
    /// How often the warp had synchronised all its lanes.
    pub epoch: u32,
    /// The warp's own clock.
    pub clock: u32,
}

impl Access {
    pub const MANY: u8 = u8::MAX;
}

#[derive(Clone, Copy, Default)]
pub struct Cell {
    /// The block that the rest is about; blocks are numbered over all launches.
    pub block: u32,
    pub initialised: bool,
    /// A copy that was not waited for writes it.
    pub pending: bool,
    /// The last write was atomic.
    pub atomic: bool,
    pub writer: Option<Access>,
    /// How many proxy fences the writer had executed.
    pub proxy_fences: u32,
    /// Of different warps, unordered; if there are more, one is forgotten.
    pub readers: [Option<Access>; 3],
    /// A block before this one that read it.
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
}
