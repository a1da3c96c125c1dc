//! LayerNorm over C (Ba et al. 2016).
#![allow(non_snake_case)]

pub fn forward(
    out: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
    inp: &[f32],
    weight: &[f32],
    bias: &[f32],
    C: usize,
) {
    let _ = (out, mean, rstd, inp, weight, bias, C);
    todo!()
}

/// What [`backward`] adds to.
pub struct Gradients<'a> {
    pub dinp: &'a mut [f32],
    pub dweight: &'a mut [f32],
    pub dbias: &'a mut [f32],
}

pub fn backward(
    gradients: Gradients,
    dout: &[f32],
    inp: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    C: usize,
) {
    let _ = (gradients.dinp, gradients.dweight, gradients.dbias, dout, inp, weight, mean, rstd, C);
    todo!()
}
