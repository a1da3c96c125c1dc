//! Detection of outliers among losses and gradient norms, by their distance from recent values.

use serde::{Deserialize, Serialize};

/// The number of recent values, as in llm.c.
const WINDOW: usize = 128;

/// Once this many values in a row have been rejected, further ones enter the window: a level that
/// persists is not an outlier, and a run that skipped every step from then on would silently stall.
const MAX_REJECTED: usize = 16;

/// The last 128 accepted values. They are part of a run's state, so that a resumed run skips the
/// same steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Saved")]
pub struct OutlierDetector {
    /// A ring buffer: once it is full, `oldest` is replaced next.
    window: Vec<f32>,
    oldest: usize,
    rejected_in_a_row: usize,
}

impl OutlierDetector {
    pub fn new() -> Self {
        Self::default()
    }

    /// The z-score of `value`: how many standard deviations it lies above the mean of the window
    /// that would include it; negative below.
    ///
    /// NaN until the window is full, and infinite for a value that is not finite. This is llm.c's
    /// z-score, but computed from the values themselves: running sums of squares cancel, and a
    /// negative variance would silence the detector.
    pub fn score(&self, value: f32) -> f64 {
        if !value.is_finite() {
            return f64::INFINITY;
        }
        if self.window.len() < WINDOW {
            return f64::NAN;
        }
        let (before, after) = (&self.window[..self.oldest], &self.window[self.oldest + 1..]);
        let values = || before.iter().chain(after).chain([&value]).map(|&x| f64::from(x));
        let mean = values().sum::<f64>() / WINDOW as f64;
        let variance = values().map(|x| (x - mean) * (x - mean)).sum::<f64>() / WINDOW as f64;
        if variance == 0.0 { 0.0 } else { (f64::from(value) - mean) / variance.sqrt() }
    }

    /// Adds the value of a step that was taken to the window. Values that are not finite stay out.
    pub fn accept(&mut self, value: f32) {
        self.rejected_in_a_row = 0;
        self.push(value);
    }

    /// Records the value of a step that was skipped. It stays out of the window, which it would
    /// widen until the next outlier looked ordinary, unless too many in a row have been skipped.
    pub fn reject(&mut self, value: f32) {
        self.rejected_in_a_row += 1;
        if self.rejected_in_a_row > MAX_REJECTED {
            self.push(value);
        }
    }

    fn push(&mut self, value: f32) {
        if !value.is_finite() {
            return;
        }
        if self.window.len() < WINDOW {
            self.window.push(value);
        } else {
            self.window[self.oldest] = value;
            self.oldest = (self.oldest + 1) % WINDOW;
        }
    }
}

/// Whether a step with this score must be skipped; a `threshold` of 0 skips none.
pub fn is_outlier(score: f64, threshold: f32) -> bool {
    threshold > 0.0 && score > f64::from(threshold)
}

/// The saved form of a detector, not yet validated.
#[derive(Deserialize)]
struct Saved {
    window: Vec<f32>,
    oldest: usize,
    rejected_in_a_row: usize,
}

impl TryFrom<Saved> for OutlierDetector {
    type Error = String;

    fn try_from(saved: Saved) -> Result<Self, String> {
        let Saved { window, oldest, rejected_in_a_row } = saved;
        let ring = oldest == 0 || (oldest < WINDOW && window.len() == WINDOW);
        if window.len() > WINDOW || !ring || !window.iter().all(|x| x.is_finite()) {
            return Err(format!(
                "outlier detector: expected at most {WINDOW} finite values, found {} and position {oldest}",
                window.len()
            ));
        }
        Ok(OutlierDetector { window, oldest, rejected_in_a_row })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(detector: &mut OutlierDetector, value: f32) -> f64 {
        let score = detector.score(value);
        detector.accept(value);
        score
    }

    /// Uniform in [3, 4), from a linear congruential generator.
    fn values() -> impl Iterator<Item = f32> {
        let mut x = 1u32;
        std::iter::repeat_with(move || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            3.0 + (x >> 8) as f32 / 16_777_216.0
        })
    }

    fn full() -> OutlierDetector {
        let mut detector = OutlierDetector::new();
        values().take(WINDOW).for_each(|v| detector.accept(v));
        detector
    }

    /// Expected scores are those of llm.c's own detector, compiled and run on the same values, with
    /// an outlier of 9 at step 500.
    #[test]
    fn scores_are_those_of_llmc() {
        let known = [
            (128, 0.205069941414),
            (129, -0.092849419306),
            (300, 0.734615159749),
            (500, 9.621953957822),
            (501, -0.001717930937),
            (999, -1.295940048517),
        ];
        let mut detector = OutlierDetector::new();
        let mut checked = 0;
        for (i, value) in values().take(1000).enumerate() {
            let score = update(&mut detector, if i == 500 { 9.0 } else { value });
            assert_eq!(score.is_nan(), i < WINDOW, "step {i}: {score}");
            if let Some((_, expected)) = known.iter().find(|k| k.0 == i) {
                assert!((score - expected).abs() <= 1e-9, "step {i}: {score}, expected {expected}");
                checked += 1;
            }
        }
        assert_eq!(checked, known.len());
    }

