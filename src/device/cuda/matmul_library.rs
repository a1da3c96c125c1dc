//! How the op layer describes a matrix product to a vendor's library (cuBLASLt), which is row-major here as everywhere else.

use anyhow::Result;

/// D (m, n) = epilogue(A (m, k) @ B (k, n) + C (m, n)), all row-major and dense, sums in f32.
///
/// The forward pass is `m: N, n: OC, k: C, b_transposed: true`; dinp is `m: N, n: C, k: OC`; dweight is
/// `m: OC, n: C, k: N, a_transposed: true`, with `adds_c` to accumulate (C = D).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// A is stored (k, m).
    pub a_transposed: bool,
    /// B is stored (n, k).
    pub b_transposed: bool,
    pub numbers: Numbers,
    pub adds_c: bool,
    pub epilogue: ProductEpilogue,
}

/// Of all matrices and vectors of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Numbers {
    Bf16,
    F16,
    F32,
    /// Stored as f32, multiplied as TF32.
    Tf32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProductEpilogue {
    None,
    /// + bias (n)
    Bias,
    /// aux (m, n) = sum + bias; D = gelu(aux), in its tanh form
    BiasGelu,
    /// D = sum * gelu'(aux), aux (m, n)
    Dgelu,
}

/// Device addresses; zero where the product has no such operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    pub d: u64,
    pub a: u64,
    pub b: u64,
    /// May be `d`.
    pub c: u64,
    pub bias: u64,
    pub aux: u64,
}

/// A library of matrix products, queued in the order of launches.
pub trait MatmulLibrary {
    /// Version, and where it was found: `13.0.2 from /usr/local/cuda/lib64/libcublasLt.so.13`.
    fn describe(&self) -> String;

    /// # Errors
    /// If the library has no algorithm for the product, or it fails.
    fn matmul(&mut self, product: &Product, operands: &Operands) -> Result<()>;

    /// Tries the library's best algorithms on the device, keeps the fastest for this product from now on, and returns its
    /// milliseconds. What D (and the aux of a forward pass) then hold is garbage.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    fn tune(&mut self, product: &Product, operands: &Operands) -> Result<f32>;

    /// Leaves out the algorithm that [`tune`](Self::tune) has kept, and keeps the next fastest: its milliseconds. `None` if there
    /// is no other.
    ///
    /// # Errors
    /// If there is no plan for the product yet.
    fn reject(&mut self, product: &Product, operands: &Operands) -> Result<Option<f32>>;
}
