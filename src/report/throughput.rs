//! Throughput of a run, and the estimate of its end.

use std::time::Duration;

/// Weight of the past in the moving average, as in llm.c.
const DECAY: f64 = 0.95;

/// Tokens per second, smoothed over about twenty steps. The first step of a process is a warm-up
/// and does not count.
#[derive(Clone, Debug, Default)]
pub struct Throughput {
    average: f64,
    /// Number of steps, including the first.
    steps: i32,
    total_ms: f64,
}

impl Throughput {
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a step of `tokens` that took `ms` milliseconds. Returns the smoothed rate in tokens
    /// per second.
    pub fn update(&mut self, tokens: usize, ms: f64) -> f64 {
        let rate = tokens as f64 / ms * 1000.0;
        self.steps += 1;
        if self.steps == 1 {
            return rate;
        }
        self.total_ms += ms;
        self.average = DECAY * self.average + (1.0 - DECAY) * rate;
        // The average starts at 0; this corrects for that start, as in Adam.
        self.average / (1.0 - DECAY.powi(self.steps - 1))
    }

    /// Returns the mean duration of a step in milliseconds, without the first; `None` before the
    /// second.
    pub fn mean_ms(&self) -> Option<f64> {
        (self.steps > 1).then(|| self.total_ms / f64::from(self.steps - 1))
    }
}

/// Returns the time for `tokens` at `tok_per_s`, without validation, samples and checkpoints.
/// `None` if that is not a valid duration.
pub fn eta(tokens: u64, tok_per_s: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(tokens as f64 / tok_per_s).ok()
}

/// Formats a duration with at most two units: `42s`, `3m05s`, `1h23m`, `2d04h`.
pub fn short(duration: Duration) -> String {
    let s = duration.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        _ => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_itself_and_the_first_step_does_not_count() {
        let mut t = Throughput::new();
        assert_eq!(t.update(4096, 10_000.0), 409.6);
        assert_eq!(t.mean_ms(), None);
        for _ in 0..50 {
            let rate = t.update(4096, 1000.0);
            assert!((rate - 4096.0).abs() < 1e-6, "{rate}");
        }
        assert_eq!(t.mean_ms(), Some(1000.0));
    }

    #[test]
    fn the_average_is_that_of_llmc() {
        // 0.95 * (0.05 * 100) + 0.05 * 200 = 14.75, over 1 - 0.95^2 = 0.0975.
        let mut t = Throughput::new();
        t.update(1, 1.0);
        assert!((t.update(100, 1000.0) - 100.0).abs() < 1e-9);
        let rate = t.update(200, 1000.0);
        assert!((rate - 14.75 / 0.0975).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn the_published_run_takes_an_hour_and_three_quarters() {
        let rate = 524_288.0 / 0.33;
        assert_eq!(eta(19073 * 524_288, rate).map(short).as_deref(), Some("1h44m"));
        assert_eq!(eta(0, 5.0), Some(Duration::ZERO));
        for rate in [0.0, f64::NAN, -1.0, 1e-300] {
            assert_eq!(eta(10 << 20, rate), None);
        }
    }

    #[test]
    fn durations_are_short() {
        let shown = [0.0, 0.6, 59.4, 59.6, 61.0, 3599.0, 4980.0, 86_399.0, 187_200.0]
            .map(|s| short(Duration::from_secs_f64(s)));
        assert_eq!(shown, ["0s", "1s", "59s", "1m00s", "1m01s", "59m59s", "1h23m", "23h59m", "2d04h"]);
    }
}
