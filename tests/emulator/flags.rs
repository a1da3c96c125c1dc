//! Flags by which blocks wait for each other, in turn on one OS thread and at the same time on
//! several.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, Schedule};

const BLOCKS: usize = 5;

/// Launches twice, as flags must be lowered after a launch; returns the sums.
fn add_in_turn(options: EmulatorOptions, kernel: &'static str, threads: usize) -> Result<Vec<f32>, String> {
    let mut gpu = Gpu::new(options);
    let input: Vec<f32> = (0..BLOCKS * threads).map(|i| (i * 7 % 97) as f32 / 3.0).collect();
    let [out, sums, input] = [vec![0.0; threads], vec![0.0; BLOCKS * threads], input].map(|v| gpu.memory(&v));
    let [flags, counter] = [BLOCKS, 1].map(|len| gpu.memory(&vec![0u32; len]));
    let pointers = [out, sums, flags, counter, input].map(pointer);
    for _ in 0..2 {
        gpu.launch(kernel, Launch::new(BLOCKS, threads as u32), &pointers.each_ref().map(Arg::new))?;
    }
    assert_eq!(gpu.read::<u32>(flags, BLOCKS), [0; BLOCKS], "{kernel}");
    Ok(gpu.read(out, threads))
}

/// Every mode, with the blocks on one OS thread and, without the checker, on several.
fn modes() -> Vec<EmulatorOptions> {
    let mut modes = all_options();
    let parallel =
        modes.iter().filter(|options| !options.check).map(|o| EmulatorOptions { threads: 3, ..*o });
    modes.extend(parallel.collect::<Vec<_>>());
    modes
}

#[test]
fn sums_are_added_in_order() {
    for threads in [32, 128] {
        let number = |rank: usize, t: usize| ((rank * threads + t) * 7 % 97) as f32 / 3.0;
        let sum = |t: usize| (1..BLOCKS).fold(number(0, t), |sum, rank| number(rank, t) + sum);
        let want: Vec<f32> = (0..threads).map(sum).collect();
        for options in modes() {
            let found = add_in_turn(options, "add_in_turn_0", threads);
            assert_eq!(found.as_ref(), Ok(&want), "{options:?}");
        }
    }
}

#[test]
fn warps_of_a_block_pass_numbers() {
    for options in all_options() {
        let mut gpu = Gpu::new(options);
        let [out, left] = [0; 2].map(|_| pointer(gpu.memory(&[0f32; 32])));
        let flag = pointer(gpu.memory(&[0u32]));
        gpu.launch("pass_to_warp", Launch::new(1, 64), &[out, left, flag].each_ref().map(Arg::new)).unwrap();
        let want: Vec<f32> = (0..32).map(|lane| 32.0 - lane as f32).collect();
        assert_eq!(gpu.read::<f32>(out.address(), 32), want, "{options:?}");
    }
}

/// The checker finds the mistake in every schedule, with this message.
#[track_caller]
fn found(kernel: &'static str, threads: usize, message: &str) {
    for options in all_options().into_iter().filter(|options| options.check) {
        let error = add_in_turn(options, kernel, threads).expect_err(kernel);
        assert!(error.contains(message) && error.contains("flags.cu:"), "{kernel} {options:?}: {error}");
    }
}

#[test]
fn a_flag_covers_only_what_its_thread_is_ordered_after() {
    // No __syncthreads, then no __syncwarp before the flag is raised.
    found("add_in_turn_1", 128, "wrote in the same launch, without anything that orders the two");
    found("add_in_turn_1", 32, "wrote in the same launch, without anything that orders the two");
    // No wait at all.
    found("add_in_turn_6", 32, "wrote in the same launch, without anything that orders the two");
}

#[test]
fn a_flag_raised_by_a_plain_store_is_found() {
    found("add_in_turn_3", 32, "wrote in the same launch, without anything that orders the two");
}

#[test]
fn a_flag_raised_twice_is_found() {
    for options in all_options() {
        let error = add_in_turn(options, "add_in_turn_7", 32).unwrap_err();
        assert!(error.contains("is raised already: a wait would miss one of the two"), "{error}");
    }
}

/// The message of a deadlock names the wait.
fn is_deadlock(error: &str) -> bool {
    error.contains("deadlock, no thread can run: thread 0 waits in flag_wait at tests/emulator/flags.cu:")
        && error.contains(
            "and no block that runs can raise it (blocks that have not started only run after this one)",
        )
}

#[test]
fn a_flag_that_is_never_raised_is_found() {
    for options in modes() {
        let error = add_in_turn(options, "add_in_turn_4", 32).unwrap_err();
        assert!(is_deadlock(&error), "{options:?}: {error}");
    }
}

/// The block of the highest rank starts first. With an OS thread for each block it works, as it
/// does on a GPU that has room for all of them.
#[test]
fn a_block_that_waits_for_a_later_one_is_found() {
    let ascending = EmulatorOptions { schedule: Schedule::Ascending, ..EmulatorOptions::default() };
    for options in [ascending, EmulatorOptions { check: true, ..ascending }] {
        let error = add_in_turn(options, "add_in_turn_5", 32).unwrap_err();
        assert!(is_deadlock(&error), "{error}");
    }
    add_in_turn(EmulatorOptions { threads: BLOCKS, ..ascending }, "add_in_turn_5", 32).unwrap();
    add_in_turn(EmulatorOptions { schedule: Schedule::Descending, ..ascending }, "add_in_turn_5", 32)
        .unwrap();
}

#[test]
fn one_thread_waits_for_a_flag() {
    for options in all_options() {
        let mut gpu = Gpu::new(options);
        let flag = pointer(gpu.memory(&[0u32]));
        let error = gpu.launch("wait_together", Launch::new(1, 64), &[Arg::new(&flag)]).unwrap_err();
        assert!(error.contains("another thread of the block waits for the flag"), "{error}");
    }
}
