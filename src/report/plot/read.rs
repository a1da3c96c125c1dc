//! Reads `metrics.jsonl`: one JSON object per line, with a `step` and any numbers.

use crate::files;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Points `(step, value)`, ordered by step.
pub(super) type Series = Vec<(f64, f64)>;

#[derive(Default)]
pub(super) struct Metrics {
    pub loss: Series,
    pub val_loss: Series,
    pub lr: Series,
    pub norm: Series,
    pub tok_per_s: Series,
    /// By the beginning of their keys: `piqa` of `piqa_acc`.
    pub tasks: BTreeMap<String, TaskMetrics>,
    /// Tokens trained on, if the lines have `tokens`, or time and throughput.
    pub tokens: Option<f64>,
    /// Milliseconds spent in training steps.
    pub ms: f64,
}

/// Accuracies on a task.
#[derive(Default)]
pub(super) struct TaskMetrics {
    pub acc: Series,
    pub acc_norm: Series,
    /// The accuracy of a guess, if the lines tell it.
    pub chance: Option<f64>,
}

/// Size limit of the file: some ten million steps.
const FILE_BYTES: u64 = 1 << 31;

/// Keys that are plotted, and the series for their points.
type Target = fn(&mut Metrics) -> &mut Series;
const SERIES: [(&str, Target); 5] = [
    ("loss", |m| &mut m.loss),
    ("val_loss", |m| &mut m.val_loss),
    ("lr", |m| &mut m.lr),
    ("norm", |m| &mut m.norm),
    ("tok_per_s", |m| &mut m.tok_per_s),
];

/// Ends of the keys of tasks. The longer comes first, as it ends in no other.
const ACC_NORM: &str = "_acc_norm";
const ACC: &str = "_acc";
const CHANCE: &str = "_chance";

/// Reads the file. An incomplete last line (of a killed run), unknown keys, negative steps and
/// values that are not finite are ignored. An invalid line elsewhere is an error, because the file
/// is then something else.
pub(super) fn read(path: &Path) -> Result<Metrics> {
    let bytes = files::read(path, FILE_BYTES).context("plotting needs the metrics file of a run")?;
    let text = String::from_utf8_lossy(files::strip_bom(&bytes));
    let lines: Vec<&str> = text.lines().collect();
    let mut metrics = Metrics::default();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str::<Map<String, Value>>(line) {
            Ok(object) => metrics.add(&object),
            Err(_) if index + 1 == lines.len() && !text.ends_with('\n') => {}
            Err(e) => bail!("{} line {}: expected a JSON object ({e})", path.display(), index + 1),
        }
    }
    for (_, series) in &SERIES {
        tidy(series(&mut metrics));
    }
    metrics.tasks.values_mut().flat_map(|task| [&mut task.acc, &mut task.acc_norm]).for_each(tidy);
    if metrics.tasks.is_empty() && SERIES.iter().all(|(_, series)| series(&mut metrics).is_empty()) {
        bail!(
            "{} has no points to plot; expected lines such as {{\"step\":0,\"loss\":10.9}}",
            path.display()
        );
    }
    Ok(metrics)
}

impl Metrics {
    fn add(&mut self, object: &Map<String, Value>) {
        let number = |key: &str| object.get(key).and_then(Value::as_f64).filter(|v| v.is_finite());
        let Some(step) = number("step").filter(|step| *step >= 0.0) else { return };
        for (key, series) in &SERIES {
            if let Some(value) = number(key) {
                series(self).push((step, value));
            }
        }
        for key in object.keys() {
            if let Some(value) = number(key) {
                self.add_to_task(key, (step, value));
            }
        }
        if let Some(ms) = number("ms") {
            self.ms += ms;
            if let (Some(speed), None) = (number("tok_per_s"), number("tokens")) {
                self.tokens = Some(self.tokens.unwrap_or(0.0) + speed * ms / 1000.0);
            }
        }
        self.tokens = number("tokens").or(self.tokens);
    }

    fn add_to_task(&mut self, key: &str, point: (f64, f64)) {
        if let Some(task) = key.strip_suffix(ACC_NORM) {
            self.tasks.entry(task.into()).or_default().acc_norm.push(point);
        } else if let Some(task) = key.strip_suffix(ACC) {
            self.tasks.entry(task.into()).or_default().acc.push(point);
        } else if let Some(task) = key.strip_suffix(CHANCE) {
            self.tasks.entry(task.into()).or_default().chance = Some(point.1);
        }
    }

    /// Summarizes the run: `step 999  |  4.1M tokens  |  12 min in training steps`.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        if let Some((step, _)) = self.loss.last().or(self.val_loss.last()) {
            parts.push(format!("step {step}"));
        }
        if let Some(tokens) = self.tokens.filter(|tokens| tokens.is_finite()) {
            parts.push(format!("{} tokens", super::axis::short(tokens)));
        }
        if self.ms > 0.0 && self.ms.is_finite() {
            parts.push(format!("{} in training steps", duration(self.ms / 1000.0)));
        }
        parts.join("  |  ")
    }
}

/// Sorts by step. Of several points at a step the last one counts, as a resumed run repeats some
/// steps.
fn tidy(series: &mut Series) {
    series.sort_by(|a, b| a.0.total_cmp(&b.0));
    series.reverse();
    series.dedup_by_key(|point| point.0);
    series.reverse();
}

/// Returns about `most` points with the same outline: the least and the greatest of every stretch.
pub(super) fn thin(series: &Series, most: usize) -> Series {
    if series.len() <= most {
        return series.clone();
    }
    let stretches = series.chunks(series.len().div_ceil(most / 2));
    let ends = stretches.flat_map(|stretch| {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let mut pair = [*stretch.iter().min_by(by_value).unwrap(), *stretch.iter().max_by(by_value).unwrap()];
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair
    });
    ends.collect()
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Returns an exponential moving average, corrected for its start like Adam's. It spans a tenth of
/// the points so far and at most `window`, so that it neither lags at the steep start nor wavers at
/// the end.
pub(super) fn smooth(series: &Series, window: f64) -> Series {
    let (mut sum, mut weight) = (0.0, 0.0);
    let average = series.iter().enumerate().map(|(index, &(step, value))| {
        let keep = 1.0 - 1.0 / (1.0 + index as f64 / 10.0).min(window.max(1.0));
        sum = keep * sum + (1.0 - keep) * value;
        weight = keep * weight + (1.0 - keep);
        // Rounding must not exceed the largest number.
        (step, (sum / weight).clamp(f64::MIN, f64::MAX))
    });
    average.collect()
}
