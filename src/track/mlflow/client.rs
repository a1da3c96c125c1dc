//! MLflow's REST API.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use ureq::http::{Response, header};
use ureq::{Agent, Body, RequestBuilder};

/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(20);

/// Bytes that an answer may have.
const MOST_BYTES: u64 = 1 << 26;

/// The server, and who asks.
pub struct Client {
    agent: Agent,
    /// Without a slash at its end.
    url: String,
    authorization: Option<String>,
}

/// The environment of MLflow's own client, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// `MLFLOW_EXPERIMENT_NAME`, or MLflow's own default.
    pub experiment: String,
    /// The header that `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `_PASSWORD` make.
    authorization: Option<String>,
}

impl Account {
    /// Reads the environment, in which `variable` looks names up.
    pub fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let token = variable("MLFLOW_TRACKING_TOKEN").map(|token| format!("Bearer {token}"));
        let user = variable("MLFLOW_TRACKING_USERNAME").map(|user| {
            let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
            format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
        });
        let experiment = variable("MLFLOW_EXPERIMENT_NAME").unwrap_or_else(|| "Default".to_owned());
        Account { experiment, authorization: user.or(token) }
    }
}

/// Base64 with padding, RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let known = digit <= group.len();
            let index = bits >> (18 - 6 * digit) & 63;
            text.push(if known { DIGITS[index as usize] as char } else { '=' });
        }
    }
    text
}

impl Client {
    pub fn new(url: &str, account: &Account) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("warpsmith/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE / 2))
            .timeout_send_body(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_recv_body(Some(SILENCE));
        Client {
            agent: Agent::new_with_config(config.build()),
            url: url.trim_end_matches('/').to_owned(),
            authorization: account.authorization.clone(),
        }
    }

    /// Asks for something.
    ///
    /// # Errors
    /// One line, if the server cannot be reached, refuses, or does not answer in JSON.
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let request = self.agent.get(self.api(path)).query_pairs(query.iter().copied());
        self.json(path, self.signed(request).call())
    }

    /// Sends something in JSON.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let request = self.signed(self.agent.post(self.api(path)));
        let request = request.header(header::CONTENT_TYPE, "application/json");
        self.json(path, request.send(body.to_string()))
    }

    /// Stores an artifact of a run, and replaces an earlier one of that name.
    ///
    /// # Errors
    /// Those of [`Client::get`], and if the server of the run does not store artifacts itself.
    pub fn put(&self, artifacts: &str, name: &str, content: &[u8]) -> Result<()> {
        let inside = artifacts.strip_prefix("mlflow-artifacts:").map(|rest| match rest.strip_prefix("//") {
            // The name of a server, which is this one.
            Some(named) => named.split_once('/').map_or("", |(_, path)| path),
            None => rest.trim_start_matches('/'),
        });
        let inside = inside.with_context(|| {
            format!(
                "{artifacts}: the server does not store artifacts itself; start it with --serve-artifacts"
            )
        })?;
        let path = format!("mlflow-artifacts/artifacts/{inside}/{name}");
        let request = self.signed(self.agent.put(self.api(&path)));
        self.answer(&path, request.send(content)).map(drop)
    }

    fn api(&self, path: &str) -> String {
        format!("{}/api/2.0/{path}", self.url)
    }

    fn signed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header(header::AUTHORIZATION, value),
            None => request,
        }
    }

    fn json(&self, path: &str, answer: Result<Response<Body>, ureq::Error>) -> Result<Value> {
        let text = self.answer(path, answer)?;
        let expected = || format!("{}: {path}: expected MLflow's JSON, found something else", self.url);
        serde_json::from_str(&text).with_context(expected)
    }

    /// The content of an answer, which is empty for some requests.
    fn answer(&self, path: &str, answer: Result<Response<Body>, ureq::Error>) -> Result<String> {
        let mut answer = answer.map_err(|error| anyhow!("cannot reach {} ({error})", self.url))?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(MOST_BYTES).read_to_string();
        let text = text.map_err(|error| anyhow!("{}: {path}: {error}", self.url))?;
        if status.is_success() {
            return Ok(text);
        }
        let body = serde_json::from_str::<Value>(&text).unwrap_or_default();
        let said = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let (code, message) = (said("error_code"), said("message"));
        bail!(Refusal {
            text: format!("{}: {path}: the server answered {status} {code} {message}", self.url),
            code
        })
    }
}

