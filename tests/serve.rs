//! `warpsmith serve`, as a client of OpenAI's API uses it.

mod common;

use common::{refuse, signal, stdout, succeed, warpsmith, write_random_model};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use ureq::Agent;

/// Tokens of the short and the long model.
const CONTEXT: usize = 64;
const LONG: usize = 8192;

/// Folders `m` and `long` with a model of a lively size and its tokenizer, and templates.
static MODELS: LazyLock<TempDir> = LazyLock::new(|| {
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
struct Server {
    child: Child,
    url: String,
    key: Option<&'static str>,
}

impl Server {
    fn start(flags: &str) -> Self {
        Self::start_with(&mut serve(flags))
    }

    fn start_with(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://"), "{command:?}: {url:?}");
        Server { child, url: url.trim_end().to_owned(), key: None }
    }

    /// The status of an answer, and its body.
    fn send(&self, path: &str, body: Option<&Value>) -> (u16, String) {
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

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.send(path, None);
        (status, serde_json::from_str(&text).unwrap())
    }

    /// An answer to a request with these fields, and the model's name.
    fn ask(&self, path: &str, mut body: Value) -> (u16, Value) {
        body["model"] = "m".into();
        let (status, text) = self.send(path, Some(&body));
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    fn complete(&self, body: Value) -> Value {
        let (status, answer) = self.ask("/v1/completions", body.clone());
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    }

    fn text(&self, body: Value) -> String {
        self.complete(body)["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// The events of a stream, without the mark of its end.
    fn stream(&self, path: &str, mut body: Value) -> Vec<Value> {
        (body["model"], body["stream"]) = ("m".into(), true.into());
        let (status, text) = self.send(path, Some(&body));
        assert_eq!(status, 200, "{text}");
        let events = text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("{text}"));
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        events.split_terminator("\n\n").map(event).collect()
    }

    fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn serve(flags: &str) -> Command {
    warpsmith(MODELS.path(), &format!("serve --served-model-name m --port 0 {flags}"))
}

/// The text of a stream's continuation with this number.
fn text_of(events: &[Value], index: usize) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    choices.filter(|choice| choice["index"] == index).filter_map(|choice| choice["text"].as_str()).collect()
}

/// `warpsmith sample` with the model.
fn sampled(flags: &str, prompt: &str) -> String {
    let mut command = warpsmith(MODELS.path(), &format!("sample -e m {flags} -p"));
    let text = stdout(&succeed(command.arg(prompt)));
    text.strip_prefix(prompt).unwrap().strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn a_completion_is_the_text_of_a_sample() {
    let server = Server::start("-e m");
    let greedy = json!({ "prompt": "Once upon", "max_tokens": 20, "temperature": 0 });
    let answer = server.complete(greedy.clone());
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], sampled("--temperature 0 -g 20", "Once upon"));
    assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(0), &Value::Null));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!("m")));
    assert!(
        answer["id"].as_str().unwrap().starts_with("cmpl-") && answer["created"].as_u64() > Some(1 << 30)
    );
    let usage = &answer["usage"];
    let [prompt, written, total] =
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| usage[name].as_u64().unwrap());
    assert!(
        prompt > 0 && (written == 20) == (choice["finish_reason"] == "length") && total == prompt + written
    );

    let seeded =
        json!({ "prompt": "Once", "max_tokens": 30, "seed": 5, "n": 3, "temperature": 0.8, "top_p": 0.9 });
    let choices = server.complete(seeded)["choices"].as_array().unwrap().clone();
    for (seed, choice) in (5..).zip(&choices) {
        let flags = format!("--temperature 0.8 --top-p 0.9 -g 30 --seed {seed}");
        assert_eq!(choice["text"], sampled(&flags, "Once"), "{seed}");
    }
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    // Without a seed, each request has its own.
    let unseeded = json!({ "prompt": "Once", "max_tokens": 30 });
    assert_ne!(server.text(unseeded.clone()), server.text(unseeded));

    let (status, models) = server.get("/v1/models");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("m")));
    assert_eq!(server.get("/v1/models/m").1["max_model_len"], CONTEXT);
    assert_eq!(server.get("/v1/models/other/x").0, 404);
    assert_eq!(server.get("/health"), (200, json!({ "status": "ok" })));
}

