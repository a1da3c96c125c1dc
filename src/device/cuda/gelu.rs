//! GELU alone.

use super::Cuda;
use super::kernel::{FloatX, Ptr, kernels};
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "gelu.cu":
    fn gelu_forward(out: Ptr<FloatX>, inp: Ptr<FloatX>, n: u64);
    fn gelu_backward_inplace(dinp: Ptr<FloatX>, pre_gelu: Ptr<FloatX>, n: u64);
}

pub fn forward(cuda: &mut Cuda, out: Tensor, inp: Tensor) -> Result<()> {
    let launch = cuda.launch_by_packs("GELU", &[out, inp]);
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::gelu_forward(driver.as_mut(), launch, m.x(out), m.x(inp), out.len as u64)
}

/// dinp *= gelu'(pre_gelu): what follows a matrix product that did not do it on the way.
pub fn backward_inplace(cuda: &mut Cuda, dinp: Tensor, pre_gelu: Tensor) -> Result<()> {
    let launch = cuda.launch_by_packs("GELU", &[dinp, pre_gelu]);
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::gelu_backward_inplace(driver.as_mut(), launch, m.x(dinp), m.x(pre_gelu), dinp.len as u64)
}
