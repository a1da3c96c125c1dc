//! AdamW.

use super::Cuda;
use super::kernel::{FloatX, Ptr, kernels};
use crate::ops::*;
use anyhow::Result;

kernels! {
    "adamw.cu":
    fn adamw(
        params: Ptr<FloatX>, master: Ptr<f32>, m: Ptr<f32>, v: Ptr<f32>, grads: Ptr<FloatX>, weight_decay: f32,
        lr: f32, beta1: f32, beta2: f32, correction1: f32, correction2: f32, eps: f32, grad_scale: f32,
        seed: u32, first: u64, n: u64,
    );
}

pub fn update(cuda: &mut Cuda, a: AdamW) -> Result<()> {
    let n = a.params.len;
    assert!(
        a.eps > 0.0,
        "AdamW with epsilon {}: it must be positive, as the root of a small v counts as 0",
        a.eps
    );
    assert!(
        a.first.is_multiple_of(4),
        "AdamW from parameter {} on: it must be a multiple of 4, as four are rounded together",
        a.first
    );
    let launch = cuda.launch_by_packs("AdamW", &[a.params, a.grads, a.m, a.v, a.master.unwrap_or(a.m)]);
    // In f64, as 1 - 0.999 loses four digits in f32.
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(a.t as f64))) as f32;
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::adamw(
        driver.as_mut(),
        launch,
        m.x(a.params),
        a.master.map_or(Ptr::NULL, |master| m.f32(master)),
        m.f32(a.m),
        m.f32(a.v),
        m.x(a.grads),
        a.weight_decay,
        a.lr,
        a.beta1,
        a.beta2,
        correction(a.beta1),
        correction(a.beta2),
        a.eps,
        a.grad_scale,
        a.seed,
        a.first,
        n as u64,
    )
}
