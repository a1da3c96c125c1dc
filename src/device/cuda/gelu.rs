//! GELU as a kernel of its own.

use super::Cuda;
use super::driver::Driver;
use super::kernel::{FloatX, Launch, Ptr, kernels};
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "gelu.cu":
    fn gelu_forward(out: Ptr<FloatX>, inp: Ptr<FloatX>, n: u64);
    fn gelu_backward_inplace(dinp: Ptr<FloatX>, pre_gelu: Ptr<FloatX>, n: u64);
}

pub fn forward(cuda: &mut Cuda, out: Tensor, inp: Tensor) -> Result<()> {
    let gelu = Gelu::new(cuda, out, inp);
    gelu.forward(cuda.driver.as_mut())
}

/// A launch of GELU from `inp` to `out`, or of its gradient into `out`.
#[derive(Clone, Copy)]
pub struct Gelu {
    launch: Launch,
    out: Ptr<FloatX>,
    inp: Ptr<FloatX>,
    n: u64,
}

impl Gelu {
    pub fn new(cuda: &Cuda, out: Tensor, inp: Tensor) -> Self {
        let (launch, m) = (cuda.launch_by_packs("GELU", &[out, inp]), &cuda.memory);
        Gelu { launch, out: m.x(out), inp: m.x(inp), n: out.len as u64 }
    }

    /// Computes out = gelu(inp).
    pub fn forward(self, driver: &mut dyn Driver) -> Result<()> {
        kernel::gelu_forward(driver, self.launch, self.out, self.inp, self.n)
    }

    /// Computes out *= gelu'(inp), after a GEMM without that epilogue.
    pub fn backward(self, driver: &mut dyn Driver) -> Result<()> {
        kernel::gelu_backward_inplace(driver, self.launch, self.out, self.inp, self.n)
    }
}
