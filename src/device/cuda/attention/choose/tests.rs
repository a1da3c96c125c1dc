//! The choice between the kernels of the backward pass, on the emulated device with a clock.

use super::BackwardKernels::{self, Atomic, Ordered};
use crate::device::compare::testing::random;
use crate::device::cuda::matmul::fake::{Fake, Fault, Setting};
use crate::device::cuda::{Cuda, CudaOptions, logged};
use crate::ops::*;
use crate::tensor::{Dtype, MemoryPlan};
use anyhow::Result;

const DIMS: AttentionDims = AttentionDims { B: 2, T: 70, NH: 2, HS: 32 };

/// Runs the backward pass twice. Returns the kernels that were chosen, the last result and the
/// warnings.
fn chosen(setting: &Setting, dout: f32) -> Result<(Option<BackwardKernels>, Vec<f32>, Vec<String>)> {
    let AttentionDims { B, T, NH, HS } = DIMS;
    let Setting { dtype, matmul, gelu_fusion, deterministic, .. } = *setting;
    let options = CudaOptions { dtype, tf32: false, gelu_fusion, deterministic, matmul, graphs: false };
    let mut dev = Cuda::new(Box::new(Fake::open(setting)?.0), options);
    let (rows, C) = (B * T, NH * HS);
    let mut plan = MemoryPlan::new();
    let [qkv, dqkv] = [(); 2].map(|()| plan.add("test", "x", dtype, rows * 3 * C));
    let [out, douts] = [(); 2].map(|()| plan.add("test", "x", dtype, rows * C));
    let lse = plan.add("test", "x", Dtype::F32, rows * NH);
    let limits = Limits { rows, logits_rows: rows, T, C, NH, V: 64, Vp: 64, norm_pieces: 1 };
    plan_scratch(&dev, &[limits], &mut plan)?;
    dev.allocate(&plan)?;
    upload_f32(&mut dev, qkv, &random(1, qkv.len))?;
    upload_f32(&mut dev, douts, &random(2, douts.len))?;
    upload_f32(&mut dev, douts.slice(0, 1), &[dout])?;
    dev.attention_forward(AttentionForward { out, lse, qkv, positions: None, dropout: None, dims: DIMS })?;
    logged::take_warnings();
    for _ in 0..2 {
        dev.attention_backward(AttentionBackward {
            dqkv,
            dout: douts,
            out,
            lse,
            qkv,
            positions: None,
            dropout: None,
            dims: DIMS,
        })?;
    }
    let mut result = vec![0.0; dqkv.len];
    download_f32(&mut dev, &mut result, dqkv)?;
    Ok((dev.attention.known.get(&DIMS).copied(), result, logged::take_warnings()))
}

fn gpu() -> Setting {
    Setting { dtype: Dtype::Bf16, capability: (8, 0), ..Setting::default() }
}

/// A kernel takes a millisecond, so one takes less than two.
#[test]
fn the_faster_one_is_kept() {
    let (kernels, atomic, warnings) = chosen(&gpu(), 0.5).unwrap();
    assert_eq!((kernels, warnings), (Some(Atomic), Vec::new()));
    let slow = Setting { cost: |name| if name.contains("atomic") { 2.5 } else { 1.0 }, ..gpu() };
    let (kernels, ordered, warnings) = chosen(&slow, 0.5).unwrap();
    assert_eq!((kernels, warnings), (Some(Ordered), Vec::new()));
    assert!(ordered.iter().chain(&atomic).all(|x| x.is_finite()));
}

#[test]
fn nothing_is_chosen_in_a_deterministic_run_or_in_f32() {
    let deterministic = Setting { deterministic: true, ..gpu() };
    for setting in [deterministic, Setting { dtype: Dtype::F32, ..gpu() }] {
        let (kernels, result, warnings) = chosen(&setting, 0.5).unwrap();
        assert_eq!((kernels, warnings), (None, Vec::new()));
        assert!(result.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn a_wrong_or_refused_kernel_is_left_out() {
    for (fault, words) in
        [(Fault::ReturnsEarly, "its result is wrong: dQ"), (Fault::Refused, "it is refused")]
    {
        let (kernels, result, warnings) =
            chosen(&Setting { mutant: Some(("atomic", fault)), ..gpu() }, 0.5).unwrap();
        assert_eq!(kernels, Some(Ordered), "{fault:?}");
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{warnings:?}");
        assert!(result.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn gradients_that_overflowed_choose_nothing() {
    let (kernels, _, warnings) = chosen(&gpu(), f32::INFINITY).unwrap();
    assert_eq!((kernels, warnings), (None, Vec::new()));
}
