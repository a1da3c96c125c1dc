//! Memory lent to a collective is left alone by the host and by kernels. On a GPU such a race shows
//! now and then; here it is an error every time.

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch, TiledMatrix};
use std::panic::{AssertUnwindSafe, catch_unwind};
use warpsmith::device::cuda::emulated::open;
use warpsmith::device::cuda::kernel::Ptr;
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::ops::{Device, Ops};
use warpsmith::tensor::{Dtype, MemoryPlan, Tensor};

fn checked() -> impl Iterator<Item = EmulatorOptions> {
    all_options().into_iter().filter(|options| options.check)
}

/// Computes the sums of 8 blocks of 128 numbers.
fn block_sums(gpu: &mut Gpu, out: Ptr<f32>, inp: Ptr<f32>) -> Result<(), String> {
    let args = [Arg::new(&out), Arg::new(&inp), Arg::new(&1024i32)];
    gpu.launch("block_sums", Launch::new(8, 128), &args)
}

#[track_caller]
fn expect(found: Result<(), String>, words: &[&str]) {
    let message = found.expect_err("an access to lent memory");
    for words in words {
        assert!(message.contains(words), "expected {words}, found {message}");
    }
}

/// Four bytes in the middle of an input, or of an output: the message names the thread that
/// accesses them, and their address.
#[test]
fn a_kernel_that_touches_what_is_lent_is_named() {
    for options in checked() {
        let mut gpu = Gpu::new(options);
        let (out, inp) = (pointer(gpu.memory(&[0f32; 8])), pointer(gpu.memory(&[1f32; 1024])));
        let lent = "4 bytes at ";
        for (address, access, who) in [
            (inp.address() + 4 * (3 * 128 + 37), "a read of 4 bytes at", "block (3,0,0), thread (37,0,0)"),
            (out.address() + 4 * 5, "a write of 4 bytes at", "block (5,0,0), thread (0,0,0)"),
        ] {
            gpu.0.lend(address, 4).unwrap();
            let place = format!("{access} {address:#x}: {lent}{address:#x} are lent");
            expect(block_sums(&mut gpu, out, inp), &["kernel block_sums, ", who, &place]);
            gpu.0.reclaim(address, 4);
        }
        let beside = gpu.memory(&[0f32; 64]);
        gpu.0.lend(beside, 256).unwrap();
        block_sums(&mut gpu, out, inp).unwrap();
        assert_eq!(gpu.read::<f32>(out.address(), 8), [128.0; 8]);
    }
}

#[test]
fn asynchronous_copies_and_atomics_are_accesses_too() {
    for options in checked() {
        let mut gpu = Gpu::new(options);
        let (out, inp) = (pointer(gpu.memory(&[0f32; 1024])), pointer(gpu.memory(&[0f32; 1024])));
        gpu.0.lend(inp.address() + 2048, 4).unwrap();
        let args = [Arg::new(&out), Arg::new(&inp), Arg::new(&4i32)];
        let found = gpu.launch("pipeline_0", Launch::new(1, 64), &args);
        expect(found, &["cp.async at", "a read of 16 bytes at", "are lent"]);

        let (out, count) = (pointer(gpu.memory(&[0f32; 9])), pointer(gpu.memory(&[0u32])));
        gpu.0.lend(count.address(), 4).unwrap();
        let found = gpu.launch("last_block_0", Launch::new(8, 64), &[Arg::new(&out), Arg::new(&count)]);
        expect(found, &["kernel last_block_0", "an atomic operation of 4 bytes at", "are lent"]);
    }
}

/// A copy accesses its box, and not the matrix around it.
#[test]
fn copies_of_boxes_are_accesses_too() {
    for options in checked() {
        let mut gpu = Gpu::new(options);
        let (matrix, out) = (gpu.memory(&[1u16; 64 * 128]), pointer(gpu.memory(&[7u16; 8 * 64])));
        let tiled = TiledMatrix { address: matrix, rows: 64, columns: 128, box_rows: 8, box_columns: 64 };
        let map = gpu.0.tensor_map(&tiled).unwrap();
        let args = [Arg::new(&out), Arg::new(&map), Arg::new(&64), Arg::new(&16), Arg::new(&8)];
        let mut run = |row: u64, column: u64| {
            let place = matrix + (row * 128 + column) * 2;
            gpu.0.lend(place, 2).unwrap();
            let found = gpu.launch("copy_box", Launch::new(1, 128).shared(8 * 128 + 8), &args);
            gpu.0.reclaim(place, 2);
            found
        };
        for outside in [(15, 64), (24, 64), (16, 63)] {
            run(outside.0, outside.1).unwrap();
        }
        for inside in [(16, 64), (23, 127)] {
            expect(run(inside.0, inside.1), &["kernel copy_box", "tma_load at", "a read of 128 bytes at"]);
        }
    }
}

