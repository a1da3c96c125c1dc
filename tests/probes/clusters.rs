//! Blocks of a cluster that reach each other: arrivals, stores, and copies to several of them.

use crate::case::{Case, Format};
use crate::matrices::random_words;
use crate::tma::{BOX_COLUMNS, COLUMNS, ROWS, swizzled};
use crate::{Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};
use warpsmith::device::cuda::tensor_map::TiledMatrix;

/// In every phase each of four blocks gets a word from each.
#[test]
fn cluster_barriers() {
    const CLUSTERS: usize = 3;
    const PHASES: usize = 5;
    const WORDS: usize = PHASES * CLUSTERS * 16;
    let words = random_words(11, WORDS);
    let transposed: Vec<u32> = (0..WORDS).map(|i| words[i / 16 * 16 + i % 4 * 4 + i / 4 % 4]).collect();
    probe("cluster_barriers", Needs::Hopper, |device| {
        let [out, left] = [0xdead_beef, 0].map(|word| device.words(&[word; WORDS]));
        let input = device.words(&words);
        let args = [Arg::new(&out), Arg::new(&left), Arg::new(&input), Arg::new(&(PHASES as i32))];
        device.launch(("probes_hopper.cu", "cluster_barriers"), Launch::new(4 * CLUSTERS, 32), &args);
        vec![Case::exact("transposed", Format::Bits, device.read(out, WORDS), transposed.clone())]
    });
}

/// Two blocks exchange their words.
#[test]
fn store_async() {
    const OF_BLOCK: usize = 64 * 4;
    let words = random_words(12, 4 * OF_BLOCK);
    let exchanged: Vec<u32> = (0..words.len()).map(|i| words[i ^ OF_BLOCK]).collect();
    probe("store_async", Needs::Hopper, |device| {
        let args = [device.words(&[0xdead_beef; 4 * OF_BLOCK]), device.words(&words)];
        let launch = Launch::new(4, 64);
        device.launch(("probes_hopper.cu", "store_async_words"), launch, &args.each_ref().map(Arg::new));
        vec![Case::exact("exchanged", Format::Bits, device.read(args[0], words.len()), exchanged.clone())]
    });
}

/// Each block of two has the first box, and the second or the third one.
#[test]
fn multicast() {
    const PATTERN: u32 = 0x5555_5555;
    let words = random_words(13, (ROWS * COLUMNS / 2) as usize);
    let matrix: Vec<u16> = words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]).collect();
    probe("tma_multicast", Needs::Hopper, |device| {
        let address = device.words(&words).address();
        let mut cases = Vec::new();
        for (name, x, y, rows) in [("inside", 0, 0, 16), ("corner", 72, 91, 8), ("upper left", -8, -3, 16)] {
            let (height, width) = (ROWS as usize, COLUMNS as usize);
            let tiled = TiledMatrix {
                address,
                rows: height,
                columns: width,
                box_rows: rows as usize,
                box_columns: 64,
            };
            let map = device.driver.tensor_map(&tiled).unwrap();
            let box_words = (rows * BOX_COLUMNS / 2) as usize;
            let out = device.words(&vec![0xdead_beef; 2 * 3 * box_words]);
            let args = [Arg::new(&out), Arg::new(&map), Arg::new(&x), Arg::new(&y), Arg::new(&rows)];
            let launch = Launch::new(2, 128).shared(3 * 4 * box_words + 8);
            device.launch(("probes_hopper.cu", "tma_multicast"), launch, &args);
            let both = swizzled(&matrix, [x, y], rows, BOX_COLUMNS);
            let [right, below] = [[x + BOX_COLUMNS, y], [x, y + rows]]
                .map(|corner| swizzled(&matrix, corner, rows, BOX_COLUMNS));
            let untouched = vec![PATTERN; box_words];
            let expected =
                [&both, &right, &untouched, &both, &untouched, &below].map(|words| &words[..]).concat();
            let found = device.read(out, expected.len());
            cases.push(Case::exact(&format!("{name} ({x}, {y})"), Format::Bits, found, expected));
        }
        cases
    });
}
