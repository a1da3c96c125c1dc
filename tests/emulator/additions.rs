//! Numbers that shared memory adds to global memory, and the mistakes that are possible with that.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch};

const ROWS: usize = 20;
const COLUMNS: usize = 256;

/// The sums of small integers, which are exact, and the rounded ones.
fn add_rows(gpu: &mut Gpu, kernel: &str, blocks: usize) -> Result<(Vec<f32>, Vec<u16>), String> {
    let input: Vec<f32> = (0..ROWS * COLUMNS).map(|i| (i * 7 % 13) as f32).collect();
    let sums = pointer(gpu.memory(&[1.0f32; COLUMNS]));
    let rounded = pointer(gpu.memory(&[0u16; COLUMNS]));
    let counter = pointer(gpu.memory(&[0u32]));
    let (input, rows) = (pointer(gpu.memory(&input)), ROWS as i32);
    let args = [Arg::new(&sums), Arg::new(&rounded), Arg::new(&counter), Arg::new(&input), Arg::new(&rows)];
    gpu.launch(kernel, Launch::new(blocks, 128), &args)?;
    Ok((gpu.read(sums.address(), COLUMNS), gpu.read(rounded.address(), COLUMNS)))
}

fn expected() -> (Vec<f32>, Vec<u16>) {
    let term = |row: usize, column: usize| ((row * COLUMNS + column) * 7 % 13) as f32;
    let sum = |column: usize| 1.0 + (0..ROWS).map(|row| term(row, column)).sum::<f32>();
    let sums: Vec<f32> = (0..COLUMNS).map(sum).collect();
    let rounded = sums.iter().map(|sum| half::bf16::from_f32(*sum).to_bits()).collect();
    (sums, rounded)
}

#[test]
fn rows_are_added_in_every_mode() {
    for options in all_options() {
        for (threads, count, blocks) in [(1, false, 1), (1, true, 3), (3, false, 4)] {
            let mut gpu = Gpu::new(EmulatorOptions { threads, count, ..options });
            assert!(add_rows(&mut gpu, "add_rows_0", blocks).unwrap() == expected(), "{options:?} {blocks}");
        }
    }
}

/// Additions for whose writes nobody waits land until the launch ends.
#[test]
fn additions_are_late() {
    let mut early = 0;
    for options in all_options().into_iter().filter(|options| !options.check) {
        let (sums, rounded) = add_rows(&mut Gpu::new(options), "add_rows_3", 2).unwrap();
        let (want, want_rounded) = expected();
        assert_eq!(sums, want, "{options:?}");
        early += usize::from(rounded == want_rounded);
    }
    assert!((1..15).contains(&early), "all has been added in time in {early} of 15 modes");
}

/// Each row of 1 KiB is read from 8 lines of shared memory, and adds to 32 sectors.
#[test]
fn additions_are_counted() {
    let counts = |blocks| {
        let options = EmulatorOptions { count: true, ..EmulatorOptions::default() };
        let mut gpu = Gpu::new(options);
        add_rows(&mut gpu, "add_rows_0", blocks).unwrap();
        gpu.0.take_counts()["add_rows_0"]
    };
    let [one, two] = [1, 2].map(counts);
    // A counter per block, then the rounded numbers.
    assert_eq!(one.sectors_written, (ROWS * 32 + 1 + COLUMNS / 16) as u64);
    assert_eq!(two.sectors_written, one.sectors_written + 1);
    assert_eq!(two.bytes_written, one.bytes_written);
    assert_eq!(one.shared_wavefronts, one.shared_wavefronts_without_conflicts);
}

/// The kernel, its bug, whether it is found in every mode or by the checker alone, and texts of
/// which the message must contain one.
const MUTANTS: &[(&str, &str, bool, &[&str])] = &[
    ("add_rows_1", "no proxy_fence", false, &["wrote to shared memory without a proxy_fence after it"]),
    (
        "add_rows_2",
        "a slab is used again without a wait",
        true,
        &["may still be reading", "was overwritten before this wait"],
    ),
    (
        "add_rows_3",
        "waits only for the source",
        false,
        &["of global memory that a bulk_reduce_add of this launch writes, as late as when it ends"],
    ),
    (
        "add_rows_4",
        "never commits",
        true,
        &[
            "ends without a tma_store_commit after this store",
            "may still be reading",
            "that a bulk_reduce_add of this launch",
            "was overwritten",
        ],
    ),
    ("add_rows_5", "a misaligned destination", true, &["these are not all multiples of 16"]),
    ("add_rows_6", "a part of 16 bytes", true, &["1016 bytes from", "these are not all multiples of 16"]),
    ("add_rows_7", "a misaligned source", true, &["these are not all multiples of 16"]),
    (
        "add_rows_8",
        "plain writes to the sums",
        false,
        &[
            "a write of global memory that",
            "an atomic operation of global memory that plain accesses of this launch have written",
        ],
    ),
    (
        "add_rows_9",
        "reads of the sums",
        false,
        &["a read of global memory that", "of global memory that block"],
    ),
    ("add_rows_10", "atomics on the sums", false, &["an atomic operation of global memory that"]),
    ("add_rows_11", "no fence before the flag", false, &["without anything that orders the two"]),
    (
        "add_rows_12",
        "waits for one group too few",
        false,
        &["a read of global memory that a bulk_reduce_add of this launch writes"],
    ),
    ("add_rows_13", "beyond the sums", false, &["an atomic operation of 1024 bytes out of bounds"]),
];

#[test]
fn every_mutant_is_found() {
    let mut faults = Vec::new();
    for (kernel, bug, always, words) in MUTANTS {
        for options in all_options().into_iter().filter(|o| o.check || *always) {
            match add_rows(&mut Gpu::new(options), kernel, 2) {
                Ok(_) => faults.push(format!("{kernel} ({bug}) passes with {options:?}")),
                Err(e) if words.iter().any(|words| e.contains(words)) && e.contains("additions.cu:") => {
                    continue;
                }
                Err(e) => faults.push(format!("{kernel} ({bug}), {options:?}: {e}")),
            }
            break;
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}
