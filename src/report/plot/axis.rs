//! Axes with ticks at round numbers, and labels that are easy to read.

/// Bound on the ticks of an axis, which rounding could otherwise exceed.
const MOST_TICKS: f64 = 40.0;

/// A range of values and its ticks.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub low: f64,
    pub high: f64,
    pub log: bool,
    pub ticks: Vec<f64>,
}

impl Axis {
    /// Returns a linear axis over the values, which ends at ticks. It starts at 0 if `from_zero`.
    pub fn linear(values: impl Iterator<Item = f64>, from_zero: bool, count: usize) -> Self {
        let (mut low, mut high) = range(values);
        if from_zero {
            low = low.min(0.0);
        }
        if low == high {
            let room = if high == 0.0 { 1.0 } else { (high.abs() * 0.1).max(f64::MIN_POSITIVE) };
            high = (high + room).min(f64::MAX);
            if !from_zero {
                low = (low - room).max(f64::MIN);
            }
        }
        // Divided before they are subtracted, because the difference of two numbers can overflow.
        let step = round_step(high / count as f64 - low / count as f64);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let tick = |i: usize| ((first + i as f64) * step).clamp(f64::MIN, f64::MAX);
        let mut ticks: Vec<f64> = (0..=(last - first).min(MOST_TICKS) as usize).map(tick).collect();
        // The values are too close together for round numbers between them.
        if !step.is_normal() || ticks[0] >= ticks[ticks.len() - 1] {
            ticks = vec![low, high];
        }
        Self { low: ticks[0], high: ticks[ticks.len() - 1], log: false, ticks }
    }

    /// Returns a linear axis from 0 to the last step, which need not be a tick. Ticks are whole
    /// steps.
    pub fn steps(values: impl Iterator<Item = f64>, count: usize) -> Self {
        let (_, last) = range(values);
        let high = last.max(1.0);
        let step = round_step(high / count as f64).max(1.0);
        let step = if step == 2.5 { 5.0 } else { step };
        // A run of 2000 steps ends at step 1999.
        let next = (high / step).ceil() * step;
        let high = if next < high * 1.03 { next } else { high };
        let ticks = (0..=(high / step + 1e-9) as usize).map(|i| i as f64 * step).collect();
        Self { low: 0.0, high, log: false, ticks }
    }

    /// Returns a logarithmic axis over the positive values, if their span (more than 2.5 times)
    /// justifies one.
    pub fn log(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) = range(values.filter(|v| *v > 0.0));
        // No value is positive, or the span is short.
        if low <= 0.0 || high <= low * 2.5 {
            return None;
        }
        let (low, high) = (low / 1.05, (high * 1.05).min(f64::MAX));
        let marks: &[f64] = match (high / low).log10() {
            d if d < 1.5 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
            d if d < 3.0 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let stride = ((last - first) as usize / 10).max(1);
        let ticks = (first..=last).step_by(stride).flat_map(|d| marks.iter().map(move |m| m * 10f64.powi(d)));
        let mut ticks: Vec<f64> = ticks.filter(|t| (low..=high).contains(t)).collect();
        // Powers of ten this small are 0.
        if ticks.is_empty() {
            ticks = vec![low, high];
        }
        Some(Self { low, high, log: true, ticks })
    }

    /// Returns the place of a value on the axis: 0 at the low end, 1 at the high end.
    pub fn place(&self, value: f64) -> f64 {
        // The smallest positive number stands in for 0. Numbers are scaled before they are
        // subtracted, because the difference of two can overflow.
        let scale = self.low.abs().max(self.high.abs());
        let map = |v: f64| if self.log { v.max(f64::from_bits(1)).ln() } else { v / scale };
        (map(value) - map(self.low)) / (map(self.high) - map(self.low))
    }
}

/// Returns the least and the greatest value; zeros if there are none.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.map(|v| (v, v)).reduce(|(low, high), (v, _)| (low.min(v), high.max(v))).unwrap_or_default()
}

/// Returns the smallest 1, 2, 2.5 or 5 times a power of ten that is at least `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0];
    factors.iter().find(|f| *f * power >= raw * (1.0 - 1e-9)).map_or(10.0 * power, |f| f * power)
}

/// Formats a number for a tick or a label: at most four significant digits, with `k`, `M`, `B`, `T`
/// if large and an exponent if small or very large.
pub(super) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1e15 || magnitude < f64::MIN_POSITIVE && magnitude != 0.0 {
        return format!("{value:.1e}");
    }
    for (unit, letter) in [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")] {
        if magnitude >= unit * (1.0 - 1e-9) {
            let unit = if letter == "k" { 1e3 } else { unit };
            return digits(value / unit) + letter;
        }
    }
    if magnitude != 0.0 && magnitude < 1e-2 {
        let exponent = (magnitude.log10() + 1e-9).floor() as i32;
        return format!("{}e{exponent}", digits(value / 10f64.powi(exponent)));
    }
    digits(value)
}

/// Formats with at most four significant digits, without trailing zeros.
fn digits(value: f64) -> String {
    let whole = if value == 0.0 { 1 } else { value.abs().log10().floor() as i32 + 1 };
    let text = format!("{value:.*}", (4 - whole.max(1)).max(0) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}
