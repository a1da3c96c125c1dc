//! `metrics.jsonl`: one object per line, with all digits of every number. Steps count from 0,
//! `time` is in seconds since 1970. Besides numbers there are samples,
//! `{"step":20,"sample":0,"text":"…"}`, and at the end of a process
//! `{"step":40,"end":"completed"}`. The file is the whole story of a run: `track` and `watch`
//! follow it, and a resumed run cuts it back.
//!
//! JSON has no NaN and no infinity. Such a number is `null`, and `"nonfinite"` has its value:
//! `{"step":7,"loss":null,…,"nonfinite":{"loss":"nan"}}`.

use super::cformat::fixed;
use super::log_file::LogFile;
use anyhow::Result;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::path::Path;
use std::time::SystemTime;

pub const NAME: &str = "metrics.jsonl";

pub struct Jsonl {
    pub file: LogFile,
    /// Seconds since 1970.
    clock: fn() -> f64,
}

/// The measurements of a training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainMetrics {
    pub step: usize,
    /// Mean over the whole batch.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub norm: f32,
    pub lr: f32,
    /// Duration of the step in milliseconds.
    pub ms: f64,
    /// Tokens per second in this step alone; the console shows a moving average.
    pub tok_per_s: f64,
    /// Tokens of all steps so far, this one included.
    pub tokens: u64,
    pub memory: MemoryMetrics,
}

/// Memory after a step, of the process that writes. What the system does not report is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryMetrics {
    /// Resident memory of the process, and the most so far.
    pub rss_bytes: Option<u64>,
    pub peak_rss_bytes: Option<u64>,
    /// Memory that the process uses on its GPU.
    pub gpu_bytes: Option<u64>,
    /// Memory in use on that GPU, by whomever.
    pub gpu_used_bytes: Option<u64>,
}

impl MemoryMetrics {
    fn numbers(self) -> impl Iterator<Item = (&'static str, Number)> {
        let all = [
            ("rss_bytes", self.rss_bytes),
            ("peak_rss_bytes", self.peak_rss_bytes),
            ("gpu_bytes", self.gpu_bytes),
            ("gpu_used_bytes", self.gpu_used_bytes),
        ];
        all.into_iter().filter_map(|(name, bytes)| Some((name, Number::Count(bytes?))))
    }
}

/// The end of a process that trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Completed,
    /// By a signal or a time limit, with a checkpoint.
    Stopped,
    /// By an error.
    Failed,
}

impl End {
    const NAMES: [(Self, &str); 3] =
        [(Self::Completed, "completed"), (Self::Stopped, "stopped"), (Self::Failed, "failed")];

    /// The name in `metrics.jsonl`.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(end, _)| end)
    }
}

/// The time in seconds since 1970, to the millisecond.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as f64 / 1e3
}

