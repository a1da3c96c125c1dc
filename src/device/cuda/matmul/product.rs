//! One matrix product, as kernels and libraries are asked for it: addresses and dimensions.

use crate::device::cuda::kernel::{FloatX, Ptr};
use crate::tensor::Dtype;

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
        Key { pass, N: self.N, C: self.C, OC: self.OC }
    }

    /// Sums that a split of K leaves: the product's, and those of the bias gradient.
    pub fn partial_sums(&self) -> usize {
        let Extent { M, N, .. } = self.extent();
        M * N + if matches!(self.pass, Pass::Wgrad(_)) { M } else { 0 }
    }
}
