//! The work that warpsmith's kernels ask of memory and tensor cores, where it is known beforehand.

use std::collections::BTreeMap;
use warpsmith::device::compare::adamw_step;
use warpsmith::device::cuda::driver::Counts;
use warpsmith::device::cuda::emulated::{EmulatorOptions, open};
use warpsmith::device::cuda::{Cuda, CudaOptions, MatmulChoice};
use warpsmith::ops::*;
use warpsmith::tensor::{Dtype, MemoryPlan, Tensor};

/// The tensors of an operation, all zero.
struct Tensors(MemoryPlan, Dtype);

impl Tensors {
    fn x(&mut self, len: usize) -> Tensor {
        self.0.add("test", "x", self.1, len)
    }

    fn f32(&mut self, len: usize) -> Tensor {
        self.0.add("test", "f32", Dtype::F32, len)
    }
}

type Work = Box<dyn FnOnce(&mut Cuda) -> anyhow::Result<()>>;

fn counts(matmul: MatmulChoice, work: impl FnOnce(&mut Tensors) -> Work) -> BTreeMap<&'static str, Counts> {
    counts_in((Dtype::Bf16, false), matmul, work)
}

/// The counts of an operation in a type, in f32 with or without TF32.
fn counts_in(
    (dtype, tf32): (Dtype, bool),
    matmul: MatmulChoice,
    work: impl FnOnce(&mut Tensors) -> Work,
) -> BTreeMap<&'static str, Counts> {
    let options = CudaOptions { dtype, tf32, gelu_fusion: 2, deterministic: true, matmul, graphs: false };
    let driver = open(dtype, EmulatorOptions { count: true, ..EmulatorOptions::default() }).unwrap();
    let mut dev = Cuda::new(driver, options);
    let mut tensors = Tensors(MemoryPlan::new(), dtype);
    let work = work(&mut tensors);
    let limits =
        Limits { rows: 512, logits_rows: 512, T: 512, C: 768, NH: 12, V: 1024, Vp: 1024, norm_pieces: 1 };
    plan_scratch(&dev, &[limits], &mut tensors.0).unwrap();
    dev.allocate(&tensors.0).unwrap();
    work(&mut dev).unwrap();
    dev.take_counts()
}

/// A warp has a row of 96 packs: three requests of 16 sectors each to read it, its weights and its
/// biases, three to write it, and one each for its mean and its rstd. Each byte of memory moves
/// once.
#[test]
fn layernorm_reads_and_writes_whole_sectors_once() {
    let (N, C) = (8, 768);
    let found = counts(MatmulChoice::Own, |t| {
        let args = LayernormForward {
            out: t.x(N * C),
            mean: t.f32(N),
            rstd: t.f32(N),
            inp: t.x(N * C),
            weight: t.x(C),
            bias: t.x(C),
            N,
            C,
        };
        Box::new(move |dev| dev.layernorm_forward(args))
    });
    let want = Counts {
        launches: 1,
        global_requests: 8 * (4 * 3 + 2),
        sectors_read: 8 * 9 * 16,
        sectors_written: 8 * (3 * 16 + 2),
        bytes_read: 2 * 768 * (8 + 2),
        // The means of eight rows are one sector.
        bytes_written: 2 * 768 * 8 + 2 * 32,
        ..Counts::default()
    };
    assert_eq!(found["layernorm_forward"], want);
    assert_eq!(found.len(), 1);
}

/// 28 bytes per parameter, and every sector once: each lane of a warp has four adjacent numbers.
#[test]
fn adamw_moves_28_bytes_a_parameter() {
    const N: usize = 2048;
    let found = counts(MatmulChoice::Own, |t| {
        let (params, grads) = (t.x(N), t.x(N));
        let [master, m, v] = [0; 3].map(|_| t.f32(N));
        Box::new(move |dev| dev.adamw(AdamW { master: Some(master), ..adamw_step(params, m, v, grads) }))
    });
    let found = found["adamw"];
    assert_eq!((found.bytes_read, found.bytes_written), (14 * 2048, 14 * 2048));
    assert_eq!((found.sectors_read, found.sectors_written), (14 * 2048 / 32, 14 * 2048 / 32));
}

fn forward(matmul: MatmulChoice, N: usize, C: usize, OC: usize) -> Counts {
    let found = counts(matmul, |t| {
        let (out, inp, weight) = (t.x(N * OC), t.x(N * C), t.x(OC * C));
        let args = MatmulForward { out, inp, weight, epilogue: Epilogue::None, N, C, OC };
        Box::new(move |dev| dev.matmul_forward(args))
    });
    assert_eq!(found.len(), 1, "{found:?}");
    *found.values().next().unwrap()
}

const MMA_TILE: MatmulChoice = MatmulChoice::Tile { M: 128, N: 128, splits: 1 };

