//! What works.

use crate::device::*;
use std::time::Instant;
use warpsmith::device::cuda::emulator::EmulatorOptions;
use warpsmith::device::cuda::kernel::{Arg, Launch};

#[test]
fn blocks_add_up_in_every_order() {
    let input: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for options in all_options() {
        let mut gpu = Gpu::new(options);
        let (out, inp) = (pointer(gpu.memory(&[0f32; 8])), pointer(gpu.memory(&input)));
        let args = [Arg::new(&out), Arg::new(&inp), Arg::new(&1000i32)];
        gpu.launch("block_sums", Launch::new(8, 128), &args).unwrap();
        let want: Vec<f32> = input.chunks(128).map(|c| c.iter().sum()).collect();
        assert_eq!(gpu.read::<f32>(out.address(), 8), want, "{options:?}");
    }
}

#[test]
fn tensor_cores_multiply() {
    let a: Vec<f32> = (0..256).map(|i| (i * 7 % 31) as f32 - 15.0).collect();
    let b: Vec<f32> = (0..128).map(|i| (i * 5 % 23) as f32 - 11.0).collect();
    let want: Vec<f32> =
        (0..128).map(|i| (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum()).collect();
    let bf16 = |v: &[f32]| -> Vec<u16> { v.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect() };
    let f16 = |v: &[f32]| -> Vec<u16> { v.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect() };
    for (name, a, b) in [("product_bf16", bf16(&a), bf16(&b)), ("product_f16", f16(&a), f16(&b))] {
        for options in all_options() {
            let mut gpu = Gpu::new(options);
            let d = pointer(gpu.memory(&[0f32; 128]));
            let (a, b) = (pointer(gpu.memory(&a)), pointer(gpu.memory(&b)));
            gpu.launch(name, Launch::new(1, 32), &[Arg::new(&d), Arg::new(&a), Arg::new(&b)]).unwrap();
            assert_eq!(gpu.read::<f32>(d.address(), 128), want, "{name} {options:?}");
        }
    }
}

/// `cargo test --test emulator -- --ignored --nocapture costs`
#[test]
#[ignore = "measures"]
fn costs() {
    let mut gpu = Gpu::new(EmulatorOptions::default());
    let out = pointer(gpu.memory(&[0f32; 1024]));
    let n = 10000i32;
    for threads in [32, 128, 256, 1024] {
        let per = 1e9 / (f64::from(n) * f64::from(threads));
        let mut time = |name, args: &[Arg]| {
            let start = Instant::now();
            gpu.launch(name, Launch::new(1, threads), args).unwrap();
            start.elapsed().as_secs_f64() * per
        };
        let barrier = time("bench_barrier", &[Arg::new(&n)]);
        let shuffle = time("bench_shuffle", &[Arg::new(&out), Arg::new(&n)]);
        let mma = time("bench_mma", &[Arg::new(&out), Arg::new(&n)]) * 32.0;
        println!(
            "{threads:4} threads: {barrier:.1} ns a barrier, {shuffle:.1} ns a shuffle, {mma:.0} ns an mma"
        );
    }
}
