//! Answers in the forms of OpenAI's API: whole, or as a stream of events.

use super::error::ApiError;
use super::logprobs::TokenInfo;
use super::request::Kind;
use super::sequence::{Event, Finish, News};
use crate::data::tokenizer::{TextStream, Tokenizer};
use serde_json::{Map, Value, json};

/// An answer, as far as it is known, and the names that all its parts have.
pub struct Reply {
    kind: Kind,
    id: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    tokenizer: Tokenizer,
    prompt_tokens: usize,
    /// Whether the parts say that the number of tokens follows.
    include_usage: bool,
    /// By number.
    choices: Vec<Choice>,
}

/// A continuation, as far as it is known.
#[derive(Default)]
struct Choice {
    text: String,
    tokens: Vec<TokenInfo>,
    end: Option<(Finish, usize)>,
    /// The text of the tokens that have been shown, and its characters.
    shown: TextStream,
    offset: usize,
}

impl Finish {
    fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

impl Reply {
    pub fn new(kind: Kind, id: &str, created: u64, model: String, tokenizer: Tokenizer) -> Self {
        let prefix = if kind == Kind::Text { "cmpl" } else { "chatcmpl" };
        let id = format!("{prefix}-{id}");
        let (prompt_tokens, include_usage, choices) = (0, false, Vec::new());
        Reply { kind, id, created, model, tokenizer, prompt_tokens, include_usage, choices }
    }

    /// Announces continuations of prompts that have so many tokens together.
    pub fn expect(self, choices: usize, prompt_tokens: usize, include_usage: bool) -> Self {
        let choices = (0..choices).map(|_| Choice::default()).collect();
        Reply { choices, prompt_tokens, include_usage, ..self }
    }

    fn object(&self, name: &str, choices: Vec<Value>) -> Value {
        let Reply { id, created, model, .. } = self;
        json!({ "id": id, "object": name, "created": created, "model": model, "choices": choices })
    }

    fn usage(&self) -> Value {
        let written: usize = self.choices.iter().filter_map(|choice| choice.end).map(|end| end.1).sum();
        let (prompt, total) = (self.prompt_tokens, self.prompt_tokens + written);
        json!({ "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total })
    }

    fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.end.is_some())
    }

    /// Takes an event for the whole answer; returns it when it is complete.
    ///
    /// # Errors
    /// That of a continuation that failed.
    pub fn collect(&mut self, Event { index, news }: Event) -> Result<Option<Value>, ApiError> {
        let choice = &mut self.choices[index];
        match news {
            News::Piece { text, tokens } => {
                choice.text += &text;
                choice.tokens.extend(tokens);
            }
            News::Finished { finish, tokens } => choice.end = Some((finish, tokens)),
            News::Failed(error) => return Err(error),
        }
        Ok(self.is_complete().then(|| self.whole()))
    }

    fn whole(&mut self) -> Value {
        let mut choices = Vec::new();
        for index in 0..self.choices.len() {
            let choice = &mut self.choices[index];
            let (text, tokens) = (std::mem::take(&mut choice.text), std::mem::take(&mut choice.tokens));
            let finish = choice.end.map(|(finish, _)| finish.name());
            let logprobs = self.logprobs(index, &tokens);
            let rest = json!({ "index": index, "logprobs": logprobs, "finish_reason": finish });
            choices.push(match self.kind {
                Kind::Text => with(rest, "text", text.into()),
                Kind::Chat => {
                    with(rest, "message", json!({ "role": "assistant", "content": text, "refusal": null }))
                }
            });
        }
        let name = if self.kind == Kind::Text { "text_completion" } else { "chat.completion" };
        with(self.object(name, choices), "usage", self.usage())
    }

    /// The first events of a stream.
    pub fn begin(&self) -> Vec<String> {
        let role = json!({ "role": "assistant", "content": "" });
        match self.kind {
            Kind::Text => Vec::new(),
            Kind::Chat => (0..self.choices.len())
                .map(|index| self.part(index, role.clone(), Value::Null, None))
                .collect(),
        }
    }

