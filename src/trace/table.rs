//! The time of traced steps, by operation.

use super::{PREDICTED, add_rates};
use crate::ops::Span;
use crate::report::chrome::{Bar, Row};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::time::Duration;

/// Bars of one name, added up.
#[derive(Default)]
struct Sum {
    calls: usize,
    time: Duration,
    flops: f64,
    bytes: f64,
    /// The time that was predicted for the calls; 0 if none was.
    predicted_us: f64,
}

impl Sum {
    fn add(&mut self, bar: &Bar) {
        let number = |key: &str| bar.args.get(key).and_then(Value::as_f64).unwrap_or_default();
        self.calls += 1;
        self.time += bar.end.saturating_sub(bar.start);
        self.flops += number("flops");
        self.bytes += number("bytes");
        self.predicted_us += number(PREDICTED);
    }

    /// `     24     12.345   23.4      345     1234     11.222`: the columns of [`HEAD`].
    fn columns(&self, steps: usize, whole: Duration) -> String {
        let per_step = |value: f64| value / steps as f64;
        let ms = per_step(self.time.as_secs_f64() * 1e3);
        let share = 100.0 * self.time.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE);
        let mut rates = Map::from_iter([("bytes".to_owned(), json!(self.bytes))]);
        if self.flops > 0.0 {
            rates.insert("flops".to_owned(), json!(self.flops));
        }
        add_rates(&mut rates, self.time);
        let rate = |unit: &str| rates.get(unit).and_then(Value::as_f64).filter(|rate| *rate > 0.0);
        let [tera, giga] = ["TFLOP/s", "GB/s"].map(|unit| rate(unit).map_or(String::new(), significant));
        let predicted = Some(self.predicted_us).filter(|us| *us > 0.0);
        let predicted = predicted.map_or(String::new(), |us| format!("{:.3}", per_step(us / 1e3)));
        let calls = per_step(self.calls as f64);
        // Not all steps need have the same operations.
        let digits = usize::from(calls.fract() != 0.0);
        format!("{calls:>7.digits$} {ms:>10.3} {share:>6.1} {tera:>8} {giga:>8} {predicted:>12}")
    }
}

