//! Ways for results to leave: matrices to shared memory, boxes and bytes to global memory, and
//! flags and turns that tell other blocks of them.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::tma::place_of;
use crate::{Device, Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};
use warpsmith::device::cuda::tensor_map::TiledMatrix;

const FILE: &str = "probes_stores.cu";
const PATTERN: u32 = 0x5555_5555;

/// The inverse of ldmatrix: elements (l / 4, 2 (l % 4)) of matrix i and the next one come from
/// register i of lane l. Row r of matrix i goes to the place that lane 8 i + r names.
#[test]
fn stmatrix() {
    let registers = random_words(11, 128);
    let orders = [("in order", [1, 0]), ("in disorder", [13, 5])];
    probe("stmatrix", Needs::Hopper, |device| {
        orders
            .map(|(name, [step, first])| {
                let row_of: Vec<u32> = (0..32).map(|lane| (lane * step + first) % 32).collect();
                let args =
                    [device.words(&[0xdead_beef; 128]), device.words(&registers), device.words(&row_of)];
                device.launch((FILE, "stmatrix"), Launch::new(1, 32), &args.each_ref().map(Arg::new));
                let mut expected = vec![0; 128];
                for lane in 0..32 {
                    for pair in 0..4 {
                        let word = registers[(lane % 8 * 4 + pair) * 4 + lane / 8];
                        expected[row_of[lane] as usize * 4 + pair] = word;
                    }
                }
                Case::exact(name, Format::Bits, device.read(args[0], 128), expected)
            })
            .into()
    });
}

const ROWS: i32 = 60;
const COLUMNS: i32 = 136;

/// Writes a box at (x, y) over a matrix of words, two elements each; those outside of the matrix
/// are left out.
fn place(matrix: &mut [u32], content: &[u32], [x, y]: [i32; 2], columns: i32) {
    for (i, word) in content.iter().enumerate() {
        let (row, column) = place_of(i, columns);
        let (y, x) = (y + row, x + column);
        if (0..ROWS).contains(&y) && (0..COLUMNS).contains(&x) {
            matrix[(y * COLUMNS / 2 + x / 2) as usize] = *word;
        }
    }
}

/// Stores three boxes: the one at (x, y), and those to its right and below.
fn stores(device: &mut Device, name: &str, [x, y]: [i32; 2], rows: i32, columns: i32) -> Case {
    let len = (ROWS * COLUMNS / 2) as usize;
    let words = (rows * columns / 2) as usize;
    let content = random_words(12, 3 * words);
    let (out, boxes) = (device.words(&vec![PATTERN; len]), device.words(&content));
    let [height, width, box_rows, box_columns] = [ROWS, COLUMNS, rows, columns].map(|n| n as usize);
    let tiled = TiledMatrix { address: out.address(), rows: height, columns: width, box_rows, box_columns };
    let map = device.driver.tensor_map(&tiled).unwrap();
    let args =
        [Arg::new(&map), Arg::new(&boxes), Arg::new(&x), Arg::new(&y), Arg::new(&rows), Arg::new(&columns)];
    device.launch((FILE, "tma_store_boxes"), Launch::new(1, 128).shared(8 * words), &args);
    let mut expected = vec![PATTERN; len];
    let corners = [[x, y], [x + columns, y], [x, y + rows]];
    for (corner, content) in corners.into_iter().zip(content.chunks(words)) {
        place(&mut expected, content, corner, columns);
    }
    Case::exact(&format!("{name} ({x}, {y})"), Format::Bits, device.read(out, len), expected)
}

#[test]
fn boxes() {
    let places = [
        ("inside", 0, 0, 16),
        ("inside, odd", 8, 7, 16),
        ("right edge", 104, 32, 16),
        ("lower edge", 0, 52, 16),
        ("upper left", -8, -3, 16),
        ("right of all", 136, 0, 8),
        ("above all", 0, -24, 8),
        ("high", 8, -40, 64),
    ];
    probe("tma_store", Needs::Hopper, |device| {
        places.map(|(name, x, y, rows)| stores(device, name, [x, y], rows, 64)).into()
    });
}

#[test]
fn narrow_boxes() {
    let places = [("inside", 16, 7, 24), ("right edge", 120, 32, 16), ("upper left", -8, -3, 16)];
    probe("tma_store_narrow", Needs::Hopper, |device| {
        let mut cases = Vec::new();
        for columns in [32, 16] {
            for (name, x, y, rows) in places {
                cases.push(stores(device, &format!("{columns} columns, {name}"), [x, y], rows, columns));
            }
        }
        cases
    });
}

