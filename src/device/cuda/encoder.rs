//! Token and position embeddings.

use super::Cuda;
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::{Result, bail};

pub fn forward(
    _cuda: &mut Cuda,
    _encoded: Tensor,
    _tokens: Tensor,
    _wte: Tensor,
    _wpe: Tensor,
    _dims: (usize, usize, usize),
) -> Result<()> {
    bail!("no kernel yet")
}

pub fn backward(_cuda: &mut Cuda, _a: EncoderBackward) -> Result<()> {
    bail!("no kernel yet")
}
