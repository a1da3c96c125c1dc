//! The layout of tensor core operands over lanes. The emulator follows the formulas of the PTX ISA;
//! these tests follow the layouts that CUTLASS publishes for the same instructions, as shapes and
//! strides of (lane, value).

use crate::device::*;
use cuda_emulator::{Arg, EmulatorOptions, Launch};

/// The strides of a lane's two digits (modulo 4, and the rest), and of the bits of a value's
/// number.
struct Layout {
    lane: [usize; 2],
    value: &'static [usize],
}

impl Layout {
    /// Row and column in a matrix of `rows` rows, for A and D; column and row for B, whose columns
    /// come first.
    fn element(&self, lane: usize, value: usize, rows: usize) -> (usize, usize) {
        let of_value = self.value.iter().enumerate().map(|(bit, stride)| (value >> bit & 1) * stride);
        let index = lane % 4 * self.lane[0] + lane / 4 * self.lane[1] + of_value.sum::<usize>();
        (index % rows, index / rows)
    }
}

const D: Layout = Layout { lane: [32, 1], value: &[16, 8] };

fn a(m: usize, k: usize) -> f32 {
    ((m * 5 + k * 3) % 17) as f32 - 8.0
}

fn b(k: usize, n: usize) -> f32 {
    ((k * 7 + n * 2) % 13) as f32 - 6.0
}

/// Runs a kernel with these registers, and compares all of D.
fn check(name: &'static str, a_registers: &[u32], b_registers: &[u32], K: usize) {
    let mut gpu = Gpu::new(EmulatorOptions { check: true, ..EmulatorOptions::default() });
    let d = pointer(gpu.memory(&[0f32; 128]));
    let (a_at, b_at) = (pointer(gpu.memory(a_registers)), pointer(gpu.memory(b_registers)));
    gpu.launch(name, Launch::new(1, 32), &[Arg::new(&d), Arg::new(&a_at), Arg::new(&b_at)]).unwrap();
    for (i, got) in gpu.read::<f32>(d.address(), 128).into_iter().enumerate() {
        let (m, n) = D.element(i / 4, i % 4, 16);
        let want: f32 = (0..K).map(|k| a(m, k) * b(k, n)).sum();
        assert_eq!(got, want, "{name}: D({m}, {n})");
    }
}

#[test]
fn mma_m16n8k16_has_the_published_layout() {
    let of_a = Layout { lane: [32, 1], value: &[16, 8, 128] };
    let of_b = Layout { lane: [16, 1], value: &[8, 64] };
    let pair = |low: f32, high: f32| {
        u32::from(half::bf16::from_f32(low).to_bits()) | u32::from(half::bf16::from_f32(high).to_bits()) << 16
    };
    let a_of = |lane, value| {
        let (m, k) = of_a.element(lane, value, 16);
        a(m, k)
    };
    let b_of = |lane, value| {
        let (n, k) = of_b.element(lane, value, 8);
        b(k, n)
    };
    let registers = |count: usize, of: &dyn Fn(usize, usize) -> f32| -> Vec<u32> {
        (0..32 * count)
            .map(|i| pair(of(i / count, i % count * 2), of(i / count, i % count * 2 + 1)))
            .collect()
    };
    check("probe_mma", &registers(4, &a_of), &registers(2, &b_of), 16);
}

#[test]
fn mma_m16n8k8_has_the_published_layout() {
    let of_a = Layout { lane: [16, 1], value: &[8, 64] };
    let of_b = Layout { lane: [8, 1], value: &[32] };
    let a_registers: Vec<u32> = (0..128)
        .map(|i| {
            let (m, k) = of_a.element(i / 4, i % 4, 16);
            a(m, k).to_bits()
        })
        .collect();
    let b_registers: Vec<u32> = (0..64)
        .map(|i| {
            let (n, k) = of_b.element(i / 2, i % 2, 8);
            b(k, n).to_bits()
        })
        .collect();
    check("probe_mma_tf32", &a_registers, &b_registers, 8);
}

#[test]
fn ldmatrix_hands_out_pairs_of_a_row_or_a_column() {
    for transposed in [0i32, 1] {
        let mut gpu = Gpu::new(EmulatorOptions { check: true, ..EmulatorOptions::default() });
        let out = pointer(gpu.memory(&[0u32; 128]));
        gpu.launch("probe_ldmatrix", Launch::new(1, 32), &[Arg::new(&out), Arg::new(&transposed)]).unwrap();
        for (i, got) in gpu.read::<u32>(out.address(), 128).into_iter().enumerate() {
            let (lane, matrix) = (i as u32 / 4, i as u32 % 4);
            let number = |row: u32, column: u32| (matrix * 8 + row) * 8 + column;
            let (g, t) = (lane / 4, lane % 4 * 2);
            let want = match transposed {
                0 => [number(g, t), number(g, t + 1)],
                _ => [number(t, g), number(t + 1, g)],
            };
            assert_eq!([got & 0xffff, got >> 16], want, "lane {lane}, matrix {matrix}");
        }
    }
}
