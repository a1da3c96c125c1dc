//! AdamW.

use super::Cuda;
use super::kernel::{FloatX, KernelArg, Launch, Ptr, kernel_args, kernels};
use crate::ops::*;
use anyhow::Result;

/// Segments that differ in decay from the one before. GPT-2 has 12.
const MAX_SEGMENTS: usize = 16;

/// As in adamw.cu: which parameters decay by how much.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct DecayTable {
    count: i32,
    weight_decay: [f32; MAX_SEGMENTS],
    end: [u64; MAX_SEGMENTS],
}

kernel_args! { DecayTable => "DecayTable" }

kernels! {
    "adamw.cu":
    fn adamw(
        params: Ptr<FloatX>, master: Ptr<f32>, m: Ptr<f32>, v: Ptr<f32>, grads: Ptr<FloatX>, decay: DecayTable,
        lr: f32, beta1: f32, beta2: f32, correction1: f32, correction2: f32, eps: f32, grad_scale: f32,
        seed: u32, n: u64,
    );
}

const THREADS: usize = 256;

impl DecayTable {
    /// Neighbours with the same decay become one.
    fn new(segments: &[DecaySegment], n: usize, pack: usize) -> Self {
        let mut table = DecayTable::default();
        let mut end = 0;
        for segment in segments {
            assert_eq!(segment.start, end, "AdamW: segments must follow each other without a gap");
            assert!(end.is_multiple_of(pack), "AdamW: a segment starts at {end}, no multiple of {pack}");
            end += segment.len;
            let last = table.count as usize;
            if last == 0 || table.weight_decay[last - 1] != segment.weight_decay {
                assert!(last < MAX_SEGMENTS, "AdamW: more than {MAX_SEGMENTS} changes of decay");
                table.weight_decay[last] = segment.weight_decay;
                table.count += 1;
            }
            table.end[table.count as usize - 1] = end as u64;
        }
        assert_eq!(end, n, "AdamW: segments must cover all parameters");
        table
    }
}

pub fn update(cuda: &mut Cuda, a: AdamW) -> Result<()> {
    let (n, pack) = (a.params.len, cuda.pack());
    assert!(n.is_multiple_of(pack), "AdamW of {n} parameters, which is no multiple of {pack}");
    assert!(a.m.len == n && a.v.len == n && a.grads.len == n && a.master.is_none_or(|t| t.len == n));
    let decay = DecayTable::new(a.segments, n, pack);
    // In f64: 1 - 0.999 has lost four digits in f32.
    let correction = |beta: f32| (1.0 / (1.0 - f64::from(beta).powf(a.t as f64))) as f32;
    let Cuda { driver, memory: m, .. } = cuda;
    kernel::adamw(
        driver.as_mut(),
        Launch::new((n / pack).div_ceil(THREADS), THREADS as u32),
        m.x(a.params),
        a.master.map_or(Ptr::NULL, |master| m.f32(master)),
        m.f32(a.m),
        m.f32(a.v),
        m.x(a.grads),
        decay,
        a.lr,
        a.beta1,
        a.beta2,
        correction(a.beta1),
        correction(a.beta2),
        a.eps,
        a.grad_scale,
        a.seed,
        n as u64,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: usize, len: usize, weight_decay: f32) -> DecaySegment {
        DecaySegment { start, len, weight_decay }
    }

    #[test]
    fn neighbours_of_the_same_decay_are_one() {
        let segments = [segment(0, 16, 0.1), segment(16, 8, 0.1), segment(24, 8, 0.0), segment(32, 8, 0.1)];
        let table = DecayTable::new(&segments, 40, 8);
        assert_eq!(table.count, 3);
        assert_eq!((&table.end[..3], &table.weight_decay[..3]), (&[24, 32, 40][..], &[0.1, 0.0, 0.1][..]));
    }

    #[test]
    #[should_panic(expected = "no multiple of 8")]
    fn a_pack_has_one_decay() {
        DecayTable::new(&[segment(0, 4, 0.1), segment(4, 4, 0.0)], 8, 8);
    }
}
