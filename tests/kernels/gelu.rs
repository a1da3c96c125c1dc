//! GELU as a kernel of its own.

use crate::harness::*;
use warpsmith::tensor::Dtype;

/// Declares GELU and, in place of its input, its gradient.
fn recompute(t: &mut Tensors, inputs: &[f32]) -> Work {
    let out = t.out_x("out", inputs.len(), Tolerance::of_gelu(inputs));
    let kept = t.inout_x("kept", inputs, Tolerance::of_gelu_gradient(inputs));
    Box::new(move |dev| dev.gelu_recompute(out, kept))
}

#[test]
fn recomputed() {
    for len in [8, 24, 256 * 8, 256 * 8 + 8] {
        // From -8 to 8, where GELU is 0 or the number itself.
        let values: Vec<f32> = random(1, len).iter().map(|x| 8.0 * x * x * x).collect();
        check(&format!("gelu recompute {len}"), |t| recompute(t, &values));
    }
}

#[test]
fn extremes() {
    let values = [0.0, -0.0, 6e4, -6e4, 1e-6, -1e-6, 100.0, -100.0];
    check("gelu of extremes", |t| recompute(t, &values));
    // Their squares are infinite.
    let values = [3e38, -3e38, 1e30, -1e30, 2e19, -2e19, 1e10, -1e10];
    for dtype in [Dtype::Bf16, Dtype::F32] {
        check_dtype("gelu of huge numbers", dtype, |t| {
            let exact = Tolerance::new(0.0, 1);
            let (out, kept) = (t.out_x("out", 8, exact), t.inout_x("kept", &values, exact));
            Box::new(move |dev| dev.gelu_recompute(out, kept))
        });
    }
}
