//! MMAs of a warpgroup, from an image of shared memory that is made here: elements in rows of 128
//! bytes, in which the 16-byte chunk c of row r is at c ^ (r % 8), by "Shared Memory Matrix Layout"
//! of the PTX ISA. Whether TMA makes the same image is tested by another probe.

use crate::case::{Case, Format};
use crate::matrices::{Kind, Numbers, dot, products, random_words};
use crate::{Device, Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};

const FILE: &str = "probes_hopper.cu";
const M: usize = 64;
const K: usize = 16;
/// The elements of K in rows of 128 bytes; an MMA takes 16 of them.
const STORED_K: usize = 64;
const ROW_BYTES: usize = 128;

/// Bits 0 to 13 are the address; 16 to 29 the distance from 64 elements across to the next 64; 32
/// to 45 the distance from eight rows to the next, 1024 bytes; all in units of 16 bytes. Bits 62
/// and 63 are 1, the swizzle of 128 bytes.
#[test]
fn descriptors() {
    let addresses: Vec<u32> = (0..256).map(|i| i * 911 % 227 * 1024 + i % 8 * 16).collect();
    let block_bytes: Vec<u32> = (0..256).map(|i| i * 16 + i % 3 * 8192).collect();
    let expected = addresses.iter().zip(&block_bytes).flat_map(|(&address, &block)| {
        let eight_rows = 1024 / 16;
        [(address / 16) | (block / 16) << 16, eight_rows | 1 << 30]
    });
    let expected: Vec<u32> = expected.collect();
    probe("descriptors", Needs::Any, |device| {
        let out = device.words(&[0xdead_beef; 512]);
        let inputs = [device.words(&addresses), device.words(&block_bytes)];
        let args = [Arg::new(&out), Arg::new(&inputs[0]), Arg::new(&inputs[1]), Arg::new(&256i32)];
        device.launch((FILE, "descriptors"), Launch::new(1, 256), &args);
        vec![Case::exact("of places", Format::Bits, device.read(out, 512), expected.clone())]
    });
}

/// Writes an operand of `count` rows (columns of B) to the image as 16-bit elements from `start`
/// on. `at(mn, k)` returns their bits.
fn place(image: &mut [u16], start: usize, count: usize, across: bool, at: impl Fn(usize, usize) -> u32) {
    for mn in 0..count {
        for k in 0..STORED_K {
            // Across K there are panels of 64 elements, each with a row for every k.
            let (row, column) = if across { (mn / 64 * STORED_K + k, mn % 64) } else { (mn, k) };
            let chunk = (column / 8) ^ (row % 8);
            image[start / 2 + row * 64 + chunk * 8 + column % 8] = at(mn, k) as u16;
        }
    }
}

/// Row and column of sum `v` of thread `t`, by CUTLASS's layout of 64 x N x 16,
/// `((4,8,4),(2,2,N/8)):((128,1,16),(64,8,512))` into a matrix whose rows are contiguous.
fn cute_place(t: usize, v: usize) -> (usize, usize) {
    let thread = t % 4 * 128 + t / 4 % 8 + t / 32 * 16;
    let value = v % 2 * 64 + v / 2 % 2 * 8 + v / 4 * 512;
    ((thread + value) % 64, (thread + value) / 64)
}

struct Product {
    kernel: &'static str,
    numbers: Numbers,
    N: usize,
    kind: Kind,
    /// Whether the rows of A, and of B, run across K.
    across: [bool; 2],
    /// The 16 of the stored K that are used, by number.
    step: usize,
    accumulate: bool,
}

impl Product {
    fn name(&self) -> String {
        let Self { N, kind, across, step, accumulate, .. } = self;
        let across = ["K, K", "M, K", "K, N", "M, N"][usize::from(across[0]) + 2 * usize::from(across[1])];
        let sum = if *accumulate { "added" } else { "fresh" };
        format!("N {N}, rows along {across}, step {step}, {}, {sum}", kind.name())
    }

