//! MMAs of a warp. The layout of elements over lanes follows the shapes and strides that CUTLASS
//! publishes; the emulator follows the formulas of the PTX ISA.

use crate::case::Case;
use crate::matrices::{Kind, Numbers, dot, products, random_words};
use crate::{Needs, probe};
use warpsmith::device::cuda::kernel::{Arg, Launch};

/// The strides of a lane's two digits (modulo 4, and the rest), and of the bits of an element's
/// number, in a matrix whose first index is contiguous: M x K for A, N x K for B, M x N for D.
struct Layout {
    lane: [usize; 2],
    value: &'static [usize],
}

impl Layout {
    fn element(&self, lane: usize, value: usize) -> usize {
        let of_value = self.value.iter().enumerate().map(|(bit, stride)| (value >> bit & 1) * stride);
        lane % 4 * self.lane[0] + lane / 4 * self.lane[1] + of_value.sum::<usize>()
    }

    /// The registers of all lanes, with `values` elements per lane and `per_register` in each
    /// register.
    fn registers(&self, matrix: &[u32], values: usize, per_register: usize) -> Vec<u32> {
        let of_lane = |lane: usize| -> Vec<u32> {
            let elements: Vec<u32> = (0..values).map(|v| matrix[self.element(lane, v)]).collect();
            let pack =
                |pair: &[u32]| pair.iter().rev().fold(0u64, |word, x| word << 16 | u64::from(*x)) as u32;
            elements.chunks(per_register).map(pack).collect()
        };
        (0..32).flat_map(of_lane).collect()
    }
}

const M: usize = 16;
const N: usize = 8;
const D: Layout = Layout { lane: [32, 1], value: &[16, 8] };

struct Instruction {
    kernel: &'static str,
    numbers: Numbers,
    K: usize,
    a: Layout,
    b: Layout,
    per_register: usize,
}

fn m16n8k16(kernel: &'static str, numbers: Numbers) -> Instruction {
    let a = Layout { lane: [32, 1], value: &[16, 8, 128] };
    let b = Layout { lane: [16, 1], value: &[8, 64] };
    Instruction { kernel, numbers, K: 16, a, b, per_register: 2 }
}

fn m16n8k8(kernel: &'static str) -> Instruction {
    let a = Layout { lane: [16, 1], value: &[8, 64] };
    let b = Layout { lane: [8, 1], value: &[32] };
    Instruction { kernel, numbers: Numbers::Tf32, K: 8, a, b, per_register: 1 }
}

/// Consecutive MMAs, each with operands of its own.
const REPEATS: usize = 4;

impl Instruction {
    fn operands(&self, kind: Kind) -> [Vec<u32>; 3] {
        let K = self.K;
        [
            kind.operand(self.numbers, 0, REPEATS * M * K),
            kind.operand(self.numbers, 1, REPEATS * N * K),
            kind.sums(self.numbers, REPEATS * M * N),
        ]
    }

    fn case(&self, device: &mut crate::Device, name: &str, kind: Kind, operands: [Vec<u32>; 3]) -> Case {
        let Self { kernel, numbers, K, ref a, ref b, per_register } = *self;
        let [a_matrix, b_matrix, d_matrix] = operands;
        let spread = |matrix: &[u32], layout: &Layout, size: usize, per_register: usize| -> Vec<u32> {
            matrix.chunks(size).flat_map(|m| layout.registers(m, size / 32, per_register)).collect()
        };
        let d = device.words(&spread(&d_matrix, &D, M * N, 1));
        let operands = [
            device.words(&spread(&a_matrix, a, M * K, per_register)),
            device.words(&spread(&b_matrix, b, N * K, per_register)),
        ];
        let args = [Arg::new(&d), Arg::new(&operands[0]), Arg::new(&operands[1])];
        device.launch(("probes.cu", kernel), Launch::new(REPEATS, 32), &args);
        let found = device.read(d, REPEATS * M * N);
        let expected = (0..REPEATS * M * N).map(|i| {
            let (repeat, lane, value) = (i / (M * N), i / 4 % 32, i % 4);
            let (m, n) = (D.element(lane, value) % M, D.element(lane, value) / M);
            let term = |k: usize| {
                let a = a_matrix[repeat * M * K + k * M + m];
                let b = b_matrix[repeat * N * K + k * N + n];
                (numbers.decode(a), numbers.decode(b))
            };
            let before = f32::from_bits(d_matrix[repeat * M * N + n * M + m]);
            dot(f64::from(before), (0..K).map(term))
        });
        products(name, kind, K, found, expected.collect())
    }

    fn cases(&self, device: &mut crate::Device) -> Vec<Case> {
        Kind::ALL.map(|kind| self.case(device, kind.name(), kind, self.operands(kind))).into()
    }
}

#[test]
fn bf16() {
    let mma = m16n8k16("mma_bf16", Numbers::Bf16);
    probe("mma_bf16", Needs::Any, |device| mma.cases(device));
}

#[test]
fn f16() {
    let mma = m16n8k16("mma_f16", Numbers::F16);
    probe("mma_f16", Needs::Any, |device| mma.cases(device));
}

/// TF32, also with low bits set that are not part of it and do not count.
#[test]
fn tf32() {
    let mma = m16n8k8("mma_tf32");
    let noise = |matrix: &mut Vec<u32>| {
        let words = random_words(9, matrix.len());
        matrix.iter_mut().zip(words).for_each(|(element, word)| *element |= word & 0x1fff);
    };
    probe("mma_tf32", Needs::Any, |device| {
        let mut cases = mma.cases(device);
        let mut operands = mma.operands(Kind::Integers);
        operands[..2].iter_mut().for_each(noise);
        cases.push(mma.case(device, "integers and noise below", Kind::Integers, operands));
        cases
    });
}
