//! MMAs of a warpgroup, from an image of shared memory that is made here by "Shared Memory Matrix
//! Layout" of the PTX ISA: 16-bit elements in rows of 128, 64 or 32 bytes, swizzled. Whether TMA
//! makes the same image is tested by another probe.

use crate::case::{Case, Format};
use crate::matrices::{Kind, Numbers, dot, products, random_words};
use crate::tma::swizzle;
use crate::{Device, Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};

const FILE: &str = "probes_hopper.cu";
const M: usize = 64;
const K: usize = 16;
/// The elements of K in memory; an MMA takes 16 of them.
const STORED_K: usize = 64;

/// Bits 0 to 13 are the address; 16 to 29 the distance from a row's elements across to the next; 32
/// to 45 the distance from eight rows to the next; all in units of 16 bytes. Bits 62 and 63 are the
/// swizzle: 1 of 128 bytes, 2 of 64, 3 of 32.
#[test]
fn descriptors() {
    let addresses: Vec<u32> = (0..256).map(|i| i * 911 % 227 * 1024 + i % 8 * 16).collect();
    let block_bytes: Vec<u32> = (0..256).map(|i| i * 16 + i % 3 * 8192).collect();
    let case = |device: &mut Device, name: &str, row_bytes: i32, swizzle: u32| {
        let expected = addresses.iter().zip(&block_bytes).flat_map(|(&address, &block)| {
            let eight_rows = 8 * row_bytes as u32 / 16;
            [(address / 16) | (block / 16) << 16, eight_rows | swizzle << 30]
        });
        let out = device.words(&[0xdead_beef; 512]);
        let inputs = [device.words(&addresses), device.words(&block_bytes)];
        let args = [
            Arg::new(&out),
            Arg::new(&inputs[0]),
            Arg::new(&inputs[1]),
            Arg::new(&row_bytes),
            Arg::new(&256i32),
        ];
        device.launch((FILE, "descriptors"), Launch::new(1, 256), &args);
        Case::exact(name, Format::Bits, device.read(out, 512), expected.collect())
    };
    probe("descriptors", Needs::Any, |device| vec![case(device, "of places", 128, 1)]);
    probe("descriptors_narrow", Needs::Any, |device| {
        vec![case(device, "rows of 64 bytes", 64, 2), case(device, "rows of 32 bytes", 32, 3)]
    });
}

/// An operand in shared memory: `count` rows of A or columns of B.
#[derive(Clone, Copy)]
struct Layout {
    count: usize,
    row_bytes: usize,
    /// Whether rows run across K.
    across: bool,
}

impl Layout {
    /// The place of an element before the swizzle: boxes that are a row wide lie one after the
    /// other, each with all of K if rows run across it, else with all of `count`.
    fn offset(self, mn: usize, k: usize) -> usize {
        let Layout { count, row_bytes, across } = self;
        let columns = row_bytes / 2;
        match across {
            true => (mn / columns * STORED_K + k) * row_bytes + mn % columns * 2,
            false => (k / columns * count + mn) * row_bytes + k % columns * 2,
        }
    }

    fn bytes(self) -> usize {
        let columns = self.row_bytes / 2;
        if self.across {
            self.count.next_multiple_of(columns) * STORED_K * 2
        } else {
            self.count * STORED_K * 2
        }
    }

    /// Bytes from a row's elements across to the next.
    fn block_bytes(self) -> i32 {
        if self.across { (STORED_K * self.row_bytes) as i32 } else { 16 }
    }

