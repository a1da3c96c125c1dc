//! Matmuls: the calls of training, and single elements of their results in f64.

use crate::buffers::Buffers;
use crate::cases::Call;
use anyhow::{Result, bail};
use warpsmith::device::compare::Tolerance;
use warpsmith::ops::{Epilogue, MatmulBackward, MatmulForward};
use warpsmith::tensor::Tensor;

/// One of a layer's three matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    Dgrad,
    Wgrad,
}

/// Largest magnitude of pre-activations in a backward pass.
const PRE_GELU: f32 = 3.0;

/// The layer, which decides what is fused with its matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    Qkv,
    Attproj,
    Fc,
    Fcproj,
    Head,
}

/// Finds a matmul of the kernel list by its name, such as `qkv forward`.
///
/// # Errors
/// If there is no such matmul.
pub fn named(name: &str) -> Result<(Layer, Pass)> {
    let layer = match name.split(' ').next() {
        Some("qkv") => Layer::Qkv,
        Some("attproj") => Layer::Attproj,
        Some("fc") => Layer::Fc,
        Some("fcproj") => Layer::Fcproj,
        Some("head") => Layer::Head,
        _ => bail!("no benchmark for the matmul {name}; benches/kernels/matmuls.rs lists them"),
    };
    let pass = match name.split(' ').nth(1) {
        Some("forward") => Pass::Forward,
        Some("dgrad") => Pass::Dgrad,
        Some("wgrad") => Pass::Wgrad,
        _ => bail!("no benchmark for the matmul {name}; expected forward, dgrad or wgrad after the layer"),
    };
    Ok((layer, pass))
}

/// Returns N, C, OC of a matmul that is listed as M x N x K.
pub fn sizes(pass: Pass, dims: &[usize]) -> [usize; 3] {
    let &[m, n, k] = dims else { panic!("{dims:?} is not M x N x K") };
    match pass {
        Pass::Forward => [m, k, n],
        Pass::Dgrad => [m, n, k],
        Pass::Wgrad => [k, n, m],
    }
}

/// The arguments of a matmul.
#[derive(Clone, Copy, Debug)]
pub enum Matmul {
    Forward(MatmulForward),
    Dgrad(MatmulBackward),
    Wgrad(MatmulBackward),
}

/// Declares the operands of a matmul.
pub fn declare(
    t: &mut Buffers,
    (layer, pass): (Layer, Pass),
    [N, C, OC]: [usize; 3],
    accumulate: bool,
) -> Matmul {
    if pass == Pass::Forward {
        return Matmul::Forward(forward(t, layer, [N, C, OC]));
    }
    // The output of the other half only completes the call; a request for one half leaves it alone.
    let one = Tolerance::new(1.0, N);
    let dgrad = pass == Pass::Dgrad;
    let dinp = Tolerance::new(3.0, OC);
    let dinp = if layer == Layer::Fcproj { dinp.times_gelu_grad(PRE_GELU.into()) } else { dinp };
    let args = MatmulBackward {
        dinp: if dgrad { t.out_x("dinp", N * C, dinp) } else { t.x("dinp", N * C, 1.0) },
        dweight: match (dgrad, accumulate) {
            (true, _) => t.x("dweight", OC * C, 1.0),
            (false, true) => t.inout_x("dweight", OC * C, 1.0, one),
            (false, false) => t.out_x("dweight", OC * C, one),
        },
        overwrite_dweight: !accumulate,
        dbias: (layer != Layer::Head).then(|| match dgrad {
            true => t.x("dbias", OC, 1.0),
            false => t.inout_x("dbias", OC, 1.0, one),
        }),
        // Small, so that repeated accumulation stays within f16.
        dout: t.x("dout", N * OC, 0.1),
        inp: t.x("inp", N * C, 1.0),
        weight: t.x("weight", OC * C, 1.0),
        through_gelu: (layer == Layer::Fcproj).then(|| t.x("through_gelu", N * C, PRE_GELU)),
        N,
        C,
        OC,
    };
    if dgrad { Matmul::Dgrad(args) } else { Matmul::Wgrad(args) }
}

