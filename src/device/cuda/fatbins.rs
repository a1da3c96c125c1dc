//! The kernels as nvcc compiled them, contained in the library. `build.rs` writes the table.

use crate::tensor::Dtype;

/// One kernel file, compiled for one `floatX` and all architectures.
#[derive(Debug)]
pub struct Fatbin {
    /// Under `kernels/`.
    pub file: &'static str,
    /// `bf16`, `f16` or `f32`
    pub floatx: &'static str,
    /// What `cuModuleLoadData` takes.
    pub image: &'static [u8],
}

/// CUDA's loader reads an image as words.
#[allow(dead_code)] // where there are no images
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Those of `fatbins` for one file and one type of numbers.
pub fn find(fatbins: &'static [Fatbin], file: &str, dtype: Dtype) -> Option<&'static Fatbin> {
    fatbins.iter().find(|f| f.file == file && dtype.names().contains(&f.floatx))
}
