//! A server for a test, and a client.

use crate::common::{succeed, warpsmith, write_random_model};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;
use ureq::Agent;

/// Tokens of the short and the long model.
pub const CONTEXT: usize = 64;
pub const LONG: usize = 8192;

/// Folders `m` and `long` with a model of a lively size and its tokenizer, and templates.
pub static MODELS: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    succeed(&mut warpsmith(dir.path(), "stories -o s.txt --count 200"));
    succeed(&mut warpsmith(dir.path(), "tokenizer train s.txt --vocab-size 503 -o m/tokenizer.json"));
    std::fs::create_dir(dir.path().join("long")).unwrap();
    std::fs::copy(dir.path().join("m/tokenizer.json"), dir.path().join("long/tokenizer.json")).unwrap();
    for (name, maxT) in [("m", CONTEXT), ("long", LONG)] {
        write_random_model(&dir.path().join(name).join("model.safetensors"), maxT, 0.12);
    }
    let turns =
        r#"{"messages": {"system": "{content}|", "user": "U: {content}|A: ", "assistant": "{content}."}}"#;
    std::fs::write(dir.path().join("chat.json"), turns).unwrap();
    std::fs::write(dir.path().join("pair.json"), r#"{"pair": "{prompt} {response}"}"#).unwrap();
    dir
});

/// The program, serving.
pub struct Server {
    pub child: Child,
    pub url: String,
    pub key: Option<&'static str>,
}

impl Server {
    pub fn start(flags: &str) -> Self {
        Self::start_with(&mut serve(flags))
    }

    pub fn start_with(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://"), "{command:?}: {url:?}");
        Server { child, url: url.trim_end().to_owned(), key: None }
    }

    /// The status of an answer, and its body.
    pub fn send(&self, path: &str, body: Option<&Value>) -> (u16, String) {
        let agent: Agent = Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("{}{path}", self.url);
        let bearer = self.key.map(|key| format!("Bearer {key}"));
        let response = match body {
            Some(body) => {
                let mut request = agent.post(url).header("Content-Type", "application/json");
                if let Some(bearer) = bearer {
                    request = request.header("Authorization", bearer);
                }
                request.send(body.to_string())
            }
            None => {
                let mut request = agent.get(url);
                if let Some(bearer) = bearer {
                    request = request.header("Authorization", bearer);
                }
                request.call()
            }
        };
        let mut response = response.unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.send(path, None);
        (status, serde_json::from_str(&text).unwrap())
    }

    /// An answer to a request with these fields, and the model's name.
    pub fn ask(&self, path: &str, mut body: Value) -> (u16, Value) {
        body["model"] = "m".into();
        let (status, text) = self.send(path, Some(&body));
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    pub fn complete(&self, body: Value) -> Value {
        let (status, answer) = self.ask("/v1/completions", body.clone());
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    }

    pub fn text(&self, body: Value) -> String {
        self.complete(body)["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// The events of a stream, without the mark of its end.
    pub fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        (body["model"], body["stream"]) = ("m".into(), true.into());
        let (status, text) = self.send(path, Some(&body));
        assert_eq!(status, 200, "{text}");
        let events = text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("{text}"));
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.split_terminator("\n\n").map(event).collect()
    }

    pub fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn serve(flags: &str) -> Command {
    warpsmith(MODELS.path(), &format!("serve --served-model-name m --port 0 {flags}"))
}
