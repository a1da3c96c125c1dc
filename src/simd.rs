//! One function body, compiled for several instruction sets, the best of which is chosen at run
//! time.
//!
//! Loops are plain Rust that the compiler vectorizes; [`dispatch`] compiles them three times.
//! Transformations that change the result are written out, because the compiler may not make them:
//! sums run over [`LANES`] partial sums that are added in a fixed order.

/// Number of independent partial sums in a reduction. With this many, the compiler keeps them in
/// memory, which hides the latency of store and reload; it splits fewer into scalars and cannot
/// recombine them.
pub const LANES: usize = 128;

/// Elements per rayon task of an element-wise operation: long enough to pay for a task, short
/// enough to balance. A constant, so that the partition does not depend on the number of threads.
pub const CHUNK: usize = 1 << 14;

/// Rows of `C` elements per rayon task of a row-wise operation.
pub fn rows_per_task(C: usize) -> usize {
    (CHUNK / C.max(1)).max(1)
}

/// The instruction set a body was compiled for: a constant after inlining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    Avx512,
    /// With fused multiply-add.
    Avx2,
    Baseline,
}

impl Simd {
    /// All instruction sets, best first.
    pub const ALL: [Simd; 3] = [Simd::Avx512, Simd::Avx2, Simd::Baseline];

    /// The best one that this CPU supports.
    #[inline(always)]
    pub fn best() -> Simd {
        Simd::ALL.into_iter().find(|simd| simd.is_supported()).unwrap_or(Simd::Baseline)
    }

    /// Whether this CPU supports it.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match self {
                Simd::Avx512 => avx2 && avx512,
                Simd::Avx2 => avx2,
                Simd::Baseline => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Simd::Baseline
        }
    }
}

/// Runs `body` compiled for the best instruction set of this CPU.
///
/// Only code that is inlined into `body` is compiled for it: mark the closure and everything it
/// calls `#[inline(always)]`, and call this inside a rayon task, not around it.
#[inline(always)]
pub fn dispatch<R>(body: impl FnOnce(Simd) -> R) -> R {
    dispatch_on(Simd::best(), body)
}

/// Runs `body` compiled for `simd`.
///
/// # Panics
/// If this CPU lacks the instruction set.
#[inline(always)]
pub fn dispatch_on<R>(simd: Simd, body: impl FnOnce(Simd) -> R) -> R {
    assert!(simd.is_supported(), "this CPU lacks {simd:?}");
    #[cfg(target_arch = "x86_64")]
    match simd {
        // SAFETY: the assertion above checked that the CPU has all features the function enables.
        Simd::Avx512 => return unsafe { with_avx512(body) },
        // SAFETY: the assertion above checked that the CPU has all features the function enables.
        Simd::Avx2 => return unsafe { with_avx2(body) },
        Simd::Baseline => {}
    }
    body(Simd::Baseline)
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

/// Returns the sum of `f(x)` over `src`.
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

/// Returns the largest element of `src`, ignoring NaN, or minus infinity if there is none.
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

/// Returns `a` if it is larger, otherwise `b`, also where `a` is NaN. One instruction, unlike
/// [`f32::max`].
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Adds the halves to each other until one element is left.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::compare::testing::random;

    const LENS: [usize; 6] = [0, 1, LANES - 1, LANES, LANES + 1, 5 * LANES + 77];

    #[test]
    fn reductions_take_in_every_element() {
        for len in LENS {
            let src = random(len as u64, len);
            let exact: f64 = src.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let largest = src.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            for simd in Simd::ALL.into_iter().filter(|simd| simd.is_supported()) {
                let (sum, max) = dispatch_on(
                    simd,
                    #[inline(always)]
                    |_| (sum_of(&src, |x| x * x), max(&src)),
                );
                assert!((f64::from(sum) - exact).abs() <= 1e-6 * exact, "{simd:?} {len}: {sum} {exact}");
                assert_eq!(max, largest, "{simd:?} {len}");
            }
        }
    }

    #[test]
    fn max_passes_over_nan_wherever_it_is() {
        for at in 0..LANES + 5 {
            let mut src = vec![-3.0; LANES + 5];
            src[at] = f32::NAN;
            assert_eq!(max(&src), -3.0);
            assert!(sum_of(&src, |x| x).is_nan());
        }
    }

    #[test]
    fn bodies_know_what_they_run_on() {
        for simd in Simd::ALL.into_iter().filter(|simd| simd.is_supported()) {
            assert_eq!(dispatch_on(simd, |simd| simd), simd);
        }
        assert!(Simd::Baseline.is_supported());
    }
}