/// Blocks add two rows each to the same numbers, by integers, whose sums are exact; and one row to
/// numbers of their own, rounded once, which they read back.
#[test]
fn additions() {
    const BLOCKS: usize = 4;
    const ROW: usize = 128;
    let f32s = |words: Vec<u32>, of: fn(u32) -> f32| words.into_iter().map(of).collect::<Vec<f32>>();
    let small = |word: u32| (word % 1000) as f32 - 500.0;
    let any = |word: u32| (word as i32 as f32) * 2f32.powi(-(word as i32 % 16));
    let terms: Vec<f32> = (0..BLOCKS)
        .flat_map(|block| {
            let seed = 20 + block as u32;
            [f32s(random_words(seed, 2 * ROW), small), f32s(random_words(30 + seed, ROW), any)].concat()
        })
        .collect();
    let before = [f32s(random_words(15, 2 * ROW), small), f32s(random_words(16, BLOCKS * ROW), any)].concat();
    let mut expected = before.clone();
    for (block, terms) in terms.chunks(3 * ROW).enumerate() {
        for (i, term) in terms.iter().enumerate() {
            expected[if i < 2 * ROW { i } else { block * ROW + i }] += term;
        }
    }
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    probe("bulk_reduce_add", Needs::Hopper, |device| {
        let (sums, input) = (device.words(&bits(&before)), device.words(&bits(&terms)));
        let copy = device.words(&[0xdead_beef; BLOCKS * ROW]);
        let args = [sums, copy, input];
        device.launch((FILE, "additions"), Launch::new(BLOCKS, 128), &args.each_ref().map(Arg::new));
        let own = bits(&expected[2 * ROW..]);
        vec![
            Case::exact("sums", Format::F32, device.read(sums, expected.len()), bits(&expected)),
            Case::exact("read back", Format::F32, device.read(copy, own.len()), own),
        ]
    });
}

const BLOCKS: usize = 7;

/// Numbers for each block, and what it writes: their sums with what the block before wrote.
fn numbers_and_sums() -> [Vec<u32>; 2] {
    let input = random_words(13, BLOCKS * 64);
    let mut sums = input.clone();
    for i in 64..sums.len() {
        sums[i] = sums[i].wrapping_add(sums[i / 64 * 64 - 1 - i % 64]);
    }
    [input, sums]
}

/// Each block sees what the one before wrote, and flags are low after the wait for them.
#[test]
fn flags() {
    let [input, sums] = numbers_and_sums();
    let mut raised = [0; BLOCKS];
    raised[BLOCKS - 1] = 1;
    probe("flags", Needs::Any, |device| {
        let out = device.words(&[0xdead_beef; BLOCKS * 64]);
        let [flags, counter] = [BLOCKS, 1].map(|len| device.words(&vec![0; len]));
        let args = [out, flags, counter, device.words(&input)];
        device.launch((FILE, "flags"), Launch::new(BLOCKS, 64), &args.each_ref().map(Arg::new));
        vec![
            Case::exact("numbers", Format::Bits, device.read(out, BLOCKS * 64), sums.clone()),
            Case::exact("flags", Format::Bits, device.read(flags, BLOCKS), raised.to_vec()),
        ]
    });
}

/// Each block sees what the one before wrote, whose turn was before.
#[test]
fn turns() {
    let [input, sums] = numbers_and_sums();
    probe("turns", Needs::Any, |device| {
        let out = device.words(&[0xdead_beef; BLOCKS * 64]);
        let [turn, counter] = [0; 2].map(|_| device.words(&[0]));
        let args = [out, turn, counter, device.words(&input)];
        device.launch((FILE, "turns"), Launch::new(BLOCKS, 64), &args.each_ref().map(Arg::new));
        vec![
            Case::exact("numbers", Format::Bits, device.read(out, BLOCKS * 64), sums.clone()),
            Case::exact("turn", Format::Bits, device.read(turn, 1), vec![BLOCKS as u32]),
        ]
    });
}

/// Copies of bytes in both directions, also of bytes that an earlier copy has written.
#[test]
fn bulk_copies() {
    let words = random_words(14, 64);
    let mut expected = vec![PATTERN; 128];
    expected[..64].copy_from_slice(&words);
    expected[96..].copy_from_slice(&words[32..]);
    probe("bulk_copies", Needs::Hopper, |device| {
        let (out, input) = (device.words(&[PATTERN; 128]), device.words(&words));
        let args = [Arg::new(&out), Arg::new(&input)];
        device.launch((FILE, "bulk_copies"), Launch::new(1, 32).shared(256 + 8), &args);
        vec![Case::exact("words", Format::Bits, device.read(out, 128), expected.clone())]
    });
}
