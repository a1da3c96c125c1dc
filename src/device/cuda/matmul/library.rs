//! Our products in the words of a vendor's library.

use super::product::{Dgrad, Extent, Forward, Pass, Product, Wgrad, X};
use crate::device::cuda::matmul_library::{self as vendor, Numbers, Operands, ProductEpilogue};
use crate::tensor::Dtype;

/// All of a product but the gradient of the bias.
pub fn describe(product: &Product, tf32: bool) -> (vendor::Product, Operands) {
    let Extent { M: m, N: n, K: k } = product.extent();
    let numbers = match product.dtype {
        Dtype::F32 if tf32 => Numbers::Tf32,
        Dtype::F32 => Numbers::F32,
        Dtype::F16 => Numbers::F16,
        _ => Numbers::Bf16,
    };
    let plain = vendor::Product {
        m,
        n,
        k,
        a_transposed: false,
        b_transposed: false,
        numbers,
        adds_c: false,
        epilogue: ProductEpilogue::None,
    };
    let wanted = |x: X| x.address() != 0;
    match product.pass {
        Pass::Forward(Forward { out, pre_gelu, inp, weight, bias, residual }) => {
            let epilogue = match () {
                () if wanted(pre_gelu) => ProductEpilogue::BiasGelu,
                () if wanted(bias) => ProductEpilogue::Bias,
                () => ProductEpilogue::None,
            };
            let operands = Operands {
                d: out.address(),
                a: inp.address(),
                b: weight.address(),
                c: residual.address(),
                bias: bias.address(),
                aux: pre_gelu.address(),
            };
            (vendor::Product { b_transposed: true, adds_c: wanted(residual), epilogue, ..plain }, operands)
        }
        Pass::Dgrad(Dgrad { dinp, dout, weight, through_gelu }) => {
            let epilogue = if wanted(through_gelu) { ProductEpilogue::Dgelu } else { ProductEpilogue::None };
            let operands = Operands {
                d: dinp.address(),
                a: dout.address(),
                b: weight.address(),
                aux: through_gelu.address(),
                ..Operands::default()
            };
            (vendor::Product { epilogue, ..plain }, operands)
        }
        Pass::Wgrad(Wgrad { dweight, dout, inp, accumulate, .. }) => {
            let operands = Operands {
                d: dweight.address(),
                a: dout.address(),
                b: inp.address(),
                c: if accumulate { dweight.address() } else { 0 },
                ..Operands::default()
            };
            (vendor::Product { a_transposed: true, adds_c: accumulate, ..plain }, operands)
        }
    }
}

/// Channels of [`bias_gradient`].
const CHANNELS: usize = 8;

/// What the library leaves out, as a product of our own: the gradient of the bias, with that of a weight of so few channels
/// that reading `dout` is all that takes time. The latter goes to `unused`; the operands of `product` serve as its input.
pub fn bias_gradient(product: &Product, unused: X) -> Option<Product> {
    let Pass::Wgrad(wgrad) = product.pass else { return None };
    let pass = Pass::Wgrad(Wgrad { dweight: unused, accumulate: false, ..wgrad });
    (wgrad.dbias.address() != 0).then_some(Product { pass, C: CHANNELS, ..*product })
}

/// Bytes that `unused` above needs.
pub fn unused_bytes(product: &Product) -> usize {
    product.OC * CHANNELS * product.dtype.size()
}