/// One tile of 128 x 128 with a sum of 64, in two stages. A stage is 2 x 512 chunks of 16 bytes,
/// which 4 warps copy in 32 requests of 16 sectors and 4 wavefronts each. Each warp then has two
/// steps of eight ldmatrix, four wavefronts each, for its 64 x 64.
///
/// For the output, a warp writes four slabs of 16 rows to shared memory, each by 16 stores of pairs
/// with two wavefronts each, and reads them by eight packs per lane, with four wavefronts each.
/// Eight lanes store a row of 64 numbers: four requests of 16 sectors per slab.
#[test]
fn a_tile_moves_what_the_kernel_describes() {
    let (stages, warps, slabs) = (2, 4, 4);
    let copies = stages * 32;
    let matrices = stages * warps * 2 * 8;
    let (pairs, packs, stores) = (warps * slabs * 16, warps * slabs * 8, warps * slabs * 4);
    let want = Counts {
        launches: 1,
        global_requests: copies + stores,
        sectors_read: copies * 16,
        sectors_written: stores * 16,
        bytes_read: 2 * (128 * 64 + 128 * 64),
        bytes_written: 2 * 128 * 128,
        shared_wavefronts: copies * 4 + matrices * 4 + pairs * 2 + packs * 4,
        shared_wavefronts_without_conflicts: copies * 4 + matrices * 4 + pairs * 2 + packs * 4,
        tensor_flops: 2 * 128 * 128 * 64,
    };
    assert_eq!(forward(MMA_TILE, 128, 64, 128), want);
}

/// Copies, fragments and the way out through shared memory, with and without another operand and to
/// the sums of a split: the banks are never asked for two words at once.
#[test]
fn portable_matmuls_have_no_bank_conflicts() {
    let (N, C, OC) = (128, 256, 256);
    let large = [(128, 256), (128, 128), (64, 64)];
    for (kind, tiles) in
        [((Dtype::Bf16, false), &large[..]), ((Dtype::F32, true), &large), ((Dtype::F32, false), &large[1..])]
    {
        for (&(M, tile_n), splits) in tiles.iter().flat_map(|tile| [(tile, 1), (tile, 2)]) {
            let found = counts_in(kind, MatmulChoice::Tile { M, N: tile_n, splits }, |t| {
                let [inp, dinp, gradient] = [0; 3].map(|_| t.x(N * C));
                let [out, dout, residual] = [0; 3].map(|_| t.x(N * OC));
                let ([weight, dweight], [bias, dbias]) =
                    ([0; 2].map(|_| t.x(C * OC)), [0; 2].map(|_| t.x(OC)));
                let epilogue = Epilogue::BiasResidual { bias, residual };
                let forward = MatmulForward { out, inp, weight, epilogue, N, C, OC };
                let backward = MatmulBackward {
                    dinp,
                    dweight: Some(dweight),
                    overwrite_dweight: false,
                    dbias: Some(dbias),
                    dout,
                    inp,
                    weight,
                    gelu_gradient: Some(gradient),
                    N,
                    C,
                    OC,
                };
                Box::new(move |dev| {
                    dev.matmul_forward(forward)?;
                    dev.matmul_backward(backward)
                })
            });
            assert!(found.len() >= 3, "{found:?}");
            for (kernel, counts) in found {
                let [all, least] = [counts.shared_wavefronts, counts.shared_wavefronts_without_conflicts];
                println!("{kernel} {kind:?} in {splits} splits: {all} wavefronts, {least} without conflicts");
                assert_eq!(all, least, "{kernel} {kind:?}");
            }
        }
    }
}

const HOPPER: MatmulChoice = MatmulChoice::Hopper { M: 128, runs: None };

/// Numbers that clusters take from the counter: the runs, and one more each.
fn taken(tiles: usize) -> u64 {
    // The emulated device has room for two clusters.
    (tiles + tiles.min(2)) as u64
}

/// A tile of Hopper's kernel, 256 x 256 in a cluster of two blocks, with a sum of 64, which is one
/// stage. Each row of a box takes a wavefront to write in each block, and B goes to both. Two
/// warpgroups have four wgmma each, which read 2 KiB of A and 8 KiB of B: 80 wavefronts for the 128
/// clocks that they take. Before that a block writes 1 KiB of ones. The position of the tile and
/// the end of the work, 32 bytes each, are written by one lane and read by eight warps, a quarter
/// warp per wavefront; the second block reads two run numbers. Each of eight warps leaves 16 rows
/// by 16 stmatrix of four matrices, which 4 boxes take away.
#[test]
fn a_tile_of_hopper_takes_80_wavefronts_in_128_clocks() {
    let found = forward(HOPPER, 256, 64, 256);
    assert_eq!(found.tensor_flops, 2 * 256 * 256 * 64);
    let block = (128 + 256) + 2 * 4 * 80 + 8 + 2 * (2 + 8 * 8) + 8 * (16 * 4 + 4 * 16);
    assert_eq!(found.shared_wavefronts, 2 * block + 2);
    assert_eq!(found.shared_wavefronts_without_conflicts, found.shared_wavefronts);
    // A stage of a block is 48 KiB, of which it reads 32.
    assert_eq!(found.sectors_read, 2 * (32 << 10) / 32 + taken(1));
    assert_eq!(found.sectors_written, 2 * 256 * 256 / 32 + taken(1));
    // In each block two boxes, and four for each warp.
    assert_eq!(found.global_requests, 2 * (2 + 8 * 4) + taken(1));
}

