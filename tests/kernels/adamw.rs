//! AdamW and its stochastic rounding of parameters.

use crate::devices::under_test;
use crate::harness::*;
use warpsmith::device::compare::{adamw_part, adamw_step};
use warpsmith::ops::{AdamW, Ops};
use warpsmith::tensor::{Dtype, Tensor};

/// Takes two steps, each with its own gradient.
fn two_steps(t: &mut Tensors, len: usize, weight_decay: f32, with_master: bool) -> Work {
    let start: Vec<f32> = random(1, len).iter().map(|&x| round(x, t.dtype)).collect();
    let exact = Tolerance::new(0.0, 4);
    // A last place is up to twice the unit of a tolerance. Without master weights, each of two
    // steps is off by up to one.
    let params = t.inout_x("params", &start, Tolerance::new(if with_master { 2.0 } else { 4.0 }, 4));
    let master = with_master.then(|| t.inout_f32("master", &start, exact));
    let m = t.inout_f32("m", &random(2, len), exact);
    let squares: Vec<f32> = random(3, len).iter().map(|x| x * x + 0.01).collect();
    let v = t.inout_f32("v", &squares, exact);
    let grads = [4, 5].map(|seed| t.x("grads", &random(seed, len)));
    Box::new(move |dev| {
        for (i, grads) in grads.into_iter().enumerate() {
            let (t, seed) = (i + 1, i as u32);
            let step = adamw_step(params, m, v, grads);
            dev.adamw(AdamW { master, weight_decay, grad_scale: 0.5, t, seed, ..step })?;
        }
        Ok(())
    })
}

/// Decay by half of each parameter shows in all types.
#[test]
fn parameters_take_the_step() {
    for (len, weight_decay) in [(8, 0.0), (8, 50.0), (64, 50.0), (6160, 0.0), (6160, 50.0)] {
        for with_master in [false, true] {
            let case = format!("adamw of {len}, decay by {weight_decay}, master: {with_master}");
            check(&case, |t| two_steps(t, len, weight_decay, with_master));
        }
    }
}

/// A pack is never shared by threads, and never cut.
#[test]
fn what_is_no_whole_pack_is_refused() {
    let refused = |start: usize, len: usize, words: &str| {
        refuses("adamw", words, |t| {
            let [params, grads] = ["params", "grads"].map(|name| t.x(name, &[0.5; 32]));
            let [m, v] = ["m", "v"].map(|name| t.f32(name, &[0.5; 32]));
            let step = adamw_step(params, m, v, grads.slice(start, len));
            let cut = |tensor: Tensor| tensor.slice(0, len);
            let step = AdamW { params: cut(params), m: cut(m), v: cut(v), ..step };
            Box::new(move |dev| dev.adamw(step))
        });
    };
    refused(0, 12, "AdamW of 12 elements, which is not a multiple of 8");
    refused(4, 16, "does not start at a multiple of 16 bytes");
}

/// Returns the distance of neighboring numbers of a type at `value`.
fn last_place(value: f32, dtype: Dtype) -> f32 {
    let exponent = value.abs().log2().floor();
    match dtype {
        Dtype::Bf16 => (exponent - 7.0).exp2(),
        _ => (exponent.max(-14.0) - 10.0).exp2(),
    }
}

/// Returns (params, master) after one step from random numbers, on every device.
fn rounded(dtype: Dtype, seed: u32, len: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
    rounded_in_runs(dtype, seed, 0, &[0, len])
}

/// Does the same in one call from each of `cuts` to the next, where `first` is the index of the
/// first parameter.
fn rounded_in_runs(dtype: Dtype, seed: u32, first: u64, cuts: &[usize]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let len = cuts[cuts.len() - 1];
    let run = |under| {
        let outputs = outputs_of(under, dtype, |t| {
            let any = Tolerance::new(1.0, 1);
            // Large and small numbers, so that some are subnormal in f16.
            let start: Vec<f32> =
                random(1, len).iter().zip(random(2, len)).map(|(x, y)| x * (20.0 * y - 6.0).exp2()).collect();
            let params = t.inout_x("params", &start, any);
            let master = Some(t.inout_f32("master", &start, any));
            let [m, v] = ["m", "v"].map(|name| t.f32(name, &vec![0.0; len]));
            let grads = t.x("grads", &random(3, len));
            let whole = AdamW { master, lr: 1e-5, seed, first, ..adamw_step(params, m, v, grads) };
            let runs =
                cuts.windows(2).map(|cut| adamw_part(whole, cut[0], cut[1] - cut[0])).collect::<Vec<_>>();
            Box::new(move |dev: &mut dyn Ops| runs.iter().try_for_each(|run| dev.adamw(*run)))
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
                assert!(off(i).abs() < 1.0, "{dtype:?}: {} is not next to {}", params[i], master[i]);
            }
            // The bound is four standard deviations of the mean of LEN errors with uniform random
            // bits.
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

/// The last call begins at an index beyond 32 bits.
#[test]
fn how_parameters_are_cut_does_not_matter() {
    let first = (1 << 32) - 1024;
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let whole = rounded_in_runs(dtype, 7, first, &[0, 2048]);
        assert_eq!(rounded_in_runs(dtype, 7, first, &[0, 8, 1016, 1024, 2048]), whole, "{dtype:?}");
        for other in [0, first - (1 << 32 >> 1), first + (1 << 32)] {
            let others = rounded_in_runs(dtype, 7, other, &[0, 2048]);
            for ((a, _), (b, _)) in whole.iter().zip(&others) {
                let moved = a.iter().zip(b).filter(|(a, b)| a != b).count();
                assert!(moved > 400, "{dtype:?}: with first at {other} {moved} of 2048 parameters changed");
            }
        }
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
                Box::new(move |dev: &mut dyn Ops| {
                    // m / sqrt(v), unbiased, is one: the step is lr.
                    dev.adamw(AdamW { lr: place / 4.0, ..adamw_step(params, m, v, grads) })
                })
            });
            let taken = outputs[0].iter().filter(|&&p| p == value - place).count();
            let left = outputs[0].iter().filter(|&&p| p == value).count();
            assert_eq!(taken + left, LEN, "{dtype:?} at {value}");
            // 1024 are expected, with a standard deviation of 28.
            assert!(taken.abs_diff(LEN / 4) < 120, "{dtype:?} at {value}: {taken} of {LEN} taken");
        }
    }
}
