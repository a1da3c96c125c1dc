//! Comparison of results with what they should be, within a tolerance. Tuning holds matmul kernels
//! to it; the rest is for tests and benchmarks, behind the feature `testing`.

#[cfg(any(test, feature = "testing"))]
mod helpers;

use crate::tensor::Dtype;
#[cfg(any(test, feature = "testing"))]
pub use helpers::{adamw_part, adamw_step, assert_close, assert_same_bits};

/// Standard deviations that only one in 5e8 sums of independent terms exceeds.
const DEVIATIONS: f64 = 6.0;

/// GELU and its derivative at a point, in the tanh form.
pub struct Gelu {
    pub value: f64,
    pub gradient: f64,
    /// Change of the gradient by an error of 1 in tanh.
    gradient_per_tanh: f64,
}

/// GELU and its derivative at `x`.
pub fn gelu(x: f64) -> Gelu {
    const SCALE: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
    const CUBIC: f64 = 0.044715;
    let tanh = (SCALE * (x + CUBIC * x * x * x)).tanh();
    let slope = SCALE * (1.0 + 3.0 * CUBIC * x * x);
    Gelu {
        value: 0.5 * x * (1.0 + tanh),
        gradient: 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * slope,
        gradient_per_tanh: 0.5 - x * tanh * slope,
    }
}

/// The distance that an output may have from the right result.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Roundings to the device's type on the way to the output, in units of the last place.
    pub roundings: f64,
    /// Terms of the longest f32 sum on the way.
    pub terms: usize,
    /// Change of an output by an error of 1 in tanh, relative to the output or to the root mean
    /// square of all. Kernels of 16-bit numbers use a tanh instruction whose error is up to 2^-11;
    /// those of f32 use `tanhf`, whose error is up to two units in the last place.
    pub per_tanh: f64,
}

impl Tolerance {
    pub const fn new(roundings: f64, terms: usize) -> Self {
        Tolerance { roundings, terms, per_tanh: 0.0 }
    }

    /// The tolerance of `gelu(x)` for these `x`, rounded once.
    pub fn of_gelu(inputs: &[f32]) -> Self {
        let inputs = inputs.iter().map(|&x| f64::from(x));
        let outputs: Vec<f64> = inputs.clone().map(|x| gelu(x).value).collect();
        let size = root_mean_square(&outputs);
        let per_tanh = inputs.zip(&outputs).map(|(x, y)| 0.5 * x.abs() / size.max(y.abs()));
        let largest = per_tanh.filter(|share| share.is_finite()).fold(0.0, f64::max);
        Tolerance { per_tanh: largest, ..Self::new(1.0, 1) }
    }

    /// The tolerance of GELU of sums of many terms, whose outputs have at least half the root mean
    /// square of the sums.
    pub fn then_gelu(self) -> Self {
        Tolerance { per_tanh: 0.5 * DEVIATIONS / 0.5, ..self }
    }

    /// The tolerance of `gelu'(x)` for these `x`, rounded once.
    pub fn of_gelu_gradient(inputs: &[f32]) -> Self {
        let inputs = inputs.iter().map(|&x| f64::from(x));
        let size = root_mean_square(&inputs.clone().map(|x| gelu(x).gradient).collect::<Vec<_>>());
        let largest = inputs.map(gradient_per_tanh).fold(0.0, f64::max);
        Tolerance { per_tanh: largest / size, ..Self::new(1.0, 1) }
    }

    /// The tolerance of `gelu'(x)`, rounded once more, where x are sums of many terms whose root
    /// mean square is `size`.
    pub fn then_gelu_gradient(self, size: f64) -> Self {
        // gelu'(x) + gelu'(-x) = 1, so the root mean square of gradients is at least half.
        const LEAST: f64 = 0.5;
        // Largest magnitudes of gelu''(x) and of x gelu''(x): sums err by a share of `size`, or of
        // their own if they are larger.
        let factor = f64::max(0.8 * size, 0.34) / LEAST;
        Tolerance {
            roundings: factor * self.roundings + 1.0,
            terms: (factor * factor * self.terms as f64).ceil() as usize,
            per_tanh: gradient_per_tanh(DEVIATIONS * size) / LEAST,
        }
    }

    /// Returns the tolerance relative to an element, or to the root mean square of all if that is
    /// larger.
    pub fn relative(self, dtype: Dtype) -> f64 {
        let last_place = match dtype {
            Dtype::Bf16 => 2f64.powi(-8),
            Dtype::F16 => 2f64.powi(-11),
            _ => 2f64.powi(-23),
        };
        let tanh_error = 2f64.powi(if dtype == Dtype::F32 { -23 } else { -11 });
        self.roundings * last_place
            + self.per_tanh * tanh_error
            + 2f64.powi(-21) * (self.terms.max(1) as f64).sqrt()
    }
}

