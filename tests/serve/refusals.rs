//! Requests and flags that are refused.

use crate::common::refuse;
use crate::server::{Server, serve};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;

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
