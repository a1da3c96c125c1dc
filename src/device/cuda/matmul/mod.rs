//! Matmuls: the GEMM of the forward pass and the two of the backward pass, each with its epilogue
//! in the same kernel.
//!
//! `own` and `hopper` launch our kernels, `library` describes a GEMM to the vendor's library, and
//! `plan` ranks them by estimate. `verify` compares their results, `tune` times them, and `cache`
//! keeps what was chosen.

mod cache;
#[cfg(all(test, emulated))]
pub mod fake;
mod gemm;
mod hopper;
mod library;
mod own;
mod plan;
#[cfg(all(test, emulated))]
pub mod tests;
mod tune;
mod verify;

use super::driver::Driver;
use super::gelu::Gelu;
use super::kernel::KernelSpec;
use super::{AUTO, Cuda, MatmulChoice};
use crate::ops::*;
use crate::tensor::Tensor;
use anyhow::Result;
use gemm::{Dgrad, Forward, Gemm, Pass, Wgrad, X};
use plan::{Chooser, Scratch};

pub use cache::Plans;
#[cfg(test)]
pub use hopper::Problem;
pub use hopper::flags;
pub use tune::stopwatch;

/// The kernels of this operation.
pub static KERNELS: [&[&KernelSpec]; 3] = [own::KERNELS, own::exact::KERNELS, hopper::KERNELS];

fn chooser(cuda: &Cuda) -> Chooser {
    Chooser::new(cuda.options, cuda.driver.info())
}

/// Returns the scratch memory for the GEMMs of GPT-2's layers and logits.
pub fn scratch_bytes(cuda: &Cuda, limits: &Limits) -> usize {
    let Limits { rows, logits_rows, C, Vp, .. } = *limits;
    let shapes = [
        (rows, C, 3 * C),
        (rows, C, C),
        (rows, C, 4 * C),
        (rows, 4 * C, C),
        (logits_rows, C, Vp),
        (1, C, Vp),
    ];
    let none = X::NULL;
    let forward = Forward { out: none, inp: none, weight: none, epilogue: Epilogue::None };
    let dgrad = Dgrad { dinp: none, dout: none, weight: none, gelu_gradient: none };
    let wanted = X::new(1);
    let wgrad = Wgrad { dweight: none, dbias: wanted, dout: none, inp: none, accumulate: false };
    let passes = [Pass::Forward(forward), Pass::Dgrad(dgrad), Pass::Wgrad(wgrad)];
    let dtype = cuda.options.dtype;
    let gemms = shapes.into_iter().flat_map(|(N, C, OC)| passes.map(|pass| Gemm { pass, dtype, N, C, OC }));
    gemms.map(|gemm| tune::scratch_bytes(chooser(cuda), &gemm)).max().unwrap_or_default()
}

/// Queues a GEMM by its best plan.
fn run(cuda: &mut Cuda, gemm: Gemm) -> Result<()> {
    assert!(
        gemm.C.is_multiple_of(8) && gemm.OC.is_multiple_of(8),
        "rows of {} and {} elements, which are not multiples of 8",
        gemm.C,
        gemm.OC
    );
    let (chooser, scratch) = (chooser(cuda), scratch(cuda));
    let driver = cuda.driver.as_mut();
    let plan = cuda.matmul_plans.find(driver, chooser, &gemm, scratch)?;
    chooser.run(driver, plan, &gemm, scratch)
}

pub fn forward(cuda: &mut Cuda, a: MatmulForward) -> Result<()> {
    let MatmulForward { out, inp, weight, epilogue, N, C, OC } = a;
    let [bias, kept, residual] = epilogue.operands();
    check("out", Some(out), N * OC);
    check("inp", Some(inp), N * C);
    check("weight", Some(weight), OC * C);
    check("bias", bias, OC);
    check("kept", kept, N * OC);
    check("residual", residual, N * OC);
    let m = &cuda.memory;
    let epilogue = epilogue.map(|tensor| m.x(tensor));
    let fused = Forward { out: m.x(out), inp: m.x(inp), weight: m.x(weight), epilogue };
    let dtype = cuda.options.dtype;
    let gemm = |forward| Gemm { pass: Pass::Forward(forward), dtype, N, C, OC };
    let (Some(tensor), Epilogue::BiasGelu { bias, kept }) = (kept, epilogue) else {
        return run(cuda, gemm(fused));
    };
    let apart = gemm(Forward { out: kept.tensor(), epilogue: Epilogue::Bias { bias }, ..fused });
    let (fused, gelu) = (gemm(fused), Gelu::new(cuda, out, tensor));
    let gelu = move |driver: &mut dyn Driver| match kept {
        Kept::Input(_) => gelu.forward(driver),
        Kept::Gradient(_) => gelu.recompute(driver),
    };
    if fuses(cuda, 1, [&fused, &apart], gelu)? {
        return run(cuda, fused);
    }
    run(cuda, apart)?;
    gelu(cuda.driver.as_mut())
}

