//! Matrix products.

use super::Cuda;
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::{Result, bail};

pub fn scratch_bytes(_cuda: &Cuda, _limits: &Limits) -> Result<usize> {
    Ok(0)
}

pub fn forward(_cuda: &mut Cuda, _a: MatmulForward) -> Result<()> {
    bail!("no kernel yet")
}

pub fn backward(_cuda: &mut Cuda, _a: MatmulBackward) -> Result<()> {
    bail!("no kernel yet")
}
