//! A tensor times a number.

use super::Cuda;
use super::kernel::{FloatX, Ptr, kernels};
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "scale.cu":
    fn scale_x(dst: Ptr<FloatX>, factor: f32, n: u64);
}

/// Computes dst *= factor.
pub fn scale(cuda: &mut Cuda, dst: Tensor, factor: f32) -> Result<()> {
    let launch = cuda.launch_by_packs("a product", &[dst]);
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::scale_x(driver.as_mut(), launch, m.x(dst), factor, dst.len as u64)
}
