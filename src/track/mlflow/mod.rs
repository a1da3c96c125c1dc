//! `--mlflow URL`: a run on an MLflow server, by its REST API.
//!
//! All that has to be remembered is on the server. The run is found by its tag `warpsmith.run`, the
//! name in `settings.json`, and the latest step of each metric says how far it got, as metrics are
//! sent in the order of their steps. So a request whose answer was lost, a server that was away and
//! a process that was killed lose and double nothing.
//!
//! MLflow never forgets a value, so a step that runs again after a resume would have two. The first
//! stays, and the second is left out: they are equal but for times. Where they are not, after a
//! rollback or a resume with other flags, `metrics.jsonl` has the second.

mod client;

pub use client::Account;

use super::{Line, Sample, Sink};
use crate::files::lock::DirLock;
use crate::report::jsonl::{self, End};
use crate::report::plot;
use crate::report::settings::RunSettings;
use anyhow::Result;
use client::{Client, Run};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Limits of MLflow for one request.
const MOST_METRICS: usize = 1000;
const MOST_PARAMS: usize = 100;

/// Limit of MLflow for the value of a parameter or a tag, in bytes; early servers allow 500.
const MOST_TEXT: usize = 500;

/// The tag by which a run is found.
const RUN_TAG: &str = "warpsmith.run";
/// The tag with the step of the last samples that were stored.
const SAMPLES_TAG: &str = "warpsmith.samples";

pub struct Mlflow {
    client: Client,
    url: String,
    account: Account,
    dir: PathBuf,
    run: Run,
    /// The latest step of each metric on the server.
    sent: HashMap<String, u64>,
    /// The step of the last samples on the server, when this process began.
    samples: Option<u64>,
    /// The end of the run and its time, if the log has one.
    end: Option<(End, f64)>,
    /// Whether the server does not store artifacts, which was said once.
    without_artifacts: bool,
    _lock: DirLock,
}

impl Mlflow {
    /// Takes the run in `dir` for the server at `url`.
    ///
    /// # Errors
    /// If another process sends it already.
    pub fn open(dir: &Path, url: &str, account: Account) -> Result<Self> {
        let lock = DirLock::take_for(dir, "mlflow")?;
        Ok(Mlflow {
            client: Client::new(url, &account),
            url: url.to_owned(),
            account,
            dir: dir.to_owned(),
            run: Run::default(),
            sent: HashMap::new(),
            samples: None,
            end: None,
            without_artifacts: false,
            _lock: lock,
        })
    }

    fn create(&self, experiment: &str, settings: &RunSettings) -> Result<Run> {
        let dir = std::path::absolute(&self.dir)?;
        let name = dir.file_name().map_or("run".to_owned(), |name| name.to_string_lossy().into_owned());
        let tags = [
            (RUN_TAG, settings.run.as_str()),
            ("mlflow.source.name", &settings.program),
            ("mlflow.source.type", "LOCAL"),
        ];
        let tags = tags.map(|(key, value)| json!({ "key": key, "value": value }));
        let body = json!({
            "experiment_id": experiment, "run_name": name, "start_time": millis(settings.started), "tags": tags,
        });
        self.client.create_run(&body)
    }

    /// Sends the settings as parameters. Those cannot change, so a later value is a tag.
    fn send_settings(&self, settings: &RunSettings) -> Result<()> {
        let (mut params, mut tags) = (Vec::new(), Vec::new());
        for (key, value) in &settings.settings {
            let (key, value) = (plain(key), cut(value));
            match self.run.params.iter().find(|(known, _)| *known == key) {
                None => params.push(json!({ "key": key, "value": value })),
                Some((_, first)) if first != value => {
                    tags.push(json!({ "key": format!("resumed.{key}"), "value": value }));
                }
                Some(_) => {}
            }
        }
        for part in params.chunks(MOST_PARAMS) {
            self.log_batch(json!({ "params": part }))?;
        }
        tags.chunks(MOST_PARAMS).try_for_each(|part| self.log_batch(json!({ "tags": part })))
    }

    fn log_batch(&self, mut body: Value) -> Result<()> {
        body["run_id"] = self.run.id.as_str().into();
        self.client.post("mlflow/runs/log-batch", &body).map(drop)
    }

    fn set_status(&self, status: &str, end: Option<f64>) -> Result<()> {
        let mut body = json!({ "run_id": self.run.id, "status": status });
        if let Some(end) = end {
            body["end_time"] = millis(end).into();
        }
        self.client.post("mlflow/runs/update", &body).map(drop)
    }