#[test]
fn prompts_are_texts_or_tokens_and_may_be_several() {
    let server = Server::start("-e m --slots 2");
    let text = |prompt: Value| {
        let answer = server.complete(json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0 }));
        let choices = answer["choices"].as_array().unwrap();
        assert!((0..).zip(choices).all(|(index, choice)| choice["index"] == index));
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let [one, two, ids] = [json!("Once"), json!("There was"), json!([5, 6, 7])].map(text);
    assert_eq!(text(json!(["Once", "There was", "Once"])), [&one[..], &two[..], &one[..]].concat());
    assert_eq!(text(json!([[5, 6, 7], "Once"])), [&ids[..], &one[..]].concat());
    assert_eq!(text(json!("")), text(json!("<|endoftext|>")), "a text begins");
    assert_eq!(text(json!("")), text(json!(null)));
    let echoed = server.text(json!({ "prompt": "Once", "max_tokens": 8, "temperature": 0, "echo": true }));
    assert_eq!(echoed, format!("Once{}", one[0]));
    assert_eq!(server.text(json!({ "prompt": "Once", "max_tokens": 0, "echo": true })), "Once");
}

#[test]
fn a_stream_has_the_same_text_in_pieces() {
    let server = Server::start("-e m --slots 3");
    let body = json!({ "prompt": "Once", "max_tokens": 40, "seed": 3, "n": 2, "temperature": 1.2 });
    let whole = server.complete(body.clone());
    let mut streamed = body.clone();
    streamed["stream_options"] = json!({ "include_usage": true });
    let events = server.stream("/v1/completions", streamed);
    for index in 0..2 {
        assert_eq!(whole["choices"][index]["text"], text_of(&events, index));
    }
    assert!(events.len() > 40, "{} events", events.len());
    let (last, parts) = events.split_last().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    assert!(parts.iter().all(|part| part["usage"].is_null() && part["id"] == parts[0]["id"]));
    let ends = parts.iter().filter(|part| !part["choices"][0]["finish_reason"].is_null()).count();
    assert_eq!(ends, 2);
    let events = server.stream("/v1/completions", body);
    assert!(events.iter().all(|event| event.get("usage").is_none() && event["choices"].get(0).is_some()));
}

/// The text of a request is the same whatever runs beside it, and however long it waits.
#[test]
fn requests_do_not_change_each_other() {
    for slots in [1, 4] {
        let server = Server::start(&format!("-e m --slots {slots}"));
        let body = |seed: usize| {
            let prompt = ["Once", "There was a", "x", "The pumpkin was round. The"][seed % 4];
            json!({ "prompt": prompt, "max_tokens": 10 + 4 * seed, "seed": seed, "logprobs": 2 })
        };
        let ask = |seed: usize| server.complete(body(seed))["choices"].clone();
        let alone: Vec<Value> = (0..8).map(ask).collect();
        let together: Vec<Value> = thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|seed| scope.spawn(move || ask(seed))).collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (alone, together) in alone.iter().zip(&together) {
            assert_eq!(alone[0]["text"], together[0]["text"]);
            if is_bitwise() {
                assert_eq!(alone, together);
            }
        }
    }
}

/// Whether matmuls are ours, whose rows do not depend on each other by a bit.
fn is_bitwise() -> bool {
    cfg!(target_arch = "x86_64") && {
        #[cfg(target_arch = "x86_64")]
        let found = is_x86_feature_detected!("avx512f");
        #[cfg(not(target_arch = "x86_64"))]
        let found = false;
        found
    }
}

