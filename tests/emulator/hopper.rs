//! Hopper's part of the emulated device: copies of tiles, MMAs of warpgroups, and the mistakes that
//! it finds.

use crate::device::*;
use cuda_emulator::{Arg, Copies, EmulatorOptions, Launch, Schedule, TensorMap, TiledMatrix};

fn bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect()
}

/// Small integers, whose products and sums are exact.
fn integers(len: usize, step: usize, modulus: usize) -> Vec<f32> {
    (0..len).map(|i| (i * step % modulus) as f32 - (modulus / 2) as f32).collect()
}

fn map(gpu: &Gpu, address: u64, rows: usize, columns: usize, box_rows: usize) -> TensorMap {
    gpu.0.tensor_map(&TiledMatrix { address, rows, columns, box_rows, box_columns: 64 }).unwrap()
}

#[test]
fn copies_bring_boxes_and_zeros_around_them() {
    const ROWS: usize = 100;
    const COLUMNS: usize = 136;
    let values: Vec<u16> = (0..ROWS * COLUMNS).map(|i| i as u16).collect();
    for options in all_options() {
        let mut gpu = Gpu::new(options);
        let matrix = gpu.memory(&values);
        for (x, y, box_rows) in
            [(0, 0, 64), (64, 16, 128), (128, 96, 8), (-8, -3, 16), (8, 50, 256), (136, 0, 8)]
        {
            let out = pointer(gpu.memory(&vec![7u16; box_rows * 64]));
            let map = map(&gpu, matrix, ROWS, COLUMNS, box_rows);
            let args =
                [Arg::new(&out), Arg::new(&map), Arg::new(&x), Arg::new(&y), Arg::new(&(box_rows as i32))];
            gpu.launch("copy_box", Launch::new(1, 128).shared(box_rows * 128 + 8), &args).unwrap();
            let at = |row: i32, column: i32| {
                let inside = (0..ROWS as i32).contains(&row) && (0..COLUMNS as i32).contains(&column);
                if inside { values[row as usize * COLUMNS + column as usize] } else { 0 }
            };
            let want: Vec<u16> = (0..box_rows as i32 * 64).map(|i| at(y + i / 64, x + i % 64)).collect();
            assert_eq!(gpu.read::<u16>(out.address(), box_rows * 64), want, "({x}, {y}) {options:?}");
        }
    }
}

#[test]
fn boxes_that_start_inside_of_16_bytes_are_refused() {
    for options in all_options() {
        let mut gpu = Gpu::new(options);
        let (matrix, out) = (gpu.memory(&[0u16; 64 * 128]), pointer(gpu.memory(&[0u16; 8 * 64])));
        let map = map(&gpu, matrix, 64, 128, 8);
        let mut copy = |x: i32| {
            let args = [Arg::new(&out), Arg::new(&map), Arg::new(&x), Arg::new(&5), Arg::new(&8)];
            gpu.launch("copy_box", Launch::new(1, 128).shared(8 * 128 + 8), &args)
        };
        for x in [0, 104, -8, 136, -1000] {
            copy(x).unwrap_or_else(|e| panic!("{x}: {e}"));
        }
        for x in [4, 5, 125, -3] {
            let error = copy(x).unwrap_err();
            let message =
                format!("the first column {x} is not a multiple of 8: an illegal instruction on a GPU");
            assert!(error.contains("tma_load at") && error.ends_with(&message), "{error}");
        }
    }
}

