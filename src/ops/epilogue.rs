//! Operations that follow a matmul in the same kernel.

use crate::tensor::Tensor;

/// The (N, OC) tensor that a matmul with a GELU keeps for the backward pass. h is the input of the
/// GELU, rounded to the device's type; gelu(h) and gelu'(h) are computed from that rounded h.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kept<T = Tensor> {
    /// h. [`gelu_recompute`](super::Ops::gelu_recompute) turns it into gelu'(h).
    Input(T),
    /// gelu'(h), a [`gelu_gradient`](super::MatmulBackward::gelu_gradient).
    Gradient(T),
}

impl<T> Kept<T> {
    /// Returns the same with `f` of the tensor.
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Kept<U> {
        match self {
            Kept::Input(tensor) => Kept::Input(f(tensor)),
            Kept::Gradient(tensor) => Kept::Gradient(f(tensor)),
        }
    }

    pub fn tensor(self) -> T {
        match self {
            Kept::Input(tensor) | Kept::Gradient(tensor) => tensor,
        }
    }
}

/// The operations that follow a matmul, fused with it where the device can. Operands are handles or
/// addresses: bias (OC), kept and residual (N, OC).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue<T = Tensor> {
    /// out = matmul
    None,
    /// out = matmul + bias
    Bias { bias: T },
    /// h = matmul + bias; out = gelu(h); kept = h or gelu'(h)
    BiasGelu { bias: T, kept: Kept<T> },
    /// out = residual + matmul + bias
    BiasResidual { bias: T, residual: T },
}

impl<T> Epilogue<T> {
    /// Returns the same epilogue with `f` of each operand.
    pub fn map<U>(self, f: impl Fn(T) -> U) -> Epilogue<U> {
        match self {
            Epilogue::None => Epilogue::None,
            Epilogue::Bias { bias } => Epilogue::Bias { bias: f(bias) },
            Epilogue::BiasGelu { bias, kept } => Epilogue::BiasGelu { bias: f(bias), kept: kept.map(f) },
            Epilogue::BiasResidual { bias, residual } => {
                Epilogue::BiasResidual { bias: f(bias), residual: f(residual) }
            }
        }
    }

    /// Returns `[bias, kept, residual]`.
    pub fn operands(self) -> [Option<T>; 3] {
        match self {
            Epilogue::None => [None, None, None],
            Epilogue::Bias { bias } => [Some(bias), None, None],
            Epilogue::BiasGelu { bias, kept } => [Some(bias), Some(kept.tensor()), None],
            Epilogue::BiasResidual { bias, residual } => [Some(bias), None, Some(residual)],
        }
    }
}