/// Whether every element is within `tolerance` of the wanted one, relative to its size or to the
/// root mean square of all wanted, whichever is larger: an element much smaller than its neighbors
/// is the difference of terms of their size. NaN never is; infinity is only where it is wanted.
///
/// # Errors
/// If not, naming the element that is furthest out.
pub fn close<W: Into<f64> + Copy>(got: &[f32], want: &[W], tolerance: f64) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{} elements, want {}", got.len(), want.len()));
    }
    let want: Vec<f64> = want.iter().map(|&w| w.into()).collect();
    let size = root_mean_square(&want);
    let share = |i: usize| {
        let (got, want) = (f64::from(got[i]), want[i]);
        let allowed = tolerance * size.max(want.abs());
        if got == want { 0.0 } else { (got - want).abs() / allowed }
    };
    // NaN counts as infinitely far out.
    let distance = |i: usize| if share(i).is_nan() { f64::INFINITY } else { share(i) };
    match (0..got.len()).max_by(|&a, &b| distance(a).total_cmp(&distance(b))) {
        Some(worst) if distance(worst) > 1.0 => Err(format!(
            "[{worst}] of {} is {:e}, want {:e}: {:.0} % of the tolerance {tolerance:e}",
            got.len(),
            got[worst],
            want[worst],
            100.0 * share(worst),
        )),
        _ => Ok(()),
    }
}

/// Largest change of `gelu'` by an error of 1 in tanh, between 0 and `x`. From 6.7 on, the tanh
/// instruction returns exactly 1.
fn gradient_per_tanh(x: f64) -> f64 {
    gelu(x.abs().min(6.7)).gradient_per_tanh.abs().max(0.5)
}

