//! One kernel for each bug that the emulated device is for. The kernel without the bug passes in
//! every mode; in every mode the checker names the bug and the line in the kernel.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch};

/// Runs a kernel in one mode; returns its output or the error.
type Run = fn(&mut Gpu, &'static str) -> Result<Vec<f32>, String>;

const N: usize = 1024;

fn numbers() -> Vec<f32> {
    (0..N).map(|i| (i * 7 % 97) as f32).collect()
}

fn pipeline(gpu: &mut Gpu, name: &'static str) -> Result<Vec<f32>, String> {
    let (out, inp) = (pointer(gpu.memory(&[0f32; N])), pointer(gpu.memory(&numbers())));
    let stages = N as i32 / 256;
    let args = [Arg::new(&out), Arg::new(&inp), Arg::new(&stages)];
    gpu.launch(name, Launch::new(1, 64), &args)?;
    Ok(gpu.read(out.address(), N))
}

fn total(gpu: &mut Gpu, name: &'static str) -> Result<Vec<f32>, String> {
    let n = 250i32;
    let (out, inp) = (pointer(gpu.memory(&[0f32; 3])), pointer(gpu.memory(&numbers()[..250])));
    let args = [Arg::new(&out), Arg::new(&inp), Arg::new(&n)];
    gpu.launch(name, Launch::new(2, 128), &args)?;
    Ok(gpu.read(out.address(), 3))
}

fn reverse(gpu: &mut Gpu, name: &'static str) -> Result<Vec<f32>, String> {
    let row = pointer(gpu.memory(&numbers()));
    gpu.launch(name, Launch::new(N / 64, 64), &[Arg::new(&row)])?;
    Ok(gpu.read(row.address(), N))
}

fn last_block(gpu: &mut Gpu, name: &'static str) -> Result<Vec<f32>, String> {
    let (out, count) = (pointer(gpu.memory(&[0f32; 9])), pointer(gpu.memory(&[0u32])));
    gpu.launch(name, Launch::new(8, 64), &[Arg::new(&out), Arg::new(&count)])?;
    Ok(gpu.read(out.address(), 9))
}

fn added(gpu: &mut Gpu, name: &'static str) -> Result<Vec<f32>, String> {
    let [out, sums] = [(); 2].map(|()| pointer(gpu.memory(&[0f32; 64])));
    let count = pointer(gpu.memory(&[0u32]));
    gpu.launch(name, Launch::new(8, 64), &[Arg::new(&out), Arg::new(&sums), Arg::new(&count)])?;
    Ok([gpu.read(out.address(), 64), gpu.read(sums.address(), 64)].concat())
}

fn vectors(gpu: &mut Gpu, name: &'static str) -> Result<Vec<f32>, String> {
    let (out, inp) = (pointer(gpu.memory(&[0f32; 128])), pointer(gpu.memory(&numbers()[..130])));
    gpu.launch(name, Launch::new(1, 32).shared(512), &[Arg::new(&out), Arg::new(&inp)])?;
    Ok(gpu.read(out.address(), 128))
}

/// The kernel, its bug, and texts of which the message of the checker must contain one.
const MUTANTS: &[(Run, &str, &str, &[&str])] = &[
    (pipeline, "pipeline_1", "waits for one group too few", &["asynchronous copy, which was not waited for"]),
    (
        pipeline,
        "pipeline_2",
        "no barrier after the wait",
        &["not waited for", "is a race: written by thread", "uninitialized shared memory"],
    ),
    (
        pipeline,
        "pipeline_3",
        "no barrier before a buffer is filled again",
        &["is a race: read by", "is a race: written by", "not waited for"],
    ),
    (pipeline, "pipeline_4", "address in shared memory too high", &["outside of shared memory"]),
    (
        pipeline,
        "pipeline_5",
        "source out of bounds",
        &["out of bounds: at byte 4096 of an allocation of 4096"],
    ),
    (pipeline, "pipeline_6", "ends before its copies", &["asynchronous copies that it did not wait for"]),
    (
        total,
        "total_1",
        "returns before a barrier",
        &["ended before this barrier", "ends while others", "does not take part"],
    ),
    (total, "total_2", "off by one", &["out of bounds: at byte 1000 of an allocation of 1000"]),
    (total, "total_3", "full mask in half a warp", &["the lanes of a warp diverge", "deadlock"]),
    (
        total,
        "total_4",
        "reads from a lane outside of the mask",
        &["reads from lane 16, which does not take part"],
    ),
    (
        total,
        "total_5",
        "shuffles in two branches",
        &["the lanes of a warp diverge: others wait in __shfl_xor_sync"],
    ),
    (total, "total_6", "a slot left out", &["of uninitialized shared memory"]),
    (
        total,
        "total_7",
        "a barrier for one warp",
        &["ends while others", "ended before this barrier", "uninitialized"],
    ),
    (total, "total_8", "barriers in two branches", &["threads of the block diverge at a barrier"]),
    (total, "total_9", "no barrier", &["uninitialized shared memory", "is a race: written by"]),
    (total, "total_10", "two blocks write one number", &["wrote in the same launch"]),
    (total, "total_11", "writes past the end", &["out of bounds: at byte 12 of an allocation of 12"]),
    (
        reverse,
        "reverse_1",
        "overwrites what others still read",
        &["global memory is a race: read by", "global memory is a race: written by"],
    ),
    (reverse, "reverse_2", "no __syncwarp after writing", &["of shared memory is a race", "uninitialized"]),
    (reverse, "reverse_3", "no __syncwarp before writing again", &["of shared memory is a race"]),
    (last_block, "last_block_1", "no __threadfence", &["wrote in the same launch"]),
    (last_block, "last_block_2", "no counter", &["wrote in the same launch", "read in the same launch"]),
    (last_block, "last_block_3", "plain write to a counter", &["in the same launch"]),
    (added, "added_1", "no __threadfence", &["wrote in the same launch"]),
    (added, "added_2", "no barrier before the counter", &["wrote in the same launch"]),
    (added, "added_3", "adds without an atomic operation", &["in the same launch"]),
    (vectors, "vectors_1", "misaligned load", &["128-bit load from a misaligned address"]),
    (vectors, "vectors_2", "no __syncwarp before ldmatrix", &["is a race: written by", "uninitialized"]),
    (vectors, "vectors_3", "misaligned row", &["is not a multiple of 16"]),
    (vectors, "vectors_4", "a row past the end", &["outside of shared memory (512 bytes"]),
    (vectors, "vectors_5", "an assertion", &["assertion failed: out[0] != in[0]"]),
    (vectors, "vectors_6", "misaligned store", &["128-bit store to a misaligned address"]),
];

fn in_mode(options: EmulatorOptions, run: Run, name: &'static str) -> Result<Vec<f32>, String> {
    run(&mut Gpu::new(options), name)
}

#[test]
fn kernels_without_bugs_pass_in_every_mode() {
    let originals: [(Run, &str); 6] = [
        (pipeline, "pipeline_0"),
        (total, "total_0"),
        (reverse, "reverse_0"),
        (last_block, "last_block_0"),
        (added, "added_0"),
        (vectors, "vectors_0"),
    ];
    for (run, name) in originals {
        let want = in_mode(EmulatorOptions::default(), run, name).unwrap();
        assert!(want.iter().any(|v| *v != 0.0) && want.iter().all(|v| v.is_finite()), "{name}");
        for options in all_options() {
            assert_eq!(in_mode(options, run, name).as_ref(), Ok(&want), "{name} {options:?}");
        }
    }
}

#[test]
fn the_checker_names_every_bug_in_every_mode() {
    let mut faults = Vec::new();
    for (run, name, bug, words) in MUTANTS {
        for options in all_options().into_iter().filter(|options| options.check) {
            match in_mode(options, *run, name) {
                Ok(_) => {
                    faults.push(format!("{name} ({bug}) passed: {options:?}"));
                    break;
                }
                Err(message) => {
                    let names_it = words.iter().any(|words| message.contains(words));
                    let who = message.contains(&format!("kernel {name}, block ("));
                    let line = message.contains("mutants.cu:")
                        || message.contains("common.cuh:")
                        || bug.starts_with("ends");
                    if !names_it || !who || !line {
                        faults.push(format!("{name} ({bug}), {options:?}: {message}"));
                        break;
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

/// Without the checker, a bug shows in the results or in an error in some order. These show in
/// none, by design.
#[test]
fn most_bugs_show_in_some_order_without_the_checker() {
    let invisible = [
        "pipeline_5",
        "total_2",
        "last_block_1",
        "last_block_2",
        "added_1",
        "added_2",
        "added_3",
        "total_11",
        "vectors_2",
    ];
    for (run, name, bug, _) in MUTANTS.iter().filter(|m| !invisible.contains(&m.1)) {
        let original: &'static str = Box::leak(format!("{}_0", name.rsplit_once('_').unwrap().0).into());
        let want = in_mode(EmulatorOptions::default(), *run, original).unwrap();
        let plain = all_options().into_iter().filter(|options| !options.check);
        let seen = plain.filter(|options| in_mode(*options, *run, name).as_ref() != Ok(&want)).count();
        println!("{name} ({bug}): {seen} of 15 modes");
        assert!(seen > 0, "{name} ({bug}) shows in no mode");
    }
}
