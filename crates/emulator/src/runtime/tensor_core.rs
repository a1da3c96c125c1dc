//! Tensor cores: the fragments of the PTX ISA's "Matrix Fragments for mma", with sums in f32.

use super::collective::Lanes;

/// A lane's argument of `ldmatrix`: the address of a row in shared memory, and the registers for
/// its elements.
#[repr(C)]
pub struct Ldmatrix {
    result: *mut [u32; 4],
    row: u32,
}

/// A lane's argument of `stmatrix`.
#[repr(C)]
pub struct Stmatrix {
    registers: *const [u32; 4],
    row: u32,
}

/// A lane's argument of `mma`.
#[repr(C)]
pub struct Mma {
    d: *mut [f32; 4],
    /// Four registers, each with two 16-bit elements or one of TF32.
    a: *const [u32; 4],
    b: [u32; 2],
}

/// Loads four matrices; lane `8 i + r` names row `r` of matrix `i`.
pub fn ldmatrix(lanes: &Lanes, arguments: [&mut Ldmatrix; 32], transposed: bool) {
    lanes.block().count(|c| c.matrix_rows(arguments.each_ref().map(|argument| argument.row)));
    for matrix in 0..4 {
        let mut rows = [[0u16; 8]; 8];
        for (r, row) in rows.iter_mut().enumerate() {
            let lane = matrix * 8 + r;
            let bytes = lanes.block().read_shared(lanes.as_lane(lane), arguments[lane].row, lanes.site);
            *row = std::array::from_fn(|i| u16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]]));
        }
        for (lane, argument) in arguments.iter().enumerate() {
            let (g, t) = (lane / 4, lane % 4 * 2);
            let [low, high] = match transposed {
                false => [rows[g][t], rows[g][t + 1]],
                true => [rows[t][g], rows[t + 1][g]],
            };
            // SAFETY: the lane waits, and has four registers there.
            unsafe { (*argument.result)[matrix] = u32::from(low) | u32::from(high) << 16 };
        }
    }
}

/// Stores four matrices, the inverse of `ldmatrix`: the lane that names a row writes it.
pub fn stmatrix(lanes: &Lanes, arguments: [&Stmatrix; 32]) {
    lanes.block().count(|c| c.matrix_rows(arguments.map(|argument| argument.row)));
    // SAFETY: the lanes wait, and have four registers there.
    let registers = arguments.map(|argument| unsafe { *argument.registers });
    for (lane, argument) in arguments.iter().enumerate() {
        let (matrix, row) = (lane / 8, lane % 8);
        let mut bytes = [0; 16];
        for (pair, of_row) in bytes.chunks_exact_mut(4).zip(&registers[row * 4..]) {
            pair.copy_from_slice(&of_row[matrix].to_ne_bytes());
        }
        lanes.block().write_shared(lanes.as_lane(lane), argument.row, bytes, lanes.site);
    }
}

/// A 16-bit type that tensor cores multiply.
pub trait Element {
    fn widen(bits: u16) -> f32;
}

pub enum Bf16 {}
pub enum F16 {}

impl Element for Bf16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl Element for F16 {
    // The exponent is off by 112, also for subnormals, which the multiplication makes normal.
    // Infinity and NaN end up at the top of the range.
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let shifted = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
        let top = if shifted >= 65536.0 { 0x7f80_0000 } else { 0 };
        f32::from_bits(shifted.to_bits() | top | u32::from(bits & 0x8000) << 16)
    }
}

/// Computes `d += a b` for a 16 x 16 and b 16 x 8.
pub fn mma_m16n8k16<T: Element>(lanes: [&mut Mma; 32]) {
    let mut a = [[0.0; 16]; 16];
    let mut b = [[0.0; 8]; 16];
    for (lane, argument) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4 * 2);
        // SAFETY: the lane waits, and has four registers there.
        let registers = unsafe { *argument.a };
        for (i, register) in registers.into_iter().enumerate() {
            let (row, column) = (g + i % 2 * 8, t + i / 2 * 8);
            a[row][column] = T::widen(register as u16);
            a[row][column + 1] = T::widen((register >> 16) as u16);
        }
        for (i, register) in argument.b.into_iter().enumerate() {
            b[t + i * 8][g] = T::widen(register as u16);
            b[t + i * 8 + 1][g] = T::widen((register >> 16) as u16);
        }
    }
    accumulate(lanes, &a, &b);
}

/// Computes `d += a b` for a 16 x 8 and b 8 x 8; the hardware ignores the low 13 bits of an
/// operand.
pub fn mma_m16n8k8_tf32(lanes: [&mut Mma; 32]) {
    let widen = |register: u32| f32::from_bits(register & !0x1fff);
    let mut a = [[0.0; 8]; 16];
    let mut b = [[0.0; 8]; 8];
    for (lane, argument) in lanes.iter().enumerate() {
        let (g, t) = (lane / 4, lane % 4);
        // SAFETY: the lane waits, and has four registers there.
        let registers = unsafe { *argument.a };
        for (i, register) in registers.into_iter().enumerate() {
            a[g + i % 2 * 8][t + i / 2 * 4] = widen(register);
        }
        for (i, register) in argument.b.into_iter().enumerate() {
            b[t + i * 4][g] = widen(register);
        }
    }
    accumulate(lanes, &a, &b);
}

/// Row and column of the element of `d` in a lane's register `i`.
fn place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)
}

fn accumulate<const K: usize>(lanes: [&mut Mma; 32], a: &[[f32; K]; 16], b: &[[f32; 8]; K]) {
    let mut product = [[0.0; 8]; 16];
    multiply(&mut product, a, b);
    for (lane, argument) in lanes.into_iter().enumerate() {
        for i in 0..4 {
            let (row, column) = place(lane, i);
            // SAFETY: the lane waits, and has four registers there.
            unsafe { (*argument.d)[i] += product[row][column] };
        }
    }
}

/// Adds the same terms in the same order with any instruction set: results do not depend on the
/// machine.
fn multiply<const K: usize>(product: &mut [[f32; 8]; 16], a: &[[f32; K]; 16], b: &[[f32; 8]; K]) {
    #[inline(always)]
    fn rows<const K: usize>(product: &mut [[f32; 8]; 16], a: &[[f32; K]; 16], b: &[[f32; 8]; K]) {
        for (sums, a) in product.iter_mut().zip(a) {
            for (a, b) in a.iter().zip(b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn with_avx2<const K: usize>(product: &mut [[f32; 8]; 16], a: &[[f32; K]; 16], b: &[[f32; 8]; K]) {
            rows(product, a, b);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { with_avx2(product, a, b) };
        }
    }
    rows(product, a, b);
}
