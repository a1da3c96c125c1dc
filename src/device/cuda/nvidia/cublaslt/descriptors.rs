//! cuBLASLt's descriptors of a GEMM.
//!
//! cuBLASLt's matrices are column-major, so it sees our X (rows, cols) as Xᵀ, and our D = A B as Dᵀ
//! = Bᵀ Aᵀ: B is its first operand and A its second, D has n rows and m columns, and a bias runs
//! along its rows, as it expects.

use crate::device::cuda::matmul_library::{BlasEpilogue, BlasGemm, Operands};
use crate::tensor::Dtype;
use anyhow::{Result, anyhow};
use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result as lt, sys};
use std::ffi::c_void;
use sys::cublasLtMatmulDescAttributes_t as Attribute;
use sys::cublasLtMatmulPreferenceAttributes_t as Wish;

fn failed(what: &str) -> impl Fn(CublasError) -> anyhow::Error {
    move |e| anyhow!("cuBLASLt: {what}: {:?}", e.0)
}

/// An operation and the layouts of its matrices.
pub struct Descriptors {
    operation: Operation,
    a: Layout,
    b: Layout,
    d: Layout,
}

/// Rows, columns and leading dimension (elements from column to column) in the library's view.
type Shape = (u64, u64, i64);

/// Returns the shapes of the library's first operand, its second one, and the result.
fn shapes(p: &BlasGemm) -> [Shape; 3] {
    let row_major = |rows: usize, cols: usize| (cols as u64, rows as u64, cols as i64);
    let first = if p.b_transposed { row_major(p.n, p.k) } else { row_major(p.k, p.n) };
    let second = if p.a_transposed { row_major(p.k, p.m) } else { row_major(p.m, p.k) };
    [first, second, row_major(p.m, p.n)]
}

impl Descriptors {
    pub fn new(gemm: &BlasGemm) -> Result<Self> {
        let format = match gemm.dtype {
            Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
            Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
            Dtype::I32 => unreachable!("no matmul multiplies integers"),
        };
        let [a, b, d] = shapes(gemm).map(|shape| Layout::new(format, shape));
        Ok(Descriptors { operation: Operation::new(gemm)?, a: a?, b: b?, d: d? })
    }

    /// Stores the operands that the library takes from the descriptor of the operation.
    pub fn set_pointers(&self, gemm: &BlasGemm, operands: &Operands) -> Result<()> {
        match gemm.epilogue {
            BlasEpilogue::None => Ok(()),
            BlasEpilogue::Bias => {
                self.operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias)
            }
        }
    }

    pub fn operation(&self) -> sys::cublasLtMatmulDesc_t {
        self.operation.0
    }

    pub fn a(&self) -> sys::cublasLtMatrixLayout_t {
        self.a.0
    }

    pub fn b(&self) -> sys::cublasLtMatrixLayout_t {
        self.b.0
    }

    /// The layout of D and of C.
    pub fn d(&self) -> sys::cublasLtMatrixLayout_t {
        self.d.0
    }
}

struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(gemm: &BlasGemm) -> Result<Self> {
        let compute = match gemm.tf32 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let scalars = sys::cudaDataType::CUDA_R_32F;
        let operation = Operation(lt::create_matmul_desc(compute, scalars).map_err(failed("a descriptor"))?);
        // CUBLAS_OP_N = 0, CUBLAS_OP_T = 1
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(gemm.b_transposed))?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(gemm.a_transposed))?;
        let epilogue = match gemm.epilogue {
            BlasEpilogue::None => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            BlasEpilogue::Bias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        };
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        Ok(operation)
    }

    /// Sets an attribute. `value` has the type that the library documents for it: 4 bytes for
    /// enumerations, 8 for addresses and lengths.
    fn set<T: Copy>(&self, attribute: Attribute, value: T) -> Result<()> {
        let bytes = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the descriptor lives as long as `self`, and the library copies the bytes before
        // it returns.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, bytes, size_of::<T>()) }
            .map_err(failed(&format!("{attribute:?}")))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: `new` created it, and nothing uses it after this.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(format: sys::cudaDataType, (rows, cols, leading): Shape) -> Result<Self> {
        Ok(Layout(lt::create_matrix_layout(format, rows, cols, leading).map_err(failed("a matrix"))?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: `new` created it, and nothing uses it after this.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// The memory that algorithms may use, and the alignment that they may assume.
pub struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `[a, b, c, d]` are the alignments of our operands in bytes.
    pub fn new(workspace_bytes: usize, [a, b, c, d]: [u32; 4]) -> Result<Self> {
        let preference = Preference(lt::create_matmul_pref().map_err(failed("a preference"))?);
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes as u64)?;
        // Partial sums of split algorithms are added in f32, too.
        let in_f32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, in_f32)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c)?;
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d)?;
        Ok(preference)
    }

    pub fn raw(&self) -> sys::cublasLtMatmulPreference_t {
        self.0
    }

    fn set<T: Copy>(&self, wish: Wish, value: T) -> Result<()> {
        let bytes = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the preference lives as long as `self`, and the library copies the bytes before
        // it returns.
        unsafe { lt::set_matmul_pref_attribute(self.0, wish, bytes, size_of::<T>()) }
            .map_err(failed(&format!("{wish:?}")))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: `new` created it, and nothing uses it after this.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes what the library does with column-major matrices of the shapes and transposes that
    /// we pass, by definition.
    fn as_the_library_does(p: &BlasGemm, a: &[f32], b: &[f32]) -> Vec<f32> {
        let [first, second, result] = shapes(p);
        let at = |x: &[f32], shape: Shape, transposed: bool, row: u64, col: u64| {
            let (row, col) = if transposed { (col, row) } else { (row, col) };
            assert!(row < shape.0 && col < shape.1 && shape.2 as u64 >= shape.0);
            x[(row + col * shape.2 as u64) as usize]
        };
        let mut d = vec![f32::NAN; p.m * p.n];
        for row in 0..result.0 {
            for col in 0..result.1 {
                let term = |i| at(b, first, p.b_transposed, row, i) * at(a, second, p.a_transposed, i, col);
                d[(row + col * result.2 as u64) as usize] = (0..p.k as u64).map(term).sum();
            }
        }
        d
    }

    #[test]
    fn row_major_gemms_come_out_row_major() {
        let (m, n, k) = (2, 3, 5);
        for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            let (dtype, epilogue) = (Dtype::F32, BlasEpilogue::None);
            let (tf32, adds_c) = (false, false);
            let gemm = BlasGemm { m, n, k, a_transposed, b_transposed, dtype, tf32, adds_c, epilogue };
            let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 13) as f32).collect();
            let a_at = |i: usize, l: usize| if a_transposed { a[l * m + i] } else { a[i * k + l] };
            let b_at = |l: usize, j: usize| if b_transposed { b[j * k + l] } else { b[l * n + j] };
            let d = as_the_library_does(&gemm, &a, &b);
            for i in 0..m {
                for j in 0..n {
                    let expected: f32 = (0..k).map(|l| a_at(i, l) * b_at(l, j)).sum();
                    assert_eq!(d[i * n + j], expected, "{gemm} at {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn attributes_have_the_sizes_that_the_library_documents() {
        assert_eq!(size_of::<sys::cublasLtEpilogue_t>(), 4);
        assert_eq!(size_of::<sys::cublasLtReductionScheme_t>(), 4);
    }
}