#[test]
fn kernels_decode_a_batch_too() {
    let greedy = |prompt: &str| json!({ "prompt": prompt, "max_tokens": 6, "temperature": 0 });
    let cpu = Server::start("-e m");
    let emulated = Server::start("-e m --device emulated --slots 3");
    let alone = cpu.text(greedy("Once"));
    let events = emulated.stream("/v1/completions", greedy("Once"));
    assert_eq!(text_of(&events, 0), alone);
    let prompts = json!(["Once", "There was", "x"]);
    let body = json!({ "prompt": prompts, "max_tokens": 6, "temperature": 0 });
    assert_eq!(emulated.complete(body.clone())["choices"], cpu.complete(body)["choices"]);
}

#[test]
fn stop_texts_end_a_continuation_before_them() {
    let server = Server::start("-e m");
    let body = |stop: Value| json!({ "prompt": "Once", "max_tokens": 40, "seed": 8, "stop": stop });
    let text = server.text(body(Value::Null));
    let characters: Vec<(usize, char)> = text.char_indices().collect();
    let (start, end) = (characters[9].0, characters[14].0);
    let stop = &text[start..end];
    let expected = &text[..text.find(stop).unwrap()];
    for stops in [json!(stop), json!(["\u{1}nowhere", stop])] {
        let answer = server.complete(body(stops.clone()));
        assert_eq!(answer["choices"][0]["text"], expected);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let events = server.stream("/v1/completions", body(stops));
        assert_eq!(text_of(&events, 0), expected);
    }
    assert_eq!(server.text(body(json!(["\u{1}nowhere"]))), text);
}

#[test]
fn log_probabilities_go_along() {
    let server = Server::start("-e m");
    let body =
        json!({ "prompt": "Once upon a", "max_tokens": 5, "temperature": 0, "logprobs": 2, "echo": true });
    let answer = server.complete(body.clone());
    let (choice, logprobs) = (&answer["choices"][0], &answer["choices"][0]["logprobs"]);
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let (tokens, values, top, offsets) =
        (list("tokens"), list("token_logprobs"), list("top_logprobs"), list("text_offset"));
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    if !joined.contains("bytes:") {
        assert_eq!(choice["text"], joined);
    }
    assert_eq!(tokens.len() as u64, answer["usage"]["total_tokens"].as_u64().unwrap());
    assert!(values[0].is_null() && top[0].is_null() && offsets[0] == 0 && offsets[1] != 0);
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    for i in 1..tokens.len() {
        let best = top[i].as_object().unwrap().values().map(|value| value.as_f64().unwrap());
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        let own = values[i].as_f64().unwrap();
        assert!(own < 0.0 && own <= best && top[i][tokens[i].as_str().unwrap()] == values[i]);
        assert!(i < prompt_tokens || own == best, "greedy");
    }
    // Those of a prompt are what the model says when it continues a part of it.
    let scored =
        server.complete(json!({ "prompt": choice["text"], "max_tokens": 0, "logprobs": 0, "echo": true }));
    let again = &scored["choices"][0]["logprobs"];
    if again["tokens"] == logprobs["tokens"] {
        for (a, b) in again["token_logprobs"].as_array().unwrap()[1..].iter().zip(&values[1..]) {
            assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= 1e-4, "{a} {b}");
        }
    }
    let events = server.stream("/v1/completions", body);
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["tokens"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(streamed, tokens);
}

#[test]
fn penalties_and_biases_change_the_choice() {
    let server = Server::start("-e m");
    let text = |more: Value| {
        let mut body = json!({ "prompt": "Once", "max_tokens": 12, "temperature": 0 });
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        server.text(body)
    };
    assert_eq!(text(json!({ "logit_bias": { "65": 100 } })), "b".repeat(12), "GPT-2's bytes begin at !");
    let plain = text(json!({}));
    assert_ne!(text(json!({ "logit_bias": { "65": 100 }, "frequency_penalty": 2 })), plain);
    let penalized =
        json!({ "logit_bias": { "65": 3, "66": 3 }, "presence_penalty": 2, "frequency_penalty": 2 });
    let counted = text(penalized);
    assert!(counted.matches('b').count() < 12, "{counted}");
    assert_eq!(text(json!({ "logit_bias": {}, "presence_penalty": 0, "top_k": 0 })), plain);
}