    /// Writes the operand to the image from `start` on. `at(mn, k)` returns the bits of an element.
    fn place(self, image: &mut [u16], start: usize, at: impl Fn(usize, usize) -> u32) {
        for mn in 0..self.count {
            for k in 0..STORED_K {
                let byte = swizzle(self.offset(mn, k), self.row_bytes);
                image[(start + byte) / 2] = at(mn, k) as u16;
            }
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

/// The kernels for a type, with both operands in shared memory and with the left one in registers.
fn kernels(numbers: Numbers) -> [&'static str; 2] {
    match numbers {
        Numbers::Bf16 => ["wgmma_bf16", "wgmma_rs_bf16"],
        _ => ["wgmma_f16", "wgmma_rs_f16"],
    }
}

/// The sums before an MMA. One that is not added must not matter: NaN.
fn sums_before(kind: Kind, numbers: Numbers, len: usize, accumulate: bool) -> Vec<u32> {
    if accumulate { kind.sums(numbers, len) } else { vec![u32::MAX; len] }
}

struct Product {
    numbers: Numbers,
    N: usize,
    row_bytes: usize,
    kind: Kind,
    /// Whether the rows of A, and of B, run across K.
    across: [bool; 2],
    /// The 16 of the stored K that are used, by number.
    step: usize,
    accumulate: bool,
}

impl Product {
    fn name(&self) -> String {
        let Self { N, row_bytes, kind, across, step, accumulate, .. } = self;
        let across = ["K, K", "M, K", "K, N", "M, N"][usize::from(across[0]) + 2 * usize::from(across[1])];
        let rows = if *row_bytes == 128 { String::new() } else { format!(" of {row_bytes} bytes") };
        let sum = if *accumulate { "added" } else { "fresh" };
        format!("N {N}, rows{rows} along {across}, step {step}, {}, {sum}", kind.name())
    }

    fn case(&self, device: &mut Device) -> Case {
        let Self { numbers, N, row_bytes, kind, across, step, accumulate } = *self;
        let a = kind.operand(numbers, 0, M * STORED_K);
        let b = kind.operand(numbers, 1, N * STORED_K);
        let [left, right] =
            [(M, across[0]), (N, across[1])].map(|(count, across)| Layout { count, row_bytes, across });
        let b_start = left.bytes();
        let mut image = vec![0x7fffu16; (b_start + right.bytes()) / 2];
        left.place(&mut image, 0, |m, k| a[m * STORED_K + k]);
        right.place(&mut image, b_start, |n, k| b[n * STORED_K + k]);
        let sums = N / 2;
        let before = sums_before(kind, numbers, 128 * sums, accumulate);

        let registers = device.words(&before);
        let on_device = device.words(bytemuck::cast_slice(&image));
        let bytes = (2 * image.len()) as i32;
        let numbers_of = [
            bytes,
            N as i32,
            left.offset(0, step * K) as i32,
            left.block_bytes(),
            (b_start + right.offset(0, step * K)) as i32,
            right.block_bytes(),
            row_bytes as i32,
            i32::from(across[0]) + 2 * i32::from(across[1]),
            i32::from(accumulate),
        ];
        let mut args = vec![Arg::new(&registers), Arg::new(&on_device)];
        args.extend(numbers_of.iter().map(Arg::new));
        device.launch((FILE, kernels(numbers)[0]), Launch::new(1, 128).shared(bytes as usize), &args);

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

/// The orders of the operands that an N can have: rows across K hold whole numbers of its columns.
fn orders(N: usize, row_bytes: usize) -> impl Iterator<Item = (usize, [bool; 2])> {
    let all = [[false, false], [true, false], [false, true], [true, true]];
    all.into_iter().enumerate().filter(move |(_, across)| !across[1] || N.is_multiple_of(row_bytes / 2))
}

/// Every order of the operands, with and without an initial sum, in rows of 128 bytes.
fn cases(device: &mut Device, numbers: Numbers, shapes: &[usize]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &N in shapes {
        for (number, across) in orders(N, 128) {
            let mut add = |kind, step, accumulate| {
                let product = Product { numbers, N, row_bytes: 128, kind, across, step, accumulate };
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
    probe("wgmma_bf16", Needs::Hopper, |device| cases(device, Numbers::Bf16, &[8, 128, 256]));
}

#[test]
fn f16() {
    probe("wgmma_f16", Needs::Hopper, |device| cases(device, Numbers::F16, &[8, 128, 256]));
}

/// N = 64, in golden files of its own.
#[test]
fn columns_64() {
    probe("wgmma_bf16_64", Needs::Hopper, |device| cases(device, Numbers::Bf16, &[64]));
    probe("wgmma_f16_64", Needs::Hopper, |device| cases(device, Numbers::F16, &[64]));
}

/// The other shapes, and narrower rows: N and the bytes of a row.
const SHAPES: [(usize, usize); 7] = [(16, 128), (16, 32), (32, 64), (64, 32), (80, 32), (96, 64), (128, 64)];

#[test]
fn shapes() {
    for (name, numbers) in [("wgmma_shapes_bf16", Numbers::Bf16), ("wgmma_shapes_f16", Numbers::F16)] {
        probe(name, Needs::Hopper, |device| {
            let mut cases = Vec::new();
            for (N, row_bytes) in SHAPES {
                for (step, across) in orders(N, row_bytes) {
                    let kind = [Kind::Integers, Kind::Random][step % 2];
                    let product = Product { numbers, N, row_bytes, kind, across, step, accumulate: true };
                    cases.push(product.case(device));
                }
            }
            cases
        });
    }
}

/// An MMA with its left operand in registers.
struct RsProduct {
    numbers: Numbers,
    N: usize,
    row_bytes: usize,
    kind: Kind,
    /// Whether the rows of B run across K.
    across: bool,
    accumulate: bool,
}

impl RsProduct {
    /// Row and first column of a thread's register `i` of A, which has two elements.
    fn a_place(t: usize, i: usize) -> (usize, usize) {
        (t / 32 * 16 + t % 32 / 4 + i % 2 * 8, t % 4 * 2 + i / 2 * 8)
    }

    fn case(&self, device: &mut Device, name: &str) -> Case {
        let Self { numbers, N, row_bytes, kind, across, accumulate } = *self;
        let a = kind.operand(numbers, 0, M * K);
        let b = kind.operand(numbers, 1, N * STORED_K);
        let a_registers: Vec<u32> = (0..4 * M * 2)
            .map(|index| {
                let (row, column) = Self::a_place(index / 4, index % 4);
                a[row * K + column] | a[row * K + column + 1] << 16
            })
            .collect();
        let right = Layout { count: N, row_bytes, across };
        let mut image = vec![0x7fffu16; right.bytes() / 2];
        right.place(&mut image, 0, |n, k| b[n * STORED_K + k]);
        let sums = N / 2;
        let before = sums_before(kind, numbers, 128 * sums, accumulate);
        let registers = device.words(&before);
        let (a_device, on_device) = (device.words(&a_registers), device.words(bytemuck::cast_slice(&image)));
        let bytes = (2 * image.len()) as i32;
        let (block_bytes, across, add) = (right.block_bytes(), i32::from(across), i32::from(accumulate));
        let numbers_of = [bytes, N as i32, block_bytes, row_bytes as i32, across, add];
        let mut args = vec![Arg::new(&registers), Arg::new(&a_device), Arg::new(&on_device)];
        args.extend(numbers_of.iter().map(Arg::new));
        device.launch((FILE, kernels(numbers)[1]), Launch::new(1, 128).shared(bytes as usize), &args);
        let expected = (0..128 * sums).map(|i| {
            let (m, n) = cute_place(i / sums, i % sums);
            let term = |k: usize| (numbers.decode(a[m * K + k]), numbers.decode(b[n * STORED_K + k]));
            let start = if accumulate { f64::from(f32::from_bits(before[i])) } else { 0.0 };
            dot(start, (0..K).map(term))
        });
        let name = format!(
            "{name}rows of B along {}, {}, added: {accumulate}",
            if self.across { "N" } else { "K" },
            kind.name()
        );
        products(&name, kind, K, device.read(registers, 128 * sums), expected.collect())
    }
}

#[test]
fn left_operand_in_registers() {
    for (name, numbers) in [("wgmma_rs_bf16", Numbers::Bf16), ("wgmma_rs_f16", Numbers::F16)] {
        probe(name, Needs::Hopper, |device| {
            let each = [false, true].into_iter().flat_map(|across| {
                Kind::ALL.map(|kind| (kind, across, true)).into_iter().chain([(Kind::Random, across, false)])
            });
            each.map(|(kind, across, accumulate)| {
                RsProduct { numbers, N: 64, row_bytes: 128, kind, across, accumulate }.case(device, "")
            })
            .collect()
        });
    }
}

#[test]
fn shapes_with_the_left_operand_in_registers() {
    let shapes = [(8, 128), (16, 32), (32, 64), (80, 32), (96, 64), (128, 128), (256, 64)];
    for (name, numbers) in [("wgmma_rs_shapes_bf16", Numbers::Bf16), ("wgmma_rs_shapes_f16", Numbers::F16)] {
        probe(name, Needs::Hopper, |device| {
            let mut cases = Vec::new();
            for (N, row_bytes) in shapes {
                for (_, [_, across]) in orders(N, row_bytes).filter(|(_, [a, _])| !a) {
                    let kind = if across { Kind::Random } else { Kind::Integers };
                    let product = RsProduct { numbers, N, row_bytes, kind, across, accumulate: true };
                    cases.push(product.case(device, &format!("N {N}, rows of {row_bytes} bytes, ")));
                }
            }
            cases
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
    let [left, right] = [M, N].map(|count| Layout { count, row_bytes: 128, across: false });
    left.place(&mut image, 0, |m, k| a[m * STORED_K + k]);
    right.place(&mut image, left.bytes(), |n, k| b[n * STORED_K + k]);
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
        let (bytes, b_start) = ((2 * image.len()) as i32, left.bytes() as i32);
        let args = [Arg::new(&registers), Arg::new(&on_device), Arg::new(&bytes), Arg::new(&b_start)];
        device.launch((FILE, "wgmma_groups"), Launch::new(1, 128).shared(bytes as usize), &args);
        let found = device.read(registers, 1024);
        vec![products("two", Kind::Integers, K, found, expected.clone())]
    });
}
