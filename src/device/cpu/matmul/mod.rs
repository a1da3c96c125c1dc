//! Matmuls with their epilogues, in f32 or with bf16 operands.
//!
//! Every matmul of a training step is a [`Product`]: `out = epilogue(lhs @ rhs)` over strided
//! views, so that forward, dgrad and wgrad differ only in strides. An [`Engine`] runs it: our own
//! kernels where the CPU has AVX-512 or AMX, otherwise the `gemm` crate.

mod engine;
#[cfg(target_arch = "x86_64")]
mod kernels;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod packed;
mod portable;
mod product;
#[cfg(test)]
mod tests;

use crate::ops::Limits;
use engine::Engine;
use product::Product;
use rayon::prelude::*;

pub use engine::{Precision, Scratch};
pub use product::{Epilogue, View, cells};

/// Bytes of the packed operands of all matmuls within `limits`, forward and backward; the gradient
/// of the head's weights only if `head_gradient`.
pub fn packed_bytes(precision: Precision, limits: &Limits, head_gradient: bool) -> usize {
    let &Limits { rows, logits_rows, C, Vp, .. } = limits;
    let blocks = [(rows, C, 3 * C), (rows, C, C), (rows, C, 4 * C), (rows, 4 * C, C)];
    // Rows of lhs, and the length of sums: of out, dinp and dweight.
    let of_blocks = blocks.into_iter().flat_map(|(N, C, OC)| [(N, C), (N, OC), (OC, N)]);
    let of_head = [(logits_rows, C), (logits_rows, Vp)];
    let gradient = head_gradient.then_some((Vp, logits_rows));
    Engine::of(precision).packed_bytes(of_blocks.chain(of_head).chain(gradient))
}

/// out is (N, OC), inp (N, C), weight (OC, C).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub N: usize,
    pub C: usize,
    pub OC: usize,
}

/// See [`crate::ops::MatmulForward`].
///
/// # Panics
/// If a slice's length does not match `shape`, or the CPU does not support `precision`.
pub fn forward(
    precision: Precision,
    scratch: &mut Scratch,
    out: &mut [f32],
    inp: &[f32],
    weight: &[f32],
    epilogue: Epilogue,
    shape: Shape,
) {
    forward_on(Engine::of(precision), scratch, out, inp, weight, epilogue, shape);
}

fn forward_on(
    engine: Engine,
    scratch: &mut Scratch,
    out: &mut [f32],
    inp: &[f32],
    weight: &[f32],
    epilogue: Epilogue,
    shape: Shape,
) {
    let Shape { N, C, OC } = shape;
    let (lhs, rhs) = (View::new(inp, N, C), View::new(weight, OC, C).transposed());
    engine.run(scratch, Product::new(out, lhs, rhs, epilogue));
}

/// out = lhs @ rhs
///
/// # Panics
/// If the lengths do not match, or the CPU does not support `precision`.
pub fn product(precision: Precision, scratch: &mut Scratch, out: &mut [f32], lhs: View, rhs: View) {
    Engine::of(precision).run(scratch, Product::new(out, lhs, rhs, Epilogue::Assign));
}

/// The outputs of [`backward`].
pub struct Gradients<'a> {
    pub dinp: &'a mut [f32],
    pub dweight: Option<&'a mut [f32]>,
    pub overwrite_dweight: bool,
    pub dbias: Option<&'a mut [f32]>,
}

/// See [`crate::ops::MatmulBackward`].
///
/// # Panics
/// If a slice's length does not match `shape`, or the CPU does not support `precision`.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    precision: Precision,
    scratch: &mut Scratch,
    gradients: Gradients,
    dout: &[f32],
    inp: &[f32],
    weight: &[f32],
    gelu_gradient: Option<&[f32]>,
    shape: Shape,
) {
    backward_on(Engine::of(precision), scratch, gradients, dout, inp, weight, gelu_gradient, shape);
}

#[allow(clippy::too_many_arguments)]
fn backward_on(
    engine: Engine,
    scratch: &mut Scratch,
    gradients: Gradients,
    dout: &[f32],
    inp: &[f32],
    weight: &[f32],
    gelu_gradient: Option<&[f32]>,
    shape: Shape,
) {
    let Shape { N, C, OC } = shape;
    let (dout_view, inp, weight) = (View::new(dout, N, OC), View::new(inp, N, C), View::new(weight, OC, C));

    let epilogue = gelu_gradient.map_or(Epilogue::Assign, |factors| Epilogue::Times { factors });
    engine.run(scratch, Product::new(gradients.dinp, dout_view, weight, epilogue));

    if let Some(dweight) = gradients.dweight {
        let epilogue = if gradients.overwrite_dweight { Epilogue::AssignFar } else { Epilogue::Add };
        engine.run(scratch, Product::new(dweight, dout_view.transposed(), inp, epilogue));
    }

    if let Some(dbias) = gradients.dbias {
        assert_eq!(dbias.len(), OC);
        add_column_sums(dbias, dout);
    }
}

/// `sums[j] += matrix[0][j] + matrix[1][j] + …` in that order, so that the result does not depend
/// on the threads.
fn add_column_sums(sums: &mut [f32], matrix: &[f32]) {
    /// Columns per task: rows of 1 KiB keep the prefetcher busy.
    const COLUMNS: usize = 256;
    let width = sums.len();
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
        let mut partial = [0f32; COLUMNS];
        let partial = &mut partial[..sums.len()];
        for row in matrix.chunks_exact(width) {
            let row = &row[chunk * COLUMNS..][..partial.len()];
            partial.iter_mut().zip(row).for_each(|(p, &x)| *p += x);
        }
        sums.iter_mut().zip(partial).for_each(|(s, &mut p)| *s += p);
    });
}
