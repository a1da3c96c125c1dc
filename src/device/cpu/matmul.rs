//! Matrix products with their epilogues, in f32 or with bf16 operands.
#![allow(non_snake_case)]

use anyhow::Result;

/// Type of the operands of matrix products; sums are f32 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// # Errors
    /// If this CPU lacks the instructions.
    pub fn require_support(self) -> Result<()> {
        todo!()
    }

    /// `"f32 (AVX-512)"`, `"bf16 (AMX)"`, …
    pub fn describe(self) -> String {
        todo!()
    }
}

/// Buffers that outlive one product.
#[derive(Default)]
pub struct Scratch {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub N: usize,
    pub C: usize,
    pub OC: usize,
}

/// [`crate::ops::Epilogue`] over slices.
pub enum Epilogue<'a> {
    None,
    Bias { bias: &'a [f32] },
    BiasGelu { bias: &'a [f32], pre_gelu: &'a mut [f32] },
    BiasResidual { bias: &'a [f32], residual: &'a [f32] },
}

/// See [`crate::ops::MatmulForward`].
pub fn forward(
    precision: Precision,
    scratch: &mut Scratch,
    out: &mut [f32],
    inp: &[f32],
    weight: &[f32],
    epilogue: Epilogue,
    shape: Shape,
) {
    let _ = (precision, scratch, out, inp, weight, epilogue, shape);
    todo!()
}

/// What [`backward`] writes.
pub struct Gradients<'a> {
    pub dinp: &'a mut [f32],
    pub dweight: &'a mut [f32],
    pub overwrite_dweight: bool,
    pub dbias: Option<&'a mut [f32]>,
}

/// See [`crate::ops::MatmulBackward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    precision: Precision,
    scratch: &mut Scratch,
    gradients: Gradients,
    dout: &[f32],
    inp: &[f32],
    weight: &[f32],
    through_gelu: Option<&[f32]>,
    shape: Shape,
) {
    let _ =
        (precision, scratch, gradients.dinp, gradients.dweight, gradients.overwrite_dweight, gradients.dbias);
    let _ = (dout, inp, weight, through_gelu, shape);
    todo!()
}
