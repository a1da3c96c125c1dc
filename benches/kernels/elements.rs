//! Single elements of a matmul's results in f64.

use crate::op::{Op, Part};
use crate::operands::Operands;
use warpsmith::device::compare::gelu;
use warpsmith::ops::{Call, Epilogue, Kept, MatmulBackward, MatmulForward};
use warpsmith::tensor::Tensor;

/// Rows and columns of a matmul's result; `None` for other operations.
pub fn extent(op: &Op) -> Option<(usize, usize)> {
    match (op.part, &op.call) {
        (_, Call::MatmulForward(a)) => Some((a.N, a.OC)),
        (Part::Dgrad, Call::MatmulBackward(a)) => Some((a.N, a.C)),
        (Part::Wgrad, Call::MatmulBackward(a)) => Some((a.OC, a.C)),
        _ => None,
    }
}

/// The expected value at (`row`, `column`) of a matmul's result and of those that depend on it:
/// tensor, index, value.
pub fn expected(op: &Op, t: &Operands, row: usize, column: usize) -> Vec<(Tensor, usize, f64)> {
    let v = |tensor, index| t.value(tensor, index);
    match (op.part, &op.call) {
        (_, &Call::MatmulForward(MatmulForward { out, inp, weight, epilogue, C, OC, .. })) => {
            let sum: f64 = (0..C).map(|c| v(inp, row * C + c) * v(weight, column * C + c)).sum();
            let at = row * OC + column;
            match epilogue {
                Epilogue::None => vec![(out, at, sum)],
                Epilogue::Bias { bias } => vec![(out, at, sum + v(bias, column))],
                Epilogue::BiasGelu { bias, kept } => {
                    let sum = sum + v(bias, column);
                    let gelu = gelu(sum);
                    let (kept, expected) = match kept {
                        Kept::Input(kept) => (kept, sum),
                        Kept::Gradient(kept) => (kept, gelu.gradient),
                    };
                    vec![(kept, at, expected), (out, at, gelu.value)]
                }
                Epilogue::BiasResidual { bias, residual } => {
                    vec![(out, at, sum + v(bias, column) + v(residual, at))]
                }
            }
        }
        (Part::Dgrad, Call::MatmulBackward(a)) => {
            let &MatmulBackward { dinp, dout, weight, gelu_gradient, C, OC, .. } = a;
            let sum: f64 = (0..OC).map(|o| v(dout, row * OC + o) * v(weight, o * C + column)).sum();
            let at = row * C + column;
            vec![(dinp, at, sum * gelu_gradient.map_or(1.0, |factors| v(factors, at)))]
        }
        (Part::Wgrad, Call::MatmulBackward(a)) => {
            let &MatmulBackward { dweight, overwrite_dweight, dbias, dout, inp, N, C, OC, .. } = a;
            let dweight = dweight.expect("all of a recorded model is trained");
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
        _ => Vec::new(),
    }
}