/// Queues the gradient of the input.
pub fn dgrad(cuda: &mut Cuda, a: MatmulBackward) -> Result<()> {
    let MatmulBackward { dinp, dout, weight, gelu_gradient, N, C, OC, .. } = a;
    check("dinp", Some(dinp), N * C);
    check("dout", Some(dout), N * OC);
    check("weight", Some(weight), OC * C);
    check("gelu_gradient", gelu_gradient, N * C);
    let m = &cuda.memory;
    let factors = gelu_gradient.map_or(X::NULL, |tensor| m.x(tensor));
    let fused = Dgrad { dinp: m.x(dinp), dout: m.x(dout), weight: m.x(weight), gelu_gradient: factors };
    let dtype = cuda.options.dtype;
    let gemm = |dgrad| Gemm { pass: Pass::Dgrad(dgrad), dtype, N, C, OC };
    let Some(gelu_gradient) = gelu_gradient else { return run(cuda, gemm(fused)) };
    let gelu = Gelu::new(cuda, dinp, gelu_gradient);
    let apart = gemm(Dgrad { gelu_gradient: X::NULL, ..fused });
    let fused = gemm(fused);
    if fuses(cuda, 2, [&fused, &apart], |driver| gelu.backward(driver))? {
        return run(cuda, fused);
    }
    run(cuda, apart)?;
    gelu.backward(cuda.driver.as_mut())
}

/// Whether to fuse GELU into a GEMM of the pass whose fusion starts at `level`. Without a
/// measurement it is fused on Hopper only, whose kernels hide it best. The library fuses none.
fn fuses(
    cuda: &mut Cuda,
    level: i32,
    gemms: [&Gemm; 2],
    gelu: impl FnMut(&mut dyn Driver) -> Result<()>,
) -> Result<bool> {
    let (chooser, scratch) = (chooser(cuda), scratch(cuda));
    let by_rule = cuda.driver.info().capability == (9, 0);
    match cuda.options.gelu_fusion {
        _ if chooser.options.matmul == MatmulChoice::Cublaslt => Ok(false),
        AUTO if !chooser.measures() => Ok(by_rule),
        AUTO => {
            let measured = cuda.matmul_plans.fuses(cuda.driver.as_mut(), chooser, gemms, gelu, scratch)?;
            Ok(measured.unwrap_or(by_rule))
        }
        fused => Ok(fused >= level),
    }
}

fn scratch(cuda: &Cuda) -> Scratch {
    let (address, bytes) = cuda.memory.all_scratch();
    Scratch { address, bytes, signals: cuda.memory.signals() }
}

/// Queues the gradients of weight and bias, if they are wanted.
pub fn wgrad(cuda: &mut Cuda, a: MatmulBackward) -> Result<()> {
    let MatmulBackward { dweight, dbias, dout, inp, N, C, OC, .. } = a;
    let Some(dweight) = dweight else {
        assert!(dbias.is_none(), "the gradient of a bias comes with that of its matrix");
        return Ok(());
    };
    check("dweight", Some(dweight), OC * C);
    check("dbias", dbias, OC);
    check("dout", Some(dout), N * OC);
    check("inp", Some(inp), N * C);
    let m = &cuda.memory;
    let wgrad = Wgrad {
        dweight: m.x(dweight),
        dbias: dbias.map_or(X::NULL, |dbias| m.x(dbias)),
        dout: m.x(dout),
        inp: m.x(inp),
        accumulate: !a.overwrite_dweight,
    };
    run(cuda, Gemm { pass: Pass::Wgrad(wgrad), dtype: cuda.options.dtype, N, C, OC })
}

#[track_caller]
fn check(what: &str, tensor: Option<Tensor>, len: usize) {
    if let Some(tensor) = tensor {
        assert_eq!(tensor.len, len, "elements of {what}");
    }
}
