//! One continuation of a prompt: from logits to pieces of text.

use super::error::ApiError;
use super::logprobs::{TokenInfo, token_info};
use crate::data::tokenizer::{TextStream, Tokenizer};
use crate::sample::{Sampler, SamplerOptions, Tail};
use axum::http::StatusCode;
use rustc_hash::FxHashMap;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

/// The options of a continuation.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most tokens to produce.
    pub max_tokens: usize,
    pub sampling: SamplerOptions,
    /// Subtracted from the logit of each token that the continuation has so far.
    pub presence_penalty: f32,
    /// The same, times the number of times that it has it.
    pub frequency_penalty: f32,
    /// Added to logits: token and amount.
    pub logit_bias: Vec<(u32, f32)>,
    pub stop: Vec<String>,
    /// The text that ends an answer before the end-of-text token, which is left out.
    pub answer_end: String,
    /// The number of most likely tokens whose log-probabilities go along with each token.
    pub logprobs: Option<usize>,
    /// Whether the prompt is repeated before the continuation.
    pub echo: bool,
}

/// A text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// At least one.
    pub tokens: Vec<u32>,
    /// The text that `echo` repeats.
    pub text: String,
}

/// The reason that a continuation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The end-of-text token, or a stop text.
    Stop,
    Length,
}

/// News of a sequence for its client.
#[derive(Clone, Debug)]
pub struct Event {
    /// The number of the sequence in its request.
    pub index: usize,
    pub news: News,
}

#[derive(Clone, Debug)]
pub enum News {
    /// Text, and with `logprobs` the tokens of which it is made. Characters are whole.
    Piece {
        text: String,
        tokens: Vec<TokenInfo>,
    },
    /// The end, after so many tokens.
    Finished {
        finish: Finish,
        tokens: usize,
    },
    Failed(ApiError),
}

/// A sequence that waits for a slot, or runs in one.
pub struct Sequence {
    pub prompt: Prompt,
    pub options: Options,
    index: usize,
    tokenizer: Tokenizer,
    sampler: Sampler,
    stream: TextStream,
    tail: Tail,
    last: u32,
    /// Tokens produced so far.
    produced: usize,
    /// Times that each token was produced; empty without penalties.
    counts: FxHashMap<u32, u32>,
    /// Tokens whose text the client has not seen, each with the length of the text up to it.
    pending: Vec<(usize, TokenInfo)>,
    /// Bytes of text that the client has seen, and of all text.
    seen: usize,
    written: usize,
    events: UnboundedSender<Event>,
    _permit: OwnedSemaphorePermit,
}

impl Sequence {
    /// # Errors
    /// If a sampling option is out of its range.
    pub fn new(
        index: usize,
        prompt: Prompt,
        options: Options,
        tokenizer: Tokenizer,
        events: UnboundedSender<Event>,
        permit: OwnedSemaphorePermit,
    ) -> anyhow::Result<Self> {
        let sampler = Sampler::new(options.sampling)?;
        let tail = Tail::new(options.stop.clone(), options.answer_end.clone());
        Ok(Sequence {
            prompt,
            options,
            index,
            tokenizer,
            sampler,
            stream: TextStream::new(),
            tail,
            last: 0,
            produced: 0,
            counts: FxHashMap::default(),
            pending: Vec::new(),
            seen: 0,
            written: 0,
            events,
            _permit: permit,
        })
    }

    /// Whether the client still waits.
    pub fn is_wanted(&self) -> bool {
        !self.events.is_closed()
    }

    /// The token that was picked last.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// The log-probabilities after each token of the prompt are needed.
    pub fn scores_prompt(&self) -> bool {
        self.options.echo && self.options.logprobs.is_some()
    }

    /// Passes on the prompt, if it is repeated. `after` has what the model says of each of its
    /// tokens but the first.
    pub fn begin(&mut self, after: Vec<TokenInfo>) {
        if !self.options.echo {
            return;
        }
        let first = self.prompt.tokens[..1].iter().map(|&token| TokenInfo::unknown(token));
        let tokens = match self.options.logprobs {
            Some(_) => first.chain(after).collect(),
            None => Vec::new(),
        };
        let text = self.prompt.text.clone();
        self.send(News::Piece { text, tokens });
    }

    /// Picks the next token; returns whether there may be another one.
    pub fn advance(&mut self, logits: &[f32]) -> bool {
        if self.produced == self.options.max_tokens {
            return self.finish(Finish::Length, false);
        }
        let token = match self.pick(logits) {
            Ok(token) => token,
            Err(error) => {
                self.fail(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")));
                return false;
            }
        };
        if token == self.tokenizer.eot() {
            return self.finish(Finish::Stop, true);
        }
        (self.last, self.produced) = (token, self.produced + 1);
        let text = self.stream.push(self.tokenizer.token_bytes(token).unwrap_or_default());
        self.written += text.len();
        if let Some(top) = self.options.logprobs {
            self.pending.push((self.written, token_info(logits, token, top)));
        }
        let (text, stopped) = self.tail.push(&text);
        if stopped {
            self.pass_on(text, false);
            self.send(News::Finished { finish: Finish::Stop, tokens: self.produced });
            return false;
        }
        self.pass_on(text, false);
        self.produced < self.options.max_tokens || self.finish(Finish::Length, false)
    }

    fn pick(&mut self, logits: &[f32]) -> anyhow::Result<u32> {
        let Options { presence_penalty, frequency_penalty, logit_bias, .. } = &self.options;
        let has_penalties = *presence_penalty != 0.0 || *frequency_penalty != 0.0;
        if !has_penalties && logit_bias.is_empty() {
            return self.sampler.pick(logits);
        }
        let mut logits = logits.to_vec();
        for &(token, bias) in logit_bias {
            logits[token as usize] += bias;
        }
        for (&token, &count) in &self.counts {
            logits[token as usize] -= presence_penalty + frequency_penalty * count as f32;
        }
        let token = self.sampler.pick(&logits)?;
        if has_penalties {
            *self.counts.entry(token).or_default() += 1;
        }
        Ok(token)
    }

    /// Ends the sequence, with the text that was held back; returns that no token follows.
    fn finish(&mut self, mut finish: Finish, by_itself: bool) -> bool {
        let rest = std::mem::take(&mut self.stream).finish();
        self.written += rest.len();
        let (mut text, stopped) = self.tail.push(&rest);
        if stopped {
            finish = Finish::Stop;
        } else {
            text += &self.tail.finish(by_itself);
        }
        self.pass_on(text, !stopped);
        self.send(News::Finished { finish, tokens: self.produced });
        false
    }

    /// Passes on text with the tokens that it completes, or with all of them.
    fn pass_on(&mut self, text: String, all: bool) {
        self.seen += text.len();
        let complete = self.pending.partition_point(|(end, _)| all || *end <= self.seen);
        let tokens: Vec<TokenInfo> = self.pending.drain(..complete).map(|(_, info)| info).collect();
        if !text.is_empty() || !tokens.is_empty() {
            self.send(News::Piece { text, tokens });
        }
    }

    /// Ends the sequence with an error.
    pub fn fail(&self, error: ApiError) {
        self.send(News::Failed(error));
    }

    fn send(&self, news: News) {
        // A client that has gone is noticed before the next step.
        drop(self.events.send(Event { index: self.index, news }));
    }
}
