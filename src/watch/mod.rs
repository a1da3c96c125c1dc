//! `warpsmith watch`: one page that shows runs while they train, and compares them.
//!
//! The page is one file of HTML, with its style and its program: it works without a network, and
//! with `--export` the data are in it too. The browser asks for the lines of each `metrics.jsonl`
//! that it has not seen, and draws.

use crate::http::{Server, is_for_loopback};
use crate::report::jsonl;
use crate::report::plot;
use crate::report::settings::RunSettings;
use crate::report::tail::{Place, Tail};
use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::fs;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a log in one answer.
const CHUNK: usize = 4 << 20;

const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
/// The parts of the program, in order.
const JS: [&str; 4] = [
    include_str!("page/data.js"),
    include_str!("page/chart.js"),
    include_str!("page/tables.js"),
    include_str!("page/main.js"),
];

/// An answer: its status, the type of its content, and the content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    content: Vec<u8>,
}

impl Answer {
    fn new(content_type: &'static str, content: impl Into<Vec<u8>>) -> Self {
        Answer { status: StatusCode::OK, content_type, content: content.into() }
    }

    /// A line of text that says what is wrong.
    fn refusal(status: StatusCode, text: &str) -> Self {
        Answer { status, content_type: "text/plain; charset=utf-8", content: format!("{text}\n").into() }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        // Nothing may be loaded from elsewhere, and no other site may show the page or read it.
        let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; \
                      form-action 'none'";
        let headers = [
            (header::CONTENT_TYPE.as_str(), self.content_type),
            (header::CACHE_CONTROL.as_str(), "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS.as_str(), "nosniff"),
            ("cross-origin-resource-policy", "same-origin"),
            (header::REFERRER_POLICY.as_str(), "no-referrer"),
            (header::CONTENT_SECURITY_POLICY.as_str(), policy),
        ];
        (self.status, headers, self.content).into_response()
    }
}

/// Serves the page until the process ends.
///
/// # Errors
/// If the system has no resources for a server.
pub fn serve(server: Server, watch: Watch) -> Result<()> {
    let watch = Arc::new(watch);
    let routes = Router::new().fallback(move |request: Request| respond(Arc::clone(&watch), request));
    server.serve(routes, pending())
}

async fn respond(watch: Arc<Watch>, request: Request) -> Answer {
    if !is_for_loopback(request.headers()) {
        return Answer::refusal(StatusCode::FORBIDDEN, "this page is for localhost alone");
    }
    if request.method() != Method::GET {
        return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "expected GET");
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let answered = tokio::task::spawn_blocking(move || watch.answer(&path)).await;
    answered.unwrap_or_else(|_| Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, "a request failed"))
}

/// The runs to show: directories with a `metrics.jsonl`, or directories of such.
#[derive(Clone, Debug)]
pub struct Watch {
    dirs: Vec<PathBuf>,
}

impl Watch {
    /// Watches the runs in these directories. Those that a directory gets later appear later.
    ///
    /// # Errors
    /// One line that names a directory without a run.
    pub fn new(dirs: &[PathBuf]) -> Result<Self> {
        for dir in dirs {
            let shown = dir.display();
            ensure!(dir.is_dir(), "{shown}: expected the directory of a run, or of several, found none");
            let found = runs_in(dir)?;
            ensure!(
                !found.is_empty(),
                "{shown}: expected a metrics.jsonl in it or in its folders, found none"
            );
        }
        Ok(Watch { dirs: dirs.to_vec() })
    }

    /// The directories of the runs, in the order in which they were named.
    fn runs(&self) -> Result<Vec<PathBuf>> {
        let mut runs = Vec::new();
        for dir in &self.dirs {
            let new: Vec<PathBuf> = runs_in(dir)?.into_iter().filter(|run| !runs.contains(run)).collect();
            runs.extend(new);
        }
        Ok(runs)
    }

    /// The runs and the baselines, for the page.
    fn overview(&self) -> Result<Value> {
        let baselines = plot::baselines()
            .map(|(metric, name, value)| json!({ "metric": metric, "name": name, "value": value }));
        Ok(
            json!({ "runs": self.runs()?.iter().map(|dir| shown(dir)).collect::<Vec<_>>(), "baselines": baselines }),
        )
    }

