//! Kernels that work, and launches that are refused.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, by_name};
use warpsmith::device::cuda::emulated::KERNELS;

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

/// The CPU time of this thread: on a busy machine wall-clock time says little.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
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
            let start = cpu_seconds();
            gpu.launch(name, Launch::new(1, threads), args).unwrap();
            (cpu_seconds() - start) * per
        };
        let barrier = time("bench_barrier", &[Arg::new(&n)]);
        let shuffle = time("bench_shuffle", &[Arg::new(&out), Arg::new(&n)]);
        let mma = time("bench_mma", &[Arg::new(&out), Arg::new(&n)]) * 32.0;
        println!(
            "{threads:4} threads: {barrier:.1} ns per barrier, {shuffle:.1} per shuffle, {mma:.0} per mma"
        );
    }
}

#[test]
fn a_launch_that_does_not_fit_the_kernel_is_refused() {
    let mut gpu = Gpu::new(EmulatorOptions::default());
    let out = pointer(gpu.memory(&[0f32; 8]));
    let (n, long) = (8i32, 8u64);
    let args = [Arg::new(&out), Arg::new(&out), Arg::new(&n)];
    let mut refused = |launch: Launch, args: &[Arg], words: &str| {
        let message = gpu.launch("block_sums", launch, args).unwrap_err();
        assert!(message.contains(words), "{message}");
    };
    refused(Launch::new(1, 32), &args[..2], "2 arguments for the 3 parameters (float*, float*, int)");
    refused(
        Launch::new(1, 32),
        &[args[0], args[1], Arg::new(&long)],
        "argument 2 has 8 bytes, the type int has 4",
    );
    refused(Launch::new(1, 2048), &args, "2048 threads per block, 1 to 1024 are allowed");
    refused(Launch::new(0, 32), &args, "a grid of [0, 1, 1]");
    refused(Launch::grid([1, 1 << 16, 1], 32), &args, "a grid of [1, 65536, 1]");
    refused(Launch::new(1, 32).shared(228 << 10), &args, "at most 232448");
    let message = gpu.launch("no_such", Launch::new(1, 32), &args).unwrap_err();
    assert!(message.contains("no kernel no_such was compiled"), "{message}");
}

#[test]
fn blocks_run_side_by_side() {
    let input = vec![1f32; 1 << 14];
    let mut gpu = Gpu::new(EmulatorOptions { threads: 2, ..EmulatorOptions::default() });
    let (out, inp) = (pointer(gpu.memory(&[0f32; 128])), pointer(gpu.memory(&input)));
    let n = 1i32 << 14;
    gpu.launch("block_sums", Launch::new(128, 128), &[Arg::new(&out), Arg::new(&inp), Arg::new(&n)]).unwrap();
    assert_eq!(gpu.read::<f32>(out.address(), 128), vec![128.0; 128]);
}

/// The op layer declares exactly the kernels that were compiled, with the types that the C++
/// compiler saw.
#[test]
fn the_kernel_table_is_what_the_compiler_saw() {
    for (variant, floatx) in [("bf16", "bf16*"), ("f16", "f16*"), ("f32", "float*")] {
        for checked in [false, true] {
            let mut compiled = by_name(KERNELS, variant, checked);
            for spec in warpsmith::device::cuda::kernels() {
                let name = spec.name;
                let kernel =
                    compiled.remove(name).unwrap_or_else(|| panic!("{name} is not in {}", spec.file));
                let want: Vec<&str> =
                    spec.params.iter().map(|p| if p.kind == "floatX*" { floatx } else { p.kind }).collect();
                assert_eq!(kernel.parameter_types(), want, "{name}");
            }
            assert!(compiled.is_empty(), "no operation declares {:?}", compiled.keys());
        }
    }
}
