//! GELU as a kernel of its own.

use super::Cuda;
use super::driver::Driver;
use super::kernel::{FloatX, Launch, Ptr, kernels};
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "gelu.cu":
    fn gelu_forward(out: Ptr<FloatX>, inp: Ptr<FloatX>, n: u64);
    fn gelu_recompute(out: Ptr<FloatX>, kept: Ptr<FloatX>, n: u64);
    fn gelu_backward_inplace(dinp: Ptr<FloatX>, gelu_gradient: Ptr<FloatX>, n: u64);
}

pub fn recompute(cuda: &mut Cuda, out: Tensor, kept: Tensor) -> Result<()> {
    let gelu = Gelu::new(cuda, out, kept);
    gelu.recompute(cuda.driver.as_mut())
}

/// A launch of one of the kernels. `out` is the output of the GELU or the gradient of its input.
#[derive(Clone, Copy)]
pub struct Gelu {
    launch: Launch,
    out: Ptr<FloatX>,
    kept: Ptr<FloatX>,
    n: u64,
}

impl Gelu {
    pub fn new(cuda: &Cuda, out: Tensor, kept: Tensor) -> Self {
        let (launch, m) = (cuda.launch_by_packs("GELU", &[out, kept]), &cuda.memory);
        Gelu { launch, out: m.x(out), kept: m.x(kept), n: out.len as u64 }
    }

    /// Computes out = gelu(kept).
    pub fn forward(self, driver: &mut dyn Driver) -> Result<()> {
        kernel::gelu_forward(driver, self.launch, self.out, self.kept, self.n)
    }

    /// Computes out = gelu(kept), and kept = gelu'(kept) in place.
    pub fn recompute(self, driver: &mut dyn Driver) -> Result<()> {
        kernel::gelu_recompute(driver, self.launch, self.out, self.kept, self.n)
    }

    /// Computes out *= kept, after a GEMM without that epilogue.
    pub fn backward(self, driver: &mut dyn Driver) -> Result<()> {
        kernel::gelu_backward_inplace(driver, self.launch, self.out, self.kept, self.n)
    }
}
