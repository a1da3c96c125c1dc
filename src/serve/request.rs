//! Requests of OpenAI's API, read and checked.

use super::error::ApiError;
use super::fields::{Fields, shown};
use super::sequence::{Options, Prompt};
use crate::data::sft::Template;
use crate::data::tokenizer::Tokenizer;
use crate::sample::SamplerOptions;
use axum::http::StatusCode;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, ApiError>;

/// Most continuations of a prompt, tokens to show beside each one, and stop texts: OpenAI's limits,
/// except that it takes 4 stop texts.
const MOST_CHOICES: usize = 128;
const MOST_LOGPROBS: usize = 5;
const MOST_CHAT_LOGPROBS: usize = 20;
const MOST_STOPS: usize = 16;

/// Tokens of a completion that does not say how many.
const DEFAULT_TOKENS: usize = 16;

/// Fields that name the user or file the request, and change no answer.
const IGNORED: [&str; 5] = ["user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"];

/// A model as requests see it.
pub struct Model {
    /// The name in requests.
    pub name: String,
    pub tokenizer: Tokenizer,
    /// Tokens that a prompt and its continuation have together, at most.
    pub context: usize,
    pub V: usize,
    /// The text around the turns of a conversation.
    pub template: Option<Template>,
}

/// The endpoint of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/completions`
    Text,
    /// `/v1/chat/completions`
    Chat,
}

/// A request for continuations.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: Kind,
    pub prompts: Vec<Prompt>,
    /// Continuations of each prompt.
    pub n: usize,
    /// The seed of the first continuation; each further one has the next.
    pub options: Options,
    /// Whether text is sent as it is written.
    pub stream: bool,
    /// Whether a stream ends with the number of tokens.
    pub include_usage: bool,
}

impl Request {
    /// # Errors
    /// The first parameter that is wrong or that is not supported.
    pub fn parse(kind: Kind, body: &[u8], model: &Model) -> Result<Self> {
        let mut fields = Fields::parse(body)?;
        check_model(&mut fields, model)?;
        let prompts = match kind {
            Kind::Text => prompts(&mut fields, model)?,
            Kind::Chat => vec![conversation(&mut fields, model)?],
        };
        let n = fields.whole("n", 1..=MOST_CHOICES)?.unwrap_or(1);
        let max_tokens = max_tokens(kind, &mut fields, &prompts, model.context)?;
        let options = options(kind, max_tokens, &mut fields, model)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields, stream)?;
        refuse_the_rest(kind, n, fields)?;
        Ok(Request { kind, prompts, n, options, stream, include_usage })
    }

    /// The number of continuations.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.n
    }
}

fn check_model(fields: &mut Fields, model: &Model) -> Result<()> {
    let name = fields.text("model")?;
    let name = name.ok_or_else(|| ApiError::param("model", format!("missing; expected {:?}", model.name)))?;
    model.check_name(&name)
}

impl Model {
    /// # Errors
    /// If the name is that of another model.
    pub fn check_name(&self, name: &str) -> Result<()> {
        if name == self.name {
            return Ok(());
        }
        let message = format!("model: expected {:?}, found {:?}", self.name, name);
        let error =
            ApiError { param: Some("model".to_owned()), ..ApiError::new(StatusCode::NOT_FOUND, message) };
        Err(error.with_code("model_not_found"))
    }

    /// A prompt of the user's tokens.
    fn of_tokens(&self, tokens: &[Value]) -> Result<Prompt> {
        let wrong = |value: &Value| {
            let found = shown(value);
            ApiError::param("prompt", format!("expected tokens from 0 to {}, found {found}", self.V - 1))
        };
        let token = |value: &Value| {
            let token = value.as_u64().filter(|&token| token < self.V as u64);
            token.map(|token| token as u32).ok_or_else(|| wrong(value))
        };
        let tokens = tokens.iter().map(token).collect::<Result<Vec<u32>>>()?;
        let text = String::from_utf8_lossy(&self.tokenizer.decode_bytes(&tokens)).into_owned();
        Ok(Prompt { tokens, text })
    }