fn forward(t: &mut Buffers, layer: Layer, [N, C, OC]: [usize; 3]) -> MatmulForward {
    let bias = |t: &mut Buffers| t.x("bias", OC, 1.0);
    let epilogue = match layer {
        Layer::Head => Epilogue::None,
        Layer::Qkv => Epilogue::Bias { bias: bias(t) },
        Layer::Fc => Epilogue::BiasGelu {
            bias: bias(t),
            pre_gelu: t.out_x("pre_gelu", N * OC, Tolerance::new(1.0, C)),
        },
        Layer::Attproj | Layer::Fcproj => {
            Epilogue::BiasResidual { bias: bias(t), residual: t.x("residual", N * OC, 1.0) }
        }
    };
    let tolerance = Tolerance::new(3.0, C);
    let tolerance = if layer == Layer::Fc { tolerance.then_gelu() } else { tolerance };
    let out = t.out_x("out", N * OC, tolerance);
    // Sums of magnitude one, where GELU is neither 0 nor its argument.
    let (inp, weight) = (t.x("inp", N * C, 1.0), t.x("weight", OC * C, 3.0 / (C as f32).sqrt()));
    MatmulForward { out, inp, weight, epilogue, N, C, OC }
}

impl Matmul {
    pub fn call(self) -> Call {
        match self {
            Matmul::Forward(args) => Box::new(move |dev| dev.matmul_forward(args)),
            Matmul::Dgrad(args) => Box::new(move |dev| dev.dgrad(args)),
            Matmul::Wgrad(args) => Box::new(move |dev| dev.wgrad(args)),
        }
    }

    /// Rows and columns of the output.
    pub fn extent(&self) -> (usize, usize) {
        match self {
            Matmul::Forward(a) => (a.N, a.OC),
            Matmul::Dgrad(a) => (a.N, a.C),
            Matmul::Wgrad(a) => (a.OC, a.C),
        }
    }

    /// The output that the product is added to.
    pub fn adds_to(&self) -> Option<Tensor> {
        match self {
            Matmul::Wgrad(a) if !a.overwrite_dweight => Some(a.dweight),
            _ => None,
        }
    }

    /// The expected value at (`row`, `column`) of the output and of those that depend on it:
    /// tensor, index, value.
    pub fn expected(&self, t: &Buffers, row: usize, column: usize) -> Vec<(Tensor, usize, f64)> {
        let v = |tensor, index| t.value(tensor, index);
        match *self {
            Matmul::Forward(MatmulForward { out, inp, weight, epilogue, C, OC, .. }) => {
                let sum: f64 = (0..C).map(|c| v(inp, row * C + c) * v(weight, column * C + c)).sum();
                let at = row * OC + column;
                match epilogue {
                    Epilogue::None => vec![(out, at, sum)],
                    Epilogue::Bias { bias } => vec![(out, at, sum + v(bias, column))],
                    Epilogue::BiasGelu { bias, pre_gelu } => {
                        let sum = sum + v(bias, column);
                        vec![(pre_gelu, at, sum), (out, at, gelu(sum).0)]
                    }
                    Epilogue::BiasResidual { bias, residual } => {
                        vec![(out, at, sum + v(bias, column) + v(residual, at))]
                    }
                }
            }
            Matmul::Dgrad(MatmulBackward { dinp, dout, weight, through_gelu, C, OC, .. }) => {
                let sum: f64 = (0..OC).map(|o| v(dout, row * OC + o) * v(weight, o * C + column)).sum();
                let at = row * C + column;
                vec![(dinp, at, sum * through_gelu.map_or(1.0, |pre_gelu| gelu(v(pre_gelu, at)).1))]
            }
            Matmul::Wgrad(MatmulBackward {
                dweight, overwrite_dweight, dbias, dout, inp, N, C, OC, ..
            }) => {
                let dout_at = |n: usize| v(dout, n * OC + row);
                let sum: f64 = (0..N).map(|n| dout_at(n) * v(inp, n * C + column)).sum();
                let at = row * C + column;
                let before = if overwrite_dweight { 0.0 } else { v(dweight, at) };
                let mut expected = vec![(dweight, at, before + sum)];
                if let Some(dbias) = dbias {
                    expected.push((dbias, row, v(dbias, row) + (0..N).map(dout_at).sum::<f64>()));
                }
                expected
            }
        }
    }
}

/// GELU in its tanh form, and its derivative.
fn gelu(x: f64) -> (f64, f64) {
    let slope = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = (slope * (x + 0.044715 * x * x * x)).tanh();
    let value = 0.5 * x * (1.0 + tanh);
    let inner = slope * (1.0 + 3.0 * 0.044715 * x * x);
    (value, 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner)
}
