//! Adding one tensor to another.

use super::Cuda;
use super::kernel::{FloatX, Ptr, kernels};
use crate::tensor::{Dtype, Tensor};
use anyhow::Result;

kernels! {
    "add.cu":
    fn add_x(dst: Ptr<FloatX>, src: Ptr<FloatX>, n: u64);
    fn add_f32(dst: Ptr<f32>, src: Ptr<f32>, n: u64);
}

/// Computes dst += src.
pub fn add(cuda: &mut Cuda, dst: Tensor, src: Tensor) -> Result<()> {
    let launch = cuda.launch_by_packs("a sum", &[dst, src]);
    let (n, Cuda { driver, memory: m, .. }) = (dst.len as u64, cuda);
    match dst.dtype {
        Dtype::F32 => kernel::add_f32(driver.as_mut(), launch, m.f32(dst), m.f32(src), n),
        _ => kernel::add_x(driver.as_mut(), launch, m.x(dst), m.x(src), n),
    }
}
