//! Copies of boxes by the tensor memory accelerator, as they lie in shared memory.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::{Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};
use warpsmith::device::cuda::tensor_map::TiledMatrix;

pub const ROWS: i32 = 100;
pub const COLUMNS: i32 = 136;
pub const BOX_COLUMNS: i32 = 64;

/// The contents of a box in shared memory, one word for two elements: rows of 128 bytes, in which
/// the 16-byte chunk c of row r is at c ^ (r % 8); zeros outside of the matrix.
pub fn swizzled(matrix: &[u16], x: i32, y: i32, rows: i32) -> Vec<u32> {
    let at = |row: i32, column: i32| {
        let inside = (0..ROWS).contains(&row) && (0..COLUMNS).contains(&column);
        if inside { u32::from(matrix[(row * COLUMNS + column) as usize]) } else { 0 }
    };
    let word = |i: i32| {
        let (row, chunk, pair) = (i / 32, i / 4 % 8, i % 4);
        let column = (chunk ^ (row % 8)) * 8 + pair * 2;
        at(y + row, x + column) | at(y + row, x + column + 1) << 16
    };
    (0..rows * BOX_COLUMNS / 2).map(word).collect()
}

/// Each case copies three boxes: the one named, and those to its right and below. Columns are
/// multiples of 8, at which a box must start.
#[test]
fn boxes() {
    let words = random_words(10, (ROWS * COLUMNS / 2) as usize);
    let matrix: Vec<u16> = words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]).collect();
    let places = [
        ("inside", 0, 0, 16),
        ("inside, odd", 8, 7, 16),
        ("right edge", 104, 32, 16),
        ("lower edge", 0, 92, 16),
        ("corner", 120, 95, 8),
        ("upper left", -8, -3, 16),
        ("left, odd", -24, 5, 8),
        ("right of all", 136, 0, 8),
        ("above all", 0, -8, 8),
        ("far away", -1000, 100_000, 8),
        ("high", 8, 0, 128),
    ];
    probe("tma", Needs::Hopper, |device| {
        let address = device.words(&words).address();
        let mut cases = Vec::new();
        for (name, x, y, rows) in places {
            let tiled = TiledMatrix {
                address,
                rows: ROWS as usize,
                columns: COLUMNS as usize,
                box_rows: rows as usize,
                box_columns: BOX_COLUMNS as usize,
            };
            let map = device.driver.tensor_map(&tiled).unwrap();
            let len = (3 * rows * BOX_COLUMNS / 2) as usize;
            let out = device.words(&vec![0xdead_beef; len]);
            let args = [Arg::new(&out), Arg::new(&map), Arg::new(&x), Arg::new(&y), Arg::new(&rows)];
            let launch = Launch::new(1, 128).shared(4 * len + 8);
            device.launch(("probes_hopper.cu", "tma_boxes"), launch, &args);
            let corners = [(x, y), (x + BOX_COLUMNS, y), (x, y + rows)];
            let expected = corners.iter().flat_map(|&(x, y)| swizzled(&matrix, x, y, rows)).collect();
            cases.push(Case::exact(
                &format!("{name} ({x}, {y})"),
                Format::Bits,
                device.read(out, len),
                expected,
            ));
        }
        cases
    });
}