#[test]
fn conversations_are_answered_with_a_template() {
    let server = Server::start("-e m --template chat.json");
    let messages = json!([{ "role": "system", "content": "S" }, { "role": "user", "content": "Hi" }]);
    let body = json!({ "messages": messages, "max_tokens": 12, "seed": 4 });
    let (status, answer) = server.ask("/v1/chat/completions", body.clone());
    assert_eq!(status, 200, "{answer}");
    let choice = &answer["choices"][0];
    assert_eq!(
        (&answer["object"], &choice["message"]["role"]),
        (&json!("chat.completion"), &json!("assistant"))
    );
    // The template's text, as a completion.
    let same = server.text(json!({ "prompt": "S|U: Hi|A: ", "max_tokens": 12, "seed": 4 }));
    assert_eq!(choice["message"]["content"], same);
    let parts = json!([{ "role": "developer", "content": [{ "type": "text", "text": "S" }] }, messages[1]]);
    let of_parts = json!({ "messages": parts, "max_completion_tokens": 12, "seed": 4 });
    assert_eq!(server.ask("/v1/chat/completions", of_parts).1["choices"], answer["choices"]);

    let events = server.stream("/v1/chat/completions", body);
    let delta = |event: &Value| event["choices"][0]["delta"].clone();
    assert_eq!(delta(&events[0]), json!({ "role": "assistant", "content": "" }));
    let text: String =
        events.iter().filter_map(|event| delta(event)["content"].as_str().map(str::to_owned)).collect();
    assert_eq!(text, same);
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert_eq!(delta(events.last().unwrap()), json!({}));

    let with_logprobs = json!({ "messages": messages, "max_tokens": 4, "logprobs": true, "top_logprobs": 3 });
    let content =
        server.ask("/v1/chat/completions", with_logprobs).1["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(
        (content.as_array().unwrap().len(), content[0]["top_logprobs"].as_array().unwrap().len()),
        (4, 3)
    );
    // Without a limit, the answer may fill the context.
    let (_, long) = server.ask("/v1/chat/completions", json!({ "messages": messages, "seed": 1 }));
    let is_full = long["usage"]["total_tokens"] == CONTEXT;
    assert!(is_full || long["choices"][0]["finish_reason"] == "stop", "{long}");
    let (status, error) =
        server.ask("/v1/chat/completions", json!({ "messages": [{ "role": "x", "content": "" }] }));
    assert_eq!((status, &error["error"]["param"]), (400, &json!("messages")));
    assert!(
        error["error"]["message"].as_str().unwrap().contains("expected assistant, system, user, found \"x\"")
    );
}

