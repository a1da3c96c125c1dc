//! A tensor times a number.

use crate::harness::*;
use warpsmith::tensor::Dtype;

#[test]
fn products_are_rounded_once() {
    for (len, factor) in [(8, 2.0), (24, 1.0 / 3.0), (256 * 8, -1.25), (256 * 8 + 8, 0.0), (20_000, 16.7)] {
        check(&format!("scale of {len} by {factor}"), |t| {
            let dst = t.inout_x("dst", &random(1, len), Tolerance::new(1.0, 1));
            Box::new(move |dev| dev.scale(dst, factor))
        });
    }
}

/// The product in f32, rounded to nearest with ties to even, is that of the host bit for bit.
#[test]
fn bits_are_those_of_the_product_in_f32() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let values: Vec<f32> = random(1, 4096).iter().map(|&v| round(v, dtype)).collect();
        let want: Vec<f32> = values.iter().map(|v| round(v * 1.7, dtype)).collect();
        for under in crate::devices::under_test(dtype) {
            let outputs = outputs_of(under, dtype, |t| {
                let dst = t.inout_x("dst", &values, Tolerance::new(0.0, 1));
                Box::new(move |dev| dev.scale(dst, 1.7))
            });
            assert_eq!(outputs[0], want, "{dtype:?}");
        }
    }
}

#[test]
fn extremes() {
    check("scale of extremes", |t| {
        let values = [6e4, -6e4, 0.0, -0.0, 6e-8, -6e-8, f32::INFINITY, 1.0];
        let dst = t.inout_x("dst", &values, Tolerance::new(1.0, 1));
        Box::new(move |dev| dev.scale(dst, 0.5))
    });
}

#[test]
fn what_is_no_whole_pack_is_refused() {
    for (len, at, words) in [
        (12, 0, "a product of 12 elements, which is not a multiple of 8"),
        (16, 4, "does not start at a multiple of 16 bytes"),
    ] {
        refuses("scale", words, |t| {
            let dst = t.x("dst", &[1.0; 32]);
            Box::new(move |dev| dev.scale(dst.slice(at, len), 2.0))
        });
    }
}
