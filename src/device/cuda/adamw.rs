//! AdamW.

use super::Cuda;
use super::kernel::{Bf16, FloatX, Ptr, kernels};
use crate::ops::*;
use crate::tensor::Dtype;
use anyhow::Result;

kernels! {
    "adamw.cu":
    fn adamw(
        params: Ptr<FloatX>, master: Ptr<f32>, m: Ptr<f32>, v: Ptr<f32>, grads: Ptr<FloatX>, weight_decay: f32,
        lr: f32, beta1: f32, beta2: f32, correction1: f32, correction2: f32, eps: f32, grad_scale: f32,
        seed: u32, first: u64, n: u64,
    );
    fn adamw_bf16_state(
        params: Ptr<FloatX>, master: Ptr<f32>, m: Ptr<Bf16>, v: Ptr<Bf16>, grads: Ptr<FloatX>, weight_decay: f32,
        lr: f32, beta1: f32, beta2: f32, correction1: f32, correction2: f32, eps: f32, grad_scale: f32,
        seed: u32, first: u64, n: u64,
    );
}

pub fn update(cuda: &mut Cuda, a: AdamW) -> Result<()> {
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
    let Cuda { driver, memory, .. } = cuda;
    let dev = driver.as_mut();
    let (params, grads, n) = (memory.x(a.params), memory.x(a.grads), a.params.len as u64);
    let master = a.master.map_or(Ptr::NULL, |master| memory.f32(master));
    let (c1, c2) = (correction(a.beta1), correction(a.beta2));
    let AdamW { weight_decay, lr, beta1, beta2, eps, grad_scale, seed, first, .. } = a;
    macro_rules! launch {
        ($kernel:ident, $m:expr, $v:expr) => {
            kernel::$kernel(
                dev,
                launch,
                params,
                master,
                $m,
                $v,
                grads,
                weight_decay,
                lr,
                beta1,
                beta2,
                c1,
                c2,
                eps,
                grad_scale,
                seed,
                first,
                n,
            )
        };
    }
    match a.m.dtype {
        Dtype::Bf16 => launch!(adamw_bf16_state, memory.bf16(a.m), memory.bf16(a.v)),
        _ => launch!(adamw, memory.f32(a.m), memory.f32(a.v)),
    }
}
