//! Turns in global memory, and bulk copies of blocks that wait for theirs.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch};

const BLOCKS: usize = 5;
const COUNT: usize = 64;

fn number(rank: usize, t: usize) -> f32 {
    ((rank * COUNT + t) * 7 % 97) as f32 / 3.0
}

/// Launches twice, as turns must be 0 after a launch; returns the sums.
fn add_in_turns(options: EmulatorOptions, kernel: &'static str) -> Result<Vec<f32>, String> {
    let mut gpu = Gpu::new(options);
    let input: Vec<f32> = (0..BLOCKS * COUNT).map(|i| number(i / COUNT, i % COUNT)).collect();
    let [out, sums, input] = [vec![0.0; COUNT], vec![f32::NAN; COUNT], input].map(|v| gpu.memory(&v));
    let [turn, counter] = [0; 2].map(|_| gpu.memory(&[0u32]));
    let pointers = [out, sums, turn, counter, input].map(pointer);
    for _ in 0..2 {
        let launch = Launch::new(BLOCKS, COUNT as u32).shared(2 * COUNT * 4 + 8);
        gpu.launch(kernel, launch, &pointers.each_ref().map(Arg::new))?;
    }
    assert_eq!(gpu.read::<u32>(turn, 1), [0], "{kernel}");
    Ok(gpu.read(out, COUNT))
}

#[test]
fn sums_are_added_in_turn() {
    let want: Vec<f32> =
        (0..COUNT).map(|t| (0..BLOCKS).fold(0.0, |sum, rank| sum + number(rank, t))).collect();
    let modes = all_options();
    let parallel =
        modes.iter().filter(|options| !options.check).map(|o| EmulatorOptions { threads: 3, ..*o });
    for options in modes.iter().copied().chain(parallel) {
        assert_eq!(add_in_turns(options, "add_in_turns_0").as_ref(), Ok(&want), "{options:?}");
    }
}

/// The checker finds the mistake in every schedule, with this message.
#[track_caller]
fn found(kernel: &'static str, message: &str) {
    for options in all_options().into_iter().filter(|options| options.check) {
        let error = add_in_turns(options, kernel).expect_err(kernel);
        assert!(error.contains(message) && error.contains("turns.cu:"), "{kernel} {options:?}: {error}");
    }
}

#[test]
fn a_copy_that_does_not_wait_for_its_turn_is_found() {
    found("add_in_turns_1", "wrote in the same launch, without anything that orders the two");
}

#[test]
fn a_turn_that_is_passed_before_the_copy_has_written_is_found() {
    found("add_in_turns_2", "of this launch writes, as late as when it ends");
}

#[test]
fn a_turn_that_is_passed_out_of_order_is_found() {
    for options in all_options() {
        let error = add_in_turns(options, "add_in_turns_3").unwrap_err();
        assert!(error.contains("turns are passed out of order"), "{error}");
    }
}

#[test]
fn a_turn_that_is_never_passed_is_found() {
    for options in all_options() {
        let error = add_in_turns(options, "add_in_turns_4").unwrap_err();
        let wait = "deadlock, no thread can run: thread 0 waits in turn_wait at tests/emulator/turns.cu:";
        assert!(error.contains(wait), "{error}");
    }
}
