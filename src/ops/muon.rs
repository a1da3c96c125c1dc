//! The operations of Muon (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>), as
//! `torch.optim.Muon` computes them: momentum, orthogonalization, step.

use crate::tensor::Tensor;

/// m = lerp(g, m, momentum), with g = grad_scale * grads; then grads = lerp(g, m, momentum) /
/// grad_scale, Nesterov's direction. The direction's length has no meaning, so it keeps the scale
/// of the gradients.
///
/// Lengths and starts on a CUDA device are as for [`AdamW`](super::AdamW).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonMomentum {
    pub grads: Tensor,
    /// f32 or, rounded stochastically, bf16.
    pub m: Tensor,
    pub momentum: f32,
    pub grad_scale: f32,
    /// Seed of the stochastic rounding, and the index of the first element among all parameters.
    pub seed: u32,
    pub first: u64,
}

/// x (rows, columns) becomes, roughly, the orthogonal matrix closest to it: x = U S Vᵀ becomes
/// U S' Vᵀ, with S' between about 0.7 and 1.2.
///
/// x is divided by its Frobenius norm, and then [`STEPS`](Self::STEPS) times replaced by
/// (a I + b A + c A²) x with A = x xᵀ, the quintic iteration of Newton and Schulz. If x has more
/// rows than columns, its transpose is iterated on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewtonSchulz {
    pub x: Tensor,
    /// Memory for intermediate results, of the type of x: at least
    /// [`work_len`](Self::work_len) elements.
    pub work: Tensor,
    pub rows: usize,
    pub columns: usize,
}

impl NewtonSchulz {
    /// Iterations; odd, as results go back and forth between x and the work memory.
    pub const STEPS: usize = 5;
    /// a, b, c. Their slope at zero is the steepest that keeps singular values bounded.
    pub const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];
    /// The least norm that x is divided by.
    pub const EPS: f32 = 1e-7;

    /// Rows of A: the shorter side of x.
    pub fn size(&self) -> usize {
        self.rows.min(self.columns)
    }

    /// Whether x has more rows than columns, so that A = xᵀ x.
    pub fn is_tall(&self) -> bool {
        self.rows > self.columns
    }

    /// Elements of work memory for a matrix: another x, A and the polynomial.
    pub fn work_len(rows: usize, columns: usize) -> usize {
        rows * columns + 2 * rows.min(columns).pow(2)
    }

    /// The work memory: another x, A and the polynomial.
    ///
    /// # Panics
    /// If there is too little.
    pub fn buffers(&self) -> [Tensor; 3] {
        let (len, square) = (self.rows * self.columns, self.size().pow(2));
        let at = |start, len| self.work.slice(start, len);
        [at(0, len), at(len, square), at(len + square, square)]
    }

    /// Multiplications and additions of the products for a matrix.
    pub fn flops(rows: usize, columns: usize) -> usize {
        let (size, longer) = (rows.min(columns), rows.max(columns));
        Self::STEPS * 2 * size * size * (2 * longer + size)
    }
}

/// p -= lr (scale direction + decay p), of the master weights if there are any. Parameters narrower
/// than f32 are rounded stochastically.
///
/// Lengths and starts on a CUDA device are as for [`AdamW`](super::AdamW).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonStep {
    pub params: Tensor,
    pub master: Option<Tensor>,
    pub direction: Tensor,
    pub lr: f32,
    pub scale: f32,
    pub weight_decay: f32,
    /// As for [`MuonMomentum`].
    pub seed: u32,
    pub first: u64,
}
