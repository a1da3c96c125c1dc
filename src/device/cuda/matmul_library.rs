//! The description of a GEMM for a vendor's library (cuBLASLt), in BLAS's terms but row-major, as
//! everywhere else here.
//!
//! It knows neither passes nor layers, so that a driver can offer a library without knowing the op
//! layer above it.

use crate::tensor::Dtype;
use anyhow::Result;
use std::fmt;

/// D (m, n) = epilogue(A (m, k) @ B (k, n) + C (m, n)), all row-major and dense, sums in f32.
///
/// The forward pass is `m: N, n: OC, k: C, b_transposed: true`; dinp is `m: N, n: C, k: OC`;
/// dweight is `m: OC, n: C, k: N, a_transposed: true`, with `adds_c` to accumulate (C = D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlasGemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// A is stored (k, m).
    pub a_transposed: bool,
    /// B is stored (n, k).
    pub b_transposed: bool,
    /// Type of all matrices and vectors.
    pub dtype: Dtype,
    /// Whether f32 operands are multiplied as TF32.
    pub tf32: bool,
    pub adds_c: bool,
    pub epilogue: BlasEpilogue,
}

/// `5 x 8 x 3 of A' B + C in bf16 with bias`: m, n and k; a prime marks a transposed operand.
impl fmt::Display for BlasGemm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlasGemm { m, n, k, .. } = self;
        let prime = |transposed| if transposed { "'" } else { "" };
        let (a, b) = (prime(self.a_transposed), prime(self.b_transposed));
        let c = if self.adds_c { " + C" } else { "" };
        let format = if self.tf32 { "tf32" } else { self.dtype.name() };
        let epilogue = match self.epilogue {
            BlasEpilogue::None => "",
            BlasEpilogue::Bias => " with bias",
        };
        write!(f, "{m} x {n} x {k} of A{a} B{b}{c} in {format}{epilogue}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlasEpilogue {
    None,
    /// + bias (n)
    Bias,
}

/// Device addresses; zero where the GEMM has no such operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    pub d: u64,
    pub a: u64,
    pub b: u64,
    /// May be `d`.
    pub c: u64,
    pub bias: u64,
}

/// A GEMM library whose work is queued in the order of launches.
pub trait MatmulLibrary {
    /// Returns version and path: `13.0.2 from /usr/local/cuda/lib64/libcublasLt.so.13`.
    fn describe(&self) -> String;

    /// Queues a GEMM.
    ///
    /// # Errors
    /// If the library has no algorithm for it, or fails.
    fn matmul(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<()>;

    /// Times the library's best algorithms on the device, uses the fastest for this GEMM from now
    /// on, and returns its milliseconds. It leaves garbage in D.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    fn tune(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<f32>;

    /// Drops the algorithm that [`tune`](Self::tune) has chosen, uses the next fastest instead, and
    /// returns its milliseconds, or `None` if there is no other.
    ///
    /// # Errors
    /// If there is no plan for the GEMM yet.
    fn reject(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<Option<f32>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gemm_is_shown_as_its_formula() {
        let (dtype, epilogue) = (Dtype::Bf16, BlasEpilogue::Bias);
        let mut gemm = BlasGemm {
            m: 5,
            n: 8,
            k: 3,
            a_transposed: true,
            b_transposed: false,
            dtype,
            tf32: false,
            adds_c: true,
            epilogue,
        };
        assert_eq!(gemm.to_string(), "5 x 8 x 3 of A' B + C in bf16 with bias");
        (gemm.a_transposed, gemm.b_transposed, gemm.adds_c) = (false, true, false);
        (gemm.dtype, gemm.tf32, gemm.epilogue) = (Dtype::F32, true, BlasEpilogue::None);
        assert_eq!(gemm.to_string(), "5 x 8 x 3 of A B' in tf32");
    }
}
