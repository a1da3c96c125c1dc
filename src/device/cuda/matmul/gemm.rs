//! One matrix product, as kernels and libraries are asked for it: addresses and dimensions.

use crate::device::cuda::kernel::{FloatX, Ptr};
use crate::tensor::Dtype;
use std::fmt;

/// Elements of the device's floating-point type; null if not wanted.
pub type X = Ptr<FloatX>;

/// out (N, OC) = inp (N, C) @ weight (OC, C)ᵀ, then in this order: + bias (OC), + residual (N, OC), kept in `pre_gelu` (N, OC) and
/// GELU.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub out: X,
    pub pre_gelu: X,
    pub inp: X,
    pub weight: X,
    pub bias: X,
    pub residual: X,
}

/// dinp (N, C) = dout (N, OC) @ weight (OC, C), then times gelu'(through_gelu (N, C)).
#[derive(Clone, Copy, Debug)]
pub struct Dgrad {
    pub dinp: X,
    pub dout: X,
    pub weight: X,
    pub through_gelu: X,
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
pub struct Product {
    pub pass: Pass,
    /// Of all matrices.
    pub dtype: Dtype,
    pub N: usize,
    pub C: usize,
    pub OC: usize,
}

/// What a product's speed depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pass: &'static str,
    N: usize,
    C: usize,
    OC: usize,
    /// Bytes that all matrices start at a multiple of, up to [`ALIGN`]: the library's algorithms differ in what they need.
    alignment: usize,
}

/// At a multiple of this many bytes a matrix is aligned as well as any.
pub const ALIGN: usize = 256;

/// `forward, bias 65536 x 768 x 2304`: N, C and OC.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Key { pass, N, C, OC, .. } = self;
        write!(f, "{pass} {N} x {C} x {OC}")
    }
}

/// A matrix or vector that a product leaves behind, dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub name: &'static str,
    pub matrix: X,
    pub rows: usize,
    pub columns: usize,
    /// It is added to, and never assigned.
    pub adds: bool,
}

impl Output {
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }
}

/// A product as an M x N matrix summed over K.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub M: usize,
    pub N: usize,
    pub K: usize,
}

impl Product {
    pub fn extent(&self) -> Extent {
        let Product { N, C, OC, .. } = *self;
        match self.pass {
            Pass::Forward(_) => Extent { M: N, N: OC, K: C },
            Pass::Dgrad(_) => Extent { M: N, N: C, K: OC },
            Pass::Wgrad(_) => Extent { M: OC, N: C, K: N },
        }
    }

    /// Whether it overwrites or adds to its output is no part of it: the same kernel does both.
    pub fn key(&self) -> Key {
        let wanted = |x: X| x.address() != 0;
        let pass = match self.pass {
            Pass::Forward(f) if wanted(f.pre_gelu) => "forward, bias, gelu",
            Pass::Forward(f) if wanted(f.residual) => "forward, bias, residual",
            Pass::Forward(f) if wanted(f.bias) => "forward, bias",
            Pass::Forward(_) => "forward",
            Pass::Dgrad(d) if wanted(d.through_gelu) => "dgrad, gelu",
            Pass::Dgrad(_) => "dgrad",
            Pass::Wgrad(w) if wanted(w.dbias) => "wgrad, bias",
            Pass::Wgrad(_) => "wgrad",
        };
        Key { pass, N: self.N, C: self.C, OC: self.OC, alignment: self.alignment() }
    }

    fn alignment(&self) -> usize {
        let matrices = match self.pass {
            Pass::Forward(f) => [f.out, f.pre_gelu, f.inp, f.weight, f.residual],
            Pass::Dgrad(d) => [d.dinp, d.dout, d.weight, d.through_gelu, X::NULL],
            Pass::Wgrad(w) => [w.dweight, w.dout, w.inp, X::NULL, X::NULL],
        };
        // Zero, where there is none, is a multiple of everything.
        let together = matrices.iter().fold(ALIGN as u64, |bits, matrix| bits | matrix.address());
        1 << together.trailing_zeros()
    }

    /// Everything that it writes.
    pub fn outputs(&self) -> Vec<Output> {
        let Product { N, C, OC, .. } = *self;
        let output = |name, matrix, rows, columns| Output { name, matrix, rows, columns, adds: false };
        let all = match self.pass {
            Pass::Forward(f) => vec![output("out", f.out, N, OC), output("pre_gelu", f.pre_gelu, N, OC)],
            Pass::Dgrad(d) => vec![output("dinp", d.dinp, N, C)],
            Pass::Wgrad(w) => {
                let dbias = Output { adds: true, ..output("dbias", w.dbias, 1, OC) };
                vec![output("dweight", w.dweight, OC, C), dbias]
            }
        };
        all.into_iter().filter(|output| output.matrix.address() != 0).collect()
    }

    /// The same product, which adds to the gradient of the weight or assigns it; no other does either.
    pub fn accumulating(&self, accumulate: bool) -> Self {
        match self.pass {
            Pass::Wgrad(wgrad) => Product { pass: Pass::Wgrad(Wgrad { accumulate, ..wgrad }), ..*self },
            _ => *self,
        }
    }

    /// Whether GELU, or its gradient, is part of it.
    pub fn has_gelu(&self) -> bool {
        match self.pass {
            Pass::Forward(f) => f.pre_gelu.address() != 0,
            Pass::Dgrad(d) => d.through_gelu.address() != 0,
            Pass::Wgrad(_) => false,
        }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.N as f64 * self.C as f64 * self.OC as f64
    }

    /// Sums that a split of K leaves: the product's, and those of the bias gradient.
    pub fn partial_sums(&self) -> usize {
        let Extent { M, N, .. } = self.extent();
        M * N + if matches!(self.pass, Pass::Wgrad(_)) { M } else { 0 }
    }
}
