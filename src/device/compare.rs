//! Comparison of what a device computed with what it should have: for the tests of every device.

/// Checks that every element is as wanted, to within `tolerance` times its size or times the root mean square of all
/// that is wanted, whichever is larger: an element much smaller than its neighbours is the difference of terms of their
/// size.
///
/// # Panics
/// If not, naming the element that is furthest out. NaN is never as wanted; infinity only where it is wanted.
#[track_caller]
pub fn assert_close<W: Into<f64> + Copy>(name: &str, got: &[f32], want: &[W], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let want: Vec<f64> = want.iter().map(|&w| w.into()).collect();
    let size = root_mean_square(&want);
    let share = |i: usize| {
        let (got, want) = (f64::from(got[i]), want[i]);
        let allowed = tolerance * size.max(want.abs());
        if got == want { 0.0 } else { (got - want).abs() / allowed }
    };
    // NaN counts as infinitely far out.
    let distance = |i: usize| if share(i).is_nan() { f64::INFINITY } else { share(i) };
    let Some(worst) = (0..got.len()).max_by(|&a, &b| distance(a).total_cmp(&distance(b))) else { return };
    assert!(
        share(worst) <= 1.0,
        "{name}: [{worst}] of {} is {:e}, want {:e}: {:.0} % of the tolerance {tolerance:e}",
        got.len(),
        got[worst],
        want[worst],
        100.0 * share(worst),
    );
}

/// Checks that two results are the same, bit for bit.
///
/// # Panics
/// If not, naming the first element that differs.
#[track_caller]
pub fn assert_same_bits(name: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{name}: length");
    let differs = (0..got.len()).find(|&i| got[i].to_bits() != want[i].to_bits());
    if let Some(i) = differs {
        panic!("{name}: [{i}] of {} is {:e}, want {:e} exactly", got.len(), got[i], want[i]);
    }
}

fn root_mean_square(values: &[f64]) -> f64 {
    let finite = values.iter().filter(|v| v.is_finite());
    (finite.clone().map(|v| v * v).sum::<f64>() / finite.count().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

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
