//! Copies on the device.

use crate::harness::*;

#[test]
fn whole_tensors_and_parts() {
    for (from, to, len) in [(0, 0, 1), (3, 5, 1), (0, 0, 4096), (1, 8, 1001), (7, 0, 0)] {
        check(&format!("copy of {len} from {from} to {to}"), |t| {
            let exact = Tolerance::new(0.0, 1);
            let (dst, src) =
                (t.inout_x("dst", &random(1, to + len + 9), exact), t.x("src", &random(2, from + len)));
            let f = t.inout_f32("f", &random(3, 2 * len + 1), exact);
            Box::new(move |dev| {
                dev.copy(dst.slice(to, len), src.slice(from, len))?;
                dev.copy(f.slice(0, len), f.slice(len, len))
            })
        });
    }
}

#[test]
fn what_overlaps_or_differs_is_refused() {
    refuses("copy", "which overlap", |t| {
        let x = t.x("x", &[1.0; 32]);
        Box::new(move |dev| dev.copy(x.slice(0, 16), x.slice(15, 16)))
    });
    refuses("copy", "a copy keeps type and length", |t| {
        let (dst, src) = (t.x("dst", &[1.0; 32]), t.f32("src", &[1.0; 16]));
        Box::new(move |dev| dev.copy(dst, src))
    });
}