fn root_mean_square(values: &[f64]) -> f64 {
    let finite = values.iter().filter(|v| v.is_finite());
    (finite.clone().map(|v| v * v).sum::<f64>() / finite.count().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rounding of 1 in 16 bits is half a unit in the last place, so there is room for as much
    /// again.
    #[test]
    fn a_tolerance_is_of_the_type_and_the_instructions() {
        let tolerance = Tolerance { per_tanh: 0.5, ..Tolerance::new(2.0, 4) };
        let of = |dtype| tolerance.relative(dtype) - 2f64.powi(-20);
        assert_eq!(of(Dtype::Bf16), 2f64.powi(-7) + 2f64.powi(-12));
        assert_eq!(of(Dtype::F16), 2f64.powi(-10) + 2f64.powi(-12));
        assert_eq!(of(Dtype::F32), 2f64.powi(-22) + 2f64.powi(-24));
    }

    /// gelu(4) is 4, of which half is tanh; gelu(-4) is 0, next to a root mean square of 4 /
    /// sqrt(2).
    #[test]
    fn gelu_passes_on_the_error_of_tanh() {
        assert!((Tolerance::of_gelu(&[4.0]).per_tanh - 0.5).abs() < 1e-3);
        assert!((Tolerance::of_gelu(&[4.0, -4.0]).per_tanh - 0.5f64.sqrt()).abs() < 1e-3);
        assert_eq!(Tolerance::of_gelu(&[0.0]).per_tanh, 0.0);
    }

    /// The gradient is checked by differences of GELU.
    #[test]
    fn the_gradient_of_gelu_passes_on_the_error_of_tanh() {
        for x in [-3.0, -0.5, 0.0, 1.0, 2.5] {
            let slope = (gelu(x + 1e-6).value - gelu(x - 1e-6).value) / 2e-6;
            assert!((gelu(x).gradient - slope).abs() < 1e-8, "{x}");
        }
        // At 0 the gradient is 0.5 and moves half as much as tanh; at 3 it moves more.
        let near_zero = Tolerance::of_gelu_gradient(&[0.0]).per_tanh;
        assert!((near_zero - 1.0).abs() < 1e-12, "{near_zero}");
        let up_to_3 = Tolerance::of_gelu_gradient(&[0.0, 3.0]).per_tanh;
        assert!((4.7 / 0.8..4.8 / 0.79).contains(&up_to_3), "{up_to_3}");
        let sums = Tolerance::new(2.0, 4).then_gelu_gradient(0.5);
        assert_eq!((sums.roundings, sums.terms), (2.0 * 0.8 + 1.0, 3));
        assert!((4.7 / 0.5..4.8 / 0.5).contains(&sums.per_tanh), "{sums:?}");
    }

    /// The bounds that its tolerance rests on.
    #[test]
    fn the_gradient_of_gelu_is_smooth() {
        for x in (-1000..=1000).map(|i| f64::from(i) / 100.0) {
            let slope = (gelu(x + 1e-6).gradient - gelu(x - 1e-6).gradient) / 2e-6;
            assert!(slope.abs() <= 0.8 && (x * slope).abs() <= 0.34, "{x}: {slope}");
            assert!((gelu(x).gradient + gelu(-x).gradient - 1.0).abs() < 1e-12, "{x}");
            assert!(x.abs() > 6.7 || gelu(x).gradient_per_tanh.abs() <= gradient_per_tanh(x), "{x}");
        }
    }

    #[test]
    fn close_passes() {
        assert_close("same", &[1.0, f32::INFINITY, 0.0], &[1.0, f32::INFINITY, 0.0], 0.0);
        assert_close("near", &[100.0, 1e-5], &[100.001, 0.0], 1e-5);
        assert_close::<f64>("empty", &[], &[], 0.0);
    }

    #[test]
    #[should_panic(expected = "far: [1] of 3 is 2e0, want 2.1e0: ")]
    fn far_fails() {
        assert_close("far", &[1.0, 2.0, 3.0], &[1.0, 2.1, 3.0001], 1e-3);
    }

    #[test]
    #[should_panic(expected = "[1] of 2 is NaN")]
    fn nan_fails() {
        assert_close("nan", &[1.5, f32::NAN], &[1.0, 1.0], 1.0);
    }

    #[test]
    #[should_panic(expected = "want NaN")]
    fn wanted_nan_fails() {
        assert_close("nan", &[1.0], &[f64::NAN], 1.0);
    }

    #[test]
    #[should_panic(expected = "[0] of 2 is inf")]
    fn infinity_fails() {
        assert_close("inf", &[f32::INFINITY, 0.0], &[1e30, 0.0], 1.0);
    }

    #[test]
    #[should_panic(expected = "[0] of 1")]
    fn zero_wants_zero() {
        assert_close("zero", &[1e-30], &[0.0], 1.0);
    }

    #[test]
    #[should_panic(expected = "[1] of 2 is -0e0, want 0e0 exactly")]
    fn sign_of_zero_differs_in_bits() {
        assert_same_bits("bits", &[0.0, -0.0], &[0.0, 0.0]);
    }
}

/// Helpers that the unit tests of operations share.
#[cfg(test)]
pub mod testing {
    use super::assert_same_bits;

    /// Returns `len` values uniform in -1..1 (splitmix64, Steele et al. 2014).
    pub fn random(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        (0..len).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// Returns `len` values in 0..below.
    pub fn random_indices(seed: u64, len: usize, below: usize) -> Vec<i32> {
        random(seed, len).iter().map(|x| ((x + 1.0) / 2.0 * below as f32) as i32).collect()
    }

    pub fn poisoned(len: usize) -> Vec<f32> {
        vec![f32::NAN; len]
    }

    /// Returns the gradient of `loss` at `at` by central differences, good to about 1e-8 if the
    /// loss is of the order of one.
    pub fn central_differences(at: &[f32], loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        const STEP: f64 = 1e-5;
        let mut x: Vec<f64> = at.iter().map(|&x| f64::from(x)).collect();
        (0..x.len())
            .map(|i| {
                let center = x[i];
                x[i] = center + STEP;
                let above = loss(&x);
                x[i] = center - STEP;
                let below = loss(&x);
                x[i] = center;
                (above - below) / (2.0 * STEP)
            })
            .collect()
    }

    pub fn weighted_sum(values: &[f64], weights: &[f32]) -> f64 {
        assert_eq!(values.len(), weights.len());
        values.iter().zip(weights).map(|(v, &w)| v * f64::from(w)).sum()
    }

    /// Returns the sum of the values before and the gradient that should have been added.
    pub fn added(before: &[f32], gradient: &[f64]) -> Vec<f64> {
        assert_eq!(before.len(), gradient.len());
        before.iter().zip(gradient).map(|(&b, g)| f64::from(b) + g).collect()
    }

    /// Runs `op` on several numbers of threads and checks that the results have the same bits.
    #[track_caller]
    pub fn assert_same_on_any_threads(name: &str, op: impl Fn() -> Vec<f32> + Sync) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(&op)
        };
        let want = run(1);
        assert!(want.iter().all(|x| !x.is_nan()), "{name}: a NaN was left");
        for threads in [2, 3, 7] {
            assert_same_bits(&format!("{name} on {threads} threads"), &run(threads), &want);
        }
    }
}