    /// Sends the metrics that the server lacks.
    fn send_metrics(&mut self, lines: &[Line]) -> Result<()> {
        let mut metrics = Vec::new();
        // Names of the batch that the server has not confirmed yet, and their steps.
        let mut steps = self.sent.clone();
        for line in lines {
            let time = millis(line.time.unwrap_or_else(jsonl::now));
            for (name, value) in &line.numbers {
                let (key, value) = metric(name, *value);
                if steps.get(&key).is_none_or(|&sent| line.step > sent) {
                    metrics.push(
                        json!({ "key": key, "value": number(value), "timestamp": time, "step": line.step }),
                    );
                    steps.insert(key, line.step);
                }
            }
        }
        for part in metrics.chunks(MOST_METRICS) {
            self.log_batch(json!({ "metrics": part }))?;
        }
        self.sent = steps;
        Ok(())
    }

    /// Stores the samples that the server may lack, and then says so.
    fn send_samples(&mut self, lines: &[Line]) -> Result<()> {
        let samples = lines.iter().filter_map(|line| Some((line.step, line.sample.as_ref()?)));
        let mut last = None;
        for (step, Sample { index, text }) in samples {
            // All of the last step: they are stored one by one.
            if self.samples.is_none_or(|stored| step >= stored) {
                self.store(&format!("samples/step_{step:08}_{index}.txt"), text.as_bytes())?;
                last = Some(step);
            }
        }
        let Some(step) = last else { return Ok(()) };
        self.log_batch(json!({ "tags": [{ "key": SAMPLES_TAG, "value": step.to_string() }] }))
    }

    /// Stores an artifact, unless the server leaves those to its clients.
    fn store(&mut self, name: &str, content: &[u8]) -> Result<()> {
        if !self.run.artifacts.starts_with("mlflow-artifacts:") {
            if !std::mem::replace(&mut self.without_artifacts, true) {
                log::warn!(
                    "{}: samples and plots are not stored, as artifacts are at {}; start the server with \
                     --serve-artifacts",
                    self.flag(),
                    self.run.artifacts
                );
            }
            return Ok(());
        }
        self.client.put(&self.run.artifacts, name, content)
    }
}

/// Milliseconds since 1970.
fn millis(seconds: f64) -> i64 {
    (seconds * 1e3).round() as i64
}

/// The name and value of a metric. Memory is where MLflow shows the system's, and in its unit.
fn metric(name: &str, value: f64) -> (String, f64) {
    match name {
        "rss_bytes" => ("system/process_memory_usage_megabytes".to_owned(), value / 1e6),
        _ => (plain(name), value),
    }
}

/// A number as protocol buffers write it in JSON.
fn number(value: f64) -> Value {
    match value {
        _ if value.is_finite() => value.into(),
        _ if value.is_nan() => "NaN".into(),
        _ if value > 0.0 => "Infinity".into(),
        _ => "-Infinity".into(),
    }
}

/// A name in the characters that MLflow allows.
fn plain(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-. /".contains(c);
    name.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

/// The start of a text that MLflow stores.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MOST_TEXT)]
}

impl Sink for Mlflow {
    fn flag(&self) -> String {
        format!("--mlflow {}", self.url)
    }

    fn begin(&mut self) -> Result<()> {
        let settings = RunSettings::read_or_name(&self.dir)?;
        let experiment = self.client.experiment(&self.account.experiment)?;
        let found = self.client.find_run(&experiment, (RUN_TAG, &settings.run))?;
        self.run = match found {
            Some(run) => run,
            None => self.create(&experiment, &settings)?,
        };
        self.sent = self.run.metrics.iter().cloned().collect();
        let samples = self.run.tags.iter().find(|(key, _)| key == SAMPLES_TAG);
        self.samples = samples.and_then(|(_, step)| step.parse().ok());
        self.set_status("RUNNING", None)?;
        self.send_settings(&settings)
    }

    fn take(&mut self, lines: &[Line], from_start: bool) -> Result<()> {
        self.end = if from_start { None } else { self.end };
        self.send_metrics(lines)?;
        self.send_samples(lines)?;
        // A process that goes on writes further lines.
        let end_of = |line: &Line| Some((line.end?, line.time.unwrap_or_else(jsonl::now)));
        self.end = lines.last().map_or(self.end, end_of);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if let Ok(png) = plot::overview_png(&self.dir) {
            self.store("plots/plot.png", &png)?;
        }
        let Some((end, time)) = self.end else { return Ok(()) };
        let status = match end {
            End::Completed => "FINISHED",
            End::Stopped => "KILLED",
            End::Failed => "FAILED",
        };
        self.set_status(status, Some(time))
    }
}

#[cfg(test)]
mod tests;
