//! Counts of kernels that can be counted by hand: requests and sectors of 32 bytes for global
//! memory, wavefronts for shared memory, FLOPs of tensor cores.

use crate::device::*;
use cuda_emulator::{Arg, Counts, EmulatorOptions, Launch, TensorMap, TiledMatrix};
use warpsmith::device::cuda::kernel::Ptr;

enum Value {
    Memory(Ptr<f32>),
    Int(i32),
    Map(TensorMap),
}

impl Value {
    /// Allocates words of 4 bytes, all zero.
    fn words(gpu: &mut Gpu, len: usize) -> Value {
        Value::Memory(pointer(gpu.memory(&vec![0u32; len])))
    }

    fn arg(&self) -> Arg {
        match self {
            Value::Memory(address) => Arg::new(address),
            Value::Int(number) => Arg::new(number),
            Value::Map(map) => Arg::new(map),
        }
    }
}

/// Runs a kernel in every mode. Its first parameter is an output of `len` words; `more` makes the
/// others. The counts are the same in all modes, and counting does not change the output.
fn counts(kernel: &'static str, launch: Launch, len: usize, more: impl Fn(&mut Gpu) -> Vec<Value>) -> Counts {
    let mut all = Vec::new();
    for options in all_options() {
        let outputs = [false, true].map(|count| {
            let mut gpu = Gpu::new(EmulatorOptions { count, threads: 2, ..options });
            let out = pointer(gpu.memory(&vec![0u32; len]));
            let more = more(&mut gpu);
            let args: Vec<Arg> = [Arg::new(&out)].into_iter().chain(more.iter().map(Value::arg)).collect();
            gpu.launch(kernel, launch, &args).unwrap();
            let counts = gpu.0.take_counts();
            assert_eq!(counts.len(), usize::from(count));
            assert!(gpu.0.take_counts().is_empty(), "taken already");
            all.extend(counts.get(kernel).copied());
            gpu.read::<u32>(out.address(), len)
        });
        assert_eq!(outputs[0], outputs[1], "{kernel} {options:?}");
        assert_eq!(all.last(), all.first(), "{kernel} {options:?}");
    }
    all[0]
}

/// The counts of one launch: requests, sectors read and written, and how many of those are
/// distinct.
fn global(requests: u64, sectors: [u64; 2], different: [u64; 2]) -> Counts {
    Counts {
        launches: 1,
        global_requests: requests,
        sectors_read: sectors[0],
        sectors_written: sectors[1],
        bytes_read: different[0] * 32,
        bytes_written: different[1] * 32,
        ..Counts::default()
    }
}

fn with_wavefronts(counts: Counts, wavefronts: u64, without_conflicts: u64) -> Counts {
    Counts { shared_wavefronts: wavefronts, shared_wavefronts_without_conflicts: without_conflicts, ..counts }
}

/// 200 words by 8 warps: six copy 128 bytes, which is four sectors, one copies 32 bytes, and the
/// last has nothing to do.
#[test]
fn a_copy_of_words_has_four_sectors_a_request() {
    let found =
        counts("copy_words", Launch::new(4, 64), 200, |gpu| vec![Value::words(gpu, 200), Value::Int(200)]);
    assert_eq!(found, global(7 + 7, [25, 25], [25, 25]));
}

/// Two warps, which write four sectors each.
#[test]
fn strides_and_offsets_cost_sectors() {
    let gather = |stride: i32, first: i32| {
        counts("gather", Launch::new(1, 64), 64, |gpu| {
            vec![Value::words(gpu, 64 * 8), Value::Int(stride), Value::Int(first)]
        })
    };
    assert_eq!(gather(1, 0), global(4, [8, 8], [8, 8]));
    // Twice as far apart: half of each sector is read for nothing.
    assert_eq!(gather(2, 0), global(4, [16, 8], [16, 8]));
    // One sector per lane.
    assert_eq!(gather(8, 0), global(4, [64, 8], [64, 8]));
    // Bytes 4 to 131, then 132 to 259: five sectors each, one of them shared.
    assert_eq!(gather(1, 1), global(4, [10, 8], [9, 8]));
    // One word for all lanes.
    assert_eq!(gather(0, 5), global(4, [2, 8], [1, 8]));
}

/// 16 bytes per lane: 512 per warp, which is 16 sectors, in one request.
#[test]
fn a_copy_of_packs_has_sixteen_sectors_a_request() {
    let found = counts("copy_packs", Launch::new(2, 32), 256, |gpu| vec![Value::words(gpu, 256)]);
    assert_eq!(found, global(4, [32, 32], [32, 32]));
}

