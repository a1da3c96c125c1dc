//! Copies of boxes of a matrix to shared memory.

use super::super::block::{Block, Me, me};
use super::super::checker::Kind;
use super::super::counting;
use super::super::failure::Site;
use super::stores::check_bulk;
use super::transfers::{Source, Transfer};
use super::{Span, swizzle};
use crate::tensor_map::{TensorMap, TiledMatrix};
use std::ffi::c_char;

const MAGIC: u64 = 0x7465_6e73_6f72_6d61;
/// The 16 bytes that the swizzle moves as one; hardware refuses a box that starts inside of them.
pub(super) const CHUNK_COLUMNS: usize = 8;

/// Makes a tensor map of a matrix.
pub fn encode(matrix: &TiledMatrix) -> TensorMap {
    let mut map = TensorMap([0; 16]);
    let TiledMatrix { address, rows, columns, box_rows, box_columns } = *matrix;
    let sizes = [rows, columns, box_rows, box_columns].map(|n| n as u64);
    map.0[..2].copy_from_slice(&[MAGIC, address]);
    map.0[2..6].copy_from_slice(&sizes);
    map
}

/// Returns the matrix of a map that [`encode`] made.
pub fn decode(map: &TensorMap) -> Option<TiledMatrix> {
    let [magic, address, rows, columns, box_rows, box_columns, ..] = map.0;
    let [rows, columns, box_rows, box_columns] = [rows, columns, box_rows, box_columns].map(|n| n as usize);
    (magic == MAGIC).then_some(TiledMatrix { address, rows, columns, box_rows, box_columns })
}

/// A box of a matrix.
#[derive(Clone, Copy)]
pub struct Tile {
    matrix: TiledMatrix,
    x: i32,
    y: i32,
}

impl Tile {
    /// Writes the box to the shared memory of a block, where it fits.
    pub fn write(&self, block: &Block, to: u32) {
        for (address, row, column) in self.matrix.box_chunks(to) {
            let (x, y) = (i64::from(self.x) + column as i64, i64::from(self.y) + row as i64);
            let bytes = self.matrix.chunk(x, y);
            // SAFETY: the chunk is inside the destination, which was found to be in shared memory.
            unsafe { block.shared_bytes(address).cast::<[u8; 16]>().write(bytes) };
        }
    }

    /// The rows of the box that are inside the matrix, in global memory.
    fn rows_inside(&self) -> Vec<counting::Span> {
        self.matrix.rows_inside(self.x, self.y)
    }
}

impl TiledMatrix {
    /// The chunks of a box at a place in shared memory: their address there, their row and their
    /// first column.
    pub(super) fn box_chunks(&self, start: u32) -> impl Iterator<Item = (u32, usize, usize)> {
        let (row_bytes, columns) = (self.box_row_bytes() as u32, self.box_columns);
        (0..self.box_rows).flat_map(move |row| {
            (0..columns).step_by(CHUNK_COLUMNS).map(move |column| {
                let address = start + row as u32 * row_bytes + 2 * column as u32;
                (swizzle(address, row_bytes), row, column)
            })
        })
    }

    pub(super) fn box_bytes(&self) -> usize {
        self.box_rows * self.box_row_bytes()
    }

    /// The rows of the box at (x, y) that are inside the matrix, in global memory.
    pub(super) fn rows_inside(&self, x: i32, y: i32) -> Vec<counting::Span> {
        let inside = |from: i32, len: usize, end: usize| {
            let last = i64::from(from) + len as i64;
            from.max(0) as usize..last.clamp(0, end as i64) as usize
        };
        let columns = inside(x, self.box_columns, self.columns);
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

/// The matrix of a map, and the place in shared memory of its box; fails if no copy can have them.
pub(super) fn box_of(me: Me, site: Site, map: *const TensorMap, x: i32, address: u32) -> (TiledMatrix, Span) {
    // SAFETY: the map is a parameter of the kernel. It is copied now, as the thread may end before
    // the copy lands.
    let Some(matrix) = decode(&unsafe { map.read_unaligned() }) else {
        me.fail(site, "this is not a tensor map of the emulated device".to_owned());
    };
    me.require_local(address, site);
    // The swizzle starts at such an address, and wgmma looks for it there.
    let align = 8 * matrix.box_row_bytes();
    if !address.is_multiple_of(align as u32) {
        let message = format!(
            "the address {address:#x} in shared memory is not a multiple of {align}, at which the swizzle starts"
        );
        me.fail(site, message);
    }
    if x % CHUNK_COLUMNS as i32 != 0 {
        let message = format!(
            "the first column {x} is not a multiple of {CHUNK_COLUMNS}: an illegal instruction on a GPU"
        );
        me.fail(site, message);
    }
    let span = (address, address + matrix.box_bytes() as u32);
    me.block.require_shared(me, site, span);
    (matrix, span)
}

/// Checks and counts what a copy to `blocks` blocks reads.
fn read(me: Me, tile: &Tile, blocks: u32, site: Site) {
    let rows = tile.rows_inside();
    rows.iter().for_each(|row| me.block.check_tma_source(me, row.address, row.bytes, site));
    me.block.count(|c| c.tma(Kind::Read, &rows, tile.matrix.box_bytes(), u64::from(blocks)));
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
    let (me, site) = (me(), Site::new("tma_load", file, line));
    let (matrix, to) = box_of(me, site, map, x, dst);
    let barrier = me.mbarrier(barrier, site);
    let tile = Tile { matrix, x, y };
    read(me, &tile, 1, site);
    let source = Source::Tile(tile);
    Transfer { source, to, barrier, issuer: me, in_cluster: false, site }.start(me.block);
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_tma_load_multicast(
    dst: u32,
    map: *const TensorMap,
    at: *const [i32; 2],
    barrier: u32,
    ranks: u32,
    file: *const c_char,
    line: u32,
) {
    let (me, site) = (me(), Site::new("tma_load_multicast", file, line));
    // SAFETY: `tma_load_multicast` passes a variable on the stack of the thread.
    let [x, y] = unsafe { at.read() };
    me.require_local(barrier, site);
    let (matrix, to) = box_of(me, site, map, x, dst);
    let tile = Tile { matrix, x, y };
    let blocks = me.block.cluster().blocks().len();
    if ranks == 0 || ranks >> blocks != 0 {
        me.fail(site, format!("the mask {ranks:#x} of blocks, in a cluster of {blocks}"));
    }
    read(me, &tile, ranks.count_ones(), site);
    for rank in (0..blocks).filter(|rank| ranks >> rank & 1 == 1) {
        let block = me.peer(rank, site);
        let barrier = me.mbarrier_in(block, barrier, site);
        let source = Source::Tile(tile);
        Transfer { source, to, barrier, issuer: me, in_cluster: true, site }.start(block);
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuda_emulator_bulk_load(
    dst: u32,
    src: *const f32,
    bytes: u32,
    barrier: u32,
    file: *const c_char,
    line: u32,
) {
    let (me, site, address) = (me(), Site::new("bulk_load", file, line), src.expose_provenance());
    check_bulk(me, site, address, dst, bytes);
    let barrier = me.mbarrier(barrier, site);
    me.block.check_tma_source(me, address, bytes as usize, site);
    let span = counting::Span { lane: 0, address, bytes: bytes as usize };
    me.block.count(|c| c.tma(Kind::Read, &[span], bytes as usize, 1));
    let (source, to) = (Source::Bytes(address), (dst, dst + bytes));
    Transfer { source, to, barrier, issuer: me, in_cluster: false, site }.start(me.block);
}
