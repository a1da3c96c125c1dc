//! Boxes of 64, 32 and 16 columns: they arrive as wgmma needs them, and leave as they came.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, TiledMatrix};

/// Products of a matrix of small integers with its transpose, and a copy of it.
#[derive(Debug, PartialEq)]
struct Grams {
    rows: Vec<f32>,
    columns: Vec<f32>,
    copy: Vec<u16>,
}

fn number(row: usize, column: usize) -> f32 {
    ((row * 64 + column) * 7 % 31) as f32 - 15.0
}

fn matrix() -> Vec<u16> {
    (0..64 * 64).map(|i| half::bf16::from_f32(number(i / 64, i % 64)).to_bits()).collect()
}

fn grams(options: EmulatorOptions, kernel: &str, box_columns: usize) -> Result<Grams, String> {
    let mut gpu = Gpu::new(options);
    let [rows, columns] = [(); 2].map(|()| pointer(gpu.memory(&[0f32; 64 * 64])));
    let addresses = [matrix(), vec![0; 64 * 64]].map(|values| gpu.memory(&values));
    let maps = addresses.map(|address| {
        let tiled = TiledMatrix { address, rows: 64, columns: 64, box_rows: 64, box_columns };
        gpu.0.tensor_map(&tiled).unwrap()
    });
    let args = [Arg::new(&rows), Arg::new(&columns), Arg::new(&maps[0]), Arg::new(&maps[1])];
    gpu.launch(kernel, Launch::new(1, 128).shared(64 * 128 + 128 + 8), &args)?;
    let [rows, columns] = [rows, columns].map(|sums| gpu.read(sums.address(), 64 * 64));
    Ok(Grams { rows, columns, copy: gpu.read(addresses[1], 64 * 64) })
}

/// The sums as threads hold them; see `hopper.cuh`.
fn registers(at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let place =
        |t: usize, i: usize| (t / 32 * 16 + i / 2 % 2 * 8 + t % 32 / 4, i / 4 * 8 + t % 4 * 2 + i % 2);
    (0..64 * 64).map(|i| place(i / 32, i % 32)).map(|(row, column)| at(row, column)).collect()
}

#[test]
fn boxes_of_every_width_work_in_every_mode() {
    let sum = |term: &dyn Fn(usize) -> f32| (0..64).map(term).sum();
    let want = Grams {
        rows: registers(|m, n| sum(&|k| number(m, k) * number(n, k))),
        columns: registers(|m, n| sum(&|k| number(k, m) * number(k, n))),
        copy: matrix(),
    };
    for (kernel, columns) in [("grams_16_0", 16), ("grams_32_0", 32), ("grams_64_0", 64)] {
        for options in all_options() {
            let found = grams(options, kernel, columns).unwrap();
            assert!(found == want, "{kernel} {options:?}");
        }
    }
}

/// The kernel, the width of its boxes, its bug, and texts of which the message must contain one.
const MUTANTS: &[(&str, usize, &str, &[&str])] = &[
    ("grams_16_1", 16, "a misaligned box", &["is not a multiple of 256, at which the swizzle starts"]),
    ("grams_32_1", 32, "a misaligned box", &["is not a multiple of 512, at which the swizzle starts"]),
    ("grams_16_2", 16, "expects less", &["expects 1024 more"]),
    (
        "grams_32_3",
        32,
        "does not wait",
        &["has not copied yet", "without having waited for phase 0", "uninitialized"],
    ),
    ("grams_16_4", 16, "beyond a row", &["starts 32 bytes into the swizzle's pattern"]),
    ("grams_32_4", 32, "beyond a row", &["starts 64 bytes into the swizzle's pattern"]),
    ("grams_32_5", 32, "too far across", &["are outside of shared memory"]),
    ("grams_16_6", 16, "a part of a row", &["N = 8 is not a multiple of 16"]),
    ("grams_16_0", 64, "a map of wider boxes", &["8192 bytes at", "are outside of shared memory"]),
];

#[test]
fn every_mutant_is_found() {
    let mut faults = Vec::new();
    for (kernel, columns, bug, words) in MUTANTS {
        for options in all_options() {
            match grams(options, kernel, *columns) {
                Ok(_) => faults.push(format!("{kernel} ({bug}) passes with {options:?}")),
                Err(e) if words.iter().any(|words| e.contains(words)) && e.contains("narrow.cu:") => continue,
                Err(e) => faults.push(format!("{kernel} ({bug}), {options:?}: {e}")),
            }
            break;
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}
