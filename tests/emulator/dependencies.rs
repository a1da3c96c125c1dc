//! Kernels that may start before earlier launches have ended, and the mistakes that are possible
//! then.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, TiledMatrix};

const BLOCKS: usize = 3;
const LEN: usize = BLOCKS * 128;

fn increment(
    options: EmulatorOptions,
    kernel: &str,
    launch: fn(Launch) -> Launch,
) -> Result<Vec<u32>, String> {
    let mut gpu = Gpu::new(options);
    let input: Vec<u32> = (0..LEN as u32).collect();
    let [out, counter] = [LEN, 1].map(|len| pointer(gpu.memory(&vec![0u32; len])));
    let input = pointer(gpu.memory(&input));
    let matrix = TiledMatrix { address: input.address(), rows: 8, columns: 64, box_rows: 8, box_columns: 64 };
    let map = gpu.0.tensor_map(&matrix).unwrap();
    let args = [Arg::new(&out), Arg::new(&input), Arg::new(&counter), Arg::new(&map)];
    gpu.launch(kernel, launch(Launch::new(BLOCKS, 128).shared(8 * 128)), &args)?;
    Ok(gpu.read(out.address(), LEN))
}

#[test]
fn kernels_that_wait_pass_in_every_mode() {
    let want: Vec<u32> = (1..=LEN as u32).collect();
    for kernel in ["increment_0", "increment_1", "increment_2", "increment_3"] {
        for options in all_options() {
            assert_eq!(
                increment(options, kernel, Launch::programmatic).unwrap(),
                want,
                "{kernel} {options:?}"
            );
        }
    }
}

/// The kernel, its bug, whether it is found in every mode or by the checker alone, and a text in
/// the message.
const MUTANTS: &[(&str, &str, bool, &str)] = &[
    ("increment_10", "no wait", false, "a read of global memory before a wait_for_dependencies"),
    ("increment_11", "reads before the wait", false, "a read of global memory before"),
    ("increment_12", "writes before the wait", false, "a write of global memory before"),
    ("increment_13", "no barrier after the wait", false, "a read of global memory before"),
    ("increment_14", "a barrier only before the wait", false, "a read of global memory before"),
    ("increment_15", "copies before the wait", false, "cp.async at"),
    ("increment_16", "an atomic before the wait", false, "an atomic operation of global memory before"),
    ("increment_17", "a box copied before the wait", false, "tma_load at"),
    ("increment_18", "a flag raised before the wait", false, "flag_raise at"),
    ("increment_19", "an addition before the wait", false, "bulk_reduce_add at"),
    ("increment_20", "a block ends without a wait", true, "the block ends without a wait_for_dependencies"),
    ("increment_21", "another lane waits", false, "a read of global memory before"),
    ("increment_22", "a warp takes no part in the barrier", false, "a read of global memory before"),
];

#[test]
fn every_mutant_is_found() {
    let mut faults = Vec::new();
    for (kernel, bug, always, words) in MUTANTS {
        for options in all_options().into_iter().filter(|o| o.check || *always) {
            let named = |e: &str| {
                e.contains(words)
                    && e.contains(kernel)
                    && (*always
                        || e.contains("dependencies.cu:") && e.contains("earlier launches may still run"))
            };
            match increment(options, kernel, Launch::programmatic) {
                Ok(_) => faults.push(format!("{kernel} ({bug}) passes with {options:?}")),
                Err(e) if named(&e) => continue,
                Err(e) => faults.push(format!("{kernel} ({bug}), {options:?}: {e}")),
            }
            break;
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// Without the checker, a kernel that nobody waits in is found all the same.
#[test]
fn launches_in_order_need_no_wait() {
    let want: Vec<u32> = (1..=LEN as u32).collect();
    for options in all_options() {
        assert_eq!(increment(options, "increment_10", |launch| launch).unwrap(), want, "{options:?}");
        let error = increment(options, "increment_10", Launch::programmatic).unwrap_err();
        assert!(error.contains("wait_for_dependencies"), "{error}");
    }
}