    /// Running sums in f64 lose a deviation of 1e-3 beside 1e6: its square is below the last bit of
    /// 1e12 * 128.
    #[test]
    fn a_small_deviation_beside_a_large_mean_is_seen() {
        let mut detector = OutlierDetector::new();
        for i in 0..WINDOW {
            detector.accept(1e6 + (i % 2) as f32 * 0.125);
        }
        let score = detector.score(1e6 + 0.625);
        assert!(score > 6.0 && score < 11.4, "{score}");
        assert_eq!(OutlierDetector { window: vec![7.0; WINDOW], ..OutlierDetector::new() }.score(7.0), 0.0);
    }

    #[test]
    fn a_skipped_outlier_does_not_hide_the_next() {
        let mut detector = full();
        let first = detector.score(50.0);
        assert!(is_outlier(first, 7.0), "{first}");
        for _ in 0..MAX_REJECTED {
            detector.reject(50.0);
            assert_eq!(detector.score(50.0), first);
        }
    }

    #[test]
    fn a_new_level_is_taken_up_in_the_end() {
        let mut detector = full();
        let mut skipped = 0;
        for value in values().take(400).map(|v| v + 20.0) {
            if is_outlier(detector.score(value), 3.0) {
                detector.reject(value);
                skipped += 1;
            } else {
                detector.accept(value);
            }
        }
        assert!(skipped > MAX_REJECTED && skipped < 2 * MAX_REJECTED, "{skipped}");
    }

    #[test]
    fn what_is_not_finite_is_an_outlier_and_stays_out() {
        let mut detector = full();
        let clean = detector.clone();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(is_outlier(update(&mut detector, value), 7.0));
            assert!(OutlierDetector::new().score(value).is_infinite());
        }
        assert_eq!(detector, clean);
        assert!(!is_outlier(f64::INFINITY, 0.0) && !is_outlier(f64::NAN, 7.0));
    }

    /// Ordinary values, outliers of any size and values that are not finite, in any order.
    #[test]
    fn no_sequence_poisons_the_window() {
        let mut x = 7u32;
        let mut random = move |below: u32| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) % below
        };
        for case in 0..300 {
            let threshold = [0.5, 3.0, 7.0, 11.0][case % 4];
            let spread = if case % 5 == 0 { 0.0 } else { 0.01 };
            let mut ordinary = values().map(|v| 3.0 + spread * v);
            let mut detector = OutlierDetector::new();
            for _ in 0..600 {
                let value = match random(12) {
                    0 => f32::from_bits(0x3f80_0000 + random(0x3f7f_ffff)),
                    1 => [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX][random(4) as usize],
                    _ => ordinary.next().unwrap(),
                };
                let (before, score) = (detector.clone(), detector.score(value));
                let full = before.window.len() == WINDOW;
                assert!(!score.is_nan() || !full, "case {case}: a score of {value} is NaN");
                match full && is_outlier(score, threshold) || !value.is_finite() {
                    true => detector.reject(value),
                    false => detector.accept(value),
                }
                assert!(detector.window.len() <= WINDOW && detector.window.iter().all(|v| v.is_finite()));
                if detector.rejected_in_a_row > 0 && detector.rejected_in_a_row <= MAX_REJECTED {
                    assert_eq!(detector.window, before.window, "case {case}: {value} entered");
                    // So the same value again is as much of an outlier.
                    assert!(!full || detector.score(value) == score, "case {case}: {value}");
                }
            }
        }
    }

    #[test]
    fn a_constant_past_scores_0_and_any_change_is_finite() {
        for level in [0.0, 3.0, 1e-38, f32::MAX] {
            let detector = OutlierDetector { window: vec![level; WINDOW], ..OutlierDetector::new() };
            assert_eq!(detector.score(level), 0.0);
            for value in [level + 1.0, f32::MAX, f32::MIN, 0.0] {
                assert!(detector.score(value).is_finite(), "{value} after {level}");
            }
        }
    }

    #[test]
    fn a_saved_detector_goes_on_exactly() {
        for len in [0, 5, 128, 300] {
            let mut detector = OutlierDetector::new();
            values().take(len).for_each(|v| detector.accept(v));
            detector.reject(1e9);
            let text = serde_json::to_string(&detector).unwrap();
            assert_eq!(serde_json::from_str::<OutlierDetector>(&text).unwrap(), detector);
        }
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let refused = |text: &str| assert!(serde_json::from_str::<OutlierDetector>(text).is_err(), "{text}");
        refused(r#"{"window":[1.0,2.0],"oldest":1,"rejected_in_a_row":0}"#);
        refused(r#"{"window":[1e999],"oldest":0,"rejected_in_a_row":0}"#);
        let long = vec!["1.0"; WINDOW + 1].join(",");
        refused(&format!(r#"{{"window":[{long}],"oldest":0,"rejected_in_a_row":0}}"#));
        refused(&format!(r#"{{"window":[{}],"oldest":128,"rejected_in_a_row":0}}"#, &long[4..]));
    }
}
