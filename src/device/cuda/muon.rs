//! Muon: momentum, the Newton-Schulz iteration around our matmuls, and the step.

use super::kernel::{Bf16, FloatX, Ptr, kernels};
use super::{Cuda, matmul, reduce};
use crate::ops::*;
use crate::tensor::{Dtype, Tensor};
use anyhow::Result;

kernels! {
    "muon.cu":
    fn muon_momentum(
        grads: Ptr<FloatX>, m: Ptr<f32>, momentum: f32, grad_scale: f32, seed: u32, first: u64, n: u64,
    );
    fn muon_momentum_bf16_state(
        grads: Ptr<FloatX>, m: Ptr<Bf16>, momentum: f32, grad_scale: f32, seed: u32, first: u64, n: u64,
    );
    fn muon_normalize(out: Ptr<FloatX>, inp: Ptr<FloatX>, norm_squared: Ptr<f32>, eps: f32, n: u64);
    fn muon_polynomial(squared: Ptr<FloatX>, gram: Ptr<FloatX>, a: f32, b: f32, c: f32, size: i32);
    fn muon_step(
        params: Ptr<FloatX>, master: Ptr<f32>, direction: Ptr<FloatX>, rate: f32, decay: f32, seed: u32, first: u64, n: u64,
    );
}

/// Checks that the four parameters that are rounded together are in one call.
fn check_first(first: u64) {
    assert!(
        first.is_multiple_of(4),
        "Muon from parameter {first} on: it must be a multiple of 4, as four are rounded together"
    );
}

pub fn momentum(cuda: &mut Cuda, a: MuonMomentum) -> Result<()> {
    check_first(a.first);
    let launch = cuda.launch_by_packs("momentum", &[a.grads, a.m]);
    let (n, Cuda { driver, memory, .. }) = (a.grads.len as u64, cuda);
    let (dev, grads) = (driver.as_mut(), memory.x(a.grads));
    let MuonMomentum { momentum, grad_scale, seed, first, .. } = a;
    match a.m.dtype {
        Dtype::Bf16 => {
            let m = memory.bf16(a.m);
            kernel::muon_momentum_bf16_state(dev, launch, grads, m, momentum, grad_scale, seed, first, n)
        }
        _ => kernel::muon_momentum(dev, launch, grads, memory.f32(a.m), momentum, grad_scale, seed, first, n),
    }
}

/// Each iteration multiplies three times. A matrix with more rows than columns is not transposed:
/// its gram matrix is Xᵀ X, and the polynomial of that multiplies it from the right.
pub fn newton_schulz(cuda: &mut Cuda, a: NewtonSchulz) -> Result<()> {
    let NewtonSchulz { x, rows, columns, .. } = a;
    assert_eq!(x.len, rows * columns, "elements of x");
    let [other, gram, squared] = a.buffers();
    let size = a.size();
    normalize(cuda, other, x)?;
    let (mut from, mut to) = (other, x);
    for _ in 0..NewtonSchulz::STEPS {
        gram_matrix(cuda, gram, from, &a)?;
        let square = MatmulForward {
            out: squared,
            inp: gram,
            weight: gram,
            epilogue: Epilogue::None,
            N: size,
            C: size,
            OC: size,
        };
        matmul::forward(cuda, square)?;
        polynomial(cuda, squared, gram, size)?;
        apply(cuda, to, squared, from, &a)?;
        std::mem::swap(&mut from, &mut to);
    }
    assert_eq!(from, x, "an odd number of iterations ends where it began");
    Ok(())
}

/// out = x / |x|
fn normalize(cuda: &mut Cuda, out: Tensor, x: Tensor) -> Result<()> {
    let launch = cuda.launch_by_packs("a normalized matrix", &[out, x]);
    let partials = reduce::most_partials(cuda.driver.info().sm_count);
    let norm = cuda.memory.scratch((partials + 1) * size_of::<f32>());
    let (norm, partials) = (Ptr::new(norm), Ptr::new(norm + size_of::<f32>() as u64));
    let Cuda { driver, memory: m, .. } = cuda;
    let dev = driver.as_mut();
    reduce::norm_squared_at(dev, norm, partials, (m.x(x), x.len), x.dtype)?;
    kernel::muon_normalize(dev, launch, m.x(out), m.x(x), norm, NewtonSchulz::EPS, x.len as u64)
}

/// gram = x xᵀ, or xᵀ x if that is smaller.
fn gram_matrix(cuda: &mut Cuda, gram: Tensor, x: Tensor, a: &NewtonSchulz) -> Result<()> {
    let (size, longer) = (a.size(), a.rows.max(a.columns));
    if a.is_tall() {
        return matmul::wgrad(cuda, backward(gram, x, [longer, size, size]));
    }
    let (epilogue, N, C, OC) = (Epilogue::None, size, longer, size);
    matmul::forward(cuda, MatmulForward { out: gram, inp: x, weight: x, epilogue, N, C, OC })
}

/// out = p x, or x p if x has more rows than columns. p is symmetric.
fn apply(cuda: &mut Cuda, out: Tensor, p: Tensor, x: Tensor, a: &NewtonSchulz) -> Result<()> {
    let (size, longer) = (a.size(), a.rows.max(a.columns));
    if a.is_tall() {
        let (epilogue, N, C, OC) = (Epilogue::None, longer, size, size);
        return matmul::forward(cuda, MatmulForward { out, inp: x, weight: p, epilogue, N, C, OC });
    }
    let args = MatmulBackward { dout: p, weight: x, ..backward(out, x, [size, longer, size]) };
    matmul::dgrad(cuda, args)
}

/// One half of a backward pass, with `out` in place of its result and `x` of its operands.
fn backward(out: Tensor, x: Tensor, [N, C, OC]: [usize; 3]) -> MatmulBackward {
    MatmulBackward {
        dinp: out,
        dweight: Some(out),
        overwrite_dweight: true,
        dbias: None,
        dout: x,
        inp: x,
        weight: x,
        gelu_gradient: None,
        N,
        C,
        OC,
    }
}

fn polynomial(cuda: &mut Cuda, squared: Tensor, gram: Tensor, size: usize) -> Result<()> {
    let launch = cuda.launch_by_packs("a polynomial", &[squared, gram]);
    let [a, b, c] = NewtonSchulz::COEFFICIENTS;
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::muon_polynomial(driver.as_mut(), launch, m.x(squared), m.x(gram), a, b, c, size as i32)
}

pub fn step(cuda: &mut Cuda, a: MuonStep) -> Result<()> {
    check_first(a.first);
    let launch = cuda.launch_by_packs("Muon", &[a.params, a.direction, a.master.unwrap_or(a.direction)]);
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::muon_step(
        driver.as_mut(),
        launch,
        m.x(a.params),
        a.master.map_or(Ptr::NULL, |master| m.f32(master)),
        m.x(a.direction),
        a.lr * a.scale,
        a.lr * a.weight_decay,
        a.seed,
        a.first,
        a.params.len as u64,
    )
}
