//! A server that speaks the part of MLflow's REST API that is used here, and misbehaves when told
//! to. It appends every metric that it gets, so that one that is sent twice is found.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::spawn;

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Closes each connection without an answer, and does nothing.
    Away,
    /// Does as asked, but loses every other answer.
    LosesAnswers,
    /// Answers with status 503.
    Unavailable,
    /// Refuses those without the token.
    WantsToken,
}

#[derive(Clone, Debug, Default)]
pub struct Run {
    pub name: String,
    pub status: String,
    pub params: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    /// Names, steps and values, in the order in which they came.
    pub metrics: Vec<(String, u64, Value)>,
}

#[derive(Default)]
pub struct State {
    pub experiments: Vec<String>,
    pub runs: Vec<Run>,
    pub artifacts: BTreeMap<String, Vec<u8>>,
    pub fault: Option<Fault>,
    requests: usize,
}

pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

pub const TOKEN: &str = "secret";

impl Server {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let state =
            Arc::new(Mutex::new(State { experiments: vec!["Default".to_owned()], ..State::default() }));
        let server = Server { address: listener.local_addr().unwrap(), state: Arc::clone(&state) };
        spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                spawn(move || serve(&state, stream));
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// The only run.
    pub fn run(&self) -> Run {
        let state = self.state();
        assert_eq!(state.runs.len(), 1, "{:?}", state.runs);
        state.runs[0].clone()
    }
}

struct Request {
    method: String,
    path: String,
    token: bool,
    body: Vec<u8>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut token) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => token = value == format!("Bearer {TOKEN}"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, token, body })
}

fn serve(state: &Mutex<State>, mut stream: TcpStream) -> Option<()> {
    let request = read_request(&stream)?;
    let mut state = state.lock().unwrap();
    state.requests += 1;
    let (status, answer) = match state.fault {
        Some(Fault::Away) => return None,
        Some(Fault::Unavailable) => (503, json!({})),
        Some(Fault::WantsToken) if !request.token => (401, json!({ "message": "no token" })),
        _ => answer(&mut state, &request),
    };
    if state.fault == Some(Fault::LosesAnswers) && state.requests.is_multiple_of(2) {
        return None;
    }
    // As MLflow answers where there is nothing to say.
    let text = if answer.is_null() { String::new() } else { answer.to_string() };
    let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    stream.write_all((head + &text).as_bytes()).ok()
}

const MISSING: &str = "RESOURCE_DOES_NOT_EXIST";

fn answer(state: &mut State, request: &Request) -> (u16, Value) {
    let path = request.path.strip_prefix("/api/2.0/").expect("a path of the API");
    if let Some(name) = path.strip_prefix("mlflow-artifacts/artifacts/") {
        assert_eq!(request.method, "PUT");
        state.artifacts.insert(name.to_owned(), request.body.clone());
        return (200, Value::Null);
    }
    let (path, query) = path.strip_prefix("mlflow/").unwrap().split_once('?').unwrap_or((&path[7..], ""));
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    match path {
        "experiments/get-by-name" => {
            let name = query.strip_prefix("experiment_name=").unwrap();
            match state.experiments.iter().position(|known| known == name) {
                Some(id) => (200, json!({ "experiment": { "experiment_id": id.to_string() } })),
                None => (404, json!({ "error_code": MISSING, "message": name })),
            }
        }
        "experiments/create" => {
            state.experiments.push(text("name"));
            (200, json!({}))
        }
        "runs/search" => {
            let value = text("filter").split('\'').nth(1).unwrap().to_owned();
            let found = state.runs.iter().position(|run| run.tags["warpsmith.run"] == value);
            (200, json!({ "runs": found.map(|id| shown(state, id)).into_iter().collect::<Vec<_>>() }))
        }
        "runs/create" => {
            let tags = pairs(&body["tags"]);
            state.runs.push(Run { name: text("run_name"), tags, ..Run::default() });
            (200, json!({ "run": shown(state, state.runs.len() - 1) }))
        }
        "runs/update" => {
            state.runs[text("run_id").parse::<usize>().unwrap()].status = text("status");
            (200, json!({}))
        }
        "runs/log-batch" => log_batch(&mut state.runs[text("run_id").parse::<usize>().unwrap()], &body),
        _ => panic!("{path}"),
    }
}

fn log_batch(run: &mut Run, body: &Value) -> (u16, Value) {
    let metrics = body["metrics"].as_array().cloned().unwrap_or_default();
    assert!(metrics.len() <= 1000);
    for metric in metrics {
        assert!(metric["timestamp"].as_u64().unwrap() > 1_600_000_000_000, "{metric}");
        let key = metric["key"].as_str().unwrap().to_owned();
        run.metrics.push((key, metric["step"].as_u64().unwrap(), metric["value"].clone()));
    }
    for (key, value) in pairs(&body["params"]) {
        let first = run.params.entry(key).or_insert(value.clone());
        if *first != value {
            return (400, json!({ "error_code": "INVALID_PARAMETER_VALUE" }));
        }
    }
    run.tags.extend(pairs(&body["tags"]));
    (200, json!({}))
}

fn pairs(list: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list.as_array().into_iter().flatten().map(|pair| (text(&pair["key"]), text(&pair["value"]))).collect()
}

/// A run as MLflow shows it, with the latest value of each metric.
fn shown(state: &State, id: usize) -> Value {
    let run = &state.runs[id];
    let mut latest: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, step, _) in &run.metrics {
        let found = latest.entry(key).or_insert(*step);
        *found = (*found).max(*step);
    }
    let list = |pairs: &BTreeMap<String, String>| -> Vec<Value> {
        pairs.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect()
    };
    let metrics: Vec<Value> =
        latest.iter().map(|(key, step)| json!({ "key": key, "step": step.to_string() })).collect();
    json!({
        "info": { "run_id": id.to_string(), "artifact_uri": format!("mlflow-artifacts:/0/{id}/artifacts") },
        "data": { "metrics": metrics, "params": list(&run.params), "tags": list(&run.tags) },
    })
}