    /// A prompt of text, in which the characters of special tokens are those tokens.
    fn of_text(&self, text: &str) -> Prompt {
        let mut tokens = self.tokenizer.encode(text);
        if tokens.is_empty() {
            // A text begins after the end of another.
            tokens.push(self.tokenizer.eot());
        }
        Prompt { tokens, text: text.to_owned() }
    }
}

/// The prompts of a completion: a text, tokens, or an array of either. Without any, a text begins.
fn prompts(fields: &mut Fields, model: &Model) -> Result<Vec<Prompt>> {
    let prompt = fields.any("prompt").unwrap_or_else(|| "".into());
    let wrong = || {
        let expected = "expected a string, tokens, or an array of either, without empty ones";
        ApiError::param("prompt", format!("{expected}, found {}", shown(&prompt)))
    };
    let single = |value: &Value| match value {
        Value::String(text) => Ok(model.of_text(text)),
        Value::Array(tokens) if !tokens.is_empty() => model.of_tokens(tokens),
        _ => Err(wrong()),
    };
    match &prompt {
        Value::Array(array) if array.first().is_some_and(|first| !first.is_number()) => {
            array.iter().map(single).collect()
        }
        prompt => Ok(vec![single(prompt)?]),
    }
}

/// The conversation to answer.
fn conversation(fields: &mut Fields, model: &Model) -> Result<Prompt> {
    let template = model.template.as_ref().ok_or_else(|| {
        let message =
            "the server was started without --template, so it answers no conversations; use /v1/completions";
        ApiError::new(StatusCode::NOT_FOUND, message)
    })?;
    let messages = fields.any("messages");
    let Some(Value::Array(mut messages)) = messages.filter(|found| found.get(0).is_some()) else {
        return Err(ApiError::param("messages", "expected an array of messages, at least one"));
    };
    messages.iter_mut().enumerate().try_for_each(|(index, message)| normalize(index, message))?;
    let tokens = template.conversation(&messages, &model.tokenizer);
    let tokens = tokens.map_err(|fault| ApiError {
        param: Some("messages".to_owned()),
        ..ApiError::new(StatusCode::BAD_REQUEST, fault)
    })?;
    Ok(Prompt { tokens, text: String::new() })
}

/// Makes one text of content in parts, and the developer's turn that of the system.
fn normalize(index: usize, message: &mut Value) -> Result<()> {
    if message["role"] == "developer" {
        message["role"] = "system".into();
    }
    if let Some(Value::Array(parts)) = message.get("content") {
        let name = format!("messages[{index}].content");
        let text = |part: &Value| {
            let text = part["text"].as_str().filter(|_| part["type"] == "text");
            text.map(str::to_owned).ok_or_else(|| {
                ApiError::param(&name, format!("expected parts of type text, found {}", shown(part)))
            })
        };
        message["content"] = parts.iter().map(text).collect::<Result<String>>()?.into();
    }
    Ok(())
}

/// The most tokens of each continuation, within the context. A completion has 16 by default, the
/// answer of a conversation as many as fit.
fn max_tokens(kind: Kind, fields: &mut Fields, prompts: &[Prompt], context: usize) -> Result<usize> {
    let old = fields.whole("max_tokens", 0..=usize::MAX)?;
    let asked = match kind {
        Kind::Text => old,
        Kind::Chat => fields.whole("max_completion_tokens", 0..=usize::MAX)?.or(old),
    };
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let room = context.saturating_sub(longest);
    let default = if kind == Kind::Text { DEFAULT_TOKENS } else { context };
    let fits = match asked {
        Some(asked) => longest <= context && asked <= room,
        None => room > 0,
    };
    if fits {
        return Ok(asked.unwrap_or(default.min(room)));
    }
    let param = if kind == Kind::Text { "prompt" } else { "messages" };
    let and = asked.map_or(String::new(), |asked| format!(" and max_tokens is {asked}"));
    let message = format!("the model's context is {context} tokens; the prompt has {longest}{and}");
    Err(ApiError::param(param, message).with_code("context_length_exceeded"))
}