    fn case(&self, device: &mut Device) -> Case {
        let Self { kernel, numbers, N, kind, across, step, accumulate } = *self;
        let a = kind.operand(numbers, 0, M * STORED_K);
        let b = kind.operand(numbers, 1, N * STORED_K);
        let b_start = M * ROW_BYTES;
        let b_bytes = if across[1] { N.div_ceil(64) * STORED_K * ROW_BYTES } else { N * ROW_BYTES };
        let mut image = vec![0x7fffu16; (b_start + b_bytes) / 2];
        place(&mut image, 0, M, across[0], |m, k| a[m * STORED_K + k]);
        place(&mut image, b_start, N, across[1], |n, k| b[n * STORED_K + k]);
        // An initial sum that is not added must not matter: NaN.
        let sums = N / 2;
        let before = if accumulate { kind.sums(numbers, 128 * sums) } else { vec![u32::MAX; 128 * sums] };

        let registers = device.words(&before);
        let on_device = device.words(bytemuck::cast_slice(&image));
        let offset = |across: bool| (step * if across { K * ROW_BYTES } else { 2 * K }) as i32;
        let panel = |across: bool| if across { (STORED_K * ROW_BYTES) as i32 } else { 16 };
        let bytes = (2 * image.len()) as i32;
        let numbers_of = [
            bytes,
            offset(across[0]),
            panel(across[0]),
            b_start as i32 + offset(across[1]),
            panel(across[1]),
            i32::from(across[0]) + 2 * i32::from(across[1]),
            i32::from(accumulate),
        ];
        let mut args = vec![Arg::new(&registers), Arg::new(&on_device)];
        args.extend(numbers_of.iter().map(Arg::new));
        device.launch((FILE, kernel), Launch::new(1, 128).shared(bytes as usize), &args);

        let expected = (0..128 * sums).map(|i| {
            let (m, n) = cute_place(i / sums, i % sums);
            let term = |k: usize| {
                let k = step * K + k;
                (numbers.decode(a[m * STORED_K + k]), numbers.decode(b[n * STORED_K + k]))
            };
            let start = if accumulate { f64::from(f32::from_bits(before[i])) } else { 0.0 };
            dot(start, (0..K).map(term))
        });
        products(&self.name(), kind, K, device.read(registers, 128 * sums), expected.collect())
    }
}

