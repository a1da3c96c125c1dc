//! Results that leave through shared memory: stmatrix, tma_store, and the mistakes that are
//! possible with them.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, TiledMatrix};

const ROWS: usize = 100;
const COLUMNS: usize = 200;

fn values(len: usize) -> Vec<u16> {
    (0..len).map(|i| half::bf16::from_f32((i * 7 % 97) as f32).to_bits()).collect()
}

fn doubled(values: &[u16]) -> Vec<u16> {
    let double = |bits: &u16| half::bf16::from_f32(2.0 * half::bf16::from_bits(*bits).to_f32()).to_bits();
    values.iter().map(double).collect()
}

/// Tiles of a matrix with ragged edges, more of them than blocks: the output.
fn store_tiles(gpu: &mut Gpu, kernel: &'static str, blocks: usize) -> Result<Vec<u16>, String> {
    let out = pointer(gpu.memory(&vec![7u16; ROWS * COLUMNS]));
    let input = pointer(gpu.memory(&values(ROWS * COLUMNS)));
    let tiled =
        TiledMatrix { address: out.address(), rows: ROWS, columns: COLUMNS, box_rows: 64, box_columns: 64 };
    let map = gpu.0.tensor_map(&tiled).unwrap();
    let size = [ROWS as i32, COLUMNS as i32];
    let args = [Arg::new(&map), Arg::new(&out), Arg::new(&input), Arg::new(&size[0]), Arg::new(&size[1])];
    gpu.launch(kernel, Launch::new(blocks, 128).shared(2 * 64 * 128 + 128), &args)?;
    Ok(gpu.read(out.address(), ROWS * COLUMNS))
}

/// Boxes of a matrix that is as wide as three of them: the output.
fn move_boxes(gpu: &mut Gpu, kernel: &'static str, _blocks: usize) -> Result<Vec<u16>, String> {
    let (columns, width) = (192, 192i32);
    let matrices = [vec![7u16; 64 * columns], values(64 * columns)].map(|m| gpu.memory(&m));
    let map = |address| TiledMatrix { address, rows: 64, columns, box_rows: 64, box_columns: 64 };
    let maps = matrices.map(|address| gpu.0.tensor_map(&map(address)).unwrap());
    let args = [Arg::new(&maps[0]), Arg::new(&maps[1]), Arg::new(&width)];
    gpu.launch(kernel, Launch::new(1, 32).shared(64 * 128 + 8), &args)?;
    Ok(gpu.read(matrices[0], 64 * columns))
}

#[test]
fn tiles_leave_in_every_mode() {
    for options in all_options() {
        for (threads, count, blocks) in [(1, false, 1), (1, true, 3), (3, false, 3)] {
            let mut gpu = Gpu::new(EmulatorOptions { threads, count, ..options });
            let found = store_tiles(&mut gpu, "store_tiles_0", blocks).unwrap();
            assert!(found == doubled(&values(ROWS * COLUMNS)), "{options:?} {blocks}");
        }
        let found = move_boxes(&mut Gpu::new(options), "move_boxes_0", 1).unwrap();
        assert!(found == values(64 * 192), "{options:?}");
    }
}

/// A slab of 64 rows of 128 bytes takes 64 wavefronts to write, by four warps with four stmatrix of
/// four each, and 64 to read. There are two for each of four tiles; every byte is written once.
#[test]
fn stores_are_counted_and_slabs_have_no_bank_conflicts() {
    for options in all_options() {
        let mut gpu = Gpu::new(EmulatorOptions { count: true, ..options });
        store_tiles(&mut gpu, "store_tiles_0", 2).unwrap();
        let counts = gpu.0.take_counts()["store_tiles_0"];
        assert_eq!(counts.shared_wavefronts, 4 * 2 * (64 + 64), "{options:?}");
        assert_eq!(counts.shared_wavefronts_without_conflicts, counts.shared_wavefronts, "{options:?}");
        assert_eq!(counts.bytes_written, 2 * (ROWS * COLUMNS) as u64, "{options:?}");
    }
}

type Run = fn(&mut Gpu, &'static str, usize) -> Result<Vec<u16>, String>;

/// The mode in which a bug must be found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Always,
    /// Only the checker sees plain accesses.
    ByChecker,
}
use Found::{Always, ByChecker};

