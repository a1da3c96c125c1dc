//! One body, compiled for several instruction sets, the best chosen at run time.
//!
//! Loops are written in plain Rust and left to the compiler to vectorise; [`dispatch`] compiles them three times. What
//! the compiler may not do by itself, because it changes the result, is written out: sums run over [`LANES`] partial
//! sums that are added in a fixed order.
#![allow(non_snake_case)]

/// Independent partial sums of a reduction. The compiler leaves so many in memory, where they hide how long it takes to
/// store one and load it again; fewer it takes apart into scalars, and cannot put them together again.
pub const LANES: usize = 128;

/// Elements in one rayon task of an element-wise operation: long enough to pay for a task, short enough to share out
/// evenly. A constant, so that the cut does not depend on the number of threads.
pub const CHUNK: usize = 1 << 14;

/// Rows of `C` elements in one rayon task of a row-wise operation.
pub fn rows_per_task(C: usize) -> usize {
    (CHUNK / C.max(1)).max(1)
}

/// What the body was compiled for: a constant once it is inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    Avx512,
    /// With fused multiply-add.
    Avx2,
    Baseline,
}

/// Runs `body` compiled for the best instruction set of this CPU.
///
/// Only what is inlined into `body` is compiled for it: mark the closure and all it calls `#[inline(always)]`, and
/// call this inside a rayon task, not around it.
#[inline(always)]
pub fn dispatch<R>(body: impl FnOnce(Simd) -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if has_avx512() {
            // SAFETY: the CPU has all features that the function enables.
            return unsafe { with_avx512(body) };
        }
        if has_avx2() {
            // SAFETY: as above.
            return unsafe { with_avx2(body) };
        }
    }
    body(Simd::Baseline)
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(body: impl FnOnce(Simd) -> R) -> R {
    body(Simd::Avx2)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn with_avx512<R>(body: impl FnOnce(Simd) -> R) -> R {
    body(Simd::Avx512)
}

/// Sum of `f(x)` over `src`.
#[inline(always)]
pub fn sum_of(src: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = src.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    sum_lanes(lanes)
}

/// Largest element of `src`, NaN passed over; minus infinity if there is none.
#[inline(always)]
pub fn max(src: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = src.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(x, *lane);
        }
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |a, &x| larger(x, a))
}

/// `a` if it is larger, else `b`; `b` where `a` is NaN. One instruction, unlike [`f32::max`].
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The halves added to each other, until one is left.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}