/// Two warps go through 256 words in four iterations each. Every iteration is a request, although
/// each lane runs through all of its own alone.
#[test]
fn iterations_of_a_loop_are_requests_of_their_own() {
    let found =
        counts("copy_in_turns", Launch::new(1, 64), 256, |gpu| vec![Value::words(gpu, 256), Value::Int(256)]);
    assert_eq!(found, global(2 * 4 * 2, [32, 32], [32, 32]));
}

/// All lanes read a row of 128 bytes, the even ones every other word of the next, then all the
/// first one again. Lanes that had less to do before they met do not fall behind.
#[test]
fn requests_end_where_lanes_meet() {
    let found = counts("parting", Launch::new(1, 32), 32, |gpu| vec![Value::words(gpu, 64)]);
    assert_eq!(found, global(3 + 1, [4 + 4 + 4, 4], [8, 4]));
}

/// Reads and writes, in one request. The loop that stands for an atomic addition of f32 is one,
/// too.
#[test]
fn atomics_read_and_write() {
    let found = counts("add_unsigned", Launch::new(2, 32), 64, |_| Vec::new());
    assert_eq!(found, global(2, [8, 8], [8, 8]));
    let found = counts("add_float", Launch::new(1, 32), 4, |_| Vec::new());
    assert_eq!(found, global(1, [1, 1], [1, 1]));
}

/// Each word is written and read once; 128 bytes of output are a request of four sectors.
#[test]
fn words_of_the_same_bank_take_wavefronts() {
    for (stride, ways) in [(1, 1), (2, 2), (3, 1), (4, 4), (16, 16), (32, 32)] {
        let found = counts("bank_words", Launch::new(1, 32), 32, |_| vec![Value::Int(stride)]);
        assert_eq!(found, with_wavefronts(global(1, [0, 4], [0, 4]), 2 * ways, 2), "stride {stride}");
    }
}

/// Half a warp at a time writes 16 pairs, every `stride`-th: 32 words, of which `ways` share a
/// bank. Reading the one pair that all read then takes a wavefront per half.
#[test]
fn pairs_go_by_half_warps() {
    for (stride, ways) in [(1, 1), (2, 2), (16, 16)] {
        let found = counts("bank_pairs", Launch::new(1, 32), 64, |_| vec![Value::Int(stride)]);
        assert_eq!(found, with_wavefronts(global(1, [0, 8], [0, 8]), 2 * ways + 2, 2 + 2), "stride {stride}");
    }
}

/// A quarter of a warp at a time: eight packs, every `stride`-th, are 32 words.
#[test]
fn packs_go_by_quarter_warps() {
    for (stride, ways) in [(1, 1), (2, 2), (8, 8)] {
        let launch = Launch::new(1, 32).shared(32 * 16 * stride as usize);
        let found = counts("bank_packs", launch, 128, |_| vec![Value::Int(stride)]);
        assert_eq!(
            found,
            with_wavefronts(global(1, [0, 16], [0, 16]), 4 * ways + 4, 4 + 4),
            "stride {stride}"
        );
    }
}

/// 32 rows are written and 32 columns read. All words of a column are in one bank, or each in
/// another.
#[test]
fn padding_ends_the_conflicts_of_a_transpose() {
    let transpose = |kernel| counts(kernel, Launch::new(1, 256), 1024, |gpu| vec![Value::words(gpu, 1024)]);
    let rows = global(32 + 32, [128, 128], [128, 128]);
    assert_eq!(transpose("transpose_plain"), with_wavefronts(rows, 32 + 32 * 32, 64));
    assert_eq!(transpose("transpose_padded"), with_wavefronts(rows, 64, 64));
}

/// cp.async is a request for the 512 bytes that it reads, and stores to shared memory by quarter
/// warps; ldmatrix reads four matrices of eight rows. Consecutive rows fill the banks; rows 128
/// bytes apart all start in the same one. The output is four requests of four sectors.
#[test]
fn asynchronous_copies_and_matrices_have_conflicts_too() {
    let load = |pitch: i32, bytes: i32| {
        let launch = Launch::new(1, 32).shared(32 * pitch as usize);
        counts("load_matrices", launch, 128, |gpu| {
            vec![Value::words(gpu, 128), Value::Int(pitch), Value::Int(bytes)]
        })
    };
    let copied = global(1 + 4, [16, 16], [16, 16]);
    assert_eq!(load(16, 16), with_wavefronts(copied, 4 + 4, 8));
    assert_eq!(load(128, 16), with_wavefronts(copied, 4 * 8 + 4 * 8, 8));
    // 144 bytes: rows are four banks apart.
    assert_eq!(load(144, 16), with_wavefronts(copied, 4 + 4, 8));
    // Zeros are not read: half of the lanes read nothing.
    assert_eq!(load(16, 0), with_wavefronts(global(1 + 4, [8, 16], [8, 16]), 4 + 4, 8));
}