/// An answer that the request is at fault.
#[derive(Clone, Debug)]
pub struct Refusal {
    text: String,
    /// MLflow's name for the fault.
    pub code: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.text.trim_end())
    }
}

impl std::error::Error for Refusal {}

/// A run as the server has it.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub id: String,
    /// The place of its artifacts.
    pub artifacts: String,
    /// The latest step of each metric.
    pub metrics: Vec<(String, u64)>,
    pub params: Vec<(String, String)>,
    pub tags: Vec<(String, String)>,
}

impl Run {
    fn parse(run: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        let list = |name: &str| run["data"][name].as_array().cloned().unwrap_or_default();
        let pairs = |name: &str| {
            list(name).iter().filter_map(|pair| Some((text(&pair["key"])?, text(&pair["value"])?))).collect()
        };
        let metrics = list("metrics");
        let metrics =
            metrics.iter().filter_map(|metric| Some((text(&metric["key"])?, whole(&metric["step"])?)));
        let id = text(&run["info"]["run_id"]).context("MLflow's answer has no run_id")?;
        ensure!(!id.is_empty(), "MLflow's answer has an empty run_id");
        let artifacts = text(&run["info"]["artifact_uri"]).unwrap_or_default();
        Ok(Run { id, artifacts, metrics: metrics.collect(), params: pairs("params"), tags: pairs("tags") })
    }
}

/// A 64-bit number, which protocol buffers write as text in JSON. A step of 0 may be left out.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Null => Some(0),
        _ => value.as_u64(),
    }
}

impl Client {
    /// The id of an experiment, which is created if it is missing.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn experiment(&self, name: &str) -> Result<String> {
        let find = || self.get("mlflow/experiments/get-by-name", &[("experiment_name", name)]);
        let missing = |error: &anyhow::Error| {
            error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == "RESOURCE_DOES_NOT_EXIST")
        };
        let answer = match find() {
            Err(error) if missing(&error) => {
                self.post("mlflow/experiments/create", &json!({ "name": name }))?;
                find()?
            }
            answer => answer?,
        };
        let id = answer["experiment"]["experiment_id"].as_str();
        id.map(ToOwned::to_owned).context("MLflow's answer has no experiment_id")
    }

    /// The run of an experiment that has this tag, if there is one.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn find_run(&self, experiment: &str, (tag, value): (&str, &str)) -> Result<Option<Run>> {
        let filter = format!("tags.`{tag}` = '{value}'");
        let body = json!({ "experiment_ids": [experiment], "filter": filter, "max_results": 1 });
        let answer = self.post("mlflow/runs/search", &body)?;
        answer["runs"].get(0).map(Run::parse).transpose()
    }

    /// Creates a run.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn create_run(&self, body: &Value) -> Result<Run> {
        Run::parse(&self.post("mlflow/runs/create", body)?["run"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let texts = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
    }

    #[test]
    fn the_account_is_that_of_mlflows_client() {
        let account = |variables: &[(&str, &str)]| {
            Account::from_env(&|name| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
        };
        assert_eq!(account(&[]), Account { experiment: "Default".to_owned(), authorization: None });
        let token = account(&[("MLFLOW_TRACKING_TOKEN", "abc"), ("MLFLOW_EXPERIMENT_NAME", "gpt2")]);
        assert_eq!((token.experiment.as_str(), token.authorization.as_deref()), ("gpt2", Some("Bearer abc")));
        let user = account(&[("MLFLOW_TRACKING_USERNAME", "a"), ("MLFLOW_TRACKING_PASSWORD", "b")]);
        assert_eq!(user.authorization.as_deref(), Some("Basic YTpi"));
    }
}
