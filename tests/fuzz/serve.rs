//! Requests of `warpsmith serve`.

use super::judge;
use warpsmith::data::sft::Template;
use warpsmith::data::tokenizer::Tokenizer;
use warpsmith::serve::request::{Kind, Model, Request};

const CONTEXT: usize = 64;

pub fn completions() -> Vec<Vec<u8>> {
    [
        r#"{"model": "m", "prompt": "Once <|endoftext|>", "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": -1}"#,
        r#"{"model": "m", "prompt": [[1, 50256], "a"], "n": 2, "stop": ["x", "\n"], "logprobs": 5, "echo": true}"#,
        r#"{"model": "m", "stream": true, "stream_options": {"include_usage": true}, "logit_bias": {"5": -100}}"#,
        r#"{"model": "m", "user": "u", "best_of": 1, "presence_penalty": 2, "frequency_penalty": -2, "suffix": null}"#,
    ]
    .map(Into::into)
    .into()
}

pub fn chats() -> Vec<Vec<u8>> {
    [
        r#"{"model": "m", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}"#,
        r#"{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "U"}]}], "logprobs": true,
            "top_logprobs": 20, "max_completion_tokens": 4, "response_format": {"type": "text"}}"#,
    ]
    .map(Into::into)
    .into()
}

pub fn completion(bytes: &[u8]) -> bool {
    read(Kind::Text, bytes)
}

pub fn chat(bytes: &[u8]) -> bool {
    read(Kind::Chat, bytes)
}

/// Whoever runs a request relies on what is asserted here.
fn read(kind: Kind, bytes: &[u8]) -> bool {
    let tokenizer = Tokenizer::gpt2();
    let V = tokenizer.vocab_size();
    let template = Some(Template::default());
    let model = Model { name: "m".to_owned(), tokenizer, context: CONTEXT, V, template };
    let request = Request::parse(kind, bytes, &model);
    if let Ok(request) = &request {
        assert!(!request.prompts.is_empty() && (1..=128).contains(&request.n));
        for prompt in &request.prompts {
            assert!(!prompt.tokens.is_empty());
            assert!(prompt.tokens.len() + request.options.max_tokens <= CONTEXT);
            assert!(prompt.tokens.iter().all(|&token| (token as usize) < V));
        }
        let options = &request.options;
        warpsmith::sample::Sampler::new(options.sampling).unwrap();
        assert!(options.stop.iter().all(|stop| !stop.is_empty()));
        assert!(options.logit_bias.iter().all(|&(token, bias)| (token as usize) < V && bias.is_finite()));
    }
    judge(request.map_err(|error| anyhow::anyhow!(error.message)), "")
}
