//! `warpsmith serve`, as a client of OpenAI's API uses it.

#[path = "../common/mod.rs"]
mod common;
mod ending;
mod refusals;
mod server;

use common::{stdout, succeed, warpsmith};
use serde_json::{Value, json};
use server::{CONTEXT, MODELS, Server};
use std::thread;

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

#[test]
fn the_model_is_named_after_its_path() {
    let server = Server::start_with(&mut warpsmith(MODELS.path(), "serve -e m/model.safetensors --port 0"));
    assert_eq!(server.get("/v1/models").1["data"][0]["id"], "m/model.safetensors");
    assert_eq!(server.get("/v1/models/m/model.safetensors").0, 200);
}
