//! One GEMM of the op layer: its pass, addresses and dimensions.

use crate::device::cuda::kernel::{FloatX, Ptr};
use crate::ops::{Epilogue, Kept};
use crate::tensor::Dtype;
use std::fmt;

/// A matrix or vector of the device's floating-point type; null if not wanted.
pub type X = Ptr<FloatX>;

/// out (N, OC) = epilogue(inp (N, C) @ weight (OC, C)ᵀ)
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub out: X,
    pub inp: X,
    pub weight: X,
    pub epilogue: Epilogue<X>,
}

impl Forward {
    /// Returns `[pre_gelu, gelu_gradient, bias, residual]` as kernels take them: null where there
    /// is none.
    pub fn operands(&self) -> [X; 4] {
        let [bias, _, residual] = self.epilogue.operands().map(|operand| operand.unwrap_or(X::NULL));
        let [pre_gelu, gelu_gradient] = match self.epilogue {
            Epilogue::BiasGelu { kept: Kept::Input(kept), .. } => [kept, X::NULL],
            Epilogue::BiasGelu { kept: Kept::Gradient(kept), .. } => [X::NULL, kept],
            _ => [X::NULL, X::NULL],
        };
        [pre_gelu, gelu_gradient, bias, residual]
    }
}

/// dinp (N, C) = dout (N, OC) @ weight (OC, C), then times gelu_gradient (N, C).
#[derive(Clone, Copy, Debug)]
pub struct Dgrad {
    pub dinp: X,
    pub dout: X,
    pub weight: X,
    pub gelu_gradient: X,
}

/// dweight (OC, C) = or += dout (N, OC)ᵀ @ inp (N, C); dbias (OC) += column sums of dout.
#[derive(Clone, Copy, Debug)]
pub struct Wgrad {
    pub dweight: X,
    pub dbias: X,
    pub dout: X,
    pub inp: X,
    pub accumulate: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Pass {
    Forward(Forward),
    Dgrad(Dgrad),
    Wgrad(Wgrad),
}

#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub pass: Pass,
    /// Type of all matrices.
    pub dtype: Dtype,
    pub N: usize,
    pub C: usize,
    pub OC: usize,
}

/// Everything that the speed of a GEMM depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pass: &'static str,
    N: usize,
    C: usize,
    OC: usize,
    /// Alignment that all matrices have in common, in bytes up to [`ALIGN`]: the library's
    /// algorithms differ in what they need.
    alignment: usize,
}

/// The alignment in bytes beyond which more makes no difference.
pub const ALIGN: usize = 256;

/// `forward, bias 65536 x 768 x 2304`: N, C and OC.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Key { pass, N, C, OC, .. } = self;
        write!(f, "{pass} {N} x {C} x {OC}")
    }
}

/// A matrix or vector that a GEMM writes, dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub name: &'static str,
    pub matrix: X,
    pub rows: usize,
    pub columns: usize,
    /// Whether it is added to, never assigned.
    pub adds: bool,
}

impl Output {
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }
}

/// A GEMM as an M x N matrix summed over K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub M: usize,
    pub N: usize,
    pub K: usize,
}

impl Gemm {
    pub fn extent(&self) -> Extent {
        let Gemm { N, C, OC, .. } = *self;
        match self.pass {
            Pass::Forward(_) => Extent { M: N, N: OC, K: C },
            Pass::Dgrad(_) => Extent { M: N, N: C, K: OC },
            Pass::Wgrad(_) => Extent { M: OC, N: C, K: N },
        }
    }

    /// Returns the key, in which overwriting and accumulating are the same: one kernel does both.
    pub fn key(&self) -> Key {
        let wanted = |x: X| x.address() != 0;
        let pass = match self.pass {
            Pass::Forward(f) => match f.epilogue {
                Epilogue::None => "forward",
                Epilogue::Bias { .. } => "forward, bias",
                Epilogue::BiasGelu { kept: Kept::Input(_), .. } => "forward, bias, gelu",
                Epilogue::BiasGelu { kept: Kept::Gradient(_), .. } => "forward, bias, gelu, gradient",
                Epilogue::BiasResidual { .. } => "forward, bias, residual",
            },
            Pass::Dgrad(d) if wanted(d.gelu_gradient) => "dgrad, gelu",
            Pass::Dgrad(_) => "dgrad",
            Pass::Wgrad(w) if wanted(w.dbias) => "wgrad, bias",
            Pass::Wgrad(_) => "wgrad",
        };
        Key { pass, N: self.N, C: self.C, OC: self.OC, alignment: self.alignment() }
    }

    fn alignment(&self) -> usize {
        let matrices = match self.pass {
            Pass::Forward(f) => {
                let [pre_gelu, gelu_gradient, _, residual] = f.operands();
                [f.out, pre_gelu, gelu_gradient, f.inp, f.weight, residual]
            }
            Pass::Dgrad(d) => [d.dinp, d.dout, d.weight, d.gelu_gradient, X::NULL, X::NULL],
            Pass::Wgrad(w) => [w.dweight, w.dout, w.inp, X::NULL, X::NULL, X::NULL],
        };
        // A null address is a multiple of everything.
        let together = matrices.iter().fold(ALIGN as u64, |bits, matrix| bits | matrix.address());
        1 << together.trailing_zeros()
    }

    /// Returns everything that it writes.
    pub fn outputs(&self) -> Vec<Output> {
        let Gemm { N, C, OC, .. } = *self;
        let output = |name, matrix, rows, columns| Output { name, matrix, rows, columns, adds: false };
        let all = match self.pass {
            Pass::Forward(f) => {
                let [pre_gelu, gelu_gradient, ..] = f.operands();
                let all = [("out", f.out), ("pre_gelu", pre_gelu), ("gelu_gradient", gelu_gradient)];
                all.map(|(name, matrix)| output(name, matrix, N, OC)).to_vec()
            }
            Pass::Dgrad(d) => vec![output("dinp", d.dinp, N, C)],
            Pass::Wgrad(w) => {
                let dbias = Output { adds: true, ..output("dbias", w.dbias, 1, OC) };
                vec![output("dweight", w.dweight, OC, C), dbias]
            }
        };
        all.into_iter().filter(|output| output.matrix.address() != 0).collect()
    }

    /// Returns the same GEMM adding to the gradient of the weight, or assigning it. Other passes
    /// stay as they are.
    pub fn accumulating(&self, accumulate: bool) -> Self {
        match self.pass {
            Pass::Wgrad(wgrad) => Gemm { pass: Pass::Wgrad(Wgrad { accumulate, ..wgrad }), ..*self },
            _ => *self,
        }
    }

    /// Whether GELU or its gradient is part of it.
    pub fn has_gelu(&self) -> bool {
        match self.pass {
            Pass::Forward(f) => matches!(f.epilogue, Epilogue::BiasGelu { .. }),
            Pass::Dgrad(d) => d.gelu_gradient.address() != 0,
            Pass::Wgrad(_) => false,
        }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.N as f64 * self.C as f64 * self.OC as f64
    }

    /// Returns the number of sums that each split of K leaves, including those of the bias
    /// gradient.
    pub fn partial_sums(&self) -> usize {
        let Extent { M, N, .. } = self.extent();
        M * N + if matches!(self.pass, Pass::Wgrad(_)) { M } else { 0 }
    }
}