fn options(kind: Kind, max_tokens: usize, fields: &mut Fields, model: &Model) -> Result<Options> {
    let seed = match fields.seed("seed")? {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let sampling = SamplerOptions {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
        top_k: fields.whole("top_k", 0..=usize::MAX)?.filter(|&k| k > 0),
        top_p: top_p(fields)?,
        seed,
    };
    let mut penalty = |name| Ok(fields.number(name, -2.0..=2.0)?.unwrap_or(0.0) as f32);
    let (presence_penalty, frequency_penalty) = (penalty("presence_penalty")?, penalty("frequency_penalty")?);
    let (logprobs, echo) = match kind {
        Kind::Text => (fields.whole("logprobs", 0..=MOST_LOGPROBS)?, fields.flag("echo")?.unwrap_or(false)),
        Kind::Chat => (chat_logprobs(fields)?, false),
    };
    let end = model.template.as_ref().filter(|_| kind == Kind::Chat).map(Template::answer_end);
    Ok(Options {
        max_tokens,
        sampling,
        presence_penalty,
        frequency_penalty,
        logit_bias: logit_bias(fields, model.V)?,
        stop: stop(fields)?,
        answer_end: end.unwrap_or_default().to_owned(),
        logprobs,
        echo,
    })
}

fn random_seed() -> Result<u64> {
    getrandom::u64().map_err(|error| {
        let message = format!("the system has no random numbers: {error}");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })
}

/// OpenAI allows 0, which leaves the most likely token alone.
fn top_p(fields: &mut Fields) -> Result<Option<f32>> {
    let p = fields.number("top_p", 0.0..=1.0)?.map(|p| p as f32).filter(|&p| p < 1.0);
    Ok(p.map(|p| p.max(f32::MIN_POSITIVE)))
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0..=MOST_CHAT_LOGPROBS)?;
    match (wanted, top) {
        (false, Some(_)) => Err(ApiError::param("top_logprobs", "expected with logprobs: true alone")),
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

fn logit_bias(fields: &mut Fields, V: usize) -> Result<Vec<(u32, f32)>> {
    let Some(found) = fields.any("logit_bias") else { return Ok(Vec::new()) };
    let entry = |(token, bias): (&String, &Value)| {
        let token = token.parse::<u32>().ok().filter(|&token| (token as usize) < V)?;
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((token, bias as f32))
    };
    let all = found.as_object().and_then(|map| map.iter().map(entry).collect());
    all.ok_or_else(|| {
        let expected = format!("expected tokens from 0 to {}, each with a number from -100 to 100", V - 1);
        ApiError::param("logit_bias", format!("{expected}, found {}", shown(&found)))
    })
}

fn stop(fields: &mut Fields) -> Result<Vec<String>> {
    let Some(found) = fields.any("stop") else { return Ok(Vec::new()) };
    let single = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let all = match &found {
        Value::Array(array) if array.len() <= MOST_STOPS => array.iter().map(single).collect(),
        value => single(value).map(|text| vec![text]),
    };
    all.ok_or_else(|| {
        let expected = format!("expected a string or up to {MOST_STOPS} of them, none empty");
        ApiError::param("stop", format!("{expected}, found {}", shown(&found)))
    })
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool> {
    let Some(options) = fields.any("stream_options") else { return Ok(false) };
    if !stream {
        return Err(ApiError::param("stream_options", "expected with stream: true alone"));
    }
    let wrong = || {
        ApiError::param(
            "stream_options",
            format!("expected {{\"include_usage\": true}}, found {}", shown(&options)),
        )
    };
    let known = options.as_object().filter(|map| map.keys().all(|name| name == "include_usage"));
    let wanted = known.ok_or_else(wrong)?.get("include_usage");
    wanted.map_or(Ok(false), |wanted| wanted.as_bool().ok_or_else(wrong))
}

/// Refuses what would be answered otherwise than it was asked.
fn refuse_the_rest(kind: Kind, n: usize, mut fields: Fields) -> Result<()> {
    fields.ignore(&IGNORED);
    fields.only("store", &json!(false))?;
    match kind {
        Kind::Text => {
            // The best of as many as are returned: all of them.
            fields.only("best_of", &json!(n))?;
            fields.only("suffix", &json!(""))?;
        }
        Kind::Chat => {
            fields.only("response_format", &json!({ "type": "text" }))?;
            fields.only("tools", &json!([]))?;
            fields.only("modalities", &json!(["text"]))?;
        }
    }
    fields.finish()
}
