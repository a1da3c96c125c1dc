//! GELU alone.

use super::Cuda;
use super::kernel::{FloatX, Launch, Ptr, kernels};
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "gelu.cu":
    fn gelu_forward(out: Ptr<FloatX>, inp: Ptr<FloatX>, n: u64);
    fn gelu_backward_inplace(dinp: Ptr<FloatX>, pre_gelu: Ptr<FloatX>, n: u64);
}

const THREADS: u32 = 256;

/// One thread a pack.
fn launch(n: usize, pack: usize) -> Launch {
    assert!(n.is_multiple_of(pack), "GELU of {n} elements, which is no multiple of {pack}");
    Launch::new((n / pack).div_ceil(THREADS as usize), THREADS)
}

pub fn forward(cuda: &mut Cuda, out: Tensor, inp: Tensor) -> Result<()> {
    assert_eq!(out.len, inp.len);
    let launch = launch(out.len, cuda.pack());
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::gelu_forward(driver.as_mut(), launch, m.x(out), m.x(inp), out.len as u64)
}

/// dinp *= gelu'(pre_gelu): what follows a matrix product that did not do it on the way.
pub fn backward_inplace(cuda: &mut Cuda, dinp: Tensor, pre_gelu: Tensor) -> Result<()> {
    assert_eq!(dinp.len, pre_gelu.len);
    let launch = launch(dinp.len, cuda.pack());
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::gelu_backward_inplace(driver.as_mut(), launch, m.x(dinp), m.x(pre_gelu), dinp.len as u64)
}
