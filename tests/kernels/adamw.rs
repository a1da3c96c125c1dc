//! AdamW, and the random rounding of its parameters.

use crate::devices::under_test;
use crate::harness::*;
use warpsmith::ops::{AdamW, DecaySegment, Ops};
use warpsmith::tensor::{Dtype, Tensor};

/// A step of some size without decay over all of `params`.
fn update<'a>(
    params: Tensor,
    m: Tensor,
    v: Tensor,
    grads: Tensor,
    segments: &'a [DecaySegment],
) -> AdamW<'a> {
    AdamW {
        params,
        master: None,
        m,
        v,
        grads,
        segments,
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        grad_scale: 1.0,
        t: 1,
        seed: 1,
    }
}

/// Segments of these lengths, every second one without decay.
fn segments(lens: &[usize]) -> Vec<DecaySegment> {
    let start = |i: usize| lens[..i].iter().sum();
    let decay = |i: usize| if i.is_multiple_of(2) { 0.1 } else { 0.0 };
    (0..lens.len()).map(|i| DecaySegment { start: start(i), len: lens[i], weight_decay: decay(i) }).collect()
}

/// Two steps, with a gradient each.
fn two_steps(t: &mut Tensors, lens: &[usize], with_master: bool) -> Work {
    let len = lens.iter().sum();
    let start: Vec<f32> = random(1, len).iter().map(|&x| round(x, t.dtype)).collect();
    let exact = Tolerance::new(0.0, 4);
    // A last place is up to twice the unit of a tolerance. Without a master, each of two steps is off by up to one.
    let params = t.inout_x("params", &start, Tolerance::new(if with_master { 2.0 } else { 4.0 }, 4));
    let master = with_master.then(|| t.inout_f32("master", &start, exact));
    let m = t.inout_f32("m", &random(2, len), exact);
    let squares: Vec<f32> = random(3, len).iter().map(|x| x * x + 0.01).collect();
    let v = t.inout_f32("v", &squares, exact);
    let grads = [4, 5].map(|seed| t.x("grads", &random(seed, len)));
    let segments = segments(lens);
    Box::new(move |dev| {
        for (i, grads) in grads.into_iter().enumerate() {
            let step = update(params, m, v, grads, &segments);
            dev.adamw(AdamW { master, grad_scale: 0.5, t: i + 1, seed: i as u32, ..step })?;
        }
        Ok(())
    })
}

#[test]
fn parameters_take_the_step() {
    let sixteen = [8; 16];
    for lens in [&[8][..], &[16, 8, 40], &sixteen, &[2048, 8, 4104]] {
        for with_master in [false, true] {
            let case = format!("adamw {lens:?}, master: {with_master}");
            check(&case, |t| two_steps(t, lens, with_master));
        }
    }
}

/// How far apart numbers of a type are at `value`.
fn last_place(value: f32, dtype: Dtype) -> f32 {
    let exponent = value.abs().log2().floor();
    match dtype {
        Dtype::Bf16 => (exponent - 7.0).exp2(),
        _ => (exponent.max(-14.0) - 10.0).exp2(),
    }
}

/// (params, master) after one step from random numbers, on every device.
fn rounded(dtype: Dtype, seed: u32, len: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
    let run = |under| {
        let outputs = outputs_of(under, dtype, |t| {
            let any = Tolerance::new(1.0, 1);
            // Large and small, so that some f16 numbers are subnormal.
            let start: Vec<f32> =
                random(1, len).iter().zip(random(2, len)).map(|(x, y)| x * (20.0 * y - 6.0).exp2()).collect();
            let params = t.inout_x("params", &start, any);
            let master = Some(t.inout_f32("master", &start, any));
            let [m, v] = ["m", "v"].map(|name| t.f32(name, &vec![0.0; len]));
            let grads = t.x("grads", &random(3, len));
            let segments = segments(&[len]);
            Box::new(move |dev: &mut dyn Ops| {
                let step = update(params, m, v, grads, &segments);
                dev.adamw(AdamW { master, lr: 1e-5, seed, ..step })
            })
        });
        (outputs[0].clone(), outputs[1].clone())
    };
    under_test(dtype).into_iter().map(run).collect()
}

#[test]
fn parameters_are_the_master_rounded_at_random() {
    const LEN: usize = 4096;
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for (params, master) in rounded(dtype, 7, LEN) {
            let off = |i: usize| (params[i] - master[i]) / last_place(master[i], dtype);
            for i in 0..LEN {
                assert!(off(i).abs() < 1.0, "{dtype:?}: {} is no neighbour of {}", params[i], master[i]);
            }
            // Uniform bits make the mean of LEN errors a sixth of a last place over the root of LEN; four times that.
            let mean = (0..LEN).map(off).sum::<f32>() / LEN as f32;
            assert!(mean.abs() < 4.0 * 0.41 / (LEN as f32).sqrt(), "{dtype:?}: {mean} places on average");
        }
    }
}

#[test]
fn the_seed_decides() {
    let [a, b, other] = [7, 7, 8].map(|seed| rounded(Dtype::Bf16, seed, 1024));
    assert_eq!(a, b);
    for ((a, _), (other, _)) in a.iter().zip(&other) {
        let moved = a.iter().zip(other).filter(|(a, b)| a != b).count();
        assert!(moved > 200, "another seed changed {moved} of 1024 parameters");
    }
}

/// Rounding to nearest would take none of these steps.
#[test]
fn a_quarter_of_a_place_is_taken_a_quarter_of_the_time() {
    const LEN: usize = 4096;
    let subnormal = 5.0 * 2f32.powi(-24);
    for (dtype, value) in
        [(Dtype::Bf16, 0.75), (Dtype::F16, 0.75), (Dtype::F16, -3.0), (Dtype::F16, subnormal)]
    {
        let place = last_place(value, dtype);
        for under in under_test(dtype) {
            let outputs = outputs_of(under, dtype, |t| {
                let params = t.inout_x("params", &[value; LEN], Tolerance::new(1.0, 1));
                let [m, v] = ["m", "v"].map(|name| t.f32(name, &[0.0; LEN]));
                let grads = t.x("grads", &[1.0; LEN]);
                let segments = [DecaySegment { start: 0, len: LEN, weight_decay: 0.0 }];
                Box::new(move |dev: &mut dyn Ops| {
                    // m / sqrt(v), unbiased, is one: the step is lr.
                    dev.adamw(AdamW { lr: place / 4.0, ..update(params, m, v, grads, &segments) })
                })
            });
            let taken = outputs[0].iter().filter(|&&p| p == value - place).count();
            let left = outputs[0].iter().filter(|&&p| p == value).count();
            assert_eq!(taken + left, LEN, "{dtype:?} at {value}");
            // 1024 expected, with a deviation of 28.
            assert!(taken.abs_diff(LEN / 4) < 120, "{dtype:?} at {value}: {taken} of {LEN} taken");
        }
    }
}
