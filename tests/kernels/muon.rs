//! Muon: momentum, orthogonalization and step.

use crate::devices::under_test;
use crate::harness::*;
use warpsmith::device::compare::adamw_step;
use warpsmith::ops::{AdamW, MuonMomentum, MuonStep, NewtonSchulz};
use warpsmith::tensor::Dtype;

/// Lengths within a thread's part, between those of warps, and beyond a block.
const LENGTHS: [usize; 4] = [8, 64, 136, 6160];

#[test]
fn gradients_become_directions() {
    for len in LENGTHS {
        check(&format!("momentum of {len}"), |t| {
            let grads = t.inout_x("grads", &random(1, len), Tolerance::new(1.0, 4));
            let m = t.inout_f32("m", &random(2, len), Tolerance::new(0.0, 4));
            let (momentum, grad_scale, seed, first) = (0.95, 0.25, 1, 0);
            Box::new(move |dev| {
                dev.muon_momentum(MuonMomentum { grads, m, momentum, grad_scale, seed, first })
            })
        });
    }
}

#[test]
fn parameters_take_the_step() {
    for len in LENGTHS {
        for with_master in [false, true] {
            check(&format!("a step of {len}, master: {with_master}"), |t| {
                let start: Vec<f32> = random(1, len).iter().map(|&x| round(x, t.dtype)).collect();
                // Rounding at random is off by up to two units of a tolerance.
                let params = t.inout_x("params", &start, Tolerance::new(2.0, 4));
                let master = with_master.then(|| t.inout_f32("master", &start, Tolerance::new(0.0, 4)));
                let direction = t.x("direction", &random(2, len));
                let (lr, scale, weight_decay, seed, first) = (0.1, 2.0, 3.0, 1, 0);
                Box::new(move |dev| {
                    let step = MuonStep { params, master, direction, lr, scale, weight_decay, seed, first };
                    dev.muon_step(step)
                })
            });
        }
    }
}

/// Random numbers on top of a diagonal: singular values within a factor of three, so that an error
/// keeps its share of what is iterated on.
fn conditioned(rows: usize, columns: usize) -> Vec<f32> {
    let noise = 0.5 / (rows.max(columns) as f32).sqrt();
    let values = random(3, rows * columns).into_iter().enumerate();
    values.map(|(i, x)| noise * x + if i / columns == i % columns { 1.0 } else { 0.0 }).collect()
}

/// Five iterations of four roundings each. The slope of the polynomial at the end, where singular
/// values are near 1, is up to 4.
#[test]
fn matrices_become_orthogonal() {
    for (rows, columns) in [(8, 8), (8, 40), (40, 8), (64, 64), (136, 72), (72, 136), (256, 64)] {
        check(&format!("newton_schulz of {rows} x {columns}"), |t| {
            let tolerance = Tolerance::new(4.0 * 20.0, rows + columns);
            let x = t.inout_x("x", &conditioned(rows, columns), tolerance);
            let work = t.x("work", &vec![f32::NAN; NewtonSchulz::work_len(rows, columns)]);
            Box::new(move |dev| dev.newton_schulz(NewtonSchulz { x, work, rows, columns }))
        });
    }
}

/// The results of an operation on m and, if it has one, v: first in f32, then in bf16.
fn both_states(dtype: Dtype, declare: impl Fn(&mut Tensors, Dtype) -> Work) -> Vec<[Vec<Vec<f32>>; 2]> {
    let [wide, narrow] = [Dtype::F32, Dtype::Bf16].map(|state| {
        let run = |under| outputs_of(under, dtype, |t| declare(t, state));
        under_test(dtype).into_iter().map(run).collect::<Vec<_>>()
    });
    wide.into_iter().zip(narrow).map(|(wide, narrow)| [wide, narrow]).collect()
}

/// Every number of `narrow` is next to that of `wide`, and the mean is the same.
fn assert_rounded_at_random(what: &str, narrow: &[f32], wide: &[f32]) {
    let place = |x: f32| (x.abs().log2().floor() - 7.0).exp2();
    let off: Vec<f32> = narrow.iter().zip(wide).map(|(n, w)| (n - w) / place(*w)).collect();
    assert!(off.iter().all(|off| off.abs() < 1.0), "{what}: not next to the exact number");
    // Four standard deviations of a mean of errors with uniform random bits.
    let (len, mean) = (off.len() as f32, off.iter().sum::<f32>() / off.len() as f32);
    assert!(mean.abs() < 4.0 * 0.41 / len.sqrt(), "{what}: {mean} places on average");
    assert!(off.iter().any(|off| *off != 0.0));
}

#[test]
fn a_narrow_state_is_the_wide_one_rounded_at_random() {
    const LEN: usize = 4096;
    let starts = |seed: u32| -> Vec<f32> {
        random(seed, LEN).iter().map(|x| round(x.abs() + 0.01, Dtype::Bf16)).collect()
    };
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let adamw = |t: &mut Tensors, state: Dtype| -> Work {
            let any = Tolerance::new(1.0, 1);
            let params = t.inout_x("params", &[0.5; LEN], any);
            let [m, v] = [1, 2].map(|seed| t.inout_state("state", state, &starts(seed)));
            let grads = t.x("grads", &random(3, LEN));
            Box::new(move |dev| dev.adamw(AdamW { first: 12, ..adamw_step(params, m, v, grads) }))
        };
        for [wide, narrow] in both_states(dtype, adamw) {
            assert_eq!(wide[0], narrow[0], "{dtype}: the step itself is exact");
            assert_rounded_at_random("m", &narrow[1], &wide[1]);
            assert_rounded_at_random("v", &narrow[2], &wide[2]);
        }
        let momentum = |t: &mut Tensors, state: Dtype| -> Work {
            let grads = t.inout_x("grads", &random(3, LEN), Tolerance::new(1.0, 1));
            let m = t.inout_state("m", state, &starts(1));
            let (momentum, grad_scale, seed, first) = (0.95, 1.0, 5, 1 << 33);
            Box::new(move |dev| {
                dev.muon_momentum(MuonMomentum { grads, m, momentum, grad_scale, seed, first })
            })
        };
        for [wide, narrow] in both_states(dtype, momentum) {
            assert_eq!(wide[0], narrow[0], "{dtype}: the direction itself is exact");
            assert_rounded_at_random("momentum", &narrow[1], &wide[1]);
        }
    }
}

/// The oracle draws the bits that the kernels draw.
#[test]
fn the_cpu_rounds_the_state_as_kernels_do() {
    use warpsmith::device::cpu::{Cpu, matmul::Precision};
    const LEN: usize = 512;
    let declare = |t: &mut Tensors| -> Work {
        // Powers of two, so that both devices compute the same f32 number.
        let grads = t.inout_x("grads", &[0.0; LEN], Tolerance::new(1.0, 1));
        let m = t.inout_state("m", Dtype::Bf16, &[1.0078125; LEN]);
        let (momentum, grad_scale, seed, first) = (0.5 + 2f32.powi(-9), 1.0, 77, (1 << 33) - 256);
        Box::new(move |dev| dev.muon_momentum(MuonMomentum { grads, m, momentum, grad_scale, seed, first }))
    };
    let cpu = crate::devices::Under {
        mode: "CPU".to_owned(),
        sm_count: 1,
        device: Box::new(Cpu::new(Precision::F32).unwrap()),
    };
    let want = outputs_of(cpu, Dtype::F32, declare).remove(1);
    assert!(want.iter().any(|x| *x != want[0]));
    for under in under_test(Dtype::F32) {
        assert_eq!(outputs_of(under, Dtype::F32, declare)[1], want);
    }
}
