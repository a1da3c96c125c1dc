//! GELU as a kernel of its own.

use crate::harness::*;

#[test]
fn forward() {
    for len in [8, 24, 256 * 8, 256 * 8 + 8] {
        check(&format!("gelu forward {len}"), |t| {
            // From -8 to 8, where GELU is 0 or the number itself.
            let values: Vec<f32> = random(1, len).iter().map(|x| 8.0 * x * x * x).collect();
            let out = t.out_x("out", len, Tolerance::of_gelu(&values));
            let inp = t.x("inp", &values);
            Box::new(move |dev| dev.gelu_forward(out, inp))
        });
    }
}

#[test]
fn extremes() {
    check("gelu of extremes", |t| {
        let values = [0.0, -0.0, 6e4, -6e4, 1e-6, -1e-6, 100.0, -100.0];
        let (out, inp) = (t.out_x("out", 8, Tolerance::of_gelu(&values)), t.x("inp", &values));
        Box::new(move |dev| dev.gelu_forward(out, inp))
    });
}