/// Without the checker, the target of a pointer and the extent of a tensor map are known.
#[test]
fn arguments_are_refused_without_the_checker() {
    let mut gpu = Gpu::new(EmulatorOptions::default());
    let (out, inp) = (pointer(gpu.memory(&[0f32; 8])), pointer(gpu.memory(&[1f32; 1024])));
    gpu.0.lend(inp.address(), 4096).unwrap();
    let words = format!("kernel block_sums: argument 1 (float*) points at {:#x}", inp.address());
    expect(block_sums(&mut gpu, out, inp), &[&words, ": 4096 bytes at", "are lent"]);
    gpu.0.reclaim(inp.address(), 4096);
    block_sums(&mut gpu, out, inp).unwrap();

    let (matrix, out) = (gpu.memory(&[1u16; 64 * 128]), pointer(gpu.memory(&[7u16; 8 * 64])));
    let tiled = TiledMatrix { address: matrix, rows: 64, columns: 128, box_rows: 8, box_columns: 64 };
    let map = gpu.0.tensor_map(&tiled).unwrap();
    gpu.0.lend(matrix + 64 * 128 * 2 - 2, 2).unwrap();
    let args = [Arg::new(&out), Arg::new(&map), Arg::new(&0), Arg::new(&0), Arg::new(&8)];
    let found = gpu.launch("copy_box", Launch::new(1, 128).shared(8 * 128 + 8), &args);
    expect(found, &["kernel copy_box: argument 1 (TensorMap) points at", ": 2 bytes at"]);
}

/// An access of the host to memory whose bytes 16..32 of 64 are lent, and the start of its message.
type HostAccess = (&'static str, fn(&mut Gpu, u64));

const HOST: [HostAccess; 7] = [
    ("an upload to 4 bytes at", |gpu, lent| gpu.0.upload(lent, &[0; 4]).unwrap()),
    ("a download from 2 bytes at", |gpu, lent| gpu.0.download(&mut [0; 2], lent + 15).unwrap()),
    ("clearing 17 bytes at", |gpu, lent| gpu.0.set_bytes(lent - 16, 0, 17).unwrap()),
    ("a copy to 8 bytes at", |gpu, lent| gpu.0.copy(lent - 4, lent + 32, 8).unwrap()),
    ("a copy from 8 bytes at", |gpu, lent| gpu.0.copy(lent + 32, lent - 4, 8).unwrap()),
    ("lending 64 bytes at", |gpu, lent| assert_eq!(gpu.0.lend(lent - 16, 64).unwrap(), lent - 16)),
    ("8 bytes at", |gpu, lent| gpu.0.reclaim(lent, 8)),
];

#[test]
fn the_host_leaves_alone_what_is_lent() {
    for (words, access) in HOST {
        let mut gpu = Gpu::new(EmulatorOptions::default());
        let lent = gpu.memory(&[0f32; 16]) + 16;
        gpu.0.lend(lent, 16).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| access(&mut gpu, lent))).expect_err(words);
        let message = panic.downcast_ref::<String>().expect("a message");
        assert!(message.starts_with(words) && message.contains(" lent"), "expected {words}, found {message}");
        gpu.0.reclaim(lent, 16);
        if !words.starts_with('8') {
            access(&mut gpu, lent);
        }
    }
}

/// A device with gradients, for operations.
fn with_gradients(check: bool) -> (Cuda, [Tensor; 2]) {
    let dtype = Dtype::Bf16;
    let options = EmulatorOptions { check, ..EmulatorOptions::default() };
    let (tf32, gelu_fusion, deterministic, graphs) = (false, 0, true, false);
    let matmul = MatmulChoice::Own;
    let cuda_options = CudaOptions { dtype, tf32, gelu_fusion, deterministic, matmul, graphs };
    let mut dev = Cuda::new(open(dtype, options).unwrap(), cuda_options);
    let mut plan = MemoryPlan::new();
    let tensors = [0; 2].map(|_| plan.add("gradients", "gradients", dtype, 64));
    dev.allocate(&plan).unwrap();
    (dev, tensors)
}

/// A collective runs on gradients that an operation reads or writes.
#[test]
fn an_operation_during_a_collective_fails() {
    for check in [false, true] {
        let (mut dev, [grads, dst]) = with_gradients(check);
        let buffer = dev.lend(grads);
        assert_eq!((buffer.len, buffer.dtype), (64, Dtype::Bf16));
        let mut fails = |kernel: &str, work: &dyn Fn(&mut Cuda) -> anyhow::Result<()>| {
            expect(work(&mut dev).map_err(|e| format!("{e:#}")), &[kernel, "128 bytes at", "are lent"]);
        };
        fails("kernel fill_x", &|dev| dev.fill(grads, 1.0));
        fails("kernel add_x", &|dev| dev.add(grads, dst));
        fails("kernel add_x", &|dev| dev.add(dst, grads));
        dev.reclaim(grads);
        dev.add(dst, grads).unwrap();
    }
}
