//! Clusters on the emulated device: blocks that share copies and a queue, and the mistakes in it
//! that are found.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, TiledMatrix};

const TILES: usize = 5;
const K: usize = 4 * 64;
const SHARED_BYTES: usize = 3 * 3 * 64 * 128 + 2 * 16 + (3 + 2) * 2 * 8;

/// Small integers, whose products and sums are exact.
fn integers(len: usize, step: usize, modulus: usize) -> Vec<f32> {
    (0..len).map(|i| (i * step % modulus) as f32 - (modulus / 2) as f32).collect()
}

/// The error of the kernel, or the message of a wrong result.
fn run(kernel: &'static str, options: EmulatorOptions) -> Result<(), String> {
    let (a, b) = (integers(TILES * 128 * K, 7, 31), integers(128 * K, 5, 23));
    let mut gpu = Gpu::new(options);
    let d = pointer(gpu.memory(&vec![0f32; TILES * 128 * 128]));
    let counter = pointer(gpu.memory(&[0u32]));
    let maps = [(&a, TILES * 128), (&b, 128)].map(|(values, rows)| {
        let values: Vec<u16> = values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
        let address = gpu.memory(&values);
        gpu.0.tensor_map(&TiledMatrix { address, rows, columns: K, box_rows: 64 }).unwrap()
    });
    let [k, tiles] = [K as i32, TILES as i32];
    let args = [
        Arg::new(&d),
        Arg::new(&counter),
        Arg::new(&maps[0]),
        Arg::new(&maps[1]),
        Arg::new(&k),
        Arg::new(&tiles),
    ];
    gpu.launch(kernel, Launch::new(4, 256).shared(SHARED_BYTES), &args)?;
    let dot = |m: usize, n: usize| -> f32 { (0..K).map(|k| a[m * K + k] * b[n * K + k]).sum() };
    let got = gpu.read::<f32>(d.address(), TILES * 128 * 128);
    match (0..got.len()).find(|&i| got[i] != dot(i / 128, i % 128)) {
        Some(i) => Err(format!("wrong result: {} at {i}", got[i])),
        None => Ok(()),
    }
}

#[test]
fn a_cluster_works_in_every_order() {
    for options in all_options() {
        run("cluster", options).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    }
}
