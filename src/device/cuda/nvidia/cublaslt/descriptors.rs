//! A product in cuBLASLt's words.
//!
//! Its matrices are column-major, so that what we call X (rows, cols) it sees as Xᵀ. Our D = A B is its Dᵀ = Bᵀ Aᵀ: B is its
//! first operand and A its second, D has n rows and m columns, and a bias goes along its rows, as it expects.

use crate::device::cuda::matmul_library::{Numbers, Operands, Product, ProductEpilogue};
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

/// Rows, columns and distance of columns in memory, as the library counts.
type Shape = (u64, u64, i64);

/// Its first operand, its second one, and the result.
fn shapes(p: &Product) -> [Shape; 3] {
    let row_major = |rows: usize, cols: usize| (cols as u64, rows as u64, cols as i64);
    let first = if p.b_transposed { row_major(p.n, p.k) } else { row_major(p.k, p.n) };
    let second = if p.a_transposed { row_major(p.k, p.m) } else { row_major(p.m, p.k) };
    [first, second, row_major(p.m, p.n)]
}

impl Descriptors {
    pub fn new(product: &Product) -> Result<Self> {
        let numbers = match product.numbers {
            Numbers::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Numbers::F16 => sys::cudaDataType::CUDA_R_16F,
            Numbers::F32 | Numbers::Tf32 => sys::cudaDataType::CUDA_R_32F,
        };
        let [a, b, d] = shapes(product).map(|shape| Layout::new(numbers, shape));
        Ok(Descriptors { operation: Operation::new(product)?, a: a?, b: b?, d: d? })
    }

    /// The operands that the library wants in the description of the operation.
    pub fn set_pointers(&self, product: &Product, operands: &Operands) -> Result<()> {
        match product.epilogue {
            ProductEpilogue::None => Ok(()),
            ProductEpilogue::Bias => {
                self.operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias)
            }
            ProductEpilogue::BiasGelu => {
                self.operation.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias)?;
                self.operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, operands.aux)
            }
            ProductEpilogue::Dgelu => {
                self.operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, operands.aux)
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

    /// Of D and of C.
    pub fn d(&self) -> sys::cublasLtMatrixLayout_t {
        self.d.0
    }
}

struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new(product: &Product) -> Result<Self> {
        let compute = match product.numbers {
            Numbers::Tf32 => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let scalars = sys::cudaDataType::CUDA_R_32F;
        let operation = Operation(lt::create_matmul_desc(compute, scalars).map_err(failed("a product"))?);
        // CUBLAS_OP_N = 0, CUBLAS_OP_T = 1
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(product.b_transposed))?;
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(product.a_transposed))?;
        let (epilogue, has_aux) = match product.epilogue {
            ProductEpilogue::None => (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT, false),
            ProductEpilogue::Bias => (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS, false),
            ProductEpilogue::BiasGelu => (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_AUX_BIAS, true),
            ProductEpilogue::Dgelu => (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DGELU, true),
        };
        operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
        if has_aux {
            operation.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, product.n as i64)?;
        }
        Ok(operation)
    }

    /// `value` has the type that the library documents for the attribute: 4 bytes for enumerations, 8 for addresses and lengths.
    fn set<T: Copy>(&self, attribute: Attribute, value: T) -> Result<()> {
        let bytes = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the descriptor lives, and the library copies the bytes.
        unsafe { lt::set_matmul_desc_attribute(self.0, attribute, bytes, size_of::<T>()) }
            .map_err(failed(&format!("{attribute:?}")))
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(numbers: sys::cudaDataType, (rows, cols, distance): Shape) -> Result<Self> {
        Ok(Layout(lt::create_matrix_layout(numbers, rows, cols, distance).map_err(failed("a matrix"))?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// What algorithms may use and assume.
pub struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    /// `[a, b, c, d]`: how our operands are aligned, in bytes.
    pub fn new(workspace_bytes: usize, [a, b, c, d]: [u32; 4]) -> Result<Self> {
        let preference = Preference(lt::create_matmul_pref().map_err(failed("a preference"))?);
        preference.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes as u64)?;
        // Where the sum is split, the parts are added in f32, too.
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
        // SAFETY: the preference lives, and the library copies the bytes.
        unsafe { lt::set_matmul_pref_attribute(self.0, wish, bytes, size_of::<T>()) }
            .map_err(failed(&format!("{wish:?}")))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's operation over column-major matrices, by its definition, with the shapes and transposes we give it.
    fn as_the_library_does(p: &Product, a: &[f32], b: &[f32]) -> Vec<f32> {
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
    fn row_major_products_come_out_row_major() {
        let (m, n, k) = (2, 3, 5);
        for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            let (numbers, epilogue) = (Numbers::F32, ProductEpilogue::None);
            let product = Product { m, n, k, a_transposed, b_transposed, numbers, adds_c: false, epilogue };
            let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 13) as f32).collect();
            let a_at = |i: usize, l: usize| if a_transposed { a[l * m + i] } else { a[i * k + l] };
            let b_at = |l: usize, j: usize| if b_transposed { b[j * k + l] } else { b[l * n + j] };
            let d = as_the_library_does(&product, &a, &b);
            for i in 0..m {
                for j in 0..n {
                    let expected: f32 = (0..k).map(|l| a_at(i, l) * b_at(l, j)).sum();
                    assert_eq!(d[i * n + j], expected, "{product:?} at {i}, {j}");
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
