//! Adding one tensor to another.

use crate::harness::*;
use warpsmith::tensor::Dtype;

#[test]
fn sums_are_rounded_once() {
    for len in [8, 24, 256 * 8, 256 * 8 + 8, 20_000] {
        check(&format!("add of {len}"), |t| {
            // Numbers of all sizes next to each other, so that some sums are ties and some terms
            // vanish.
            let sized = |seed| -> Vec<f32> {
                random(seed, len)
                    .iter()
                    .zip(random(seed + 1, len))
                    .map(|(x, y)| x * (8.0 * y).exp2())
                    .collect()
            };
            let dst = t.inout_x("dst", &sized(1), Tolerance::new(1.0, 1));
            let src = t.x("src", &sized(3));
            let [dst_f32, src_f32] =
                [t.inout_f32("dst, f32", &sized(5), Tolerance::new(1.0, 1)), t.f32("src", &sized(7))];
            Box::new(move |dev| {
                dev.add(dst, src)?;
                dev.add(dst_f32, src_f32)
            })
        });
    }
}

/// The sum in f32, rounded to nearest with ties to even, is that of the host bit for bit.
#[test]
fn bits_are_those_of_the_sum_in_f32() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let (a, b) = (random(1, 4096), random(2, 4096));
        let [a, b] = [a, b].map(|values| values.iter().map(|&v| round(v, dtype)).collect::<Vec<_>>());
        let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| round(a + b, dtype)).collect();
        for under in crate::devices::under_test(dtype) {
            let outputs = outputs_of(under, dtype, |t| {
                let (dst, src) = (t.inout_x("dst", &a, Tolerance::new(0.0, 1)), t.x("src", &b));
                Box::new(move |dev| dev.add(dst, src))
            });
            assert_eq!(outputs[0], want, "{dtype:?}");
        }
    }
}

#[test]
fn extremes() {
    check("add of extremes", |t| {
        let huge = [6e4, 6e4, -6e4, 0.0, -0.0, 6e-8, -6e-8, f32::INFINITY];
        let dst = t.inout_x("dst", &huge, Tolerance::new(1.0, 1));
        let src = t.x("src", &[-6e4, 1.0, -1.0, -0.0, -0.0, 6e-8, 6e-8, 1.0]);
        Box::new(move |dev| dev.add(dst, src))
    });
}

#[test]
fn what_is_no_whole_pack_is_refused() {
    for (len, at, words) in [
        (12, 0, "a sum of 12 elements, which is not a multiple of 8"),
        (16, 4, "does not start at a multiple of 16 bytes"),
    ] {
        refuses("add", words, |t| {
            let (dst, src) = (t.x("dst", &[1.0; 32]), t.x("src", &[1.0; 32]));
            Box::new(move |dev| dev.add(dst.slice(0, len), src.slice(at, len)))
        });
    }
}