/// Fields of a completion that are refused, with status, parameter and words of the message.
#[test]
fn bad_requests_name_their_fault() {
    let server = Server::start("-e m --slots 2 --queue 2");
    let cases = [
        (json!({ "prompt": 5 }), "prompt", "expected a string"),
        (json!({ "prompt": [] }), "prompt", "expected a string"),
        (json!({ "prompt": [[]] }), "prompt", "without empty ones"),
        (json!({ "prompt": [503] }), "prompt", "expected tokens from 0 to 502, found 503"),
        (json!({ "prompt": [1, "a"] }), "prompt", "found \"a\""),
        (json!({ "max_tokens": -1 }), "max_tokens", "a whole number of 0 or more, found -1"),
        (json!({ "max_tokens": 1.5 }), "max_tokens", "found 1.5"),
        (
            json!({ "max_tokens": 64 }),
            "prompt",
            "context is 64 tokens; the prompt has 1 and max_tokens is 64",
        ),
        (json!({ "prompt": vec![1; 65] }), "prompt", "the prompt has 65"),
        (json!({ "temperature": 2.5 }), "temperature", "a number from 0 to 2, found 2.5"),
        (json!({ "temperature": "hot" }), "temperature", "found \"hot\""),
        (json!({ "top_p": -0.1 }), "top_p", "a number from 0 to 1"),
        (json!({ "n": 0 }), "n", "a whole number from 1 to 128"),
        (json!({ "n": 5 }), "n", "is 5; the slots and the queue hold 4"),
        (json!({ "stop": [""] }), "stop", "none empty"),
        (json!({ "stop": 5 }), "stop", "expected a string"),
        (json!({ "logprobs": 6 }), "logprobs", "from 0 to 5"),
        (json!({ "seed": "x" }), "seed", "an integer"),
        (json!({ "logit_bias": { "503": 1 } }), "logit_bias", "tokens from 0 to 502"),
        (json!({ "logit_bias": { "5": 101 } }), "logit_bias", "-100 to 100"),
        (json!({ "presence_penalty": 3 }), "presence_penalty", "from -2 to 2"),
        (json!({ "best_of": 2 }), "best_of", "expected 1, as nothing else is supported, found 2"),
        (json!({ "suffix": "end" }), "suffix", "nothing else is supported"),
        (json!({ "stream": 1 }), "stream", "true or false"),
        (json!({ "stream_options": {} }), "stream_options", "with stream: true alone"),
        (json!({ "stream": true, "stream_options": { "x": 1 } }), "stream_options", "include_usage"),
        (json!({ "temprature": 1 }), "temprature", "not supported; leave it out"),
    ];
    for (body, param, words) in cases {
        let (status, answer) = server.ask("/v1/completions", body.clone());
        let error = &answer["error"];
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{body}: {answer}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {answer}");
    }
    let (_, long) = server.ask("/v1/completions", json!({ "max_tokens": 99 }));
    assert_eq!(long["error"]["code"], "context_length_exceeded");
    let status = |path: &str, body: &Value| server.send(path, Some(body)).0;
    assert_eq!(status("/v1/completions", &json!({ "model": "other" })), 404);
    assert_eq!(status("/v1/completions", &json!({})), 400);
    assert_eq!(status("/v1/completions", &json!([])), 400);
    assert_eq!(status("/v1/embeddings", &json!({})), 404);
    assert_eq!(server.get("/v1/completions").0, 405);
    assert_eq!(status("/v1/completions", &json!({ "model": "m", "prompt": "x".repeat(9 << 20) })), 413);
    let (status, chat) = server.ask("/v1/chat/completions", json!({ "messages": [] }));
    assert!(status == 404 && chat["error"]["message"].as_str().unwrap().contains("--template"), "{chat}");
    // Fields that change nothing.
    let ignored =
        json!({ "user": "me", "best_of": 2, "n": 2, "suffix": null, "store": false, "metadata": {} });
    assert_eq!(server.complete(ignored)["choices"].as_array().unwrap().len(), 2);
}

