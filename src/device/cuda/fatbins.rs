//! The kernels as nvcc compiled them, contained in the library. The build script writes the table.

use crate::tensor::Dtype;

/// One kernel file, compiled for one `floatX` and all architectures.
#[derive(Debug)]
pub struct Fatbin {
    /// Relative to `kernels/`.
    pub file: &'static str,
    /// `bf16`, `f16` or `f32`
    pub floatx: &'static str,
    /// The image that `cuModuleLoadData` takes.
    pub image: &'static [u8],
}

/// CUDA's loader reads an image word by word.
#[allow(dead_code)] // in builds without images
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The name of the `floatX` that kernels for a type are compiled with.
pub fn floatx(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        _ => "bf16",
    }
}

/// The image of one file for one floating-point type.
pub fn find(fatbins: &'static [Fatbin], file: &str, dtype: Dtype) -> Option<&'static Fatbin> {
    let floatx = floatx(dtype);
    fatbins.iter().find(|f| f.file == file && f.floatx == floatx)
}