impl Jsonl {
    /// Creates an empty `metrics.jsonl` in `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        Ok(Jsonl { file: LogFile::create(dir.join(NAME))?, clock: now })
    }

    /// Continues `metrics.jsonl` in `dir` at `step`, and drops its lines from that step on.
    pub fn resume(dir: &Path, step: usize) -> Result<Self> {
        Ok(Jsonl { file: LogFile::resume(dir.join(NAME), step, step_of)?, clock: now })
    }

    /// Writes a training step.
    pub fn train(&mut self, m: &TrainMetrics) -> Result<()> {
        let numbers = [
            ("loss", Number::F32(m.loss)),
            ("norm", Number::F32(m.norm)),
            ("lr", Number::F32(m.lr)),
            ("ms", Number::F64(m.ms)),
            ("tok_per_s", Number::F64(m.tok_per_s)),
            ("tokens", Number::Count(m.tokens)),
        ];
        let all: Vec<_> = numbers.into_iter().chain(m.memory.numbers()).collect();
        self.write(m.step, &all)
    }

    /// Writes the validation loss before a step, in nats per token, and the perplexity.
    pub fn val(&mut self, step: usize, loss: f32) -> Result<()> {
        let perplexity = f64::from(loss).exp();
        self.write(step, &[("val_loss", Number::F32(loss)), ("val_perplexity", Number::F64(perplexity))])
    }

    /// Writes the measures of a task before a step as `piqa_acc`, `piqa_acc_norm`, and as
    /// `piqa_chance` the accuracy of a guess, unless that is 0.
    pub fn task(&mut self, step: usize, task: &str, measures: &[(&str, f64)], chance: f64) -> Result<()> {
        let chance = Some(("chance", chance)).filter(|(_, chance)| *chance > 0.0);
        let all = measures.iter().copied().chain(chance);
        let named: Vec<_> = all.map(|(name, value)| (format!("{task}_{name}"), value)).collect();
        let numbers: Vec<_> = named.iter().map(|(name, value)| (&name[..], Number::F64(*value))).collect();
        self.write(step, &numbers)
    }

    /// Writes a sample before a step, with its prompt; `index` counts those of all ranks.
    pub fn sample(&mut self, step: usize, index: usize, text: &str) -> Result<()> {
        let line = Sample { step, sample: index, text, time: (self.clock)() };
        self.file.line(&serde_json::to_string(&line)?)
    }

    /// Writes the end of the process, after `step` steps of the run.
    pub fn end(&mut self, step: usize, end: End) -> Result<()> {
        let line = EndLine { step, end: end.name(), time: (self.clock)() };
        self.file.line(&serde_json::to_string(&line)?)
    }

    fn write(&mut self, step: usize, numbers: &[(&str, Number)]) -> Result<()> {
        self.file.line(&serde_json::to_string(&Line { step, numbers, time: (self.clock)() })?)
    }
}

/// A number to write. An `f32` stays one so that 3e-4 is written as such, and not as
/// 0.0003000000142492354, its value in `f64`.
#[derive(Clone, Copy)]
enum Number {
    F32(f32),
    F64(f64),
    Count(u64),
}

impl Number {
    fn value(self) -> f64 {
        match self {
            Number::F32(x) => x.into(),
            Number::F64(x) => x,
            Number::Count(n) => n as f64,
        }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match *self {
            Number::F32(x) => s.serialize_f32(x),
            Number::F64(x) => s.serialize_f64(x),
            Number::Count(n) => s.serialize_u64(n),
        }
    }
}

#[derive(Serialize)]
struct Sample<'a> {
    step: usize,
    sample: usize,
    text: &'a str,
    time: f64,
}

#[derive(Serialize)]
struct EndLine {
    step: usize,
    end: &'static str,
    time: f64,
}

struct Line<'a> {
    step: usize,
    numbers: &'a [(&'a str, Number)],
    time: f64,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        for (name, number) in self.numbers {
            map.serialize_entry(name, number)?;
        }
        map.serialize_entry("time", &self.time)?;
        let strange: serde_json::Map<_, _> = (self.numbers.iter())
            .filter(|(_, number)| !number.value().is_finite())
            .map(|(name, number)| (name.to_string(), fixed(number.value(), 0).into()))
            .collect();
        if !strange.is_empty() {
            map.serialize_entry("nonfinite", &strange)?;
        }
        map.end()
    }
}