/// Tensor cores multiply full tiles. Operands that several tiles read come from the L2 cache, in
/// full sectors.
#[test]
fn matmuls_read_operands_once_for_each_tile() {
    for (N, C, OC) in [(256, 64, 512), (200, 128, 272)] {
        let found = forward(MMA_TILE, N, C, OC);
        let tiles = [N.div_ceil(128), OC.div_ceil(128)];
        assert_eq!(found.tensor_flops, (2 * tiles[0] * tiles[1] * 128 * 128 * C) as u64);
        assert_eq!(found.sectors_read, (2 * (N * C * tiles[1] + OC * C * tiles[0]) / 32) as u64);
        assert_eq!(found.sectors_written, (2 * N * OC / 32) as u64);
        assert_eq!(found.bytes_read, (2 * (N * C + OC * C)) as u64);
        assert_eq!(found.bytes_written, (2 * N * OC) as u64);
    }
}

/// The same for a cluster. The last tile of a row is as wide as it must be, in steps of 64, 128 and
/// 256.
#[test]
fn clusters_read_operands_once_for_each_tile() {
    for (N, C, OC, columns) in [(256, 64, 512, 512), (200, 128, 272, 256 + 64), (520, 64, 384, 256 + 128)] {
        let found = forward(HOPPER, N, C, OC);
        let tiles = [N.div_ceil(256), OC.div_ceil(256)];
        let taken = taken(tiles[0] * tiles[1]);
        assert_eq!(found.tensor_flops, (2 * tiles[0] * 256 * columns * C) as u64, "{columns}");
        assert_eq!(found.sectors_read, (2 * (N * C * tiles[1] + OC * C * tiles[0]) / 32) as u64 + taken);
        assert_eq!(found.sectors_written, (2 * N * OC / 32) as u64 + taken);
        // The counter's sector counts once.
        assert_eq!(found.bytes_read, (2 * (N * C + OC * C)) as u64 + 32);
        assert_eq!(found.bytes_written, (2 * N * OC) as u64 + 32);
    }
}

/// A head is one tile of 128 queries and 128 keys. The first 64 queries have scores with the first
/// 64 keys alone, the others with all. Sums of values are over 128 keys for both, with weights of
/// zero.
#[test]
fn attention_skips_tiles_above_the_diagonal() {
    let dims = AttentionDims { B: 1, T: 128, NH: 2, HS: 64 };
    let (rows, C) = (128, 128);
    let found = counts(MatmulChoice::Own, |t| {
        let (out, lse, qkv) = (t.x(rows * C), t.f32(rows * dims.NH), t.x(rows * 3 * C));
        Box::new(move |dev| {
            dev.attention_forward(AttentionForward { out, lse, qkv, positions: None, dropout: None, dims })
        })
    });
    let found = found.values().next().unwrap();
    assert_eq!(found.tensor_flops, 2 * ((1 + 2) + (2 + 2)) * (2 * 64 * 64 * 64));
    // The counter's sector counts once.
    assert_eq!(found.bytes_read, 2 * 128 * 3 * 128 + 32);
    assert_eq!(found.bytes_written, 2 * 128 * 128 + 4 * 2 * 128 + 32);
    // One block per head reads its queries, keys and values once. Each takes two numbers.
    assert_eq!(found.sectors_read, 2 * 128 * 3 * 128 / 32 + 4);
}

/// Two tiles of a head are three pairs of 128 keys and 128 queries, with five products each; the
/// one block that finds work ends with scores that nobody needs. Everything is read and written
/// once, without bank conflicts. The second tile of queries leaves sums and deltas to the first
/// keys.
#[test]
fn attention_backward_on_hopper_adds_in_l2_and_moves_the_rest_once() {
    let dims = AttentionDims { B: 1, T: 256, NH: 1, HS: 64 };
    let (rows, C) = (256, 64);
    let found = counts(MatmulChoice::Own, |t| {
        let (dout, out, lse) = (t.x(rows * C), t.x(rows * C), t.f32(rows));
        let [dqkv, qkv] = [0; 2].map(|_| t.x(rows * 3 * C));
        let (positions, dropout) = (None, None);
        let args = AttentionBackward { dqkv, dout, out, lse, qkv, positions, dropout, dims };
        Box::new(move |dev| dev.attention_backward(args))
    });
    assert_eq!(found.len(), 1);
    let found = found["attention_hopper_backward_hs64"];
    assert_eq!(found.tensor_flops, (3 * 5 + 1) * 2 * 128 * 128 * 64);
    assert_eq!(found.shared_wavefronts, found.shared_wavefronts_without_conflicts);
    let (sums, deltas, signals) = (4 * 128 * 64, 4 * 128, 2 * 32);
    assert_eq!(found.bytes_read, 2 * 256 * 64 * (3 + 2) + 4 * 256 + sums + deltas + signals);
    assert_eq!(found.bytes_written, 2 * 256 * 64 * 3 + sums + 2 * deltas + signals);
}
