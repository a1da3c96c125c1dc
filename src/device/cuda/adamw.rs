//! AdamW.

use super::Cuda;
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::{Result, bail};

pub fn update(_cuda: &mut Cuda, _a: AdamW) -> Result<()> {
    bail!("no kernel yet")
}