    /// Answers a request of the page.
    fn answer(&self, path: &str) -> Answer {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let answer = match path {
            "/" => Ok(Answer::new("text/html; charset=utf-8", page(&Value::Null))),
            "/api/runs" => self.overview().map(|runs| Answer::new("application/json", runs.to_string())),
            "/api/log" => self.log(query),
            _ => return Answer::refusal(StatusCode::NOT_FOUND, "no such page"),
        };
        answer
            .unwrap_or_else(|error| Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")))
    }

    /// Lines of the log of a run: a line with the place to go on from, and then the lines as they
    /// are in the file.
    fn log(&self, query: &str) -> Result<Answer> {
        let number = |name: &str| {
            let pair = query.split('&').filter_map(|pair| pair.split_once('=')).find(|pair| pair.0 == name);
            pair.and_then(|(_, value)| value.parse::<u64>().ok())
        };
        let runs = self.runs()?;
        let run = number("run").and_then(|run| runs.get(usize::try_from(run).ok()?));
        let run = run.context("expected the number of a run")?;
        let place =
            || Some(Place { file: (number("device")?, number("inode")?), position: number("position")? });
        let mut tail = Tail::from_place(run.join(jsonl::NAME), place());
        let news = tail.read(CHUNK)?;
        let place = tail.place().map(|Place { file: (device, inode), position }| {
            // As text, because a number in JavaScript has 53 bits.
            json!({ "device": device.to_string(), "inode": inode.to_string(), "position": position.to_string() })
        });
        let head = json!({ "place": place, "from_start": news.from_start });
        Ok(Answer::new("application/x-ndjson", [head.to_string().as_bytes(), b"\n", &news.lines].concat()))
    }

    /// The page as one file, with all that the runs have written so far.
    ///
    /// # Errors
    /// If a log cannot be read.
    pub fn export(&self) -> Result<String> {
        let mut data = self.overview()?;
        let logs = self.runs()?.iter().map(|run| whole_log(run)).collect::<Result<Vec<_>>>()?;
        data["logs"] = logs.into();
        Ok(page(&data))
    }
}

/// The run in a directory, or the runs in its folders, by name.
fn runs_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let has_log = |dir: &Path| dir.join(jsonl::NAME).is_file();
    if has_log(dir) {
        return Ok(vec![dir.to_owned()]);
    }
    let context = || format!("cannot read {}", dir.display());
    let mut runs = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        if has_log(&path) {
            runs.push(path);
        }
    }
    runs.sort();
    Ok(runs)
}

/// A run for the page. Settings that cannot be read are left out.
fn shown(dir: &Path) -> Value {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let name = absolute.file_name().map_or("run".into(), |name| name.to_string_lossy());
    json!({ "name": name, "dir": dir.to_string_lossy(), "settings": RunSettings::read(dir).ok().flatten() })
}

/// The complete lines of a run's log.
fn whole_log(dir: &Path) -> Result<String> {
    let mut tail = Tail::new(dir.join(jsonl::NAME));
    let mut text = Vec::new();
    loop {
        let news = tail.read(CHUNK)?;
        if news.from_start {
            text.clear();
        }
        if news.lines.is_empty() {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
        text.extend(news.lines);
    }
}

/// The page, with data or without.
fn page(data: &Value) -> String {
    // Inside a script, `<` could end it.
    let data = data.to_string().replace('<', "\\u003c");
    let parts = [("/*CSS*/", CSS), ("/*DATA*/", data.as_str()), ("/*JS*/", &JS.concat())];
    // Each marker is replaced in the frame alone, not in what replaced another.
    let mut page = String::new();
    let mut rest = HTML;
    for (marker, text) in parts {
        let (before, after) = rest.split_once(marker).unwrap_or((rest, ""));
        page.push_str(before);
        page.push_str(text);
        rest = after;
    }
    page + rest
}

#[cfg(test)]
mod tests;
