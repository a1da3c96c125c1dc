//! The gradient of dropout in the residual stream. The forward pass drops in the kernels of
//! layernorm.

use super::Cuda;
use super::kernel::{DropoutArg, FloatX, Launch, Ptr, kernels};
use crate::ops::Dropout;
use crate::tensor::Tensor;
use anyhow::Result;

kernels! {
    "dropout.cu":
    fn dropout_backward(dinp: Ptr<FloatX>, dout: Ptr<FloatX>, dropout: DropoutArg, N: i32, C: i32);
}

pub fn backward(cuda: &mut Cuda, dinp: Tensor, dout: Tensor, C: usize, dropout: Dropout) -> Result<()> {
    const THREADS: usize = 256;
    let (N, packs) = (dinp.len / C, C / cuda.pack());
    assert!(C > 0 && C.is_multiple_of(8), "dropout of {C} channels: a multiple of 8 is needed");
    assert!(dinp.len == N * C && dout.len == dinp.len);
    assert!(u32::try_from(N * packs).is_ok(), "a batch of {N} x {C} is too large");
    let launch = Launch::new((N * packs).div_ceil(THREADS), THREADS as u32);
    let Cuda { driver, memory: m, .. } = cuda;
    let (dinp, dout, dropout) = (m.x(dinp), m.x(dout), m.dropout(Some(dropout)));
    kernel::dropout_backward(driver.as_mut(), launch, dinp, dout, dropout, N as i32, C as i32)
}