/// Every shape and order of the operands, with and without an initial sum. N = 8 with rows across K
/// does not exist: such rows have 64 elements of N.
fn cases(device: &mut Device, numbers: Numbers, kernels: &[(&'static str, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(kernel, N) in kernels {
        for (number, across) in
            [[false, false], [true, false], [false, true], [true, true]].into_iter().enumerate()
        {
            if N < 64 && across[1] {
                continue;
            }
            let mut add = |kind, step, accumulate| {
                let product = Product { kernel, numbers, N, kind, across, step, accumulate };
                cases.push(product.case(device));
            };
            add(Kind::Integers, number, false);
            add(Kind::Integers, 3 - number, true);
            add(Kind::Random, number, true);
            if N < 256 {
                add(Kind::Subnormal, 0, true);
                add(Kind::Special, 1, true);
            }
        }
    }
    cases
}

#[test]
fn bf16() {
    let kernels = [("wgmma_bf16_8", 8), ("wgmma_bf16_128", 128), ("wgmma_bf16_256", 256)];
    probe("wgmma_bf16", Needs::Hopper, |device| cases(device, Numbers::Bf16, &kernels));
}

#[test]
fn f16() {
    let kernels = [("wgmma_f16_8", 8), ("wgmma_f16_128", 128), ("wgmma_f16_256", 256)];
    probe("wgmma_f16", Needs::Hopper, |device| cases(device, Numbers::F16, &kernels));
}

/// N = 64, in golden files of its own.
#[test]
fn columns_64() {
    probe("wgmma_bf16_64", Needs::Hopper, |device| cases(device, Numbers::Bf16, &[("wgmma_bf16_64", 64)]));
    probe("wgmma_f16_64", Needs::Hopper, |device| cases(device, Numbers::F16, &[("wgmma_f16_64", 64)]));
}

/// An MMA with N = 64 and its left operand in registers.
struct RsProduct {
    kernel: &'static str,
    numbers: Numbers,
    kind: Kind,
    /// Whether the rows of B run across K.
    across: bool,
    accumulate: bool,
}

impl RsProduct {
    const N: usize = 64;

    /// Row and first column of a thread's register `i` of A, which has two elements.
    fn a_place(t: usize, i: usize) -> (usize, usize) {
        (t / 32 * 16 + t % 32 / 4 + i % 2 * 8, t % 4 * 2 + i / 2 * 8)
    }

    fn case(&self, device: &mut Device) -> Case {
        let Self { kernel, numbers, kind, across, accumulate } = *self;
        let a = kind.operand(numbers, 0, M * K);
        let b = kind.operand(numbers, 1, Self::N * STORED_K);
        let a_registers: Vec<u32> = (0..4 * M * 2)
            .map(|index| {
                let (row, column) = Self::a_place(index / 4, index % 4);
                a[row * K + column] | a[row * K + column + 1] << 16
            })
            .collect();
        let mut image = vec![0x7fffu16; Self::N * STORED_K];
        place(&mut image, 0, Self::N, across, |n, k| b[n * STORED_K + k]);
        let sums = Self::N / 2;
        let before = if accumulate { kind.sums(numbers, 128 * sums) } else { vec![u32::MAX; 128 * sums] };
        let registers = device.words(&before);
        let (a_device, on_device) = (device.words(&a_registers), device.words(bytemuck::cast_slice(&image)));
        let bytes = (2 * image.len()) as i32;
        let panel = if across { (STORED_K * ROW_BYTES) as i32 } else { 16 };
        let numbers_of = [bytes, 0, panel, i32::from(across), i32::from(accumulate)];
        let mut args = vec![Arg::new(&registers), Arg::new(&a_device), Arg::new(&on_device)];
        args.extend(numbers_of.iter().map(Arg::new));
        device.launch((FILE, kernel), Launch::new(1, 128).shared(bytes as usize), &args);
        let expected = (0..128 * sums).map(|i| {
            let (m, n) = cute_place(i / sums, i % sums);
            let term = |k: usize| (numbers.decode(a[m * K + k]), numbers.decode(b[n * STORED_K + k]));
            let start = if accumulate { f64::from(f32::from_bits(before[i])) } else { 0.0 };
            dot(start, (0..K).map(term))
        });
        let name = format!(
            "rows of B along {}, {}, added: {accumulate}",
            if across { "N" } else { "K" },
            kind.name()
        );
        products(&name, kind, K, device.read(registers, 128 * sums), expected.collect())
    }
}

#[test]
fn left_operand_in_registers() {
    for (name, kernel, numbers) in [
        ("wgmma_rs_bf16", "wgmma_rs_bf16_64", Numbers::Bf16),
        ("wgmma_rs_f16", "wgmma_rs_f16_64", Numbers::F16),
    ] {
        probe(name, Needs::Hopper, |device| {
            let each = [false, true].into_iter().flat_map(|across| {
                Kind::ALL.map(|kind| (kind, across, true)).into_iter().chain([(Kind::Random, across, false)])
            });
            each.map(|(kind, across, accumulate)| {
                RsProduct { kernel, numbers, kind, across, accumulate }.case(device)
            })
            .collect()
        });
    }
}

/// The sums of two MMAs, the first of which was read while the second may have been in flight.
#[test]
fn groups() {
    const N: usize = 8;
    let small =
        |seed| random_words(seed, 64 * STORED_K).into_iter().map(|w| Numbers::Bf16.encode((w % 9) as f32));
    let (a, b): (Vec<u32>, Vec<u32>) = (small(11).collect(), small(12).collect());
    let mut image = vec![0u16; (M + N) * STORED_K];
    place(&mut image, 0, M, false, |m, k| a[m * STORED_K + k]);
    place(&mut image, M * ROW_BYTES, N, false, |n, k| b[n * STORED_K + k]);
    let expected: Vec<(f64, f64)> = (0..2 * 128 * 4)
        .map(|i| {
            let (m, n) = cute_place(i / 4 % 128, i % 4);
            let term = |k: usize| {
                let k = i / 512 * K + k;
                (Numbers::Bf16.decode(a[m * STORED_K + k]), Numbers::Bf16.decode(b[n * STORED_K + k]))
            };
            dot(0.0, (0..K).map(term))
        })
        .collect();
    probe("wgmma_groups", Needs::Hopper, |device| {
        let registers = device.words(&[0xdead_beef; 1024]);
        let on_device = device.words(bytemuck::cast_slice(&image));
        let (bytes, b_start) = ((2 * image.len()) as i32, (M * ROW_BYTES) as i32);
        let args = [Arg::new(&registers), Arg::new(&on_device), Arg::new(&bytes), Arg::new(&b_start)];
        device.launch((FILE, "wgmma_groups"), Launch::new(1, 128).shared(bytes as usize), &args);
        let found = device.read(registers, 1024);
        vec![products("two", Kind::Integers, K, found, expected.clone())]
    });
}
