//! Our GEMMs in the terms of a vendor's library. It computes all but those with a GELU: where
//! nothing is recomputed the forward pass keeps gelu'(h), which cuBLASLt's epilogues cannot.

use super::gemm::{Dgrad, Extent, Forward, Gemm, Pass, Wgrad, X};
use crate::device::cuda::matmul_library::{BlasEpilogue, BlasGemm, Operands};
use crate::ops::Epilogue;
use crate::tensor::Dtype;

/// Whether the library computes the GEMM.
pub fn computes(gemm: &Gemm) -> bool {
    !gemm.has_gelu()
}

/// Describes all of a GEMM that the library [`computes`] but the gradient of the bias.
pub fn describe(gemm: &Gemm, tf32: bool) -> (BlasGemm, Operands) {
    assert!(computes(gemm), "no library computes {}", gemm.key());
    let Extent { M: m, N: n, K: k } = gemm.extent();
    let plain = BlasGemm {
        m,
        n,
        k,
        a_transposed: false,
        b_transposed: false,
        dtype: gemm.dtype,
        tf32: tf32 && gemm.dtype == Dtype::F32,
        adds_c: false,
        epilogue: BlasEpilogue::None,
    };
    match gemm.pass {
        Pass::Forward(forward @ Forward { out, inp, weight, .. }) => {
            let (adds_c, epilogue) = match forward.epilogue {
                Epilogue::None => (false, BlasEpilogue::None),
                Epilogue::Bias { .. } => (false, BlasEpilogue::Bias),
                Epilogue::BiasGelu { .. } => unreachable!("the library computes no GELU"),
                Epilogue::BiasResidual { .. } => (true, BlasEpilogue::Bias),
            };
            let [_, _, bias, residual] = forward.operands();
            let operands = Operands {
                d: out.address(),
                a: inp.address(),
                b: weight.address(),
                c: residual.address(),
                bias: bias.address(),
            };
            (BlasGemm { b_transposed: true, adds_c, epilogue, ..plain }, operands)
        }
        Pass::Dgrad(Dgrad { dinp, dout, weight, .. }) => {
            let operands =
                Operands { d: dinp.address(), a: dout.address(), b: weight.address(), ..Operands::default() };
            (plain, operands)
        }
        Pass::Wgrad(Wgrad { dweight, dout, inp, accumulate, .. }) => {
            let operands = Operands {
                d: dweight.address(),
                a: dout.address(),
                b: inp.address(),
                c: if accumulate { dweight.address() } else { 0 },
                ..Operands::default()
            };
            (BlasGemm { a_transposed: true, adds_c: accumulate, ..plain }, operands)
        }
    }
}

/// Channels of [`bias_gradient`].
const CHANNELS: usize = 8;

/// Returns the gradient of the bias, which the library leaves out, as a GEMM of our own: together
/// with that of a weight of so few channels that only reading `dout` takes time. The latter goes to
/// `unused`; the operands of `gemm` serve as its input.
pub fn bias_gradient(gemm: &Gemm, unused: X) -> Option<Gemm> {
    let Pass::Wgrad(wgrad) = gemm.pass else { return None };
    let pass = Pass::Wgrad(Wgrad { dweight: unused, accumulate: false, ..wgrad });
    (wgrad.dbias.address() != 0).then_some(Gemm { pass, C: CHANNELS, ..*gemm })
}

/// Bytes of `unused` in [`bias_gradient`].
pub fn unused_bytes(gemm: &Gemm) -> usize {
    gemm.OC * CHANNELS * gemm.dtype.size()
}