/// The kernel, its bug, where it must be found, and texts of which the message must contain one.
const MUTANTS: &[(Run, &str, &str, Found, &[&str])] = &[
    (
        store_tiles,
        "store_tiles_1",
        "no proxy_fence",
        ByChecker,
        &["(warp 0) wrote to shared memory without a proxy_fence after it"],
    ),
    (
        store_tiles,
        "store_tiles_2",
        "a slab is used again without a wait",
        Always,
        &["a write of shared memory at", "that the tma_store at tests/emulator/stores.cu:"],
    ),
    (store_tiles, "store_tiles_3", "waits for one group too few", Always, &["may still be reading"]),
    (
        store_tiles,
        "store_tiles_4",
        "ends without a wait",
        Always,
        &["the thread ends without a tma_store_wait_read<0> after this store"],
    ),
    (
        store_tiles,
        "store_tiles_5",
        "never commits",
        Always,
        &["the thread ends without a tma_store_commit", "may still be reading"],
    ),
    (
        store_tiles,
        "store_tiles_6",
        "no barrier before the store",
        ByChecker,
        &["a read of shared memory is a race: written by", "uninitialized", "may still be reading"],
    ),
    (
        store_tiles,
        "store_tiles_7",
        "only one lane fences",
        ByChecker,
        &["wrote to shared memory without a proxy_fence after it"],
    ),
    (
        store_tiles,
        "store_tiles_8",
        "no barrier after the wait",
        ByChecker,
        &["is a race: read by thread 0", "may still be reading"],
    ),
    (store_tiles, "store_tiles_9", "one slab for two groups", Always, &["may still be reading"]),
    (store_tiles, "store_tiles_10", "a part of a slab left out", ByChecker, &["uninitialized shared memory"]),
    (
        store_tiles,
        "store_tiles_11",
        "a misaligned slab",
        Always,
        &["in shared memory is not a multiple of 1024"],
    ),
    (
        store_tiles,
        "store_tiles_12",
        "a column inside of 16 bytes",
        Always,
        &["is not a multiple of 8: an illegal instruction"],
    ),
    (store_tiles, "store_tiles_13", "writes what is there", ByChecker, &["that the tma_store at"]),
    (
        store_tiles,
        "store_tiles_14",
        "changes the source",
        Always,
        &["that the tma_store at", "was overwritten before this wait"],
    ),
    (
        store_tiles,
        "store_tiles_15",
        "writes after the store",
        ByChecker,
        &["a write of global memory that a tma_store of this launch writes, as late as when it ends"],
    ),
    (
        store_tiles,
        "store_tiles_16",
        "reads what was stored",
        ByChecker,
        &["a read of global memory that a tma_store of this launch writes, as late as when it ends"],
    ),
    (
        store_tiles,
        "store_tiles_17",
        "two blocks store a tile",
        ByChecker,
        &["a write of global memory that a tma_store of this launch writes"],
    ),
    (
        store_tiles,
        "store_tiles_18",
        "fences after the barrier",
        ByChecker,
        &["wrote to shared memory without a proxy_fence after it"],
    ),
    (
        move_boxes,
        "move_boxes_1",
        "loads over what is stored",
        Always,
        &["tma_load at", "may still be reading"],
    ),
    (
        move_boxes,
        "move_boxes_2",
        "stores before the load",
        Always,
        &["has not copied yet", "without having waited"],
    ),
    (
        move_boxes,
        "move_boxes_3",
        "loads what was stored",
        ByChecker,
        &["a read of global memory that a tma_store"],
    ),
    (
        move_boxes,
        "move_boxes_4",
        "loads over a plain write without a proxy_fence",
        ByChecker,
        &["a write of what thread 0 (warp 0) wrote to shared memory without a proxy_fence after it"],
    ),
];

#[test]
fn every_mutant_is_found() {
    let mut faults = Vec::new();
    for (run, kernel, bug, found, words) in MUTANTS {
        let modes = all_options().into_iter().filter(|o| o.check || *found == Always);
        for options in modes {
            match run(&mut Gpu::new(options), kernel, 2) {
                Ok(_) => faults.push(format!("{kernel} ({bug}) passes with {options:?}")),
                Err(e) if words.iter().any(|words| e.contains(words)) && e.contains("stores.cu:") => continue,
                Err(e) => faults.push(format!("{kernel} ({bug}), {options:?}: {e}")),
            }
            break;
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// A reader in the same launch gets old numbers in some mode without the checker.
#[test]
fn stores_land_as_late_as_the_end_of_the_launch() {
    let want = store_tiles(&mut Gpu::new(EmulatorOptions::default()), "store_tiles_0", 2).unwrap();
    let plain = all_options().into_iter().filter(|options| !options.check);
    let results = plain.map(|options| store_tiles(&mut Gpu::new(options), "store_tiles_15", 2).unwrap());
    let lost = results.filter(|found| *found == want).count();
    assert!((1..15).contains(&lost), "the plain write is lost in {lost} of 15 modes");
}

#[test]
fn lent_memory_is_refused() {
    for check in [false, true] {
        let mut gpu = Gpu::new(EmulatorOptions { check, ..EmulatorOptions::default() });
        let out = gpu.memory(&vec![0u16; ROWS * COLUMNS]);
        let input = pointer(gpu.memory(&values(ROWS * COLUMNS)));
        let tiled = TiledMatrix { address: out, rows: ROWS, columns: COLUMNS, box_rows: 64, box_columns: 64 };
        let map = gpu.0.tensor_map(&tiled).unwrap();
        gpu.0.lend(out, 2 * ROWS * COLUMNS).unwrap();
        let size = [ROWS as i32, COLUMNS as i32];
        let args =
            [Arg::new(&map), Arg::new(&input), Arg::new(&input), Arg::new(&size[0]), Arg::new(&size[1])];
        let launch = Launch::new(1, 128).shared(2 * 64 * 128);
        let error = gpu.launch("store_tiles_0", launch, &args).unwrap_err();
        assert!(error.contains("are lent and not reclaimed"), "{error}");
        gpu.0.reclaim(out, 2 * ROWS * COLUMNS);
    }
}