/// The status line of a raw request.
fn raw(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn other_sites_and_strangers_are_refused() {
    let open = Server::start("-e m");
    let post = |host: &str, content_type: &str| {
        let body = r#"{"model": "m", "max_tokens": 1}"#;
        let head = format!("Host: {host}\r\nContent-Type: {content_type}\r\nContent-Length: {}", body.len());
        raw(&open, &format!("POST /v1/completions HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n{body}"))
    };
    assert!(post("localhost", "application/json; charset=utf-8").contains(" 200 "));
    assert!(post("evil.com", "application/json").contains(" 403 "));
    assert!(post("localhost", "text/plain").contains(" 415 "));

    let mut closed = Server::start_with(serve("-e m --host 0.0.0.0").env("WARPSMITH_API_KEY", "secret"));
    closed.url = closed.url.replace("0.0.0.0", "127.0.0.1");
    for (key, status) in [(None, 401), (Some("secre"), 401), (Some("secret2"), 401), (Some("secret"), 200)] {
        closed.key = key;
        let (found, answer) = closed.get("/v1/models");
        assert_eq!(found, status, "{key:?}");
        assert!(status == 200 || answer["error"]["code"] == "invalid_api_key");
    }
    closed.key = None;
    assert_eq!(closed.get("/health").0, 200);
    let mut flag = Server::start("-e m --api-key k");
    flag.key = Some("k");
    assert_eq!(flag.get("/v1/models").0, 200);
}

#[test]
fn flags_that_cannot_be_honored_are_one_line() {
    let refused = |flags: &str, words: &[&str]| refuse(serve(flags).env_remove("WARPSMITH_API_KEY"), words);
    refused("-e m --host 0.0.0.0", &["--host 0.0.0.0", "needs a key", "WARPSMITH_API_KEY"]);
    refused("-e m --host nowhere", &["--host", "an IP address"]);
    refused("-e m --api-key é", &["--api-key", "ASCII"]);
    refused("-e m --slots 0", &["--slots"]);
    refused("-e nowhere", &["nowhere"]);
    refused("-e m --template nowhere.json", &["--template", "nowhere.json"]);
    refused("-e m --template pair.json", &["--template", "\"messages\""]);
    let taken = Server::start("-e m");
    let port = taken.url.rsplit_once(':').unwrap().1;
    refused(&format!("-e m --port {port}"), &["--port", "choose another"]);
}

/// A request of the long model whose text is on its way.
fn begin_long(server: &Server, tokens: usize) -> BufReader<TcpStream> {
    let body = json!({ "model": "m", "max_tokens": tokens, "stream": true, "temperature": 0,
        "logit_bias": { "502": -100 } });
    let body = body.to_string();
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    let head = format!("Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {}", body.len());
    write!(stream, "POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
    BufReader::new(stream)
}

/// Reads until so many events have come.
fn read_events(stream: &mut BufReader<TcpStream>, count: usize) {
    let lines = stream.lines().map(Result::unwrap);
    assert_eq!(lines.filter(|line| line.starts_with("data: ")).take(count).count(), count);
}

#[test]
fn a_client_that_leaves_frees_its_slot_and_a_full_queue_is_said() {
    let server = Server::start("-e long --slots 1 --queue 0");
    let mut stream = begin_long(&server, LONG - 1);
    read_events(&mut stream, 5);
    let start = Instant::now();
    read_events(&mut stream, 100);
    let whole = start.elapsed() / 100 * LONG as u32;
    let one = || server.ask("/v1/completions", json!({ "max_tokens": 1 }));
    let (status, full) = one();
    assert_eq!((status, &full["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    drop(stream);
    let left = Instant::now();
    while one().0 != 200 {
        assert!(
            left.elapsed() < whole / 4,
            "the slot is still taken after {:?} of {whole:?}",
            left.elapsed()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_lets_streams_end() {
    let server = Server::start("-e long --slots 1 --queue 4");
    let mut running = begin_long(&server, 600);
    read_events(&mut running, 5);
    let mut waiting = begin_long(&server, 10);
    thread::sleep(Duration::from_millis(50));
    signal(server.child.id(), "TERM");
    let (mut rest, mut refused) = (String::new(), String::new());
    running.read_to_string(&mut rest).unwrap();
    waiting.read_to_string(&mut refused).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert!(refused.contains("shutting down") && !refused.contains("[DONE]"), "{refused}");
    let url = server.url.clone();
    assert_eq!(server.wait().code(), Some(0));
    assert!(TcpStream::connect(url.strip_prefix("http://").unwrap()).is_err());

    let idle = Server::start("-e m");
    signal(idle.child.id(), "INT");
    assert_eq!(idle.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let server = Server::start("-e long --slots 1");
    let mut stream = begin_long(&server, LONG - 1);
    read_events(&mut stream, 5);
    signal(server.child.id(), "INT");
    thread::sleep(Duration::from_millis(100));
    signal(server.child.id(), "INT");
    assert_eq!(server.wait().code(), Some(130));
}

#[test]
fn the_model_is_named_after_its_path() {
    let server = Server::start_with(&mut warpsmith(MODELS.path(), "serve -e m/model.safetensors --port 0"));
    assert_eq!(server.get("/v1/models").1["data"][0]["id"], "m/model.safetensors");
    assert_eq!(server.get("/v1/models/m/model.safetensors").0, 200);
}
