//! Our GEMMs in the terms of a vendor's library.

use super::gemm::{Dgrad, Extent, Forward, Gemm, Pass, Wgrad, X};
use crate::device::cuda::matmul_library::{BlasEpilogue, BlasGemm, NumberFormat, Operands};
use crate::tensor::Dtype;

/// Describes all of a GEMM but the gradient of the bias.
pub fn describe(gemm: &Gemm, tf32: bool) -> (BlasGemm, Operands) {
    let Extent { M: m, N: n, K: k } = gemm.extent();
    let format = match gemm.dtype {
        Dtype::F32 if tf32 => NumberFormat::Tf32,
        Dtype::F32 => NumberFormat::F32,
        Dtype::F16 => NumberFormat::F16,
        _ => NumberFormat::Bf16,
    };
    let plain = BlasGemm {
        m,
        n,
        k,
        a_transposed: false,
        b_transposed: false,
        format,
        adds_c: false,
        epilogue: BlasEpilogue::None,
    };
    let wanted = |x: X| x.address() != 0;
    match gemm.pass {
        Pass::Forward(Forward { out, pre_gelu, inp, weight, bias, residual }) => {
            let epilogue = match () {
                () if wanted(pre_gelu) => BlasEpilogue::BiasGelu,
                () if wanted(bias) => BlasEpilogue::Bias,
                () => BlasEpilogue::None,
            };
            let operands = Operands {
                d: out.address(),
                a: inp.address(),
                b: weight.address(),
                c: residual.address(),
                bias: bias.address(),
                aux: pre_gelu.address(),
            };
            (BlasGemm { b_transposed: true, adds_c: wanted(residual), epilogue, ..plain }, operands)
        }
        Pass::Dgrad(Dgrad { dinp, dout, weight, through_gelu }) => {
            let epilogue = if wanted(through_gelu) { BlasEpilogue::Dgelu } else { BlasEpilogue::None };
            let operands = Operands {
                d: dinp.address(),
                a: dout.address(),
                b: weight.address(),
                aux: through_gelu.address(),
                ..Operands::default()
            };
            (BlasGemm { epilogue, ..plain }, operands)
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
