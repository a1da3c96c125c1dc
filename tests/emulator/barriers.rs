//! Barriers among some warps of a block, and the mistakes that are possible with them.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch};

const TILES: usize = 4;

fn input() -> Vec<i32> {
    (0..64 * TILES as i32).collect()
}

fn relay(options: EmulatorOptions, kernel: &str) -> Result<Vec<i32>, String> {
    let mut gpu = Gpu::new(options);
    let (out, input) = (pointer(gpu.memory(&vec![-1; 64 * TILES])), pointer(gpu.memory(&input())));
    let tiles = TILES as i32;
    gpu.launch(kernel, Launch::new(1, 128), &[Arg::new(&out), Arg::new(&input), Arg::new(&tiles)])?;
    Ok(gpu.read(out.address(), 64 * TILES))
}

#[test]
fn warps_meet_in_every_mode() {
    let want: Vec<i32> = input().chunks(64).flat_map(|row| row.iter().rev().copied()).collect();
    for options in all_options() {
        assert_eq!(relay(options, "relay_0").unwrap(), want, "{options:?}");
    }
}

/// The kernel, its bug, whether it is found in every mode or by the checker alone, and texts of
/// which the message must contain one.
const MUTANTS: &[(&str, &str, bool, &[&str])] = &[
    (
        "relay_1",
        "the buffer is filled again without a wait",
        false,
        &["is a race: ", "a warp arrives twice", "nothing tells this warp that its last use has ended"],
    ),
    (
        "relay_2",
        "a warp never arrives",
        true,
        &["96 of 128 threads have arrived at barrier 1, the last in barrier_"],
    ),
    (
        "relay_3",
        "numbers of threads that differ",
        true,
        &["for 96 threads, but for 128 in barrier_arrive", "for 128 threads, but for 96 in barrier_sync"],
    ),
    ("relay_4", "a number too large", true, &["barrier 16: the numbers are 1 to 15"]),
    ("relay_5", "a part of a warp", true, &["barrier 1 of 100 threads: whole warps of 128 threads can meet"]),
    (
        "relay_6",
        "more threads than the block has",
        true,
        &["barrier 1 of 256 threads: whole warps of 128 threads can meet"],
    ),
    (
        "relay_7",
        "arrives where it should wait",
        false,
        &["is a race: written by", "uninitialized", "a warp arrives twice", "nothing tells this warp"],
    ),
    (
        "relay_8",
        "a number for two barriers",
        true,
        &["for 64 threads, but for 128 in", "for 128 threads, but for 64 in", "barrier 1 is used again"],
    ),
    ("relay_9", "half a warp arrives", true, &["the lanes of a warp diverge: others wait in barrier_"]),
    (
        "relay_10",
        "arrives where nobody waits",
        true,
        &["the block ends, but only 64 of 128 threads have arrived at barrier 2"],
    ),
    ("relay_11", "no barrier", false, &["is a race: written by", "uninitialized"]),
    (
        "relay_12",
        "all arrive and none waits",
        false,
        &["is a race: written by", "uninitialized", "nothing tells this warp"],
    ),
    ("relay_13", "lanes at different barriers", true, &["the lanes of a warp name different barriers"]),
    ("relay_14", "writes after the arrival", false, &["is a race: "]),
    ("relay_15", "reads without a part in the barrier", false, &["is a race: ", "uninitialized"]),
    ("relay_16", "the number of __syncthreads", true, &["barrier 0: the numbers are 1 to 15"]),
];

#[test]
fn every_mutant_is_found() {
    let mut faults = Vec::new();
    for (kernel, bug, always, words) in MUTANTS {
        for options in all_options().into_iter().filter(|o| o.check || *always) {
            match relay(options, kernel) {
                Ok(_) => faults.push(format!("{kernel} ({bug}) passes with {options:?}")),
                Err(e) if words.iter().any(|words| e.contains(words)) && e.contains("barriers.cu:") => {
                    continue;
                }
                Err(e) => faults.push(format!("{kernel} ({bug}), {options:?}: {e}")),
            }
            break;
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}
