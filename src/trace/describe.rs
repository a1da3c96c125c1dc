//! Names, dimensions and floating-point operations of calls.

use crate::ops::{AttentionDims, Call, EncoderBackward, EncoderForward, MatmulForward, NewtonSchulz};
use crate::tensor::Tensor;

/// The description of a [`Call`].
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// The method of [`Ops`](crate::ops::Ops).
    pub name: &'static str,
    /// The tensor that tells this call from others of its name.
    pub tensor: Option<Tensor>,
    /// Dimensions by their names in the contract.
    pub dims: Vec<(&'static str, usize)>,
    /// Model FLOPs of products: two for a multiplication and an addition. Recomputation and masked
    /// scores are not counted.
    pub flops: Option<usize>,
}

/// Returns the bytes that a call must read and write: each tensor once, or twice where it is
/// updated.
pub fn bytes(call: &Call) -> f64 {
    let size = |tensor: Tensor| tensor.size_bytes() as f64;
    match call {
        // A row of `wte` per token; `wpe` stays in the cache.
        Call::EncoderForward(EncoderForward { encoded: rows, tokens, .. })
        | Call::EncoderBackward(EncoderBackward { dout: rows, tokens, .. }) => {
            2.0 * size(*rows) + size(*tokens)
        }
        // The positions up to `t` of the keys and values.
        Call::AttentionDecode { out, qkv, t, dims } => {
            2.0 * size(*out) + size(*qkv) * 2.0 / 3.0 * (t + 1) as f64 / dims.T as f64
        }
        // The row sums, one per row and head as `lse`, are written and read.
        Call::AttentionBackward(a) => call.size_bytes() as f64 + 2.0 * size(a.lse),
        _ => call.size_bytes() as f64,
    }
}

/// Describes a call.
pub fn describe(call: &Call) -> Description {
    let of = |name, tensor, dims: &[(&'static str, usize)], flops| Description {
        name,
        tensor,
        dims: dims.to_vec(),
        flops,
    };
    let rows = |name, weight, N, C| of(name, Some(weight), &[("N", N), ("C", C)], None);
    let product = |name, weight, [N, C, OC]: [usize; 3], products: usize| {
        let dims = [("N", N), ("C", C), ("OC", OC)];
        of(name, Some(weight), &dims, Some(products * 2 * N * C * OC))
    };
    let forward = |name, m: &MatmulForward| product(name, m.weight, [m.N, m.C, m.OC], 1);
    let heads = |name, dims: AttentionDims, flops| {
        let AttentionDims { B, T, NH, HS } = dims;
        of(name, None, &[("B", B), ("T", T), ("NH", NH), ("HS", HS)], flops)
    };
    // Two products of T x T x HS per head, half of each masked.
    let scores = |AttentionDims { B, T, NH, HS }: AttentionDims| 2 * B * NH * T * T * HS;
    let elements = |name, tensor: Tensor| of(name, Some(tensor), &[("elements", tensor.len)], None);
    match call {
        Call::EncoderForward(a) => of("encoder_forward", None, &[("B", a.B), ("T", a.T), ("C", a.C)], None),
        Call::EncoderBackward(a) => of("encoder_backward", None, &[("B", a.B), ("T", a.T), ("C", a.C)], None),
        Call::LayernormForward(a) => rows("layernorm_forward", a.weight, a.N, a.C),
        Call::LayernormBackward(a) => rows("layernorm_backward", a.weight, a.N, a.C),
        Call::MatmulForward(a) => forward("matmul_forward", a),
        Call::MatmulResidualLayernorm { matmul, .. } => forward("matmul_residual_layernorm", matmul),
        Call::MatmulBackward(a) => {
            let products = 1 + usize::from(a.dweight.is_some());
            product("matmul_backward", a.weight, [a.N, a.C, a.OC], products)
        }
        Call::AttentionForward(a) => heads("attention_forward", a.dims, Some(scores(a.dims))),
        Call::AttentionBackward(a) => heads("attention_backward", a.dims, Some(2 * scores(a.dims))),
        Call::DropoutBackward { dinp, .. } => elements("dropout_backward", *dinp),
        Call::AttentionDecode { dims, .. } => heads("attention_decode", *dims, None),
        Call::GeluRecompute { out, .. } => elements("gelu_recompute", *out),
        Call::Classifier(a) => of("classifier", None, &[("N", a.N), ("V", a.V), ("Vp", a.Vp)], None),
        Call::AdamW(a) => elements("adamw", a.params),
        Call::MuonMomentum(a) => elements("muon_momentum", a.grads),
        Call::NewtonSchulz(a) => of(
            "newton_schulz",
            Some(a.x),
            &[("rows", a.rows), ("columns", a.columns)],
            Some(NewtonSchulz::flops(a.rows, a.columns)),
        ),
        Call::MuonStep(a) => elements("muon_step", a.params),
        Call::Add { dst, .. } => elements("add", *dst),
        Call::Scale { dst, .. } => elements("scale", *dst),
        Call::NormSquared { src, .. } => {
            let len = src.iter().map(|src| src.len).sum();
            of("norm_squared", src.first().copied(), &[("elements", len)], None)
        }
        Call::Sum { src, .. } => elements("sum", *src),
        Call::Fill { dst, .. } => elements("fill", *dst),
    }
}