/// Three digits or more: `0.0123`, `1.23`, `12.3`, `1234`.
fn significant(value: f64) -> String {
    let digits = (2 - value.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}

const HEAD: [&str; 7] = ["operation", "calls", "ms", "%", "TFLOP/s", "GB/s", "predicted ms"];

/// Returns lines with calls, milliseconds, achieved rates and predicted milliseconds (where there
/// are any) per step of each operation in `bars`, the slowest first. Then come their sum, the
/// device's idle time, and what runs beside them: collectives, and the host's waits for batches.
/// No more than `most` operations are listed one by one. Empty without a step.
pub fn table(bars: &[Bar], most: usize) -> Vec<String> {
    let mut whole = Sum::default();
    let is_step = |bar: &&Bar| bar.row == Row::Step && bar.args.contains_key("step");
    bars.iter().filter(is_step).for_each(|bar| whole.add(bar));
    let (steps, time) = (whole.calls, whole.time);
    if steps == 0 {
        return Vec::new();
    }
    let operations = by_name(bars, |bar| matches!(bar.row, Row::Compute | Row::Copies));
    let beside = by_name(bars, |bar| bar.row == Row::Communication || bar.name == Span::Batch.to_string());
    let width = operations.iter().chain(&beside).map(|(name, _)| name.len()).max().unwrap_or(0).max(20);
    let line = |(name, sum): &(&str, Sum)| format!("{name:<width$} {}", sum.columns(steps, time));
    let [name, calls, ms, share, tera, giga, predicted] = HEAD;
    let predicted = if total(&operations).predicted_us > 0.0 { predicted } else { "" };
    let mut lines =
        vec![format!("{name:<width$} {calls:>7} {ms:>10} {share:>6} {tera:>8} {giga:>8} {predicted:>12}")];
    lines.extend(operations.iter().take(most).map(line));
    if let Some(rest) = operations.get(most..).filter(|rest| !rest.is_empty()) {
        lines.push(line(&("other operations", total(rest))));
    }
    let busy = total(&operations);
    let idle = Sum { time: time.saturating_sub(busy.time), ..Sum::default() };
    lines.push(line(&("all operations", busy)));
    lines.push(line(&("idle", idle)));
    lines.push(line(&("whole step", Sum { calls: steps, time, ..Sum::default() })));
    lines.extend(beside.iter().map(line));
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// The sums of bars by name, the largest time first.
fn by_name(bars: &[Bar], wanted: impl Fn(&Bar) -> bool) -> Vec<(&str, Sum)> {
    let mut sums: HashMap<&str, Sum> = HashMap::new();
    bars.iter().filter(|bar| wanted(bar)).for_each(|bar| sums.entry(&bar.name).or_default().add(bar));
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|(a, x), (b, y)| y.time.cmp(&x.time).then(a.cmp(b)));
    sums
}

fn total(sums: &[(&str, Sum)]) -> Sum {
    sums.iter().fold(Sum::default(), |all, (_, sum)| Sum {
        calls: all.calls + sum.calls,
        time: all.time + sum.time,
        flops: all.flops + sum.flops,
        bytes: all.bytes + sum.bytes,
        predicted_us: all.predicted_us + sum.predicted_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(row: Row, name: &str, from_us: u64, to_us: u64, args: &[(&str, u64)]) -> Bar {
        let args = args.iter().map(|&(name, value)| (name.to_owned(), json!(value))).collect();
        let [start, end] = [from_us, to_us].map(Duration::from_micros);
        Bar { row, name: name.to_owned(), start, end, args }
    }

    /// Two steps of 10 ms: 4 ms and 5 ms of a product, and 1 ms of a copy in one of them.
    #[test]
    fn times_add_up() {
        let product = [("flops", 9_000_000), ("bytes", 18_000)];
        let bars = [
            bar(Row::Step, "step 3", 0, 10_000, &[("step", 3)]),
            bar(Row::Step, "forward", 0, 4_000, &[]),
            bar(Row::Compute, "matmul_forward", 0, 4_000, &product),
            bar(Row::Communication, "all-reduce", 1_000, 3_000, &[("bytes", 1_000_000)]),
            bar(Row::Host, "load batch", 0, 1_000, &[]),
            bar(Row::Host, "validation", 10_000, 20_000, &[]),
            bar(Row::Step, "step 4", 20_000, 30_000, &[("step", 4)]),
            bar(Row::Compute, "matmul_forward", 20_000, 25_000, &product),
            bar(Row::Copies, "upload inputs", 25_000, 26_000, &[("bytes", 1_000)]),
        ];
        let expected = "\
            operation              calls         ms      %  TFLOP/s     GB/s\n\
            matmul_forward             1      4.500   45.0  0.00200  0.00400\n\
            upload inputs            0.5      0.500    5.0           0.00100\n\
            all operations           1.5      5.000   50.0  0.00180  0.00370\n\
            idle                       0      5.000   50.0\n\
            whole step                 1     10.000  100.0\n\
            all-reduce               0.5      1.000   10.0             0.500\n\
            load batch               0.5      0.500    5.0";
        assert_eq!(table(&bars, 5).join("\n"), expected);
        let short = table(&bars, 1);
        assert_eq!(
            short[2].split_whitespace().collect::<Vec<_>>()[..4],
            ["other", "operations", "0.5", "0.500"]
        );
        assert_eq!(table(&bars[1..3], 5), Vec::<String>::new());
    }

    #[test]
    fn predictions_stand_beside_times() {
        let args = [("flops", 9_000_000), (PREDICTED, 1_250)];
        let bars = [
            bar(Row::Step, "step 3", 0, 10_000, &[("step", 3)]),
            bar(Row::Compute, "matmul_forward", 0, 4_000, &args),
            bar(Row::Compute, "matmul_forward", 4_000, 6_000, &args),
            bar(Row::Copies, "upload inputs", 6_000, 7_000, &[]),
        ];
        let lines = table(&bars, 5);
        let last = |line: &str| line.split_whitespace().next_back().unwrap().to_owned();
        assert!(lines[0].ends_with("predicted ms"), "{lines:?}");
        assert_eq!([1, 2, 3].map(|i| last(&lines[i])), ["2.500", "10.0", "2.500"]);
    }

    #[test]
    fn rates_have_three_digits() {
        let shown = [0.000_012_345, 0.012_345, 1.2345, 12.345, 123.45, 12_345.6].map(significant);
        assert_eq!(shown, ["0.000012", "0.0123", "1.23", "12.3", "123", "12346"]);
    }
}
