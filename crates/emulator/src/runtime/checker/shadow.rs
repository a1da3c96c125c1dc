//! Shadow memory of the checker: for every two bytes, the last write and the last reads.

use super::super::region::ARENA_BYTES;
use std::collections::HashMap;

/// Bytes of memory per cell.
pub const GRAIN: usize = 2;
const PAGE_BYTES: usize = 4096;

/// An access: the thread, and the time in its warp. Or an asynchronous copy: its mbarrier, and the
/// phase after which it is complete.
#[derive(Clone, Copy)]
pub struct Access {
    /// The lane, [`Access::MANY`] for several lanes of the warp, or [`Access::COPY`].
    pub lane: u8,
    /// The warp or the mbarrier: a component of clocks.
    pub warp: u8,
    /// The number of times that the warp had synchronized all its lanes.
    pub epoch: u32,
    /// The warp's own component of its clock.
    pub clock: u32,
}

impl Access {
    pub const MANY: u8 = u8::MAX;
    pub const COPY: u8 = u8::MAX - 1;
}

#[derive(Clone, Copy, Default)]
pub struct Cell {
    /// The cluster that the other fields describe; clusters are numbered over all launches.
    pub cluster: u32,
    pub initialized: bool,
    /// Whether a copy that no thread has waited for writes it.
    pub pending: bool,
    /// Whether the last write was atomic.
    pub atomic: bool,
    /// The copies from shared memory that may still write it, for none of which a thread has
    /// waited.
    pub stores: u16,
    /// Whether the last write was such a copy that added to it.
    pub added: bool,
    /// An earlier addition, by a cluster of which the last one does not know: the cluster, and its
    /// access.
    pub added_by: Option<(u32, Access)>,
    /// Whether the last write was such a copy, for which its thread has waited.
    pub copied: bool,
    pub writer: Option<Access>,
    /// The number of proxy fences that the writer had executed.
    pub proxy_fences: u32,
    /// Reads by different warps that are not ordered; of more than three, one is forgotten.
    pub readers: [Option<Access>; 3],
    /// An earlier cluster that read it.
    pub read_by: u32,
}

pub struct Shadow {
    /// Cells of each block of a cluster, one block after the other.
    shared: Vec<Cell>,
    global: HashMap<usize, Box<[Cell]>>,
}

impl Shadow {
    pub fn new() -> Self {
        Shadow { shared: Vec::new(), global: HashMap::new() }
    }

    /// Makes room for the shared memory of blocks that run together.
    pub fn make_room(&mut self, blocks: usize) {
        let cells = blocks * ARENA_BYTES / GRAIN;
        if cells > self.shared.len() {
            self.shared.resize(cells, Cell::default());
        }
    }

    pub fn shared(&mut self, place: usize) -> &mut Cell {
        &mut self.shared[place / GRAIN]
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