#[test]
fn tensor_cores_multiply_and_add() {
    // Two warps, five MMAs of 16 x 8 x 16 each.
    let found = counts("bench_mma", Launch::new(1, 64), 64, |_| vec![Value::Int(5)]);
    assert_eq!(found.tensor_flops, 2 * 5 * 2 * 16 * 8 * 16);
    let operands = |gpu: &mut Gpu| vec![Value::words(gpu, 128), Value::words(gpu, 64)];
    let found = counts("probe_mma_tf32", Launch::new(1, 32), 128, operands);
    assert_eq!(found.tensor_flops, 2 * 16 * 8 * 8);
    // A warpgroup, 64 x 128 with a sum of 64.
    let operands = |gpu: &mut Gpu| {
        vec![Value::words(gpu, 64 * 32), Value::words(gpu, 128 * 32), Value::Int(0), Value::Int(0)]
    };
    let found = counts("wgmma_bf16_128", Launch::new(1, 128).shared(192 * 128), 128 * 64, operands);
    assert_eq!(found.tensor_flops, 2 * 64 * 128 * 64);
}

/// Boxes of 64 columns of a matrix with rows of 272 bytes: odd rows start in the middle of a
/// sector. Each box is one request, and every row of it takes a wavefront in shared memory, rows of
/// zeros too. It is read by half rows and written by 64 bytes.
#[test]
fn copies_of_boxes_read_what_is_inside_the_matrix() {
    for (x, y, box_rows, sectors) in [
        // Entirely inside: 32 even rows of four sectors, 32 odd ones of five.
        (0, 0, 64, 32 * 4 + 32 * 5),
        // At a corner: 16 bytes of each of the last four rows.
        (128, 96, 8, 4),
        // At the first corner: 112 bytes of 13 rows, in four sectors whether they start in the
        // middle of one or not.
        (-8, -3, 16, 13 * 4),
        (136, 0, 8, 0),
    ] {
        let launch = Launch::new(1, 128).shared(box_rows * 128 + 8);
        let found = counts("copy_box", launch, box_rows * 32, |gpu| {
            let address = gpu.memory(&[0u16; 100 * 136]);
            let matrix = TiledMatrix { address, rows: 100, columns: 136, box_rows, box_columns: 64 };
            let map = gpu.0.tensor_map(&matrix).unwrap();
            vec![Value::Map(map), Value::Int(x), Value::Int(y), Value::Int(box_rows as i32)]
        });
        let rows = box_rows as u64;
        let want = global(1 + 2 * rows, [sectors, 4 * rows], [sectors, 4 * rows]);
        assert_eq!(found, with_wavefronts(want, rows + 2 * rows, 3 * rows), "({x}, {y})");
    }
}

/// Counts are sums over launches, by kernel, until they are taken; a launch that fails adds
/// nothing.
#[test]
fn counts_are_kept_by_kernel() {
    let mut gpu = Gpu::new(EmulatorOptions { count: true, ..EmulatorOptions::default() });
    let (out, inp) = (pointer(gpu.memory(&[0f32; 64])), pointer(gpu.memory(&[0f32; 64])));
    let copy = |n: &i32| [Arg::new(&out), Arg::new(&inp), Arg::new(n)];
    for (threads, n) in [(64, 64), (32, 8)] {
        gpu.launch("copy_words", Launch::new(1, threads), &copy(&n)).unwrap();
    }
    gpu.launch("copy_packs", Launch::new(1, 16), &copy(&0)[..2]).unwrap();
    gpu.launch("copy_words", Launch::new(1, 2048), &copy(&0)).unwrap_err();
    let found = gpu.0.take_counts();
    let want = Counts { launches: 2, ..global(4 + 2, [9, 9], [9, 9]) };
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), ["copy_packs", "copy_words"]);
    assert_eq!((found["copy_words"], found["copy_packs"]), (want, global(2, [8, 8], [8, 8])));
}
