//! Writing text: picking the next token from logits ([`Sampler`]) and continuing a prompt
//! ([`generate`]).

mod generate;
mod sampler;

pub use generate::{Continuation, Finish, generate};
pub use sampler::{Sampler, SamplerOptions};

use crate::data::tokenizer::EOT;

/// `<|endoftext|>`, the separator of documents: it starts and ends a text.
pub const END_OF_TEXT: u32 = EOT as u32;
