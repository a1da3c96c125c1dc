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
    run_on(&mut Gpu::new(options), kernel)
}

fn run_on(gpu: &mut Gpu, kernel: &'static str) -> Result<(), String> {
    let (a, b) = (integers(TILES * 128 * K, 7, 31), integers(128 * K, 5, 23));
    let d = pointer(gpu.memory(&vec![0f32; TILES * 128 * 128]));
    let counter = pointer(gpu.memory(&[0u32]));
    let maps = [(&a, TILES * 128), (&b, 128)].map(|(values, rows)| {
        let values: Vec<u16> = values.iter().map(|v| half::bf16::from_f32(*v).to_bits()).collect();
        let address = gpu.memory(&values);
        gpu.0.tensor_map(&TiledMatrix { address, rows, columns: K, box_rows: 64, box_columns: 64 }).unwrap()
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

/// The same for a kernel that copies one box to both blocks.
fn copy_to_both(kernel: &'static str, options: EmulatorOptions) -> Result<(), String> {
    let mut gpu = Gpu::new(options);
    let values: Vec<u16> = (0..64 * 64).map(|i| half::bf16::from_f32(i as f32 % 64.0).to_bits()).collect();
    let (address, out) = (gpu.memory(&values), pointer(gpu.memory(&[0f32; 4 * 64])));
    let map = gpu
        .0
        .tensor_map(&TiledMatrix { address, rows: 64, columns: 64, box_rows: 64, box_columns: 64 })
        .unwrap();
    gpu.launch(kernel, Launch::new(4, 64).shared(64 * 128 + 8), &[Arg::new(&out), Arg::new(&map)])?;
    let want: Vec<f32> = (0..4 * 64).map(|i| (i % 64) as f32).collect();
    if gpu.read::<f32>(out.address(), 4 * 64) == want { Ok(()) } else { Err("wrong result".to_owned()) }
}

#[test]
fn clusters_work_in_every_order() {
    for options in all_options() {
        run("cluster", options).unwrap_or_else(|e| panic!("{options:?}: {e}"));
        copy_to_both("copy_to_both_0", options).unwrap_or_else(|e| panic!("{options:?}: {e}"));
    }
    // Two at a time.
    run("cluster", EmulatorOptions { threads: 2, ..EmulatorOptions::default() }).unwrap();
}

/// A kernel with a mistake, and texts of which every message contains one.
type Mutant =
    (fn(&'static str, EmulatorOptions) -> Result<(), String>, &'static str, &'static [&'static str]);

#[track_caller]
fn found(mutants: &[Mutant], by: impl Fn(&EmulatorOptions) -> bool) {
    let mut faults = Vec::new();
    for (run, kernel, messages) in mutants {
        for options in all_options().into_iter().filter(|options| by(options)) {
            match run(kernel, options) {
                Err(error) if messages.iter().any(|message| error.contains(message)) => {}
                other => faults.push(format!("{kernel}, {options:?}: {other:?}")),
            }
        }
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

const ENDED: &str = "reaches the memory of block 1 of the cluster, which has ended";
const NOT_LANDED: &str = "as does the tma_load_multicast at tests/emulator/clusters.cu";
const UNREAD: &str = "copied, for which no thread has waited";

const MUTANTS: &[Mutant] = &[
    (
        run,
        "cluster_no_sync_after_init",
        &[
            "of block 1 of the cluster was never initialized",
            "no cluster_sync has made that known to other blocks",
        ],
    ),
    (run, "cluster_no_init_fence", &["there was no mbarrier_init_fence since its mbarrier was initialized"]),
    (
        run,
        "cluster_no_sync_at_end",
        &[ENDED, "the block ends without a cluster_sync after the mbarrier_arrive_cluster at"],
    ),
    (run, "cluster_own_consumers_only", &[NOT_LANDED, UNREAD, "of the cluster may still be reading"]),
    (
        run,
        "cluster_arrives_too_often",
        &[NOT_LANDED, UNREAD, "without having waited for phase 3 of its mbarrier"],
    ),
    (run, "cluster_wait_of_block", &["use mbarrier_wait_cluster, which makes known what other blocks store"]),
    (
        run,
        "cluster_wrong_mask",
        &["0) warps 4, 5, 6, 7 wait in mbarrier_wait at tests/emulator/clusters.cu:106 for phase 0"],
    ),
    (run, "cluster_mask_of_other", &["which lacks 0 of 1 arrivals and 8192 bytes"]),
    (run, "cluster_expects_more", &["which lacks 0 of 1 arrivals and 8192 bytes"]),
    (
        run,
        "cluster_expects_half",
        &["8192 bytes land, but phase 1 of", "has not copied yet", "a read of uninitialized shared memory"],
    ),
    (
        run,
        "cluster_ends_before_sync",
        &["threads of the cluster ended before this cluster_sync", "while others of its cluster wait at"],
    ),
    (run, "cluster_arrives_without_cluster", &["is not one of this block, which the instruction needs"]),
    (run, "cluster_copies_to_cluster_address", &["is not one of this block, which the instruction needs"]),
    (run, "cluster_reports_elsewhere", &["stores to block 1 of the cluster, but reports to block 0"]),
    (
        copy_to_both,
        "copy_to_both_1",
        &[ENDED, "the block ends without having waited for the tma_load_multicast"],
    ),
    (copy_to_both, "copy_to_both_3", &["the mask 0x7 of blocks, in a cluster of 2"]),
    (copy_to_both, "copy_to_both_4", &["cluster_address at", "block 2 of a cluster of 2"]),
    (copy_to_both, "copy_to_both_5", &["threads of the cluster diverge at a cluster_sync: others wait in"]),
];

#[test]
fn mistakes_in_clusters_are_found_in_every_order() {
    found(MUTANTS, |_| true);
}

/// Mistakes in plain reads of copied data. Without the checker they show only in some orders.
const CHECKED_MUTANTS: &[Mutant] = &[
    (run, "cluster_queue_not_waited_for", &[COPIED]),
    (run, "cluster_queue_wait_of_block", &[COPIED]),
    (run, "cluster_no_fence_before_release", &[COPIED]),
    (run, "cluster_slot_released_early", &["a write of shared memory is a race: read by"]),
    (run, "cluster_slot_not_waited_for", &["uninitialized shared memory", COPIED, STILL_WRITES]),
    (copy_to_both, "copy_to_both_2", &["uninitialized shared memory", COPIED, STILL_WRITES, ENDED]),
];
const COPIED: &str = "asynchronous copy wrote, before a wait for its mbarrier has made that known";
const STILL_WRITES: &str = "asynchronous copy, which was not waited for, still writes";

#[test]
fn the_checker_finds_reads_and_stores_that_are_not_ordered() {
    found(CHECKED_MUTANTS, |options| options.check);
}

#[test]
fn grids_are_whole_clusters() {
    let mut gpu = Gpu::new(EmulatorOptions::default());
    let (address, out) = (gpu.memory(&[0u16; 64 * 64]), pointer(gpu.memory(&[0f32; 4 * 64])));
    let map = gpu
        .0
        .tensor_map(&TiledMatrix { address, rows: 64, columns: 64, box_rows: 64, box_columns: 64 })
        .unwrap();
    let launch = Launch::new(3, 64).shared(64 * 128 + 8);
    let error = gpu.launch("copy_to_both_0", launch, &[Arg::new(&out), Arg::new(&map)]).unwrap_err();
    assert_eq!(
        error,
        "kernel copy_to_both_0: a grid of [3, 1, 1], whose first number is not a multiple of the 2 blocks of a cluster"
    );
}

#[test]
fn clusters_of_more_than_four_blocks_are_refused() {
    let mut gpu = Gpu::new(EmulatorOptions::default());
    let error = gpu.launch("too_large_clusters", Launch::new(8, 32), &[Arg::new(&0u64)]).unwrap_err();
    assert_eq!(error, "kernel too_large_clusters: clusters of 8 blocks, at most 4 are emulated");
}

#[test]
fn flags_order_blocks_and_clusters() {
    const CLUSTERS: usize = 6;
    let at_once = EmulatorOptions { threads: 2, ..EmulatorOptions::default() };
    for options in all_options().into_iter().chain([at_once]) {
        let mut gpu = Gpu::new(options);
        let memory = [CLUSTERS, CLUSTERS, 2 * CLUSTERS, 1].map(|len| pointer(gpu.memory(&vec![0u32; len])));
        let launch = Launch::new(2 * CLUSTERS, 32);
        let result = gpu.launch("flags_in_clusters", launch, &memory.each_ref().map(Arg::new));
        assert_eq!(result, Ok(()), "{options:?}");
        let want: Vec<u32> = (1..=CLUSTERS as u32).collect();
        assert_eq!(gpu.read::<u32>(memory[0].address(), CLUSTERS), want, "{options:?}");
    }
}

/// Each block of a cluster reads its box of A and half of B in every stage: 4 boxes per stage and
/// cluster, instead of the 6 of blocks that read all of B. An atomic reads one sector.
#[test]
fn a_copy_to_several_blocks_counts_once() {
    let mut gpu = Gpu::new(EmulatorOptions { count: true, ..EmulatorOptions::default() });
    run_on(&mut gpu, "cluster").unwrap();
    let counts = gpu.0.take_counts()["cluster"];
    let (box_sectors, stages) = (64 * 128 / 32, (TILES * K / 64) as u64);
    let takes = TILES as u64 + 2;
    assert_eq!(counts.sectors_read - takes, stages * 4 * box_sectors);
}
