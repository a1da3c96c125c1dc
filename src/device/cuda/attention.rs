//! Causal attention.

use super::Cuda;
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::{Result, bail};

/// Arguments of the backward pass; see [`Ops::attention_backward`].
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub dqkv: Tensor,
    pub dout: Tensor,
    pub out: Tensor,
    pub lse: Tensor,
    pub qkv: Tensor,
    pub dims: AttentionDims,
}

pub fn scratch_bytes(_cuda: &Cuda, _limits: &Limits) -> Result<usize> {
    Ok(0)
}

pub fn forward(
    _cuda: &mut Cuda,
    _out: Tensor,
    _lse: Tensor,
    _qkv: Tensor,
    _dims: AttentionDims,
) -> Result<()> {
    bail!("no kernel yet")
}

pub fn backward(_cuda: &mut Cuda, _a: Backward) -> Result<()> {
    bail!("no kernel yet")
}

pub fn decode(_cuda: &mut Cuda, _out: Tensor, _qkv: Tensor, _t: usize, _dims: AttentionDims) -> Result<()> {
    bail!("no kernel yet")
}
