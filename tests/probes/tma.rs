//! Copies of boxes by the tensor memory accelerator, as they lie in shared memory.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::{Device, Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};
use warpsmith::device::cuda::tensor_map::TiledMatrix;

pub const ROWS: i32 = 100;
pub const COLUMNS: i32 = 136;
pub const BOX_COLUMNS: i32 = 64;

/// The place of a byte of a box in shared memory, and the reverse, by "Swizzle Modes" of the CUDA
/// programming guide: rows of 128, 64 or 32 bytes lie one after the other, and in line l of 128
/// bytes the 16-byte chunk c is at c ^ (l % n), where a row has n chunks.
pub fn swizzle(byte: usize, row_bytes: usize) -> usize {
    byte ^ (byte / 128 % (row_bytes / 16) * 16)
}

/// Row and column of the first of two elements in word `i` of a box.
pub fn place_of(i: usize, box_columns: i32) -> (i32, i32) {
    let row_bytes = 2 * box_columns as usize;
    let byte = swizzle(4 * i, row_bytes);
    ((byte / row_bytes) as i32, (byte % row_bytes / 2) as i32)
}

/// The contents of a box in shared memory, one word for two elements: zeros outside of the matrix.
pub fn swizzled(matrix: &[u16], [x, y]: [i32; 2], rows: i32, columns: i32) -> Vec<u32> {
    let at = |row: i32, column: i32| {
        let inside = (0..ROWS).contains(&row) && (0..COLUMNS).contains(&column);
        if inside { u32::from(matrix[(row * COLUMNS + column) as usize]) } else { 0 }
    };
    let word = |i: usize| {
        let (row, column) = place_of(i, columns);
        at(y + row, x + column) | at(y + row, x + column + 1) << 16
    };
    (0..(rows * columns / 2) as usize).map(word).collect()
}

/// Copies three boxes: the one at (x, y), and those to its right and below.
fn copies(device: &mut Device, name: &str, [x, y]: [i32; 2], rows: i32, columns: i32) -> Case {
    let words = random_words(10, (ROWS * COLUMNS / 2) as usize);
    let matrix: Vec<u16> = words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]).collect();
    let address = device.words(&words).address();
    let [height, width, box_rows, box_columns] = [ROWS, COLUMNS, rows, columns].map(|n| n as usize);
    let tiled = TiledMatrix { address, rows: height, columns: width, box_rows, box_columns };
    let map = device.driver.tensor_map(&tiled).unwrap();
    let len = 3 * box_rows * box_columns / 2;
    let out = device.words(&vec![0xdead_beef; len]);
    let args =
        [Arg::new(&out), Arg::new(&map), Arg::new(&x), Arg::new(&y), Arg::new(&rows), Arg::new(&columns)];
    let launch = Launch::new(1, 128).shared(4 * len + 8);
    device.launch(("probes_hopper.cu", "tma_boxes"), launch, &args);
    let corners = [[x, y], [x + columns, y], [x, y + rows]];
    let expected = corners.iter().flat_map(|&corner| swizzled(&matrix, corner, rows, columns)).collect();
    Case::exact(&format!("{name} ({x}, {y})"), Format::Bits, device.read(out, len), expected)
}

/// Columns are multiples of 8, at which a box must start.
#[test]
fn boxes() {
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
        places.map(|(name, x, y, rows)| copies(device, name, [x, y], rows, BOX_COLUMNS)).into()
    });
}

#[test]
fn narrow_boxes() {
    let places =
        [("inside", 16, 7, 24), ("corner", 120, 95, 8), ("upper left", -8, -3, 16), ("high", 8, 0, 128)];
    probe("tma_narrow", Needs::Hopper, |device| {
        let mut cases = Vec::new();
        for columns in [32, 16] {
            for (name, x, y, rows) in places {
                cases.push(copies(device, &format!("{columns} columns, {name}"), [x, y], rows, columns));
            }
        }
        cases
    });
}