#[test]
fn tensor_maps_are_checked_as_cuda_does() {
    let mut gpu = Gpu::new(EmulatorOptions::default());
    let address = gpu.memory(&[0u16; 64 * 64]);
    let good = TiledMatrix { address, rows: 64, columns: 64, box_rows: 64, box_columns: 64 };
    gpu.0.tensor_map(&good).unwrap();
    for (bad, message) in [
        (TiledMatrix { address: address + 8, rows: 1, ..good }, "not a multiple of 16"),
        (TiledMatrix { columns: 60, ..good }, "rows of 120 bytes"),
        (TiledMatrix { box_rows: 257, ..good }, "1 to 256"),
        (TiledMatrix { box_columns: 48, ..good }, "a box of 48 columns, 16, 32 or 64 are allowed"),
        (TiledMatrix { rows: 65, ..good }, "not inside an allocation"),
    ] {
        let error = gpu.0.tensor_map(&bad).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// Row and column of register `v` of thread `t`, by CuTe's layout of the sums of wgmma 64 x N x 16,
/// `((4,8,4),(2,2,N/8)):((128,1,16),(64,8,512))` into a column-major matrix.
fn cute_place(t: usize, v: usize) -> (usize, usize) {
    let thread = t % 4 * 128 + t / 4 % 8 + t / 32 * 16;
    let value = v % 2 * 64 + v / 2 % 2 * 8 + v / 4 * 512;
    ((thread + value) % 64, (thread + value) / 64)
}

/// A matrix with rows of 64 numbers of K, or the same across: panels of 64 numbers, each with 64
/// rows of K.
fn stored(by_k: &[f32], across: bool) -> Vec<f32> {
    let rows = by_k.len() / 64;
    match across {
        false => by_k.to_vec(),
        true => (0..by_k.len()).map(|i| by_k[(i / 4096 * 64 + i % 64) % rows * 64 + i / 64 % 64]).collect(),
    }
}

fn products_are_right(
    kernel: &'static str,
    columns: usize,
    encode: fn(&[f32]) -> Vec<u16>,
    b_across: &[bool],
) {
    let (a, b) = (integers(64 * 64, 7, 31), integers(columns * 64, 5, 23));
    let dot = |m: usize, n: usize| -> f32 { (0..64).map(|k| a[m * 64 + k] * b[n * 64 + k]).sum() };
    let sums = columns / 2;
    let want: Vec<f32> = (0..128 * sums)
        .map(|i| {
            let (m, n) = cute_place(i / sums, i % sums);
            dot(m, n)
        })
        .collect();
    for options in all_options() {
        for across_a in [false, true] {
            for &across_b in b_across {
                let mut gpu = Gpu::new(options);
                let registers = pointer(gpu.memory(&vec![0f32; 128 * sums]));
                let a = pointer(gpu.memory(&encode(&stored(&a, across_a))));
                let b = pointer(gpu.memory(&encode(&stored(&b, across_b))));
                let args = [Arg::new(&registers), Arg::new(&a), Arg::new(&b)];
                let across = [i32::from(across_a), i32::from(across_b)];
                let args = [&args[..], &[Arg::new(&across[0]), Arg::new(&across[1])]].concat();
                let shared = 64 * 128 + columns.max(64) * 128;
                gpu.launch(kernel, Launch::new(1, 128).shared(shared), &args).unwrap();
                let got = gpu.read::<f32>(registers.address(), 128 * sums);
                assert_eq!(got, want, "{kernel} {across_a} {across_b} {options:?}");
            }
        }
    }
}

#[test]
fn sums_of_a_warpgroup_are_where_cute_says() {
    let f16 = |v: &[f32]| -> Vec<u16> { v.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect() };
    products_are_right("wgmma_bf16_128", 128, bf16, &[false, true]);
    products_are_right("wgmma_bf16_256", 256, bf16, &[false, true]);
    products_are_right("wgmma_f16_8", 8, f16, &[false]);
}

const K: usize = 8 * 64;

/// The error of the pipeline, or the message of a wrong result.
fn run_pipeline(kernel: &'static str, options: EmulatorOptions) -> Result<(), String> {
    let (a, b) = (integers(128 * K, 7, 31), integers(128 * K, 5, 23));
    let mut gpu = Gpu::new(options);
    let d = pointer(gpu.memory(&vec![0f32; 128 * 128]));
    let maps = [&a, &b].map(|matrix| {
        let address = gpu.memory(&bf16(matrix));
        map(&gpu, address, 128, K, 128)
    });
    let args = [Arg::new(&d), Arg::new(&maps[0]), Arg::new(&maps[1]), Arg::new(&(K as i32))];
    gpu.launch(kernel, Launch::new(1, 384).shared(3 * (2 * 128 * 128 + 16)), &args)?;
    let dot = |m: usize, n: usize| -> f32 { (0..K).map(|k| a[m * K + k] * b[n * K + k]).sum() };
    let got = gpu.read::<f32>(d.address(), 128 * 128);
    match (0..128 * 128).find(|&i| got[i] != dot(i / 128, i % 128)) {
        Some(i) => Err(format!("wrong result: {} at {i}", got[i])),
        None => Ok(()),
    }
}

#[test]
fn a_pipeline_works_in_every_order() {
    for options in all_options() {
        run_pipeline("pipeline", options).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    }
}

/// Every mode finds the mistake, and this mode reports it with this message.
#[track_caller]
fn found(kernel: &'static str, schedule: Schedule, copies: Copies, message: &str) {
    let usual = EmulatorOptions { schedule, copies, ..EmulatorOptions::default() };
    let error = run_pipeline(kernel, usual).expect_err(kernel);
    assert!(error.contains(message), "{kernel}: {error}");
    for options in all_options() {
        assert!(run_pipeline(kernel, options).is_err(), "{kernel} passes with {options:?}");
    }
}

#[test]
fn a_consumer_that_does_not_wait_is_found() {
    let kernel = "pipeline_no_wait_for_full";
    found(kernel, Schedule::Ascending, Copies::Late, "has not copied yet; its mbarrier is at");
    found(kernel, Schedule::Ascending, Copies::Eager, "without having waited for phase 0 of its mbarrier");
}

#[test]
fn a_stage_released_too_early_is_found() {
    found("pipeline_released_while_read", Schedule::Ascending, Copies::Late, "may still be reading");
    found("pipeline_released_while_read", Schedule::Ascending, Copies::Eager, "may still be reading");
}

#[test]
fn one_arrival_for_all_warps_is_found() {
    // If the warps of a warpgroup run in step, it works by luck.
    for schedule in [Schedule::Random(1), Schedule::AheadLow] {
        let options = EmulatorOptions { schedule, ..EmulatorOptions::default() };
        let error = run_pipeline("pipeline_one_arrival_for_all_warps", options).unwrap_err();
        assert!(error.contains("may still be reading"), "{error}");
    }
}

#[test]
fn sums_that_are_not_waited_for_are_found() {
    found(
        "pipeline_no_wgmma_wait",
        Schedule::Ascending,
        Copies::Late,
        "without having waited for this wgmma",
    );
}

#[test]
fn wrong_numbers_of_bytes_are_found() {
    found("pipeline_expects_half", Schedule::Ascending, Copies::Late, "has not copied yet");
    found("pipeline_expects_half", Schedule::Ascending, Copies::Eager, "expects 0 more");
    found(
        "pipeline_expects_more",
        Schedule::Ascending,
        Copies::Late,
        "lacks 0 of 1 arrivals and 16384 bytes",
    );
}

#[test]
fn missing_fences_are_found() {
    found("pipeline_no_wgmma_fence", Schedule::Ascending, Copies::Late, "there was no wgmma_fence");
    found("pipeline_no_init_fence", Schedule::Ascending, Copies::Late, "there was no mbarrier_init_fence");
}

/// The result is only wrong on a GPU; here the checker sees the access.
#[test]
fn a_write_that_wgmma_need_not_see_is_found() {
    for schedule in SCHEDULES {
        let options = EmulatorOptions { schedule, check: true, ..EmulatorOptions::default() };
        let error = run_pipeline("pipeline_no_proxy_fence", options).unwrap_err();
        assert!(
            error.contains("thread 128 (warp 4) wrote to shared memory without a proxy_fence"),
            "{error}"
        );
    }
}

#[test]
fn wrong_parities_are_found() {
    found("pipeline_producer_parity", Schedule::Ascending, Copies::Late, "deadlock, no thread can run");
    found("pipeline_producer_parity", Schedule::Ascending, Copies::Late, "warps 0 wait in mbarrier_wait at ");
    let message = "ended, and the next one before this thread saw it";
    found("pipeline_consumer_parity_stays", Schedule::AheadLow, Copies::Eager, message);
}

#[test]
fn a_barrier_unknown_to_others_is_found() {
    let kernel = "pipeline_no_barrier_after_init";
    found(kernel, Schedule::Ascending, Copies::Late, "no __syncthreads has made that known");
    found(kernel, Schedule::Descending, Copies::Late, "was never initialized");
    found("pipeline_overwritten_barrier", Schedule::Ascending, Copies::Late, "was overwritten");
}

#[test]
fn what_is_left_undone_is_found() {
    let late = EmulatorOptions::default();
    let error = run_pipeline("pipeline_copy_not_waited_for", late).unwrap_err();
    assert!(error.contains("the block ends before this copy has landed"), "{error}");
    found(
        "pipeline_one_warp_left_out",
        Schedule::Ascending,
        Copies::Late,
        "not all four warps of a warpgroup",
    );
}