    /// The events of a stream for one of a continuation; the last of them ends the stream if it
    /// [is complete](Self::is_complete) or has failed.
    pub fn events(&mut self, Event { index, news }: Event) -> (Vec<String>, bool) {
        match news {
            News::Piece { text, tokens } => {
                let logprobs = self.logprobs(index, &tokens);
                let content = self.content(text);
                (vec![self.part(index, content, logprobs, None)], false)
            }
            News::Finished { finish, tokens } => {
                self.choices[index].end = Some((finish, tokens));
                let content = if self.kind == Kind::Text { "".into() } else { json!({}) };
                let mut events = vec![self.part(index, content, Value::Null, Some(finish))];
                if self.is_complete() {
                    if self.include_usage {
                        let last = self.object(self.part_name(), Vec::new());
                        events.push(frame(&with(last, "usage", self.usage())));
                    }
                    events.push("data: [DONE]\n\n".to_owned());
                }
                (events, self.is_complete())
            }
            News::Failed(error) => (vec![frame(&error.body())], true),
        }
    }

    fn content(&self, text: String) -> Value {
        if self.kind == Kind::Text { text.into() } else { json!({ "content": text }) }
    }

    fn part_name(&self) -> &'static str {
        if self.kind == Kind::Text { "text_completion" } else { "chat.completion.chunk" }
    }

    /// An event with a part of a continuation.
    fn part(&self, index: usize, content: Value, logprobs: Value, finish: Option<Finish>) -> String {
        let finish = finish.map(Finish::name);
        let choice = json!({ "index": index, "logprobs": logprobs, "finish_reason": finish });
        let choice = with(choice, if self.kind == Kind::Text { "text" } else { "delta" }, content);
        let part = self.object(self.part_name(), vec![choice]);
        frame(&if self.include_usage { with(part, "usage", Value::Null) } else { part })
    }

    /// The log-probabilities of further tokens of a continuation.
    fn logprobs(&mut self, index: usize, tokens: &[TokenInfo]) -> Value {
        match self.kind {
            _ if tokens.is_empty() => Value::Null,
            Kind::Text => self.text_logprobs(index, tokens),
            Kind::Chat => {
                let content = tokens.iter().map(|info| {
                    let top =
                        info.top.iter().map(|&(token, logprob)| self.chat_logprob(token, Some(logprob)));
                    let top = top.collect::<Vec<_>>();
                    with(self.chat_logprob(info.token, info.logprob), "top_logprobs", top.into())
                });
                json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
            }
        }
    }

    fn chat_logprob(&self, token: u32, logprob: Option<f32>) -> Value {
        let bytes = self.tokenizer.token_bytes(token).unwrap_or_default();
        json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes })
    }

    fn text_logprobs(&mut self, index: usize, tokens: &[TokenInfo]) -> Value {
        let name = |token| token_name(self.tokenizer.token_bytes(token).unwrap_or_default());
        let top = |info: &TokenInfo| {
            let own = info.logprob.map(|logprob| (info.token, logprob));
            let all: Map<String, Value> = own
                .into_iter()
                .chain(info.top.iter().copied())
                .map(|(token, logprob)| (name(token), logprob.into()))
                .collect();
            info.logprob.map(|_| all)
        };
        let names: Vec<String> = tokens.iter().map(|info| name(info.token)).collect();
        let logprobs: Vec<Option<f32>> = tokens.iter().map(|info| info.logprob).collect();
        let top: Vec<Option<Map<String, Value>>> = tokens.iter().map(top).collect();
        let Choice { shown, offset, .. } = &mut self.choices[index];
        let mut offset_of = |info: &TokenInfo| {
            let start = *offset;
            let bytes = self.tokenizer.token_bytes(info.token).unwrap_or_default();
            *offset += shown.push(bytes).chars().count();
            start
        };
        let offsets: Vec<usize> = tokens.iter().map(&mut offset_of).collect();
        json!({ "tokens": names, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets })
    }
}

/// A token as text. One that is not whole characters is shown by its bytes, so that no two are the
/// same.
fn token_name(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    object[name] = value;
    object
}

/// A server-sent event. JSON has no line breaks.
pub fn frame(value: &Value) -> String {
    format!("data: {value}\n\n")
}