fn step_of(line: &str) -> Option<usize> {
    let object: serde_json::Value = serde_json::from_str(line).ok()?;
    object.get("step")?.as_u64()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    const STEP: TrainMetrics = TrainMetrics {
        step: 3,
        loss: 5.270009,
        norm: 0.1,
        lr: 3e-4,
        ms: 1234.5,
        tok_per_s: 1.0 / 3.0,
        tokens: 2048,
        memory: MemoryMetrics {
            rss_bytes: Some(1 << 20),
            peak_rss_bytes: Some(3 << 20),
            gpu_bytes: None,
            gpu_used_bytes: Some(5 << 30),
        },
    };

    fn text(dir: &tempfile::TempDir) -> String {
        read_to_string(dir.path().join("metrics.jsonl")).unwrap()
    }

    fn at_noon(log: Jsonl) -> Jsonl {
        Jsonl { clock: || 1_700_000_000.25, ..log }
    }

    #[test]
    fn numbers_are_written_in_full() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = at_noon(Jsonl::create(dir.path()).unwrap());
        log.train(&STEP).unwrap();
        log.train(&TrainMetrics { memory: MemoryMetrics::default(), ..STEP }).unwrap();
        log.val(3, 2.0).unwrap();
        log.task(3, "piqa", &[("acc", 0.25), ("acc_norm", 0.75)], 0.5).unwrap();
        log.sample(3, 1, "a \"b\"\n").unwrap();
        log.end(4, End::Stopped).unwrap();
        let step = r#"{"step":3,"loss":5.270009,"norm":0.1,"lr":0.0003,"ms":1234.5,"tok_per_s":0.3333333333333333,"tokens":2048"#;
        let memory = r#""rss_bytes":1048576,"peak_rss_bytes":3145728,"gpu_used_bytes":5368709120"#;
        let expected = [
            &format!(r#"{step},{memory},"time":1700000000.25}}"#),
            &format!(r#"{step},"time":1700000000.25}}"#),
            r#"{"step":3,"val_loss":2.0,"val_perplexity":7.38905609893065,"time":1700000000.25}"#,
            r#"{"step":3,"piqa_acc":0.25,"piqa_acc_norm":0.75,"piqa_chance":0.5,"time":1700000000.25}"#,
            r#"{"step":3,"sample":1,"text":"a \"b\"\n","time":1700000000.25}"#,
            r#"{"step":4,"end":"stopped","time":1700000000.25}"#,
        ];
        assert_eq!(text(&dir).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn ends_have_names() {
        for (end, name) in End::NAMES {
            assert_eq!((end.name(), End::from_name(name)), (name, Some(end)));
        }
        assert_eq!(End::from_name("ended"), None);
    }

    #[test]
    fn every_f32_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Jsonl::create(dir.path()).unwrap();
        let mut x = 1u32;
        let losses: Vec<f32> = std::iter::repeat_with(|| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from_bits(x)
        })
        .filter(|f| f.is_finite())
        .take(500)
        .collect();
        for &loss in &losses {
            log.train(&TrainMetrics { loss, ..STEP }).unwrap();
        }
        for (line, loss) in text(&dir).lines().zip(&losses) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((value["loss"].as_f64().unwrap() as f32).to_bits(), loss.to_bits(), "{line}");
        }
        assert_eq!(text(&dir).lines().count(), 500);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Jsonl::create(dir.path()).unwrap();
        log.train(&TrainMetrics { loss: f32::NAN.copysign(1.0), norm: f32::NEG_INFINITY, ..STEP }).unwrap();
        log.val(4, 1000.0).unwrap();
        let lines: Vec<serde_json::Value> =
            text(&dir).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines[0]["loss"].is_null() && lines[0]["norm"].is_null());
        assert_eq!(lines[0]["nonfinite"], serde_json::json!({"loss": "nan", "norm": "-inf"}));
        assert_eq!(lines[0]["lr"], 3e-4);
        assert_eq!(lines[1]["nonfinite"], serde_json::json!({"val_perplexity": "inf"}));
    }

    #[test]
    fn resuming_drops_later_steps() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = at_noon(Jsonl::create(dir.path()).unwrap());
        for step in 0..20 {
            log.train(&TrainMetrics { step, ..STEP }).unwrap();
            log.val(step, 1.0).unwrap();
        }
        let whole = text(&dir);
        let mut log = at_noon(Jsonl::resume(dir.path(), 10).unwrap());
        assert_eq!(text(&dir).lines().count(), 20);
        for step in 10..20 {
            log.train(&TrainMetrics { step, ..STEP }).unwrap();
            log.val(step, 1.0).unwrap();
        }
        assert_eq!(text(&dir), whole);
    }
}
